import pytest

from lightning_optim.pruning import Rewind


@pytest.mark.parametrize(
    ("setting", "message"), [({"step": -1}, "step must be"), ({"restores": "all"}, "'learning_rate'")]
)
def test_a_value_out_of_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Rewind(**setting)


def test_weights_go_back_unless_the_learning_rate_alone_is_asked_for():
    assert Rewind().restores == "weights"
    assert Rewind(restores="learning_rate").step == 0
