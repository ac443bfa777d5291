import itertools

import pytest
import torch

from lightning_optim import PruningScheduler
from lightning_optim.errors import TargetError
from lightning_optim.pruning import GlobalThreshold, LayerEvidence, Magnitude, SemiStructured, Uniform
from lightning_optim.pruning.pruner import Pruner
from lightning_optim.pruning.state import PruningState
from lightning_optim.schedule import Constant


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "linear.weight": torch.randn(6, 12, generator=generator),
        "conv.weight": 9.0 * torch.randn(5, 12, 3, 2, generator=generator),
    }


def seen(held):
    return {name: LayerEvidence(name=name, weight=weight) for name, weight in held.items()}


def step(pruner, held, sparsity):
    """Decide and mask, as the scheduler does."""
    return pruned(pruner, PruningState(), held, sparsity)[0]


def pruned(pruner, state, held, sparsity):
    keep = pruner.decide(state, sparsity, seen(held))
    masks = pruner.masks(state, keep, held)
    return {name: weight * masks[name] for name, weight in held.items()}, state.after_mask(keep)


def zeros_of_groups(weight, out_of):
    """Zeros of every group of consecutive input channels, for each output channel and kernel position."""
    groups = []
    for output, position in itertools.product(range(weight.shape[0]), range(weight[0, 0].numel())):
        row = weight[output].reshape(weight.shape[1], -1)[:, position]
        groups += [int((row[begin : begin + out_of] == 0).sum()) for begin in range(0, len(row), out_of)]
    return groups


@pytest.mark.parametrize(("keep", "out_of"), [(2, 4), (1, 4), (1, 2), (3, 6), (4, 12), (2, 3)])
@pytest.mark.parametrize("allocation", [Uniform(), GlobalThreshold()], ids=["uniform", "global"])
def test_a_schedule_that_ends_at_the_pattern_completes_it_everywhere(keep, out_of, allocation):
    structure = SemiStructured(keep=keep, out_of=out_of)
    done = step(Pruner(Magnitude(), structure, allocation), weights(), structure.highest_sparsity)
    for weight in done.values():
        assert set(zeros_of_groups(weight, out_of)) == {out_of - keep}


def test_the_largest_of_each_group_stay():
    held = weights()
    done = step(Pruner(Magnitude(), SemiStructured(), Uniform()), held, 0.5)
    for name, weight in held.items():
        along = weight.movedim(1, -1).reshape(-1, 4)
        expected = torch.zeros_like(along)
        for row, group in enumerate(along):
            for place in group.abs().topk(2).indices:
                expected[row, place] = group[place]
        assert torch.equal(done[name].movedim(1, -1).reshape(-1, 4), expected)


@pytest.mark.parametrize("allocation", [Uniform(), GlobalThreshold()], ids=["uniform", "global"])
def test_on_the_way_the_sparsity_is_exact_and_no_group_loses_more_than_the_pattern_takes(allocation):
    held, pruner, state = weights(), Pruner(Magnitude(), SemiStructured(), allocation), PruningState()
    total = sum(weight.numel() for weight in held.values())
    for sparsity in (0.1, 0.25, 0.37, 0.5):
        before = held
        # Training moves what is left, so that other weights of a group are now the lowest.
        held = {name: torch.where(weight == 0, 0.0, weight.flip(0) + 0.01) for name, weight in before.items()}
        held = {name: torch.where(before[name] == 0, 0.0, weight) for name, weight in held.items()}
        held, state = pruned(pruner, state, held, sparsity)
        gone = sum(int((weight == 0).sum()) for weight in held.values())
        if isinstance(allocation, GlobalThreshold):
            assert gone == round(sparsity * total)
        else:
            assert gone == sum(round(sparsity * weight.numel()) for weight in held.values())
        assert all(max(zeros_of_groups(weight, 4)) <= 2 for weight in held.values())
        assert all(bool((held[name][before[name] == 0] == 0).all()) for name in held)


def test_what_went_keeps_its_place_in_the_pattern_whatever_it_scores_now():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    pruner = Pruner(Magnitude(), SemiStructured(), Uniform())
    weight = step(pruner, {"a.weight": weight}, 0.25)["a.weight"]
    assert weight.tolist() == [[0.0, 2.0, 3.0, 4.0]]
    scores = SemiStructured().pools({"a.weight": weight}, {"a.weight": torch.tensor([[9.0, 8.0, 1.0, 2.0]])}, None)
    assert scores["a.weight"].tolist() == [[9.0, torch.inf, 1.0, torch.inf]]


def test_a_little_more_than_the_pattern_gives_the_pattern():
    structure = SemiStructured(keep=1, out_of=3)
    done = step(Pruner(Magnitude(), structure, Uniform()), weights(), 0.67)
    assert {zeros for weight in done.values() for zeros in zeros_of_groups(weight, 3)} == {2}


def test_layers_that_the_pattern_does_not_fit_stay_dense_with_a_warning():
    held = {**weights(), "stem.weight": torch.ones(4, 3, 3, 3)}
    pruner = Pruner(Magnitude(), SemiStructured(), Uniform())
    with pytest.warns(UserWarning, match=r"stem\.weight stay dense: 4 does not divide"):
        keep = pruner.decide(PruningState(), 0.5, seen(held))
    assert "stem.weight" not in keep


def test_a_model_that_the_pattern_fits_nowhere_is_refused():
    with pytest.raises(TargetError, match=r"no targeted layer can be 2:4 sparse.*stem\.weight"):
        SemiStructured().pools({"stem.weight": torch.ones(4, 3)}, {"stem.weight": torch.ones(4, 3)}, None)


def test_scores_of_whole_neurons_fall_from_the_front_of_each_group():
    scores = SemiStructured().pools({"a": torch.ones(2, 4)}, {"a": torch.tensor([1.0, 2.0])}, None)
    assert scores["a"].tolist() == [[1.0, 1.0, torch.inf, torch.inf], [2.0, 2.0, torch.inf, torch.inf]]


def test_nan_is_seen_through_the_pattern():
    score = torch.tensor([[1.0, 2.0, 3.0, torch.nan]])
    with pytest.raises(ValueError, match="NaN"):
        Uniform()(SemiStructured().pools({"a": torch.ones(1, 4)}, {"a": score}, None), 0.5)


@pytest.mark.parametrize(("keep", "out_of"), [(0, 4), (4, 4), (5, 4)])
def test_a_pattern_that_keeps_all_or_nothing_is_refused(keep, out_of):
    with pytest.raises(ValueError, match=f"got {keep}:{out_of}"):
        SemiStructured(keep=keep, out_of=out_of)


def test_a_schedule_beyond_the_pattern_is_refused():
    with pytest.raises(ValueError, match=r"reaches a sparsity of 0\.6, but SemiStructured.* ends at 0\.5"):
        PruningScheduler(schedule=Constant(value=0.6), structure=SemiStructured())
    PruningScheduler(schedule=Constant(value=0.667), structure=SemiStructured(keep=1, out_of=3))
