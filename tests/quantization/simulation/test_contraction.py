import pytest
import torch
from torch import nn

from lightning_optim.quantization.simulation.contraction import contraction_of

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "f": 7}
PRODUCTS = ["ab,bc->ac", "ab,cb->ca", "abc,abd->acd", "abcd,abed->abce", "abc,cde->abde", "abcd,cdef->aebf"]
PRODUCTS += ["abc,c->ab", "ab,ab->a", "ab,ab->", "ab,cab->c", "abcd,bd->ac"]


def tensors(equation):
    torch.manual_seed(0)
    return [torch.randn([SIZES[axis] for axis in term]) for term in equation.partition("->")[0].split(",")]


@pytest.mark.parametrize("equation", PRODUCTS)
@pytest.mark.parametrize("parameters", [(), (0,), (1,), (0, 1)])
def test_a_contraction_is_the_einsum_that_it_stands_for(equation, parameters):
    operands = [nn.Parameter(x) if place in parameters else x for place, x in enumerate(tensors(equation))]
    contraction = contraction_of((equation, *operands))
    found, wanted = contraction.run(equation, *operands), torch.einsum(equation, *operands)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "equation", ["ab,bc", "...b,bc->...c", "aa,ab->b", "ab,ab->ab", "a,b->ab", "ab,cd->ad", "ab->ba", "ab,bc,cd->ad"]
)
def test_what_is_no_single_product_is_none(equation):
    operands = tensors(equation.replace("...", "a"))
    assert contraction_of((equation, *operands)) is None


def test_axes_that_are_spread_are_none():
    assert contraction_of(("ab,bc->ac", torch.ones(2, 1), torch.ones(3, 4))) is None
    assert contraction_of(("ab,bc->ac", [torch.ones(2, 3), torch.ones(3, 4)])) is None
