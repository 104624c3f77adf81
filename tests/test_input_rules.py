"""The rules for odd input, each through the shard that the daemon runs: one test a rule, in the order of docs/input-rules.md."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.alerts.messages import Alert
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.batch import Source
from anomalyd.detector import Detector, Options
from anomalyd.detector.detector import Kind
from anomalyd.detector.recipe import LATE_RUN, WARMUP_SAMPLES
from anomalyd.formats import make_decoder
from anomalyd.series import Entities
from anomalyd.shard import Outcome, Shard, StreamPlan

PAGE = Path(__file__).parent.parent / "docs" / "input-rules.md"
START_MS = 1_766_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


class Record(NamedTuple):
    value: bytes
    offset: int
    timestamp: int = -1
    key: bytes | None = None


@dataclass
class Life:
    """What became of a series; offsets are indices of its samples."""

    shard: Shard
    outcome: Outcome

    @property
    def alerts(self) -> list[Alert]:
        return [alert.message.alert for alert in self.outcome.alerts]

    @property
    def fired(self) -> list[int]:
        return [alert.source.offset for alert in self.alerts if alert.status == "firing"]

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(alert.alert_id, alert.status) for alert in self.alerts]


def lines(time_ms: Times, value: Floats) -> list[bytes]:
    return [b"m v=%s %d000000" % (repr(x).encode(), t) for t, x in zip(time_ms.tolist(), value.tolist(), strict=True)]


def live(values: Iterable[bytes], kind: Kind = "auto") -> Life:
    """Records through a fresh shard."""
    detector = Detector(Detector.load(device="cpu").artifact, "cpu", Options(kind=kind))
    shard = Shard(StreamPlan("hosts"), Source("metrics", 0), detector, make_decoder("influx"), 8)
    return Life(shard, shard.process([Record(value, offset) for offset, value in enumerate(values)]))


def lived(time_ms: Times, value: Floats, kind: Kind = "auto") -> Life:
    return live(lines(time_ms, value), kind)


def every(count: int, step_ms: int = MINUTE_MS) -> Times:
    return START_MS + step_ms * np.arange(count, dtype=np.int64)


def noise(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(count)


def incident(count: int = 1000, at: int = 800) -> Floats:
    """Noise around 50 with one excursion."""
    value = 50.0 + noise(count)
    value[at : at + 3] += 30.0
    return value


def daily(count: int, step_ms: int, seed: int = 0) -> Floats:
    return np.asarray(50.0 + 10.0 * np.sin(2 * np.pi * step_ms * np.arange(count) / DAY_MS) + noise(count, seed))


def requests(count: int, step_ms: int | Times = 10_000, seed: int = 0) -> Floats:
    """A counter of about 200 a second."""
    return np.cumsum(np.random.default_rng(seed).poisson(np.broadcast_to(0.2 * np.asarray(step_ms), count))).astype(np.float64)


def assert_only(life: Life, *expected: int, others: int = 0) -> None:
    """An episode fires within two samples of each place named; by chance `others` may, for a budget is no promise of none."""
    found = [any(at <= offset <= at + 2 for offset in life.fired) for at in expected]
    assert all(found), (expected, life.fired)
    assert len(life.fired) <= len(expected) + others, (expected, life.fired)


# --- order and time -----------------------------------------------------------------------------------------------------


def test_missing_samples() -> None:
    kept = np.random.default_rng(1).random(1000) > 0.2
    kept[800:803] = True

    life = lived(every(1000)[kept], incident()[kept])

    assert_only(life, int(np.count_nonzero(kept[:800])))
    absent = live([b'm v="",w=1 1766000000000000000', b"m w=2 1766000060000000000"]).outcome
    assert (absent.samples, absent.rejected) == (2, {})


def test_late_samples() -> None:
    records = lines(every(1000), incident())
    late = lines(every(3) - HOUR_MS, np.full(3, 1e6))

    life = live([record for i, own in enumerate(records) for record in ([own, *late] if i % 100 == 50 else [own])])

    assert life.outcome.late == 30
    assert life.told == live(records).told


def test_samples_out_of_order() -> None:
    records = lines(every(1000), incident())
    swapped = records.copy()
    for i in range(50, 800, 25):
        swapped[i], swapped[i + 1] = records[i + 1], records[i]

    life = live(swapped)

    assert life.outcome.late == 30
    assert life.told == live([record for i, record in enumerate(records) if not 50 <= i < 800 or i % 25]).told


def test_repeated_samples() -> None:
    records = lines(every(1000), incident())

    life = live([record for own in records for record in (own, own)])

    assert life.outcome.repeated == 1000
    assert life.told == live(records).told


def test_clock_set_back() -> None:
    times, ahead = every(1000), every(1000)
    times[500:] -= 30 * DAY_MS
    ahead[500] += 30 * DAY_MS

    back, forth = lived(times, incident()), lived(ahead, incident())

    assert back.outcome.late == forth.outcome.late == LATE_RUN - 1
    assert_only(back, 800)
    assert_only(forth, 800)


def test_values_that_are_no_numbers() -> None:
    records = lines(every(1000), incident())
    odd = [b"m v=NaN 1766000000000000000", b"m v=-Inf 1766000000000000000", b"m v=1e999 1766000000000000000"]

    life = live([*records[:500], *odd, *records[500:]])

    assert life.outcome.rejected == {"non-finite": 3}
    assert life.told == live(records).told


def test_times_outside_the_calendar() -> None:
    records = lines(every(1000), incident())

    life = live([*records[:500], b"m v=1 -5000000000", b"m v=1 9000000000000000000", *records[500:]])

    assert life.outcome.rejected == {"bad-timestamp": 2}
    assert life.told == live(records).told


@pytest.mark.parametrize("pause_ms", [20 * MINUTE_MS, 5 * HOUR_MS, DAY_MS, 7 * DAY_MS])
def test_gaps_of_minutes_to_a_week(pause_ms: int) -> None:
    times, value = every(3000), daily(3000, MINUTE_MS)
    times[2000:] += pause_ms
    value[2000:] = daily(3000 + pause_ms // MINUTE_MS, MINUTE_MS, 1)[-1000:]
    value[2500:2503] += 60.0

    life = lived(times, value)

    assert life.outcome.expired == 0
    assert [offset for offset in life.fired if offset >= 2000] == [2500]


def test_irregular_steps() -> None:
    step_ms = np.random.default_rng(2).exponential(MINUTE_MS, 1000).astype(np.int64) + 1
    changed_ms = np.repeat([10_000, MINUTE_MS, 5 * MINUTE_MS], [300, 300, 400])

    for steps in (step_ms, changed_ms):
        assert_only(lived(START_MS + np.cumsum(steps), incident()), 800, others=1)


# --- kinds of values ------------------------------------------------------------------------------------------------------


def test_counters() -> None:
    rng = np.random.default_rng(3)
    step_ms = rng.integers(5_000, 15_000, 1500)
    value = requests(1500, step_ms)
    value[1200:] -= value[1204:1205] - value[1200:1201]
    value[1200:1205] = value[1199]

    life = lived(START_MS + np.cumsum(step_ms), 1e9 + value)

    (at,) = (offset for offset in life.fired if offset >= 1200)
    alert = next(alert for alert in life.alerts if alert.source.offset == at)
    assert at <= 1202
    assert (alert.value, alert.direction) == (0.0, "below")
    assert 150 < alert.expected < 250
    assert "/s" in alert.annotations["summary"]


@pytest.mark.parametrize("kind", ["auto", "counter"])
def test_resets_of_counters(kind: Kind) -> None:
    value = requests(2000)
    places = list(range(300, 2000, 170))
    for k, at in enumerate(places):
        # Between two readings it was away for a part of the time, or for almost all of it.
        value[at:] -= value[at] - 200.0 * k

    life = lived(every(2000, 10_000), value, kind)

    assert len(life.fired) <= 1
    assert not set(life.fired) & set(places)


def test_deltas() -> None:
    value = np.random.default_rng(4).poisson(30, 1000).astype(np.float64)
    value[800:803] = 0.0
    rising = np.arange(1000.0)

    assert_only(lived(every(1000), value, "delta"), 800)
    assert lived(every(1000), rising, "delta").shard.pages.field("seen")[0, 0] == 999.0
    assert lived(every(1000), rising).shard.pages.field("seen")[0, 0] == pytest.approx(1 / 60)


@pytest.mark.parametrize("level", [0.0, 7.0, -273.15, 1e12, 1e-12])
def test_constant_series(level: float) -> None:
    value = np.full(2000, level)
    assert lived(every(2000), value).fired == []

    value[1500:] += abs(level) or 1.0
    life = lived(every(2000), value)
    assert life.fired == [1500]
    assert life.shard.open_episodes == 0


def test_almost_constant_series() -> None:
    level = 21.7
    rounding: Floats = level * (1 + 1e-16 * noise(2000))
    single: Floats = rounding.astype(np.float32).astype(np.float64) + 2.0**-20 * np.round(noise(2000, 1))
    seldom = np.where(np.random.default_rng(5).random(2000) < 0.01, np.nextafter(level, 22.0), level)
    cancelled: Floats = 1e-17 * noise(2000)

    series: list[Floats] = [rounding, single, seldom, cancelled]
    for value in series:
        assert lived(every(2000), value).fired == []
        value[1500:1505] += 0.01 * level
        assert_only(lived(every(2000), value), 1500)


def test_integers() -> None:
    rng = np.random.default_rng(6)
    for usual, odd in ((rng.poisson(5, 2000), 60), (rng.integers(0, 2, 2000), 40), (-rng.poisson(1000, 2000), 1000)):
        value = usual.astype(np.float64)
        value[1500:1503] += odd
        assert_only(lived(every(2000), value), 1500, others=1)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 1e6, 1e15])
def test_large_and_small_values(unit: float) -> None:
    life = lived(every(1000), unit * (incident() - 50.0))

    assert_only(life, 800)
    assert abs(life.alerts[0].value) == pytest.approx(30 * unit, rel=0.2)


def test_negative_values() -> None:
    assert_only(lived(every(1000), -incident()), 800)
    assert_only(lived(every(1000), incident() - 50.0), 800)


# --- what changes for good --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-1000.0, -12.0, 12.0, 100.0, 1e9])
def test_level_shifts(shift: float) -> None:
    value = 50.0 + noise(5000)
    value[3000:] += shift

    life = lived(every(5000), value)

    assert_only(life, 3000)
    resolved = [alert.source.offset for alert in life.alerts if alert.status == "resolved"]
    assert len(resolved) == 1
    assert resolved[0] < 4000
    assert abs(float(life.shard.pages.field("mean")[0, 0]) - (50.0 + shift)) < 0.2 * abs(shift)


@pytest.mark.parametrize("slope", [1e-3, 1e-2, 0.1, 1.0, -0.1])
def test_trends(slope: float) -> None:
    value = slope * np.arange(3000) + noise(3000)

    assert lived(every(3000), value).fired == []


@pytest.mark.parametrize("hour", [-1, 1])
def test_daylight_saving(hour: int) -> None:
    step_ms, days, change = 5 * MINUTE_MS, 16, 12
    per_day, per_hour = DAY_MS // step_ms, HOUR_MS // step_ms
    times = every(per_day * days, step_ms)
    people = daily(per_day * days + 2 * per_hour, step_ms)
    local = times.copy()
    local[per_day * change :] += hour * HOUR_MS

    shifted = np.concatenate([people[: per_day * change], people[per_day * change + hour * per_hour :]])[: per_day * days]
    for life in (lived(times, shifted), lived(local, people[: per_day * days])):
        assert [offset for offset in life.fired if offset >= per_day * change] == []


# --- lives --------------------------------------------------------------------------------------------------------------------


def test_new_series() -> None:
    value = incident(at=WARMUP_SAMPLES // 2)
    assert lived(every(1000), value).fired == []

    assert_only(lived(every(1000), incident(at=3 * WARMUP_SAMPLES)), 3 * WARMUP_SAMPLES)


def test_series_that_returns_after_a_month() -> None:
    times, value = every(1500), 50.0 + noise(1500)
    times[700:] += 30 * DAY_MS
    value[698:700] += 30.0
    value[700:] = 5000.0 + 40.0 * noise(800, 1)
    value[1300:1303] += 1000.0

    life = lived(times, value)

    assert life.outcome.expired == 1
    assert_only(life, 698, 1300)
    closed = next(alert for alert in life.alerts if alert.status == "resolved")
    assert closed.source.offset == 700
    assert closed.ends_at is not None
    assert closed.ends_at < "2025-12-19"


def test_series_that_falls_silent() -> None:
    """Told of while others go on, and not when all of them pause; both decided by event time, so a daemon that is behind says the same."""
    times, value = every(2 * 360, 10_000), 50.0 + noise(2 * 360)
    paused = np.where(np.arange(720) >= 500, times + 2 * HOUR_MS, times)

    def hosts(time_ms: Times, gone: range) -> Iterable[bytes]:
        for i, own in enumerate(lines(time_ms, value)):
            yield from (own.replace(b"m v", b"m,h=%d v" % host) for host in range(4) if host or i not in gone)

    detector = Detector.load(device="cpu")
    plan = StreamPlan("hosts", silence=SilencePolicy())
    told = []
    for time_ms, gone in ((times, range(300, 500)), (paused, range(0))):
        shard = Shard(plan, Source("metrics", 0), detector, make_decoder("influx"), 8)
        outcome = shard.process([Record(record, offset) for offset, record in enumerate(hosts(time_ms, gone))])
        told.append([(alert.message.alert.kind, alert.message.alert.status, alert.message.alert.starts_at) for alert in outcome.alerts])

    assert told == [[("silent", status, "2025-12-17T20:23:10.000Z") for status in ("firing", "resolved")], []]


# --- several features ---------------------------------------------------------------------------------------------------------


def test_values_of_entities() -> None:
    """Six values of a host in three records: late ones are not used, a clock that was set back is followed, what was learned stays."""
    entities = Entities([f"m.{name}" for name in "abcdef"], ["h"], "host")

    def hosts(first: int, minutes: int) -> list[bytes]:
        value = 50.0 + noise(6 * minutes, seed=first).reshape(minutes, 6)
        return [
            b"m,h=x %s %d000000" % (",".join(f"{'abcdef'[k]}={row[k]!r}" for k in pair).encode(), START_MS + MINUTE_MS * (first + i))
            for i, row in enumerate(value.tolist())
            for pair in ((0, 1), (2, 3), (4, 5))
        ]

    good = hosts(1000, 200)
    detector = Detector(Detector.load(device="cpu").artifact.for_features(6), "cpu")
    shard = Shard(StreamPlan("hosts", entities=entities), Source("metrics", 0), detector, make_decoder("influx"), 8)

    offsets = count()

    def process(values: list[bytes]) -> Outcome:
        return shard.process([Record(value, next(offsets)) for value in values])

    learned = process(good)
    late = process(hosts(1199, 1)[:1])
    repeated = process(good[-3:])
    assert (learned.samples, learned.late, learned.alerts) == (200, 0, [])
    assert (late.samples, late.late) == (0, 2)
    assert (repeated.samples, repeated.repeated) == (0, 6)

    set_back = process(hosts(100, 20))
    assert np.asarray(shard.pages.field("time"))[0].tolist() == [START_MS + MINUTE_MS * 119]
    assert np.asarray(shard.pages.field("age"))[0].tolist() == [200 + 20 - LATE_RUN + 1]
    assert set_back.alerts == []


# --- the page -----------------------------------------------------------------------------------------------------------------


def test_each_rule_names_its_test_and_each_test_its_rule() -> None:
    text = PAGE.read_text("utf-8")
    rules: list[tuple[str, str]] = re.findall(r"^(\d+)\. .*?\(`(test_\w+)`\)", text, re.MULTILINE | re.DOTALL)
    numbers, named = [int(number) for number, _ in rules], [name for _, name in rules]
    tests = [name for name in globals() if name.startswith("test_") and name != "test_each_rule_names_its_test_and_each_test_its_rule"]

    assert numbers == list(range(1, len(rules) + 1))
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == len(rules)
    assert named == tests
