"""What the demo knows while it runs: the daemon's verdicts by way of its observer, the alerts by way of Kafka."""

import threading
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Source, Verdicts
from anomalyd.demo.judge import Episode
from anomalyd.shard import Shard

REMEMBERED: Final = 900
"""Samples of each series that are kept for drawing."""
MOST_REMEMBERED: Final = 2_000_000
"""Samples of all series together."""


_CHANGING: Final = ("status", "severity", "peak_score", "ends_at")


class Stretch(NamedTuple):
    """Some samples of one series with their verdicts, all columns of shape (n,)."""

    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    score: NDArray[np.float64]


_EARLIEST, _LATEST = -(1 << 62), 1 << 62


class _Memory:
    """The latest batches of one partition."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self.samples = 0
        self.batches: deque[tuple[SampleBatch, Verdicts]] = deque()

    def add(self, shard: Shard, batch: SampleBatch, verdicts: Verdicts) -> None:
        self.keys = shard.index.keys
        self.batches.append((batch, verdicts))
        self.samples += len(batch)
        most = min(REMEMBERED * max(1, shard.series), MOST_REMEMBERED)
        while self.samples - len(self.batches[0][0]) >= most:
            self.samples -= len(self.batches.popleft()[0])


class Board:
    """Safe to use from any thread.

    Args:
        fleet_topic: whose episodes are judged.
        fleet_stream: name of its stream.
    """

    def __init__(self, fleet_topic: str, fleet_stream: str) -> None:
        self._fleet_topic, self._fleet_stream = fleet_topic, fleet_stream
        self._lock = threading.Lock()
        self._memory: dict[Source, _Memory] = {}
        self._series: dict[Source, int] = {}
        self.samples = 0
        """Scored, of both streams."""
        self.fleet_samples = 0
        """Scored, of the fleet."""
        self.messages_made = 0
        """By the daemon."""
        self.messages_read = 0
        """Out of the alerts topic."""
        self.fired = 0
        """Alerts, of both streams."""
        self.resolved = 0
        """Of these."""
        self._firing: dict[str, dict[str, Any]] = {}
        self._episodes: list[Episode] = []
        self._alerts: dict[str, dict[str, Any]] = {}  # the latest message of each, in the order in which they fired
        self._opening: dict[str, dict[str, Any]] = {}  # the first one

    def observe(self, shard: Shard, batch: SampleBatch, verdicts: Verdicts, alerts: list[dict[str, Any]]) -> None:
        """The daemon's observer; arrays are kept, not copied: nobody changes them afterwards."""
        with self._lock:
            self._memory.setdefault(shard.source, _Memory()).add(shard, batch, verdicts)
            self._series[shard.source] = shard.series
            self.samples += len(batch)
            self.fleet_samples += len(batch) if shard.source.topic == self._fleet_topic else 0
            self.messages_made += len(alerts)

    def read(self, alert: dict[str, Any]) -> None:
        """A message from the alerts topic."""
        name = alert["alert_id"]
        with self._lock:
            self.messages_read += 1
            self._alerts[name] = alert
            self._opening.setdefault(name, alert)
            if alert["status"] == "resolved":
                self.resolved += 1
                self._firing.pop(name, None)
                return
            self._firing[name] = alert
            if alert["status"] == "firing":
                self.fired += 1
                if alert["stream"] == self._fleet_stream:
                    self._episodes.append(Episode(alert["series"]["key"], epoch_ms(alert["event_time"])))

    @property
    def series(self) -> int:
        """Kept by the daemon."""
        return sum(self._series.values())

    @property
    def firing(self) -> int:
        """Alerts that fire now."""
        return len(self._firing)

    def newest(self, count: int) -> list[dict[str, Any]]:
        """The alerts that fired last, newest first: the message that said so, brought up to date."""
        with self._lock:
            return [
                self._opening[name] | {part: alert[part] for part in _CHANGING}
                for name, alert in list(self._alerts.items())[: -count - 1 : -1]
            ]

    def episodes(self) -> list[Episode]:
        """Of the fleet."""
        with self._lock:
            return list(self._episodes)

    def alerts(self, key: str) -> list[dict[str, Any]]:
        """The latest message of each alert about a series."""
        with self._lock:
            return [alert for alert in self._alerts.values() if alert["series"]["key"] == key]

    def keys_alerted(self, *, fleet: bool) -> list[str]:
        """Series of the fleet, or of this host, that had an alert."""
        with self._lock:
            return sorted({a["series"]["key"] for a in self._alerts.values() if (a["stream"] == self._fleet_stream) == fleet})

    def around(self, key: str, time_ms: int, before: int, after: int) -> list[float]:
        """Values of a series as they were judged: so many samples before an event time, and after it. Nothing if that is forgotten."""
        stretch = self.cut(key, _EARLIEST, _LATEST)
        if not len(stretch.time_ms) or time_ms < stretch.time_ms[0]:
            return []
        middle = int(np.searchsorted(stretch.time_ms, time_ms))
        values: list[float] = stretch.value[max(0, middle - before) : middle + after].tolist()
        return values

    def cut(self, key: str, from_ms: int, to_ms: int) -> Stretch:
        """What is remembered of a series between two event times, both included."""
        parts = [
            (batch.time_ms[own], *(column[own, 0] for column in (v.observed, v.expected, v.low, v.high)), v.score[own])
            for batch, v, row in self._batches(key)
            if len(own := np.flatnonzero((batch.row == row) & (batch.time_ms >= from_ms) & (batch.time_ms <= to_ms)))
        ]
        columns = zip(*reversed(parts), strict=True) if parts else [[np.empty(0)]] * 6
        return Stretch(*(np.concatenate(column) for column in columns))

    def _batches(self, key: str) -> Iterator[tuple[SampleBatch, Verdicts, int]]:
        """Those of the series' partition, newest first, and its row."""
        with self._lock:
            memory = next((memory for memory in self._memory.values() if key in memory.keys), None)
            batches = list(memory.batches) if memory is not None else []
        if memory is not None:
            row = memory.keys.index(key)
            yield from ((batch, verdicts, row) for batch, verdicts in reversed(batches))


def epoch_ms(moment: str) -> int:
    """Milliseconds since the epoch out of an ISO 8601 moment of a message."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
