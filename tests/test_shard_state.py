"""What a shard writes down and reads back: whatever happens in between, it says and knows what one says and knows that never stopped."""

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

import anomalyd.shard
from anomalyd.alerts.budget import Pace
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.messages import load_schema
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.timeline import read, written
from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP, SampleBatch, Source, Verdicts
from anomalyd.detector import Artifact, Detector, Layout, Pages
from anomalyd.detector.detector import ModelInfo
from anomalyd.detector.migrate import without_network
from anomalyd.errors import ArtifactError, StateError
from anomalyd.formats import make_decoder
from anomalyd.shard import Outcome, Shard, StreamPlan
from anomalyd.state.codec import Episode, Forgotten, Page, decode, episode_key, forgotten_key
from anomalyd.state.ledger import needed
from anomalyd.state.ports import Restored

TTL_MS = 3_600_000
START_MS = 1_766_000_000_000


class Record(NamedTuple):
    value: bytes | None
    offset: int
    timestamp: int = -1
    key: bytes | None = None


class SmallPages(Detector):
    """A detector of which a few series fill several pages."""

    page_rows = 2
    gain = 0.3

    def new_pages(self, capacity: int) -> Pages:
        pages = super().new_pages(capacity)
        pages.page_rows = self.page_rows
        return pages


class Plain(SmallPages):
    """A detector that is quickly understood: the score is the distance from a mean, and every sample that is learned moves that.

    Order, late and repeated samples and a clock that was set back are treated as the real one does, with rows of the same layout.
    """

    def step(
        self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64] | None = None, tally: NDArray[np.int64] | None = None
    ) -> Verdicts:
        n, limit = len(batch), 1.0
        if threshold is not None:
            limit = 10 ** (threshold[1] - self.threshold[1] - (threshold[0] - self.threshold[0]) / 10)
        flags, score, expected = np.full(n, ARMED, np.uint8), np.zeros(n), np.zeros((n, 1))
        view = {name: pages.field(name)[:, 0] for name in ("time", "age", "late_run", "last", "mean", "seen")}
        for i, (row, time, value) in enumerate(zip(batch.row.tolist(), batch.time_ms.tolist(), batch.value[:, 0].tolist(), strict=True)):
            state = {name: column[row].item() for name, column in view.items()}
            late = state["age"] > 0 and time < state["time"]
            view["late_run"][row] = state["late_run"] + 1 if late and state["late_run"] < 2 else 0
            expected[i] = state["mean"]
            if late and state["late_run"] < 2:
                flags[i] |= LATE
                continue
            if state["age"] > 0 and time == state["time"] and value == state["last"]:
                flags[i] |= REPEATED
                continue
            if state["age"] < 2:
                flags[i] |= WARMUP
            else:
                score[i] = abs(value - state["mean"]) / limit
                if tally is not None:
                    tally += (score[i] >= 0.5, 200_000_000, 1_000)
            view["age"][row] = state["age"] + 1
            view["time"][row] = time
            view["last"][row] = view["seen"][row] = value
            # What was in force when it was learned is remembered, too, as the real one does by its envelope.
            view["mean"][row] = (1 - self.gain) * state["mean"] + self.gain * value + 1e-9 * limit
        share = np.ones((n, 1), np.float32)
        return Verdicts(score, score, batch.value, expected, expected, expected, share, flags)


class Other(Plain):
    """One of several models with rows of different sizes. What a row becomes depends on where it comes from, so every detour shows."""

    def __init__(self, artifact: Artifact, name: str) -> None:
        super().__init__(artifact, "cpu")
        number = "abc".index(name)
        self.model = ModelInfo(name, "1", name)
        self.layout = Layout(replace(artifact.shape, units=(3, 2, 5)[number]))
        self.page_rows = (2, 3, 1)[number]
        self.gain = (0.3, 0.25, 0.35)[number]

    def taken_over(
        self, rows: NDArray[np.uint8], layout: Sequence[tuple[str, str, int, int]], *, same_model: bool, same_features: bool = True
    ) -> NDArray[np.uint8]:
        new = without_network(self.layout, rows, layout)
        mean = new.view(np.float64)[:, self.layout["mean"].first]
        if not same_model:
            mean *= 1.0 + self.gain / 1000
        return new


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain.load(device="cpu")


@pytest.fixture(scope="module")
def models(plain: Plain) -> dict[str, Detector]:
    return {name: Other(plain.artifact, name) for name in "abc"}


POLICY = Policy(resolve_after_samples=2, update_interval_ms=60_000, max_gap_ms=2 * TTL_MS)


SWEEP = 8


PACE = Pace(hour_ms=10_000, day_ms=20_000, expected=0.4, days=6, doubt=0.6, samples=2)


def shard(
    detector: Detector,
    capacity: int = 4,
    policy: Policy = POLICY,
    reading: str = "influx",
    sweep: int = SWEEP,
    **models: Any,  # noqa: ANN401  of Shard
) -> Shard:
    return Shard(
        StreamPlan("hosts", policy),
        Source("metrics", 3),
        detector,
        make_decoder("influx"),
        capacity,
        now_ms=lambda: 5,
        series_ttl_ms=TTL_MS,
        sweep_records=sweep,
        reading=reading,
        pace=PACE,
        **models,
    )


def line(series: str, time_ms: int, value: float) -> str:
    return f"m,h={series} v={value} {time_ms}000000"


@dataclass
class Log:
    """What is committed: the ledger's rules, in memory."""

    position: int | None = None
    replay_from: int = 0
    stream_time_ms: int | None = None
    pages: dict[bytes, bytes] = field(default_factory=dict)
    episodes: dict[str, Episode] = field(default_factory=dict)
    forgotten: dict[bytes, Forgotten] = field(default_factory=dict)
    policies: list[tuple[int, str]] = field(default_factory=list)
    """All that were ever in force."""
    corrections: list[tuple[int, int]] = field(default_factory=list)
    """Likewise."""
    models: list[tuple[int, str]] = field(default_factory=list)
    """Likewise."""
    control: tuple[int, ...] = ()
    told: list[Any] = field(default_factory=list)
    divergences: int = 0
    pulse: tuple[int, ...] = ()

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self.told += told(outcome)
            self.divergences += outcome.divergences
            self.policies += outcome.policies
            self.corrections += outcome.corrections
            self.models += outcome.models
            for key, page in outcome.pages.items():
                if page is None:
                    self.pages.pop(key, None)
                else:
                    self.pages[key] = page
            for series, value in outcome.episodes.items():
                found = decode(episode_key(series), value)
                assert isinstance(found, Episode)
                self.episodes[series] = found
            for key, value in outcome.forgotten.items():
                assert key not in self.forgotten
                gone = decode(key, value)
                assert isinstance(gone, Forgotten)
                self.forgotten[key] = gone
        last = outcomes[-1]
        self.position, self.replay_from, self.stream_time_ms = last.next_offset, last.replay_from, last.stream_time_ms
        self.pulse, self.control = last.pulse, last.control
        assert self.replay_from <= self.position
        self.episodes = {series: found for series, found in self.episodes.items() if found.position > self.replay_from}
        self.forgotten = {key: gone for key, gone in self.forgotten.items() if gone.offset + 1 > self.replay_from}

    def read_pages(self) -> list[Page]:
        pages = [decode(key, value) for key, value in self.pages.items()]
        return [page for page in pages if isinstance(page, Page)]

    def restored(self) -> Restored:
        forgotten: dict[str, int] = {}
        for gone in self.forgotten.values():
            for series in gone.keys:
                forgotten[series] = max(gone.offset, forgotten.get(series, -1))
        policies = needed(tuple(self.policies), self.replay_from)
        episodes = dict(self.episodes)
        return Restored(
            self.position,
            self.replay_from,
            self.stream_time_ms,
            episodes,
            forgotten,
            policies=policies,
            pulse=self.pulse,
            control=self.control,
            corrections=needed(tuple(self.corrections), self.replay_from),
            timeline=needed(tuple(self.models), self.replay_from),
        )

    def into(self, fresh: Shard) -> Shard:
        if self.position is not None:
            fresh.prepare(self.restored())
        for page in self.read_pages():
            assert self.position is not None
            assert page.position <= self.position
            fresh.load(page)
        fresh.begin(self.restored())
        return fresh


def told(outcome: Outcome) -> list[Any]:
    """Alerts and dead letters, all of each but the clock's time."""
    alerts = [(msgspec.structs.replace(alert.message.alert, detected_at=""), alert.produced_ms) for alert in outcome.alerts]
    return [*alerts, *((letter.record, letter.reason) for letter in outcome.dead_letters)]


def split(records: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Alerts and dead letters apart: each kind has its order."""
    return [r for r in records if not isinstance(r[1], str)], [r for r in records if isinstance(r[1], str)]


# --- the property

STEPS = st.one_of(
    st.sampled_from([0, 1_000, 10_000]),
    st.sampled_from([0, 1_000, 10_000, 60_000, TTL_MS // 16]),
    st.sampled_from([TTL_MS // 16, TTL_MS // 2, TTL_MS + 1, -10_000, -TTL_MS - 5]),
)
SAMPLES = st.tuples(
    st.integers(0, 6), st.sampled_from([0, 0, 0, -5_000, -TTL_MS - 1, 40 * 86_400_000]), st.sampled_from([0.0, 0.1, 1, 5, 9])
)
ENTRIES = st.tuples(STEPS, st.lists(SAMPLES, max_size=3), st.integers(0, 2), st.booleans())


def make_records(entries: Sequence[tuple[int, list[tuple[int, int, float]], int, bool]]) -> list[Record]:
    clock, offset, made = START_MS, 100, []
    for step, samples, hole, stamped in entries:
        clock += step
        offset += 1 + (hole if hole == 2 else 0)
        lines = [line(str(series), clock + aside, value) for series, aside, value in samples]
        made.append(Record("\n".join(lines).encode() or b"broken", offset, clock if stamped else -1))
    return made


class Act(NamedTuple):
    records: int
    snapshots: int
    then: str
    """go on, commit or crash."""
    policy: Policy | None = None
    """Adopted before that."""
    model: str | None = None
    """Asked for before that, by name."""


POLICIES = (
    POLICY,
    replace(POLICY, min_duration_ms=15_000, min_deviation=0.5, direction="above"),
    replace(POLICY, reopen_after_ms=120_000, resolve_after_samples=1),
    replace(
        POLICY,
        critical_score=1.5,
        mutes=(Mute(('{h=~"[0-3]"}',), from_min=0, to_min=30), Mute(start_ms=START_MS, end_ms=START_MS + 40_000)),
    ),
    replace(POLICY, budget_per_day=1.0),
    replace(POLICY, budget_control=False),
)
ACTS = st.builds(
    Act,
    st.integers(1, 12),
    st.sampled_from([0, 1, 2, 20]),
    st.sampled_from(["go on", "go on", "commit", "commit", "crash"]),
    st.sampled_from([None, None, *POLICIES]),
    st.sampled_from([None, None, "a", "b", "c"]),
)


def live_through(
    make: Callable[[], Shard], records: list[Record], acts: Sequence[Act], models: Mapping[str, Detector] | None = None
) -> tuple[Log, Shard]:
    """Records through one shard after another, as the acts say; where they end, in small batches to the end."""
    asked: Detector | None = None
    log, current, pending = Log(), make(), list[Outcome]()
    current.begin(Restored())
    position = 0
    plan, adopted = iter(acts), current.stream
    while True:
        act = next(plan, Act(5, 1, "commit"))
        if act.policy is not None:
            adopted = StreamPlan("hosts", act.policy)
            current.adopt(adopted)
        if act.model is not None and models is not None:
            asked = models[act.model]
            current.swap(asked)
        if act.then == "crash":
            current, pending = log.into(make()), []
            current.adopt(adopted)
            if asked is not None:
                current.swap(asked)
            position = log.replay_from if log.position is not None else 0
            continue
        part = [record for record in records if record.offset >= position][: act.records]
        if not part:
            break
        left = [record.offset for record in records if record.offset > part[-1].offset]
        # What the log has in between is not for consumers; a position may lie anywhere in it.
        position = min(part[-1].offset + 1 + act.snapshots, *left, 10**9)
        outcome = current.process(part, position, snapshots=act.snapshots)
        if current.replaying:
            same = Outcome(position, replay_from=log.replay_from, stream_time_ms=log.stream_time_ms, pulse=log.pulse, control=log.control)
            assert outcome == replace(same, replayed=len(part))
            continue
        pending.append(outcome)
        if act.then == "commit":
            log.commit(pending)
            pending = []
    if pending:
        log.commit(pending)
    return log, current


def live_on(shard: Shard, records: list[Record], policies: Sequence[tuple[int, str]]) -> Outcome:
    """Records through one shard that never stops and adopts each policy at its offset."""
    whole = Outcome()
    for (start, text), end in zip(policies, [*(offset for offset, _ in policies[1:]), records[-1].offset + 1], strict=True):
        shard.adopt(StreamPlan("hosts", read(text)))
        whole.add(shard.process([record for record in records if start <= record.offset < end], end))
    assert whole.policies == list(policies)
    return whole


def assert_equal_lives(
    make: Callable[[], Shard],
    records: list[Record],
    acts: Sequence[Act],
    models: Mapping[str, Detector] | None = None,
    planned: Callable[[Sequence[tuple[int, Detector]]], Shard] | None = None,
) -> None:
    log, survivor = live_through(make, records, acts, models)
    golden = make() if planned is None or models is None else planned([(offset, models[name]) for offset, name in log.models])
    whole = live_on(golden, records, log.policies)

    assert split(log.told) == split(told(whole))
    assert survivor.digest() == golden.digest()
    assert survivor.open_episodes == golden.open_episodes
    assert survivor.stream_time_ms == golden.stream_time_ms
    assert survivor.pulse == golden.pulse
    assert survivor.control == golden.control
    assert survivor.correction == golden.correction
    assert log.corrections == whole.corrections
    assert log.models == whole.models
    assert all(page.model == survivor.detector.model.hash for page in log.read_pages() if page.position > log.models[-1][0])
    assert log.divergences == 0
    validator = Draft202012Validator(load_schema())
    for alert in whole.alerts:
        validator.validate(msgspec.json.decode(alert.message.value))


@settings(max_examples=40, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=60), st.lists(ACTS, max_size=25), st.integers(1, 7), st.sampled_from([1, 4, 8, 32]))
def test_crashes_snapshots_and_batches_change_nothing(plain: Plain, entries: list[Any], acts: list[Act], capacity: int, sweep: int) -> None:
    records = make_records(entries)
    if records:
        assert_equal_lives(lambda: shard(plain, capacity, sweep=sweep), records, acts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ENTRIES, min_size=1, max_size=60),
    st.lists(ACTS, max_size=25),
    st.integers(1, 7),
    st.sampled_from([1, 4, 8, 32]),
    st.sampled_from([0, 1, 3]),
)
def test_swaps_are_replayed_at_their_offsets(
    models: dict[str, Detector], entries: list[Any], acts: list[Act], capacity: int, sweep: int, together: int
) -> None:
    """Whatever else happens, and however many rows come over at a time: the run that is told the offsets says and knows the same."""

    def born(plan: Sequence[tuple[int, Detector]] = ()) -> Shard:
        return shard(models["a"], capacity, sweep=sweep, find=models.__getitem__, plan=plan)

    with mock.patch.object(anomalyd.shard, "_SLICE_ROWS", together):
        if records := make_records(entries):
            assert_equal_lives(born, records, acts, models, born)


# --- one thing at a time


def test_a_replay_judges_by_the_policy_that_was_in_force(plain: Plain) -> None:
    """A crash between a change of policy and the next page: what a mute of before had withheld is not told, what came after it is."""
    muted, open_minded = replace(POLICY, mutes=(Mute(start_ms=START_MS, end_ms=START_MS + 3_600_000),)), POLICY
    values = [*([0.0] * 4), *([9.0] * 3), *([0.0] * 40), *([9.0] * 3), *([0.0] * 40)]
    records = [Record(line("a", START_MS + 1000 * i, value).encode(), i) for i, value in enumerate(values)]

    def born() -> Shard:
        return shard(plain, policy=open_minded)

    for crash_after in range(50, len(records), 10):
        acts = [Act(2, 20, "commit", muted), Act(18, 0, "commit"), Act(crash_after - 20, 0, "commit", open_minded), Act(0, 0, "crash")]
        log, _ = live_through(born, records, acts)
        assert log.policies == [(0, written(muted)), (20, written(open_minded))]
        assert [alert.source.offset for alert, _ in log.told if alert.status == "firing"] == [47]
        assert_equal_lives(born, records, acts)


def test_state_of_a_release_without_policies_is_replayed_under_the_present_one(plain: Plain) -> None:
    log = Log()
    log.commit([shard(plain).process(churn(60, 3))])
    log.policies.clear()

    outcome = log.into(shard(plain, policy=POLICIES[1])).process(churn(70, 3))

    assert (outcome.replayed, outcome.records) == (60, 10)
    assert outcome.policies == [(60, written(POLICIES[1]))]


def churn(n: int, series: int, seed: int = 1, first: int = 0) -> list[Record]:
    """Samples of some series, one in twenty far off."""
    rng = random.Random(seed)
    values = [line(str(rng.randrange(series)), START_MS + 1000 * i, 9.0 if rng.random() < 0.05 else rng.random() / 2) for i in range(n)]
    return [Record(value.encode(), first + i) for i, value in enumerate(values)]


def test_a_planned_handover_replays_nothing(plain: Plain) -> None:
    records = churn(200, 20)
    golden, before, log = shard(plain, 30), shard(plain, 30), Log()
    whole = golden.process(records)

    first = before.process(records[:120], snapshots=1)
    assert before.dirty_pages == 9
    last = before.process([], 120, snapshots=100)
    log.commit([first, last])
    after = log.into(shard(plain, 30))

    assert (before.dirty_pages, log.replay_from, log.episodes, log.forgotten) == (0, 120, {}, {})
    assert not after.replaying
    log.commit([after.process(records[120:])])
    assert log.told == told(whole)
    assert after.digest() == golden.digest()


def test_the_oldest_dirty_pages_are_written_first_and_a_page_left_empty_is_tombstoned(plain: Plain) -> None:
    shard_ = shard(plain, 8)
    shard_.process([Record(line(name, START_MS, 1).encode(), i) for i, name in enumerate("abcd")])

    assert (shard_.dirty_pages, shard_.pages_in_use, shard_.replay_from) == (2, 2, 0)
    assert list(shard_.snapshot(1)) == [b"S|2|0"]
    assert shard_.replay_from == 2
    assert list(shard_.snapshot(9)) == [b"S|2|1"]
    assert (shard_.dirty_pages, shard_.replay_from, shard_.snapshot(9)) == (0, 4, {})

    later = START_MS + 2 * TTL_MS
    outcome = shard_.process([Record(line(name, later, 1).encode(), offset) for name, offset in [("e", 7), ("e", 11)]])
    assert (outcome.expired, len(outcome.forgotten), outcome.replay_from) == (4, 1, 7)
    assert {key: page is None for key, page in shard_.snapshot(9).items()} == {b"S|2|0": True, b"S|2|1": True, b"S|2|2": False}


def test_series_that_stay_away_begin_anew_and_what_was_open_is_resolved(plain: Plain) -> None:
    """Its own next sample finds an empty row; the alert ended when it was last seen, though the new series has yet to warm up."""
    shard_ = shard(plain)
    values = [0.0, 0.0, 0.0, 5.0]
    shard_.process([Record(line("a", START_MS + 1000 * i, value).encode(), i) for i, value in enumerate(values)])
    assert shard_.open_episodes == 1
    back = START_MS + 3000 + TTL_MS

    stays = shard(plain)
    stays.process([Record(line("a", START_MS + 1000 * i, value).encode(), i) for i, value in enumerate(values)])
    assert stays.process([Record(line("a", back, 0.5).encode(), 4)]).expired == 0

    outcome = shard_.process([Record(line("a", back + 1, 0.5).encode(), 4)])
    (alert,) = (alert.message.alert for alert in outcome.alerts)
    assert (outcome.expired, alert.status, alert.ends_at, alert.source.offset) == (1, "resolved", "2025-12-17T19:33:23.000Z", 4)
    assert "came back after a long gap" in alert.annotations["description"]
    assert shard_.pages.field("age")[0] == 1


def test_an_alert_of_a_series_that_is_evicted_is_resolved(plain: Plain) -> None:
    shard_ = shard(plain, 1)
    fired = shard_.process(an_alert())

    outcome = shard_.process([Record(line("b", START_MS + 5000, 0.5).encode(), 9, timestamp=START_MS + 5000)])

    assert_resolved(outcome, fired, 9, START_MS + 5000)
    assert (shard_.open_episodes, outcome.evicted, outcome.expired) == (0, 1, 0)


def test_an_alert_of_a_series_that_is_no_more_is_resolved(plain: Plain) -> None:
    shard_ = shard(plain)
    fired = shard_.process(an_alert())
    later = START_MS + 4000 + TTL_MS + TTL_MS // 16 + 1

    kept = shard_.process([Record(line("b", later, 0.5).encode(), 15)])
    outcome = shard_.process([Record(line("b", later, 0.5).encode(), 17, timestamp=later)])

    assert (kept.expired, kept.alerts) == (0, [])
    assert_resolved(outcome, fired, 17, later)
    assert (shard_.open_episodes, outcome.evicted, outcome.expired) == (0, 0, 1)


def an_alert() -> list[Record]:
    return [Record(line("a", START_MS + 1000 * i, v).encode(), i) for i, v in enumerate([0.0, 0.0, 0.0, 5.0, 4.5])]


def assert_resolved(outcome: Outcome, fired: Outcome, offset: int, produced_ms: int) -> None:
    """The alert that fired has ended with the last sample of its series, because of another series' record."""
    (alert,) = outcome.alerts
    assert alert.message.alert.alert_id == fired.alerts[0].message.alert.alert_id
    assert (alert.message.alert.status, alert.message.alert.ends_at) == ("resolved", "2025-12-17T19:33:24.000Z")
    assert (alert.message.alert.event_time, alert.message.alert.value) == ("2025-12-17T19:33:24.000Z", 4.5)
    assert (alert.message.alert.source.offset, alert.produced_ms) == (offset, produced_ms)
    assert "no longer kept" in alert.message.alert.annotations["description"]
    Draft202012Validator(load_schema()).validate(msgspec.json.decode(alert.message.value))


def kept(shard_: Shard) -> set[str]:
    return {key.removeprefix('m.v{h="').removesuffix('"}') for key in shard_.index.keys if key is not None}


AHEAD = [pytest.param(8 * 86_400_000, id="8 days ahead"), pytest.param(74 * 365 * 86_400_000, id="of the year 2099")]


@pytest.mark.parametrize("ahead_ms", AHEAD)
@pytest.mark.parametrize("burst", [1, 30])
def test_one_host_with_a_wrong_clock_decides_nothing(plain: Plain, ahead_ms: int, burst: int) -> None:
    """However many records it sends at once, and though it stamps them with the same clock: who is heard of stays, who is not goes."""
    shard_ = shard(plain, 100, sweep=256)
    hosts = [f"h{i}" for i in range(10)]
    records: list[Record] = []
    hour = 0

    def send(series: str, time_ms: int) -> None:
        records.append(Record(line(series, time_ms, 0.5).encode(), len(records), time_ms))

    send("dead", START_MS)
    for minute in range(80):
        now_ms = START_MS + 60_000 * minute
        for host in hosts:
            send(host, now_ms)
        for i in range(burst if minute % 7 == 0 else 0):
            send("wrong", now_ms + ahead_ms + i)
        hour = len(records) if minute < 60 else hour

    outcome = shard_.process(records[:hour])
    assert (outcome.expired, kept(shard_)) == (0, {*hosts, "wrong", "dead"})
    outcome = shard_.process(records[hour:])
    assert (outcome.expired, kept(shard_)) == (1, {*hosts, "wrong"})


def test_a_series_that_is_heard_of_is_kept_whatever_its_clock_says(plain: Plain) -> None:
    """One that is years behind is not forgotten and begun anew all the time: it would never get to know its series."""
    shard_ = shard(plain, 8)
    behind = [Record(line("behind", START_MS - 10**11 + 1000 * i, 0.5).encode(), 2 * i) for i in range(40)]
    others = [Record(line("ab"[i % 2], START_MS + 1000 * i, 0.5).encode(), 2 * i + 1) for i in range(40)]

    outcome = shard_.process(sorted([*behind, *others], key=lambda record: record.offset))

    assert (outcome.expired, kept(shard_)) == (0, {"behind", "a", "b"})


def test_a_series_may_begin_anew_with_the_record_in_front_of_which_it_was_forgotten(plain: Plain) -> None:
    """Its samples that were decoded along with others must not go to the row that it had."""
    shard_ = shard(plain, 8, sweep=16)
    later = START_MS + 2 * TTL_MS
    records = [*an_alert(), *(Record(line("b", later + i, 0.5).encode(), 5 + i) for i in range(11))]
    records.append(Record(f"{line('new', later, 1.0)}\n{line('a', later, 7.0)}".encode(), 16))

    outcome = shard_.process(records)

    assert outcome.expired == 1
    assert [alert.message.alert.status for alert in outcome.alerts][-1] == "resolved"
    row = shard_.index.find('m.v{h="a"}')
    assert row is not None
    assert (shard_.pages.field("age")[row, 0], shard_.pages.field("last")[row, 0]) == (1, 7.0)
    assert shard_.index.last_use[row] == 16


def test_pages_of_another_size_and_beyond_the_capacity_find_rows(plain: Plain) -> None:
    """Other page sizes come with a release, a smaller capacity with a setting. Old records go when the new ones are there."""
    records = churn(300, 20)
    golden, before, log = shard(plain, 64), shard(plain, 64), Log()
    whole = golden.process(records)
    log.commit([before.process(records[:100], snapshots=20), before.process(records[100:150])])
    wider = Plain(plain.artifact, "cpu")
    wider.page_rows = 7
    old = set(log.pages)

    first = log.into(shard(wider, 24))
    log.commit([first.process([r for r in records[:200] if r.offset >= log.replay_from], snapshots=1)])
    assert old & set(log.pages)
    second = log.into(shard(wider, 24))
    log.commit([second.process([r for r in records if r.offset >= log.replay_from], snapshots=10)])

    assert not old & set(log.pages)
    assert log.told == told(whole)
    assert second.digest() == golden.digest()
    assert log.into(shard(wider, 24)).digest() == golden.digest()

    narrow = log.into(shard(wider, 16))
    assert narrow.series == 16
    assert narrow.process([], 300).evicted == 4


def test_fewer_series_than_before_are_kept_by_their_last_use(plain: Plain) -> None:
    before, log = shard(plain, 64), Log()
    log.commit([before.process([Record(line(f"s{i:02}", START_MS + i, 1).encode(), i) for i in range(20)], snapshots=20)])

    after = log.into(shard(plain, 5))
    outcome = after.process([], 20, snapshots=20)
    log.commit([outcome])

    # Rows within the capacity stay; of the others those that were used last.
    assert after.series == 5
    assert outcome.evicted == 15
    assert {series for gone in log.forgotten.values() for series in gone.keys} | set(filter(None, after.index.keys)) == {
        f'm.v{{h="s{i:02}"}}' for i in range(20)
    }
    assert log.into(shard(plain, 64)).digest() == after.digest()


def test_rows_of_another_model_are_carried_over_and_written_anew(plain: Plain) -> None:
    before, log = shard(plain, 8), Log()
    log.commit([before.process(churn(60, 6), snapshots=9)])
    other = Plain(plain.artifact, "cpu")
    other.model = ModelInfo("another", "2", "f" * 64)

    after = log.into(shard(other, 8))

    assert after.series == 6
    assert sorted(filter(None, after.index.keys)) == sorted(filter(None, before.index.keys))
    assert after.dirty_pages == 3
    log.commit([after.process([], 60, snapshots=9)])
    assert {page.model for page in log.read_pages()} == {"f" * 64}


def test_spellings_of_another_reading_are_not_believed(plain: Plain) -> None:
    records = churn(40, 4)
    before, log = shard(plain, 8), Log()
    log.commit([before.process(records, snapshots=9)])

    known = log.into(shard(plain, 8))
    unknown = log.into(shard(plain, 8, reading="another"))

    assert (len(known.index.aliases), len(unknown.index.aliases)) == (4, 0)
    assert known.process(churn(20, 4, 2, 40)).samples == unknown.process(churn(20, 4, 2, 40)).samples == 20
    assert known.digest() == unknown.digest()


@pytest.mark.parametrize("snapshots", [0, 9])
def test_keys_of_4_kib_come_back(plain: Plain, snapshots: int) -> None:
    records = [Record(line(str(i) + "ä" * 4000, START_MS, 1).encode(), i) for i in range(8)]
    before, log = shard(plain, 4), Log()
    log.commit([before.process(records, snapshots=snapshots)])
    assert sum(len(gone.keys) for gone in log.forgotten.values()) == (0 if snapshots else 4)

    after = log.into(shard(plain, 4))
    after.process([record for record in records if record.offset >= log.replay_from], 8)

    assert after.digest() == before.digest()


def test_a_page_that_comes_again_replaces_the_one_before_and_one_that_is_gone_leaves_nothing(plain: Plain) -> None:
    before, log = shard(plain, 8), Log()
    log.commit([before.process([Record(line(name, START_MS, 1).encode(), i) for i, name in enumerate("abcd")], snapshots=9)])
    old = log.read_pages()
    log.commit([before.process([Record(line(name, START_MS + 9, 2).encode(), 4 + i) for i, name in enumerate("ab")], snapshots=9)])
    fresh = shard(plain, 8)
    for page in [*old, *log.read_pages(), *old[1:]]:
        fresh.load(page)

    fresh.begin(log.restored(), live={b"S|2|0", b"A|x"})

    assert sorted(filter(None, fresh.index.keys)) == ['m.v{h="a"}', 'm.v{h="b"}']
    assert not fresh.pages.buffer[2:].any()
    assert fresh.pages.field("last")[:2, 0].tolist() == [2, 2]


def test_what_was_told_wins_over_what_a_replay_finds(plain: Plain) -> None:
    """On another processor a score may come out on the other side of the threshold: nothing is told twice, and nothing stays open."""
    values = [0.0, 0.0, 0.0, 5.0, 1.5, 1.5]
    records = [Record(line("a", START_MS + 1000 * i, value).encode(), i) for i, value in enumerate(values)]
    log = Log()
    log.commit([shard(plain).process(records[:4])])
    # Another processor is not to be had here; a replay that judges otherwise is.
    deaf = Policy(resolve_after_samples=2, direction="below")
    log.policies = [(0, written(deaf))]

    outcome = log.into(shard(plain, policy=deaf)).process(records)

    assert outcome.divergences == 1
    assert outcome.replayed == 4
    assert [alert.message.alert.status for alert in outcome.alerts] == ["resolved"]

    quiet = Log()
    quiet.commit([shard(plain, policy=Policy(direction="below")).process(records[:4])])
    quiet.policies.clear()
    heard = quiet.into(shard(plain)).process(records)
    assert heard.divergences == 1
    assert heard.alerts == []


def test_an_episode_of_which_nothing_is_left_does_not_come_back(plain: Plain) -> None:
    """What was told before a series began anew is still in the log when the page is not written yet."""
    told_of = [(START_MS + 1000 * i, value) for i, value in enumerate([0.0, 0.0, 0.0, 5.0, 1.5, 1.5])]
    records = [Record(line("a", time_ms, value).encode(), i) for i, (time_ms, value) in enumerate(told_of)]
    records.append(Record(line("a", START_MS + 3 * TTL_MS, 0.5).encode(), 6))
    before, log = shard(plain), Log()
    log.commit([before.process(records[:6])])
    log.commit([before.process(records[6:])])

    after = log.into(shard(plain))

    assert after.process(records).divergences == 0
    assert after.digest() == before.digest()


def test_a_series_that_was_forgotten_does_not_come_back_from_an_older_page(plain: Plain) -> None:
    """It had moved: two pages know it, and only one of them has been written again when what says so could go."""
    one, two = shard(plain, 8), shard(plain, 8)
    older = one.process([Record(line(f"s{i}", START_MS, i).encode(), i) for i in range(5)], snapshots=3).pages
    newer = two.process([Record(line("s4", START_MS + 60_000, 1).encode(), 11)], snapshots=1).pages
    key = forgotten_key(15, 0)
    pages = {page: value for page, value in (older | newer).items() if value is not None}
    log = Log(20, 12, START_MS, pages, forgotten={key: Forgotten(15, ['m.v{h="s4"}'])})

    after = log.into(shard(plain, 8))
    log.commit([after.process([Record(line("z", START_MS, 1).encode(), 20 + i)], snapshots=i) for i in range(2)])

    assert kept(log.into(shard(plain, 8))) == {"s2", "s3", "z"}


def test_a_series_that_was_forgotten_does_not_come_back_from_a_page_that_is_cut(plain: Plain) -> None:
    """Fewer series are kept than before, and the page at the new end is written later than others."""
    pages = shard(plain, 8).process([Record(line(f"s{i}", START_MS, i).encode(), i) for i in range(4)], snapshots=3).pages
    log = Log(20, 12, START_MS, {key: page for key, page in pages.items() if page is not None})
    log.forgotten[forgotten_key(15, 0)] = Forgotten(15, ['m.v{h="s3"}'])

    after = log.into(shard(plain, 3))
    log.commit([after.process([Record(line("s0", START_MS, 1).encode(), 20 + i)], snapshots=i) for i in range(2)])

    assert kept(log.into(shard(plain, 8))) == {"s0", "s1", "s2"}


def test_a_series_that_was_forgotten_does_not_come_back_when_another_model_cuts_the_pages(models: dict[str, Detector]) -> None:
    """It was the only one of the last page, which is none in use any more, but was not written either."""
    pages = shard(models["a"], 8).process([Record(line(f"s{i}", START_MS, i).encode(), i) for i in range(5)], snapshots=3).pages
    log = Log(20, 15, START_MS, {key: page for key, page in pages.items() if page is not None}, models=[(0, "a")])
    log.forgotten[forgotten_key(15, 0)] = Forgotten(15, ['m.v{h="s4"}'])

    after = log.into(shard(models["a"], 8, find=models.__getitem__))
    after.process([], 20)
    after.swap(models["c"])
    for offset, snapshots in ((20, 0), (21, 0), (22, 8)):
        log.commit([after.process([Record(line("s0", START_MS, 1).encode(), offset)], snapshots=snapshots)])

    assert (log.replay_from, log.forgotten) == (23, {})
    assert kept(log.into(shard(models["a"], 8, find=models.__getitem__))) == {"s0", "s1", "s2", "s3"}


def test_a_page_whose_rows_move_within_it_is_written(plain: Plain) -> None:
    """Fewer series are kept than before, and there is room in front of the new end."""
    pages = shard(plain, 8).process([Record(line(f"s{i}", START_MS, i).encode(), i) for i in range(4)], snapshots=3).pages
    log = Log(5, 4, START_MS, {key: page for key, page in pages.items() if page is not None})
    log.forgotten[forgotten_key(4, 0)] = Forgotten(4, ['m.v{h="s2"}'])

    after = log.into(shard(plain, 3))
    log.commit([after.process([], 5, snapshots=3)])

    assert (after.dirty_pages, log.replay_from) == (0, 5)
    assert kept(log.into(shard(plain, 3))) == {"s0", "s1", "s3"}


def test_an_open_alert_survives_the_loss_of_everything_else(plain: Plain) -> None:
    """Input that is no longer there cannot be replayed; the series' next samples resolve what was told."""
    values = [0.0, 0.0, 0.0, 5.0]
    log = Log()
    log.commit([shard(plain).process([Record(line("a", START_MS + 1000 * i, v).encode(), i) for i, v in enumerate(values)])])

    after = log.into(shard(plain))
    gap = after.process([], 4)
    assert (gap.divergences, after.open_episodes) == (1, 1)
    outcome = after.process([Record(line("a", START_MS + 5000 + 1000 * i, 0.0).encode(), 4 + i) for i in range(6)])

    assert [alert.message.alert.status for alert in outcome.alerts] == ["resolved"]


def test_the_real_detector_goes_on_bit_by_bit() -> None:
    detector = Detector.load(device="cpu")
    noise: NDArray[np.float64] = np.random.default_rng(1).standard_normal(700)
    values = [100 + noise[i] + (60 if 600 <= i < 606 else 0) for i in range(700)]
    records = [Record(line(str(i % 2), START_MS + 1000 * i, value).encode(), i) for i, value in enumerate(values)]

    assert_equal_lives(
        lambda: shard(detector, 4, Policy()), records, [Act(310, 1, "commit"), Act(294, 0, "commit"), Act(1, 1, "crash")] * 3
    )


# --- another model


def test_a_swap_takes_effect_with_the_next_batch_and_is_recorded(models: dict[str, Detector]) -> None:
    swapped = shard(models["a"])
    swapped.process(churn(40, 3))
    swapped.swap(models["b"])

    outcomes = [swapped.process([], 45), swapped.process(churn(40, 3, seed=2, first=50)), swapped.process(churn(10, 3, first=90))]

    assert [outcome.models for outcome in outcomes] == [[], [(45, "b")], []]
    assert {alert.message.alert.model.hash for alert in outcomes[1].alerts} == {"b"}


def test_rows_come_over_some_at_a_time_and_the_old_ones_are_given_back(models: dict[str, Detector]) -> None:
    crowd = shard(models["a"], 2_000)
    crowd.process([Record(line(str(i), START_MS, 1.0).encode(), i) for i in range(1_000)])
    crowd.swap(models["b"])
    before, left = weakref.ref(crowd.pages), []
    for offset in range(1_000, 1_006):
        crowd.process([Record(line("new", START_MS + offset, 1.0).encode(), offset)])
        left.append(crowd.moving)

    assert left == [744, 488, 232, 0, 0, 0]
    assert before() is None


@pytest.mark.parametrize("names", ["b", "bc", "ba", "bab"])
def test_pages_that_nobody_touches_go_through_the_same_models(models: dict[str, Detector], names: str) -> None:
    """Restored between any two swaps or after all of them, from pages of any of these models."""

    def born(plan: Sequence[tuple[int, Detector]] = ()) -> Shard:
        return shard(models["a"], 20, find=models.__getitem__, plan=plan)

    idle = [Record(line(f"idle{i}", START_MS, i).encode(), i) for i in range(10)]
    records = [*idle, *churn(60, 3, first=10)]
    swaps = [act for name in names for act in (Act(5, 1, "commit", model=name), Act(1, 0, "commit"))]
    for crash_after in range(1, len(swaps) + 1):
        crashed = [*swaps[:crash_after], Act(0, 0, "crash"), *swaps[crash_after:], Act(2, 1, "commit"), Act(0, 0, "crash")]
        assert_equal_lives(born, records, [Act(10, 1, "commit"), *crashed], models, born)


def restored_without(models: dict[str, Detector], missing: str, log: Log) -> Shard:
    def find(name: str) -> Detector:
        if name == missing:
            raise ArtifactError("it is not there")
        return models[name]

    return log.into(shard(models["a"], find=find))


def test_a_replay_that_lacks_a_model_stops_and_says_what_to_do(models: dict[str, Detector]) -> None:
    log, before = Log(), shard(models["a"])
    first = before.process(churn(20, 3))
    before.swap(models["b"])
    log.commit([first, before.process(churn(20, 3, first=20))])

    with pytest.raises(StateError, match=r"input offsets 20 to 40 .* model b .* models topic.*state restart"):
        restored_without(models, "b", log)


def test_pages_of_a_model_that_is_gone_become_those_of_the_present_one(models: dict[str, Detector]) -> None:
    log, before = Log(), shard(models["b"])
    log.commit([before.process(churn(20, 3), snapshots=9)])

    after = restored_without(models, "b", log)
    outcome = after.process(churn(20, 3, first=20))

    assert (outcome.replayed, outcome.models) == (0, [(20, "a")])
    golden = shard(models["b"], plan=[(0, models["b"]), (20, models["a"])])
    golden.process(churn(20, 3))
    assert told(outcome) == told(golden.process(churn(20, 3, first=20)))
    assert after.digest() == golden.digest()


def test_what_has_happened_of_a_plan_does_not_happen_again_after_a_restart(models: dict[str, Detector]) -> None:
    plan = [(10, models["b"]), (30, models["a"]), (70, models["c"])]
    log, golden = Log(), shard(models["a"], plan=plan)
    log.commit([golden.process(churn(60, 3), snapshots=9)])

    after = log.into(shard(models["a"], plan=plan, find=models.__getitem__))
    outcome = after.process(churn(40, 3, first=60))

    assert outcome.models == [(70, "c")]
    golden.process(churn(40, 3, first=60))
    assert after.digest() == golden.digest()


def test_a_model_for_other_samples_is_refused(plain: Plain) -> None:
    with pytest.raises(ArtifactError, match="3 values, not 1"):
        shard(plain).swap(Detector(plain.artifact.for_features(3), "cpu"))


# --- a challenger


def test_a_challenger_is_counted_and_changes_nothing(plain: Plain, models: dict[str, Detector]) -> None:
    """Series come, go, are forgotten and begin anew under it; it sees the same samples, with a threshold and rows of its own."""
    alone, shaded = shard(plain, 3), shard(plain, 3)
    twin = shard(plain, 3)
    shaded.shade(models["c"])
    twin.shade(Plain(replace(plain.artifact), "cpu"))
    records = [*churn(60, 5), *(Record(line(str(i % 3), START_MS + 2 * TTL_MS + 1000 * i, i % 7).encode(), 60 + i) for i in range(60))]

    outcomes = [[one.process(records[:50]), one.process(records[50:])] for one in (alone, shaded, twin)]

    plainly, watched, alike = ([told(outcome) for outcome in each] for each in outcomes)
    assert plainly == watched == alike
    assert alone.digest() == shaded.digest() == twin.digest()
    assert outcomes[0][1].shadow.samples == 0
    other, same = outcomes[1][1].shadow, outcomes[2][1].shadow
    assert min(other.samples, other.both, other.log_difference) > 0
    assert same.samples > 0
    assert same.both > 0
    assert same[2:] == (0, 0, 0.0)


def test_a_challenger_that_scores_no_more_is_not_counted(plain: Plain, models: dict[str, Detector]) -> None:
    one = shard(plain)
    one.shade(models["b"])
    one.process(churn(30, 2))
    one.shade(None)

    assert one.process(churn(30, 2, first=30)).shadow.samples == 0
