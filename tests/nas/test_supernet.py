import copy
import dataclasses
import itertools
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.cost import Cost, Latency, MACs, Parameters, count_macs, count_parameters
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticWidth, OperationChoice
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


class Net(nn.Module):
    """A residual sum, a depthwise layer, a flatten, a layer norm: all that widths have to follow."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12 * 16, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.depthwise(F.relu(self.mix(x) + x))
        x = self.layer_norm(self.fc(F.relu(self.wide(x)).flatten(1)))
        return self.head(x)


EXAMPLE = (torch.zeros(2, 1, 4, 4),)


def operations():
    candidates = {"skip": nn.Identity, "pointwise": lambda: nn.Conv2d(8, 8, 1)}
    return OperationChoice(targets=Targets(include=("mix",)), candidates=candidates)


def widths(**settings):
    return ElasticWidth(targets=Targets(exclude=("head",)), **({"fractions": (0.25, 0.5, 1.0)} | settings))


def convert(net, **space):
    return build_supernet(Site(root=net, network="", args=EXAMPLE), space)


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return convert(Net(), widths=widths(), operations=operations())


def every_architecture(supernet):
    names = [decision.name for decision in supernet.decisions]
    for options in itertools.product(*(range(len(decision.options)) for decision in supernet.decisions)):
        yield dict(zip(names, options, strict=True))


def test_every_extracted_subnet_equals_its_path_bit_for_bit_in_training_and_evaluation(supernet):
    x = torch.randn(5, 1, 4, 4)
    for architecture, mode in itertools.product(every_architecture(supernet), (True, False)):
        path = supernet.site.root.train(mode)
        supernet.activate(architecture)
        subnet = supernet.extract(architecture)
        assert torch.equal(path(x), subnet(x))


def test_what_batch_norm_learns_in_a_path_lands_in_the_supernet():
    supernet = convert(Net(), widths=widths())
    narrow = {decision.name: 0 for decision in supernet.decisions}
    supernet.activate(narrow)
    subnet = supernet.extract(narrow).train()
    x = torch.randn(5, 1, 4, 4)
    supernet.site.root.train()(x), subnet(x)
    assert torch.equal(supernet.site.root.norm.running_mean[:2], subnet.norm.running_mean)
    assert torch.equal(supernet.site.root.norm.running_mean[2:], torch.zeros(6))


def test_macs_of_a_path_are_those_of_its_subnet(supernet):
    for architecture in itertools.islice(every_architecture(supernet), 0, None, 7):
        assert supernet.measure(architecture, MACs()) == count_macs(supernet.extract(architecture), (EXAMPLE[0][:1],))


def test_parameters_of_a_path_are_those_of_its_subnet_and_no_sample_divides_them(supernet):
    for architecture in itertools.islice(every_architecture(supernet), 0, None, 7):
        assert supernet.measure(architecture, Parameters()) == count_parameters(supernet.extract(architecture))


def test_the_cheapest_path_is_the_one_of_the_given_cost():
    # On 4 x 4 positions, 4 -> 2 channels: a kernel of 1 takes 16 * 8 MACs and 8 parameters, a linear layer behind a
    # pool takes 8 MACs and 8 + 2 parameters.
    def pooled():
        linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Unflatten(1, (2, 1, 1)))
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), linear, nn.Upsample(size=4))

    net = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1))
    space = {"op": OperationChoice(targets=Targets(include=("0",)), candidates={"pooled": pooled})}
    supernet = build_supernet(Site(root=net, network="", args=(torch.zeros(2, 4, 4, 4),)), space)
    options = [{"0:operation": option} for option in (0, 1)]
    assert [supernet.measure(option, MACs()) for option in options] == [16 * 8, 8]
    assert [supernet.measure(option, Parameters()) for option in options] == [8, 10]
    assert supernet.find_cheapest(MACs()) == options[1]
    assert supernet.find_cheapest(Parameters()) == options[0]


def test_a_cost_is_measured_once_for_each_path():
    @dataclasses.dataclass(frozen=True)
    class Counted(Cost):
        calls: list = dataclasses.field(default_factory=list, repr=False)

        def prices(self, subject):
            raise NotImplementedError

        def measure(self, network, inputs):
            self.calls.append(network)
            return 7.0

    supernet, cost = convert(Net(), operations=operations()), Counted()
    assert [supernet.measure({"mix:operation": option}, cost) for option in (0, 1, 0)] == [7.0] * 3
    assert len(cost.calls) == 2
    assert supernet.measure({"mix:operation": 0}, Latency()) > 0


def test_coupled_layers_are_one_decision(supernet):
    assert [decision.name for decision in supernet.decisions] == [
        "mix:operation",
        "stem:width",
        "wide:width",
        "fc:width",
    ]
    assert supernet.decisions[1].options == ("2", "4", "8")
    assert supernet.default == {"mix:operation": 0, "stem:width": 2, "wide:width": 2, "fc:width": 2}


def test_own_keys_stay_and_a_plain_checkpoint_loads_strictly():
    plain, net = Net(), Net()
    keys, own = list(net.state_dict()), dict(net.named_parameters())
    convert(net, widths=widths(), operations=operations())
    assert [key for key in net.state_dict() if "._candidates." not in key] == keys
    assert all(dict(net.named_parameters())[name] is parameter for name, parameter in own.items())
    net.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(net.stem.weight, plain.stem.weight)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_a_supernet_checkpoint_restores_candidates_and_misses_none():
    one, two = Net(), Net()
    convert(one, operations=operations())
    build_supernet(Site(root=two, network="", args=EXAMPLE, seed=1), {"operations": operations()})
    state = one.state_dict()
    two.load_state_dict(state)
    assert torch.equal(two.mix._candidates.pointwise.weight, one.mix._candidates.pointwise.weight)
    del state["mix._candidates.pointwise.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        two.load_state_dict(state)


def test_the_subnet_of_the_default_loads_the_plain_checkpoint(supernet):
    subnet = supernet.extract(supernet.default)
    assert list(subnet.state_dict()) == list(Net().state_dict())
    assert not switchable_forwards(subnet)
    assert type(subnet.mix) is nn.Sequential
    subnet.load_state_dict(Net().state_dict())


def test_a_chosen_candidate_takes_the_place_of_the_target(supernet):
    subnet = supernet.extract(supernet.default | {"mix:operation": 2, "stem:width": 0})
    assert subnet.mix.weight.shape == (2, 2, 1, 1)
    assert {key for key in subnet.state_dict() if key.startswith("mix")} == {"mix.weight", "mix.bias"}
    assert subnet.depthwise.groups == 2


def test_only_the_sampled_candidate_receives_a_gradient():
    supernet = convert(Net(), operations=operations())
    supernet.activate({"mix:operation": 2})
    supernet.site.root(torch.randn(2, 1, 4, 4)).sum().backward()
    assert supernet.site.root.mix[0].weight.grad is None
    assert supernet.site.root.mix._candidates.pointwise.weight.grad is not None


def through_bytes(net):
    return pickle.loads(pickle.dumps(net))  # noqa: S301  # our own bytes


@pytest.mark.parametrize("copied", [copy.deepcopy, through_bytes])
def test_a_copy_runs_the_active_path_with_its_own_weights(copied):
    net = Net().eval()
    space = OperationChoice(targets=Targets(include=("mix",)), candidates={"skip": nn.Identity()})
    supernet = convert(net, widths=widths(), operations=space)
    supernet.activate(dict.fromkeys(supernet.default, 0))
    twin, x = copied(net), torch.randn(2, 1, 4, 4)
    assert torch.equal(twin(x), net(x))
    with torch.no_grad():
        twin.stem.weight.zero_()
    assert not torch.equal(twin(x), net(x))


def test_building_leaves_the_random_numbers_alone_and_seeds_its_own():
    torch.manual_seed(0)
    nets = [Net(), Net()]
    torch.manual_seed(1)
    expected = torch.rand(1)
    weights = []
    for net in nets:
        torch.manual_seed(1)
        convert(net, operations=operations())
        assert torch.rand(1) == expected
        weights.append(net.mix._candidates.pointwise.weight)
    assert torch.equal(*weights)


def test_tied_weights_are_sliced_wherever_they_are_used():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.two, self.last = (nn.Linear(4, 4) for _ in range(4))
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.last(self.two(self.one(self.first(x)).relu()).relu())

    net = Tied()
    site = Site(root=net, network="", args=(torch.zeros(2, 4),))
    supernet = build_supernet(site, {"w": ElasticWidth(targets=Targets(exclude=("last",)), fractions=(0.5, 1.0))})
    narrow = dict.fromkeys(supernet.default, 0)
    supernet.activate(narrow)
    subnet, x = supernet.extract(narrow), torch.randn(3, 4)
    assert subnet.two.weight is subnet.one.weight
    assert subnet.one.weight.shape == (2, 2)
    assert torch.equal(net(x), subnet(x))


def broken(**candidates):
    return OperationChoice(targets=Targets(include=("mix",)), candidates=candidates)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": broken(narrow=lambda: nn.Conv2d(8, 4, 1))}, r"must return \['\[2, 8, 4, 4\] float32'\]"),
        ({"a": broken(wrong=lambda: nn.Conv2d(3, 8, 1))}, "cannot take the input of 'mix'"),
        ({"a": operations(), "b": operations()}, "already has a choice"),
        ({"a": operations(), "b": ElasticWidth(targets=Targets())}, "'head' cannot vary"),
        ({"a": operations(), "b": ElasticWidth(targets=Targets(include=("stemm",)))}, "did you mean 'stem'"),
        (
            {"a": OperationChoice(targets=Targets(include=("mix", "mix.0")), candidates={"s": nn.Identity})},
            "lies inside",
        ),
    ],
)
def test_a_wrong_space_is_refused_and_leaves_the_model_as_it_was(space, message):
    net = Net()
    before = {name: sorted(vars(module)) for name, module in net.named_modules()}
    keys = list(net.state_dict())
    with pytest.raises(TargetError, match=message):
        convert(net, **space)
    assert list(net.state_dict()) == keys
    assert {name: sorted(vars(module)) for name, module in net.named_modules()} == before


def test_what_the_refusal_of_an_output_layer_advises_can_be_followed():
    with pytest.raises(TargetError, match=r"'head' cannot vary: .*; add them to targets\.exclude$"):
        convert(Net(), w=ElasticWidth(targets=Targets()))
    assert convert(Net(), w=ElasticWidth(targets=Targets(exclude=("head",)))).decisions
    with pytest.raises(TargetError, match=r"name others in targets\.include, such as ") as refusal:
        convert(Net(), w=ElasticWidth(targets=Targets(include=("head",))))
    advised = re.findall(r"'([\w.]+)'", str(refusal.value).partition("such as")[2])
    for name in advised:
        assert convert(Net(), w=ElasticWidth(targets=Targets(include=(name,)))).decisions
    site = Site(root=nn.Sequential(nn.Linear(4, 2)), network="", args=(torch.zeros(2, 4),))
    with pytest.raises(TargetError, match="no layer of this network can vary: leave this entry out"):
        build_supernet(site, {"w": ElasticWidth(targets=Targets())})


def test_a_width_that_the_code_has_written_down_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + x.new_ones(8))

    net = Fixed()
    with pytest.raises(TargetError, match=r"'first:width' at '4'|cannot vary"):
        build_supernet(
            Site(root=net, network="", args=(torch.zeros(2, 4),)),
            {"w": ElasticWidth(targets=Targets(include=("first",)), fractions=(0.5, 1.0))},
        )
    assert not switchable_forwards(net)


def test_an_architecture_of_another_space_is_refused(supernet):
    with pytest.raises(ValueError, match="unknown \\['other'\\]"):
        supernet.activate({"other": 0})
    with pytest.raises(ValueError, match="indexed from 0 to 2, got 3"):
        supernet.activate(supernet.default | {"stem:width": 3})


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        widths(fractions=(0.5, 0.25, 1.0))
    with pytest.raises(ValueError, match="end with 1"):
        widths(fractions=(0.5,))
    with pytest.raises(ValueError, match="divisor"):
        widths(divisor=0)
    with pytest.raises(ValueError, match="at least one candidate"):
        broken()
    with pytest.raises(ValueError, match="identifier"):
        broken(**{"a.b": nn.Identity})


def test_counts_keep_to_the_divisor_as_far_as_the_layer_has_that_many():
    assert widths(divisor=8).counts(64) == (16, 32, 64)
    assert widths(divisor=8).counts(20) == (8, 20)
    assert widths().counts(1) == (1,)
