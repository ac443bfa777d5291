import pytest

from lightning_optim.nas import Selection


@pytest.mark.parametrize(
    "settings", [{"mode": "best"}, {"max_cost": 0}, {"evaluations": 0}, {"recalibration_batches": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Selection(**settings)
