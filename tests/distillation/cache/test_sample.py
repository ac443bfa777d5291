"""A key tells a sample from all others by what the network is given of it, and by nothing else."""

import pytest
import torch

from lightning_optim.distillation.cache.sample import content_keys, index_keys, num_samples, select_samples
from lightning_optim.surgery.tap import ModuleCall


def keys(*args, **kwargs):
    return content_keys((args, kwargs), num_samples(ModuleCall(args, kwargs, None)))


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_sample_has_its_key_in_any_batch_and_layout():
    x = seeded(6, 3, 4)
    expected = keys(x)
    assert len(set(expected)) == 6
    assert all(len(each) == 16 for each in expected)
    assert keys(x[[4, 1]]) == [expected[4], expected[1]]
    assert keys(x.transpose(1, 2).contiguous().transpose(1, 2)) == expected
    assert keys(x.clone().requires_grad_()) == expected


@pytest.mark.parametrize(
    "other",
    [
        lambda x, m, s: keys(x + 1e-5, mask=m, scale=s),
        lambda x, m, s: keys(x.double(), mask=m, scale=s),
        lambda x, m, s: keys(x.reshape(6, 12), mask=m, scale=s),
        lambda x, m, s: keys(x, mask=~m, scale=s),
        lambda x, m, s: keys(x, padding=m, scale=s),
        lambda x, m, s: keys(x, mask=m, scale=2.0),
        lambda x, m, s: keys(x, mask=m, scale=s, bias=torch.tensor(1.0)),
        lambda x, m, s: keys(x, x, mask=m, scale=s),
    ],
)
def test_what_a_network_is_given_otherwise_has_another_key(other):
    x, mask = seeded(6, 3, 4), seeded(6, 3) > 0
    assert not set(keys(x, mask=mask, scale=1.0)) & set(other(x, mask, 1.0))


def test_what_has_no_batch_axis_counts_for_every_sample():
    x = seeded(4, 2)
    first, second = keys(x, torch.ones(3)), keys(x, torch.tensor([1.0, 1.0, 2.0]))
    assert len({*first, *second}) == 8


def test_a_sample_alone_has_the_key_that_it_has_among_others():
    x, places = seeded(4, 2), torch.arange(3).view(1, 3)
    assert [keys(x[row : row + 1], places)[0] for row in range(4)] == keys(x, places)
    assert not set(keys(x, places)) & set(keys(x, places + 1))


def test_inputs_may_be_nested():
    x, y = seeded(4, 2), seeded(4, 3)
    assert keys({"a": x, "b": [y]}) == keys({"a": x.clone(), "b": [y.clone()]})
    assert not set(keys({"a": x, "b": [y]})) & set(keys({"a": x, "c": [y]}))


def test_half_precision_integers_and_booleans_have_keys():
    for x in (seeded(3, 2).bfloat16(), seeded(3, 2) > 0, torch.arange(6).view(3, 2), torch.arange(3)):
        assert len(keys(x)) == 3


def test_a_network_that_is_given_no_tensor_is_refused():
    with pytest.raises(ValueError, match="no tensor with a batch axis"):
        keys(3, name="x")


def test_an_index_has_one_key_for_each_call_of_a_step():
    index = torch.tensor([7, 3, 7])
    first, second = index_keys(index, 0), index_keys(index.int(), 1)
    assert first[0] == first[2] != first[1]
    assert not set(first) & set(second)


def test_some_samples_of_a_call_and_its_batch():
    x, shared = seeded(4, 2), seeded(3)
    call, batch = select_samples(ModuleCall((x, shared), {"flag": True}, None), {"y": torch.arange(4)}, [3, 1])
    assert torch.equal(call.args[0], x[[3, 1]])
    assert call.args[1] is shared
    assert call.kwargs == {"flag": True}
    assert batch["y"].tolist() == [3, 1]
