"""Search by trials: each architecture is trained on its own, through the strategies of a supernet's search."""

import json
from functools import partial
from io import StringIO

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from safetensors.torch import load_file

from lightning_optim import NASSupernet, QATFakeQuant, Targets
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.errors import ArtefactError
from lightning_optim.nas import ElasticWidth, LoggedMetric, NetworkCost, OperationChoice, Selection
from lightning_optim.recipe import Recipe, Stage, TrialSearch
from lightning_optim.search import RandomSearch

pytestmark = pytest.mark.filterwarnings("ignore")


class StoppedError(Exception):
    """What stands for a power cut."""


class Stopper(Callback):
    """Stops the training of the trial of this number."""

    def __init__(self, trial):
        self.left = trial

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.left -= 1
            if not self.left:
                raise StoppedError


def make_module():
    return Classifier(ResidualNet(widths=(8, 8)), memory_format="contiguous")


def searcher(**settings):
    space = {
        "width": ElasticWidth(targets=Targets(include=["net.layers.1.conv1"]), fractions=[0.25, 1.0]),
        "skip": OperationChoice(targets=Targets(include=["net.layers.0"]), candidates={"skip": torch.nn.Identity}),
    }
    given = {"space": space, "example": torch.zeros(2, 1, 8, 8), "strategy": RandomSearch()}
    return NASSupernet(**given | {"selection": Selection(evaluations=3)} | settings)


def trials(folder, *callbacks, **changes):
    made = changes.pop("searcher", None) or searcher()
    trainer = partial(Trainer, accelerator="cpu", limit_train_batches=4, callbacks=list(callbacks))
    given = {"make_module": make_module, "data": Digits(batch_size=32, resolution=8), "epochs": 1}
    return TrialSearch(**given | {"searcher": made, "make_trainer": trainer, "folder": folder} | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    search = trials(tmp_path_factory.mktemp("whole"))
    return search, search.run()


def test_each_score_is_that_of_the_architecture_trained_alone(whole):
    search, result = whole
    entry = result.evaluations[1]  # the cheapest: no first block, and 2 channels
    assert search.searcher.supernet.space.options_of(entry.architecture) == {
        "net.layers.0:operation": "skip",
        "net.layers.1.conv1:width": "2",
    }
    repeated = trials(search.folder.parent / "again", searcher=searcher(selection=Selection(evaluations=2))).run()
    assert repeated.evaluations[1] == entry
    assert len({found.cost for found in result.evaluations}) == 3


def test_a_search_that_was_stopped_goes_on_to_the_same_end(whole, tmp_path):
    search, result = whole
    with pytest.raises(StoppedError):
        trials(tmp_path, Stopper(2)).run()
    assert len(json.loads((tmp_path / "trials.json").read_text())["progress"]["evaluations"]) == 1
    resumed = trials(tmp_path)
    assert resumed.run() == result
    ours, theirs = (load_file(folder / "best.safetensors") for folder in (tmp_path, search.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ArtefactError, match="differs in epochs"):
        trials(tmp_path, epochs=2).run()


def test_the_trained_pick_scores_as_in_its_trial(whole):
    search, result = whole
    module = search.trained_pick()
    (found,) = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu").validate(
        module, datamodule=Digits(batch_size=32, resolution=8), verbose=False
    )
    assert found["val/accuracy"] == pytest.approx(result.pick.score)
    assert not any("_candidates" in name for name in module.state_dict())


def test_wrong_trials_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        trials(tmp_path, epochs=0)
    with pytest.raises(ValueError, match="there is no pick yet"):
        trials(tmp_path).trained_pick()
    small = Selection(measures={"macs": NetworkCost(bound=10)})
    with pytest.raises(ValueError, match="no architecture of the space is within MACs at most 10"):
        trials(tmp_path, searcher=searcher(selection=small)).run()
    other = Selection(measures={"f1": LoggedMetric(monitor="val/f1")})
    with pytest.raises(ValueError, match="no 'val/f1'"):
        trials(tmp_path, searcher=searcher(selection=other)).run()
    with pytest.raises(ValueError, match="those of a search stage and at least 1, got 2 in stage 'base'"):
        Stage(name="base", kind="train", make_trainer=Trainer, make_callbacks=lambda _: [], trial_epochs=2)


def test_a_recipe_searches_by_trials_with_the_other_callbacks_of_its_stage(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append("0-search")
            assert not any(isinstance(callback, NASSupernet) for callback in trainer.callbacks)
            assert not any("_candidates" in key for key in pl_module.state_dict())

    def make(name, artefacts):
        return [searcher(), QATFakeQuant(), Watch()] if name == "search" else []

    stages = [
        Stage(
            name=name,
            kind=kind,
            make_trainer=partial(Trainer, max_epochs=1, accelerator="cpu", limit_train_batches=4),
            make_callbacks=partial(make, name),
            trial_epochs=1 if name == "search" else None,
        )
        for name, kind in (("search", "search"), ("base", "train"))
    ]
    recipe = Recipe(
        stages=stages,
        make_module=make_module,
        data=Digits(batch_size=32, resolution=8),
        folder=tmp_path,
        console=Console(file=StringIO()),
    )
    searched, base = (done.result for done in recipe.run())
    assert searched.macs == base.macs
    found = json.loads((tmp_path / "stages" / "0-search" / "search.json").read_text())
    assert found["pick"]["values"]["cost"] == searched.macs
    assert seen == ["0-search", "0-search", "0-search"]  # a trial each
