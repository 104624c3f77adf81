"""How far a training is, on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from anomalyd.training.trainer import Progress


@contextmanager
def training_bar(steps: int) -> Iterator[Progress]:
    """Steps done, loss and time left on stderr while the block runs; nothing where that is no terminal.

    Args:
        steps: of the training.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("training", total=steps, loss=0.0)

        def show(done: int, _: int, loss: float) -> None:
            bars.update(task, completed=done, loss=loss)

        yield show
