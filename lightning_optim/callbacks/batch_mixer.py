"""Regularization by mixing: each training sample becomes a combination of two, and so does its label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.regularization.mixed_step import MixedStep
from lightning_optim.callbacks.trainer.clock import FitProgress, clock_of
from lightning_optim.callbacks.trainer.lightning_private import is_compiled
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.regularization.batch_mixing import BatchMixing, LabelMode
from lightning_optim.regularization.mixing.base import Mixing
from lightning_optim.schedule.factor import Factor
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import find_network
from lightning_optim.window import Window


@final
@checked
class BatchMixer(TechniqueCallback):
    """Mixing of batches: mixup, CutMix and label smoothing, in training alone, for any structure of a batch.

    With ``labels="mix_loss"`` the training step runs on the mixed samples with their own labels, then with those of
    their partners, and both losses are mixed: any loss and any kind of label will do. The network runs once; its output
    is played back in the second run. Metrics, logs and prints see the first run alone, and numbers and lists in
    attributes of modules stay as it left them. With ``labels="soft"`` the step runs once, and gets labels as
    probabilities, ``[B, C]``, as ``F.cross_entropy`` takes them.

    A batch is a tuple, a dictionary, a dataclass or several of them in one another. Where no keys are given, its
    tensors in floating point are mixed, and its only tensor of integers is the label.

    Other callbacks see the mixed samples wherever they look at the network, and add to the mixed loss once, in whatever
    order they are listed: a teacher answers to the mixed samples. What looks labels up in the batch finds those of the
    samples themselves.

    What is drawn is a function of the seed, the number of the batch and the rank: a resumed fit draws the same. Whether
    a batch is mixed at all is the same on all ranks.

    Args:
        mixing: One mixing, whose key is then its class name in snake case, or several by key: for each batch, one of
            those that combine samples is drawn.
        labels: How the training step is told of two labels for a sample.
        probability: Share of the batches that are mixed, in ``[0, 1]``: a number, or a schedule over ``window``.
        input_keys: Keys or places of what is mixed in a batch, joined by dots; empty finds them.
        label_keys: The same for labels.
        num_classes: With ``labels="soft"``, number of classes; ``None`` reads it off the network's output.
        network: Name of the network in the LightningModule, ``""`` for the LightningModule itself; ``None`` finds it.
        window: When to mix; before it opens nothing is changed. ``None`` is the whole fit.
        seed: Seeds what is drawn.
        name: Tells several instances in one Trainer apart; one at a time may train.

    Raises:
        TypeError: If a value is of another kind.
        ValueError: If a value is out of range, or label smoothing is asked for without ``labels="soft"``.

    Example:
        >>> from lightning_optim.regularization import CutMix, Mixup
        >>> callback = BatchMixer(mixing={"means": Mixup(alpha=0.4), "boxes": CutMix()}, probability=0.5)
        >>> callback.state_key
        "BatchMixer{'name': None}"
    """

    repeats_steps: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913  # one keyword for each question
        self,
        *,
        mixing: Mixing | Mapping[str, Mixing],
        labels: LabelMode = "mix_loss",
        probability: Factor = 1.0,
        input_keys: Sequence[str | int] = (),
        label_keys: Sequence[str | int] = (),
        num_classes: int | None = None,
        network: str | None = None,
        window: Window | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._settings = BatchMixing(mixing, labels, probability, input_keys, label_keys, seed)
        self.mixing, self.labels, self.probability = self._settings.mixing, labels, self._settings.probability
        self.input_keys, self.label_keys = self._settings.input_keys, self._settings.label_keys
        self.num_classes, self.network, self.seed = num_classes, network, seed
        self.window = window
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if num_classes is not None and labels == "mix_loss":
            raise ValueError("num_classes has no effect with labels='mix_loss': leave it out, or set labels='soft'")
        self._progress = FitProgress(Window() if window is None else window)
        self._patches = Patches()
        self._steps: MixedStep | None = None

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        find_network(pl_module, self.network, needs_forward=False)
        self._check_step(trainer, pl_module)
        # Below what other callbacks wrap around the step: they add to the mixed loss, once.
        self._patches.wrap_innermost(pl_module, "training_step", partial(self._training_step, trainer, pl_module))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings = (self._settings, self.num_classes, self.window)
        check_ranks_agree(trainer, settings, "the settings of BatchMixer")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._needs_window:
            self._progress.check(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"progress": self._progress.state_dict()} if self._needs_window else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._needs_window and "progress" in state_dict:
            self._progress.load_state_dict(state_dict["progress"])

    @override
    def release(self) -> None:
        self._patches.undo()
        if self._steps is not None:
            self._steps.release()
        self._steps = None

    @property
    def _needs_window(self) -> bool:
        return self.window is not None or not isinstance(self.probability, float)

    def _check_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be mixed, whatever the data."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        if sum(isinstance(each, BatchMixer) for each in callbacks) > 1:
            raise ValueError("two BatchMixers would mix what the other has mixed: give one several by key in mixing")
        if self.labels == "soft" and self.num_classes is not None:
            return
        needed = "labels='mix_loss' runs" if self.labels == "mix_loss" else "without num_classes, labels='soft' runs"
        instead = "use labels='soft' and set num_classes" if self.labels == "mix_loss" else "set num_classes"
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{needed} the training step twice, which under manual optimization has stepped by then: {instead}"
            )
        if is_compiled(pl_module):
            raise TargetError(
                f"{needed} the training step twice and the network once, which code of torch.compile cannot do: "
                f"{instead}, or compile the network in place of the LightningModule"
            )

    def _training_step(
        self, trainer: Trainer, pl_module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        progress, number = self._read_progress(trainer), clock_of(trainer).batch
        if progress is None or not self._settings.is_due(number, progress):
            return original(*args, **kwargs)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        mixed = self._settings.draw(batch, number, pl_module.global_rank)

        def step(changed: Any) -> Any:
            if args:
                return original(changed, *args[1:], **kwargs)
            return original(**{**kwargs, next(iter(kwargs)): changed})

        steps = self._steps = self._steps or self._new_steps(pl_module)
        if self.labels == "soft":
            return steps.with_float_labels(step, mixed, self._settings.softening)
        return steps.with_both_labels(step, mixed)

    def _read_progress(self, trainer: Trainer) -> float | None:
        return self._progress.read(trainer) if self._needs_window else 1.0

    def _new_steps(self, pl_module: LightningModule) -> MixedStep:
        """Look for the network once every callback has set its own structure up."""
        _, network = find_network(pl_module, self.network, needs_forward=False)
        steps = MixedStep(pl_module, network)
        steps.num_classes = self.num_classes
        return steps
