"""Episodes: one alert's life for one series. The rules are in `machine`; here are the policy, the memory and the outcome in columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.machine import ABOVE, BELOW, EPISODE, INACTIVE, OPEN, TRANSITION, run
from anomalyd.batch import COUNTER, SampleBatch, Verdicts
from anomalyd.errors import ConfigError

_SIDES: Final = {"both": ABOVE | BELOW, "above": ABOVE, "below": BELOW}


@dataclass(frozen=True, slots=True)
class Policy:
    """When an episode opens, what is told about it and when it ends.

    Raises:
        ConfigError: a field is out of range; the message names it.
    """

    min_duration_ms: int = 0
    """Event time for which the score has to stay at or above 1 before the alert fires; 0: fires at once."""
    resolve_after_samples: int = 10
    """Samples in a row below 1 that end an episode."""
    critical_score: float = 3.0
    """Peak score from which an episode is critical instead of a warning."""
    direction: Literal["both", "above", "below"] = "both"
    """Which side of the expected value counts."""
    update_interval_ms: int = 5 * 60_000
    """Event time between two updates of an episode, at least."""
    heartbeat_ms: int = 24 * 3_600_000
    """Event time after which an open episode is told of again, changed or not."""
    max_gap_ms: int = 7 * 24 * 3_600_000
    """Event time without a sample after which an episode does not go on. Long, because a weekly series is a series too."""

    def __post_init__(self) -> None:
        if self.direction not in _SIDES:
            raise ConfigError(f"direction: got {self.direction!r}, valid are {', '.join(_SIDES)}")
        for name, least in (
            ("min_duration_ms", 0),
            ("resolve_after_samples", 1),
            ("critical_score", 1),
            ("update_interval_ms", 0),
            ("heartbeat_ms", 1),
            ("max_gap_ms", 1),
        ):
            value = getattr(self, name)
            if not least <= value < 1 << 62:
                raise ConfigError(f"{name}: got {value}, valid is {least} or more")


@dataclass(frozen=True, slots=True)
class Transitions:
    """What became of episodes in one batch, in sample order; m transitions, F features.

    A sample makes two transitions at most: a lapsed episode resolves and a new one fires.
    """

    sample: NDArray[np.int64]
    """Index of the sample in its batch, ascending, shape (m,)."""
    row: NDArray[np.int32]
    """State row of the series, shape (m,)."""
    status: NDArray[np.uint8]
    """FIRING | UPDATED | RESOLVED, shape (m,)."""
    severity: NDArray[np.uint8]
    """WARNING | CRITICAL, of the peak, shape (m,)."""
    direction: NDArray[np.uint8]
    """ABOVE | BELOW, of the peak, shape (m,)."""
    lapsed: NDArray[np.bool_]
    """Resolved because the series had stayed away, shape (m,)."""
    counter: NDArray[np.bool_]
    """Values are rates per second, shape (m,)."""
    score: NDArray[np.float64]
    """Of the sample, shape (m,)."""
    peak_score: NDArray[np.float64]
    """Of the episode so far, shape (m,)."""
    starts_at_ms: NDArray[np.int64]
    """Event time of the opening sample, shape (m,)."""
    ends_at_ms: NDArray[np.int64]
    """Event time of the end, OPEN_END unless resolved, shape (m,)."""
    event_time_ms: NDArray[np.int64]
    """Event time of the sample, shape (m,)."""
    observed: NDArray[np.float64]
    """Of the sample, shape (m, F); so are the next three."""
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    share: NDArray[np.float32]
    """Each feature's part of the score, shape (m, F)."""

    def __len__(self) -> int:
        return len(self.sample)


class Episodes:
    """The episodes of one shard.

    Args:
        policy: when episodes open, are told of and end.
        storage: the episode part of the state rows, uint8, shape (capacity, 96), the bytes of a row contiguous. It has to be all zeros or
            announced with `restored`: reading it here would touch every page of a table that grows with use.
    """

    def __init__(self, policy: Policy, storage: NDArray[np.uint8]) -> None:
        self._policy = policy
        self._episode = storage.view(EPISODE)[:, 0]
        # The states once more, dense: one byte a series says whether a quiet sample needs a look at its state row.
        self._active = np.zeros(len(storage), np.uint8)
        self._scratch = np.empty(0, TRANSITION)
        self._open = 0

    @property
    def open_count(self) -> int:
        """Episodes that are firing now; pending ones are not counted."""
        return self._open

    def advance(self, batch: SampleBatch, verdicts: Verdicts) -> Transitions:
        """Moves the episodes of a batch's series on and returns what changed. Releases the GIL."""
        if len(self._scratch) < 2 * len(batch):
            self._scratch = np.empty(2 * len(batch), TRANSITION)
        policy = self._policy
        count, opened = run(
            self._episode,
            self._active,
            batch.row,
            batch.time_ms,
            verdicts.score,
            verdicts.observed,
            verdicts.expected,
            verdicts.share,
            verdicts.flags,
            _SIDES[policy.direction],
            policy.min_duration_ms,
            policy.resolve_after_samples,
            policy.critical_score,
            policy.update_interval_ms,
            policy.heartbeat_ms,
            policy.max_gap_ms,
            self._scratch,
        )
        self._open += opened
        return _columns(self._scratch[:count], batch, verdicts)

    def clear(self, rows: NDArray[np.int32] | Sequence[int]) -> None:
        """Forgets the episodes of these rows, without a message: the rows are about to belong to other series."""
        rows = np.unique(np.asarray(rows, np.int32))
        self._open -= int(np.count_nonzero(self._active[rows] == OPEN))
        self._active[rows] = INACTIVE
        self._episode[rows] = np.zeros((), EPISODE)

    def restored(self, rows: NDArray[np.int32] | Sequence[int]) -> None:
        """Takes note of state rows whose bytes were put into the storage from outside."""
        rows = np.unique(np.asarray(rows, np.int32))
        self._open -= int(np.count_nonzero(self._active[rows] == OPEN))
        self._active[rows] = self._episode["state"][rows]
        self._open += int(np.count_nonzero(self._active[rows] == OPEN))


def _columns(found: NDArray[np.void], batch: SampleBatch, verdicts: Verdicts) -> Transitions:
    """Copies the kernel's scratch into columns of their own and adds what the verdicts know of these samples."""
    sample = found["sample"].copy()
    return Transitions(
        sample=sample,
        row=batch.row[sample],
        status=found["status"].copy(),
        severity=found["severity"].copy(),
        direction=found["direction"].copy(),
        lapsed=found["lapsed"] != 0,
        counter=(verdicts.flags[sample] & COUNTER) != 0,
        score=verdicts.score[sample],
        peak_score=found["peak"].copy(),
        starts_at_ms=found["starts_ms"].copy(),
        ends_at_ms=found["ends_ms"].copy(),
        event_time_ms=batch.time_ms[sample],
        observed=verdicts.observed[sample],
        expected=verdicts.expected[sample],
        low=verdicts.low[sample],
        high=verdicts.high[sample],
        share=verdicts.share[sample],
    )
