"""When a shard looks at the progress of its partition in event time, and what that is.

A look happens in front of a definite record: which one follows from the samples, their event times and their order alone, so that a daemon
that is behind, or restarted, looks at the same ones.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.series import FRESH

MOST_SHARE: Final = 16
MOST_SAMPLES: Final = 4096
"""A look comes 16 times as many and some samples behind the one before as it comes at least, whatever the clocks say."""


class Looks:
    """Where was looked last.

    Args:
        least: samples before the first look.
    """

    def __init__(self, least: int) -> None:
        self.looked = -1
        """Offset of the record in front of which it was."""
        self.before = -1
        """The same of the look before."""
        self.samples = 0
        """Samples since."""
        self.least = least
        """Samples from one look to the next, at least."""

    @property
    def state(self) -> tuple[int, ...]:
        """All of it, for the changelog; nothing where nothing was ever counted."""
        return (self.looked, self.before, self.samples, self.least) if self.looked >= 0 or self.samples else ()

    def begin(self, state: Sequence[int]) -> None:
        """Goes on where another one was."""
        if state:
            self.looked, self.before, self.samples, self.least = state

    def due(self, batch: SampleBatch, offsets: NDArray[np.int64], start: int, from_ms: int | None) -> int:
        """Index of the sample with which the record begins in front of which to look; the length of the batch: there is none.

        Args:
            batch: samples.
            offsets: of the records, by their number in `batch.record`, ascending.
            start: index of the first sample that is not counted yet; a record begins there.
            from_ms: a sample of this event time or later is worth a look; None: every one is.
        """
        n = len(batch)
        first = start + max(0, self.least - self.samples)
        most = start + max(0, MOST_SHARE * self.least + MOST_SAMPLES - self.samples)
        if first < n and offsets[batch.record[first]] <= self.looked:
            first = int(np.searchsorted(batch.record, batch.record[first], side="right"))  # looked at already, in front of the very record
        if first >= n:
            return n
        found = first
        if from_ms is not None:
            late = np.flatnonzero(batch.time_ms[first : min(most, n)] >= from_ms)
            found = first + int(late[0]) if len(late) else max(first, most)
        return int(np.searchsorted(batch.record, batch.record[found])) if found < n else n

    def look(self, offset: int, least: int) -> None:
        """Takes note of a look in front of the record at this offset; the next one comes after at least so many samples."""
        self.before, self.looked = self.looked, offset
        self.samples, self.least = 0, least

    def heard(self, last_use: NDArray[np.int64]) -> NDArray[np.intp]:
        """Rows of the series that were heard of since the look before, by the offsets of their last records, (capacity,)."""
        return np.flatnonzero((last_use < FRESH) & (last_use >= self.before))


def middle(values: NDArray[Any]) -> float | int:
    """The lower median: of event times that of the partition, which a few wrong clocks do not move."""
    at = (len(values) - 1) // 2
    found: float | int = np.partition(values, at)[at].item()
    return found
