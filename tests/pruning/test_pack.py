import copy

import pytest
import torch
from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.pruning.pack import is_semi_structured, pack_semi_structured
from lightning_optim.pruning.structure.functional import lowest_of_each


def sparse_model(**keywords):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.Linear(128, 3)).requires_grad_(False)
    for layer in (model[0], model[2]):
        layer.weight.masked_fill_(lowest_of_each(layer.weight.abs(), 2, 4), 0.0)
    return model.to(**keywords)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 0, 0, 2, 0, 0, 0, 0], True),
        ([1, 0, 0, 2, 3, 4, 5, 0], False),
        ([0, 1, 1, 1, 0, 0, 0, 0], False),  # half of all, but not of each four
        ([1, 0, 0, 0, 0, 0], False),
    ],
)
def test_the_pattern_is_told_by_groups_of_four(row, expected):
    row = torch.tensor([row], dtype=torch.float32)
    assert is_semi_structured(row) is expected
    assert is_semi_structured(row.view(1, -1, 1, 1).expand(3, -1, 2, 2)) is expected


def test_a_model_elsewhere_than_on_cuda_is_refused_and_left_as_it_is():
    model = sparse_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"need a CUDA device, but 0\.weight is on cpu"):
        pack_semi_structured(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_the_pattern_is_refused():
    with pytest.raises(TargetError, match="no linear layer is 2:4 sparse"):
        pack_semi_structured(nn.Linear(8, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sparse matrix units are on CUDA devices")
def test_a_packed_model_computes_what_the_masked_one_does():
    model = sparse_model(device="cuda", dtype=torch.float16)
    inputs = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    expected = model(inputs)
    assert pack_semi_structured(model) == ["0", "2"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-2, atol=1e-2)
