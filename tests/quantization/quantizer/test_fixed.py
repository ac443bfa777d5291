"""Quantizers without anything to learn, against their papers' formulas written out value by value."""

import itertools
import math

import pytest
import torch
from torch import nn

from lightning_optim.quantization import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    DoReFa,
    Operand,
    PowerOfTwo,
    Symmetric,
    Ternary,
    UnitInterval,
)
from lightning_optim.quantization.fold import fold_batch_norm
from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.quantizer.base import FixedScaleQuantizer, dynamic_qparams
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.simulation.rounding_backend import weight_scale

WEIGHTS = [
    *(Symmetric(bits=bits, granularity=kind) for bits in range(1, 9) for kind in ("tensor", "channel")),
    Symmetric(bits=4, granularity="group", group_size=3),
    *(PowerOfTwo(bits=bits) for bits in (2, 3, 4)),
    AdditivePowerOfTwo(),
    AdditivePowerOfTwo(bits=3, granularity="tensor"),
    Ternary(),
    Ternary(granularity="tensor"),
    Binary(),
    Binary(granularity="tensor"),
    *(DoReFa(bits=bits) for bits in range(2, 9)),
]


@pytest.fixture
def weight():
    return torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))


def parts(quantizer, weight, norm=None):
    spread = per_channel(weight_scale(weight, quantizer, None, norm), weight)
    return quantizer.integers(weight, spread, torch.zeros_like(spread)), spread


def nearest(x, levels):
    return min(levels, key=lambda level: abs(level - x))


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=repr)
def test_what_is_simulated_is_what_is_stored(quantizer, weight):
    whole, spread = parts(quantizer, weight)
    assert torch.equal(whole, whole.round())
    assert whole.min() >= quantizer.scheme.qmin
    assert whole.max() <= quantizer.scheme.qmax
    assert len(whole.unique()) <= 2**quantizer.scheme.bits
    for is_within in (True, False):
        assert torch.equal(quantizer.fake(weight, spread, None, is_within=is_within), whole * spread)


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=repr)
def test_half_precision_gets_the_integers_of_the_same_values(quantizer, weight):
    half = weight.bfloat16()
    whole, spread = parts(quantizer, half)
    fake = quantizer.fake(half, spread, None, is_within=True)
    assert fake.dtype == torch.bfloat16
    assert torch.equal(fake, (whole.float() * spread).bfloat16())


@pytest.mark.parametrize("quantizer", [*WEIGHTS[:2], Ternary(granularity="tensor"), DoReFa(bits=3)], ids=repr)
def test_a_folded_batch_norm_changes_the_scale_of_absolute_rules_alone(quantizer, weight):
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0, 3.0]))
        norm.running_var.uniform_(0.5, 2.0)
        folded = fold_batch_norm(weight, None, norm)[0]
    if not isinstance(quantizer, FixedScaleQuantizer):
        assert torch.equal(weight_scale(folded, quantizer, None, norm), weight_scale(folded, quantizer, None))
        return
    plain, _ = parts(quantizer, weight)
    whole, _ = parts(quantizer, folded, norm)
    assert torch.equal(whole, plain * torch.tensor([1.0, -1.0, 1.0, 1.0]).view(-1, 1, 1, 1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_powers_of_two_are_the_nearest_ones(bits, weight):
    whole, spread = parts(PowerOfTwo(bits=bits), weight)
    levels = [0.0, *(sign * 2.0**k for k in range(2 ** (bits - 1) - 1) for sign in (-1, 1))]
    expected = [nearest(value, levels) for value in (weight / spread).flatten().tolist()]
    assert whole.flatten().tolist() == expected


@pytest.mark.parametrize(("bits", "base"), [(5, 2), (3, 2), (7, 3), (4, 1), (4, 3)])
def test_sums_of_powers_are_those_of_the_paper(bits, base, weight):
    quantizer = AdditivePowerOfTwo(bits=bits, base_bits=base)
    terms = (bits - 1) // base
    sets = [[0.0, *(2.0 ** -(i + j * terms) for j in range(2**base - 1))] for i in range(terms)]
    sums = {sum(choice) for choice in itertools.product(*sets)}  # eq. 5 without its factor
    assert len(sums) == 2 ** (bits - 1)
    whole, spread = parts(quantizer, weight)
    levels = [sign * value / max(sums) for value in sums for sign in (-1, 1)]
    largest = spread.flatten() * quantizer.scheme.qmax
    got = (whole * spread / largest.view(-1, 1, 1, 1)).flatten()
    expected = [nearest(value, levels) for value in (weight / largest.view(-1, 1, 1, 1)).flatten().tolist()]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_ternary_is_the_papers_approximation(granularity, weight):
    whole, spread = parts(Ternary(granularity=granularity), weight)
    for row in [slice(None)] if granularity == "tensor" else range(4):
        values = weight[row].flatten().tolist()
        threshold = 0.7 * sum(map(abs, values)) / len(values)
        above = [abs(value) for value in values if abs(value) > threshold]
        expected = [math.copysign(abs(value) > threshold, value) for value in values]
        assert whole[row].flatten().tolist() == expected
        assert spread.flatten()[0 if granularity == "tensor" else row].item() == pytest.approx(sum(above) / len(above))


def test_the_binary_scale_has_the_least_squared_error(weight):
    whole, spread = parts(Binary(), weight)
    assert torch.equal(whole, torch.where(weight < 0, -1.0, 1.0))
    error = lambda scale: (weight - whole * scale).square().sum()  # noqa: E731  # one use
    assert all(error(spread) < error(spread * factor) for factor in (0.99, 1.01))


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_dorefa_is_equation_9_and_its_gradient_that_of_the_tanh(bits, weight):
    quantizer, count = DoReFa(bits=bits), 2**bits - 1
    values = weight.flatten().tolist()
    largest = max(abs(math.tanh(value)) for value in values)
    expected = [2 * round(count * (math.tanh(v) / (2 * largest) + 0.5)) / count - 1 for v in values]
    leaf = weight.clone().requires_grad_()
    out = quantizer.fake(leaf, torch.tensor(1.0 / count), None)
    assert out.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    out.sum().backward()
    surrogate = lambda value: math.tanh(value) / largest  # noqa: E731  # what remains if rounding is the identity
    place = int(weight.abs().flatten().argmin())
    slope = (surrogate(values[place] + 1e-4) - surrogate(values[place] - 1e-4)) / 2e-4
    assert leaf.grad.flatten()[place].item() == pytest.approx(slope, rel=1e-3)


def test_unit_interval_is_equation_11():
    quantizer, x = UnitInterval(bits=2), torch.tensor([-1.0, 0.1, 0.4, 0.9, 7.0], requires_grad=True)
    out = quantizer.fake(x, *quantizer.qparams(torch.tensor(-1.0), torch.tensor(7.0)))
    assert out.tolist() == pytest.approx([round(3 * min(max(v, 0.0), 1.0)) / 3 for v in x.tolist()])
    out.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_one_bit_stands_in_the_middles_of_the_halves():
    whole, spread = parts(Symmetric(bits=1, granularity="tensor"), torch.tensor([[-4.0, 1.0, 0.0]]))
    assert whole.tolist() == [[-1.0, 1.0, 1.0]]
    assert spread.item() == 2.0


def test_the_full_range_covers_both_ends_with_one_integer_more_below():
    quantizer = Symmetric(bits=4, granularity="tensor", narrow_range=False)
    low, high = torch.tensor([-4.0, -1.0, 0.0]), torch.tensor([1.0, 3.5, 0.0])
    scale, zero = quantizer.qparams(low, high)
    assert scale.tolist() == pytest.approx([0.5, 0.5, 1e-12])
    assert quantizer.integers(torch.tensor([-9.0, -4.0, 0.3, 3.5, 9.0]), scale[0], zero[0]).tolist() == [
        -8,
        -8,
        1,
        7,
        7,
    ]
    x = torch.tensor([-4.1, -4.0, 3.5, 3.8], requires_grad=True)
    quantizer.fake(x, scale[0], None).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0]  # -4.1 is rounded to -8, 3.8 would be 8


def test_groups_are_quantized_as_layers_of_their_own(weight):
    whole, _ = parts(Symmetric(bits=4, granularity="group", group_size=3), weight)
    expected = [parts(Symmetric(bits=4), part)[0] for part in weight.split(3, 1)]
    assert torch.equal(whole, torch.cat(expected, 1))


def test_tokens_are_quantized_one_by_one():
    x = torch.randn(2, 3, 8)
    quantizer = Affine(bits=4, granularity="token")
    whole = quantizer.fake(x, *dynamic_qparams(quantizer, x))
    for row, got in zip(x.flatten(0, 1), whole.flatten(0, 1), strict=True):
        assert torch.equal(got, quantizer.fake(row, *quantizer.qparams(row.min(), row.max())))
    assert dynamic_qparams(Affine(), x) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerOfTwo(bits=5), "bits of powers of two must be 2, 3 or 4"),
        (lambda: AdditivePowerOfTwo(bits=4), "base_bits must divide the 3 bits"),
        (lambda: AdditivePowerOfTwo(bits=7, base_bits=6), "spans more than 15"),
        (lambda: DoReFa(bits=1), "take Binary"),
        (lambda: Symmetric(granularity="group"), "group_size must be positive"),
        (lambda: Symmetric(group_size=2), "and 0 otherwise"),
        (
            lambda: check_operand(Symmetric(narrow_range=False), Operand.WEIGHT),
            r"take LearnedStep\(narrow_range=False\)",
        ),
        (lambda: Symmetric(bits=1, narrow_range=False), "of 2 bits and more"),
        (lambda: check_operand(Affine(), Operand.WEIGHT), "Affine quantizes activations, not weights"),
        (lambda: check_operand(Binary(), Operand.ACTIVATION), "Binary quantizes weights, not activations"),
        (
            lambda: check_operand(Symmetric(), Operand.ACTIVATION),
            "granularity of activations must be one of tensor, token",
        ),
        (lambda: Symmetric(granularity="group", group_size=4).weight_scale(torch.ones(2, 6)), "must divide the input"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
