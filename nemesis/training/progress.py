"""What a person sees while a network trains: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Loss, PSNR, superpatches a second and time left; ``first`` is the step that this process started from."""

    def __init__(self, name: str, steps: int, first: int, batch_size: int) -> None:
        self.name, self.steps, self.first, self.batch_size = name, steps, first, batch_size
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self.task = self.bar.add_task(name, total=steps, completed=first, shown="")

    def __enter__(self) -> TrainingProgress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, done: int, values: dict[str, float]) -> None:
        """``done`` steps are finished; ``values`` are the latest means (loss, psnr)."""
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.started, 1e-9)
        shown = f"loss {values['loss']:.4f}"
        if "psnr" in values:
            shown += f"  PSNR {values['psnr']:.2f} dB"
        shown += f"  {rate * self.batch_size:.1f} superpatches/s"
        if self.bar:
            self.bar.update(self.task, completed=done, shown=shown)
        elif now - self.last_line >= LINE_EVERY_S or done == self.steps:
            self.last_line = now
            left = (self.steps - done) / max(rate, 1e-9)
            clock = f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"
            print(f"{self.name}: step {done}/{self.steps}  {shown}  {clock} left", file=sys.stderr, flush=True)
