"""Every transfer loss: weights, and what learns inside it, end as those of a user who has written it into the module.

To the bit, under every kind of training. A few of each kind run by default, all of them with ``-m slow``.
"""

import functools
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

import lightning_optim.conf
from distilled_by_hand import ByHand, Student, distilling, fit
from losses_by_hand import CASES
from support import run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")
LEAVES = Path(lightning_optim.conf.__path__[0]) / "lightning_optim" / "distillation" / "loss"
SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
}
FEW = ("attention_transfer, of means", "hint, with others", "vid")
RANKS = ("ddp", "ddp_find_unused_parameters_true", "fsdp2")


def cells(columns, runs):
    """Each case in each column; slow but for those of which ``runs(column, label)``."""
    return [
        pytest.param(column, label, id=f"{column}-{label}", marks=[] if runs(column, label) else pytest.mark.slow)
        for column in columns
        for label in CASES
    ]


def compare(label, build=lambda module: module, **settings):
    """Fit by the callback and by hand; returns the ends of both."""
    losses, written = CASES[label]
    student, callback = Student(), distilling(losses)
    # In true half precision, Lightning would convert what learns; the callback keeps it in float32.
    by_hand = ByHand(written, is_apart=settings.get("precision") == "bf16-true")
    fit(build(student), callback, **settings)
    fit(build(by_hand), **settings)
    learned = [value for each in callback.state_dict().get("learned", {}).values() for value in each["values"]]
    found, expected = ([*module.net.parameters()] for module in (student, by_hand))
    return [*found, *learned], [*expected, *by_hand.learned]


@functools.cache
def end_without_a_teacher(**settings):
    student = Student()
    fit(student, **settings)
    return [*student.net.parameters()]


def test_every_leaf_has_a_case():
    of_leaf = {}
    for label, (loss, _) in CASES.items():
        of_leaf.setdefault(label.partition(",")[0], loss)
    kinds = {leaf.stem: get_class(OmegaConf.load(leaf)["_target_"]) for leaf in LEAVES.glob("*.yaml")}
    assert {leaf: type(loss) for leaf, loss in of_leaf.items()} == kinds


@pytest.mark.parametrize(("column", "label"), cells(SETTINGS, lambda column, label: column == "plain" or label in FEW))
def test_weights_and_what_learns_equal_those_by_hand(column, label):
    found, expected = compare(label, **SETTINGS[column])
    assert same(found, expected)
    if column == "plain":
        assert not same(found[: len(end_without_a_teacher())], end_without_a_teacher())


def compile_network(module):
    module.net = torch.compile(module.net)
    return module


# Of the whole module by hand, the loss is a part of the graph: a backend that fuses it adds up in another order.
COMPILED = {"network": compile_network, "whole module": functools.partial(torch.compile, backend="eager")}


@pytest.mark.slow
@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("what", COMPILED)
def test_compiled_modules_end_as_by_hand(what, label):
    def build(module):
        torch._dynamo.reset()  # else a network takes over the graph of another of its class, without its own hooks
        return COMPILED[what](module)

    found, expected = compare(label, build)
    assert same(found, expected)


def verdicts(settings, labels, folder):
    done = run_script(Path(__file__).with_name("every_loss_on_ranks.py"), ",".join(settings), *labels, cwd=folder)
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    said = [tuple(line) for line in lines if line[0] in settings]
    return sorted(said), sorted([(setting, label, "equal") for setting in settings for label in labels] * 2)


def test_two_ranks_end_as_by_hand(tmp_path):
    found, expected = verdicts(RANKS, FEW, tmp_path)
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("setting", RANKS)
def test_two_ranks_end_as_by_hand_with_every_loss(setting, tmp_path):
    found, expected = verdicts([setting], CASES, tmp_path)
    assert found == expected
