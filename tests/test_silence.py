"""Series that fall silent: who is told of, against the progress of the partition, and that nothing changes it but the records."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.messages import Alert, load_schema
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.batch import LATE, REPEATED, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector, Pages
from anomalyd.errors import ConfigError
from anomalyd.formats import make_decoder
from anomalyd.shard import Outcome, Shard, StreamPlan
from anomalyd.shard_silence import Pulse
from tests.detector.population import joined, taken
from tests.test_shard_state import ACTS, START_MS, TTL_MS, Act, Plain, Record, assert_equal_lives, line

STEP_MS = 10_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
AUTO = SilencePolicy()
NOISE = np.random.default_rng(0).standard_normal(9973)


class Steady(Plain):
    """Whose series have a steady step and are old enough from their second sample on."""

    def step(
        self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64] | None = None, tally: NDArray[np.int64] | None = None
    ) -> Verdicts:
        parts = [self._one(pages, taken(batch, slice(i, i + 1)), threshold) for i in range(len(batch))]
        return joined(parts) if parts else super().step(pages, batch)

    def _one(self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64] | None) -> Verdicts:
        verdicts = super().step(pages, batch, threshold)
        if not verdicts.flags[0] & (LATE | REPEATED):
            pages.field("step_ms")[batch.row[0]] = 30_000
            pages.field("age")[batch.row[0]] += 99
        return verdicts


@pytest.fixture(scope="module")
def steady() -> Steady:
    return Steady.load(device="cpu")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(device="cpu")


def shard(
    detector: Detector, policy: SilencePolicy = AUTO, capacity: int = 64, *, ttl_ms: int = 8 * 24 * HOUR_MS, mutes: tuple[Mute, ...] = ()
) -> Shard:
    plan = StreamPlan("hosts", Policy(resolve_after_samples=2, mutes=mutes), silence=policy)
    return Shard(
        plan,
        Source("metrics", 3),
        detector,
        make_decoder("influx"),
        capacity,
        now_ms=lambda: 5,
        series_ttl_ms=ttl_ms,
        sweep_records=256,
        reading="influx",
    )


class Feed:
    """Hosts that each send a value every ten seconds, some of them with a wrong clock."""

    def __init__(self, hosts: int = 10, step_ms: int = STEP_MS) -> None:
        self.hosts = [f"h{i}" for i in range(hosts)]
        self.step_ms = step_ms
        self.now_ms = START_MS
        self.offset = 0
        self.skew_ms: dict[str, int] = {}

    def run(self, minutes: float, *missing: str) -> list[Record]:
        """So much event time in which some are missing."""
        return list(self._records(self.now_ms + round(minutes * MINUTE_MS), missing))

    def _records(self, end_ms: int, missing: Sequence[str]) -> Iterator[Record]:
        while self.now_ms < end_ms:
            for host in self.hosts:
                if host not in missing:
                    yield self.sample(host)
            self.now_ms += self.step_ms

    def sample(self, host: str, value: float | None = None) -> Record:
        value = 50 + float(NOISE[self.offset % len(NOISE)]) if value is None else value
        self.offset += 1
        time_ms = self.now_ms + self.skew_ms.get(host, 0)
        return Record(line(host, time_ms, value).encode(), self.offset, time_ms)


def told(outcome: Outcome) -> list[tuple[str, str]]:
    return [(alert.series.labels["h"], alert.status) for alert in silent(outcome)]


def silent(outcome: Outcome) -> list[Alert]:
    validator = Draft202012Validator(load_schema())
    for alert in outcome.alerts:
        validator.validate(msgspec.json.decode(alert.message.value))
    return [alert.message.alert for alert in outcome.alerts if alert.message.alert.kind == "silent"]


# --- who is silent --------------------------------------------------------------------------------------------------------


def test_a_series_that_stops_is_told_of_once_and_again_when_it_returns(detector: Detector) -> None:
    feed, shard_ = Feed(), shard(detector)
    assert told(shard_.process(feed.run(30))) == []
    last_ms = feed.now_ms - STEP_MS

    (firing,) = silent(shard_.process(feed.run(60, "h3")))
    assert (firing.status, firing.series.key, firing.severity, firing.ends_at) == ("firing", 'm.v{h="h3"}', "warning", None)
    assert firing.starts_at == "2025-12-17T20:03:10.000Z"
    assert last_ms == 1_766_001_790_000
    assert 10 * MINUTE_MS < (firing.peak_score * 10 * MINUTE_MS) < 14 * MINUTE_MS
    assert "usually it sends every 10 s" in firing.annotations["summary"]
    assert (shard_.silent_series, shard_.open_episodes) == (1, 1)

    (resolved,) = silent(shard_.process(feed.run(1)))
    assert (resolved.status, resolved.alert_id, resolved.starts_at) == ("resolved", firing.alert_id, firing.starts_at)
    assert resolved.ends_at == resolved.event_time == "2025-12-17T21:03:20.000Z"
    assert "sends again after 1 h" in resolved.annotations["summary"]
    assert shard_.silent_series == 0

    again = silent(shard_.process([*feed.run(30), *feed.run(30, "h3")]))
    assert [alert.status for alert in again] == ["firing"]
    assert again[0].alert_id != firing.alert_id


def test_most_of_a_partition_may_fall_silent(detector: Detector) -> None:
    feed, shard_ = Feed(), shard(detector)
    gone = [f"h{i}" for i in range(8)]

    outcome = shard_.process([*feed.run(30), *feed.run(40, *gone)])

    assert told(outcome) == [(host, "firing") for host in gone]


@pytest.mark.parametrize("quiet_minutes", [5, 30, 60 * 26])
def test_a_quiet_partition_has_no_silent_series_and_neither_has_one_that_wakes_up(detector: Detector, quiet_minutes: int) -> None:
    """Its series come back one by one, in the course of five minutes."""
    feed, shard_ = Feed(), shard(detector)
    records = feed.run(30)
    feed.now_ms += quiet_minutes * MINUTE_MS
    for i in range(10):
        records += feed.run(0.5, *feed.hosts[i + 1 :])
    assert told(shard_.process([*records, *feed.run(30)])) == []

    assert told(shard_.process(feed.run(30, "h3"))) == [("h3", "firing")]


@pytest.mark.parametrize("skew_ms", [-2 * HOUR_MS, HOUR_MS, 365 * 24 * HOUR_MS])
def test_one_wrong_clock_silences_nobody(detector: Detector, skew_ms: int) -> None:
    """Neither its own series nor those of others; one that is slow or a little fast is missed all the same when it stops."""
    feed, shard_ = Feed(), shard(detector)
    feed.skew_ms = {"h3": skew_ms}
    assert told(shard_.process(feed.run(90))) == []

    missed = [("h3", "firing")] if skew_ms <= HOUR_MS else []
    assert told(shard_.process(feed.run(90, "h3"))) == missed


def test_series_that_come_one_after_the_other_are_not_silent(detector: Detector) -> None:
    """As from a file: each has its whole course before the next one begins."""
    feed, shard_ = Feed(5), shard(detector)
    records: list[Record] = []
    for host in feed.hosts:
        feed.now_ms = START_MS
        records += feed.run(120, *(other for other in feed.hosts if other != host))

    assert told(shard_.process(records)) == []


def test_a_clock_that_goes_wrong_silences_nobody(detector: Detector) -> None:
    feed, shard_ = Feed(), shard(detector)
    outcomes = [shard_.process(feed.run(30))]
    for skew_ms in (HOUR_MS, -HOUR_MS, 0):
        feed.skew_ms = dict.fromkeys(feed.hosts[:3], skew_ms)
        outcomes.append(shard_.process(feed.run(40)))

    assert [told(outcome) for outcome in outcomes] == [[], [], [], []]


def test_patience_goes_by_the_step_of_the_series(detector: Detector) -> None:
    """One that sends every five minutes is missed after fifty, not after ten."""
    feed, shard_ = Feed(), shard(detector)
    records: list[Record] = []
    for _ in range(120):
        records += [feed.sample("slow"), *feed.run(5)]
    assert told(shard_.process(records)) == []

    assert told(shard_.process(feed.run(40))) == []
    assert told(shard_.process(feed.run(25))) == [("slow", "firing")]


@pytest.mark.parametrize(("enabled", "missed"), [("auto", []), ("on", [("rare", "firing")]), ("off", [])])
def test_without_a_steady_step_only_those_who_ask_are_told(detector: Detector, enabled: Any, missed: list[Any]) -> None:  # noqa: ANN401
    feed, shard_ = Feed(), shard(detector, SilencePolicy(enabled=enabled))
    rng = np.random.default_rng(1)
    records: list[Record] = []
    while feed.now_ms < START_MS + 4 * HOUR_MS:
        records += feed.run(1 / 6)
        if rng.random() < 0.2:
            records.append(feed.sample("rare"))

    assert told(shard_.process(records)) == []
    assert told(shard_.process(feed.run(60))) == missed


def test_a_new_series_is_not_waited_for(detector: Detector) -> None:
    feed, shard_ = Feed(), shard(detector)
    records = feed.run(30)
    records += [feed.sample("new"), *feed.run(1)]

    assert told(shard_.process([*records, *feed.run(60)])) == []


def test_a_silence_is_told_of_every_day(detector: Detector) -> None:
    feed, shard_ = Feed(4, MINUTE_MS), shard(detector)
    shard_.process(feed.run(180))

    assert [alert.status for alert in silent(shard_.process(feed.run(50 * 60, "h3")))] == ["firing", "updated", "updated"]


def test_who_is_muted_falls_silent_afterwards(detector: Detector) -> None:
    feed = Feed()
    mute = Mute(start_ms=START_MS, end_ms=START_MS + 2 * HOUR_MS)
    shard_ = shard(detector, mutes=(mute,))

    assert told(shard_.process([*feed.run(30), *feed.run(80, "h3")])) == []
    assert told(shard_.process(feed.run(20, "h3"))) == [("h3", "firing")]


def test_a_series_may_be_anomalous_and_silent(detector: Detector) -> None:
    feed, shard_ = Feed(3), shard(detector)
    records = feed.run(60)
    records += [feed.sample("h1", 500.0), *feed.run(60, "h1")]
    alerts = [alert.message.alert for alert in shard_.process(records).alerts]

    about = [(alert.kind, alert.status) for alert in alerts if alert.series.labels["h"] == "h1"]
    assert about == [("anomaly", "firing"), ("silent", "firing")]
    assert shard_.open_episodes == 2


# --- how it ends --------------------------------------------------------------------------------------------------------------


def test_a_series_that_is_forgotten_is_silent_no_longer(detector: Detector) -> None:
    feed, shard_ = Feed(4, MINUTE_MS), shard(detector, ttl_ms=6 * HOUR_MS)
    shard_.process(feed.run(180))

    outcome = shard_.process(feed.run(8 * 60, "h3"))

    assert told(outcome) == [("h3", "firing"), ("h3", "resolved")]
    assert "no longer kept" in silent(outcome)[1].annotations["description"]
    assert (shard_.silent_series, outcome.expired) == (0, 1)


def test_a_series_that_begins_anew_is_silent_no_longer(detector: Detector) -> None:
    """It returns after it would have been forgotten, and before it was."""
    feed, shard_ = Feed(4, MINUTE_MS), shard(detector, ttl_ms=6 * HOUR_MS)
    shard_.process([*feed.run(180), *feed.run(6 * 60 + 5, "h3")])

    outcome = shard_.process(feed.run(1))

    assert told(outcome) == [("h3", "resolved")]
    assert outcome.expired == 1


def test_who_is_silent_when_the_silence_is_switched_off_is_noticed_to_return(detector: Detector) -> None:
    feed, shard_ = Feed(), shard(detector)
    shard_.process([*feed.run(30), *feed.run(30, "h3")])
    shard_._silences.policy = SilencePolicy(enabled="off")  # noqa: SLF001  as a restart with another configuration

    assert told(shard_.process(feed.run(30))) == [("h3", "resolved")]


# --- nothing but the records ------------------------------------------------------------------------------------------------


MOVES = st.lists(
    st.tuples(st.integers(1, 8), st.lists(st.sampled_from(["h0", "h1", "h2", "h3"]), max_size=3), st.sampled_from([0, 0, 0, 4, 20, 90])),
    min_size=2,
    max_size=8,
)


def course(moves: list[tuple[int, list[str], int]]) -> list[Record]:
    feed = Feed(5, 30_000)
    feed.skew_ms = {"h4": 7 * HOUR_MS}
    records = feed.run(3)
    for minutes, missing, pause in moves:
        records += feed.run(minutes, *missing)
        feed.now_ms += pause * MINUTE_MS
    return records


@settings(max_examples=25, deadline=None)
@given(MOVES, st.lists(ACTS, max_size=40), st.sampled_from([3, 16]), st.sampled_from([TTL_MS // 2, 8 * TTL_MS]))
def test_crashes_snapshots_and_batches_change_nothing(
    steady: Steady, moves: list[tuple[int, list[str], int]], acts: list[Act], capacity: int, ttl_ms: int
) -> None:
    policy = SilencePolicy(after_steps=2, after_ms=2 * MINUTE_MS)
    assert_equal_lives(lambda: shard(steady, policy, capacity, ttl_ms=ttl_ms), course(moves), acts)


def test_the_property_is_about_something(steady: Steady) -> None:
    policy = SilencePolicy(after_steps=2, after_ms=2 * MINUTE_MS)
    records = course([(10, ["h1"], 0), (2, [], 0), (9, ["h1", "h2"], 0), (5, [], 20), (8, ["h0"], 0)])

    events = told(shard(steady, policy).process(records))

    assert events == [
        ("h1", "firing"),
        ("h1", "resolved"),
        *[(h, "firing") for h in ("h1", "h2")],
        ("h1", "resolved"),
        ("h2", "resolved"),
        ("h0", "firing"),
    ]
    for size in (1, 7, 100):
        acts = [Act(size, 0, "commit"), Act(size, 1, "go on"), Act(size, 0, "crash")] * (3 if size == 100 else 40)
        assert_equal_lives(lambda: shard(steady, policy), records, acts)


def test_a_silence_is_resolved_by_the_next_owner_though_its_page_was_never_written(detector: Detector) -> None:
    feed = Feed(3)
    records = [*feed.run(30), *feed.run(20, "h1"), *feed.run(1)]
    assert_equal_lives(lambda: shard(detector), records, [Act(len(records) - 25, 0, "commit"), Act(1, 0, "crash")])


def test_the_pulse_grows_slowly_and_comes_back() -> None:
    pulse = Pulse()
    for minute in range(20_000):
        pulse.look(minute, 50)
        pulse.tick(minute * MINUTE_MS, HOUR_MS)

    assert len(pulse.ticks) < 80
    assert Pulse(pulse.state).state == pulse.state
    assert Pulse().state == ()
    ages = 20_000 - np.array([19_990, 19_900, 19_000, 10_000])
    counted = (19_999 * MINUTE_MS - pulse.since(np.array([19_990, 19_900, 19_000, 10_000]))) / MINUTE_MS
    assert (counted <= ages).all()
    assert (counted > 0.7 * ages - 2).all()


@pytest.mark.parametrize(("field", "value"), [("enabled", "sometimes"), ("after_steps", 1), ("after_ms", 10)])
def test_a_policy_out_of_range_is_refused(field: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=field):
        SilencePolicy(**{field: value})
