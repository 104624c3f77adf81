"""Holds the alert budget of a partition: counts how often its series cross the level that the calibration knows, hour by hour.

An hour ends in front of a definite record, when the partition's event time has come so far: the median of the newest event times of the
series that were heard of lately (`shard_looks`). What follows is common to the partition, so a replay neither counts nor looks: what was
counted goes into the changelog with the position, and each correction with the offset from which on it is in force.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.budget import Control, Entry, Pace
from anomalyd.batch import SampleBatch
from anomalyd.detector import Rows
from anomalyd.series import FRESH, SeriesIndex
from anomalyd.shard_looks import Looks, middle
from anomalyd.state.ports import Restored

_LOOKS: Final = 4
"""Numbers of a state that are about looks; those of the control follow."""


def days_of(state: Sequence[int]) -> list[int]:
    """The days of a state as it was written down, oldest first: the logarithm of measured ÷ expected in thousandths."""
    control = Control()
    control.begin(state[_LOOKS:], (), 0)
    return control.days


class BudgetWatch:
    """The control of a shard's budget, and when it is asked.

    Args:
        index: series → row.
        rows: of these series.
        pace: how slowly it moves.
    """

    def __init__(self, index: SeriesIndex, rows: Rows, pace: Pace | None = None) -> None:
        self.control = Control(pace)
        self._looks = Looks(self.control.pace.samples)
        self._index = index
        self._rows = rows

    @property
    def state(self) -> tuple[int, ...]:
        """What was counted, for the changelog; nothing where nothing was."""
        return (*self._looks.state, *self.control.state) if self._looks.state else ()

    def begin(self, restored: Restored) -> None:
        """Goes on where the last owner was."""
        self._looks.begin(restored.control[:_LOOKS])
        self.control.begin(restored.control[_LOOKS:], restored.corrections, restored.replay_from)

    def due(self, batch: SampleBatch, offsets: NDArray[np.int64], start: int) -> int:
        """Index of the sample with which the record begins in front of which to look; see `Looks.due`."""
        return self._looks.due(batch, offsets, start, self.control.next_ms)

    def passed(self, samples: int) -> None:
        """So many samples are about to go by without a look."""
        self._looks.samples += samples

    def look(self, offset: int) -> list[Entry]:
        """Looks at the partition's time in front of the record at this offset; returns a new correction, or nothing."""
        last_use = self._index.last_use
        heard = self._looks.heard(last_use)
        self._looks.look(offset, max(self.control.pace.samples, int(np.count_nonzero(last_use < FRESH))))
        return self.control.reach(int(middle(self._rows.take("time", heard)[:, 0])), offset) if len(heard) else []
