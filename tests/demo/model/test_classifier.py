import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_optim.demo import Augmentation, Classifier, Digits, ResidualNet
from support import quiet


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1, 8, 8), 0)] * 3)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, data = (
        Classifier(ResidualNet(widths=(8, 16))),
        Digits(resolution=8, batch_size=60, augmentation=Augmentation(max_shift=1)),
    )
    trainer = quiet(max_epochs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
    return model, data, trainer


def test_it_learns_the_digits(trained):
    model, data, _ = trained
    logged = quiet().test(model, datamodule=data, verbose=False)[0]
    images, labels = data.splits[2].images, data.splits[2].labels
    with torch.no_grad():
        expected = (model.eval()(images).argmax(1) == labels).float().mean().item()
    assert logged["test/accuracy"] == pytest.approx(expected)
    assert expected > 0.85


def test_it_logs_under_the_documented_names(trained):
    _, _, trainer = trained
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(trainer.callback_metrics)


def test_the_learning_rate_ends_near_zero(trained):
    _, _, trainer = trained
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-3 * 4e-3


def test_its_checkpoint_loads_safely_and_holds_the_network_alone(trained, tmp_path):
    model, _, trainer = trained
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert all(name.startswith("net.") for name in checkpoint["state_dict"])
    assert checkpoint["hyper_parameters"]["lr"] == 4e-3
    again = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", network=ResidualNet(widths=(8, 16)))
    assert torch.equal(again.net.head.weight, model.net.head.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_fit_of_one_step_works_and_one_without_end_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    quiet(max_steps=1).fit(Classifier(net), datamodule=Digits(resolution=8))
    with pytest.raises(ValueError, match="a fit with an end"):
        quiet(max_epochs=-1).fit(Classifier(net), datamodule=Digits(resolution=8))
    with pytest.raises(ValueError, match="data with a length"):
        quiet(max_epochs=2).fit(Classifier(net), DataLoader(Stream()))


def test_settings_out_of_range_are_refused():
    for wrong in ({"lr": 0.0}, {"warmup": 1.0}, {"memory_format": "channels_first"}):
        with pytest.raises(ValueError, match="must be"):
            Classifier(nn.Linear(1, 1), **wrong)
