import gc

import pytest
import torch

from lightning_optim.quantization.simulation.tensor_state import Stage, TensorState, TensorStates


@pytest.mark.parametrize("stage", Stage)
def test_a_tensor_is_pending_from_its_operator_to_its_rounding(stage):
    assert TensorState("key", "origin", stage).is_pending is (stage in (Stage.BEFORE_NORM, Stage.PENDING))


def test_a_new_state_takes_the_place_of_the_last():
    states, x = TensorStates(rewrapped=False), torch.zeros(2)
    assert states.get(x) is None
    states.set(x, TensorState("first", "first"))
    states.set(x, TensorState("second", "second"))
    found = states.get(x)
    assert (found.key, found.stage) == ("second", Stage.FLOAT)
    assert states.get(x.clone()) is None


def test_a_state_dies_with_its_tensor():
    states, x = TensorStates(rewrapped=False), torch.zeros(2)
    states.set(x, TensorState("key", "key"))
    del x
    gc.collect()
    assert not states._states


def test_a_tensor_that_comes_back_wrapped_anew_is_recognized_in_training():
    states, x = TensorStates(rewrapped=True), torch.zeros(2)
    states.set(x, TensorState("key", "key"))
    assert states.get(x.view(2)).key == "key"
    assert states.get(x.view(1, 2)) is None
