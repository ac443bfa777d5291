"""A search stage: its pick is the module that later stages train, also where the run was stopped in between."""

import json
from functools import partial
from io import StringIO

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from safetensors.torch import load_file

from lightning_optim import NASSupernet, PruningScheduler, QATFakeQuant, Targets, Window
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.errors import ArtefactError, OrderError
from lightning_optim.nas import ElasticWidth, OperationChoice, Selection
from lightning_optim.pruning import Channel
from lightning_optim.recipe import Recipe, Stage, load_trained
from lightning_optim.recipe.rehearsal import rehearse
from lightning_optim.recipe.summary import summarize
from lightning_optim.report import read_report
from lightning_optim.schedule import Iterative

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK = "net.layers.1"


class StoppedError(Exception):
    """What stands for a power cut."""


class Stopper(Callback):
    """Stops the training of an epoch, the first test, or the third validation after training: within a search."""

    def __init__(self, hook):
        self.hook, self.validations = hook, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.hook == "train":
            raise StoppedError

    def on_validation_start(self, trainer, pl_module):
        if self.hook == "search" and trainer.state.fn == "validate":
            self.validations += 1
            if self.validations == 5:
                raise StoppedError

    def on_test_start(self, trainer, pl_module):
        if self.hook == "test":
            raise StoppedError


def make_search(_, **settings):
    space = {
        "width": ElasticWidth(targets=Targets(include=[f"{BLOCK}.conv1"]), fractions=[0.25, 0.5, 1.0]),
        "skip": OperationChoice(targets=Targets(include=["net.layers.0"]), candidates={"skip": torch.nn.Identity}),
    }
    # The fewest MACs are best, so that the pick is known: no block, and the least width.
    selection = Selection(objectives=("cost",), evaluations=20, recalibration_batches=1)
    return [NASSupernet(**{"space": space, "selection": selection} | settings)]


def make_prune(_):
    return [PruningScheduler(schedule=Iterative(end=0.5, rounds=1), structure=Channel(), window=Window(end=0.9))]


def recipe(folder, stop=None, **changes):
    """Search, train, prune and quantize; ``stop`` is the stage to stop in, and how."""
    made = {"search": make_search, "base": lambda _: [], "prune": make_prune, "qat": lambda _: [QATFakeQuant()]}
    weights, order = changes.pop("weights", "scratch"), changes.pop("order", ("search", "base", "prune", "qat"))

    def make(name, artefacts):
        return [*made[name](artefacts), *([stop[1]] if stop and stop[0] == name else [])]

    stages = [
        Stage(
            name=name,
            kind={"base": "train"}.get(name, name),
            make_trainer=partial(Trainer, max_epochs=1, accelerator="cpu", limit_train_batches=4),
            make_callbacks=partial(make, name),
            weights=weights if name == "search" else "scratch",
        )
        for name in order
    ]
    settings = {
        "stages": stages,
        "make_module": lambda: Classifier(ResidualNet(widths=(8, 8)), memory_format="contiguous"),
        "data": Digits(batch_size=32, resolution=8),
        "folder": folder,
        "console": Console(file=StringIO()),
    }
    return Recipe(**{**settings, **changes})


def figures(finished):
    results = [done.result.to_dict() for done in finished]
    return [{name: value for name, value in result.items() if name != "seconds"} for result in results]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, recipe(folder).run()


def test_the_pick_is_what_later_stages_train_prune_and_quantize(whole):
    folder, finished = whole
    choices = yaml.safe_load((folder / "stages" / "0-search" / "architecture.yaml").read_text())
    assert choices == {"net.layers.0:operation": "skip", f"{BLOCK}.conv1:width": "2"}
    searched, base, pruned, qat = (done.result for done in finished)
    assert searched.macs == base.macs > pruned.macs
    assert searched.parameters == base.parameters > pruned.parameters
    assert (folder / "stages" / "3-qat" / "model.onnx").stat().st_size == qat.bytes
    names = load_file(folder / "stages" / "1-base" / "weights.safetensors").keys()
    assert not any("_candidates" in name or "layers.0" in name for name in names)
    found = json.loads((folder / "stages" / "0-search" / "search.json").read_text())
    assert found["num_architectures"] == 6
    assert found["pick"]["options"] == choices
    assert found["pick"]["values"]["cost"] == searched.macs


def test_the_report_compares_from_the_first_trained_stage_and_shows_the_search(whole):
    folder, finished = whole
    report = summarize(finished, folder, 0.05)
    assert [stage.name for stage in report.stages] == ["base", "prune", "qat"]
    assert report.searches["search"].measured == {"cost": report.stages[0].macs}
    assert "Search: search" in (folder / "report.html").read_text()
    assert read_report(folder / "report.json") == report


STOPS = {
    "in the supernet's training": ("search", Stopper("train")),
    "in the search": ("search", Stopper("search")),
    "while the pick is measured": ("search", Stopper("test")),
    "in the training of the pick": ("base", Stopper("train")),
}


# The stop within the search has every part of the way back in it.
@pytest.mark.parametrize(
    "where", [pytest.param(key, marks=[pytest.mark.slow] * (key != "in the search")) for key in STOPS]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(whole, tmp_path, where):
    folder, finished = whole
    with pytest.raises(StoppedError):
        recipe(tmp_path, STOPS[where]).run()
    assert figures(recipe(tmp_path).run()) == figures(finished)
    for stage in ("0-search", "3-qat"):
        for name in ("model.onnx", "weights.safetensors"):
            ours, theirs = (root / "stages" / stage / name for root in (tmp_path, folder))
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_the_pick_begins_with_the_weights_of_a_fresh_module_or_with_those_of_the_search(tmp_path):
    begun = {}

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            begun[weights] = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    for weights in ("scratch", "inherited"):
        run = recipe(tmp_path / weights, ("base", Watch()), weights=weights, order=("search", "base"))
        run.run()
        inherited = load_file(tmp_path / weights / "stages" / "0-search" / "weights.safetensors")
        assert inherited.keys() == begun[weights].keys()
        same = [torch.equal(inherited[name], begun[weights][name]) for name in inherited]
        assert all(same) if weights == "inherited" else not any(same[:4])
    torch.manual_seed(0)
    fresh = recipe(tmp_path).make_module().state_dict()
    scratch = begun["scratch"][f"{BLOCK}.conv1.weight"]
    assert scratch.shape[0] == 2 < fresh[f"{BLOCK}.conv1.weight"].shape[0]


def test_a_search_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OrderError, match=r"'prune' cannot come right after 'search': its pick begins from scratch"):
        rehearse(recipe(tmp_path, order=("search", "prune")))
    with pytest.raises(ValueError, match="must be one of scratch, inherited, got 'new'"):
        recipe(tmp_path, weights="new")
    with pytest.raises(ValueError, match="are those of a search, got it in stage 'base' of kind 'train'"):
        Stage(name="base", kind="train", make_trainer=Trainer, make_callbacks=make_search, weights="inherited")
    nothing = recipe(tmp_path, order=("search", "base"))
    object.__setattr__(nothing.stages[0], "make_callbacks", lambda _: [])
    with pytest.raises(OrderError, match=r"needs one callback that searches .* such as NASSupernet, got 0"):
        rehearse(nothing)
    assert not list(tmp_path.iterdir())
    never = recipe(tmp_path, order=("search", "base"))
    object.__setattr__(never.stages[0], "make_callbacks", partial(make_search, search_at="call"))
    with pytest.raises(OrderError, match="ended without a search: set search_at='fit_end'"):
        never.run()


def test_choices_of_another_space_are_refused(whole, tmp_path):
    folder, _ = whole
    target = tmp_path / "stages" / "0-search"
    target.mkdir(parents=True)
    for path in (folder / "stages" / "0-search").iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    (target / "architecture.yaml").write_text("net.stem:width: '3'\n")
    with pytest.raises(ArtefactError, match=r"is of another space: nothing is decided about 'net.stem:width'"):
        recipe(tmp_path).run()
    (target / "architecture.yaml").write_text("- 3\n")
    with pytest.raises(ArtefactError, match="holds no choices by name"):
        recipe(tmp_path).run()
    with pytest.raises(ArtefactError, match="which has searched another architecture"):
        load_trained(recipe(tmp_path).make_module(), folder / "stages" / "1-base")
