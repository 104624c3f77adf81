"""How far a training is: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from anomalyd.training.trainer import Progress

_LINE_EACH_S: Final = 15.0


@contextmanager
def training_bar(steps: int) -> Iterator[Progress]:
    """Steps done, loss and time left on stderr while the block runs; where that is no terminal, as a line each quarter of a minute.

    Args:
        steps: of the training.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("training", total=steps, loss=0.0)

        def show(done: int, _: int, loss: float) -> None:
            bars.update(task, completed=done, loss=loss)

        yield show


def say(text: str) -> None:
    """A line on stderr, for what takes long and has no steps."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  of a command


def _lines() -> Progress:
    began_s = told_s = 0.0

    def show(done: int, of: int, loss: float) -> None:
        nonlocal began_s, told_s
        now_s = time.monotonic()
        if done == 1:  # torch's first step takes many times as long as the others
            began_s = told_s = now_s
        elif now_s - told_s >= _LINE_EACH_S or done == of:
            told_s = now_s
            left_s = (of - done) * (now_s - began_s) / (done - 1)
            say(f"training: {done:,} of {of:,} steps, loss {loss:.3f}, about {left_s:.0f} s left")

    return show
