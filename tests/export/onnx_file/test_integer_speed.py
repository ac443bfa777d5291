import platform

import pytest

from lightning_optim.cost import Spread
from lightning_optim.export.onnx_file.integer_speed import IntegerSpeed, _listed, measure_integer_speed

FAST, SLOW = Spread(2.9, 3.0, 3.1), Spread(0.45, 0.5, 0.52)


def test_it_is_measured_once_and_says_what_was_measured():
    speed = measure_integer_speed()
    assert speed is measure_integer_speed()
    assert speed.product.median > 0.0
    assert f"{speed.convolution.median:.1f} times in a convolution" in str(speed)
    if platform.system() == "Linux":
        assert speed.instructions is not None


def test_both_kernels_must_be_faster_to_pay():
    assert IntegerSpeed(product=FAST, convolution=FAST).pays
    assert not IntegerSpeed(product=FAST, convolution=SLOW).pays


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (IntegerSpeed(product=FAST, convolution=FAST, instructions=("avx_vnni",)), ["(avx_vnni)", "they pay"]),
        (
            IntegerSpeed(product=SLOW, convolution=SLOW, instructions=()),
            ["no instructions for 8-bit dot products", "0.5 times as fast", "they may not pay"],
        ),
        (IntegerSpeed(product=FAST, convolution=FAST), ["its instructions are not known"]),
        (IntegerSpeed(product=Spread(1.0, 3.0, 9.0), convolution=FAST), ["other work disturbed this measurement"]),
    ],
)
def test_the_sentence_tells_the_instructions_the_times_and_what_follows(speed, words):
    assert all(word in str(speed) for word in words)


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_vnni amx_int8\nflags : none\n", ("avx512_vnni", "amx_int8")),
        ("flags : fpu avx2 fma\n", ()),
        ("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n", ("asimddp", "i8mm")),
        ("cpu : POWER9\n", None),
    ],
)
def test_instructions_are_read_from_what_linux_tells(cpuinfo, found):
    assert _listed(cpuinfo) == found
