import pytest
import torch

from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.quantization.simulation.deferred_activations import DeferredActivations
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.plan import Operator, Plan, Record
from lightning_optim.quantization.simulation.tensor_state import Stage, TensorState

PLAN = Plan(
    recorded={key: Operator("", key, Role.OTHER) for key in ("conv", "relu", "linear", "add")},
    readers={"conv": frozenset({"relu"}), "relu": frozenset({"linear", "add"})},
)


class HalvingBackend(Backend):
    """Quantizes by halving, and notes the quantizers that it is asked for."""

    def __init__(self):
        self.keys, self.unknown = [], []

    def pass_unknown(self, key):
        self.unknown.append(key)

    def activation(self, tensor, key):
        self.keys.append(key)
        return tensor / 2.0

    def weight(self, weight, bias, key, input_key, norm):
        raise NotImplementedError

    def folds(self, norm):
        raise NotImplementedError


@pytest.fixture
def backend():
    return HalvingBackend()


@pytest.fixture
def activations(backend):
    return DeferredActivations(backend, PLAN)


def with_stage(activations, stage, **settings):
    x = torch.ones(2, **settings)
    activations.states.set(x, TensorState("conv", "relu", stage))
    return x


def test_a_tensor_is_quantized_once_by_the_quantizer_of_its_producer(activations, backend):
    x = with_stage(activations, Stage.PENDING)
    (one, key), (other, _) = (activations.read(x, reader, 0) for reader in ("linear", "add"))
    assert one is other
    assert one.tolist() == [0.5, 0.5]
    assert key == "conv"
    assert backend.keys == ["conv"]


def test_what_is_quantized_is_not_quantized_again(activations, backend):
    quantized, _ = activations.read(with_stage(activations, Stage.PENDING), "linear", 0)
    assert activations.read(quantized, "add", 1) == (quantized, "conv")
    assert backend.keys == ["conv"]


def test_a_tensor_from_outside_has_a_quantizer_of_its_first_reader(activations, backend):
    x = torch.ones(2, requires_grad=True)
    assert [activations.read(x, reader, 1)[1] for reader in ("add", "linear")] == ["add<1", "add<1"]
    assert activations.overwriting.external_tensors == [x]


def test_values_that_were_changed_are_quantized_anew(activations):
    x = with_stage(activations, Stage.PENDING)
    activations.read(x, "linear", 0)
    x[:1] = 4.0
    assert activations.read(x, "add", 0)[0].tolist() == [2.0, 0.5]


def test_a_copy_without_gradients_does_not_serve_a_reader_that_needs_them(activations, backend):
    x = with_stage(activations, Stage.PENDING, requires_grad=True)
    with torch.no_grad():
        activations.read(x, "linear", 0)
    assert activations.read(x, "add", 0)[0].requires_grad
    assert backend.keys == ["conv", "conv"]


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.PENDING, Stage.QUANTIZED])
def test_floating_point_reads_quantized_what_is_pending_alone(activations, stage):
    x = with_stage(activations, stage)
    assert (activations.quantize_pending(x, "softmax") is x) is (stage is not Stage.PENDING)


def test_a_pending_tensor_is_found_inside_of_an_argument(activations):
    x = with_stage(activations, Stage.PENDING)
    shape, values = (1, 2), {"parts": [x, "same"]}
    assert activations.quantize_all_pending(shape, "stack") is shape
    ((found, rest),) = activations.quantize_all_pending(values, "stack").values()
    assert (found.tolist(), rest) == ([0.5, 0.5], "same")


def test_every_reader_is_recorded_with_the_operator_that_produced_the_tensor(backend):
    record = Record(Plan())
    activations = DeferredActivations(backend, Plan(), record)
    x = with_stage(activations, Stage.PENDING)
    activations.read(x, "linear", 0)
    activations.quantize_pending(x, "softmax")
    assert record.readers == {"relu": {"linear", "softmax"}}
    assert not backend.keys  # what the plan does not know yet is read as it is


def test_what_the_plan_does_not_know_is_read_as_it_is_and_named(activations, backend):
    x = torch.ones(2)
    assert activations.read(x, "conv#2", 0)[0] is x
    y = torch.ones(2)
    activations.states.set(y, TensorState("conv#2", "conv#2", Stage.PENDING))
    assert activations.read(y, "add", 0)[0] is y
    assert (backend.keys, backend.unknown) == ([], ["conv#2"])


def test_what_a_relu_alone_read_is_not_rounded_with_its_range_for_another_reader(backend):
    plan = Plan(
        recorded={"conv": Operator("", "conv2d", Role.CONVOLUTION), "relu": Operator("", "relu", Role.RELU)},
        readers={"conv": frozenset({"relu"}), "relu": frozenset({"output"})},
    )
    activations, x = DeferredActivations(backend, plan), torch.ones(2)
    activations.states.set(x, TensorState("conv", "conv", Stage.PENDING))
    assert activations.read(x, "add", 0)[0] is x
    assert backend.unknown == ["conv"]


def test_nobody_reads_what_waits_for_its_batch_norm(activations):
    x = with_stage(activations, Stage.BEFORE_NORM)
    with pytest.raises(RuntimeError, match="add reads the output of relu before its batch norm"):
        activations.read(x, "add", 0)
