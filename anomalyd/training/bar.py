"""How far a training is: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from anomalyd.training.calibrate import Progress as CalibrationProgress
from anomalyd.training.trainer import Progress

_LINE_EACH_S: Final = 15.0


@contextmanager
def training_bar(steps: int) -> Iterator[Progress]:
    """Steps done, loss and time left on stderr while the block runs; where that is no terminal, as a line each quarter of a minute.

    An interrupt of the block says at which step it came.

    Args:
        steps: of the training.
    """
    at = 0
    with _bar("training", steps) as advance:

        def show(done: int, of: int, loss: float) -> None:
            nonlocal at
            at = done
            advance(done, of, f"loss {loss:.3f}")

        try:
            yield show
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"at step {at:,} of {steps:,}") from None


@contextmanager
def calibration_bar() -> Iterator[CalibrationProgress]:
    """The same for a calibration."""
    with _bar("calibrating", None) as advance:
        try:
            yield lambda done, of: advance(done, of, "on generated series")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("while calibrating") from None


def say(text: str) -> None:
    """A line on stderr, for what takes long and has no steps."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  of a command


class _Advance(Protocol):
    def __call__(self, done: int, of: int, about: str) -> None: ...


@contextmanager
def _bar(what: str, steps: int | None) -> Iterator[_Advance]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[about]}"), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(what, total=steps, about="")

        def show(done: int, of: int, about: str) -> None:
            bars.update(task, completed=done, total=of, about=about)

        yield show


def _lines(what: str) -> _Advance:
    began_s = told_s = 0.0

    def show(done: int, of: int, about: str) -> None:
        nonlocal began_s, told_s
        now_s = time.monotonic()
        if done == 1:  # the first step takes many times as long as the others: torch is made ready, or code compiled
            began_s = told_s = now_s
        elif now_s - told_s >= _LINE_EACH_S or done == of:
            told_s = now_s
            left_s = (of - done) * (now_s - began_s) / (done - 1)
            say(f"{what}: {done:,} of {of:,} steps, {about}, about {left_s:.0f} s left")

    return show
