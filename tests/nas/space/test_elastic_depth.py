import itertools

import pytest
import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import ElasticDepth, ElasticKernel, ElasticWidth, OperationChoice
from lightning_optim.surgery.pass_through import PassThrough
from nas_laws import check_paths, converted


class Block(nn.Module):
    """A residual block with a layer inside that may vary."""

    def __init__(self, width=4):
        super().__init__()
        self.up, self.norm, self.down = nn.Conv1d(width, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, width, 1)

    def forward(self, x):
        return x + self.down(self.norm(self.up(x)).relu())


class Staged(nn.Module):
    """A stage that begins with a block that changes the shape."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), Block(), Block(), Block())
        self.head = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        return self.head(self.stage(x))


SIGNALS = (torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0)),)


def depth(*include, **settings):
    return ElasticDepth(targets=Targets(include=include), **settings)


def inner():
    targets = Targets(include=("stage.*.up",))
    return {
        "widths": ElasticWidth(targets=targets, fractions=(0.5, 1.0)),
        "kernels": ElasticKernel(targets=targets, sizes=(1,)),
    }


@pytest.mark.parametrize("names", [*itertools.permutations(("depth", "widths", "kernels"))])
def test_what_is_decided_in_a_skipped_block_is_conditional_whatever_the_order(names):
    torch.manual_seed(0)
    entries = {"depth": depth("stage"), **inner()}
    supernet = converted(Staged(), SIGNALS, **{name: entries[name] for name in names})
    assert supernet.decisions[0].name == "stage:depth"
    assert supernet.decisions[0].options == ("1", "2", "3", "4")
    runs = {entry.name: [condition.options for condition in entry.conditions] for entry in supernet.decisions[1:]}
    assert {name.partition(":")[0]: options for name, options in runs.items()} == {
        "stage.1.up": [(1, 2, 3)], "stage.2.up": [(2, 3)], "stage.3.up": [(3,)],
    }  # fmt: skip
    # Each block that runs has two widths and two kernels.
    assert supernet.space.num_candidates == sum(4**blocks for blocks in range(4))
    if names[0] == "depth":
        check_paths(supernet, SIGNALS)


def test_the_extracted_network_holds_no_skipped_block():
    supernet = converted(Staged(), SIGNALS, depth=depth("stage"))
    subnet = supernet.extract({"stage:depth": 1})
    assert list(subnet.state_dict()) == [key for key in Staged().state_dict() if key[:7] not in ("stage.2", "stage.3")]
    assert len(subnet.stage) == 2


class Counting(nn.Module):
    """Blocks that take a mask and return a tuple, in a list whose length decides how much noise they see."""

    def __init__(self, *, counts):
        super().__init__()
        self.first, self.layers, self.counts = nn.Linear(2, 4), nn.ModuleList(Masked() for _ in range(3)), counts

    def forward(self, x):
        x, mask = self.first(x), torch.ones(4)
        for index, layer in enumerate(self.layers):
            rate = index / len(self.layers) if self.counts else 0.1
            x, mask, _ = layer(hidden=x, mask=mask, rate=rate)
        return x


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, *, hidden, mask, rate):
        return hidden + nn.functional.dropout(self.mix(hidden) * mask, rate, self.training), mask, None


@pytest.mark.parametrize("counts", [False, True])
def test_a_block_that_code_counts_leaves_a_module_without_parameters_in_its_place(counts):
    torch.manual_seed(0)
    x = (torch.randn(2, 2),)
    supernet = converted(Counting(counts=counts), x, depth=depth("layers", depths=(0, 1, 2, 7)))
    assert supernet.decisions[0].options == ("0", "1", "2", "3")
    check_paths(supernet, x)
    subnet = supernet.extract({"layers:depth": 1})
    kinds = [type(layer) for layer in subnet.layers]
    assert kinds == ([Masked, PassThrough, PassThrough] if counts else [Masked])
    assert {key.split(".")[1] for key in subnet.state_dict() if key.startswith("layers")} == {"0"}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block1, self.block2 = nn.Conv1d(2, 4, 1), Block(), nn.Sequential(Block(), nn.ReLU())
        self.rest = nn.Sequential(Block(), nn.Conv1d(4, 4, 3), Block(), Block())

    def forward(self, x):
        return self.rest(self.block2(self.block1(self.stem(x))))


def test_blocks_that_are_named_are_a_sequence_for_each_parent():
    supernet = converted(Named(), SIGNALS, named=depth("block*", level="block", depths=(0, 1)),
                         middle=depth("rest.0", "rest.2", level="block"))  # fmt: skip
    assert [(entry.name, entry.options) for entry in supernet.decisions] == [
        ("block1:depth", ("0", "1", "2")), ("rest.0:depth", ("1", "2")),
    ]  # fmt: skip
    check_paths(supernet, SIGNALS)
    subnet = supernet.extract(dict.fromkeys(supernet.default, 0))
    assert [key for key in subnet.rest.state_dict() if key.endswith("up.bias")] == ["0.up.bias", "3.up.bias"]
    assert isinstance(subnet.block1, PassThrough)


def test_a_choice_of_operations_for_a_block_is_skipped_with_it():
    torch.manual_seed(0)
    wide = OperationChoice(
        targets=Targets(include=("stage.3",)), candidates={"wide": lambda: nn.Conv1d(4, 4, 5, padding=2)}
    )
    inside = ElasticKernel(targets=Targets(include=("stage.3.*",)), sizes=(1,))
    supernet = converted(Staged(), SIGNALS, kernels=inside, wide=wide, depth=depth("stage", depths=(3,)))
    assert [(entry.name, len(entry.conditions)) for entry in supernet.decisions] == [
        ("stage:depth", 0), ("stage.3:operation", 1), ("stage.3.up:kernel", 2), ("stage.3._candidates.wide:kernel", 2),
    ]  # fmt: skip
    # Three blocks; or four, with a kernel of 3 or 1 in the own block, or of 5, 1 in the other.
    assert supernet.space.num_candidates == 1 + 2 + 2
    check_paths(supernet, SIGNALS)


def test_a_width_beyond_the_blocks_is_never_conditional():
    widths = ElasticWidth(targets=Targets(include=("stage.0",)), fractions=(0.5, 1.0))
    supernet = converted(Staged(), SIGNALS, widths=widths, depth=depth("stage"))
    assert supernet.decisions[-1].conditions == () == supernet.decisions[0].conditions
    check_paths(supernet, SIGNALS)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTM(2, 2), nn.LSTM(2, 2)])

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return x


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (Staged, {"include": ("stage",), "depths": (0,)}, r"'stage.0' cannot be skipped: it returns \['\[3, 4, 6\]"),
        (Staged, {"include": ("head",)}, "none of them a ModuleList or Sequential"),
        (Staged, {"include": ("stage",), "depths": (4, 5)}, "more blocks than the depths ask for: 'stage' with 4"),
        (Staged, {"include": ("stages",)}, "did you mean 'stage'"),
        (lambda: nn.Sequential(nn.Sequential(*[nn.ReLU()] * 2)), {"include": ("0",)}, "stands twice in '0'"),
        (lambda: nn.Sequential(Stateful()), {"include": ("0.layers",)}, "'0.layers.1' cannot be skipped"),
    ],
)  # fmt: skip
def test_what_cannot_be_skipped_is_refused_by_name(net, settings, message):
    net = net()
    before = {name: sorted(vars(module)) for name, module in net.named_modules()}
    with pytest.raises(TargetError, match=message):
        converted(
            net,
            (torch.randn(3, 2, 2 if isinstance(net, nn.Sequential) else 6),),
            depth=depth(*settings["include"], **{"depths": settings.get("depths")}),
        )
    assert {name: sorted(vars(module)) for name, module in net.named_modules()} == before


@pytest.mark.parametrize("settings", [{"depths": ()}, {"depths": (-1, 2)}, {"depths": (2, 2)}, {"level": "layer"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises((ValueError, TypeError), match=r"depths must ascend|level"):
        depth("stage", **settings)


class Pinned(nn.Module):
    """A candidate whose code has a width written down."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x):
        return self.down(self.up(x) + x.new_ones(1, 8, 1))


def test_an_option_that_matters_only_in_a_candidate_is_tried_there():
    choice = OperationChoice(targets=Targets(include=("stage.3",)), candidates={"pinned": Pinned})
    width = ElasticWidth(targets=Targets(include=("stage.3._candidates.pinned.up",)), fractions=(0.5, 1.0))
    with pytest.raises(TargetError, match=r"pinned.up:width' at '4'|'stage.3._candidates.pinned.up' cannot vary"):
        converted(Staged(), SIGNALS, choice=choice, width=width)
