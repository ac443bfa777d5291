import pytest
import torch
from torch import nn

from lightning_optim.distillation import Side
from lightning_optim.distillation.initialization import LayerCopies
from lightning_optim.errors import TargetError, TeacherError
from support import same


class Net(nn.Module):
    """Blocks with a statistic each, and a head."""

    def __init__(self, blocks, width=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for _ in range(blocks)
        )
        for block in self.blocks:
            block[1].running_mean.normal_()
        self.head = nn.Linear(width, 3)


def copied(names, student, teacher):
    return LayerCopies(names).copy(Side(student), Side(teacher))


def test_every_second_block_with_its_statistics_and_nothing_else():
    student, teacher = Net(3), Net(6, seed=1)
    head = student.head.weight.clone()
    assert copied({"blocks.*": "blocks.*"}, student, teacher) == tuple(
        f"blocks.{i} from blocks.{2 * i}" for i in range(3)
    )
    for place, block in enumerate(student.blocks):
        assert same(block.state_dict(), teacher.blocks[2 * place].state_dict())
    assert torch.equal(student.head.weight, head)


def test_one_by_one_and_in_another_number_format():
    student, teacher = Net(2), Net(5, seed=1).bfloat16()
    copied({"blocks.0": "blocks.4", "blocks.1": "blocks.1", "head": "head"}, student, teacher)
    assert torch.equal(student.blocks[0][0].weight, teacher.blocks[4][0].weight.float())
    assert torch.equal(student.head.bias, teacher.head.bias.float())


def test_a_compiled_student():
    student, teacher = Net(2), Net(2, seed=1)
    student.blocks[0] = torch.compile(student.blocks[0])
    copied({"blocks.*": "blocks.*"}, student, teacher)
    assert torch.equal(student.blocks[0]._orig_mod[0].weight, teacher.blocks[0][0].weight)


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ({"blocks.*": "blocks.?x"}, TargetError, "teacher: no module is named like 'blocks.[?]x'"),
        ({"block.*": "blocks.*"}, TargetError, r"student: no module is named like 'block\.\*'"),
        ({"blocks.*": "blocks.0"}, TeacherError, "names 2 modules of the student .* 1 of the teacher .*a multiple"),
        ({"blocks.0": "blocks.0", "blocks.*": "blocks.*"}, TeacherError, "'blocks.0' of the student twice"),
        ({"blocks.0": "blocks.0", "head": "blocks.0.0"}, TeacherError, r"'bias' the one has \[3\], the other \[4\]"),
        ({"blocks.0": "blocks.0", "blocks.1.0": "blocks.1"}, TeacherError, r"at '0.bias' the one has nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_copied(names, error, says):
    student, teacher = Net(2), Net(4, seed=1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(error, match=says):
        copied(names, student, teacher)
    assert same(dict(student.state_dict()), before)


def test_no_name_at_all_is_refused():
    with pytest.raises(ValueError, match="initialize_from names modules"):
        LayerCopies({})
