import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from lightning_optim.export.emulator.arithmetic import (
    Integers,
    QuantizationParameters,
    add,
    average_image,
    average_windows,
    output_multiplier,
    requantize,
)

INTERNAL = "com.microsoft"
KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("uint8"): TensorProto.UINT8}
KINDS |= {np.dtype("int8"): TensorProto.INT8, np.dtype("int32"): TensorProto.INT32}


def run(operator, inputs, out_dims, domain=INTERNAL, **settings):
    """One of ONNX Runtime's kernels, on what is given as arrays; what has no dimensions is a constant."""
    names = [f"in{place}" for place in range(len(inputs))]
    constant = {name: array for name, array in zip(names, inputs, strict=True) if array.ndim < 2}
    fed = {name: array for name, array in zip(names, inputs, strict=True) if array.ndim >= 2}
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["out"], domain=domain, **settings)],
        "one",
        [helper.make_tensor_value_info(name, KINDS[array.dtype], array.shape) for name, array in fed.items()],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, [None] * out_dims)],
        [
            helper.make_tensor(name, KINDS[array.dtype], array.shape, array.flatten())
            for name, array in constant.items()
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(INTERNAL, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, fed)[0]).float()


def qparams_of(scale, zero_point):
    return QuantizationParameters(torch.tensor(scale, dtype=torch.float32), torch.tensor(float(zero_point)), 0, 255)


def parts_of(qparams):
    return [np.float32(qparams.scale), np.uint8(qparams.zero_point)]


def as_arrays(*values):
    return [np.asarray(value) for value in values]


def draw(generator, shape, low=0, high=256):
    return torch.randint(low, high, shape, generator=generator).float()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def all_qparams(generator, count):
    for _ in range(count):
        scales = 0.005 + 0.05 * torch.rand(3, generator=generator)
        zeros = torch.randint(0, 256, (3,), generator=generator)
        yield [qparams_of(float(scale), int(zero)) for scale, zero in zip(scales, zeros, strict=True)]


def every_pair():
    left = torch.arange(256.0).repeat(256).view(256, 256)
    return left, left.T.contiguous()


def added(left, left_qparams, right, right_qparams, qparams):
    arrays = [
        left.byte().numpy(),
        *parts_of(left_qparams),
        right.byte().numpy(),
        *parts_of(right_qparams),
        *parts_of(qparams),
    ]
    return run("QLinearAdd", as_arrays(*arrays), 2)


def test_every_sum_of_two_bytes_is_the_runtimes(generator):
    left, right = every_pair()
    for one, other, qparams in all_qparams(generator, 60):
        found = add(Integers(left, one), Integers(right, other), qparams).integers
        assert torch.equal(found, added(left, one, right, other, qparams))


def test_ties_of_a_sum_fall_as_the_zero_point_says():
    left, right = every_pair()
    for zero in (0, 3, 128):
        one, other, qparams = qparams_of(0.01, 7), qparams_of(0.02, 11), qparams_of(0.02, zero)
        found = add(Integers(left, one), Integers(right, other), qparams).integers
        assert torch.equal(found, added(left, one, right, other, qparams))


def test_sums_that_are_rounded_twice_are_others(generator):
    left, right = every_pair()
    differing = 0
    for one, other, qparams in all_qparams(generator, 60):
        ratios = one.scale / qparams.scale, other.scale / qparams.scale
        fixed = qparams.zero_point - (ratios[0] * one.zero_point + ratios[1] * other.zero_point)
        rounded = (left * ratios[0] + (right * ratios[1] + fixed)).round().clamp(0, 255)
        differing += int((rounded != added(left, one, right, other, qparams)).sum())
    assert differing > 0


def convolved(x, x_qparams, weight, scales, bias, qparams, **settings):
    zeros = np.zeros(len(scales), np.int8)
    arrays = [x.byte().numpy(), *parts_of(x_qparams), weight.numpy().astype(np.int8), scales.numpy(), zeros]
    return run("QLinearConv", as_arrays(*arrays, *parts_of(qparams), bias.numpy()), 4, domain="", **settings)


def test_a_convolution_clamps_and_rounds_its_exact_accumulator(generator):
    ends = set()
    for x_qparams, _, qparams in all_qparams(generator, 20):
        x = draw(generator, (2, 5, 9, 9))
        weight = draw(generator, (6, 5, 3, 3), -32, 33)  # pairs of products that no processor saturates
        scales = 0.001 + 0.01 * torch.rand(6, generator=generator)
        bias = torch.randint(-5000, 5000, (6,), generator=generator, dtype=torch.int32)
        padded = torch.nn.functional.pad(Integers(x, x_qparams).centred(), (1, 1, 1, 1))
        accumulator = torch.nn.functional.conv2d(padded, weight.double(), bias.double())
        multiplier = output_multiplier(x_qparams.scale, scales, qparams).view(-1, 1, 1)
        expected = convolved(x, x_qparams, weight, scales, bias, qparams, pads=[1, 1, 1, 1])
        assert torch.equal(requantize(accumulator, multiplier, qparams).integers, expected)
        ends |= {float(expected.min()), float(expected.max())}
    assert {0.0, 255.0} <= ends


def test_ties_of_a_product_go_to_the_even_number_of_steps():
    x = torch.arange(256.0).view(1, 1, 16, 16)
    # Half of each of these scales is no product with the rounded inverse.
    for zero, scale in itertools.product((0, 3, 64), (1.0, 0.011, 0.037, 0.041, 0.049, 0.083)):
        x_qparams, qparams, scales = (
            qparams_of(scale, 128),
            QuantizationParameters(2 * torch.tensor(scale), torch.tensor(float(zero)), 0, 255),
            torch.ones(1),
        )
        expected = convolved(x, x_qparams, torch.ones(1, 1, 1, 1), scales, torch.zeros(1, dtype=torch.int32), qparams)
        accumulator = Integers(x, x_qparams).centred()
        found = requantize(
            accumulator, output_multiplier(x_qparams.scale, scales, qparams).view(-1, 1, 1), qparams
        ).integers
        assert torch.equal(found, expected)


def test_an_accumulator_beyond_24_bits_is_rounded_to_a_float_first():
    qparams = qparams_of(1.0, 0)
    accumulator = torch.tensor([2.0**24 + 1], dtype=torch.float64)
    assert requantize(accumulator, torch.tensor(2.5 / 2.0**24), qparams).integers.item() == 2.0


def test_an_average_over_the_image_is_the_runtimes(generator):
    for x_qparams, _, qparams in all_qparams(generator, 30):
        x = draw(generator, (3, 11, 7, 5))
        arrays = as_arrays(x.byte().numpy(), *parts_of(x_qparams), *parts_of(qparams))
        expected = run("QLinearGlobalAveragePool", arrays, 4, channels_last=0)
        assert torch.equal(average_image(Integers(x, x_qparams), qparams).integers, expected)


@pytest.mark.parametrize("counts_padding", [False, True])
def test_averages_over_windows_are_the_runtimes(generator, counts_padding):
    for x_qparams, _, qparams in all_qparams(generator, 30):
        x = draw(generator, (2, 3, 8, 9))
        arrays = as_arrays(x.byte().numpy(), *parts_of(x_qparams), *parts_of(qparams))
        settings = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
        expected = run("QLinearAveragePool", arrays, 4, count_include_pad=int(counts_padding), **settings)
        found = average_windows(
            Integers(x, x_qparams), qparams, (3, 2), (2, 1), (1, 0, 1, 1), counts_padding=counts_padding
        ).integers
        assert torch.equal(found, expected)


def test_ties_of_an_average_fall_as_the_zero_point_says():
    x = torch.arange(256.0).view(1, 1, 16, 16)
    for zero in (0, 3):
        x_qparams, qparams = qparams_of(1.0, 0), qparams_of(1.0, zero)
        arrays = as_arrays(x.byte().numpy(), *parts_of(x_qparams), *parts_of(qparams))
        expected = run("QLinearAveragePool", arrays, 4, kernel_shape=[1, 2])
        found = average_windows(
            Integers(x, x_qparams), qparams, (1, 2), (1, 1), (0, 0, 0, 0), counts_padding=False
        ).integers
        assert torch.equal(found, expected)


def test_what_is_read_back_is_what_was_rounded(generator):
    for qparams, _, _ in all_qparams(generator, 20):
        whole = torch.arange(256.0)
        assert torch.equal(qparams.quantize(Integers(whole, qparams).values()).integers, whole)
