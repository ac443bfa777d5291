import pytest
import torch

from lightning_optim.demo.data.functional import mirror_images, seed_of, shift_images, stratified_indices


def test_shift_equals_pixel_by_pixel_copying():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 2, 5, 4, generator=generator)
    offsets = torch.randint(-2, 3, (6, 2), generator=generator)
    expected = torch.zeros_like(images)
    for b, (down, right) in enumerate(offsets.tolist()):
        for row in range(5):
            for column in range(4):
                if 0 <= row - down < 5 and 0 <= column - right < 4:
                    expected[b, :, row, column] = images[b, :, row - down, column - right]
    assert torch.equal(shift_images(images, offsets), expected)


def test_no_shift_changes_nothing():
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(shift_images(images, torch.zeros(3, 2, dtype=torch.int64)), images)
    assert shift_images(images[:0], torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 1, 4, 4)


def test_mirror_swaps_the_chosen_images_alone():
    images = torch.arange(8.0).view(2, 1, 2, 2)
    mirrored = mirror_images(images, torch.tensor([True, False]))
    assert mirrored.flatten().tolist() == [1, 0, 3, 2, 4, 5, 6, 7]


def test_every_class_has_its_share_to_within_one():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (1000,), generator=generator) ** 2 // 7
    left, drawn = stratified_indices(labels, 147, seed=3)
    assert len(drawn) == 147
    assert torch.equal(torch.cat([left, drawn]).sort().values, torch.arange(1000))
    for label in labels.unique():
        share = (labels == label).sum() * 147 / 1000
        assert abs((labels[drawn] == label).sum() - share) <= 1


def test_the_seed_alone_decides_the_split():
    labels = torch.arange(100) % 10
    first, again, other = (stratified_indices(labels, 20, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [0, 4, -1])
def test_a_split_that_leaves_nothing_is_refused(size):
    with pytest.raises(ValueError, match="takes a size from 1 to 3"):
        stratified_indices(torch.zeros(4, dtype=torch.int64), size, seed=0)


def test_seeds_of_neighbours_differ_and_fit_a_generator():
    seeds = {seed_of(seed, epoch, batch) for seed in range(5) for epoch in range(5) for batch in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
