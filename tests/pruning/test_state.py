from dataclasses import replace

import torch

from lightning_optim.cost import Prices
from lightning_optim.cost.prices import Pool, Product, Width
from lightning_optim.pruning.state import PruningState

KEEP = {"a.weight": torch.tensor([True, False, True, True])}


def cut_once():
    masked = PruningState(reached=0.25).after_mask(KEEP)
    return masked.with_due({"a.weight": [(0, torch.tensor([0, 2, 3]))]}, frozenset({"b.weight"})).after_cut(
        {"a.weight": (4, 2)}
    )


def test_a_state_never_changes():
    first = PruningState()
    first.after_mask(KEEP).with_due({"a.weight": [(0, torch.tensor([0]))]})
    assert first == PruningState()


def test_two_cuts_are_one_relative_to_the_full_size_network():
    state = cut_once()
    keep = {"a.weight": torch.tensor([False, False, True, True])}
    assert state.of_present(keep)["a.weight"].tolist() == [False, True, True]
    state = state.after_mask(keep).with_due({"a.weight": [(0, torch.tensor([1, 2])), (1, torch.tensor([1]))]})
    state = state.after_cut({"a.weight": (3, 2)})
    (rows, columns) = state.cut["a.weight"]
    assert (rows[0], rows[1].tolist(), rows[2]) == (0, [2, 3], 4)
    assert (columns[0], columns[1].tolist(), columns[2]) == (1, [1], 2)
    assert state.present["a.weight"].tolist() == keep["a.weight"].tolist()
    assert not state.due


def test_what_is_refused_once_stays_refused():
    assert cut_once().with_due({}, frozenset({"c.weight"})).refused == {"b.weight", "c.weight"}


def test_a_saved_state_is_the_state(tmp_path):
    prices = Prices("MACs", {"a.weight": Pool(4)}, (Product("a", 2.0, (Width(0.0, {"a.weight": 1.0}),)),))
    state = replace(cut_once(), prices=(prices, 0.5)).with_due({"a.weight": [(0, torch.tensor([1]))]})
    torch.save(state.state_dict(), tmp_path / "state.pt")
    found = PruningState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (found.reached, found.refused, found.prices) == (state.reached, state.refused, state.prices)
    for before, after in ((state.alive, found.alive), (state.present, found.present)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert [(dim, kept.tolist()) for dim, kept in found.due["a.weight"]] == [(0, [1])]
    assert [(dim, kept.tolist(), size) for dim, kept, size in found.cut["a.weight"]] == [(0, [0, 2, 3], 4)]
