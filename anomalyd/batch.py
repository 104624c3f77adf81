"""Samples and verdicts in columns: what flows between the stages.

Letters: n samples, F features of a sample (1 for an ordinary metric).
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

WARMUP: Final = 1
"""Flag: the series is too young to alert; its score is 0."""
LATE: Final = 2
"""Flag: older than the series' newest sample; scored against a copy of the state, nothing learned."""
REPEATED: Final = 4
"""Flag: same event time and value as the series' newest sample; nothing learned."""
ARMED: Final = 8
"""Flag: the score lies above the refractory envelope, so a new episode may open here."""
COUNTER: Final = 16
"""Flag: the series is a counter; observed, expected, low and high are rates per second."""


class Source(NamedTuple):
    """Where records come from: one partition of an input topic."""

    topic: str
    partition: int


class Record(Protocol):
    """What is read of one Kafka message, by whoever it comes from."""

    @property
    def key(self) -> bytes | None:
        """As produced."""

    @property
    def value(self) -> bytes | None:
        """As produced; None is a tombstone."""

    @property
    def timestamp(self) -> int:
        """Of production (or of the append), milliseconds since the epoch; negative if unknown."""

    @property
    def offset(self) -> int:
        """In its partition."""


class Entry(NamedTuple):
    """A record to be written to a changelog."""

    key: bytes
    value: bytes | None
    """None: a tombstone."""


class LogRecord(NamedTuple):
    """A record of a changelog."""

    offset: int
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Samples of one partition in partition order."""

    row: NDArray[np.int32]
    """State row of the sample's series, shape (n,)."""
    time_ms: NDArray[np.int64]
    """Event time in milliseconds since the epoch, shape (n,)."""
    value: NDArray[np.float64]
    """Values, shape (n, F); finite, but for NaN where a sample of several features lacks one."""
    record: NDArray[np.int32]
    """Index of the source record in the list that was decoded, ascending, shape (n,)."""
    feature: NDArray[np.int32] | None = None
    """Of values from which samples have yet to be assembled: which feature of its entity each is, shape (n,); `value` is (n, 1) then."""

    def __len__(self) -> int:
        return len(self.row)

    def part(self, which: slice | NDArray[np.bool_] | NDArray[np.integer]) -> "SampleBatch":
        """Some of the samples; views where they are a slice."""
        feature = None if self.feature is None else self.feature[which]
        return SampleBatch(self.row[which], self.time_ms[which], self.value[which], self.record[which], feature)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The detector's answer to a SampleBatch, sample by sample."""

    score: NDArray[np.float64]
    """Calibrated strangeness, 1.0 is the threshold, finite, shape (n,)."""
    evidence: NDArray[np.float64]
    """What the score is made of, before it is set against the threshold of its sample, finite, shape (n,)."""
    observed: NDArray[np.float64]
    """The value that was judged (a rate per second for counters), NaN where it is missing, shape (n, F)."""
    expected: NDArray[np.float64]
    """What the model expected, in the units of `observed`, shape (n, F); NaN, as low and high, for a feature that was never seen."""
    low: NDArray[np.float64]
    """Lower end of the expected band, shape (n, F)."""
    high: NDArray[np.float64]
    """Upper end of the expected band, shape (n, F)."""
    share: NDArray[np.float32]
    """Each feature's part of the score, rows sum to 1, shape (n, F)."""
    flags: NDArray[np.uint8]
    """WARMUP | LATE | REPEATED | ARMED | COUNTER, shape (n,)."""

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True)
class Points:
    """Scores of samples of one stream, for a store of time series."""

    stream: str
    """Name of the stream."""
    key: list[str]
    """Canonical key of each sample's series, n of them."""
    feature_names: tuple[str, ...]
    """Of samples with several features; may be empty."""
    time_ms: NDArray[np.int64]
    """Event time, ascending in each series, shape (n,)."""
    score: NDArray[np.float64]
    """Shape (n,)."""
    expected: NDArray[np.float64]
    """Shape (n, F); NaN, as low and high, where nothing is known."""
    low: NDArray[np.float64]
    """Shape (n, F)."""
    high: NDArray[np.float64]
    """Shape (n, F)."""

    def __len__(self) -> int:
        return len(self.key)

    def part(self, which: slice) -> "Points":
        """Some of them; views."""
        return Points(
            self.stream,
            self.key[which],
            self.feature_names,
            self.time_ms[which],
            self.score[which],
            self.expected[which],
            self.low[which],
            self.high[which],
        )
