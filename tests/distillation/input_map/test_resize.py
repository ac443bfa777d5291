import pytest
import torch

from lightning_optim.distillation import Resize
from lightning_optim.errors import TeacherError
from lightning_optim.surgery import Inputs


def test_nearest_repeats_pixels_and_leaves_what_is_no_image():
    image, ids = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.arange(3)
    resized = Resize(size=4, mode="nearest")(Inputs((image,), {"ids": ids, "mask": None}), None)
    assert resized.args[0][0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert resized.kwargs["ids"] is ids


def test_half_the_size_smooths_as_a_triangle_does_by_hand():
    row = [0.0, 8.0, 0.0, 0.0]
    resized = Resize(size=(1, 2))(Inputs((torch.tensor([[[row]]]),)), None).args[0][0, 0, 0].tolist()
    # A triangle over four pixels around each new pixel, at 1 and 3 of 4: distances 0.5 and 1.5 of 2.
    left = [0.75 * 0.0 + 0.75 * 8.0 + 0.25 * 0.0, 0.75 + 0.75 + 0.25]
    right = [0.25 * 8.0 + 0.75 * 0.0 + 0.75 * 0.0, 0.25 + 0.75 + 0.75]
    assert resized == pytest.approx([left[0] / left[1], right[0] / right[1]], rel=1e-6)


def test_image_of_that_size_is_handed_on_as_it_is():
    image = torch.randn(2, 3, 5, 4)
    assert Resize(size=(5, 4))(Inputs((), {"image": image}), None).kwargs["image"] is image


def test_inputs_without_an_image_are_refused():
    with pytest.raises(
        TeacherError, match=r"needs floating-point images of shape \[B, C, H, W\], got tensors of shape \[2, 3\]"
    ):
        Resize(size=4)(Inputs((torch.ones(2, 3),)), None)


@pytest.mark.parametrize("size", [0, (4, 4, 4), (4, 0), ()])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match="size must be height and width"):
        Resize(size=size)
