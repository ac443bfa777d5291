"""Connections as decisions: each path is the extracted network, and what cannot be wired is refused by name."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_optim import Targets
from lightning_optim.cost import MACs, count_macs
from lightning_optim.errors import TargetError
from lightning_optim.export import calibrate, export_onnx, load_session
from lightning_optim.nas import ElasticDepth, ElasticWidth, InputChoice, OperationChoice
from lightning_optim.nas.forward.mixture import Mixture, mix
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


class Join(nn.Module):
    """Two inputs by name, and one that is no tensor."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, left, right=None, *, scale=1.0):
        return self.norm(left + right) * scale


class Net(nn.Module):
    """Maps of three sizes and two widths, then tokens: written as users write it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.join = Join()
        self.wide = nn.Conv2d(8, 12, 1)
        self.embed = nn.Linear(12, 10)
        self.feed = nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        low = F.relu(self.stem(x))
        half = F.relu(self.down(low))
        x = self.join(half, right=self.mix(half), scale=0.5)
        tokens = self.wide(F.relu(x)).flatten(2).transpose(1, 2)
        tokens = self.embed(tokens)
        return self.head(tokens + self.feed(F.relu(tokens))).mean(1)


EXAMPLE = (torch.zeros(2, 1, 8, 8),)


def choice(target, *sources, **settings):
    return InputChoice(targets=Targets(include=(target,)), sources=sources, **settings)


def every_kind():
    return {
        "map": choice("wide", "stem", "down", "mix"),
        "named": choice("join", "stem", "down", argument="right"),
        "tokens": choice("feed", "embed"),
        "last": choice("head", "embed", "feed", combine="sum"),
    }


def convert(net, **space):
    return build_supernet(Site(root=net, network="", args=EXAMPLE), space)


def every_architecture(supernet):
    names = [decision.name for decision in supernet.decisions]
    for options in itertools.product(*(range(len(decision.options)) for decision in supernet.decisions)):
        yield dict(zip(names, options, strict=True))


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return convert(Net(), **every_kind())


def gradients(net, x):
    net.zero_grad(set_to_none=True)
    net(x).square().sum().backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def test_every_path_is_that_of_the_extracted_network_in_evaluation_and_in_a_training_step(supernet):
    x = torch.randn(3, 1, 8, 8)
    net = supernet.site.root
    for architecture in itertools.islice(every_architecture(supernet), 0, None, 11):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert not switchable_forwards(subnet)
        assert torch.equal(net.eval()(x), subnet.eval()(x))
        state = copy.deepcopy(net.state_dict())
        grads = gradients(net.train(), x), gradients(subnet.train(), x)
        assert len(grads[0]) == len(grads[1]) > 0
        assert all(any(torch.equal(one, other) for other in grads[0]) for one in grads[1])
        net.load_state_dict(state)


def test_each_option_alone_is_what_a_network_wired_by_hand_computes():
    torch.manual_seed(0)
    net = Net().eval()
    supernet = convert(net, **every_kind())
    x = torch.randn(3, 1, 8, 8)

    def by_hand(wide=None, right=None, feed=None, last=None):
        low_, half_ = net.stem(x), net.down(F.relu(net.stem(x)))
        mixed = net.mix(F.relu(half_))
        side = mixed if right is None else right(low_, half_)
        joined = net.join.norm(F.relu(half_) + side) * 0.5
        given = F.relu(joined) if wide is None else wide(low_, half_, mixed)
        tokens = F.linear(
            F.conv2d(given, net.wide.weight, net.wide.bias).flatten(2).transpose(1, 2), net.embed.weight, net.embed.bias
        )
        fed = F.linear(F.relu(tokens) if feed is None else tokens, net.feed.weight, net.feed.bias)
        top = tokens + fed if last is None else last(tokens, fed)
        return F.linear(top, net.head.weight, net.head.bias).mean(1)

    def adapter(name, key, source):
        return net.get_submodule(name)._candidates.get_submodule(key).get_submodule(source)[1].weight

    def pooled(low, weight):
        return F.conv2d(F.avg_pool2d(low, 2), weight)

    cases = {
        ("wide:input", 1): by_hand(wide=lambda low, *_: pooled(low, adapter("wide", "_input_input", "stem"))),
        ("wide:input", 2): by_hand(wide=lambda _, half, __: half),
        ("wide:input", 3): by_hand(wide=lambda _, __, mixed: mixed),
        ("join:right:input", 1): by_hand(right=lambda low, _: pooled(low, adapter("join", "_input_right", "stem"))),
        ("join:right:input", 2): by_hand(right=lambda _, half: half),
        ("feed:input", 1): by_hand(feed=True),
        ("head:input:own", 0): by_hand(last=lambda tokens, _: torch.zeros_like(tokens)),
        ("head:input:embed", 1): by_hand(last=lambda tokens, fed: tokens + fed + tokens),
        ("head:input:feed", 1): by_hand(last=lambda tokens, fed: tokens + fed + fed),
    }
    for (name, option), needed in cases.items():
        supernet.activate(supernet.default | {name: option})
        torch.testing.assert_close(net(x), needed)
    assert len(cases) == sum(len(decision.options) - 1 for decision in supernet.decisions)


def test_adapters_are_named_and_lie_below_the_reserved_prefix(supernet):
    assert {decision.name: decision.options for decision in supernet.decisions} == {
        "wide:input": ("own", "stem (AvgPool2d 8x8 to 4x4, Conv2d 6 to 8)", "down", "mix"),
        "join:right:input": ("own", "stem (AvgPool2d 8x8 to 4x4, Conv2d 6 to 8)", "down"),
        "feed:input": ("own", "embed"),
        "head:input:own": ("without", "with own"),
        "head:input:embed": ("without", "with embed"),
        "head:input:feed": ("without", "with feed"),
    }
    added = set(supernet.site.root.state_dict()) - set(Net().state_dict())
    assert added == {
        "wide._candidates._input_input.stem.1.weight",
        "join._candidates._input_right.stem.1.weight",
    }


def test_the_own_path_is_the_untouched_network_bit_for_bit_and_its_checkpoint_loads():
    torch.manual_seed(0)
    plain, net = Net(), Net()
    supernet = convert(net, **every_kind())
    net.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert all(map(torch.equal, gradients(net.train(), x), gradients(plain.train(), x)))
    subnet = supernet.extract(supernet.default)
    assert list(subnet.state_dict()) == list(plain.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subnet.modules())


REWIRED = {"wide:input": 1, "join:right:input": 1, "feed:input": 1, "head:input:embed": 1}


def test_an_extracted_network_is_copied_pickled_exported_and_loaded(supernet, tmp_path):
    architecture = supernet.default | REWIRED
    supernet.activate(architecture)
    subnet, x = supernet.extract(architecture).eval(), torch.randn(3, 1, 8, 8)
    needed = supernet.site.root.eval()(x)
    twin = copy.deepcopy(subnet)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(subnet(x), needed)  # nothing is shared with a copy
    assert torch.equal(pickle.loads(pickle.dumps(subnet))(x), needed)  # noqa: S301  # our own bytes
    fresh = supernet.extract(architecture).eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    file = io.BytesIO()
    torch.save(subnet.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(x), needed)
    program = torch.export.export(subnet, (x,))
    torch.testing.assert_close(program.module()(x), needed)
    export_onnx(subnet, (x,), tmp_path / "net.onnx")
    (came,) = load_session(tmp_path / "net.onnx").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(came), needed, rtol=1e-4, atol=1e-5)
    # What only the own input of 'wide' needed is no part of the file: the stem, the adapter and the layer are left.
    assert [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node].count("Conv") == 3


@pytest.mark.slow
def test_an_extracted_network_is_deployed_in_integers(supernet, tmp_path):
    subnet = supernet.extract(supernet.default | REWIRED).eval()
    x = torch.randn(4, 1, 8, 8)
    export = calibrate(subnet, [x, torch.randn(4, 1, 8, 8)]).export(tmp_path / "net.onnx")
    assert export.integer_share == 1.0
    assert export.parity.outputs[0].exact_fraction == 1.0


def test_macs_count_the_adapters(supernet):
    architecture = supernet.default | REWIRED
    assert supernet.measure(architecture, MACs()) == count_macs(supernet.extract(architecture), (EXAMPLE[0][:1],))
    assert supernet.measure(architecture, MACs()) - supernet.measure(supernet.default, MACs()) == 2 * 16 * 6 * 8


def test_nothing_is_kept_after_a_pass_even_one_that_raises():
    net = Net().eval()
    supernet = convert(net, **every_kind())
    supernet.activate(supernet.default | REWIRED)
    kept = []
    net.stem.register_forward_hook(lambda *given: kept.append(weakref.ref(given[2])))
    net(torch.randn(2, 1, 8, 8))
    broken = net.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(torch.randn(2, 1, 8, 8))
    broken.remove()
    gc.collect()
    assert len(kept) == 2
    assert all(each() is None for each in kept)
    with torch.no_grad():
        net(torch.randn(2, 1, 8, 8))


def test_a_network_that_is_called_twice_in_a_step_gives_each_pass_its_own():
    torch.manual_seed(0)
    net = Net().eval()
    supernet = convert(net, **every_kind())
    supernet.activate(supernet.default | REWIRED)
    x, y = torch.randn(2, 2, 1, 8, 8)
    alone = gradients(net, x), gradients(net, y)
    net.zero_grad(set_to_none=True)
    first, second = net(x), net(y)
    (first.square().sum() + second.square().sum()).backward()
    both = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    for one, other, summed in zip(*alone, both, strict=True):
        torch.testing.assert_close(one + other, summed)


class Recursive(nn.Module):
    """Calls itself on what is smaller, within one pass."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, depth=2):
        low = self.low(x)
        inner = self(x / 2, depth - 1) if depth else 0
        return self.high(low * 3) + inner


def test_a_network_that_calls_itself_gives_each_call_its_own():
    torch.manual_seed(0)
    net, x = Recursive(), torch.randn(2, 4)
    supernet = build_supernet(Site(root=net, network="", args=(x,)), {"w": choice("high", "low")})
    supernet.activate({"high:input": 1})
    torch.testing.assert_close(net(x), sum(net.high.forward.__wrapped__(net.low(x / 2**i)) for i in range(3)))
    assert torch.equal(supernet.extract({"high:input": 1})(x), net(x))


class Blocks(nn.Module):
    """A list of blocks that the code walks through, in a network of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.is_checkpointed = False

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.is_checkpointed else layer(x)
        return x


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Blocks(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def test_names_are_relative_to_the_whole_model_and_the_innermost_module_is_the_scope():
    net, x = nn.ModuleDict({"net": Wrapped()}), torch.randn(2, 4)
    supernet = build_supernet(Site(root=net, network="net", args=(x,)),
                              {"w": choice("net.body.layers.2", "net.body.layers.0")})  # fmt: skip
    (forward,) = switchable_forwards(net)
    assert forward.scope == "net.body"
    supernet.activate({"net.body.layers.2:input": 1})
    layers = net["net"].body.layers
    assert torch.equal(net["net"].body(x), layers[2][1](layers[2][0](layers[0](x))))
    assert torch.equal(supernet.extract({"net.body.layers.2:input": 1})["net"](x), net["net"](x))


def test_parts_that_are_called_by_themselves_are_rewired_too():
    net, x = Wrapped(), torch.randn(2, 4)
    supernet = build_supernet(Site(root=net, network="", args=(x,)), {"w": choice("head", "body.layers.0")})
    supernet.activate({"head:input": 1})
    needed = net(x)
    for model in (net, supernet.extract({"head:input": 1})):
        for _ in range(2):
            hidden = model.body(x)
            assert torch.equal(model.head(hidden), needed)
        with pytest.raises(RuntimeError, match=r"'head' takes the output of 'body\.layers\.0', which has not run"):
            model.head(hidden)
        assert torch.equal(model.forward(x), needed)


def test_a_module_that_is_checkpointed_without_its_source_says_so():
    net, x = Blocks(), torch.randn(2, 4)
    supernet = build_supernet(Site(root=net, network="", args=(x,)), {"w": choice("layers.2", "layers.0")})
    supernet.activate({"layers.2:input": 1})
    net.is_checkpointed = True
    with pytest.raises(RuntimeError, match=r"'layers\.2' takes the output of 'layers\.0', which has not run"):
        net(x).sum().backward()


def operations(target):
    candidates = {"pointwise": lambda: nn.Conv2d(8, 8, 1), "skip": nn.Identity}
    return OperationChoice(targets=Targets(include=(target,)), candidates=candidates)


@pytest.mark.parametrize("is_first", [True, False])
def test_it_composes_with_operations_of_target_and_source_and_with_widths(is_first):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(3, 1, 8, 8)
    inputs = {"inputs": choice("mix", "stem"), "more": choice("wide", "mix", "down")}
    others = {"operations": operations("mix"), "widths": ElasticWidth(
        targets=Targets(include=("stem", "mix.0", "embed")), fractions=(0.5, 1.0))}  # fmt: skip
    supernet = convert(net, **(inputs | others if is_first else others | inputs))
    assert {decision.name for decision in supernet.decisions} >= {"mix:operation", "mix:input", "stem:width"}
    assert not any(decision.conditions for decision in supernet.decisions if decision.name.endswith(":input"))
    for architecture, mode in itertools.islice(
        itertools.product(every_architecture(supernet), (False, True)), int(is_first), None, 9
    ):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture).train(mode)
        assert torch.equal(net.train(mode)(x), subnet(x)), architecture
    keys = supernet.extract(supernet.default | {"mix:operation": 1, "mix:input": 1}).state_dict().keys()
    assert {key for key in keys if key.startswith("mix.")} == {
        "mix.weight",
        "mix.bias",
        "mix._input_input.stem.1.weight",
    }


class Stack(nn.Module):
    """Blocks in a sequence, and a layer behind them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks(x))


@pytest.mark.parametrize(
    ("entry", "num_architectures"),
    [
        (choice("head", "blocks.0", "blocks.2"), 3 * 3),  # a skipped block feeds on what it is given
        (choice("blocks.2", "blocks.0"), 1 + 1 + 2),  # and is not rewired
        (choice("blocks.2", "blocks.0", combine="sum"), 1 + 1 + 4),
        (choice("blocks.2.0", "blocks.0.0", "blocks.1"), 1 + 1 + 3),
    ],
)
def test_it_composes_with_depth(entry, num_architectures):
    torch.manual_seed(0)
    net, x = Stack(), torch.randn(3, 4)
    space = {"input": entry, "depth": ElasticDepth(targets=Targets(include=("blocks",)), depths=(1, 2))}
    supernet = build_supernet(Site(root=net, network="", args=(x,)), space)
    assert supernet.space.num_candidates == num_architectures
    for architecture in every_architecture(supernet):
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(net(x), subnet(x)), architecture


def test_a_source_inside_a_block_that_may_be_skipped_is_refused():
    space = {"input": choice("head", "blocks.2.0"), "depth": ElasticDepth(targets=Targets(include=("blocks",)))}
    with pytest.raises(TargetError, match=r"'blocks\.2\.0' feeds 'head', but lies inside a choice"):
        build_supernet(Site(root=Stack(), network="", args=(torch.randn(2, 4),)), space)


def test_a_mixture_is_the_weighted_sum_of_the_inputs_and_its_weights_have_gradients():
    torch.manual_seed(0)
    net, x = Stack(), torch.randn(3, 4)
    space = {"one": choice("head", "blocks.0", "blocks.1"), "sum": choice("blocks.1", "blocks.0", combine="sum")}
    supernet = build_supernet(Site(root=net, network="", args=(x,)), space)
    weights = torch.tensor([0.2, 0.3, 0.5, 0.1, 0.9, 0.4, 0.6], requires_grad=True)
    supernet.activate(supernet.default)
    mixtures = {
        "head:input": Mixture(weights={0: weights[0], 1: weights[1], 2: weights[2]}),
        "blocks.1:input:own": Mixture(weights={0: weights[3], 1: weights[4]}),
        "blocks.1:input:blocks.0": Mixture(weights={0: weights[5], 1: weights[6]}),
    }
    mix(net, mixtures)
    first = torch.tanh(F.linear(x, net.blocks[0][0].weight, net.blocks[0][0].bias))
    second = torch.tanh(F.linear(0.9 * first + 0.6 * first, net.blocks[1][0].weight, net.blocks[1][0].bias))
    third = torch.tanh(F.linear(second, net.blocks[2][0].weight, net.blocks[2][0].bias))
    needed = F.linear(0.2 * third + 0.3 * first + 0.5 * second, net.head.weight, net.head.bias)
    found = net(x)
    torch.testing.assert_close(found, needed)
    found.sum().backward()
    assert weights.grad[[0, 1, 2, 4, 6]].count_nonzero() == 5
    supernet.activate(supernet.default)
    assert torch.equal(net(x), supernet.extract(supernet.default)(x))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.one, self.two, self.rare = nn.LSTM(4, 4, batch_first=True), *(nn.Linear(4, 4) for _ in range(3))
        self.clamp, self.flat, self.ids = nn.ReLU(inplace=True), nn.Linear(12, 4), nn.Embedding(5, 4)
        self.start, self.later = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, tokens, is_rare=False):
        start = self.start(x)
        x = self.pair(start)[0] + self.ids(tokens)
        x = self.rare(x) if is_rare else self.one(x)
        flat = self.flat(x.flatten(1))
        return self.later(self.clamp(self.two(x)) + flat[:, None])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (choice("two", "twoo"), "no module is named 'twoo'; did you mean 'two'"),
        (choice("tow", "one"), "'tow' matches no module; did you mean 'two'"),
        (choice("one", "two"), "'two' has not run yet when 'one' does"),
        (choice("one", "one"), "'one' is 'one' and cannot feed it"),
        (choice("two", "rare"), "does not reach 'rare', whose output 'two' is to take"),
        (choice("rare", "one"), "does not reach 'rare'; take it out of targets"),
        (choice("two", "pair"), "'pair' must put out a tensor for 'two' to take it, got a tuple"),
        (choice("two", "flat"), r"'two' cannot take the output of 'flat': it puts out \[2, 4\], and no adapter makes"),
        (choice("flat", "one"), r"'flat' cannot take the output of 'one': it puts out \[2, 3, 4\]"),
        (choice("ids", "start"), "it puts out torch.float32, and torch.int64 is needed"),
        (choice("clamp", "one"), "'clamp' changes its input in place"),
        (choice("two", "one", argument="inputs"), r"not called with a tensor as 'inputs'; it takes \['input'\]"),
    ],
)
def test_what_cannot_be_wired_is_refused_and_leaves_the_model_as_it_was(entry, message):
    net = Odd()
    before = {name: repr(sorted(vars(module))) for name, module in net.named_modules()}
    example = (torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(TargetError, match=message):
        build_supernet(Site(root=net, network="", args=example), {"w": entry})
    assert {name: repr(sorted(vars(module))) for name, module in net.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": choice("mix", "mix.0")}, r"'mix\.0' lies inside 'mix' and cannot feed it"),
        ({"a": choice("mix.1", "mix")}, r"'mix' holds 'mix\.1' and returns after it"),
        ({"a": choice("wide", "stem"), "b": choice("wide", "mix")}, "'wide' has a choice of this input already"),
        (
            {"a": choice("wide", "mix.0"), "b": operations("mix")},
            r"'mix\.0' feeds 'wide', but lies inside a choice that may leave it out",
        ),
    ],
)
def test_a_cycle_or_a_source_that_may_not_run_is_refused(space, message):
    net = Net()
    keys = list(net.state_dict())
    with pytest.raises(TargetError, match=message):
        convert(net, **space)
    assert list(net.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not switchable_forwards(net)


def test_an_extracted_network_can_be_searched_again_but_for_inputs_with_adapters():
    torch.manual_seed(0)
    first = convert(Net(), wide=choice("wide", "stem"), feed=choice("feed", "embed"))
    net, x = first.extract({"wide:input": 1, "feed:input": 1}).eval(), torch.randn(2, 1, 8, 8)
    with pytest.raises(TargetError, match="'wide' has a choice of this input already, or the adapters of one"):
        convert(net, again=choice("wide", "stem"))
    before = net(x)
    widths = ElasticWidth(targets=Targets(include=("wide._input_input.stem.1", "stem")), fractions=(0.5, 1.0))
    second = convert(net, width=widths, feed=choice("feed", "embed"), operation=operations("mix"))
    assert torch.equal(net(x), before)
    for architecture in every_architecture(second):
        second.activate(architecture)
        assert torch.equal(net(x), second.extract(architecture).eval()(x))


def test_a_choice_inside_an_operation_counts_only_where_that_operation_runs():
    space = {"input": choice("mix.1", "down"), "operation": operations("mix")}
    assert convert(Net(), **space).space.num_candidates == 2 + 1 + 1


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least one module, and each once, got"):
        choice("a")
    with pytest.raises(ValueError, match=r"each once, got \['b', 'b'\]"):
        choice("a", "b", "b")
    with pytest.raises(ValueError, match="combine"):
        choice("a", "b", combine="mean")


def test_adapters_are_seeded_and_leave_the_random_numbers_alone():
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        net = Net()
        convert(net, **every_kind())
        weights.append(net.wide._candidates.state_dict()["_input_input.stem.1.weight"])
        after = torch.rand(1)
    torch.manual_seed(1)
    Net()
    assert torch.equal(*weights)
    assert torch.equal(torch.rand(1), after)
