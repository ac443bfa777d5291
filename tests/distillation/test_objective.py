import pytest
import torch
from torch import nn

from lightning_optim.distillation import (
    CRD,
    DKD,
    Context,
    FeatureLoss,
    MiniLMRelations,
    ReverseKL,
    SoftTarget,
)
from lightning_optim.distillation.objective import DistillationObjective
from lightning_optim.distillation.observation import Recording
from lightning_optim.schedule import Linear
from lightning_optim.surgery.tap import ModuleCall

CONTEXT = Context(progress=0.0, batch=None)


def call(seed):
    return ModuleCall((), {}, torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))


def test_total_weighs_each_loss_by_its_own_schedule():
    losses = {"a": SoftTarget(), "b": SoftTarget()}
    objective = DistillationObjective(losses, {"a": Linear(start=0.0, end=1.0), "b": 2.0}, Linear(start=1.0, end=0.0))
    assert objective.has_schedule
    values = {"a": torch.tensor(10.0), "b": torch.tensor(100.0)}
    assert float(objective.total(torch.tensor(1.0), values, 0.25)) == 0.75 + 2.5 + 200.0


def test_compare_averages_over_calls():
    objective = DistillationObjective({"soft": SoftTarget()}, 1.0, 1.0)
    pairs = [(call(0), call(1)), (call(2), call(3))]
    expected = (SoftTarget()(*pairs[0], CONTEXT) + SoftTarget()(*pairs[1], CONTEXT)) / 2
    recordings = [(Recording(mine), Recording(theirs)) for mine, theirs in pairs]
    torch.testing.assert_close(objective.compare(recordings, progress=0.0, batch=None)["soft"], expected)


@pytest.mark.parametrize("losses", [None, SoftTarget()])
def test_single_loss_is_named_after_its_leaf(losses):
    assert list(DistillationObjective(losses, 1.0, 1.0).losses) == ["soft_target"]


@pytest.mark.parametrize(
    ("losses", "weight", "hard_weight", "error", "message"),
    [
        ({}, 1.0, 1.0, ValueError, "at least one loss"),
        ({"soft": nn.MSELoss()}, 1.0, 1.0, TypeError, r"losses\['soft'\] must be a loss of distillation, got MSELoss"),
        (nn.MSELoss(), 1.0, 1.0, TypeError, "losses must be a loss of distillation or losses by key"),
        (None, 0.0, 1.0, ValueError, "teacher would do nothing"),
        (None, -1.0, 1.0, ValueError, "at least 0"),
        (None, float("nan"), 1.0, ValueError, "at least 0"),
        (None, 1.0, float("inf"), ValueError, "hard_weight"),
        (None, True, 1.0, TypeError, "a number or a schedule"),
        (None, "1", 1.0, TypeError, "a number or a schedule"),
        (None, {"hint": 1.0}, 1.0, ValueError, r"weight names \['hint'\], but the losses are \['soft_target'\]"),
    ],
)
def test_bad_settings_are_refused(losses, weight, hard_weight, error, message):
    with pytest.raises(error, match=message):
        DistillationObjective(losses, weight, hard_weight)


def test_the_key_of_one_loss_is_its_name_in_snake_case():
    keys = {CRD: "crd", DKD: "dkd", ReverseKL: "reverse_kl", MiniLMRelations: "mini_lm_relations"}
    for kind, key in keys.items():
        loss = kind(student="net.0") if issubclass(kind, FeatureLoss) else kind()
        assert [*DistillationObjective(loss, 1.0, 1.0).losses] == [key]
