"""Progress display: one bar for the recipe and one for the epochs of its current stage."""

from __future__ import annotations

from types import TracebackType
from typing import final

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import override


@final
class RecipeProgress:
    """Live display of stages and epochs; silent on all ranks but one."""

    def __init__(self, num_stages: int, console: Console, *, is_shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not is_shown,
        )
        self._stages = self._progress.add_task("stages", total=num_stages, note="")
        self._epochs = self._progress.add_task("epochs", total=None, note="", visible=False)

    def __enter__(self) -> RecipeProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str) -> None:
        """Show that a stage begins."""
        self._progress.update(self._stages, note=stage)

    def done(self, stage: str, note: str) -> None:
        """Show that a stage is done, and leave one line about it."""
        self._progress.update(self._epochs, visible=False)
        self._progress.advance(self._stages)
        if not self._progress.disable:
            self._progress.console.print(f"[green]✓[/green] {stage:<12} {note}", highlight=False)

    def epoch(self, stage: str, done: int, total: int, note: str) -> None:
        """Show an epoch count."""
        self._progress.update(
            self._epochs, description=f"  {stage}", completed=done, total=total, note=note, visible=True
        )


@final
class EpochProgress(Callback):
    """Callback that shows a stage's epochs in the display."""

    def __init__(self, display: RecipeProgress, stage: str) -> None:
        self._display, self._stage = display, stage

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, trainer.current_epoch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, trainer.current_epoch + 1)

    def _show(self, trainer: Trainer, done: int) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("val")]
        note = "  ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in sorted(names)[:2])
        self._display.epoch(self._stage, done, trainer.max_epochs or 0, note)
