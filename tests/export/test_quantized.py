import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ExportError
from lightning_optim.export import Acceptance, export_quantized, load_session
from lightning_optim.quantization import Affine, MovingAverage, Operand, Quantizer, Symmetric
from lightning_optim.quantization.quantizer.base import range_scale
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from support import bright_corners, observe, train_simulated


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        y += self.short(x)
        return F.relu(y)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(16, 4)

    def forward(self, image):
        x = F.max_pool2d(F.relu(self.norm(self.stem(image))), 2)
        return self.fc(self.drop(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)))


class Plain(nn.Module):
    """Functional pooling, concatenation, a mean over the image and a linear layer without bias."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(8, 4, bias=False)

    def forward(self, image):
        x = torch.cat([F.relu(self.left(image)), F.relu(self.right(image))], 1)
        return self.fc(F.avg_pool2d(x, 2).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, 16, 2, 2), nn.Parameter(torch.randn(1, 16, 16) * 0.02)
        self.norm, self.qkv, self.out, self.fc = (
            nn.LayerNorm(16),
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v)
        return self.fc(x[:, 0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_the_file_runs_in_integers_and_computes_what_was_simulated(tmp_path, kind):
    net = kind()
    simulator = train_simulated(net)
    before = copy.deepcopy(net.state_dict())
    written = export_quantized(simulator, net, tmp_path / "deep" / "model.onnx")
    assert not written.kernels.floating
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    x, _ = bright_corners(500)
    simulated = simulator.forward_of(net)(x)
    deployed = torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    scale, _ = simulator.ranges.qparams("fc:linear", torch.device("cpu"))
    assert (simulated - deployed).abs().max() <= 1.01 * scale
    assert torch.equal(simulated.argmax(1), deployed.argmax(1))


def test_a_transformer_keeps_float_only_what_has_no_integer_kernel(tmp_path):
    net = Attention()
    simulator = train_simulated(net)
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    assert set(written.kernels.floating) <= {"LayerNormalization", "Mul", "Softmax"}
    x, _ = bright_corners(300)
    simulated, deployed = simulator.forward_of(net)(x), torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    scale, _ = simulator.ranges.qparams("fc:linear", torch.device("cpu"))
    assert (simulated - deployed).abs().max() <= 2.01 * scale


def test_weights_are_stored_in_one_byte_and_pruned_ones_as_zero(tmp_path):
    net = Residual()
    simulator = train_simulated(net)
    with torch.no_grad():
        net.stem.weight[0] = 0
        net.stem.weight[1, 0, 0] = 0
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    model = onnx.load(written.path)
    stored = [
        onnx.numpy_helper.to_array(each) for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8
    ]
    stem = next(each for each in stored if each.shape == (8, 1, 3, 3))
    assert not stem[0].any()
    assert not stem[1, 0, 0].any()
    assert stem[2].any()
    assert max(abs(each.astype(int)).max() for each in stored) == 127
    floats = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    assert max(onnx.numpy_helper.to_array(each).size for each in floats) <= 16  # scales alone
    assert [each.name for each in model.graph.input] == ["image"]


def test_an_excluded_layer_may_stay_in_floating_point(tmp_path):
    net = Residual()
    simulator = train_simulated(net, excluded=("stem",))
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    assert set(written.kernels.floating) <= {"Conv", "FusedConv", "Relu"}
    x, _ = bright_corners(200)
    simulated, deployed = simulator.forward_of(net)(x), torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    assert torch.equal(simulated.argmax(1), deployed.argmax(1))


def test_a_float_layer_that_nobody_asked_for_is_refused_and_nothing_written(tmp_path):
    class Shifted(Plain):
        def forward(self, image):
            return super().forward(image) + 1.0

    net = Shifted()
    simulator = train_simulated(net, steps=4)
    with pytest.raises(ExportError, match=r"1 Add would run in floating point.*fallbacks=\['Add'\]"):
        export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(fallbacks="refused"))
    assert not list(tmp_path.iterdir())
    export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(fallbacks=("Add",)))


class UnsignedWeights(Quantizer):
    """A rule of a user's own, which no runtime can hold."""

    serves, scheme = frozenset({Operand.WEIGHT}), Affine(granularity="channel").scheme

    def weight_scale(self, weight):
        return range_scale(self, weight)

    def qparams(self, low, high):
        return Affine().qparams(low, high)

    def integers(self, x, scale, zero_point):
        return Affine().integers(x, scale, zero_point)

    def fake(self, x, scale, zero_point, *, is_within=False):
        return Affine().fake(x, scale, zero_point, is_within=is_within)


def test_what_the_runtime_cannot_hold_is_refused(tmp_path):
    net = Plain()
    blank = Simulator(Symmetric(), Affine(), MovingAverage())
    with pytest.raises(ExportError, match="no activation ranges yet"):
        export_quantized(blank, net, tmp_path / "model.onnx", bright_corners(2)[:1])
    simulator = train_simulated(net, steps=3, weight=UnsignedWeights())
    with pytest.raises(ExportError, match="signed symmetric weights"):
        export_quantized(simulator, net, tmp_path / "model.onnx")


def test_a_branch_that_training_never_took_is_named(tmp_path):
    class Branch(Plain):
        def forward(self, image):
            return self.fc(super().forward(image) @ torch.ones(4, 8)) if not self.training else super().forward(image)

    net = Branch()
    simulator = train_simulated(net, steps=3)
    with pytest.raises(ExportError, match=r"matmul\[fc\] has no range: no training batch ran it"):
        export_quantized(simulator, net, tmp_path / "model.onnx")


def test_bright_images_and_equal_weights_do_not_saturate(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    nn.init.constant_(net[0].weight, 0.1)
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    bright = torch.ones(8, 4, 6, 6)
    observe(simulator, net, bright)
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    deployed = torch.as_tensor(load_session(written.path).run(bright.numpy())[0])
    scale, _ = simulator.ranges.qparams("4:linear", torch.device("cpu"))
    assert (simulator.forward_of(net)(bright) - deployed).abs().max() <= 1.01 * scale


def test_a_mean_over_tokens_runs_in_integers(tmp_path):
    class Tokens(nn.Module):
        def __init__(self, keepdim):
            super().__init__()
            self.embed, self.fc, self.keepdim = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 4), keepdim

        def forward(self, image):
            tokens = self.embed(image).flatten(2).transpose(1, 2)
            return self.fc(tokens.mean(1, keepdim=self.keepdim)).flatten(1)

    for keepdim in (False, True):
        net = Tokens(keepdim)
        simulator = train_simulated(net)
        written = export_quantized(simulator, net, tmp_path / "model.onnx")
        assert not written.kernels.floating
        x, _ = bright_corners(200)
        deployed = torch.as_tensor(load_session(written.path).run(x.numpy())[0])
        assert (simulator.forward_of(net)(x).argmax(1) == deployed.argmax(1)).float().mean() >= 0.99


def test_keyword_inputs_keep_their_names_in_whatever_order(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, left, right):
            return {"logits": self.one(left) + self.two(right)}

    net, simulator = Pair(), Simulator(Symmetric(), Affine(), MovingAverage())
    named = {"right": torch.randn(8, 6), "left": torch.randn(8, 4)}
    observe(simulator, net, **named)
    session = load_session(export_quantized(simulator, net, tmp_path / "model.onnx").path)
    assert session.input_names == ("right", "left")
    simulated = simulator.forward_of(net)(**{name: value[:3] for name, value in named.items()})["logits"]
    deployed = torch.as_tensor(session.run(named["right"][:3], named["left"][:3])[0])
    scale = max(simulator.ranges.qparams(key, torch.device("cpu"))[0] for key in simulator.ranges.keys)
    assert (simulated - deployed).abs().max() <= 1.01 * scale


@pytest.mark.parametrize(
    "bound", [nn.ReLU6(inplace=True), nn.Hardtanh(0.0, 6.0), nn.Sequential(nn.ReLU6(), nn.ReLU6())]
)
def test_a_relu_with_a_bound_is_part_of_the_layer_before_it(tmp_path, bound):
    net = nn.Sequential(nn.Conv2d(4, 4, 3), bound, nn.Conv2d(4, 4, 3), nn.Flatten())
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    batch = 30 * torch.randn(16, 4, 6, 6)
    observe(simulator, net, batch)
    assert simulator.ranges.range_of("0:conv2d") == (0.0, 6.0)
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    assert written.kernels.counts["QuantizeLinear"] == 1  # of the input; nothing is read as a float in between
    assert not written.kernels.floating
    deployed = torch.as_tensor(load_session(written.path).run(batch.numpy())[0])
    scale, _ = simulator.ranges.qparams("2:conv2d", torch.device("cpu"))
    assert (simulator.forward_of(net)(batch) - deployed).abs().max() <= 1.01 * scale


def test_a_fused_attention_stays_in_floating_point_as_the_table_says(tmp_path):
    class Fused(Attention):
        def forward(self, image):
            x = self.patch(image).flatten(2).transpose(1, 2) + self.position
            q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            return self.fc((x + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0])

    net = Fused()
    simulator = train_simulated(net, steps=4)
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    assert sum(count for name, count in written.kernels.floating.items() if "MatMul" in name) == 2
    assert written.kernels.integer["QGemm"] == 3
    x, _ = bright_corners(50)
    simulated, deployed = simulator.forward_of(net)(x), torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    scale, _ = simulator.ranges.qparams("fc:linear", torch.device("cpu"))
    assert (simulated - deployed).abs().max() <= 2.01 * scale


def test_a_masked_sum_before_softmax_stays_in_floating_point(tmp_path):
    class Masked(Attention):
        def forward(self, image):
            x = self.patch(image).flatten(2).transpose(1, 2) + self.position
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            unseen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = q @ k.transpose(1, 2) * 0.25 + torch.zeros(unseen.shape).masked_fill(unseen, -1e30)
            return self.fc((x + self.out(scores.softmax(-1) @ v))[:, -1])

    net = Masked()
    simulator = train_simulated(net, steps=4)
    written = export_quantized(simulator, net, tmp_path / "model.onnx")
    assert written.kernels.floating["Add"] == 1
    x, _ = bright_corners(50)
    simulated, deployed = simulator.forward_of(net)(x), torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    scale, _ = simulator.ranges.qparams("fc:linear", torch.device("cpu"))
    assert (simulated - deployed).abs().max() <= 2.01 * scale


def test_the_runtime_is_compared_with_the_simulation_before_a_file_is_placed(tmp_path):
    net = Residual()
    simulator = train_simulated(net)
    path, x = tmp_path / "model.onnx", bright_corners(100)[0]
    written = export_quantized(simulator, net, path, acceptance=Acceptance(batches=x.split(30), min_agreement=0.99))
    assert written.parity.num_samples == 100
    assert written.parity.top1_agreement >= 0.99
    assert written.num_bytes == path.stat().st_size
    assert written.latency_ms > 0.0
    old = path.read_bytes()
    flipped = copy.deepcopy(simulator)
    flipped.forward_of = lambda twin: lambda image: -simulator.forward_of(twin)(image)
    with pytest.raises(
        ExportError, match=r"on 32 samples: output has a relative error of 2, max_error is 0.05"
    ) as seen:
        export_quantized(flipped, net, path)
    assert "same class in 0.0000 of all places, min_agreement is 0.99" in str(seen.value)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


class Depth(nn.Module):
    """One channel; the exporter drops the divisor of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.pool, self.out = (
            nn.Conv2d(1, 8, 3, 1, 1),
            nn.AvgPool2d(2, 2, divisor_override=3),
            nn.Conv2d(8, 1, 1),
        )

    def forward(self, x):
        return self.out(self.pool(self.body(x)))


class Count(nn.Module):
    """One positive number for each sample."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Conv2d(1, 8, 3, 1, 1), nn.Linear(8, 1)

    def forward(self, x):
        return nn.functional.softplus(self.out(self.body(x).relu().mean([2, 3]))).squeeze(-1)


class Several(nn.Module):
    """Outputs without classes beside such with classes."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Conv2d(1, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x):
        logits = self.out(self.body(x).relu().mean([2, 3]))
        masked = logits.masked_fill(logits < 0.0, -torch.inf)
        return {"logits": logits, "best": logits.argmax(1), "sure": logits > 0, "masked": masked, "all": logits.sum()}


@pytest.mark.parametrize("network", [Depth, Count, Several])
def test_an_output_of_any_kind_is_accepted_if_it_is_as_simulated(network, tmp_path):
    net, batches = network().eval(), bright_corners(64)[0].split(32)
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    run_calibration(simulator, net, batches)
    accept = Acceptance(batches=batches, fallbacks=("AveragePool",))
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=accept)
    assert written.parity.relative_error < 1e-6
    assert written.parity.num_samples == 64
    assert written.parity.top1_agreement == (1.0 if network is Several else None)


@pytest.mark.parametrize(
    ("network", "output", "change"),
    [
        (Depth, "output", lambda out: 1.1 * out),
        (Count, "output", lambda out: out + 0.1 * out.flip(0)),
        (Several, r"output\['best'\]", lambda out: out | {"best": (out["best"] + 1) % 5}),
        (Several, r"output\['sure'\]", lambda out: out | {"sure": ~out["sure"]}),
        (Several, r"output\['masked'\]", lambda out: out | {"masked": out["logits"]}),
        (Several, r"output\['all'\]", lambda out: out | {"all": 1.1 * out["all"]}),
        (Several, r"output\['logits'\]", lambda out: out | {"logits": out["logits"] * torch.nan}),
    ],
)
def test_every_output_that_is_not_as_simulated_is_refused_by_name(network, output, change, tmp_path):
    torch.manual_seed(1)
    net, batches = network().eval(), bright_corners(64)[0].split(32)
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    run_calibration(simulator, net, batches)
    forward_of = simulator.forward_of
    simulator.forward_of = lambda twin: lambda image: change(forward_of(twin)(image))
    accept = Acceptance(batches=batches, fallbacks=("AveragePool",))
    with pytest.raises(ExportError, match=f"on 64 samples: {output} (has a relative error of|holds NaN)"):
        export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=accept)
    assert not [*tmp_path.iterdir()]


def test_bounds_of_an_acceptance_are_checked():
    with pytest.raises(ValueError, match=r"min_agreement must be in \[0, 1\], got 1.5"):
        Acceptance(min_agreement=1.5)
    with pytest.raises(ValueError, match="max_error must be at least 0, got nan"):
        Acceptance(max_error=float("nan"))


def test_batches_may_be_mappings_of_keywords_in_any_order(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, left, right):
            return self.one(left) - 2.0 * self.two(right)

    net, simulator = Pair(), Simulator(Symmetric(), Affine(), MovingAverage())
    named = {"right": torch.randn(8, 4), "left": torch.randn(8, 4)}
    observe(simulator, net, **named)
    batches = [{"left": torch.randn(64, 4), "right": torch.randn(64, 4)}]
    accept = Acceptance(batches=batches, fallbacks=("Add", "Sub"), min_agreement=0.9)
    assert export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=accept).parity.num_samples == 64
    accept = Acceptance(batches=[{"left": torch.randn(2, 4)}])
    with pytest.raises(ExportError, match=r"a batch has keywords \['left'\]"):
        export_quantized(simulator, net, tmp_path / "other.onnx", acceptance=accept)


def test_activations_of_few_bits_saturate_where_the_simulation_does(tmp_path):
    net = Plain()
    simulator = Simulator(Symmetric(), Affine(bits=4), MovingAverage())
    for batch in bright_corners(96)[0].split(32):
        observe(simulator, net, batch, steps=1)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", acceptance=Acceptance(fallbacks=("Clip",)))
    x = 3 * bright_corners(200)[0]
    simulated, deployed = simulator.forward_of(net)(x), torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    scale, _ = simulator.ranges.qparams("fc:linear", torch.device("cpu"))
    assert (simulated - deployed).abs().max() <= 1.01 * scale
    assert (simulated == deployed).float().mean() >= 0.98


def test_an_error_names_the_users_own_class(tmp_path):
    class Unexportable(Plain):
        def forward(self, image):
            if float(image.sum()) > 1e9:
                return image
            return super().forward(image)

    net = Unexportable()
    with pytest.raises(ExportError, match=r"^Unexportable cannot be exported to ONNX"):
        export_quantized(train_simulated(net, steps=3), net, tmp_path / "model.onnx")


def test_an_excluded_layer_is_a_named_fallback(tmp_path):
    net = Residual()
    written = export_quantized(train_simulated(net, steps=4, excluded=("stem",)), net, tmp_path / "model.onnx")
    assert written.fallbacks == {"stem:conv2d": "left out by targets"}
