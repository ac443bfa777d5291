"""Progress displays: of a recipe's stages and their epochs, of counted work, and of work whose end is unknown.

On a terminal they move; in a file or a pipe they leave a line every few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

from lightning_optim.callbacks.trainer.messages import MESSAGES, SECONDS, Pace


@final
class RecipeProgress:
    """Live display of stages and epochs, with what the callbacks say about their steps; silent on all ranks but one."""

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
        self._lines = _Lines(console, is_shown=is_shown)
        self._messages = _Messages(console, is_shown=is_shown)
        self._stages = self._progress.add_task("stages", total=num_stages, note="")
        self._epochs = self._progress.add_task("epochs", total=None, note="", visible=False)

    def __enter__(self) -> RecipeProgress:
        self._progress.start()
        self._messages.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._messages.disconnect()
        self._progress.stop()

    def begin(self, stage: str) -> None:
        """Show that a stage begins."""
        self._messages.stage = stage
        self._progress.update(self._stages, note=stage)
        self._lines.say(f"{stage}: begins")

    def measuring(self, stage: str) -> None:
        """Show that a stage has trained, and that its result is exported and measured."""
        note = "exporting and measuring"
        self._progress.update(self._epochs, note=note)
        self._lines.say(f"{stage}: {note}")

    def done(self, stage: str, note: str) -> None:
        """Show that a stage is done, and leave one line about it."""
        self._progress.update(self._epochs, visible=False)
        self._progress.advance(self._stages)
        if not self._progress.disable:
            self._progress.console.print(f"[green]✓[/green] {stage:<12} {note}", highlight=False)

    def epoch(self, stage: str, done: float, total: int, note: str) -> None:
        """Show how many epochs are done; a part of one counts as that part."""
        self._progress.update(
            self._epochs, description=f"  {stage}", completed=int(done), total=total, note=note, visible=True
        )
        self._lines.say(f"{stage}: {done:.1f} of {total} epochs  {note}")


@final
class _Messages(logging.Handler):
    """Lines that the callbacks log, each behind the name of its stage, whatever level Lightning's own have."""

    def __init__(self, console: Console, *, is_shown: bool) -> None:
        super().__init__()
        self.stage = ""
        self._console, self._is_shown = console, is_shown
        self._before = (MESSAGES.level, MESSAGES.propagate)

    def connect(self) -> None:
        self._before = (MESSAGES.level, MESSAGES.propagate)
        if self._is_shown:
            MESSAGES.addHandler(self)
            MESSAGES.setLevel(logging.INFO)
            MESSAGES.propagate = False  # each line once

    def disconnect(self) -> None:
        MESSAGES.removeHandler(self)
        MESSAGES.level, MESSAGES.propagate = self._before

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"{self.stage}: {record.getMessage()}", highlight=False, markup=False, soft_wrap=True)


@final
class _Lines:
    """Lines in place of a display that moves, no more than one in a few seconds; none on a terminal."""

    def __init__(self, console: Console, *, is_shown: bool) -> None:
        self._console, self._is_shown, self._pace = console, is_shown and not console.is_terminal, Pace()

    def say(self, text: str) -> None:
        if self._is_shown and self._pace.is_due():
            self._console.print(text, highlight=False, markup=False)


@final
class CountedProgress:
    """Display of work in equal parts.

    Args:
        description: What is done.
        console: Where it is shown.
    """

    def __init__(self, description: str, console: Console) -> None:
        self._description, self._lines = description, _Lines(console, is_shown=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(description, total=None)

    def __enter__(self) -> CountedProgress:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    def advance(self, done: int, total: int) -> None:
        """Show how many parts are done."""
        self._progress.update(self._task, completed=done, total=max(done, total))
        self._lines.say(f"{self._description}: {done} of about {max(done, total)}")


@final
class Heartbeat:
    """Line about work that does not say how far it is, and one more every few seconds.

    Nothing moves meanwhile: a display that does would disturb what is measured.

    Args:
        description: What is done.
        console: Where it is shown.
        is_shown: Whether anything is.
    """

    def __init__(self, description: str, console: Console, *, is_shown: bool = True) -> None:
        self._description, self._console, self._is_shown = description, console, is_shown
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._is_shown:
            self._say(self._description)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._is_over.wait(SECONDS):
            self._say(f"{self._description}: {time.monotonic() - began:.0f} s")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


@final
class EpochProgress(Callback):
    """Callback that shows a stage's epochs in the display."""

    def __init__(self, display: RecipeProgress, stage: str) -> None:
        self._display, self._stage = display, stage

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, trainer.current_epoch)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer, trainer.current_epoch + (batch_idx + 1) / max(1, float(trainer.num_training_batches)))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, trainer.current_epoch + 1)

    def _show(self, trainer: Trainer, done: float) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("val")]
        note = "  ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in sorted(names)[:2])
        self._display.epoch(self._stage, done, trainer.max_epochs or 0, note)
