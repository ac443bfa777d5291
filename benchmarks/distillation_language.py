"""Do attention and relations of tokens help a small sentence encoder, beside the last layer alone?

    python -m benchmarks.distillation_language [--epochs 6] [--seeds 0] [--quick] [--out FILE]

all-MiniLM-L6-v2 teaches three layers, which begin as every second one of its six (``initialize_from``), on 20,000
glosses of WordNet without labels, no two alike. Word embeddings are the teacher's, and stay. Both arms have five tries
of a quarter of an epoch, three learning rates and then two other weights at the best of them, judged by Spearman's
correlation on 1,000 other glosses, and are then trained in full from the start:

- hint: the last layer's output approaches that of the teacher's last layer.
- relations: the same, attention of all three layers and relations of tokens in the last layer's output.

Sentences are the mean of the last layer's tokens, at unit length. ``spearman`` is the correlation of the cosines of
all pairs among 5,000 further glosses with those that the teacher gives, ``recall`` the share of the ten nearest glosses
of each that are the teacher's. ``start`` is the student before it is trained; minutes are those of the whole fit.
``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from benchmarks.common import add_study, parser_for, quiet, quiet_trainer
from benchmarks.pretrained_tasks import glosses, minilm_folder
from benchmarks.study import Kept
from lightning_optim import DistillationTeacher
from lightning_optim.distillation import AttentionTransfer, Hint, Loss, MiniLMRelations

EPOCHS, BATCH, LONGEST, NEAREST = 6, 32, 48, 10
LAYERS = {"student": "net.encoder.layer.2", "teacher": "encoder.layer.5"}
START = {"net.embeddings": "embeddings", "net.encoder.layer.*": "encoder.layer.*"}
LOSSES: Mapping[str, Loss] = {
    "hint": Hint(**LAYERS),
    "attention": AttentionTransfer(
        student="net.encoder.layer.*.attention.self",
        teacher=[f"encoder.layer.{layer}.attention.self" for layer in (1, 3, 5)],
        mask="attention_mask",
    ),
    "relations": MiniLMRelations(**LAYERS, relation_heads=12, mask="attention_mask"),
}
RATES = (2e-3, 4e-3, 8e-3)
WEIGHTS: Mapping[str, Sequence[Mapping[str, float]]] = {
    "hint": ({"hint": 10.0}, {"hint": 1.0}, {"hint": 100.0}),
    "relations": (
        {"hint": 10.0, "attention": 0.1, "relations": 0.1},
        {"hint": 10.0, "attention": 0.5, "relations": 0.5},
        {"hint": 10.0, "attention": 0.1, "relations": 1.0},
    ),
}
Figures = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Try:
    """One setting of an arm: the learning rate, and the weight of each loss."""

    lr: float
    weights: Mapping[str, float]

    @property
    def key(self) -> str:
        """Name among the results."""
        return " ".join([f"lr={self.lr:g}", *(f"{name}={weight:g}" for name, weight in self.weights.items())])


@final
class Encoder(LightningModule):
    """A network of tokens that is taught by a teacher alone."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.net.embeddings.requires_grad_(False)

    @override
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        return 0.0 * self.net(**batch).last_hidden_state.mean()

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@final
class AlikeInLength(Sampler[list[int]]):
    """Batches of samples of about one length, in random order, anew in each epoch."""

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        self._lengths, self._random = torch.tensor(lengths), torch.Generator().manual_seed(seed)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        noisy = self._lengths + torch.rand(len(self._lengths), generator=self._random)
        batches = noisy.argsort().split(BATCH)
        return iter([batches[place].tolist() for place in torch.randperm(len(batches), generator=self._random)])

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / BATCH)


@final
class Study:
    """The teacher, the glosses, and fits of both arms.

    Args:
        kept: What is done.
        sizes: Numbers of glosses to train on, to choose by and to test on.
        epochs: Epochs of a fit.
    """

    def __init__(self, kept: Kept, sizes: tuple[int, int, int], epochs: int) -> None:
        from transformers import AutoModel, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.kept, self.epochs = kept, epochs
        self.teacher: nn.Module = AutoModel.from_pretrained(minilm_folder()).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        sentences = [*dict.fromkeys(glosses(2 * sum(sizes))[1])]
        self.train, self.validation, self.test = (
            sentences[sum(sizes[:part]) : sum(sizes[: part + 1])] for part in range(3)
        )
        self._cosines = {len(part): cosines(self.encode(self.teacher, part)) for part in (self.validation, self.test)}

    def student(self) -> nn.Module:
        """Three layers with weights of their own."""
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        config = BertConfig.from_pretrained(minilm_folder(), num_hidden_layers=3)
        net: nn.Module = BertModel(config)
        return net

    def fit(self, tried: Try, seed: int, share: float = 1.0) -> Figures:
        """Train for a share of the epochs, and compare with the teacher."""

        def measure() -> Figures:
            began = time.process_time()
            module = Encoder(self.student(), tried.lr)
            epochs = {"max_epochs": self.epochs} if share == 1.0 else {"max_epochs": 1, "limit_train_batches": share}
            torch.manual_seed(seed)
            distil = DistillationTeacher(
                teacher=self.teacher,
                losses={name: LOSSES[name] for name in tried.weights},
                weight=tried.weights,
                hard_weight=0.0,
                initialize_from=START,
            )
            quiet_trainer([distil], **epochs).fit(module, self._batches(seed))
            found = self.judge(module.net, self.test if share == 1.0 else self.validation)
            minutes = (time.process_time() - began) / 60
            print(f"{tried.key} seed {seed} share {share:g}: {found} in {minutes:.1f} CPU minutes", flush=True)
            return found | {"cpu_minutes": minutes}

        return dict(self.kept.once(f"{tried.key}/{seed}/{share:g}/{self.epochs}", measure))

    def start(self) -> Figures:
        """The student as it begins."""

        def measure() -> Figures:
            module = Encoder(self.student(), 0.0)  # at this rate, a step changes nothing
            distil = DistillationTeacher(
                teacher=self.teacher, losses=LOSSES["hint"], hard_weight=0.0, initialize_from=START
            )
            quiet_trainer([distil], max_epochs=1, limit_train_batches=1).fit(module, self._batches(0))
            return self.judge(module.net, self.test)

        return dict(self.kept.once("start", measure))

    def best(self, tries: Sequence[Try]) -> Try:
        """The best try after a short fit."""
        return max(tries, key=lambda tried: self.fit(tried, 0, 0.25)["spearman"])

    def judge(self, net: nn.Module, sentences: Sequence[str]) -> Figures:
        """Compare a student's similarities with the teacher's."""
        mine, theirs = cosines(self.encode(net, sentences)), self._cosines[len(sentences)]
        rows, columns = torch.triu_indices(len(mine), len(mine), 1)
        nearest = [(each - 2 * torch.eye(len(each))).topk(NEAREST).indices for each in (mine, theirs)]
        is_found = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2)
        return {
            "spearman": float(spearmanr(mine[rows, columns].numpy(), theirs[rows, columns].numpy()).statistic),
            "recall": float(is_found.float().mean()),
        }

    @torch.inference_mode()
    def encode(self, net: nn.Module, sentences: Sequence[str]) -> Tensor:
        """Sentences as vectors of unit length."""
        net.eval()
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        found = torch.empty(len(sentences), 384)
        for begin in range(0, len(order), BATCH):
            places = order[begin : begin + BATCH]
            batch = self._tokens([sentences[place] for place in places])
            hidden, mask = net(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found[places] = F.normalize((hidden * mask).sum(1) / mask.sum(1))
        return found

    def _tokens(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        tokens = self._tokenizer(
            list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def _batches(self, seed: int) -> DataLoader[Any]:
        lengths = [len(ids) for ids in self._tokenizer(self.train, truncation=True, max_length=LONGEST)["input_ids"]]
        batches = AlikeInLength(lengths, seed)
        return DataLoader(self.train, batch_sampler=batches, collate_fn=self._tokens)


def cosines(vectors: Tensor) -> Tensor:
    """Cosines of all pairs of unit vectors."""
    return vectors @ vectors.T


def rows_of(study: Study, seeds: Sequence[int]) -> dict[str, Figures]:
    """Figures of both arms."""
    rows: dict[str, Figures] = {"start": {"setting": "", "cpu_minutes": 0.0, **study.start()}}
    for arm, weights in WEIGHTS.items():
        rate = study.best([Try(lr=lr, weights=weights[0]) for lr in RATES]).lr
        tried = study.best([Try(lr=rate, weights=each) for each in weights])
        found = [study.fit(tried, seed) for seed in seeds]
        rows[arm] = {"setting": tried.key} | {name: statistics.mean(each[name] for each in found) for name in found[0]}
    return rows


def show(rows: Mapping[str, Figures]) -> None:
    """Print the table."""
    table = Table(title="Three layers of all-MiniLM-L6-v2, beside all six")
    for name in ("arm", "setting", "Spearman", "recall at 10", "CPU min"):
        table.add_column(name, justify="left" if name in ("arm", "setting") else "right")
    for arm, row in rows.items():
        figures = (f"{row['spearman']:.4f}", f"{row['recall']:.4f}", f"{row['cpu_minutes']:.1f}")
        table.add_row(arm, row["setting"], *figures)
    Console(width=120).print(table)


def measure_arms(seeds: Sequence[int], epochs: int, out: Path | None, *, quick: bool) -> Figures:
    """Train, print the table, and return the figures."""
    sizes = (1000, 200, 300) if quick else (20_000, 1000, 5000)
    rows = rows_of(Study(Kept(out, {"sizes": [*sizes], "epochs": epochs}), sizes, epochs), seeds)
    show(rows)
    arms = ("hint", "relations")
    found = {f"language_{arm}_{name}": round(rows[arm][name], 4) for arm in arms for name in ("spearman", "recall")}
    return {**found, "language_winner": max(arms, key=lambda arm: rows[arm]["spearman"])}


def measure(folder: Path | None, quick: bool) -> Figures:
    """Figures of both arms, kept in a folder if one is given."""
    out = None if folder is None else folder / "distillation_language.json"
    return measure_arms((0,), 1 if quick else EPOCHS, out, quick=quick)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of a whole fit")
    add_study(parser)
    parser.set_defaults(seeds=[0])
    options = parser.parse_args()
    quiet()
    found = measure_arms(options.seeds, options.epochs, options.out, quick=options.quick)
    print(json.dumps({"benchmark": "distillation_language", **found}))


if __name__ == "__main__":
    main()
