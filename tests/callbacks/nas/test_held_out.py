import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_optim.callbacks.nas.held_out import split_loader


def loader(count=20, **settings):
    return DataLoader(TensorDataset(torch.arange(count)), **{"batch_size": 3, "shuffle": True} | settings)


def numbers(batches):
    return [int(number) for (batch,) in batches for number in batch]


def test_both_parts_make_up_the_data_and_have_no_sample_in_common():
    kept, held = split_loader(loader(), 0.4, 0, 0, 1)
    assert len(held.samples) == 8
    assert sorted([*numbers(kept), *held.samples]) == list(range(20))
    assert split_loader(loader(), 0.4, 0, 0, 1)[1].samples == held.samples
    assert split_loader(loader(), 0.4, 1, 0, 1)[1].samples != held.samples


def test_a_batch_is_a_function_of_its_number_and_each_pass_has_another_order():
    _, held = split_loader(loader(), 0.5, 0, 0, 1)
    first = [numbers([held.batch(number)]) for number in range(9)]
    _, again = split_loader(loader(), 0.5, 0, 0, 1)
    assert [numbers([again.batch(number)]) for number in range(4, 9)] == first[4:]
    assert numbers([again.batch(2)]) == first[2]
    passes = [[number for each in first[start : start + 3] for number in each] for start in (0, 3, 6)]
    assert all(len(set(each)) == 9 and set(each) <= set(held.samples) for each in passes)
    assert passes[0] != passes[1]


def test_each_rank_has_a_part_of_every_batch():
    ranks = [split_loader(loader(40), 0.5, 0, rank, 2)[1] for rank in range(2)]
    for number in range(5):
        parts = [numbers([rank.batch(number)]) for rank in ranks]
        assert len(set(parts[0] + parts[1])) == 6


def test_held_out_batches_draw_nothing_from_the_generators_of_the_fit():
    _, held = split_loader(loader(), 0.5, 0, 0, 1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    held.batch(0)
    assert torch.equal(torch.rand(3), expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_what_cannot_be_split_is_refused_with_what_to_do():
    for bad, error, message in (
        ([loader()], TypeError, "taken from one DataLoader, got a list: return a plain DataLoader, or take a sampler"),
        (DataLoader(Stream()), ValueError, "an iterable dataset cannot be split: give one with __len__"),
        (loader(shuffle=False, sampler=WeightedRandomSampler([1.0] * 20, 20)), TypeError, "a loader with Weighted"),
        (loader(shuffle=False, batch_size=None), TypeError, "a loader with batch_size=None"),
        (loader(5), ValueError, "5 are too few: holding out 0.5 of them gives 3 and 2, and a batch takes 3"),
    ):
        with pytest.raises(error, match=message):
            split_loader(bad, 0.5, 0, 0, 1)
