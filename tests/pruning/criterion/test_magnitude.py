import pytest
import torch

from lightning_optim.pruning import LayerEvidence, Magnitude


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_score_is_the_size_to_the_power_of_p(p):
    weight = torch.tensor([[0.0, -4.0], [9.0, 0.25]], requires_grad=True)
    score = Magnitude(p=p)(LayerEvidence(name="w", weight=weight))
    assert score.flatten().tolist() == pytest.approx([abs(w) ** p for w in (0.0, -4.0, 9.0, 0.25)])
    assert not score.requires_grad


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan")])
def test_an_exponent_that_is_not_above_zero_is_refused(p):
    with pytest.raises(ValueError, match="p must be above 0"):
        Magnitude(p=p)
