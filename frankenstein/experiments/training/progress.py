"""How far a training is: a file that others may read at any time, and a bar for who started it in a terminal."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

FILE = "progress.json"
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Optimizer steps done.
        n_steps: Optimizer steps in all.
        epoch: Epochs done, a fraction.
        loss: Training loss of the latest step; None where it was not finite.
        score: The latest score; likewise.
        samples_per_second: Of training, since the latest report.
        wait_share: Of the time since then, what was spent waiting for batches.
        seconds_left: At the pace so far, evaluations included.
    """

    step: int
    n_steps: int
    epoch: float
    loss: float | None
    score: float | None
    samples_per_second: float
    wait_share: float
    seconds_left: float


def read_progress(folder: Path) -> Progress | None:
    """Return how far the training with this folder is; None where it has not yet said, or nothing that can be read."""
    try:
        return Progress(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Reporter:
    """Reports progress, at most once a second: to `progress.json` in the folder, and to a bar in the terminal.

    Args:
        folder: Made if absent; None: no file.
        is_shown: Whether there may be a bar. There is one only where the process was started by the user: workers,
            whose terminal is their parent's, leave it alone.
    """

    def __init__(self, folder: Path | None, is_shown: bool) -> None:
        self.folder = folder
        self.reported = -EVERY_SECONDS
        is_started_by_user = multiprocessing.parent_process() is None
        self.bar = _bar() if is_shown and is_started_by_user and sys.stderr.isatty() else None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: Callable[[], Progress], is_last: bool = False) -> None:
        """Report what `progress` returns, if a second has passed since the last report or there will be no other."""
        if (self.folder or self.bar) and (is_last or time.monotonic() - self.reported >= EVERY_SECONDS):
            self._write(progress())
            self.reported = time.monotonic()

    def _write(self, progress: Progress) -> None:
        if self.folder:
            temporary = self.folder / f"{FILE}.tmp"
            with suppress(OSError):  # a full disk is no reason to stop a training
                self.folder.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
                temporary.replace(self.folder / FILE)
        if self.bar:
            self.bar.start()
            self.bar.update(self.bar.task_ids[0], completed=progress.step, total=progress.n_steps, text=text(progress))


def text(progress: Progress) -> str:
    """Return the numbers beside the bar.

    >>> text(Progress(30, 100, 1.5, 0.51234, 0.9, 1234.5, 0.02, 75.0))
    'epoch 1.5  loss 0.5123  score 0.9  1234 samples/s  0:01:15 left'
    """
    loss, score = ("-" if value is None else f"{value:.4g}" for value in (progress.loss, progress.score))
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    left = f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    return (
        f"epoch {progress.epoch:.1f}  loss {loss}  score {score}  {progress.samples_per_second:.0f} samples/s  {left}"
    )


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")]
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=None, text="")
    return bar
