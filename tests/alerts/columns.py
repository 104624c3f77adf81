"""Samples and verdicts for tests of alerts, and the state machine of episodes once more in plain Python."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anomalyd.alerts.episodes import Episodes, Policy, Transitions
from anomalyd.alerts.machine import ABOVE, BELOW, CRITICAL, EPISODE, FIRING, OPEN_END, RESOLVED, UPDATED, WARNING
from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP, SampleBatch, Verdicts

ROW_BYTES = 256
"""Of the pretended state row: the episode is a part of it, so its rows are strided."""

EVIDENCE = 8.0
"""The threshold of the pretended detector: evidence is so many times the score."""

COLUMNS = tuple(name for name in Transitions.__slots__ if name != "sample")


@dataclass(frozen=True)
class Sample:
    """One sample and what the detector said about it."""

    row: int
    time_ms: int
    score: float
    flags: int = ARMED
    side: int = ABOVE
    features: int = 1
    top: int = 0
    away: float = 10.0
    """Distance from the expected value; the expected value of feature f is f."""
    muted: bool = False

    def columns(self) -> tuple[list[float], list[float], list[float]]:
        """Observed, expected and share; every feature but the top one lies on the other side."""
        observed = [(self.away if (self.side == ABOVE) == (f == self.top) else -self.away) + f for f in range(self.features)]
        share = [0.6 if f == self.top else 0.4 / (self.features - 1) for f in range(self.features)] if self.features > 1 else [1.0]
        return observed, [float(f) for f in range(self.features)], share


def columns(samples: Sequence[Sample]) -> tuple[SampleBatch, Verdicts]:
    """The samples as a batch with its verdicts."""
    shape = (len(samples), samples[0].features if samples else 1)
    parts = [s.columns() for s in samples]
    observed = np.array([p[0] for p in parts], np.float64).reshape(shape)
    expected = np.array([p[1] for p in parts], np.float64).reshape(shape)
    score = np.array([s.score for s in samples], np.float64)
    batch = SampleBatch(
        row=np.array([s.row for s in samples], np.int32),
        time_ms=np.array([s.time_ms for s in samples], np.int64),
        value=observed,
        record=np.arange(len(samples), dtype=np.int32),
    )
    verdicts = Verdicts(
        score=score,
        evidence=score * EVIDENCE,
        observed=observed,
        expected=expected,
        low=expected - 5,
        high=expected + 5,
        share=np.array([p[2] for p in parts], np.float32).reshape(shape),
        flags=np.array([s.flags for s in samples], np.uint8),
    )
    return batch, verdicts


def episodes(policy: Policy | None = None, capacity: int = 8) -> Episodes:
    """Fresh episodes inside fresh state rows."""
    return Episodes(policy or Policy(), np.zeros((capacity, ROW_BYTES), np.uint8)[:, 64 : 64 + EPISODE.itemsize])


def play(samples: Sequence[Sample], policy: Policy | None = None, cuts: Iterable[int] = ()) -> tuple[Episodes, list[dict[str, Any]]]:
    """The transitions of all samples, fed in batches that end at the cuts, one dictionary each."""
    machine = episodes(policy)
    found: list[dict[str, Any]] = []
    ends = [*sorted(cuts), len(samples)]
    for start, end in zip([0, *ends], ends, strict=False):
        muted = np.array([sample.muted for sample in samples[start:end]], np.bool_)
        transitions = machine.advance(*columns(samples[start:end]), muted=muted if any(muted) else muted[:0])
        for k, sample in enumerate(transitions.sample.tolist()):
            found.append({"sample": start + sample} | {name: getattr(transitions, name)[k].tolist() for name in COLUMNS})
    return machine, found


def told(found: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Index of the sample and status."""
    names = {FIRING: "firing", UPDATED: "updated", RESOLVED: "resolved"}
    return [(t["sample"], names[t["status"]]) for t in found]


@dataclass
class Reference:
    """One series' episode in plain Python: the rules of anomalyd.alerts.machine written down a second time, in another shape.

    Instead of counters and marks it keeps the samples and messages of the episode and looks at all of them again.
    """

    policy: Policy
    previous_opening: int | None = None
    hot: list[Sample] = field(default_factory=list)
    """Hot samples of the pending or open episode."""
    quiet: list[Sample] = field(default_factory=list)
    """Samples since the last hot one."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """Messages of the open episode; empty while pending or withheld."""
    withheld: bool = False
    """The episode would have fired, but was muted, or came too soon after the alert before."""
    previous_end: int | None = None
    """Of the last alert that was told of."""
    withholdings: int = 0

    def feed(self, sample: Sample) -> list[dict[str, Any]]:
        """The transitions that the sample makes."""
        if sample.flags & (WARMUP | LATE | REPEATED):
            return []
        out = []
        seen = max((s.time_ms for s in (*self.hot, *self.quiet)), default=sample.time_ms)
        if sample.time_ms - seen > self.policy.max_gap_ms:
            out += self._end(self.quiet[0].time_ms if self.quiet else seen, sample, lapsed=True)
        wanted = {"both": (ABOVE, BELOW), "above": (ABOVE,), "below": (BELOW,)}[self.policy.direction]
        observed, expected, _ = sample.columns()
        deviation, ratio = abs(observed[sample.top] - expected[sample.top]), self.policy.min_deviation_ratio
        far = deviation >= max(self.policy.min_deviation, ratio * abs(expected[sample.top]))
        if sample.score >= 1 and sample.side in wanted and far:
            return out + self._feed_hot(sample)
        return out + (self._feed_quiet(sample) if self.hot else [])

    def _feed_hot(self, sample: Sample) -> list[dict[str, Any]]:
        if not self.hot:
            if not sample.flags & ARMED or (self.previous_opening is not None and sample.time_ms <= self.previous_opening):
                return []
            self.previous_opening = sample.time_ms
        self.hot.append(sample)
        self.quiet = []
        if self.told:
            return self._news(sample)
        if not self.withheld and sample.time_ms - self.hot[0].time_ms < self.policy.min_duration_ms:
            return []
        too_soon = self.previous_end is not None and sample.time_ms - self.previous_end < self.policy.reopen_after_ms
        if sample.muted or too_soon:
            self.withholdings += not self.withheld
            self.withheld = True
            return []
        return self._tell(FIRING, sample)

    def _feed_quiet(self, sample: Sample) -> list[dict[str, Any]]:
        self.quiet.append(sample)
        if not (self.told or self.withheld) or len(self.quiet) == self.policy.resolve_after_samples:
            return self._end(self.quiet[0].time_ms, sample, lapsed=False)
        return self._news(sample) if self.told else []

    def _news(self, sample: Sample) -> list[dict[str, Any]]:
        def wait_over(message: dict[str, Any], wait_ms: int) -> bool:
            return bool(sample.time_ms - message["event_time_ms"] >= wait_ms)

        now, last = self._describe(UPDATED, sample), self.told[-1]
        interval = self.policy.update_interval_ms
        escalated = now["severity"] > last["severity"] and all(wait_over(m, interval) for m in self.told if m["status"] == UPDATED)
        higher = now["peak_score"] > last["peak_score"] and wait_over(last, interval)
        return self._tell(UPDATED, sample) if escalated or higher or wait_over(last, self.policy.heartbeat_ms) else []

    def _tell(self, status: int, sample: Sample) -> list[dict[str, Any]]:
        self.told.append(self._describe(status, sample))
        return [self.told[-1]]

    def _end(self, ends_at_ms: int, sample: Sample, *, lapsed: bool) -> list[dict[str, Any]]:
        out = [self._describe(RESOLVED, sample) | {"ends_at_ms": ends_at_ms, "lapsed": lapsed}] if self.told else []
        self.previous_end = ends_at_ms if self.told else self.previous_end
        self.hot, self.quiet, self.told, self.withheld = [], [], [], False
        return out

    def _describe(self, status: int, sample: Sample) -> dict[str, Any]:
        peak = max(self.hot, key=lambda s: s.score)
        return {
            "row": sample.row,
            "status": status,
            "severity": CRITICAL if peak.score >= self.policy.critical_score else WARNING,
            "direction": peak.side,
            "lapsed": False,
            "score": sample.score,
            "peak_score": peak.score,
            "peak_evidence": peak.score * EVIDENCE,
            "starts_at_ms": self.hot[0].time_ms,
            "ends_at_ms": OPEN_END,
            "event_time_ms": sample.time_ms,
        }
