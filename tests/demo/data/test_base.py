import warnings
import zlib

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from typing_extensions import override

from lightning_optim.demo import Classifier, Digits
from support import quiet


class Recorder(Callback):
    """Keeps a checksum of every training batch."""

    def __init__(self):
        self.seen = {}

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.current_epoch, batch_idx] = zlib.crc32(batch[0].numpy().tobytes())


def train(folder, *, epochs, resume=None, every_step=False):
    torch.manual_seed(0)
    recorder = Recorder()
    every = {"every_n_train_steps": 1} if every_step else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    saver = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **every)
    trainer = quiet(recorder, saver, max_epochs=epochs, limit_val_batches=1, enable_checkpointing=True)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), warmup=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=Digits(resolution=8, batch_size=300), ckpt_path=resume)
    return recorder.seen, model.state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder, epochs=4, every_step=True)


def test_every_epoch_has_its_own_batches(uninterrupted):
    _, seen, _ = uninterrupted
    assert len(seen) == 16
    assert len(set(seen.values())) == 16


# Steps 4 and 8 are the last of an epoch, 5 the first of one, 10 lies in the middle.
@pytest.mark.parametrize("step", [4, 5, 8, 10])
def test_a_resumed_run_sees_the_batches_and_reaches_the_weights_of_an_uninterrupted_one(uninterrupted, tmp_path, step):
    folder, seen, weights = uninterrupted
    (checkpoint,) = folder.glob(f"*-step={step}.ckpt")
    resumed, resumed_weights = train(tmp_path, epochs=4, resume=checkpoint)
    assert resumed == {place: seen[place] for place in list(seen)[step:]}
    assert all(torch.equal(resumed_weights[name], weight) for name, weight in weights.items())


def test_an_epoch_end_checkpoint_resumes_the_same(uninterrupted, tmp_path):
    _, seen, weights = uninterrupted
    train(tmp_path / "whole", epochs=4)
    (checkpoint,) = (tmp_path / "whole").glob("epoch=1-*.ckpt")
    resumed, resumed_weights = train(tmp_path / "resumed", epochs=4, resume=checkpoint)
    assert resumed == {place: seen[place] for place in list(seen)[8:]}
    assert all(torch.equal(resumed_weights[name], weight) for name, weight in weights.items())
