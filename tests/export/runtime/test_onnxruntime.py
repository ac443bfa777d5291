import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.errors import ArtefactError, ExportError
from lightning_optim.export import (
    Acceptance,
    ONNXRuntime,
    OpenVINO,
    TensorRT,
    calibrate,
    export_quantized,
    load_session,
    verify,
)
from lightning_optim.export.onnx_file.integer_widths import narrowest_integers
from lightning_optim.quantization import Affine, DoReFa, LayerQuantizers, MinMax, Symmetric, Unquantized
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator

IN_FLOAT = "its activations are not quantized"


class Block(nn.Module):
    """The feed-forward half of a transformer's layer; one layer has a batch norm, one no bias."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width, False),
        )
        self.between = nn.BatchNorm1d(4 * width)

    def forward(self, x):
        return x + self.down(F.relu6(self.between(self.up(self.norm(x)))))


def simulated(net, weight, activation, *batches, layers=None, assigned=None):
    simulator = Simulator(weight, activation, MinMax(), layers)
    simulator.place(frozenset(), assigned or {})
    run_calibration(simulator, net.eval(), [*batches])
    return simulator


def grouped(bits, size=32):
    return Symmetric(bits=bits, granularity="group", group_size=size)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("weight", "share"),
    [(grouped(8), 0.29), (grouped(4, 96), 0.17), (Symmetric(bits=2), 0.11 if narrowest_integers() == 2 else 0.17)],
)
def test_linear_layers_with_float_activations_are_packed_and_compute_what_was_simulated(tmp_path, weight, share):
    net, x = nn.Sequential(Block(96), nn.Linear(96, 10)), torch.randn(64, 96)
    with torch.no_grad():
        net.train()(x)  # statistics for the batch norms
    simulator = simulated(net, weight, Unquantized(), x, x)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(batches=[x]))
    assert written.kernels.counts["MatMulNBits"] == 3
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(written.kernels.counts)
    assert set(written.fallbacks.values()) == {IN_FLOAT}
    assert written.parity.max_abs_error <= 1e-5  # sums in another order
    assert written.parity.top1_agreement == 1.0
    assert written.num_bytes <= share * 4 * sum(weight.numel() for weight in net.parameters())
    assert verify(written.path, [x]).exact_fraction == 1.0


def test_weights_are_not_packed_where_that_is_not_wanted(tmp_path):
    net, x = nn.Linear(96, 10), torch.randn(8, 96)
    export_quantized(
        simulated(net, grouped(4), Unquantized(), x, x), net, tmp_path / "model.onnx", runtime=ONNXRuntime(packed=False)
    )
    (node,) = onnx.load(tmp_path / "model.onnx").graph.node
    assert {each.name: each.i for each in node.attribute}["bits"] == 8


def test_inputs_of_packed_layers_are_rounded_where_that_is_wanted(tmp_path):
    net, x = nn.Linear(96, 10), torch.randn(64, 96)
    simulator, runtime = simulated(net, grouped(4), Unquantized(), x, x), ONNXRuntime(rounds_inputs=True)
    accept = Acceptance(batches=[x], min_agreement=0.9)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=runtime, acceptance=accept)
    # A block of 32 products: what its largest input is rounded by, at most, times the sum of its weights.
    steps = x.unflatten(1, (3, 32)).abs().amax(2) / 127
    bound = (0.51 * steps) @ net.weight.detach().abs().unflatten(1, (3, 32)).sum(2).T
    assert 1e-4 < written.parity.max_abs_error <= 1.2 * bound.max()
    with pytest.raises(ExportError, match="rounds_inputs needs linear layers beside Unquantized activations"):
        export_quantized(simulated(net, Symmetric(), Affine(), x, x), net, tmp_path / "other.onnx", runtime=runtime)


def test_a_head_with_groups_follows_layers_in_integers(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(64, 1, 6, 6)
    layers = {
        "head": LayerQuantizers(
            targets=Targets(include=["*"]), weight_quantizer=grouped(4), activation_quantizer=Unquantized()
        )
    }
    simulator = simulated(net, Symmetric(), Affine(), x, x, layers=layers, assigned={"5": "head"})
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(batches=[x]))
    assert written.kernels.integer == {"QLinearConv": 1, "QGemm": 1}
    assert written.kernels.floating == {"MatMulNBits": 1}
    assert written.fallbacks == {"5:linear": IN_FLOAT}
    # One value of the layers in integers that rounds the other way is worth a step times a weight.
    step = simulator.ranges.qparams("3:linear", torch.device("cpu"))[0]
    assert written.parity.max_abs_error <= 1.01 * step * net[5].weight.abs().max()
    table = simulator.bits_of
    assert table("5:linear") == (4, 32)


def test_other_operators_of_float_activations_are_named_in_the_report(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = 9 * torch.randn(16, 2, 6, 6)
    simulator = simulated(net, Symmetric(bits=4), Unquantized(), x, x)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(batches=[x]))
    assert written.fallbacks == dict.fromkeys(("0:conv2d", "2:adaptive_avg_pool2d", "4:linear"), IN_FLOAT)
    assert written.parity.max_abs_error <= 1e-5
    deployed = torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    assert torch.allclose(simulator.forward_of(net)(x), deployed, atol=1e-5)


def test_a_layer_in_integers_that_reads_floats_is_refused_unless_it_may_be_one_in_floats(tmp_path):
    net, x = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)), torch.randn(16, 32)
    first = {"first": LayerQuantizers(targets=Targets(include=["*"]), activation_quantizer=Unquantized())}
    simulator = simulated(net, Symmetric(), Affine(), x, x, layers=first, assigned={"0": "first"})
    with pytest.raises(ExportError, match=r"2 MatMulNBits would run in floating point.*fallbacks=\['MatMulNBits'\]"):
        export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(fallbacks="refused"))
    assert not list(tmp_path.iterdir())
    accept = Acceptance(fallbacks=("MatMulNBits",), batches=[x])
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=accept)
    assert written.parity.max_abs_error <= 1.01 * simulator.ranges.qparams("1:linear", torch.device("cpu"))[0]


@pytest.mark.parametrize(
    ("net", "shape", "weight", "activation", "why"),
    [
        (
            nn.Linear(32, 4),
            (8, 32),
            grouped(4),
            Affine(),
            r"scale per tensor or per channel.*its activations Unquantized",
        ),
        (nn.Conv2d(32, 4, 1), (8, 32, 1, 1), grouped(4), Unquantized(), "scale per tensor or per channel"),
        (nn.Linear(32, 4), (8, 32), grouped(4, 8), Unquantized(), "multiple of 16 inputs, got 8"),
    ],
)
def test_groups_that_have_no_kernel_are_refused(tmp_path, net, shape, weight, activation, why):
    x = torch.randn(shape)
    simulator = simulated(net, weight, activation, x, x)
    with pytest.raises(ExportError, match=why):
        export_quantized(simulator, net, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "shape", "rule", "activation"),
    [(nn.Conv1d(32, 8, 1), (8, 32, 4), grouped(4), None), (nn.Linear(32, 32), (8, 32), grouped(4, 8), Unquantized())],
)
@pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates run in integers")
def test_a_layer_whose_groups_have_no_kernel_is_left_out_as_the_refusal_says(tmp_path, first, shape, rule, activation):
    net, x = nn.Sequential(first, nn.Flatten(), nn.Linear(32, 32), nn.Linear(32, 4)), torch.randn(shape)
    layers = {
        "first": LayerQuantizers(targets=Targets(include=["0"]), weight_quantizer=rule, activation_quantizer=activation)
    }
    with pytest.raises(ExportError, match=r"leave the layer out with targets\.exclude"):
        calibrate(net.eval(), [x, x], layers=layers).export(tmp_path / "model.onnx")
    left_out = calibrate(net, [x, x], targets=Targets(exclude=["0"]), layers=layers).export(tmp_path / "model.onnx")
    assert 0.0 < left_out.integer_share < 1.0
    assert left_out.fallbacks[next(iter(left_out.fallbacks))] == "left out by targets"


@pytest.mark.parametrize("runtime", [OpenVINO(), TensorRT()])
def test_runtimes_without_packed_layers_refuse_float_activations(tmp_path, runtime):
    net, x = nn.Linear(32, 4), torch.randn(8, 32)
    with pytest.raises(ExportError, match=r"integer kernels need .*signed='float'"):
        export_quantized(
            simulated(net, Symmetric(), Unquantized(), x, x), net, tmp_path / "model.onnx", runtime=runtime
        )


@pytest.mark.parametrize("activation", [Affine(), Unquantized()])
def test_codes_of_eight_bits_that_reach_beyond_int8_are_refused(tmp_path, activation):
    net, x = nn.Linear(32, 4), torch.randn(8, 32)
    simulator = simulated(net, DoReFa(bits=8), activation, x, x)
    with pytest.raises(ExportError, match=r"signed symmetric weights in int8, :linear has .*limit=255"):
        export_quantized(simulator, net, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    export_quantized(simulated(net, DoReFa(bits=7), activation, x, x), net, tmp_path / "model.onnx")


def test_what_a_loop_of_the_file_reads_stays_in_it(tmp_path):
    """An ``EmbeddingBag`` becomes a loop over its bags, whose body reads the table from outside."""
    bag = nn.EmbeddingBag(50, 16, mode="mean")
    net, x = nn.Sequential(bag, nn.Linear(16, 4)), torch.randint(0, 50, (8, 6))
    accept = Acceptance(batches=[x])
    simulator = simulated(net, Symmetric(), Affine(), x, x)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=accept)
    assert written.kernels.counts["Loop"] == written.kernels.integer["QGemm"] == 1
    assert written.kernels.counts["ReduceMean"] == 1  # in the loop's body
    assert written.parity.max_abs_error == 0.0
    with pytest.raises(ArtefactError, match=r"has branches, loops or lists of tensors \(ConcatFromSequence, Loop"):
        verify(written.path, [x])
