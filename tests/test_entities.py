"""Streams with features: single values of an entity become samples, which get one score and one alert."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.messages import load_schema
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector, Pages, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.recipe import LATE_RUN
from anomalyd.formats import make_decoder
from anomalyd.series import Entities, Selection, SeriesIndex
from anomalyd.shard import Outcome, Shard, StreamPlan
from anomalyd.state.codec import Page, decode
from tests.detector.population import untrained
from tests.test_shard_state import ACTS, POLICY, START_MS, STEPS, TTL_MS, Act, Log, Record, SmallPages, assert_equal_lives, told

ABC: Final = Entities(["m.a", "m.b", "m.c"], ["h"], "e")


class Several(SmallPages):
    """A detector for three features that is quickly understood: the score is the largest distance from a mean, among those that are there.

    Order, late and repeated samples, a clock that was set back and missing features are treated as the real one does, with rows of the
    same layout.
    """

    def step(
        self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64] | None = None, tally: NDArray[np.int64] | None = None
    ) -> Verdicts:
        n = len(batch)
        assert batch.value.shape == (n, 3)
        flags, score, expected = np.full(n, ARMED, np.uint8), np.zeros(n), np.zeros((n, 3))
        share = np.zeros((n, 3), np.float32)
        scalar: dict[str, Any] = {name: pages.field(name)[:, 0] for name in ("time", "age", "late_run")}
        wide: dict[str, Any] = {name: pages.field(name) for name in ("last", "seen", "mean", "born")}
        for i, (row, time) in enumerate(zip(batch.row.tolist(), batch.time_ms.tolist(), strict=True)):
            value, here = batch.value[i], np.flatnonzero(~np.isnan(batch.value[i]))
            assert len(here)
            expected[i] = wide["mean"][row]
            age, late = scalar["age"][row], scalar["age"][row] > 0 and time < scalar["time"][row]
            late = late and scalar["late_run"][row] + 1 < LATE_RUN
            scalar["late_run"][row] = scalar["late_run"][row] + 1 if late else 0
            distance = np.where(np.isnan(value), 0, np.abs(value - wide["mean"][row])) + 1e-6
            share[i] = np.where(np.isnan(value), 0, distance) / distance[here].sum()
            if late:
                flags[i] |= LATE
                continue
            if age > 0 and time == scalar["time"][row] and (value[here] == wide["last"][row][here]).all():
                flags[i] |= REPEATED
                continue
            if age < 2:
                flags[i] |= WARMUP
            else:
                score[i] = np.where(wide["born"][row] > 0, distance, 0.0).max()
            scalar["age"][row], scalar["time"][row] = age + 1, time
            wide["mean"][row, here] += 0.3 * (value[here] - wide["mean"][row, here])
            wide["last"][row, here] = wide["seen"][row, here] = value[here]
            wide["born"][row, here] += 1
        return Verdicts(score, score, batch.value, expected, expected, expected, share, flags)


@pytest.fixture(scope="module")
def several() -> Several:
    return Several(artifacts.load(shipped()).for_features(3), "cpu")


def shard(detector: Detector, capacity: int = 4, *, entities: Entities = ABC, format: str = "influx", sweep: int = 8, **plan: Any) -> Shard:  # noqa: A002, ANN401  a plan's fields
    chosen: dict[str, Any] = {"policy": POLICY, "entities": entities} | plan
    return Shard(
        StreamPlan("hosts", **chosen),
        Source("metrics", 3),
        detector,
        make_decoder(format),
        capacity,
        now_ms=lambda: 5,
        series_ttl_ms=TTL_MS,
        sweep_records=sweep,
        reading="influx",
    )


def line(host: str, time_ms: int, **values: float) -> str:
    return f"m,h={host} {','.join(f'{name}={value}' for name, value in values.items())} {time_ms}000000"


def numbered(lines: Sequence[str], first: int = 0) -> list[Record]:
    return [Record(text.encode(), first + i, 1_000 + i) for i, text in enumerate(lines)]


def alerts_of(outcome: Outcome) -> list[dict[str, Any]]:
    validator, alerts = Draft202012Validator(load_schema()), [msgspec.json.decode(alert.message.value) for alert in outcome.alerts]
    for alert in alerts:
        validator.validate(alert)
    return alerts


# --- one score, one alert


def test_an_incident_in_two_features_is_one_alert_of_the_entity(several: Several) -> None:
    """Each of the three values comes in a record of its own; the last one completes the sample, and is told as its source."""
    lines = []
    for i in range(60):
        for host in "xy":
            far = 9.0 if host == "x" and 20 <= i < 23 else 0.0
            lines += [line(host, START_MS + 1000 * i, **{name: value}) for name, value in {"a": 1.0, "b": far, "c": -far / 2}.items()]

    outcome = shard(several).process(numbered(lines))

    firing, *_, resolved = alerts_of(outcome)
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert {alert["alert_id"] for alert in alerts_of(outcome)} == {firing["alert_id"]}
    assert firing["series"] == {"key": 'e{h="x"}', "name": "e", "labels": {"h": "x"}}
    assert [feature["name"] for feature in firing["features"]] == ["m.b", "m.c", "m.a"]
    assert (firing["value"], firing["features"][1]["value"]) == (9.0, -4.5)
    assert firing["source"]["offset"] == lines.index(line("x", START_MS + 20_000, c=-4.5))
    assert outcome.samples == 2 * 60


def test_a_missing_feature_is_null_in_the_alert(several: Several) -> None:
    """It was there before; a feature that never was is not known at all."""
    lines = [line("x", START_MS + 1000 * i, a=1, b=1) for i in range(20)]
    lines += [line("x", START_MS + 1000 * i, a=9) for i in (20, 21)]

    (firing, *_) = alerts_of(shard(several).process(numbered(lines)))

    assert (firing["value"], firing["direction"]) == (9.0, "above")
    assert {feature["name"]: (feature["value"], feature["share"]) for feature in firing["features"]} == {
        "m.a": (9.0, 1.0),
        "m.b": (None, 0.0),
        "m.c": (None, 0.0),
    }
    assert firing["source"]["offset"] == 21


def test_late_and_repeated_values_are_counted_and_not_used(several: Several) -> None:
    good = [line("x", START_MS + 1000 * i, a=1, b=2, c=3) for i in range(10)]

    outcome = shard(several).process(numbered([*good, good[9], line("x", START_MS + 4000, a=7, b=7)]))

    assert (outcome.samples - 1, outcome.repeated, outcome.late) == (10, 3, 2)


@pytest.mark.parametrize(
    ("format_", "values"),
    [
        (
            "telegraf-json",
            [
                b'{"name":"cpu","tags":{"host":"w","cpu":"cpu-total"},"timestamp":1766000000,"fields":{"idle":5,"user":6}}',
                b'{"name":"cpu","tags":{"host":"w","cpu":"cpu0"},"timestamp":1766000000,"fields":{"idle":50,"user":60}}',
                b'{"name":"mem","tags":{"host":"w"},"timestamp":1766000000,"fields":{"used":7,"free":8}}',
                b'{"name":"mem","tags":{},"timestamp":1766000000,"fields":{"used":9}}',
            ],
        ),
        (
            "influx",
            [
                b"cpu,host=w,cpu=cpu-total idle=5,user=6 1766000000000000000\ncpu,host=w,cpu=cpu0 idle=50 1766000000000000000",
                b"mem,host=w used=7,free=8 1766000000000000000\nmem used=9 1766000000000000000",
            ],
        ),
        (
            "plain-json",
            [
                b'{"name":"cpu.idle","tags":{"host":"w","cpu":"cpu-total"},"ts":1766000000,"value":5}',
                b'{"name":"cpu.user","tags":{"host":"w","cpu":"cpu-total"},"ts":1766000000,"value":6}',
                b'{"name":"cpu.idle","tags":{"host":"w","cpu":"cpu0"},"ts":1766000000,"value":50}',
                b'{"name":"mem.used","tags":{"host":"w"},"ts":1766000000,"value":7}',
                b'{"name":"mem.used","tags":{},"ts":1766000000,"value":9}',
            ],
        ),
    ],
)
def test_every_format_finds_its_features(format_: str, values: list[bytes]) -> None:
    """By name and matchers; others, and those without the label that names the entity, are passed over. Twice, for the spellings."""
    names = ['cpu.idle{cpu="cpu-total"}', "mem.used", 'cpu.user{cpu=~"cpu-.*"}']
    index, decoder = SeriesIndex(2, None, Entities(names, ["host"], "host")), make_decoder(format_)

    for _ in range(2):
        batch = decoder.decode(values, lambda _: 0, index).batch
        assert sorted(zip(batch.row.tolist(), batch.value[:, 0].tolist(), strict=True)) == [(0, 5.0), (1, 7.0), (2, 6.0)]
    assert index.keys == ['host{host="w"}']


def test_the_selection_sees_the_series_and_not_the_entity(several: Several) -> None:
    """Hosts can be left out, and single features of some hosts."""
    select = Selection(exclude=['{h="y"}', 'm.b{h="x"}'])
    lines = [line(host, START_MS + 1000 * i, a=1, b=2, c=3) for i in range(4) for host in "xyz"]

    chosen = shard(several, select=select)
    chosen.process(numbered(lines))

    assert sorted(key for key in chosen.index.keys if key) == ['e{h="x"}', 'e{h="z"}']
    assert (np.asarray(chosen.pages.field("born"))[:2] > 0).tolist() == [[True, False, True], [True, True, True]]


def test_times_are_rounded_down_to_the_interval(several: Several) -> None:
    """Three producers that measure at their own moments of the same ten seconds."""
    lines = [line("x", START_MS + 10_000 * i + 2_900 * k, **{name: 1.0}) for i in range(8) for k, name in enumerate("abc")]

    exact, rounded = (shard(several, entities=Entities(ABC.names, ["h"], "e", interval)) for interval in (0, 10_000))

    assert (exact.process(numbered(lines)).samples, rounded.process(numbered(lines)).samples) == (23, 8)


def test_a_full_shard_forgets_whole_entities(several: Several) -> None:
    full = shard(several, 2)

    full.process(numbered([line(host, START_MS + i, a=1, b=1, c=1) for i, host in enumerate("xyx")]))
    outcome = full.process(numbered([line("z", START_MS + 10, a=1), line("x", START_MS + 11, b=2)], 3))

    assert (outcome.evicted, sorted(key for key in full.index.keys if key)) == (1, ['e{h="x"}', 'e{h="z"}'])
    assert len(full.index.aliases) == 3 + 1


def test_mutes_name_entities(several: Several) -> None:
    muted = replace(POLICY, mutes=(Mute(('e{h=~"x|q"}',), start_ms=START_MS, end_ms=START_MS + 10**9),))
    lines = [line(host, START_MS + 1000 * i, a=9 if 20 <= i < 23 else 0, b=0, c=0) for i in range(40) for host in "xy"]

    outcome = shard(several, policy=muted).process(numbered(lines))

    assert {alert["series"]["key"] for alert in alerts_of(outcome)} == {'e{h="y"}'}
    assert outcome.muted == 1


def test_an_entity_that_falls_silent_is_one_alert(several: Several) -> None:
    """Three features, one message; it is over with the next sample of which the entity has enough."""
    lines = [line(host, START_MS + 60_000 * i, a=1, b=1, c=1) for i in range(200) for host in "xyz" if host != "x" or not 120 <= i < 160]
    one = Several(several.artifact, "cpu")
    quiet = shard(one, policy=Policy(), silence=SilencePolicy(enabled="on"), sweep=1 << 20)
    steps = np.asarray(quiet.pages.field("step_ms"))
    steps[:3] = 60_000  # the simple detector does not learn it

    alerts = alerts_of(quiet.process(numbered(lines)))

    assert [(alert["kind"], alert["status"], alert["series"]["key"]) for alert in alerts] == [
        ("silent", "firing", 'e{h="x"}'),
        ("silent", "resolved", 'e{h="x"}'),
    ]
    assert "value" not in alerts[0]["annotations"]["description"]


def test_the_real_detector_judges_what_is_there() -> None:
    """One of six features never comes, another one stops for a while; the incident is in a third."""
    names = "abcdef"
    detector = Detector(artifacts.load(shipped()).for_features(6), "cpu")
    noise = np.random.default_rng(1).standard_normal((1100, 6))
    lines = []
    for i in range(1100):
        here = "ace" if 800 <= i < 1050 else "acde"
        values = {name: 50 + noise[i, k] + (400 if name == "c" and 1000 <= i < 1010 else 0) for k, name in enumerate(names) if name in here}
        lines.append(line("x", START_MS + 60_000 * i, **values))

    outcome = shard(detector, entities=Entities([f"m.{name}" for name in names], ["h"], "e"), policy=Policy())

    alerts = alerts_of(outcome.process(numbered(lines)))
    assert [(alert["status"], alert["source"]["offset"]) for alert in alerts if alert["status"] == "firing"] == [("firing", 1000)]
    features = {feature["name"]: feature for feature in alerts[0]["features"]}
    assert (alerts[0]["features"][0]["name"], features["m.d"]["value"], features["m.b"]["value"]) == ("m.c", None, None)
    assert features["m.d"]["expected"] == pytest.approx(50, abs=5)
    assert features["m.b"]["expected"] is None


# --- restarts


VALUES = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.sampled_from(["a", "b", "c", "ab", "bc", "abc", "abc"]),
        st.sampled_from([0, 0, 0, -1_000, -TTL_MS - 1, 40 * 86_400_000]),
        st.sampled_from([0.0, 0.1, 1, 5, 9]),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(STEPS, VALUES), min_size=1, max_size=60), st.lists(ACTS, max_size=25), st.integers(3, 6), st.sampled_from([4, 32])
)
def test_crashes_snapshots_and_batches_change_nothing(
    several: Several, entries: list[Any], acts: list[Act], capacity: int, sweep: int
) -> None:
    """Samples are half assembled at most cuts; entities are forgotten, evicted and begin anew."""
    clock, records = START_MS, []
    for offset, (step, values) in enumerate(entries):
        clock += step
        lines = [line(str(host), clock + aside, **dict.fromkeys(names, value)) for host, names, aside, value in values]
        records.append(Record("\n".join(lines).encode() or b"broken", 100 + offset))

    assert_equal_lives(lambda: shard(several, capacity, sweep=sweep), records, acts)


def written(detector: Detector, lines: Sequence[str], **options: Any) -> Log:  # noqa: ANN401  those of `shard`
    log, one = Log(), shard(detector, **options)
    log.commit([one.process(numbered(lines), snapshots=10)])
    return log


def test_a_sample_that_was_half_assembled_goes_on(several: Several) -> None:
    lines = [line("x", START_MS + 1000 * i, a=1, b=1, c=1) for i in range(10)]
    log = written(several, [*lines, line("x", START_MS + 10_000, a=9)])

    after = log.into(shard(several))
    rest = after.process(numbered([line("x", START_MS + 10_000, b=1), line("x", START_MS + 10_000, c=1)], 11))

    (firing,) = alerts_of(rest)
    assert (firing["value"], firing["source"]["offset"], rest.samples) == (9.0, 12, 1)


def test_spellings_come_back_with_their_features(several: Several) -> None:
    log = written(several, [line("x", START_MS, a=1, b=2, c=3)])

    after = log.into(shard(several))

    assert len(after.index.aliases) == 3
    assert after.process(numbered([line("x", START_MS + 1000, c=5, a=4)], 1)).samples == 0
    assert np.asarray(after.pages.field("filled"))[0].tolist() == [4.0, pytest.approx(np.nan, nan_ok=True), 5.0]


def test_other_features_have_the_entities_learn_anew_and_alerts_end(several: Several) -> None:
    """The order is part of what a row means: what was learned of the one feature must not be taken for that of another."""
    log = written(several, [line("x", START_MS + 1000 * i, a=9 if i >= 8 else 0, b=100, c=3) for i in range(10)])
    assert [record.status for record, _ in log.told] == ["firing"]

    after = log.into(shard(several, entities=Entities(["m.b", "m.a", "m.c"], ["h"], "e")))
    assert (int(np.asarray(after.pages.field("age"))[0, 0]), after.open_episodes) == (0, 1)
    outcome = after.process(numbered([line("x", START_MS + 10_000 + 1000 * i, a=1, b=100, c=3) for i in range(9)], 10))

    (resolved, *_) = alerts_of(outcome)
    assert (resolved["status"], resolved["alert_id"]) == ("resolved", log.told[0][0].alert_id)
    assert np.asarray(after.pages.field("born"))[0].tolist() == [9, 9, 9]


def test_features_make_other_pages_than_single_series(several: Several) -> None:
    log = written(several, [line("x", START_MS, a=1, b=2, c=3)])

    (page,) = log.read_pages()
    again = decode(*next(iter(log.pages.items())))

    assert isinstance(again, Page)
    assert page.features == ABC.fingerprint != Entities(["m.b", "m.a", "m.c"], ["h"], "e").fingerprint
    assert len(page.spellings) == 3 * 16


def test_what_alerts_say_does_not_depend_on_how_records_are_cut(several: Several) -> None:
    lines = [line("x", START_MS + 1000 * i, **{"abc"[k]: 9.0 if 30 <= i < 33 else 0.0}) for i in range(60) for k in range(3)]
    whole, cut = shard(several), shard(several)

    together = told(whole.process(numbered(lines)))
    apart = [one for record in numbered(lines) for one in told(cut.process([record]))]

    assert apart == together
    assert json.dumps(alerts_of(shard(several).process(numbered(lines)))[0])


# --- another model


def test_a_joint_model_takes_over_what_is_being_assembled_and_back(several: Several) -> None:
    """From a network for each feature to one over all: half a sample is completed under the other model, and the alert goes on."""
    joint = Several(untrained(Shape(3, 7, 1, 2, joint=True)), "cpu")
    swapped = shard(several)
    first = swapped.process(numbered([line("x", START_MS + 1000 * i, a=9 if i >= 8 else 0, b=0, c=0) for i in range(10)]))
    swapped.process(numbered([line("x", START_MS + 10_000, a=9, b=0)], 10))

    swapped.swap(joint)
    there = swapped.process(numbered([line("x", START_MS + 10_000, c=0)], 11))
    swapped.swap(several)
    back = swapped.process(numbered([line("x", START_MS + 11_000 + 1000 * i, a=0, b=0, c=0) for i in range(20)], 12))

    assert (there.samples, there.models, back.models) == (1, [(11, "")], [(12, several.model.hash)])
    (firing, *_) = alerts_of(first)
    assert firing["alert_id"] in {alert["alert_id"] for alert in alerts_of(back) if alert["status"] == "resolved"}
    assert np.asarray(swapped.pages.field("born"))[0].tolist() == [31, 31, 31]
