"""Cold starts: how much worse off is one who has just met a stream than one who saw all of it?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.evaluation.measures import average_precision
from anomalyd.evaluation.readers import Table
from anomalyd.evaluation.sets import Labelled

FRESH: Final = (100, 500)
"""Rows in front of a labelled segment at which a cold start begins, at least and at most."""


class ColdStart(NamedTuple):
    """Average precision around one labelled segment, by the same rows."""

    fresh: float
    """Of one that begins there with fresh state."""
    warm: float
    """Of one that streamed all earlier rows."""


def cold_starts(
    labelled: Labelled, warm: NDArray[np.float64], seed: int, fresh: Callable[[Table], NDArray[np.float64]]
) -> Iterator[ColdStart]:
    """Starts anew in front of each labelled segment, at a row that is drawn; the rows from there to the segment's end are what counts.

    Segments with no more than `FRESH[0]` rows in front are passed over: there is nothing earlier that could have been streamed.

    Args:
        labelled: the stream.
        warm: how anomalous each row is to one that streamed all of it, shape (n,).
        seed: of the draw.
        fresh: the same of some rows from a fresh state, by the same model.
    """
    rng = np.random.default_rng([seed, len(labelled.table)])
    for first, last in labelled.windows:
        if first <= FRESH[0]:
            continue
        # At least one row is left in front, or both would have seen the same.
        before = int(rng.integers(FRESH[0], min(FRESH[1], first - 1) + 1))
        rows = slice(first - before, last + 1)
        unknown, known = (average_precision(found, labelled.label[rows]) for found in (fresh(_part(labelled.table, rows)), warm[rows]))
        if unknown is not None and known is not None:
            yield ColdStart(unknown, known)


def ratio(starts: Sequence[ColdStart]) -> float | None:
    """Mean precision of the fresh ones ÷ that of the warm ones; None without any.

    Of means, since a single segment that nobody finds has a ratio of two accidents.
    """
    return sum(start.fresh for start in starts) / sum(start.warm for start in starts) if starts else None


def _part(table: Table, rows: slice) -> Table:
    """Some rows, without what came before."""
    label = None if table.label is None else table.label[rows]
    return replace(table, row=table.row[rows], time_ms=table.time_ms[rows], value=table.value[rows], label=label, train=None)
