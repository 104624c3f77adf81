"""What producers write during a run: series that come, go and return, some hot, some late or repeated, among records that are no good."""

import json
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from tests.simulation.clock import EPOCH_S
from tests.simulation.log import Record

SERIES_TTL_MS: Final = 7 * 86_400_000

POISON: Final = (
    b"",
    b"{",
    b"null",
    b'{"name":"m"}',
    b'{"name":"m","ts":1767268800000,"value":"much"}',
    b'{"name":"","ts":1767268800000,"value":1}',
    b"\xff\xfe",
)


class Burst(NamedTuple):
    """Records that arrive together."""

    at_s: float
    partition: int
    records: list[Record]
    """Offsets are relative."""
    transaction: str | None
    """"commit" or "abort" if its producer uses transactions."""


@dataclass
class _Partition:
    """Where one partition's event time and series are."""

    number: int
    clock_ms: int
    recent: list[tuple[str, int, float]] = field(default_factory=list)
    hot: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What arrives when."""

    partitions: int
    capacity: int
    """Series that a partition may keep; there are more."""
    bursts: list[Burst]

    @classmethod
    def make(cls, rng: Random, partitions: int, window_s: float, records: int) -> "Workload":
        """Some bursts over a window of time."""
        capacity = rng.choice([6, 9, 14])
        universe = capacity + rng.choice([-2, 3, 10])
        states = [_Partition(number, int(EPOCH_S * 1000) + number) for number in range(partitions)]
        bursts: list[Burst] = []
        left = records
        while left > 0:
            state = rng.choice(states)
            count = min(left, rng.choice([1, 3, 8, 20]))
            left -= count
            transaction = rng.choice(["commit", "abort"]) if rng.random() < 0.06 else None
            made = [_record(rng, state, universe, offset) for offset in range(count)]
            bursts.append(Burst(rng.uniform(0.5, window_s), state.number, made, transaction))
        bursts.sort(key=lambda burst: burst.at_s)
        return cls(partitions, capacity, bursts)


def _record(rng: Random, state: _Partition, universe: int, offset: int) -> Record:
    kind = rng.random()
    if kind < 0.015:
        return Record(offset, b"bad", rng.choice(POISON), (), state.clock_ms)
    if kind < 0.02:
        return Record(offset, b"huge", b"x" * 6_000, (), state.clock_ms)
    if kind < 0.023:
        return Record(offset, b"gone", None, (), state.clock_ms)
    # A record late in a run may stand before an earlier one in its partition: only its own clock counts.
    state.clock_ms += rng.choice([1_000, 10_000, 10_000, 60_000])
    if rng.random() < 0.004:
        state.clock_ms += SERIES_TTL_MS + rng.choice([60_000, SERIES_TTL_MS // 8])
    if state.recent and kind < 0.05:
        series, time_ms, value = rng.choice(state.recent)
        return _sample(offset, series, time_ms, value, state.clock_ms)
    series = f"h{min(int(rng.expovariate(3.0 / universe)), universe - 1)}"
    time_ms = state.clock_ms - (rng.choice([5_000, 120_000]) if kind < 0.08 else 0)
    if state.hot.get(series, 0):
        state.hot[series] -= 1
        value = rng.uniform(90, 99)
    else:
        if rng.random() < 0.12:
            state.hot[series] = rng.choice([1, 2, 5])
        value = rng.uniform(10, 80)
    value = round(value, 3)
    state.recent = [*state.recent[-5:], (series, time_ms, value)]
    return _sample(offset, series, time_ms, value, state.clock_ms)


def _sample(offset: int, series: str, time_ms: int, value: float, produced_ms: int) -> Record:
    text = json.dumps({"name": "load", "ts": time_ms, "value": value, "tags": {"host": series}}, separators=(",", ":"))
    return Record(offset, series.encode(), text.encode(), (), produced_ms)
