import math

import pytest
import torch

from lightning_optim.pruning import ErdosRenyi, SemiStructured

SHAPES = {"stem": (16, 3, 3, 3), "wide": (64, 64, 3, 3), "point": (32, 64, 1, 1), "head": (10, 64)}


def scores(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def densities(shapes, sparsity):
    """The paper's own procedure: whatever would be more than dense is made dense, and the factor is found again."""
    dense = set()
    while True:
        kept, raw = (1 - sparsity) * sum(map(math.prod, shapes.values())), 0.0
        for name, shape in shapes.items():
            if name in dense:
                kept -= math.prod(shape)
            else:
                raw += sum(shape)
        factor = kept / raw
        over = {name for name, shape in shapes.items() if name not in dense and factor * sum(shape) > math.prod(shape)}
        if not over:
            return {n: 1.0 if n in dense else factor * sum(s) / math.prod(s) for n, s in shapes.items()}
        dense |= over


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_densities_are_those_of_the_papers_procedure_and_the_sum_is_exact(sparsity):
    masks = ErdosRenyi()(scores(), sparsity)
    total = sum(map(math.prod, SHAPES.values()))
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * total)
    for name, density in densities(SHAPES, sparsity).items():
        assert abs(int(masks[name].sum()) - density * math.prod(SHAPES[name])) <= 1.0


def test_the_lowest_of_each_layer_go():
    given = scores()
    for name, mask in ErdosRenyi()(given, 0.9).items():
        if not bool(mask.all()):
            assert float(given[name][mask].min()) >= float(given[name][~mask].max())


def test_what_has_gone_stays_gone_as_the_sparsity_grows():
    held = scores()
    for sparsity in (0.1, 0.11, 0.5, 0.503, 0.9):
        masks = ErdosRenyi()(held, sparsity)
        assert not any(bool(masks[name][held[name].isneginf()].any()) for name in held)
        shuffled = scores()
        held = {name: shuffled[name].flip(0).masked_fill(~mask, -torch.inf) for name, mask in masks.items()}


def test_no_layer_loses_more_than_its_pattern_allows():
    given = scores({"wide": (64, 64, 3, 3), "head": (8, 64)})
    pools = SemiStructured().pools({name: torch.ones_like(score) for name, score in given.items()}, given, None)
    for sparsity in (0.3, 0.499, 0.5):
        masks = ErdosRenyi()(pools, sparsity)
        assert all(bool(masks[name][pools[name].isposinf()].all()) for name in masks)
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * (64 * 64 * 9 + 8 * 64))


def test_pools_without_sides_are_refused():
    with pytest.raises(ValueError, match="the pool of channels has none"):
        ErdosRenyi()({"channels": torch.rand(8)}, 0.5)
