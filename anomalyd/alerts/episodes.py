"""Episodes: one alert's life for one series. The rules are in `machine`; here are the policy, the memory and the outcome in columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.machine import ABOVE, BELOW, EPISODE, INACTIVE, OPEN, RESOLVED, TRANSITION, run
from anomalyd.alerts.mutes import Mute
from anomalyd.batch import COUNTER, SampleBatch, Verdicts
from anomalyd.errors import ConfigError

_SIDES: Final = {"both": ABOVE | BELOW, "above": ABOVE, "below": BELOW}
_NONE_MUTED: Final = np.empty(0, np.bool_)


@dataclass(frozen=True, slots=True)
class Policy:
    """When an episode opens, what is told about it and when it ends.

    Raises:
        ConfigError: a field is out of range; the message names it.
    """

    min_deviation: float = 0.0
    """Least distance from the expected value that counts, in the units of the series (per second for counters)."""
    min_deviation_ratio: float = 0.0
    """Least distance that counts as a part of the expected value: 0.1 is a tenth."""
    min_duration_ms: int = 0
    """Event time for which the score has to stay at or above 1 before the alert fires; 0: fires at once."""
    reopen_after_ms: int = 0
    """Event time after the end of an alert before the next one of the same series may fire; 0: at once."""
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
    mutes: tuple[Mute, ...] = ()
    """Times in which no alert fires."""
    budget_per_day: float | None = None
    """False alarms per series and day of event time that are acceptable, for which a score of 1 stands; None: as the detector has it."""
    budget_control: bool = True
    """Whether the threshold gives where normal data turns out to be strange more or less often than the calibration says."""

    def __post_init__(self) -> None:
        if self.direction not in _SIDES:
            raise ConfigError(f"direction: got {self.direction!r}, valid are {', '.join(_SIDES)}")
        for name, least in (
            ("min_deviation", 0),
            ("min_deviation_ratio", 0),
            ("min_duration_ms", 0),
            ("reopen_after_ms", 0),
            ("resolve_after_samples", 1),
            ("critical_score", 1),
            ("update_interval_ms", 0),
            ("heartbeat_ms", 1),
            ("max_gap_ms", 1),
        ):
            value = getattr(self, name)
            if not least <= value < 1 << 62:
                raise ConfigError(f"{name}: got {value}, valid is {least} or more")
        if self.budget_per_day is not None and not 0 < self.budget_per_day < math.inf:
            raise ConfigError(f"budget_per_day: got {self.budget_per_day}, valid is more than 0")


@dataclass(frozen=True, slots=True)
class Transitions:
    """What became of episodes in one batch, in sample order; m transitions, F features.

    A sample makes two transitions at most: a lapsed episode resolves and a new one fires.
    """

    sample: NDArray[np.int64]
    """Index of the sample in its batch, ascending, -1 where there is none, shape (m,)."""
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
    forgotten: NDArray[np.bool_]
    """Resolved because the series is no longer kept; there is no sample, and observed is the newest value known, shape (m,)."""
    counter: NDArray[np.bool_]
    """Values are rates per second, shape (m,)."""
    score: NDArray[np.float64]
    """Of the sample, 0 where there is none, shape (m,)."""
    peak_score: NDArray[np.float64]
    """Of the episode so far, shape (m,)."""
    peak_evidence: NDArray[np.float64]
    """Behind that score; 0 where it is not known, shape (m,)."""
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
        self.policy = policy
        """May be replaced between batches: episodes that are under way go on under the new one."""
        self._storage = storage
        self._episode = storage.view(EPISODE)[:, 0]
        # The states once more, dense: one byte a series says whether a quiet sample needs a look at its state row.
        self._active = np.zeros(len(storage), np.uint8)
        self._scratch = np.empty(0, TRANSITION)
        self._open = 0
        self.silent = np.zeros(len(storage), np.uint8)
        """Of every row whether its series is silent and that was told, (capacity,); to be read."""
        self.silent_count = 0
        """How many are; to be read."""
        self.muted = 0
        """Episodes so far that did not fire because they were muted."""
        self.flapping = 0
        """Episodes so far that did not fire because the series' alert before had just ended."""

    @property
    def open_count(self) -> int:
        """Episodes that are firing now; pending ones are not counted."""
        return self._open

    def advance(
        self, batch: SampleBatch, verdicts: Verdicts, lapsed: NDArray[np.void] | None = None, muted: NDArray[np.bool_] = _NONE_MUTED
    ) -> Transitions:
        """Moves the episodes of a batch's series on and returns what changed. Releases the GIL.

        Args:
            batch: samples.
            verdicts: on them.
            lapsed: what `lapse` returned for the same batch.
            muted: samples with which no alert may fire, (n,), or empty: none is. Those that are not hot are not asked about.
        """
        if len(self._scratch) < 2 * len(batch):
            self._scratch = np.empty(2 * len(batch), TRANSITION)
        policy = self.policy
        count, opened, muted_count, flapping_count = run(
            self._episode,
            self._active,
            batch.row,
            batch.time_ms,
            verdicts.score,
            verdicts.evidence,
            verdicts.observed,
            verdicts.expected,
            verdicts.share,
            verdicts.flags,
            _SIDES[policy.direction],
            policy.min_deviation,
            policy.min_deviation_ratio,
            policy.min_duration_ms,
            policy.reopen_after_ms,
            policy.resolve_after_samples,
            policy.critical_score,
            policy.update_interval_ms,
            policy.heartbeat_ms,
            policy.max_gap_ms,
            muted,
            self._scratch,
        )
        self._open += opened
        self.muted += muted_count
        self.flapping += flapping_count
        found = self._scratch[:count]
        if lapsed is not None and len(lapsed):
            found = np.concatenate([lapsed, found])
            found = found[np.argsort(found["sample"], kind="stable")]
        return _columns(found, batch, verdicts)

    def lapse(self, rows: NDArray[np.int32], samples: NDArray[np.int64]) -> NDArray[np.void]:
        """Ends and forgets the episodes of series that begin anew with these samples of the coming batch, and returns it for `advance`.

        Args:
            rows: different ones, (n,).
            samples: index of the sample with which each row begins anew, (n,).
        """
        found = self._ended(rows, samples)
        self.clear(rows)
        return found

    def close(self, rows: NDArray[np.int32], observed: NDArray[np.float64], counter: NDArray[np.bool_]) -> Transitions:
        """Ends and forgets the episodes of series that are no longer kept, in the order given; returns what there is to tell.

        Nothing more will ever be known of them, so an open episode ended when the series was last seen.

        Args:
            rows: different ones, (n,).
            observed: newest value of each, as it was judged, (n, F).
            counter: whether the values are rates per second, (n,).
        """
        found = self._ended(rows, np.arange(len(rows)))
        own = found["sample"]
        seen_ms, row = self._episode["seen_ms"][rows[own]], rows[own]
        self.clear(rows)
        width = observed.shape[1]
        return Transitions(
            sample=np.full(len(own), -1),
            row=row,
            status=found["status"],
            severity=found["severity"],
            direction=found["direction"],
            lapsed=np.ones(len(own), np.bool_),
            forgotten=np.ones(len(own), np.bool_),
            counter=counter[own],
            score=np.zeros(len(own)),
            peak_score=found["peak"],
            peak_evidence=found["peak_evidence"],
            starts_at_ms=found["starts_ms"],
            ends_at_ms=found["ends_ms"],
            event_time_ms=seen_ms,
            observed=observed[own],
            # What was expected of the newest value went with its verdict.
            expected=observed[own],
            low=observed[own],
            high=observed[own],
            share=np.full((len(own), width), 1 / width, np.float32),
        )

    def _ended(self, rows: NDArray[np.int32], samples: NDArray[np.int64]) -> NDArray[np.void]:
        """A transition for each open episode of these rows: resolved, with the end that is known."""
        opened = self._active[rows] == OPEN
        episode = self._episode[rows[opened]]
        found = np.zeros(len(episode), TRANSITION)
        found["sample"] = samples[opened]
        found["starts_ms"] = episode["starts_ms"]
        found["ends_ms"] = np.where(episode["quiet"] > 0, episode["quiet_ms"], episode["seen_ms"])
        found["peak"] = episode["peak"]
        found["peak_evidence"] = episode["peak_evidence"]
        found["status"] = RESOLVED
        found["severity"] = episode["severity"]
        found["direction"] = episode["direction"]
        found["lapsed"] = 1
        return found

    def clear(self, rows: NDArray[np.int32] | Sequence[int]) -> None:
        """Forgets the episodes of these rows, without a message: the rows are about to belong to other series."""
        rows = np.unique(np.asarray(rows, np.int32))
        self._open -= int(np.count_nonzero(self._active[rows] == OPEN))
        self._active[rows] = INACTIVE
        self._mark_silent(rows, 0)
        self._episode[rows] = np.zeros((), EPISODE)

    def remembered(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of these rows that ever had an episode which they still know of."""
        known: NDArray[np.int32] = rows[(self._episode["opened"][rows] != 0) | (self._episode["silent_ms"][rows] != 0)]
        return known

    def active(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of these rows whose episode is pending, open or withheld."""
        active: NDArray[np.int32] = rows[self._active[rows] != INACTIVE]
        return active

    def state(self, row: int) -> bytes:
        """The episode part of a state row."""
        state: bytes = self._storage[row].tobytes()
        return state

    def agree(self, row: int, told: bytes) -> bool:
        """Whether the row's episode is the one that was told of; if it is not, it becomes that one.

        Args:
            row: state row.
            told: the episode part of the row as it was when the last message about it was written, or later.
        """
        was, now = np.frombuffer(told, EPISODE)[0], self._episode[row]
        opened_later = was["opened"] and (not now["opened"] or now["starts_ms"] < was["starts_ms"])
        # Releases before 0.2 did not write down when an alert ended.
        ended_otherwise = was["ended"] and (not now["ended"] or now["ended_ms"] != was["ended_ms"])
        if _told(was) == _told(now) and not opened_later and not ended_otherwise:
            return True
        self._storage[row] = np.frombuffer(told, np.uint8)
        self.restored([row])
        return False

    # --- silence ----------------------------------------------------------------------------------------------------

    def silent_since(self, row: int) -> int:
        """Event time of the newest sample before the silence of a row."""
        return int(self._episode["silent_ms"][row])

    def fall_silent(self, row: int, since_ms: int) -> bool:
        """Notes that the series in this row is silent; not if it was so before since then or later, and returns whether it did."""
        if since_ms <= self._episode["silent_ms"][row]:
            return False
        self._episode["silent"][row], self._episode["silent_beats"][row], self._episode["silent_ms"][row] = 1, 0, since_ms
        self._mark_silent([row], 1)
        return True

    def silent_beat(self, row: int, beats: int) -> bool:
        """Notes that a silence is told of again, so often by now; returns whether that is more often than before."""
        more = beats > int(self._episode["silent_beats"][row])
        if more:
            self._episode["silent_beats"][row] = min(beats, 0xFFFFFFFF)
        return more

    def break_silence(self, row: int) -> None:
        """Notes that the series in this row sends again, or is no longer waited for."""
        self._episode["silent"][row], self._episode["silent_beats"][row] = 0, 0
        self._mark_silent([row], 0)

    def adopt_silence(self, row: int, told: bytes) -> bool:
        """Takes over what was told of the silence of a row; returns whether that is news.

        Args:
            row: state row.
            told: the episode part of the row as it was when the last message about it was written, or later.
        """
        was, names = np.frombuffer(told, EPISODE)[0], ["silent", "silent_beats", "silent_ms"]
        news = any(was[name] != self._episode[name][row] for name in names)
        for name in names:
            self._episode[name][row] = was[name]
        self._mark_silent([row], was["silent"])
        return news

    def _mark_silent(self, rows: NDArray[np.int32] | Sequence[int], silent: NDArray[np.uint8] | int) -> None:
        """Keeps the dense column and the count; rows are different ones."""
        self.silent_count -= int(np.count_nonzero(self.silent[rows]))
        self.silent[rows] = silent
        self.silent_count += int(np.count_nonzero(self.silent[rows]))

    # --- after a restart --------------------------------------------------------------------------------------------

    def unopen(self, row: int) -> bool:
        """Whether the row has no open episode; an open one, of which nobody was told, ends silently."""
        if self._active[row] != OPEN:
            return True
        # The opening stays, as it does after any episode: the next one must be later. So does the end of the alert before.
        kept = {name: self._episode[name][row] for name in ("opened", "starts_ms", "ended", "ended_ms")}
        self.clear([row])
        for name, value in kept.items():
            self._episode[name][row] = value
        return False

    def move(self, storage: NDArray[np.uint8]) -> None:
        """From now on the episode parts lie in another storage, (capacity, 96); rows that are not there yet must not be asked about."""
        self._storage = storage
        self._episode = storage.view(EPISODE)[:, 0]

    def restored(self, rows: NDArray[np.int32] | Sequence[int], states: NDArray[np.uint8] | None = None) -> None:
        """Takes note of state rows whose bytes were put into the storage from outside.

        Args:
            rows: different ones, ascending where there are `states`.
            states: their episode parts, (n, 96), where they are not in the storage yet.
        """
        rows = np.unique(np.asarray(rows, np.int32))
        episode = self._episode[rows] if states is None else np.ascontiguousarray(states).view(EPISODE)[:, 0]
        self._open -= int(np.count_nonzero(self._active[rows] == OPEN))
        self._active[rows] = episode["state"]
        self._mark_silent(rows, episode["silent"])
        self._open += int(np.count_nonzero(self._active[rows] == OPEN))


def _told(episode: np.void) -> tuple[object, ...]:
    """What messages have said of an episode so far; nothing while it is not open."""
    names = ("starts_ms", "told_severity", "told_peak", "message_ms", "updated", "update_ms")
    return tuple(episode[name] for name in names) if episode["state"] == OPEN else ()


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
        forgotten=np.zeros(len(found), np.bool_),
        counter=(verdicts.flags[sample] & COUNTER) != 0,
        score=verdicts.score[sample],
        peak_score=found["peak"].copy(),
        peak_evidence=found["peak_evidence"].copy(),
        starts_at_ms=found["starts_ms"].copy(),
        ends_at_ms=found["ends_ms"].copy(),
        event_time_ms=batch.time_ms[sample],
        observed=verdicts.observed[sample],
        expected=verdicts.expected[sample],
        low=verdicts.low[sample],
        high=verdicts.high[sample],
        share=verdicts.share[sample],
    )
