"""Report of a run: one row per stage, and how the deployed model compares."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

from lightning_optim.cost.turns import Spread, Timing, speedup
from lightning_optim.errors import ArtefactError
from lightning_optim.report.loss_curves import LossCurves
from lightning_optim.report.search_findings import SearchFindings

MEASURED = (
    "Accuracies are top-1, of the exported file run in ONNX Runtime over the whole split.",
    "Bytes are those of the stage's own ONNX file; exporter metadata is stripped from every file, the base included.",
    "Latency is the CPU time of the calling thread for a call in ONNX Runtime with one intra-op thread: the median "
    "over the moments of measuring, with the quartiles beside it. The stages take turns within one process. Wall time "
    "stands beside it: it holds the waiting for other work too, which lengthens long calls by more than short ones.",
    "A ratio of latencies is taken moment by moment. It is not decided where half of the moments or more lie further "
    "than a tenth from the median, or where other work shared the processor's core all the time.",
    "MACs are multiply-accumulates of convolutions, linears and matrix products for one sample (FLOPs are twice that).",
    "Agreement is the share of test samples for which the trained model and its exported file name the same class, for "
    "the output in which they differ most; an output without classes has none.",
)

_PACKAGES = ("lightning-optim", "torch", "lightning", "torchmetrics", "hydra-core", "onnx", "onnxscript", "onnxruntime")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """Figures of one stage's artefact.

    Args:
        name: The stage.
        test_accuracy: Top-1, in ``[0, 1]``.
        validation_accuracy: Top-1, in ``[0, 1]``.
        parameters: Number of weights.
        macs: Multiply-accumulates of one sample.
        bytes: Size of the exported file.
        latency_ms_b1: Median CPU time of a batch of 1, in milliseconds; ``None`` if not measured.
        latency_ms_b32: Median CPU time of a batch of 32, in milliseconds; ``None`` if not measured.
        agreement: Share of samples on which the trained and the exported model name the same class, in ``[0, 1]``;
            ``None`` if not measured, or if no output has classes.
        relative_error: Largest relative error of any output of the exported model; ``None`` if not measured.
        integer_share: Share of the file's multiply-accumulates that runs in integers, in ``[0, 1]``; ``None`` for a
            file in floating point.
        seconds: Wall time that the stage took.
        weights_sha256: Checksum of the weights.
        file: The exported file, relative to the run's folder.

    Raises:
        ValueError: If an accuracy, agreement or share is no fraction.
    """

    name: str
    test_accuracy: float
    validation_accuracy: float
    parameters: int
    macs: int
    bytes: int
    latency_ms_b1: float | None = None
    latency_ms_b32: float | None = None
    agreement: float | None = None
    relative_error: float | None = None
    integer_share: float | None = None
    seconds: float = 0.0
    weights_sha256: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        for key in ("test_accuracy", "validation_accuracy", "agreement", "integer_share"):
            value = getattr(self, key)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{key} of stage {self.name!r} is a fraction in [0, 1], got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as primitives."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> StageResult:
        """Return the figures that ``to_dict`` turned into primitives.

        Raises:
            ArtefactError: If a field is missing, unknown or out of range.
        """
        try:
            return StageResult(**values)
        except (TypeError, ValueError) as error:
            raise ArtefactError(f"no stage of a report: {error}") from error


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Report of a run: all stages in order, the base first.

    Args:
        stages: At least one.
        parity: Deployed model against trained one: ``top1_agreement`` in ``[0, 1]``, ``relative_error`` or both, and
            what else was compared.
        versions: Package -> version.
        title: Headline of the page.
        notes: How the figures were taken.
        curves: Stage -> validation accuracy after each of its epochs, in ``[0, 1]``.
        losses: Stage -> the losses that it was trained with.
        searches: Search stage -> what it has found. Such a stage need not be one of ``stages``: its pick is compared
            once it is trained.
        artefacts: File, relative to the run's folder -> what it is.
        timings: Stage -> batch size -> times of a call, which were taken side by side.
        best: Aim (accuracy, speed, size) -> the stage whose file serves it best on this machine.
        model: Stage whose file is deployed; the last one if empty.
        remarks: What to know before a file is deployed, such as where a later stage lost to an earlier one.

    Raises:
        ValueError: If there is no stage or no parity, or a name is no stage's.
    """

    stages: Sequence[StageResult]
    parity: Mapping[str, float]
    versions: Mapping[str, str] = field(default_factory=dict)
    title: str = "Compression report"
    notes: Sequence[str] = MEASURED
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    losses: Mapping[str, LossCurves] = field(default_factory=dict)
    searches: Mapping[str, SearchFindings] = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, Mapping[int, Timing]] = field(default_factory=dict)
    best: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    remarks: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "remarks", tuple(self.remarks))
        if not self.stages:
            raise ValueError("a report needs at least one stage, got none")
        if not {"top1_agreement", "relative_error"} & self.parity.keys():
            raise ValueError(f"parity needs 'top1_agreement' or 'relative_error', got {sorted(self.parity)}")
        names = [stage.name for stage in self.stages]
        unknown = {*self.timings, *self.losses, *self.best.values(), *([self.model] if self.model else [])} - set(names)
        if unknown:
            raise ValueError(f"the stages are {names}, and {sorted(unknown)[0]!r} is none of them")

    @property
    def base(self) -> StageResult:
        """The first stage, which the others are compared with."""
        return self.stages[0]

    @property
    def deployed(self) -> StageResult:
        """The stage whose file is deployed."""
        return self.stage(self.model) if self.model else self.stages[-1]

    def stage(self, name: str) -> StageResult:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def speedup(self, stage: StageResult, batch: int) -> Spread | None:
        """How many times faster a call is than the base's, in CPU time; ``None`` for the base and if not measured."""
        measured = self.base.name in self.timings and stage.name in self.timings
        if stage == self.base or not measured or batch not in self.timings[stage.name]:
            return None
        return speedup(self.timings[self.base.name][batch], self.timings[stage.name][batch])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as primitives, for JSON."""
        return {
            "title": self.title,
            "stages": [stage.to_dict() for stage in self.stages],
            "parity": dict(self.parity),
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "losses": {name: curves.to_dict() for name, curves in self.losses.items()},
            "searches": {name: findings.to_dict() for name, findings in self.searches.items()},
            "artefacts": dict(self.artefacts),
            "best": dict(self.best),
            "model": self.deployed.name,
            "remarks": list(self.remarks),
            "speedups": {stage.name: self._speedups(stage) for stage in self.stages},
            "timings": {
                name: {str(batch): asdict(timing) for batch, timing in batches.items()}
                for name, batches in self.timings.items()
            },
        }

    def _speedups(self, stage: StageResult) -> dict[str, Any]:
        spreads = {batch: self.speedup(stage, batch) for batch in self.timings.get(stage.name, ())}
        return {
            str(batch): {"low": each.low, "median": each.median, "high": each.high, "is_decided": each.is_decided}
            for batch, each in spreads.items()
            if each is not None
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Report:
        """Return the report that ``to_dict`` turned into primitives.

        Raises:
            ArtefactError: If a field is missing or unknown.
        """
        try:
            stages = [StageResult.from_dict(stage) for stage in values["stages"]]
            timings = {
                name: {int(batch): _timing(timing) for batch, timing in batches.items()}
                for name, batches in values.get("timings", {}).items()
            }
            given = {name: value for name, value in values.items() if name != "speedups"}  # follow from the times
            losses = {name: LossCurves.from_dict(curves) for name, curves in values.get("losses", {}).items()}
            found = {name: SearchFindings.from_dict(each) for name, each in values.get("searches", {}).items()}
            return Report(**{**given, "stages": stages, "timings": timings, "losses": losses, "searches": found})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtefactError):
                raise
            known = [item.name for item in fields(Report)]
            raise ArtefactError(f"no report: {error}; a report holds {known}") from error


def _timing(values: Mapping[str, Any]) -> Timing:
    return Timing(**{**values, "cpu": tuple(values["cpu"]), "wall": tuple(values["wall"])})


def read_report(path: str | Path) -> Report:
    """Read a ``report.json``.

    Raises:
        ArtefactError: If the file is missing or no report.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} is no report that can be read: {error}") from error
    if not isinstance(values, dict):
        raise ArtefactError(f"{path} is no report: it holds a {type(values).__name__}")
    return Report.from_dict(values)


def collect_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that shape the figures, as far as installed.

    Example:
        >>> "torch" in collect_versions()
        True
    """
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
