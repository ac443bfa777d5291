import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from lightning_optim import DistillationTeacher, NASSupernet, PruningScheduler, QATFakeQuant
from lightning_optim.callbacks.base import TechniqueCallback
from support import quiet


class Recorder(TechniqueCallback):
    def __init__(self, *, name=None):
        super().__init__(name=name)
        self.seen = []

    def prepare(self, trainer, pl_module, stage):
        self.seen.append(f"prepare {getattr(stage, 'value', stage)}")

    def release(self):
        self.seen.append("release")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).sum()

    def test_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


DATA = torch.ones(2, 1, 2)


def test_a_stage_begins_with_prepare_and_ends_with_release():
    recorder = Recorder()
    trainer = quiet(recorder, max_epochs=1)
    trainer.fit(Net(), DATA)
    trainer.test(Net(), DATA)
    assert recorder.seen == ["prepare fit", "release", "prepare test", "release"]


def test_an_exception_releases():
    class Stop(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stopped here")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="stopped here"):
        quiet(recorder, Stop(), max_epochs=1).fit(Net(), DATA)
    assert recorder.seen[:2] == ["prepare fit", "release"]


def test_two_without_a_name_are_refused_before_they_prepare():
    one, two = Recorder(), Recorder()
    with pytest.raises(ValueError, match=r"two Recorder have the name None.*give each a name of its own"):
        quiet(one, two, max_epochs=1).fit(Net(), DATA)
    assert "prepare fit" not in one.seen + two.seen


def test_two_with_names_are_told_apart():
    one, two = Recorder(name="one"), Recorder(name="two")
    quiet(one, two, max_epochs=1).fit(Net(), DATA)
    assert one.state_key == "Recorder{'name': 'one'}"
    assert two.state_key == "Recorder{'name': 'two'}"
    assert one.seen == two.seen == ["prepare fit", "release"]


def test_the_name_stands_in_the_key_of_a_metric():
    assert Recorder().metric("penalty", "value") == "penalty/value"
    assert Recorder(name="one").metric("penalty", "value") == "penalty/one/value"


def test_a_callback_must_say_how_it_is_released():
    class Careless(TechniqueCallback):
        def prepare(self, trainer, pl_module, stage): ...

    with pytest.raises(TypeError, match="release"):
        Careless(name=None)


def test_the_four_callbacks_are_of_this_kind_and_their_state_depends_on_the_name_alone():
    shells = (DistillationTeacher, NASSupernet, PruningScheduler, QATFakeQuant)
    assert all(issubclass(shell, TechniqueCallback) for shell in shells)
    assert QATFakeQuant(network="net").state_key == QATFakeQuant().state_key == "QATFakeQuant{'name': None}"
