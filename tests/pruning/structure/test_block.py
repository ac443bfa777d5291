import pytest
import torch

from lightning_optim.pruning import Block, GlobalThreshold


def blocks_of(weight, rows, columns):
    for top in range(0, weight.shape[0], rows):
        for left in range(0, weight.shape[1], columns):
            yield weight[top : top + rows, left : left + columns]


@pytest.mark.parametrize("shape", [(8, 12), (7, 10), (5, 3, 3, 2), (1, 1, 5)])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 1), (2, 5), (16, 1)])
def test_a_block_scores_the_mean_of_its_weights_and_falls_whole(shape, rows, columns):
    generator = torch.Generator().manual_seed(0)
    weight, structure = torch.randn(shape, generator=generator), Block(rows=rows, columns=columns)
    score = torch.rand(shape, generator=generator)
    pool = structure.pools({"a": weight}, {"a": score}, None)["a"]
    means = torch.stack([block.mean() for block in blocks_of(score, rows, columns)])
    torch.testing.assert_close(pool.flatten(), means)
    keep = torch.rand(pool.shape, generator=generator) > 0.5
    mask = structure.masks({"a": keep}, {"a": weight}, None)["a"]
    assert mask.shape == weight.shape
    for block, kept in zip(blocks_of(mask, rows, columns), keep.flatten(), strict=True):
        assert bool((block == kept).all())
    assert torch.equal(structure.entries({"a": mask})["a"], keep)


def test_the_sparsity_of_blocks_is_exact_over_layers():
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(16, 16, generator=generator), "b": torch.randn(8, 12, 3, 3, generator=generator)}
    structure = Block(rows=2, columns=4)
    for sparsity in (0.0, 0.31, 0.5, 0.99):
        keep = GlobalThreshold()(structure.pools(weights, {n: w.abs() for n, w in weights.items()}, None), sparsity)
        masks = structure.masks(keep, weights, None)
        gone = sum(int(not block.any()) for mask in masks.values() for block in blocks_of(mask, 2, 4))
        assert gone == round(sparsity * (8 * 4 + 4 * 3))


def test_neuron_scores_are_spread_over_the_row():
    pool = Block(rows=2, columns=2).pools({"a": torch.zeros(4, 2)}, {"a": torch.tensor([1.0, 3.0, 5.0, 7.0])}, None)
    assert pool["a"].tolist() == [[2.0], [6.0]]


@pytest.mark.parametrize("bad", [{"rows": 0}, {"columns": 0}])
def test_an_empty_block_is_refused(bad):
    with pytest.raises(ValueError, match="at least 1 row and 1 column"):
        Block(**bad)
