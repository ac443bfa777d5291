import pytest

from lightning_optim.pruning.rewind.learning_rate import LearningRateRewind
from lightning_optim.pruning.rewind.weights import WeightRewind


@pytest.mark.parametrize("rewind", [WeightRewind, LearningRateRewind])
def test_a_step_before_the_first_is_refused(rewind):
    assert rewind(step=0).step == 0
    with pytest.raises(ValueError, match="step must be at least 0"):
        rewind(step=-1)


def test_weights_go_back_with_their_learning_rate_and_a_learning_rate_alone():
    assert WeightRewind().goes_back == {"weights", "learning_rate"}
    assert LearningRateRewind().goes_back == {"learning_rate"}
