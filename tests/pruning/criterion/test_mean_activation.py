import pytest
import torch

from lightning_optim.pruning import LayerEvidence, MeanActivation
from lightning_optim.pruning.evidence import measure


def test_score_is_the_mean_size_over_samples_and_positions_of_batches_of_any_size():
    (activity,) = MeanActivation().needs
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 4, 4), torch.randn(5, 3, 4, 4)]
    tally = activity.start()
    for batch in batches:
        tally.update("conv.weight", *measure(activity.term, batch, 1))
    totals, counts = {activity: tally.totals["conv.weight"]}, {activity: tally.counts["conv.weight"]}
    score = MeanActivation()(LayerEvidence(name="conv.weight", weight=torch.ones(3, 1), totals=totals, counts=counts))
    expected = [
        sum(abs(float(a)) for batch in batches for a in batch[:, channel].flatten()) / (7 * 16) for channel in range(3)
    ]
    assert score.tolist() == pytest.approx(expected)


def test_activations_that_were_not_seen_are_named():
    with pytest.raises(ValueError, match=r"mean absolute activation of conv\.weight is needed"):
        MeanActivation()(LayerEvidence(name="conv.weight", weight=torch.ones(1)))
