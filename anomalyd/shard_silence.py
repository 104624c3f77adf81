"""Which series of a partition have fallen silent, by its progress in event time.

That a series sends nothing is seen against the others of its partition only. Now and then, in front of a record, the shard looks
through its series: the *partition's time* is the median of the newest event times of those that were heard of since the look before the
last. When it has moved on by a minute or more, the look is a *tick*. A series is silent when the partition has gone on without it for too
long since the first tick behind its last record, and its newest event time lies as far back: the one, because its own clock may be
slow; the other, because its samples may have come in one go, ahead of those of others. A daemon that is behind sees the same
records later, and decides the same.

Where the partition's time jumps, forth because everything was quiet for a while, or back, nothing is known of the time in between:
counting starts anew. So a quiet partition has no silent series, and neither has one that wakes up.

When there is a look depends on the samples, their event times and their order alone. What follows from it is common to the partition,
so a replay does not look: `Pulse.state` goes into the changelog with the position, and the silence of a series with its episode.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Episodes
from anomalyd.alerts.silence import HEARTBEAT_MS, Silence, SilencePolicy
from anomalyd.batch import COUNTER, LATE, REPEATED, SampleBatch, Verdicts
from anomalyd.detector import Rows
from anomalyd.detector.layout import COUNTER_KIND
from anomalyd.detector.recipe import WARMUP_SAMPLES
from anomalyd.series import FRESH, SeriesIndex
from anomalyd.shard_looks import Looks, middle

TICK_MS: Final = 60_000
"""Least event time from one tick to the next."""
PAUSE_MS: Final = 600_000
PAUSE_STEPS: Final = 5.0
"""The partition was quiet for a while when its time moves on by more than this at once, and by more than so many usual steps."""
LEAST_TICKS: Final = 3
"""Ticks without a sample before a series can be silent: who wakes up with the others has some time to do so."""
STEADY: Final = 0.15
"""A step is steady if it is usually no farther than this part from the usual one: every other sample a tenth early or late, say."""
_LEAST_SAMPLES: Final = 16
"""A look comes after at least so many samples, and at least half as many as there are series."""
_THINNING: Final = 4


class Pulse(Looks):
    """The progress of a partition, as far as it has to be remembered.

    Ticks are kept more sparsely the older they are, so their number grows with the logarithm of the time that they cover.

    Args:
        state: of another one, to go on where it was.
    """

    def __init__(self, state: Sequence[int] = ()) -> None:
        super().__init__(_LEAST_SAMPLES)
        self.ticks: list[tuple[int, int]] = []
        """Offset of the record in front of which the partition's time was looked at, and this time; ascending."""
        if state:
            self.begin(state[:4])
            self.ticks = list(zip(state[4::2], state[5::2], strict=True))

    @property
    def state(self) -> tuple[int, ...]:
        """All of it, for the changelog; nothing where nothing was ever counted."""
        return (*super().state, *(number for tick in self.ticks for number in tick))

    @property
    def time_ms(self) -> int:
        """The partition's time at the last tick; 0: there was none."""
        return self.ticks[-1][1] if self.ticks else 0

    @property
    def next_ms(self) -> int | None:
        """Event time of a sample that is worth a look; None: that of every one."""
        return (self.ticks[-1][1] // TICK_MS + 1) * TICK_MS if self.ticks else None

    def tick(self, time_ms: int, pause_ms: float) -> bool:
        """The partition's time at the last look; whether it was a tick that goes on from those before."""
        newest = self.ticks[-1][1] if self.ticks else None
        if newest is None or abs(time_ms - newest) > pause_ms:
            self.ticks = [(self.looked, time_ms)]
            return False
        if time_ms < newest + TICK_MS:
            return False
        self.ticks.append((self.looked, time_ms))
        kept = self.ticks[:1]
        for tick, after in zip(self.ticks[1:], self.ticks[2:], strict=False):
            # In between two that are close to each other for how long ago they are, none is needed.
            recent = tick in self.ticks[-LEAST_TICKS - 1 :]
            if recent or _THINNING * (after[1] - kept[-1][1]) > time_ms - after[1]:
                kept.append(tick)
        self.ticks = [*kept, self.ticks[-1]]
        return True

    def since(self, last_use: NDArray[np.int64]) -> NDArray[np.int64]:
        """The partition's time at the first tick behind each of these offsets, (n,); for the newest ones that at the last tick."""
        offsets, times = np.array(self.ticks).T
        return np.asarray(times[np.minimum(np.searchsorted(offsets, last_use, side="right"), len(times) - 1)], np.int64)


class Found(NamedTuple):
    """Something about the silence of a series."""

    row: int
    silence: Silence


class Silences:
    """Looks for series that have fallen silent, and notes when they send again.

    Args:
        policy: when a series is silent.
        index: series → row.
        rows: of these series.
        episodes: over the same rows, which remember whose silence was told.
        clock: the field that holds the newest event time of a row.
    """

    def __init__(self, policy: SilencePolicy, index: SeriesIndex, rows: Rows, episodes: Episodes, clock: str = "time") -> None:
        self.policy = policy
        self.pulse = Pulse()
        self._index = index
        self._episodes = episodes
        self._rows = rows
        self._clock = clock
        self._several = rows.pages.layout.shape.features > 1

    @property
    def on(self) -> bool:
        """Whether anybody wants to know. Who is silent already is noticed to send again in any case."""
        return self.policy.enabled != "off"

    def look(self, offset: int, muted: Callable[[str, int], bool]) -> list[Found]:
        """Looks through all series in front of the record at this offset; what there is to tell, in the order of their keys.

        Args:
            offset: of the record.
            muted: whether a series, by its key, is muted at a moment; it may fall silent when it is no longer.
        """
        pulse, last_use = self.pulse, self._index.last_use
        known = last_use < FRESH
        heard = pulse.heard(last_use)
        pulse.look(offset, max(_LEAST_SAMPLES, int(np.count_nonzero(known)) // 2))
        if not len(heard):
            return []
        now = int(middle(self._column(self._clock, heard)))
        if not pulse.tick(now, max(PAUSE_MS, PAUSE_STEPS * middle(self._column("step_ms", heard)))) or len(pulse.ticks) <= LEAST_TICKS:
            return []
        rows = np.flatnonzero(known & (last_use < pulse.ticks[-LEAST_TICKS][0]))
        silent = self._episodes.silent[rows] != 0
        fallen = self._candidates(rows[~silent], last_use, now)
        self._rows.bring(np.concatenate([rows[silent], fallen]))
        found = [self._told_again(row, now) for row in rows[silent].tolist()]
        found += [self._fallen(row, now) for row in fallen.tolist() if not muted(self._index.keys[row] or "", now)]
        return sorted((one for one in found if one is not None), key=lambda one: self._index.keys[one.row] or "")

    def _candidates(self, rows: NDArray[np.intp], last_use: NDArray[np.int64], now_ms: int) -> NDArray[np.intp]:
        """Those of these rows that have been silent for too long."""
        step_ms = self._column("step_ms", rows).astype(np.float64)
        wanted = (self._column("age", rows) >= WARMUP_SAMPLES) & (step_ms > 0)
        if self.policy.enabled == "auto":
            wanted &= self._column("step_spread", rows) <= STEADY * step_ms
        patience = np.maximum(self.policy.after_ms, (self.policy.after_steps * step_ms).astype(np.int64))
        since = np.maximum(self.pulse.since(last_use[rows]), self._column(self._clock, rows))
        chosen: NDArray[np.intp] = rows[wanted & (now_ms - since >= patience)]
        return chosen

    def _column(self, name: str, rows: NDArray[np.intp]) -> NDArray[Any]:
        """A field of one value, of these rows, (n,)."""
        return self._rows.take(name, rows)[:, 0]

    def _value(self, name: str, row: int) -> Any:  # noqa: ANN401  whatever the field is made of
        """The same of one row that was brought over."""
        return self._rows.pages.field(name)[row, 0]

    def _fallen(self, row: int, now_ms: int) -> Found | None:
        starts_ms = int(self._value(self._clock, row))
        # An id is made of the time, so no two silences of a series may begin at the same, whatever its clock does.
        return self._found(row, "firing", now_ms) if self._episodes.fall_silent(row, starts_ms) else None

    def _told_again(self, row: int, now_ms: int) -> Found | None:
        due = self._episodes.silent_beat(row, (now_ms - self._episodes.silent_since(row)) // HEARTBEAT_MS)
        return self._found(row, "updated", now_ms) if due else None

    def returns(self, batch: SampleBatch) -> list[tuple[int, Found]]:
        """What there is to tell if silent series are heard of again with these samples, by sample; before they are learned.

        Whether a sample is one by which a series is heard of is known afterwards, and `returned` is to be told.
        """
        if not self._episodes.silent_count:
            return []
        samples = np.flatnonzero(self._episodes.silent[batch.row]).tolist()
        return [(sample, self.ended(int(batch.row[sample]), int(batch.time_ms[sample]))) for sample in samples]

    def returned(self, verdicts: Verdicts, returns: list[tuple[int, Found]]) -> list[tuple[int, Found]]:
        """Those of `returns` that hold; these series are silent no longer."""
        found = []
        for sample, one in returns:
            if self._episodes.silent[one.row] and not verdicts.flags[sample] & (LATE | REPEATED):
                silence = one.silence
                if not self._several:
                    rate = bool(verdicts.flags[sample] & COUNTER)
                    silence = silence._replace(value=float(verdicts.observed[sample, 0]), rate=rate)
                found.append((sample, Found(one.row, silence)))
                self._episodes.break_silence(one.row)
        return found

    def ended(self, row: int, time_ms: int) -> Found:
        """What there is to tell if the silence in this row ends with a sample of this event time."""
        return self._found(row, "resolved", time_ms, ends_ms=time_ms)

    def forgotten(self, rows: NDArray[np.int32]) -> list[Found]:
        """Series in these rows are about to be forgotten; those that are silent are so no longer."""
        found = []
        for row in rows[self._episodes.silent[rows] != 0].tolist():
            now_ms = max(self._episodes.silent_since(row), self.pulse.time_ms)
            found.append(self._found(row, "resolved", now_ms, ends_ms=now_ms, forgotten=True))
            self._episodes.break_silence(row)
        return found

    def _found(
        self,
        row: int,
        status: Literal["firing", "updated", "resolved"],
        event_ms: int,
        *,
        ends_ms: int | None = None,
        forgotten: bool = False,
    ) -> Found:
        step_ms = float(self._value("step_ms", row))
        return Found(
            row,
            Silence(
                status=status,
                forgotten=forgotten,
                starts_ms=self._episodes.silent_since(row),
                ends_ms=ends_ms,
                event_ms=event_ms,
                step_ms=step_ms,
                patience_ms=self.policy.patience_ms(step_ms),
                value=0.0 if self._several else float(self._value("seen", row)),
                rate=bool(self._value("kind", row) == COUNTER_KIND) and not self._several,
                several=self._several,
            ),
        )
