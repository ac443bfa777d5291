import pytest
import torch

from lightning_optim.demo import Augmentation, Split
from lightning_optim.demo.data.tensors import EpochOrder, TensorLoader

SPLIT = Split(images=torch.arange(22, dtype=torch.uint8).view(22, 1, 1, 1), labels=torch.arange(22))


def labels_of(loader):
    return [labels.tolist() for _, labels in loader]


def flat(batches):
    return [label for batch in batches for label in batch]


def test_each_epoch_shows_every_sample_once_in_its_own_order():
    loader = TensorLoader(SPLIT, 11, seed=0)
    first = labels_of(loader)
    loader.sampler.set_epoch(1)
    second = labels_of(loader)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(22))
    assert first != second
    loader.sampler.set_epoch(0)
    assert labels_of(loader) == first


def test_an_iterator_built_before_the_epoch_is_set_gives_that_epoch():
    loader, other = TensorLoader(SPLIT, 4, seed=0), TensorLoader(SPLIT, 4, seed=0)
    iterator = iter(loader)
    loader.sampler.set_epoch(3)
    other.sampler.set_epoch(3)
    assert [labels.tolist() for _, labels in iterator] == labels_of(other)


def test_training_drops_the_short_batch_and_evaluation_keeps_it():
    assert len(TensorLoader(SPLIT, 4, seed=0)) == len(labels_of(TensorLoader(SPLIT, 4, seed=0))) == 5
    assert len(TensorLoader(SPLIT, 4)) == 6
    assert flat(labels_of(TensorLoader(SPLIT, 4))) == list(range(22))


def test_ranks_share_the_samples_and_take_equally_many_steps():
    loaders = [TensorLoader(SPLIT, 3, seed=0, rank=rank, world_size=3) for rank in range(3)]
    batches = [labels_of(loader) for loader in loaders]
    seen = [label for of_rank in batches for labels in of_rank for label in labels]
    assert [len(of_rank) for of_rank in batches] == [2, 2, 2]
    assert len(set(seen)) == len(seen) == 18
    evaluated = [flat(labels_of(TensorLoader(SPLIT, 3, rank=rank, world_size=3))) for rank in range(3)]
    assert sorted(flat(evaluated)) == list(range(22))


def test_bytes_become_floats_from_zero_to_one():
    images, _ = next(iter(TensorLoader(SPLIT, 22)))
    assert images.dtype == torch.float32
    assert torch.allclose(images.flatten() * 255, torch.arange(22.0))


def test_augmentation_is_a_function_of_seed_epoch_and_batch():
    split = Split(images=torch.rand(40, 1, 6, 6), labels=torch.zeros(40, dtype=torch.int64))

    def images_of(seed, epoch):
        loader = TensorLoader(split, 20, seed=seed, augmentation=Augmentation(max_shift=2, mirror=0.5, max_angle=20.0))
        loader.sampler.set_epoch(epoch)
        torch.rand(7)  # the global generator has no say
        return torch.cat([images for images, _ in loader])

    assert torch.equal(images_of(0, 1), images_of(0, 1))
    assert not torch.equal(images_of(0, 1), images_of(0, 2))
    assert not torch.equal(images_of(0, 1), images_of(1, 1))


def test_evaluation_is_not_augmented():
    split = Split(images=torch.rand(8, 1, 6, 6), labels=torch.arange(8))
    loader = TensorLoader(split, 8, augmentation=Augmentation(max_shift=2, mirror=1.0))
    assert torch.equal(next(iter(loader))[0], split.images)


def test_a_loader_goes_on_where_it_was_within_the_epoch():
    loader = TensorLoader(SPLIT, 4, seed=0)
    loader.sampler.set_epoch(2)
    whole = labels_of(loader)
    iterator = iter(loader)
    assert [next(iterator)[1].tolist() for _ in range(2)] == whole[:2]
    resumed = TensorLoader(SPLIT, 4, seed=0)
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(2)
    assert labels_of(resumed) == whole[2:]
    assert labels_of(resumed) == whole


def test_a_finished_epoch_is_not_gone_on_with():
    loader = TensorLoader(SPLIT, 4, seed=0)
    whole = labels_of(loader)
    resumed = TensorLoader(SPLIT, 4, seed=0)
    resumed.load_state_dict(loader.state_dict())
    assert labels_of(resumed) == whole


def numbered(size, **settings):
    split = Split(images=torch.zeros(size, 1, 8, 8), labels=torch.arange(size))
    return TensorLoader(split, 4, seed=1, **settings)


def test_a_part_is_held_out_that_shares_no_sample_with_the_rest():
    kept, held = numbered(40).hold_out(0.4, seed=0)
    assert (kept.num_samples, held.num_samples) == (24, 16)
    parts = [set(torch.cat([labels for _, labels in part]).tolist()) for part in (kept, held)]
    assert parts[0] | parts[1] == set(range(40))
    assert not parts[0] & parts[1]
    assert torch.equal(numbered(40).hold_out(0.4, seed=0)[1].split.labels, held.split.labels)
    assert not torch.equal(numbered(40).hold_out(0.4, seed=1)[1].split.labels, held.split.labels)
    ranks = [numbered(40, rank=rank, world_size=2).hold_out(0.4, seed=0)[1] for rank in (0, 1)]
    assert torch.equal(ranks[0].split.labels, ranks[1].split.labels)
    assert not set(ranks[0].batch(0)[1].tolist()) & set(ranks[1].batch(0)[1].tolist())


def test_a_batch_has_a_number_over_all_epochs():
    loader, batches = numbered(12), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches += [labels for _, labels in loader]
    assert all(torch.equal(numbered(12).batch(number)[1], labels) for number, labels in enumerate(batches))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="do not fill one batch of 23"):
        TensorLoader(SPLIT, 23, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TensorLoader(SPLIT, 0)
    with pytest.raises(ValueError, match="max_shift"):
        Augmentation(max_shift=-1)
    with pytest.raises(ValueError, match="mirror is a probability"):
        Augmentation(mirror=1.5)


def test_order_without_a_seed_is_the_data_sets():
    assert list(EpochOrder(3, seed=None)) == [0, 1, 2]


@pytest.mark.parametrize("setting", [{"max_angle": 181.0}, {"max_scale": 1.0}, {"max_shear": -0.1}])
def test_turns_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Augmentation(**setting)


def test_each_image_is_turned_by_an_angle_of_its_own():
    bar = torch.zeros(1, 1, 9, 9)
    bar[..., 4] = 1.0
    turned = Augmentation(max_angle=90.0)(bar.expand(8, -1, -1, -1), seed=0)
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 8
    assert torch.allclose(turned[:, 0, 4, 4], torch.ones(8), atol=0.3)  # the middle stays where it is
