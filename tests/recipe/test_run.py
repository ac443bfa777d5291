"""A run that ends anywhere goes on to the same weights, figures and files as one that did not end."""

import json
from functools import partial
from io import StringIO

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant, Targets, Window
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.distillation import AnswerCache
from lightning_optim.errors import ArtefactError, OrderError
from lightning_optim.pruning import Channel
from lightning_optim.recipe import Recipe, Stage
from lightning_optim.recipe.rehearsal import rehearse
from lightning_optim.schedule import Iterative

pytestmark = pytest.mark.filterwarnings("ignore")


class StoppedError(Exception):
    """What stands for a power cut."""


class Stopper(Callback):
    def __init__(self, hook, epoch=0):
        self.hook, self.epoch = hook, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.hook == "train" and (trainer.current_epoch, batch_idx) == (self.epoch, 3):
            raise StoppedError

    def on_test_start(self, trainer, pl_module):
        if self.hook == "test":
            raise StoppedError


def make_prune(artefacts):
    pruning = [
        PruningScheduler(
            schedule=Iterative(end=0.5, rounds=2),
            structure=Channel(),
            window=Window(end=0.9),
            targets=targets,
            name=name,
        )
        for name, targets in (("inner", Targets(include=["*.conv1"])), ("outer", Targets(exclude=["*.conv1"])))
    ]
    return [*pruning, DistillationTeacher(teacher=artefacts("base"))]


def recipe(folder, stop=None, **changes):
    """Train, prune and quantize; ``stop`` is the stage to stop in, and how."""
    callbacks = {"base": lambda _: [], "prune": make_prune, "qat": lambda _: [QATFakeQuant()]}
    epochs = {"base": 2, "prune": 2, "qat": 1}

    def make(name, artefacts):
        return [*callbacks[name](artefacts), *([stop[1]] if stop and stop[0] == name else [])]

    stages = [
        Stage(
            name=name,
            kind=kind,
            make_trainer=partial(Trainer, max_epochs=epochs[name], accelerator="cpu", limit_train_batches=6),
            make_callbacks=partial(make, name),
            settings={"lr": 2e-3} if name == "prune" else {},
            needs=["base"] if name == "prune" else [],
        )
        for name, kind in (("base", "train"), ("prune", "prune"), ("qat", "qat"))
    ]
    settings = {
        "stages": stages,
        "make_module": lambda: Classifier(ResidualNet(widths=(4, 8)), memory_format="contiguous"),
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


STOPS = {
    "in the second epoch": ("base", Stopper("train", 1)),
    "between two cuts": ("prune", Stopper("train", 1)),
    "while the cut model is measured": ("prune", Stopper("test")),
    "in quantization": ("qat", Stopper("train", 0)),
}


# A stop between two cuts is slow: pruning is also stopped where it is measured, and killed in the command line's tests.
@pytest.mark.parametrize(
    "where", [pytest.param(key, marks=[pytest.mark.slow] * (key == "between two cuts")) for key in STOPS]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(whole, tmp_path, where):
    folder, finished = whole
    with pytest.raises(StoppedError):
        recipe(tmp_path, STOPS[where]).run()
    torch.rand(3)  # what another process would have drawn
    assert figures(recipe(tmp_path).run()) == figures(finished)
    for stage in ("0-base", "1-prune", "2-qat"):
        for name in ("weights.safetensors", "model.onnx"):
            path = f"stages/{stage}/{name}"
            assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


def test_a_finished_run_is_not_done_again(whole):
    folder, finished = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert figures(recipe(folder).run()) == figures(finished)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_pruned_model_is_physically_smaller_and_the_file_agrees(whole):
    base, prune, qat = (done.result for done in whole[1])
    assert prune.parameters < 0.5 * base.parameters
    assert prune.macs < 0.5 * base.macs
    assert qat.parameters == prune.parameters
    assert base.agreement == prune.agreement == qat.agreement == 1.0


def test_rehearsing_changes_no_number_and_writes_nothing(whole, tmp_path):
    again = recipe(tmp_path)
    rehearse(again)
    assert list(tmp_path.iterdir()) == []
    assert figures(again.run()) == figures(whole[1])


def test_rehearsing_asks_an_untrained_teacher_and_keeps_none_of_its_answers(tmp_path):
    right, folder = recipe(tmp_path / "run"), tmp_path / "answers"

    def make(artefacts):
        return [DistillationTeacher(teacher=artefacts("base"), cache=AnswerCache(folder=folder))]

    distil = Stage(name="distil", kind="distil", make_trainer=right.stages[0].make_trainer, make_callbacks=make)
    rehearse(recipe(tmp_path / "run", stages=[right.stages[0], distil]))
    assert list(tmp_path.iterdir()) == []


def test_rehearsal_finds_the_mistake_of_the_last_stage_first(tmp_path):
    wrong = recipe(tmp_path)
    callbacks = [QATFakeQuant(targets=Targets(include=("net.nowhere",)))]
    last = Stage(name="qat", kind="qat", make_trainer=wrong.stages[2].make_trainer, make_callbacks=lambda _: callbacks)
    with pytest.raises(ValueError, match=r"net\.nowhere"):
        rehearse(recipe(tmp_path, stages=[*wrong.stages[:2], last]))
    assert list(tmp_path.iterdir()) == []


def test_an_order_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path):
    right = recipe(tmp_path)
    with pytest.raises(OrderError, match="'prune' cannot come after 'qat'"):
        recipe(tmp_path, stages=[right.stages[0], right.stages[2], right.stages[1]]).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors", "stage.json"])
def test_a_damaged_file_of_a_run_is_named_and_left_as_it_is(tmp_path, name):
    only_base = recipe(tmp_path).stages[:1]
    with pytest.raises(StoppedError):
        recipe(tmp_path, ("base", Stopper("test")), stages=recipe(tmp_path, ("base", Stopper("test"))).stages[:1]).run()
    path = tmp_path / "stages" / "0-base" / name
    path.write_bytes(b"{ broken")
    if name == "weights.safetensors":
        (path.parent / "stage.json").write_text(json.dumps({"name": "base"}))
    with pytest.raises(ArtefactError, match=name):
        recipe(tmp_path, stages=only_base).run()
    assert path.read_bytes() == b"{ broken"


def test_a_checkpoint_of_another_model_is_refused_and_left_as_it_is(tmp_path):
    only_base = recipe(tmp_path, ("base", Stopper("train", 1))).stages[:1]
    with pytest.raises(StoppedError):
        recipe(tmp_path, stages=only_base).run()
    path = tmp_path / "stages" / "0-base" / "last.ckpt"
    before = path.read_bytes()
    other = partial(Classifier, ResidualNet(widths=(4, 12)), memory_format="contiguous")
    with pytest.raises(ArtefactError, match=r"last\.ckpt is of another model; remove it"):
        recipe(tmp_path, stages=recipe(tmp_path).stages[:1], make_module=other).run()
    assert path.read_bytes() == before
