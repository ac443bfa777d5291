import pytest
import torch

from lightning_optim import Targets
from lightning_optim.quantization import Affine, LayerQuantizers, MinMax, MovingAverage, Symmetric, Ternary
from lightning_optim.quantization.settings import QuantizationSettings
from lightning_optim.quantization.simulation.ranges import Ranges

INF = float("inf")


@pytest.mark.parametrize("quantizer", [Affine, Symmetric])
@pytest.mark.parametrize("bits", [0, 9])
def test_a_width_out_of_range_is_refused(quantizer, bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 8"):
        quantizer(bits=bits)


@pytest.mark.parametrize("quantizer", [Affine, Symmetric])
@pytest.mark.parametrize("bits", [4.0, True, "8"])
def test_a_width_that_is_no_integer_is_refused(quantizer, bits):
    with pytest.raises(TypeError, match="bits must be an integer, got"):
        quantizer(bits=bits)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ends_of_the_integers(bits):
    assert (Affine(bits=bits).scheme.qmin, Affine(bits=bits).scheme.qmax) == (0, 2**bits - 1)
    assert (Symmetric(bits=bits).scheme.qmin, Symmetric(bits=bits).scheme.qmax) == (
        -max(2 ** (bits - 1) - 1, 1),
        max(2 ** (bits - 1) - 1, 1),
    )


def test_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        MovingAverage(decay=1.0)


@pytest.mark.parametrize("observer", [MinMax(), MovingAverage(decay=0.5)])
def test_what_a_batch_did_not_show_keeps_its_range(observer):
    state = observer.start()
    state.grow(2)
    state.update(torch.tensor([-1.0, INF]), torch.tensor([1.0, -INF]))
    assert state.low.tolist() == [-1.0, INF]
    state.update(torch.tensor([INF, -2.0]), torch.tensor([-INF, 2.0]))
    assert (state.low.tolist(), state.high.tolist()) == ([-1.0, -2.0], [1.0, 2.0])


@pytest.mark.parametrize("observer", [MinMax(), MovingAverage(decay=0.5)])
def test_state_survives_saving(observer):
    state = observer.start()
    state.grow(1)
    state.update(torch.tensor([-1.0]), torch.tensor([1.0]))
    twin = observer.start()
    twin.load_state_dict(state.state_dict())
    for each in (state, twin):
        each.update(torch.tensor([-4.0]), torch.tensor([0.5]))
    assert torch.equal(state.low, twin.low)
    assert torch.equal(state.high, twin.high)


def test_the_message_of_two_processes_merges_to_the_union():
    parts = torch.tensor([-1.0, 0.5]), torch.tensor([-0.1, 10.0])
    processes = [Ranges(Affine(), MovingAverage()) for _ in parts]
    alone = Ranges(Affine(), MovingAverage())
    for part, process in zip(parts, processes, strict=True):
        process.observe("a", part)
        alone.observe("a", part)
    for each in (*processes, alone):
        each.register(("a",))
    union = torch.maximum(*(process.message() for process in processes))
    for process in processes:
        process.merge(union.clone())
    alone.merge(alone.message())
    assert processes[0].range_of("a") == processes[1].range_of("a") == alone.range_of("a") == (-1.0, 10.0)


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_values_that_are_not_finite_do_not_reach_a_range(bad):
    ranges = Ranges(Affine(), MinMax())
    for values in ([-1.0, 1.0], [bad, 2.0]):
        ranges.observe("a", torch.tensor(values))
        ranges.register(ranges.new_keys)
        ranges.merge(ranges.message())
    assert ranges.range_of("a") == (-1.0, 1.0)


def test_a_simulator_starts_with_the_settings_and_shares_nothing_with_the_next():
    layers = {"head": LayerQuantizers(targets=Targets(include=["head"]), weight_quantizer=Symmetric(bits=4))}
    settings = QuantizationSettings(Symmetric(), Affine(), MinMax(), layers)
    first = settings.start(frozenset({"stem"}), {"head": "head"})
    assert (first.excluded, first.layers.assigned, first.is_ready) == ({"stem"}, {"head": "head"}, False)
    assert first.bits_of("head:linear") == (4, 8)
    second = settings.start()
    assert (second.excluded, second.layers.assigned) == (frozenset(), {})
    assert second.ranges is not first.ranges


@pytest.mark.parametrize(
    ("weight", "activation", "observer", "error", "message"),
    [
        (Affine, Affine(), MinMax(), TypeError, "weight_quantizer must be of a class derived from Quantizer"),
        (Symmetric(), MinMax(), MinMax(), TypeError, "activation_quantizer must be of a class derived from Quantizer"),
        (Symmetric(), Affine(), Affine(), TypeError, "observer must be of a class derived from Observer"),
        (Symmetric(), Ternary(), MinMax(), ValueError, "Ternary quantizes weights, not activations"),
    ],
)
def test_settings_of_another_kind_are_refused(weight, activation, observer, error, message):
    with pytest.raises(error, match=message):
        QuantizationSettings(weight, activation, observer).check()
