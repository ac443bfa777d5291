import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.quantization import Affine, LayerQuantizers, LearnedStepAffine, MinMax, Symmetric
from lightning_optim.quantization.layers import AssignedLayers
from lightning_optim.quantization.simulation.activation_quantizers import ActivationQuantizers
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe


def test_a_layer_of_its_own_has_its_own_quantizer_and_the_rest_the_network_s():
    coarse = LayerQuantizers(targets=Targets(include=["head"]), activation_quantizer=Affine(bits=4))
    weights = LayerQuantizers(targets=Targets(include=["stem"]), weight_quantizer=Symmetric(bits=4))
    layers = AssignedLayers({"coarse": coarse, "weights": weights})
    quantizers = ActivationQuantizers(Affine(), layers)
    assert quantizers.quantizer_of("head:linear").scheme.bits == 8
    layers.assigned = {"head": "coarse", "stem": "weights"}
    assert [quantizers.quantizer_of(f"{name}:linear").scheme.bits for name in ("head", "stem", "body")] == [4, 8, 8]


def test_ranges_and_simulator_read_one_object_so_a_learned_scale_is_that_of_the_ranges():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(16, 4)
    simulator = Simulator(Symmetric(), LearnedStepAffine(), MinMax())
    observe(simulator, net, x, steps=2)
    key, device = simulator.ranges.keys[-1], torch.device("cpu")
    assert simulator.activations.learned_qparams(key, device) is None
    simulator.run(net, net.forward, (x,), {})
    simulator.learned.start()
    learned = simulator.activations.learned_qparams(key, device)
    assert all(
        torch.equal(one, other) for one, other in zip(simulator.ranges.qparams(key, device), learned, strict=True)
    )


def test_one_quantizer_alone_is_that_of_all_activations():
    ranges = Ranges(Affine(bits=2), MinMax())
    ranges.observe("x", torch.tensor([0.0, 3.0]))
    ranges.register(("x",))
    ranges.merge(ranges.message())
    scale, zero_point = ranges.qparams("x", torch.device("cpu"))
    assert (float(scale), float(zero_point)) == (1.0, 0.0)
