import itertools

import pytest
import torch

import lightning_optim.quantization.rounding.fake_quantize as fake_quantize_module
from lightning_optim.quantization import Symmetric
from lightning_optim.quantization.functional import (
    affine_qparams,
    bias_floor,
    pair_extreme,
    quantize_bias,
    round_bias,
    symmetric_scale,
    value_range,
)
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize


def test_fake_quantize_equals_the_formula_value_by_value():
    torch.manual_seed(0)
    x = torch.randn(2000) * 3
    scale, zero_point = affine_qparams(x.min() / 2, x.max() / 2, 0, 255)
    got = fake_quantize(x, scale, zero_point, 0, 255)
    for value, out in zip(x.tolist(), got.tolist(), strict=True):
        ratio = (torch.tensor(value) / scale).item()
        whole = min(max(round(ratio) + zero_point.item(), 0), 255)  # round() takes ties to the even neighbour
        assert out == pytest.approx((whole - zero_point.item()) * scale.item(), rel=1e-6, abs=1e-7)


def test_per_channel_agrees_with_torch_but_for_its_reciprocal():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    scale = symmetric_scale(weight.abs().amax((1, 2, 3)), 127)
    got = fake_quantize(weight, scale.view(-1, 1, 1, 1), torch.zeros(4, 1, 1, 1), -127, 127)
    reference = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(4, dtype=torch.int32), 0, -127, 127)
    assert ((got - reference).abs() > 1e-6).float().mean() < 1e-3


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_represented_exactly(low, high):
    scale, zero_point = affine_qparams(torch.tensor(low), torch.tensor(high), 0, 255)
    assert fake_quantize(torch.zeros(1), scale, zero_point, 0, 255).item() == 0.0
    assert 0 <= zero_point.item() <= 255
    assert zero_point.item() == round(zero_point.item())


def test_gradient_passes_inside_the_range_ends_included_and_nowhere_else():
    x = torch.tensor([-0.6, -0.4, 0.0, 2.0, 7.0, 7.4, 7.6], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), torch.tensor(0.0), 0, 7).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [torch.tensor(0.037), torch.tensor([[0.037], [0.011]])], ids=["tensor", "token"])
def test_gradient_passes_exactly_where_nothing_is_clipped(scale, dtype):
    torch.manual_seed(0)
    x = (4 * torch.randn(2, 5000)).to(dtype).requires_grad_()
    zero_point = torch.full_like(scale, 100.0)
    gradient = torch.randn(2, 5000).to(dtype)
    fake_quantize(x, scale, zero_point, 0, 255).backward(gradient)
    whole = torch.round(x.detach().float() / scale) + zero_point
    is_inside = (whole >= 0) & (whole <= 255)
    assert 0 < is_inside.sum() < is_inside.numel()
    assert torch.equal(x.grad, gradient * is_inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_passes_alike_where_scales_are_not_read_as_numbers(dtype, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(5000).clamp(max=1.0).to(dtype).requires_grad_()
    gradients = []
    for high, is_number in itertools.product((x.detach().float().max(), torch.tensor(0.0)), (True, False)):
        with monkeypatch.context() as patched:
            if not is_number:  # as on an accelerator, which would have to be waited for
                patched.setattr(fake_quantize_module, "is_number", lambda _: False)
            x.grad = None
            values = x if high > 0 else x * 0.0
            fake_quantize(values, *affine_qparams(-high, high, 0, 255), 0, 255).sum().backward()
        gradients.append(x.grad if high > 0 else x.grad + values.detach() + 1.0)
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0][x == x.max()].min() == 1
    assert torch.equal(gradients[2], gradients[3])


def test_a_scale_that_is_trained_gets_no_gradient_from_rounding_a_frozen_bias():
    scale = torch.tensor([0.1, 0.4], requires_grad=True)
    assert not round_bias(torch.tensor([0.26, -1.0]), scale).requires_grad
    trained = torch.tensor([0.26, -1.0], requires_grad=True)
    round_bias(trained, scale).sum().backward()
    assert scale.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_known_to_be_within_is_rounded_alike_and_has_the_gradient_of_the_identity(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 200).to(dtype).requires_grad_()
    before, scale = x.detach().clone(), (x.detach().abs().amax(1, keepdim=True).float() / 127)
    out = fake_quantize(x, scale, None, -127, 127, is_within=True)
    out.backward(before)
    assert torch.equal(out, fake_quantize(before, scale, None, -127, 127))
    assert torch.equal(x.grad, before)
    assert torch.equal(x.detach(), before)
    assert out.dtype == dtype


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 0, 2, 1),
        lambda x: x[:, ::2, 1:],
        lambda x: x.to(memory_format=torch.channels_last).bfloat16(),
    ],
)
def test_the_range_of_values_is_that_of_any_arrangement_in_memory(arrange):
    x = arrange(torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0)))
    low, high = value_range(x)
    assert (low, high) == (x.min(), x.max())
    x = x.clone()
    x[1, 1, 1, 1] = torch.nan
    assert all(end.isnan() for end in value_range(x))


def test_bfloat16_is_rounded_in_float32():
    x = torch.linspace(-1, 1, 101, dtype=torch.bfloat16)
    scale, zero_point = torch.tensor(2 / 255), torch.tensor(128.0)
    assert torch.equal(
        fake_quantize(x, scale, zero_point, 0, 255),
        fake_quantize(x.float(), scale, zero_point, 0, 255).to(torch.bfloat16),
    )


def test_bias_is_rounded_to_the_accumulator_and_keeps_its_gradient():
    bias = torch.tensor([0.26, -1.0], requires_grad=True)
    scale = torch.tensor([0.1, 0.4])
    rounded = round_bias(bias, scale)
    rounded.sum().backward()
    assert torch.allclose(rounded, torch.tensor([0.3, -0.8]))
    assert bias.grad.tolist() == [1.0, 1.0]


def test_a_bias_fits_into_the_accumulator_of_a_channel_without_weights():
    bias, input_scale = torch.tensor([3.0]), torch.tensor(0.01)
    scale = torch.maximum(symmetric_scale(torch.zeros(1), 127), bias_floor(bias, input_scale))
    whole = quantize_bias(bias, input_scale * scale)
    assert whole.abs().item() < 2**31 - 1
    assert whole.item() * (input_scale * scale).item() == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 3, 3), (6, 4, 2), (6, 1, 3, 3)])
def test_no_pair_of_products_leaves_16_bits(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) ** 3  # heavy tails of both signs
    weight[0] = weight[0].abs().clamp(0.9, 1.0)  # neighbours of one size are the worst case
    quantizer = Symmetric()
    scale = quantizer.weight_scale(weight)
    whole = torch.round(weight / scale.view(-1, *[1] * (weight.dim() - 1)))
    assert whole.abs().max() <= 127
    for channel in whole:  # walk a kernel as an integer convolution does: place by place, input channels innermost
        walk = channel.movedim(0, -1).flatten().tolist()
        for first, second in zip(walk[::2], [*walk[1::2], 0.0], strict=False):
            for a, b in itertools.product((0, 255), repeat=2):
                assert -(2**15) <= a * first + b * second < 2**15


def test_weights_that_saturate_nowhere_keep_their_whole_range():
    alternating = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert pair_extreme(alternating).item() == 1.0
    assert Symmetric(portable=False).weight_scale(torch.ones(1, 4)).item() == pytest.approx(1 / 127)
    assert Symmetric(bits=7).weight_scale(torch.ones(1, 4)).item() == pytest.approx(1 / 63)
