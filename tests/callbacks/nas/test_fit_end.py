"""A search at the end of the fit: for whom a configuration is all that is said."""

import json
import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_optim import NASSupernet, Targets
from lightning_optim.callbacks.nas import fit_end, search_messages
from lightning_optim.callbacks.nas.first_batches import FirstBatches
from lightning_optim.callbacks.nas.fit_end import check_before_fit
from lightning_optim.callbacks.trainer.messages import Pace
from lightning_optim.callbacks.trainer.strategy import StrategyKind
from lightning_optim.cost import Parameters
from lightning_optim.demo import Split
from lightning_optim.demo.data.tensors import TensorLoader
from lightning_optim.errors import ArtefactError
from lightning_optim.nas import (
    ElasticDepth,
    ElasticWidth,
    LoggedMetric,
    NetworkCost,
    OperationChoice,
    Screening,
    Selection,
    SynFlow,
)
from lightning_optim.report import SearchFindings
from lightning_optim.search import RandomSearch
from support import quiet


class User(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.example_input_array = torch.zeros(4, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


def loader():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)


def supernet(**settings):
    space = {"width": ElasticWidth(targets=Targets(include=["net.0"]), fractions=[0.25, 0.5, 1.0])}
    return NASSupernet(**{"space": space, "selection": Selection(recalibration_batches=2)} | settings)


def fit(callback, *others, module=None, **settings):
    module = module or User()
    trainer = quiet(callback, *others, **{"max_epochs": 1} | settings)
    trainer.fit(module, loader(), loader())
    return module, trainer


def test_the_fit_ends_with_the_result_of_a_search():
    module, trainer = fit(supernet())
    (callback,) = (entry for entry in trainer.callbacks if isinstance(entry, NASSupernet))
    called = supernet(search_at="call")
    other, made = fit(called)
    assert called.result is None
    assert callback.result == called.search(made, other)
    assert callback.eval_architecture == callback.result.pick.architecture
    x = torch.randn(5, 6)
    assert torch.equal(callback.extract(module).eval()(x), module.eval()(x))
    (tested,) = trainer.test(module, loader(), verbose=False)
    assert tested["val/accuracy"] == pytest.approx(callback.result.pick.score)


def test_selection_and_strategy_take_effect():
    # Layers 6 -> w, w -> 2 and a norm: 6w + w + 2w + 2w + 2 parameters; 24, 46 and 90.
    callback = supernet(selection=Selection(cost=Parameters(), max_cost=50, recalibration_batches=0))
    fit(callback)
    assert sorted(entry.cost for entry in callback.result.evaluations) == [24, 46]
    callback = supernet(strategy=RandomSearch(), selection=Selection(evaluations=1, recalibration_batches=0))
    fit(callback)
    assert len(callback.result.evaluations) == 1


@pytest.mark.parametrize(
    ("settings", "moment"),
    [
        ({"selection": None}, "call"),
        ({}, "fit_end"),
        ({"selection": None, "strategy": RandomSearch()}, "fit_end"),
        ({"selection": None, "search_at": "fit_end"}, "fit_end"),
        ({"search_at": "call"}, "call"),
    ],
)
def test_what_is_configured_says_when_the_search_is(settings, moment):
    assert supernet(**settings).search_at == moment


def killed_after(callback, evaluations, monkeypatch):
    evaluate = callback._evaluate_next
    seen = []

    def evaluate_next(architecture):
        seen.append(architecture)
        if len(seen) > evaluations:
            raise KeyboardInterrupt
        evaluate(architecture)

    monkeypatch.setattr(callback, "_evaluate_next", evaluate_next)
    return seen


def test_a_search_that_was_killed_goes_on_once_its_fit_is_resumed(tmp_path, monkeypatch):
    whole = supernet()
    saves = {"max_epochs": 2, "enable_checkpointing": True}
    fit(whole, ModelCheckpoint(tmp_path / "whole", save_last=True), **saves)
    killed = supernet()
    killed_after(killed, 2, monkeypatch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(killed, ModelCheckpoint(tmp_path / "killed", save_last=True), **saves)
    (progress,) = (tmp_path / "killed").glob("nas_search_*.json")
    assert len(json.loads(progress.read_text())["progress"]["evaluations"]) == 2
    resumed = supernet()
    seen = killed_after(resumed, 100, monkeypatch)
    trainer = quiet(resumed, ModelCheckpoint(tmp_path / "killed", save_last=True), **saves)
    trainer.fit(User(), loader(), loader(), ckpt_path=tmp_path / "killed" / "last.ckpt")
    assert resumed.result == whole.result
    assert len(seen) == len(whole.result.evaluations) - 2 + 1  # the pick runs once more, for its statistics
    assert not progress.exists()


def test_a_checkpoint_is_loaded_into_a_fresh_module(tmp_path):
    callback = supernet()
    module, trainer = fit(callback)
    trainer.save_checkpoint(tmp_path / "supernet.ckpt")
    other, fresh = supernet(), User()
    assert other.load(fresh, tmp_path / "supernet.ckpt") is fresh
    x = torch.randn(5, 6)
    assert torch.equal(fresh.eval()(x), module.eval()(x))
    assert torch.equal(other.extract(fresh).eval()(x), callback.extract(module).eval()(x))
    assert other.result == callback.result


def test_a_checkpoint_of_another_module_or_without_a_supernet_is_refused(tmp_path):
    callback = supernet()
    _, trainer = fit(callback)
    trainer.save_checkpoint(tmp_path / "supernet.ckpt")
    with pytest.raises(ArtefactError, match=r"is no checkpoint with NASSupernet.*it holds states of"):
        supernet(name="another").load(User(), tmp_path / "supernet.ckpt")
    space = {"width": ElasticWidth(targets=Targets(include=["net.0"]), fractions=[0.5, 1.0])}
    with pytest.raises(ValueError, match="give it the same space"):
        supernet(space=space).load(User(), tmp_path / "supernet.ckpt")
    wider = User()
    wider.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    with pytest.raises(ArtefactError, match="give the module that was trained"):
        supernet().load(wider, tmp_path / "supernet.ckpt")


@pytest.mark.parametrize("own", [True, False])
def test_batches_for_statistics_are_the_same_wherever_the_orders_of_a_loader_stand(own):
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.arange(64.0))
    shuffled = DataLoader(data, batch_size=4, shuffle=True, generator=generator if own else None)
    first = [batch[0] for batch in FirstBatches(shuffled, 3, seed=1)]
    expected = torch.Generator().manual_seed(5)
    assert torch.equal(generator.get_state(), expected.get_state())
    list(shuffled)  # an epoch
    state = torch.get_rng_state()
    assert torch.equal(torch.stack(first), torch.stack([batch[0] for batch in FirstBatches(shuffled, 3, seed=1)]))
    assert torch.equal(torch.get_rng_state(), state)
    spread = DistributedSampler(data, num_replicas=2, rank=1, seed=3)
    loader = DataLoader(data, batch_size=4, sampler=spread)
    first = [batch[0] for batch in FirstBatches(loader, 3, seed=1)]
    spread.set_epoch(7)
    assert torch.equal(torch.stack(first), torch.stack([batch[0] for batch in FirstBatches(loader, 3, seed=1)]))
    assert spread.epoch == 7
    images = Split(images=torch.rand(64, 1, 4, 4), labels=torch.arange(64))
    fresh, resumed = TensorLoader(images, 8, seed=0), TensorLoader(images, 8, seed=0)
    resumed.load_state_dict({"epoch": 0, "position": 4})  # within an epoch
    both = [torch.stack([labels for _, labels in FirstBatches(each, 3, seed=1)]) for each in (fresh, resumed)]
    assert torch.equal(*both)


class Watcher(Callback):
    def __init__(self):
        self.teardowns, self.ended = [], []

    def on_fit_end(self, trainer, pl_module):
        self.ended.append((trainer.state.fn.value, pl_module.net[0].training))

    def teardown(self, trainer, pl_module, stage):
        self.teardowns.append(stage)


@pytest.mark.parametrize("is_first", [False, True])
def test_the_trainer_ends_its_fit_as_without_a_search(tmp_path, is_first):
    watcher, callback = Watcher(), supernet()
    callbacks = [watcher, callback] if is_first else [callback, watcher]
    logger = CSVLogger(tmp_path)
    module = User()
    trainer = quiet(*callbacks, max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    assert [name for name, _ in watcher.ended] == ["fit"]
    assert watcher.teardowns[-1] == "fit"
    assert watcher.teardowns.count("fit") == 1
    assert trainer.state.finished
    assert {"train/loss", "val/accuracy"} < set(trainer.callback_metrics)
    assert trainer.loggers == [logger]
    pick = callback.result.pick
    assert float(trainer.callback_metrics["nas/score"]) == pytest.approx(pick.score)
    assert float(trainer.callback_metrics["nas/cost"]) == pick.cost
    logged = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "nas/score" in logged
    plain = quiet(max_epochs=1)
    reference = User()
    plain.fit(reference, loader(), loader())
    assert trainer.current_epoch == plain.current_epoch
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(), loader())  # and it goes on
    assert trainer.current_epoch == 2


class Data(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.stages = []

    def setup(self, stage):
        self.stages.append(stage)

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader()


def test_data_of_a_datamodule_serve_the_search():
    callback, module = supernet(), User()
    quiet(callback, max_epochs=1).fit(module, datamodule=Data())
    reference = supernet()
    fit(reference)
    assert callback.result == reference.result


def test_a_fit_that_trains_nothing_searches_nothing(tmp_path):
    callback = supernet()
    _, trainer = fit(callback)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = supernet(selection=Selection(evaluations=1))
    quiet(again, max_epochs=1).fit(User(), loader(), loader(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert again.result == callback.result


def test_progress_and_pick_are_told(caplog, monkeypatch):
    monkeypatch.setattr(search_messages, "Pace", lambda: Pace(seconds=0.0))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(supernet(name="net", selection=Selection(cost=Parameters(), recalibration_batches=0)))
    told = [record.getMessage() for record in caplog.records if "NASSupernet" in record.getMessage()]
    assert [text.split(",")[0] for text in told[:3]] == [
        f"NASSupernet 'net': {done} of at most 64 architectures evaluated" for done in (1, 2, 3)
    ]
    assert "3 architectures evaluated, the whole space; the pick has val/accuracy" in told[3]
    assert "(the network as it was: val/accuracy" in told[3]
    assert told[3].count("(Parameters)") == 2
    assert "net.0:width=" in told[3]


class Unvalidated(User):
    validation_step = LightningModule.validation_step


def untouched(module):
    return not any("_candidates" in name for name in module.state_dict()) and "forward" not in vars(module.net[0])


def test_what_no_search_could_use_is_refused_before_training():
    for module, loaders in ((User(), (loader(),)), (Unvalidated(), (loader(), loader()))):
        with pytest.raises(ValueError, match=r"'val/accuracy', but this fit validates nothing.*search_at='call'"):
            quiet(supernet(), max_epochs=1).fit(module, *loaders)
        assert untouched(module)
    with pytest.raises(ValueError, match="one training loader, got a list"):
        quiet(supernet(), max_epochs=1).fit(User(), [loader(), loader()], loader())
    with pytest.raises(ValueError, match="ddp_spawn"):
        check_before_fit(quiet(strategy="ddp_spawn"), Selection())
    with pytest.raises(ValueError, match="search_at must be"):
        supernet(search_at="end")
    quiet(supernet(search_at="call"), max_epochs=1).fit(Unvalidated(), loader())


class Silent(User):
    """Logs nothing before the first step, as many do."""

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("kind", "sanity", "steps"), [(User, 1, 0), (User, 0, 4), (Silent, 1, 4)], ids=["before", "unchecked", "silent"]
)
def test_a_metric_that_is_not_logged_is_told_before_the_first_step_if_validation_logs_then(kind, sanity, steps):
    for selection in (Selection(monitor="val/f1"), Selection(measures={"f1": LoggedMetric(monitor="val/f1")})):
        trainer = quiet(supernet(selection=selection), max_epochs=3, num_sanity_val_steps=sanity)
        with pytest.raises(ValueError, match=r"'val/f1', but the module logs .*'val/accuracy'"):
            trainer.fit(kind(), loader(), loader())
        assert trainer.global_step == steps


def test_a_bound_that_excludes_the_whole_space_is_told_before_the_first_step():
    for selection in (
        Selection(cost=Parameters(), max_cost=23),
        Selection(measures={"size": NetworkCost(cost=Parameters(), bound=23)}),
    ):
        trainer = quiet(supernet(selection=selection), max_epochs=3)
        with pytest.raises(ValueError, match=r"within Parameters at most 23: the cheapest has 24 \(net.0:width=2\)"):
            trainer.fit(User(), loader(), loader())
        assert trainer.global_step == 0


def test_a_strategy_of_one_objective_refuses_two_before_the_first_step():
    trainer = quiet(supernet(selection=Selection(objectives=("score", "cost"))), max_epochs=3)
    with pytest.raises(ValueError, match="Evolution ranks by one score, got 2 objectives"):
        trainer.fit(User(), loader(), loader())
    assert trainer.global_step == 0


def test_several_measures_are_found_bounded_and_make_the_front():
    selection = Selection(
        measures={
            "size": NetworkCost(cost=Parameters(), bound=80),
            "loss": LoggedMetric(monitor="val/loss", mode="min"),
        },
        objectives=("loss", "size"),
        recalibration_batches=2,
    )
    callback = supernet(strategy=RandomSearch(), selection=selection)
    module, trainer = fit(callback, module=Lossy())
    assert float(trainer.callback_metrics["nas/size"]) == callback.result.pick.values["size"]
    found = {entry.values["size"]: entry for entry in callback.result.evaluations}
    assert sorted(found) == [24, 46]  # 90 is beyond the bound
    assert callback.result.pick == min(found.values(), key=lambda entry: entry.values["loss"])
    (tested,) = trainer.test(module, loader(), verbose=False)
    assert tested["val/loss"] == pytest.approx(callback.result.pick.values["loss"])
    small, large = found[24], found[46]
    beaten = small.values["loss"] <= large.values["loss"]
    assert callback.result.pareto == ((small,) if beaten else (small, large))


class Lossy(User):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))


class Deep(User):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 2))


def test_an_option_counts_in_the_steps_in_which_it_matters():
    space = {
        "depth": ElasticDepth(targets=Targets(include=["net.1"])),
        "mix": OperationChoice(targets=Targets(include=["net.1.1"]), candidates={"skip": nn.Identity}),
    }
    callback = supernet(space=space, search_at="call")
    fit(callback, module=Deep(), max_epochs=3)
    depth, mix = callback.counts["net.1:depth"], callback.counts["net.1.1:operation"]
    assert sum(depth.values()) == 12
    assert sum(mix.values()) == depth["2"] > 0 < depth["1"]


def test_a_zero_cost_score_chooses_what_is_evaluated():
    space = {"width": ElasticWidth(targets=Targets(include=["net.0"]), fractions=[0.125, 0.25, 0.5, 0.75, 1.0])}
    screening = Screening(score=SynFlow(), candidates=3)
    callback = supernet(space=space, selection=Selection(screening=screening, recalibration_batches=0))
    fit(callback)
    widths = [entry.architecture["net.0:width"] for entry in callback.result.evaluations]
    # The own and the cheapest network first, and of the other three the one through which most flows: the widest.
    assert widths == [4, 0, 3]


def test_a_score_of_the_users_own_leaves_no_other_metric_to_compare():
    callback = supernet(search_at="call", selection=Selection(measures={"f1": LoggedMetric(monitor="val/f1")}))
    module, trainer = fit(callback)
    with pytest.raises(ValueError, match="which alone logs 'f1' of selection"):
        callback.search(trainer, module, score=lambda module: 0.0)


def test_what_is_tested_after_the_fit_is_the_pick_whatever_checkpoint_its_weights_come_from(tmp_path):
    # One epoch: the weights of the checkpoint are those of the search, but for the statistics of all paths.
    callback, saver = supernet(), ModelCheckpoint(tmp_path, filename="best")
    module, trainer = fit(callback, saver, enable_checkpointing=True)
    (tested,) = trainer.test(module, loader(), ckpt_path=tmp_path / "best.ckpt", verbose=False, weights_only=True)
    assert tested["val/accuracy"] == pytest.approx(callback.result.pick.score)


def test_the_pick_is_kept_beside_the_checkpoints_of_the_fit_and_over_no_other_file(tmp_path):
    def files():
        return {path.name for path in tmp_path.glob("nas*.ckpt")}

    (tmp_path / "nas_pick.ckpt").write_bytes(b"another fit's")
    callback = supernet()
    module, _ = fit(callback, ModelCheckpoint(tmp_path), enable_checkpointing=True)
    assert files() == {"nas_pick.ckpt", "nas_pick-v1.ckpt"}
    found = SearchFindings.from_dict(json.loads((tmp_path / "nas_pick-v1.json").read_text()))
    assert found.pick.values == callback.result.pick.values
    assert len(found.evaluations) == len(callback.result.evaluations) == found.num_architectures == 3
    assert "<svg" in (tmp_path / "nas_pick-v1.svg").read_text()
    fresh, loaded = User(), supernet()
    quiet(loaded).test(fresh, loader(), ckpt_path=tmp_path / "nas_pick-v1.ckpt", verbose=False, weights_only=True)
    x = torch.randn(5, 6)
    assert torch.equal(loaded.extract(fresh).eval()(x), callback.extract(module).eval()(x))
    fit(supernet(name="net"), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    fit(supernet(), ModelCheckpoint(tmp_path), fast_dev_run=True, enable_checkpointing=True)
    assert files() == {"nas_pick.ckpt", "nas_pick-v1.ckpt", "nas_net_pick.ckpt"}


def test_a_search_of_parts_of_weights_is_refused_before_the_fit(monkeypatch):
    monkeypatch.setattr(fit_end, "strategy_kind", lambda _: StrategyKind.SHARDED)
    with pytest.raises(ValueError, match="holds a part of every weight; use DDPStrategy, or set search_at='call'"):
        fit_end.check_before_fit(quiet(), Selection())
