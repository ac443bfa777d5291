import copy
import textwrap

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import NASSupernet, Targets
from lightning_optim.callbacks.nas.checks import prepare_strategy
from lightning_optim.cost import Parameters, count_parameters
from lightning_optim.errors import ArtefactError, TargetError
from lightning_optim.nas import ElasticWidth, OperationChoice, Selection
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.search import RandomSearch
from support import quiet, run_script


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2)
    )


class User(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.example_input_array = torch.zeros(4, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean(), sync_dist=True)
        self.log("val/loss", F.cross_entropy(logits, batch[1]), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


class Plain(User):
    """Steps an optimizer of torch's own, which the trainer does not count."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Late(User):
    """Builds its network only when the trainer asks for it."""

    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = network()


class Manual(User):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


def loader(shuffle=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16, shuffle=shuffle)


def space():
    return {
        "mix": OperationChoice(targets=Targets(include=["net.3"]), candidates={"skip": nn.Identity}),
        "width": ElasticWidth(targets=Targets(include=["net.0", "net.3.0"]), fractions=[0.5, 1.0]),
    }


def searcher(**settings):
    """A supernet that searches when it is called."""
    plain = {"selection": Selection(evaluations=6, recalibration_batches=2), "search_at": "call"}
    return NASSupernet(**{"space": space()} | plain | settings)


def trainer(*callbacks, **settings):
    return quiet(*callbacks, **{"max_epochs": 2} | settings)


def fit(module, callback, **settings):
    made = trainer(callback, **settings)
    made.fit(module, loader(), loader())
    return made


@pytest.fixture(scope="module")
def fitted():
    module, callback = User(), searcher()
    return module, callback, fit(module, callback)


def weights(module):
    return torch.cat([tensor.detach().flatten().double() for tensor in module.state_dict().values()])


def test_each_step_trains_a_path_and_the_counts_say_which(fitted):
    _, callback, made = fitted
    assert list(callback.counts) == ["net.3:operation", "net.0:width"]  # the residual-free skip ties both widths
    assert all(sum(options.values()) == made.global_step == 8 for options in callback.counts.values())
    drawn = [callback.supernet.sample(0, step)["net.3:operation"] for step in range(8)]
    assert callback.counts["net.3:operation"] == {"own": drawn.count(0), "skip": drawn.count(1)}


def test_a_batch_is_a_step_where_the_trainer_counts_no_optimizer_steps(fitted):
    callback = searcher()
    assert fit(Plain(), callback).global_step == 0
    assert callback.counts == fitted[1].counts


def test_search_keeps_the_bound_and_the_pick_is_extracted_bit_for_bit():
    module = User()
    selection = Selection(evaluations=6, recalibration_batches=2, max_cost=100)
    callback = searcher(selection=selection)
    made = fit(module, callback)
    result = callback.search(made, module)
    assert all(entry.cost <= 100 for entry in result.evaluations)
    assert len(result.evaluations) == 3  # skip at both widths, and the own operation at half
    subnet = callback.extract(module).eval()
    x = torch.randn(5, 6)
    assert torch.equal(subnet(x), module.eval()(x))
    assert not any("_candidates" in key for key in subnet.state_dict())
    checked = trainer().validate(subnet, loader(), verbose=False)[0]["val/accuracy"]
    assert checked == pytest.approx(result.pick.score)
    trainer(max_epochs=1).fit(subnet, loader(), loader())


def test_search_keeps_a_bound_on_parameters():
    # Layers 6 -> 8, 8 -> 8, 8 -> 2 with a norm: 56 + 16 + 72 + 18 = 162; of width 4: 28 + 8 + 20 + 10 = 66; skip is
    # 90 and 46.
    module = User()
    callback = searcher(selection=Selection(cost=Parameters(), max_cost=80, recalibration_batches=0))
    result = callback.search(fit(module, callback), module)
    assert sorted(entry.cost for entry in result.evaluations) == [46, 66]
    for entry in result.evaluations:
        assert count_parameters(callback.extract(module, entry.architecture)) == entry.cost
    callback.selection = Selection(cost=Parameters(), max_cost=45, recalibration_batches=0)
    with pytest.raises(ValueError, match="Parameters at most 45, the cheapest has 46"):
        callback.search(trainer(callback), module, loader())


def test_search_repeats_itself_and_a_score_of_the_users_own_is_taken(fitted):
    module, _, _ = fitted
    module, callback = copy.deepcopy(module), searcher()
    made = trainer(callback)
    results = [callback.search(made, module, loader(), loader(shuffle=True)).evaluations for _ in range(2)]
    assert results[0] == results[1]
    score = callback.search(made, module, calibration=loader(), score=lambda model: -float(model.net[0].weight.sum()))
    assert {entry.score for entry in score.evaluations} == {-float(module.net[0].weight.sum())}


class Reorders(Callback):
    """Turns the trainer's callbacks round, or leaves them."""

    def __init__(self, *, is_reversed):
        self.is_reversed = is_reversed

    def setup(self, trainer, pl_module, stage):
        order = sorted(trainer.callbacks, key=lambda entry: type(entry).__name__, reverse=self.is_reversed)
        trainer.callbacks = order


@pytest.mark.parametrize("is_reversed", [False, True])
def test_validation_runs_the_architecture_under_evaluation_whatever_the_order_of_callbacks(is_reversed):
    module = User()
    callback = searcher(selection=Selection(monitor="val/loss", mode="min", evaluations=4, recalibration_batches=0))
    made = trainer(callback, Reorders(is_reversed=is_reversed))
    made.fit(module, loader(), loader())
    result = callback.search(made, module)
    assert len({entry.score for entry in result.evaluations}) == 4
    for entry in result.evaluations:
        subnet = callback.extract(module, entry.architecture)
        assert entry.score == trainer().validate(subnet, loader(), verbose=False)[0]["val/loss"]
    made.validate(module, loader(), verbose=False)
    assert float(made.callback_metrics["val/loss"]) == result.pick.score


def test_another_instance_of_the_same_name_does_not_change_the_path_of_a_search():
    module, callback, other = User(), searcher(), searcher()
    made = fit(module, callback)
    expected = callback.search(made, module, loader(), loader())
    assert other.search(made, module, loader(), loader()) == expected
    assert callback in made.callbacks


def test_a_search_that_was_killed_continues_from_its_file(fitted, tmp_path):
    module, path = copy.deepcopy(fitted[0]), tmp_path / "search.json"
    scored = []

    def score(model):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(model)
        return float(model(torch.ones(4, 6)).sum())

    whole = searcher().search(trainer(), module, calibration=loader(), score=lambda m: float(m(torch.ones(4, 6)).sum()))
    killed = searcher()
    with pytest.raises(KeyboardInterrupt):
        killed.search(trainer(), module, calibration=loader(), score=score, path=path)
    assert killed.result is None
    assert killed.eval_architecture == killed.supernet.default

    rest = []

    def counted(model):
        rest.append(model)
        return float(model(torch.ones(4, 6)).sum())

    resumed = searcher().search(trainer(), module, calibration=loader(), score=counted, path=path)
    assert resumed == whole
    assert len(rest) == len(whole.evaluations) - 2
    assert searcher().search(trainer(), module, calibration=loader(), score=counted, path=path) == whole
    assert len(rest) == len(whole.evaluations) - 2


def test_a_file_of_another_search_is_refused(fitted, tmp_path):
    module, path = copy.deepcopy(fitted[0]), tmp_path / "search.json"

    def search(module=module, **settings):
        searcher(**settings).search(trainer(), module, calibration=loader(), score=lambda _: 1.0, path=path)

    search()
    for differs, settings in {
        "seed": {"seed": 1},
        "strategy": {"strategy": RandomSearch()},
        "selection": {"selection": Selection(evaluations=6, recalibration_batches=2, max_cost=200)},
        "weights": {"module": User()},
    }.items():
        with pytest.raises(ArtefactError, match=f"differs in {differs}; pass another path"):
            search(**settings)
    with pytest.raises(ArtefactError, match="differs in space, weights"):
        search(module=User(), space={"mix": space()["mix"]})
    with pytest.raises(ArtefactError, match=r"cannot continue: 4 architectures .* raise it"):
        search(selection=Selection(evaluations=3, recalibration_batches=2))
    path.write_text("{")
    with pytest.raises(ArtefactError, match="no file of a search"):
        search()


def test_the_pick_has_statistics_of_its_own():
    module, callback = User(), searcher()
    made = fit(module, callback)
    callback.search(made, module)
    net, batches = callback.extract(module).net, [batch[0] for batch in list(loader())[:2]]
    expected = torch.stack([net[0](batch).mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(net[1].running_mean, expected)


def test_checkpointing_and_early_stopping_do_not_see_the_search(tmp_path):
    module, callback = User(), searcher()
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss")
    stopping = EarlyStopping("val/loss", patience=9)
    made = trainer(callback, best, stopping, enable_checkpointing=True)
    made.fit(module, loader(), loader())
    before = sorted(tmp_path.iterdir()), best.best_model_score, stopping.best_score, stopping.wait_count
    callback.search(made, module)
    assert (sorted(tmp_path.iterdir()), best.best_model_score, stopping.best_score, stopping.wait_count) == before
    assert "SubnetEvaluator" not in [type(entry).__name__ for entry in made.callbacks]


class Configures(User):
    """Brings a callback of its own, for which the trainer makes a new list of callbacks."""

    def configure_callbacks(self):
        return [Reorders(is_reversed=False)]


def test_a_search_leaves_the_trainers_callbacks_as_they_were_where_the_module_brings_its_own():
    module, callback = Configures(), searcher()
    made = fit(module, callback)
    before = list(made.callbacks)
    callback.search(made, module)
    assert made.callbacks == before
    made.validate(module, loader(), verbose=False)
    assert "SubnetEvaluator" not in [type(entry).__name__ for entry in made.callbacks]


def test_resume_draws_the_same_paths_and_ends_bit_equal(tmp_path):
    module, callback = User(), searcher()
    fit(module, callback)
    half, first = User(), searcher()
    fit(half, first, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed, second = User(), searcher()
    made = trainer(second)
    made.fit(resumed, loader(), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(module))
    assert second.counts == callback.counts


def test_the_pick_survives_in_a_checkpoint_and_is_what_test_runs(tmp_path):
    module, callback = User(), searcher()
    made = fit(module, callback)
    result = callback.search(made, module)
    made.save_checkpoint(tmp_path / "searched.ckpt")
    fresh, loaded = User(), searcher()
    tested = trainer(loaded).test(
        fresh, loader(), ckpt_path=tmp_path / "searched.ckpt", verbose=False, weights_only=True
    )
    assert loaded.result == result
    assert tested[0]["val/accuracy"] == pytest.approx(result.pick.score)
    assert torch.equal(weights(loaded.extract(fresh)), weights(callback.extract(module)))


def test_validation_before_the_search_runs_the_users_own_network():
    plain, module, callback = User(), User(), searcher()
    made = trainer(callback)
    assert made.validate(module, loader(), verbose=False) == trainer().validate(plain, loader(), verbose=False)
    callback.supernet.activate(dict.fromkeys(callback.supernet.default, 0))
    assert made.validate(module, loader(), verbose=False) == trainer().validate(plain, loader(), verbose=False)


def test_accumulation_keeps_one_path_until_the_optimizer_steps():
    module, callback = User(), searcher()
    made = fit(module, callback, accumulate_grad_batches=2)
    assert made.global_step == 4
    drawn = [callback.supernet.sample(0, step)["net.0:width"] for step in range(4)]
    assert list(callback.counts["net.0:width"].values()) == [2 * drawn.count(0), 2 * drawn.count(1)]


@pytest.mark.parametrize("kind", [Late, Manual])
def test_networks_built_late_and_manual_optimization(kind):
    module, callback = kind(), searcher()
    before = weights(network())
    fit(module, callback)
    assert len(switchable_forwards(module)) > 0
    assert "configure_model" not in vars(module)
    subnet = callback.extract(module, callback.supernet.default)
    assert list(subnet.net.state_dict()) == list(network().state_dict())
    assert not torch.equal(weights(subnet.net), before)


def test_an_exception_leaves_a_usable_module_with_its_own_path():
    class Breaks(User):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise KeyError("broken")
            return super().training_step(batch, batch_idx)

    module, callback = Breaks(), searcher()
    with pytest.raises(KeyError, match="broken"):
        fit(module, callback)
    assert not {"training_step", "configure_model", "setup"} & set(vars(module))
    x = torch.randn(3, 6)
    subnet = callback.extract(module, callback.supernet.default)
    assert torch.equal(module.eval()(x), subnet.eval()(x))


def test_two_fits_with_one_instance_and_a_second_module():
    module, callback = User(), searcher()
    fit(module, callback)
    names = [name for name, _ in module.named_parameters()]
    fit(module, callback)
    assert [name for name, _ in module.named_parameters()] == names
    fit(User(), callback)
    assert all(sum(options.values()) == 24 for options in callback.counts.values())


def test_two_instances_share_a_module():
    entries = space()
    module, one, two = (
        User(),
        searcher(space={"m": entries["mix"]}),
        searcher(space={"w": entries["width"]}, name="two"),
    )
    made = trainer(one, two)
    made.fit(module, loader(), loader())
    assert one.state_key != two.state_key
    subnet, x = two.extract(module, {"net.0:width": 0}), torch.randn(3, 6)
    assert subnet.net[0].weight.shape == (4, 6)
    two.supernet.activate({"net.0:width": 0})
    assert torch.equal(module.eval()(x), subnet.eval()(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {"w": ElasticWidth(targets=Targets(include=["net.9"]))}}, "matches no module"),
        ({"network": "nett"}, "no module is named 'nett'"),
    ],
)
def test_a_wrong_target_raises_before_anything_has_changed(settings, message):
    module = User()
    before = {name: sorted(vars(child)) for name, child in module.net.named_modules()}
    with pytest.raises(TargetError, match=message):
        fit(module, searcher(**settings))
    assert {name: sorted(vars(child)) for name, child in module.net.named_modules()} == before


def test_mistakes_are_refused():
    module, callback = User(), searcher(selection=Selection(monitor="val/f1", recalibration_batches=0))
    with pytest.raises(RuntimeError, match=r"run trainer\.fit"):
        _ = callback.supernet
    with pytest.raises(ValueError, match="pass dataloaders"):
        callback.search(trainer(callback), module)
    with pytest.raises(ValueError, match="no 'val/f1'"):
        callback.search(trainer(callback), module, loader())
    with pytest.raises(ValueError, match="call search first"):
        callback.extract(module)
    module = User()
    module.example_input_array = None
    with pytest.raises(ValueError, match="example_input_array"):
        searcher().convert(module)
    with pytest.raises(ValueError, match="at least one tensor"):
        searcher(example=[1, 2]).convert(module)
    with pytest.raises(TypeError, match="pass calibration"):
        searcher().search(trainer(), User(), loader(), calibration=[loader(), loader()])
    with pytest.raises(ValueError, match="no entry"):
        NASSupernet(space={})
    with pytest.raises(TypeError, match=r"space\['a'\]"):
        NASSupernet(space={"a": nn.Identity()})
    with pytest.raises(TypeError, match="strategy must be"):
        searcher(strategy="evolution")


def test_a_compiled_module_is_refused():
    module = User()
    module.net = torch.compile(module.net)
    with pytest.raises(ValueError, match="compile the extracted pick"):
        fit(module, searcher())


def test_ddp_must_look_for_unused_parameters_and_may_not_hold_a_static_graph():
    for strategy in (DDPStrategy(), DDPStrategy(find_unused_parameters=True)):
        made = trainer(strategy=strategy)
        prepare_strategy(made)
        assert made.strategy._ddp_kwargs["find_unused_parameters"] is True
    with pytest.warns(UserWarning, match="find_unused_parameters is set to True"):
        prepare_strategy(trainer(strategy=DDPStrategy(find_unused_parameters=False)))
    with pytest.raises(ValueError, match="static_graph=False"):
        prepare_strategy(trainer(strategy=DDPStrategy(static_graph=True)))


_SCRIPT = """
    import hashlib, importlib.util, pathlib, sys
    import torch
    from torch import distributed
    spec = importlib.util.spec_from_file_location("cases", {path!r})
    cases = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = cases
    spec.loader.exec_module(cases)
    from lightning_optim.errors import RankMismatchError

    module, callback = cases.User(), cases.searcher()
    made = cases.trainer(callback, strategy="ddp", devices=2)
    made.fit(module, cases.loader(shuffle=True), cases.loader())
    result = callback.search(made, module)
    digest = hashlib.sha256(cases.weights(module).numpy().tobytes()).hexdigest()
    everyone = [None, None]
    distributed.all_gather_object(everyone, (digest, result.state_dict(), callback.counts))
    assert everyone[0] == everyone[1], everyone
    odd = cases.searcher(seed=made.global_rank)
    try:
        cases.trainer(odd, strategy="ddp", devices=2).fit(cases.User(), cases.loader())
    except RankMismatchError as error:
        assert "seed" in str(error)
        print("agreed", flush=True)
    distributed.destroy_process_group()
"""


def test_two_ranks_end_equal_and_pick_the_same_and_a_mismatch_is_caught(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(textwrap.dedent(_SCRIPT.format(path=__file__)))
    assert "agreed" in run_script(script, cwd=tmp_path).stdout
