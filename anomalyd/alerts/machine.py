"""The state machine of episodes, compiled: inactive → pending → firing → resolved, or withheld instead of firing.

The state of a series' episode is 96 bytes of its state row, so it travels and survives with the rest of the row. Everything here follows
from the order of the partition and from event time alone; the clock, the batch cuts and other series never matter.

The rules, for a sample that is neither in warm-up, late nor repeated:

- A sample is *hot* when its score is at least 1, its direction is one that the policy wants, and it lies at least as far from what was
  expected as the policy wants; of several features, those that the sample has, the one with the largest share decides.
- inactive → pending: a hot, ARMED sample, its event time later than the series' previous opening (so that alert ids are unique).
- pending → firing: every sample since the opening was hot and `min_duration_ms` have gone by; with 0 the opening sample fires at once.
- pending → inactive: a sample that is not hot. Nobody was told, so nobody is told now.
- pending → withheld, where it would fire: the sample is muted, or the series' previous alert ended less than `reopen_after_ms` ago.
- withheld → firing: a hot sample for which neither holds any more; the alert started with the opening sample all the same.
- firing → resolved: `resolve_after_samples` samples in a row that are not hot; the episode ended with the first of them. One that is
  withheld ends in the same way, and nobody is told.
- A series that stays away for more than `max_gap_ms` of event time closes what it had open on its return: what happened in between is
  not known, so the old episode ended when it was last seen, and the returning sample is judged afresh.
- Severity and direction are those of the peak so far, so severity only escalates.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP
from anomalyd.jit import njit

INACTIVE: Final = 0
PENDING: Final = 1
OPEN: Final = 2
WITHHELD: Final = 3

FIRING: Final = 1
UPDATED: Final = 2
RESOLVED: Final = 3

WARNING: Final = 1
CRITICAL: Final = 2

ABOVE: Final = 1
BELOW: Final = 2

_UNTRUSTED: Final = WARMUP | LATE | REPEATED

_EPISODE_FIELDS: Final = (
    ("state", "u1", 0),  # INACTIVE | PENDING | OPEN | WITHHELD
    ("severity", "u1", 1),  # of the peak: WARNING | CRITICAL
    ("direction", "u1", 2),  # of the peak: ABOVE | BELOW
    ("told_severity", "u1", 3),  # in the last message
    ("opened", "u1", 4),  # 1 once starts_ms is the time of an opening
    ("updated", "u1", 5),  # 1 once update_ms is the time of an update of this episode
    ("ended", "u1", 6),  # 1 once ended_ms is the time of an end
    ("silent", "u1", 7),  # 1 while the series is silent and that was told
    ("quiet", "u4", 8),  # samples in a row that were not hot
    ("silent_beats", "u4", 12),  # how often it was told again
    ("starts_ms", "i8", 16),  # opening of this episode, or of the previous one while inactive
    ("seen_ms", "i8", 24),  # newest sample of the series while not inactive
    ("quiet_ms", "i8", 32),  # first sample of the quiet run
    ("message_ms", "i8", 40),  # last message of this episode
    ("update_ms", "i8", 48),  # last update of this episode
    ("peak", "f8", 56),  # highest score
    ("told_peak", "f8", 64),  # highest score in the last message
    ("peak_evidence", "f8", 72),  # evidence behind the highest score; 0 in rows of releases that did not keep it
    ("ended_ms", "i8", 80),  # end of the previous alert: of the last episode that was told of
    ("silent_ms", "i8", 88),  # newest sample before the silence, or before the one before while it sends
)

EPISODE: Final = np.dtype(
    {
        "names": [name for name, _, _ in _EPISODE_FIELDS],
        "formats": [kind for _, kind, _ in _EPISODE_FIELDS],
        "offsets": [offset for _, _, offset in _EPISODE_FIELDS],
        "itemsize": 96,
    }
)
"""A series' episode inside its state row; zeros are a series that never had one. Times are event time in milliseconds since the epoch."""

TRANSITION: Final = np.dtype(
    [
        ("sample", "i8"),
        ("starts_ms", "i8"),
        ("ends_ms", "i8"),
        ("peak", "f8"),
        ("peak_evidence", "f8"),
        ("status", "u1"),
        ("severity", "u1"),
        ("direction", "u1"),
        ("lapsed", "u1"),
    ],
    align=True,
)
"""What the machine writes; the times and the peak, with its evidence, are those of the episode."""

OPEN_END: Final = -1
"""`Transitions.ends_at_ms` of an episode that has not ended."""

Record = Any
"""One element of a structured array, by reference; numba infers its type."""


@njit
def _tell(found: NDArray[np.void], count: int, sample: int, episode: Record, status: int, ends_ms: int, lapsed: int) -> int:
    """Writes one transition and remembers what was told."""
    out = found[count]
    out.sample = sample
    out.starts_ms = episode.starts_ms
    out.ends_ms = ends_ms
    out.peak = episode.peak
    out.peak_evidence = episode.peak_evidence
    out.status = status
    out.severity = episode.severity
    out.direction = episode.direction
    out.lapsed = lapsed
    episode.told_severity = episode.severity
    episode.told_peak = episode.peak
    return count + 1


@njit
def _close(episode: Record, active: NDArray[np.uint8], row: int) -> None:
    """Back to inactive; only two times are kept: the next opening has to be later than this one, and how long ago it ended may matter."""
    active[row] = INACTIVE
    episode.state = INACTIVE
    episode.severity = 0
    episode.direction = 0
    episode.told_severity = 0
    episode.updated = 0
    episode.quiet = 0
    episode.seen_ms = 0
    episode.quiet_ms = 0
    episode.message_ms = 0
    episode.update_ms = 0
    episode.peak = 0.0
    episode.told_peak = 0.0
    episode.peak_evidence = 0.0


@njit
def run(  # noqa: C901, PLR0912, PLR0915  # one straight function is the state machine; calls would hide its order
    episodes: NDArray[np.void],
    active: NDArray[np.uint8],
    row: NDArray[np.int32],
    time_ms: NDArray[np.int64],
    score: NDArray[np.float64],
    evidence: NDArray[np.float64],
    observed: NDArray[np.float64],
    expected: NDArray[np.float64],
    share: NDArray[np.float32],
    flags: NDArray[np.uint8],
    sides: int,
    min_deviation: float,
    min_deviation_ratio: float,
    min_duration_ms: int,
    reopen_after_ms: int,
    resolve_after: int,
    critical_score: float,
    update_interval_ms: int,
    heartbeat_ms: int,
    max_gap_ms: int,
    muted: NDArray[np.bool_],
    found: NDArray[np.void],
) -> tuple[int, int, int, int]:
    """Runs the machine over one batch.

    Args:
        episodes: EPISODE, shape (capacity,).
        active: `state` of every row once more, dense, shape (capacity,): a quiet sample of an inactive series costs this one byte.
        row: state rows, shape (n,); the following columns are those of SampleBatch and Verdicts.
        time_ms: shape (n,).
        score: shape (n,).
        evidence: shape (n,).
        observed: shape (n, F).
        expected: shape (n, F).
        share: shape (n, F).
        flags: shape (n,).
        sides: ABOVE, BELOW or both.
        min_deviation: this and the following are fields of Policy; in units of the observed values.
        min_deviation_ratio: of the expected value.
        min_duration_ms: event time.
        reopen_after_ms: event time.
        resolve_after: samples.
        critical_score: score.
        update_interval_ms: event time.
        heartbeat_ms: event time.
        max_gap_ms: event time.
        muted: samples with which no alert may fire, shape (n,), or empty: none is.
        found: TRANSITION, room for 2 n.

    Returns:
        How many transitions were written to `found`, by how much the number of open episodes changed, and how many episodes were withheld
        because they were muted and because the one before had just ended.
    """
    count = 0
    opened = 0
    muted_count = 0
    flapping_count = 0
    for i in range(len(row)):
        r = row[i]
        if score[i] < 1.0 and active[r] == INACTIVE:
            continue
        if flags[i] & _UNTRUSTED:
            continue
        episode = episodes[r]
        now = time_ms[i]

        top = 0
        for f in range(1, share.shape[1]):
            if not np.isnan(observed[i, f]) and (share[i, f] > share[i, top] or np.isnan(observed[i, top])):
                top = f
        side = BELOW if observed[i, top] < expected[i, top] else ABOVE
        deviation = abs(observed[i, top] - expected[i, top])
        far = deviation >= min_deviation and deviation >= min_deviation_ratio * abs(expected[i, top])
        hot = score[i] >= 1.0 and (side & sides) != 0 and far

        if episode.state != INACTIVE and now - episode.seen_ms > max_gap_ms:
            if episode.state == OPEN:
                ends_ms = episode.quiet_ms if episode.quiet > 0 else episode.seen_ms
                count = _tell(found, count, i, episode, RESOLVED, ends_ms, 1)
                opened -= 1
                episode.ended = 1
                episode.ended_ms = ends_ms
            _close(episode, active, r)

        if episode.state == INACTIVE:
            if not hot or not flags[i] & ARMED or (episode.opened and now <= episode.starts_ms):
                continue
            episode.state = PENDING
            episode.opened = 1
            episode.starts_ms = now
            active[r] = PENDING
        elif episode.state == PENDING and not hot:
            _close(episode, active, r)
            continue
        episode.seen_ms = now

        if hot:
            episode.quiet = 0
            if score[i] > episode.peak:
                episode.peak = score[i]
                episode.peak_evidence = evidence[i]
                episode.direction = side
                episode.severity = CRITICAL if score[i] >= critical_score else WARNING
        else:
            if episode.quiet == 0:
                episode.quiet_ms = now
            episode.quiet += 1
            if episode.quiet >= resolve_after:
                if episode.state == OPEN:
                    count = _tell(found, count, i, episode, RESOLVED, episode.quiet_ms, 0)
                    opened -= 1
                    episode.ended = 1
                    episode.ended_ms = episode.quiet_ms
                _close(episode, active, r)
                continue

        if episode.state != OPEN:
            # What was withheld fires with a hot sample only: while it dies down it is no news.
            if not hot or (episode.state == PENDING and now - episode.starts_ms < min_duration_ms):
                continue
            mute = len(muted) > 0 and muted[i]
            if mute or (reopen_after_ms > 0 and episode.ended and now - episode.ended_ms < reopen_after_ms):
                if episode.state == PENDING:
                    episode.state = WITHHELD
                    active[r] = WITHHELD
                    if mute:
                        muted_count += 1
                    else:
                        flapping_count += 1
                continue
            episode.state = OPEN
            active[r] = OPEN
            opened += 1
            episode.message_ms = now
            count = _tell(found, count, i, episode, FIRING, OPEN_END, 0)
            continue

        # An escalation waits for the previous update only, so that one right after the alert fired is told at once; a mere peak, as the
        # second sample of almost every alert is, waits for any message. What has to wait is told by the first sample after the wait.
        escalated = episode.severity > episode.told_severity and (not episode.updated or now - episode.update_ms >= update_interval_ms)
        higher = episode.peak > episode.told_peak and now - episode.message_ms >= update_interval_ms
        if escalated or higher or now - episode.message_ms >= heartbeat_ms:
            episode.updated = 1
            episode.update_ms = now
            episode.message_ms = now
            count = _tell(found, count, i, episode, UPDATED, OPEN_END, 0)
    return count, opened, muted_count, flapping_count
