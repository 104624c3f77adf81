"""Scores for whoever wants them: messages for the scores topic, columns for Prometheus. What nobody has chosen costs a look at a column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from anomalyd.alerts.messages import Model
from anomalyd.alerts.scores import ScoreWriter
from anomalyd.batch import LATE, REPEATED, Points, Verdicts
from anomalyd.selection import Selection
from anomalyd.series.key import parse_key

_KNOWN: Final = 1
_TOPIC: Final = 2
_REMOTE: Final = 4


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """Whose scores are wanted."""

    topic: Selection | None = None
    """For the scores topic; None: nobody's."""
    remote: Selection | None = None
    """For remote write; None: nobody's."""

    def __bool__(self) -> bool:
        return self.topic is not None or self.remote is not None


class ScoreTap:
    """What one shard hands out.

    Args:
        plan: whose scores.
        writer: of the messages.
        stream: the stream's name.
        feature_names: of samples with several features.
        capacity: most series that are kept.
    """

    def __init__(self, plan: ScorePlan, writer: ScoreWriter, stream: str, feature_names: Sequence[str], capacity: int) -> None:
        self._plan = plan
        self._writer = writer
        self._stream = stream
        self._feature_names = tuple(feature_names)
        self._wanted = np.zeros(max(1, capacity), np.uint8)
        """By row: what its series was chosen for, _KNOWN if that was looked at."""
        self._series: dict[int, tuple[bytes, Raw]] = {}

    def forget(self, rows: NDArray[np.int32]) -> None:
        """These rows are of other series from now on."""
        self._wanted[rows] = 0
        for row in rows.tolist():
            self._series.pop(row, None)

    def take(
        self,
        rows: NDArray[np.int32],
        time_ms: NDArray[np.int64],
        offset: NDArray[np.int64],
        verdicts: Verdicts,
        keys: Sequence[str | None],
        model: Model,
    ) -> tuple[list[tuple[bytes, bytes]], list[Points]]:
        """What is wanted of a batch: messages, record key and value, and columns.

        Args:
            rows: state row of each sample, shape (n,).
            time_ms: event time of each, shape (n,).
            offset: of the record that completed each, shape (n,).
            verdicts: about them.
            keys: of series, by row.
            model: that gave the scores.
        """
        wanted = self._wanted[rows]
        if not wanted.all():
            for row in np.unique(rows[wanted == 0]).tolist():
                self._choose(row, keys[row] or "")
            wanted = self._wanted[rows]
        messages, points = list[tuple[bytes, bytes]](), list[Points]()
        which = np.flatnonzero(wanted & _TOPIC)
        if len(which):
            series = [self._series[row] for row in rows[which].tolist()]
            messages = self._writer.write(series, time_ms[which], offset[which], verdicts, which, model)
        # Prometheus takes one sample for each moment of a series, in order.
        which = np.flatnonzero(((wanted & _REMOTE) != 0) & ((verdicts.flags & (LATE | REPEATED)) == 0))
        if len(which):
            names = [keys[row] or "" for row in rows[which].tolist()]
            columns = (verdicts.score, verdicts.expected, verdicts.low, verdicts.high)
            points.append(Points(self._stream, names, self._feature_names, time_ms[which], *(column[which] for column in columns)))
        return messages, points

    def _choose(self, row: int, key: str) -> None:
        wanted = _KNOWN
        name, labels = parse_key(key)
        if self._plan.topic is not None and self._plan.topic.admits(name, labels):
            self._series[row] = self._writer.series(key)
            wanted |= _TOPIC
        if self._plan.remote is not None and self._plan.remote.admits(name, labels):
            wanted |= _REMOTE
        self._wanted[row] = wanted
