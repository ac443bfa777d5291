"""CutMix against its formula, worked pixel by pixel."""

from random import Random

import pytest
import torch

from lightning_optim.errors import SampleError
from lightning_optim.regularization import CutMix


@pytest.mark.parametrize("seed", range(8))
def test_a_box_is_of_the_other_image_and_the_weight_is_the_area_that_is_left(seed):
    first = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    blend = CutMix().draw(Random(seed), [first])
    mixed = blend.combine(first, -1.0 - first)
    pasted = [(row, column) for row in range(5) for column in range(7) if mixed[0, 0, row, column] < 0]
    assert blend.weight == pytest.approx(1 - len(pasted) / 35)
    rows, columns = {row for row, _ in pasted}, {column for _, column in pasted}
    assert len(pasted) == len(rows) * len(columns)  # a box
    for sample in range(2):
        for channel in range(3):
            for row in range(5):
                for column in range(7):
                    value, own = float(mixed[sample, channel, row, column]), float(first[sample, channel, row, column])
                    assert value == (-1 - own if (row, column) in pasted else own)


def test_boxes_are_those_of_the_algorithm():
    """Worked by hand from its numbers: the side is the root of the area, the center anywhere, cut at the border."""
    random, again = Random(5), Random(5)
    blend = CutMix(alpha=1.0).draw(random, [torch.zeros(1, 1, 16, 24)])
    side = (1 - again.betavariate(1.0, 1.0)) ** 0.5
    center = (again.randrange(16), again.randrange(24))
    half = (int(side * 16) // 2, int(side * 24) // 2)
    bounds = [(max(c - h, 0), min(c + h, n)) for c, h, n in zip(center, half, (16, 24), strict=True)]
    area = (bounds[0][1] - bounds[0][0]) * (bounds[1][1] - bounds[1][0])
    assert blend.weight == 1 - area / (16 * 24)
    assert float(blend.combine(torch.ones(1, 1, 16, 24), torch.zeros(1, 1, 16, 24)).sum()) == 16 * 24 - area


def test_what_is_no_image_is_refused_and_integers_are_pasted():
    with pytest.raises(SampleError, match=r"cuts images \[B, C, H, W\] of one size, got \[2, 3\]: name the images"):
        CutMix().draw(Random(0), [torch.zeros(2, 3)])
    with pytest.raises(SampleError, match=r"of one size, got \[2, 1, 4, 4\], \[2, 1, 8, 8\]"):
        CutMix().draw(Random(0), [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 8, 8)])
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert CutMix().draw(Random(0), [pixels]).combine(pixels, pixels + 1).dtype == torch.uint8
    with pytest.raises(ValueError, match="alpha must be above 0"):
        CutMix(alpha=-1.0)
