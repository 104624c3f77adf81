"""Alert messages: what stands on the alerts topic."""

import json
import math
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.alerts.episodes import Episodes, Policy
from anomalyd.alerts.machine import ABOVE
from anomalyd.alerts.messages import Alert, Message, MessageBuilder, Model, alert_id, iso, load_schema
from anomalyd.alerts.rarity import Rarity
from anomalyd.batch import ARMED, COUNTER
from tests.alerts.columns import EVIDENCE, Sample, columns, episodes

VALIDATOR = jsonschema.Draft202012Validator(load_schema())
KEY = 'cpu.usage{cpu="cpu0",host="web-01"}'
LABELS = {"cpu": "cpu0", "host": "web-01"}
NOON_MS = 1_767_268_800_000

EXAMPLE: dict[str, Any] = {
    "schema_version": 1,
    "alert_id": "6c1f" * 8,
    "kind": "anomaly",
    "status": "firing",
    "stream": "hosts",
    "series": {"key": KEY, "name": "cpu.usage", "labels": LABELS},
    "severity": "warning",
    "direction": "above",
    "score": 3.2,
    "peak_score": 3.2,
    "threshold": 1.0,
    "value": 97.1,
    "expected": 31.0,
    "expected_range": [25.2, 37.9],
    "features": None,
    "starts_at": "2026-01-01T12:00:00.000Z",
    "ends_at": None,
    "event_time": "2026-01-01T12:00:00.000Z",
    "detected_at": "2026-01-01T12:00:00.412Z",
    "source": {"topic": "metrics", "partition": 3, "offset": 1234567},
    "model": {"name": "pretrained", "version": "1", "hash": "ab12"},
    "labels": {},
    "annotations": {"summary": "s", "description": "d"},
}
"""The message that the documentation shows."""


def builder(**changes: object) -> MessageBuilder:
    """A builder for partition 3 of topic metrics."""
    settings: dict[str, Any] = {"stream": "hosts", "topic": "metrics", "partition": 3, "model": Model("pretrained", "1", "ab12")}
    return MessageBuilder(**settings | changes)


def messages(
    samples: list[Sample], machine: Episodes | None = None, maker: MessageBuilder | None = None, detected_at_ms: int = NOON_MS + 412
) -> list[Message]:
    """The messages that the samples make."""
    transitions = (machine or episodes(Policy(resolve_after_samples=1))).advance(*columns(samples))
    return [
        (maker or builder()).build(transitions, k, key=KEY, name="cpu.usage", labels=LABELS, offset=1234567, detected_at_ms=detected_at_ms)
        for k in range(len(transitions))
    ]


def content(message: Message) -> dict[str, Any]:
    """The message as a consumer reads it, valid against the shipped schema."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    alert: dict[str, Any] = json.loads(message.value, parse_constant=refuse)
    VALIDATOR.validate(alert)
    assert message.key.decode() == alert["alert_id"]
    return alert


def test_the_schema_is_sound_and_takes_the_documented_message() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())
    VALIDATOR.validate(EXAMPLE)


def test_a_firing_message_has_the_documented_shape() -> None:
    (message,) = messages([Sample(0, NOON_MS, 3.2)])

    alert = content(message)

    assert list(alert) == list(EXAMPLE)
    assert alert == EXAMPLE | {
        "alert_id": alert_id("hosts", "anomaly", KEY, NOON_MS),
        "severity": "critical",
        "value": 10.0,
        "expected": 0.0,
        "expected_range": [-5.0, 5.0],
        "annotations": alert["annotations"],
    }
    assert set(alert["annotations"]) == {"summary", "description"}


def test_every_status_of_an_episode_is_valid_and_has_one_id() -> None:
    samples = [Sample(0, NOON_MS + t, score) for t, score in ((0, 1.5), (1000, 4.0), (2000, 0.2))]

    alerts = [content(m) for m in messages(samples)]

    assert [(a["status"], a["severity"], a["peak_score"]) for a in alerts] == [
        ("firing", "warning", 1.5),
        ("updated", "critical", 4.0),
        ("resolved", "critical", 4.0),
    ]
    assert [a["ends_at"] for a in alerts] == [None, None, "2026-01-01T12:00:02.000Z"]
    assert len({a["alert_id"] for a in alerts}) == 1


def test_an_episode_closed_by_a_gap_is_valid() -> None:
    machine = episodes(Policy(max_gap_ms=1000))

    alerts = [content(m) for m in messages([Sample(0, NOON_MS, 1.5), Sample(0, NOON_MS + 5000, 1.5)], machine)]

    assert [(a["status"], a["ends_at"], a["starts_at"]) for a in alerts] == [
        ("firing", None, "2026-01-01T12:00:00.000Z"),
        ("resolved", "2026-01-01T12:00:00.000Z", "2026-01-01T12:00:00.000Z"),
        ("firing", None, "2026-01-01T12:00:05.000Z"),
    ]
    assert len({a["alert_id"] for a in alerts}) == 2


def test_several_features_come_largest_share_first_and_the_first_gives_the_values() -> None:
    (message,) = messages([Sample(0, NOON_MS, 2.0, side=ABOVE, features=3, top=2)], maker=builder(feature_names=["load", "memory", "disk"]))

    alert = content(message)

    assert alert["features"] == [
        {"name": "disk", "value": 12.0, "expected": 2.0, "share": 0.6},
        {"name": "load", "value": -10.0, "expected": 0.0, "share": 0.2},
        {"name": "memory", "value": -9.0, "expected": 1.0, "share": 0.2},
    ]
    assert (alert["value"], alert["expected"], alert["expected_range"]) == (12.0, 2.0, [-3.0, 7.0])
    assert "disk 60%" in alert["annotations"]["description"]


def test_features_without_names_are_numbered() -> None:
    (message,) = messages([Sample(0, NOON_MS, 2.0, features=2)])

    assert [f["name"] for f in content(message)["features"]] == ["feature_0", "feature_1"]


def test_labels_and_annotations_of_the_settings_are_in_every_message() -> None:
    maker = builder(
        labels={"team": "storage"}, annotations={"runbook_url": "https://wiki.example/cpu", "summary": "CPU of a host is strange"}
    )

    (message,) = messages([Sample(0, NOON_MS, 2.0)], maker=maker)

    alert = content(message)
    assert alert["labels"] == {"team": "storage"}
    assert alert["annotations"]["summary"] == "CPU of a host is strange"
    assert alert["annotations"]["runbook_url"] == "https://wiki.example/cpu"
    assert alert["annotations"]["description"].startswith("Anomalous since")


def test_counters_are_told_as_rates() -> None:
    (message,) = messages([Sample(0, NOON_MS, 2.0, flags=ARMED | COUNTER)])

    assert "10/s" in content(message)["annotations"]["summary"]


def test_every_message_says_how_unusual_the_peak_is() -> None:
    """At a score of 1 normal data is as strange as the budget allows; a unit of evidence is a quarter of a power of ten here."""
    maker = builder(rarity=Rarity(budget_per_day=0.1, slope=0.25, lowest=5.0))
    samples = [Sample(0, NOON_MS + t, score) for t, score in ((0, 1.0), (1000, 1.25), (2000, 0.0))]

    firing, updated, resolved = (
        content(m)["annotations"]["description"]
        for m in messages(samples, episodes(Policy(resolve_after_samples=1, critical_score=1.25)), maker)
    )

    assert ", as strange as normal data is about once in 10 days." in firing
    assert ", as strange as normal data is about once in 32 days." in updated
    assert ", at its peak as strange as normal data is about once in 32 days;" in resolved


def test_where_the_threshold_is_as_low_as_it_goes_an_alert_is_rarer_than_is_known() -> None:
    (message,) = messages([Sample(0, NOON_MS, 1.0)], maker=builder(rarity=Rarity(0.1, 0.25, lowest=EVIDENCE)))

    assert "as strange as normal data is less than once in 10 days." in content(message)["annotations"]["description"]


def test_a_replay_gives_the_same_bytes_but_for_detected_at() -> None:
    samples = [Sample(0, NOON_MS + t, score) for t, score in ((0, 1.5), (1000, 4.0), (2000, 0.2))]

    first, again, later = (messages(samples, detected_at_ms=t) for t in (NOON_MS, NOON_MS, NOON_MS + 60_000))

    assert [m.value for m in first] == [m.value for m in again]
    assert [content(m) | {"detected_at": None} for m in first] == [content(m) | {"detected_at": None} for m in later]
    assert first[0].value != later[0].value


def test_the_order_of_labels_does_not_change_the_bytes() -> None:
    transitions = episodes().advance(*columns([Sample(0, NOON_MS, 2.0)]))

    one, other = (
        builder().build(transitions, 0, key=KEY, name="cpu.usage", labels=labels, offset=1, detected_at_ms=0).value
        for labels in (LABELS, dict(reversed(LABELS.items())))
    )

    assert one == other


def test_an_id_depends_on_each_of_its_parts_and_on_where_they_end() -> None:
    same = [alert_id("a", "anomaly", "b", 1) for _ in range(2)]
    different = [
        alert_id("a", "silent", "b", 1),
        alert_id("ab", "anomaly", "", 1),
        alert_id("a", "anomaly", "b", 2),
        alert_id('a", "anomaly', "anomaly", "b", 1),
        alert_id("", "anomaly", "ab", 1),
    ]

    assert same[0] == same[1]
    assert len({*same, *different}) == 1 + len(different)


def test_an_id_is_what_earlier_releases_made_of_it() -> None:
    """Open alerts keep their names over an upgrade."""
    assert alert_id("hosts", "anomaly", KEY, NOON_MS) == "d5c38ee8e03ba70fbe2506a4cd7e9f0e"


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (NOON_MS + 412, "2026-01-01T12:00:00.412Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (1 << 62, "9999-12-31T23:59:59.999Z"),
        (-(1 << 62), "0001-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_utc_with_milliseconds(time_ms: int, text: str) -> None:
    assert iso(time_ms) == text


@given(
    name=st.text(min_size=1),
    labels=st.dictionaries(st.text(), st.text(), max_size=3),
    score=st.floats(1, 1e12),
    time_ms=st.integers(-(10**15), 10**15),
    features=st.integers(1, 4),
)
def test_whatever_the_series_is_called_the_message_is_valid(
    name: str, labels: dict[str, str], score: float, time_ms: int, features: int
) -> None:
    transitions = episodes().advance(*columns([Sample(0, time_ms, score, features=features)]))

    message = builder().build(transitions, 0, key=name, name=name, labels=labels, offset=0, detected_at_ms=0)

    alert = content(message)
    assert (alert["series"]["name"], alert["series"]["labels"]) == (name, labels)
    assert alert["score"] == score


# --- the schema and the code are one


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"alert_id": "6c1f…"},
        {"status": "pending"},
        {"severity": "info"},
        {"score": "3.2"},
        {"peak_score": 0.5},
        {"threshold": 2.0},
        {"expected_range": [1.0]},
        {"expected_range": [1.0, 2.0, 3.0]},
        {"features": []},
        {"features": [{"name": "a", "value": 1.0, "expected": 1.0}] * 2},
        {"starts_at": "2026-01-01T12:00:00Z"},
        {"status": "resolved"},
        {"ends_at": "2026-01-01T12:00:00.000Z"},
        {"source": {"topic": "metrics", "partition": 3}},
        {"labels": {"team": 7}},
        {"annotations": {"summary": "s"}},
        {"window": 16},
    ],
    ids=str,
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(EXAMPLE | change)


@pytest.mark.parametrize("name", list(EXAMPLE))
def test_the_schema_wants_every_field(name: str) -> None:
    assert not VALIDATOR.is_valid({k: v for k, v in EXAMPLE.items() if k != name})


def test_schema_and_struct_have_the_same_fields_and_types() -> None:
    """Types and enumerations of the generated schema are those of the shipped one, object by object."""
    generated = msgspec.json.schema(Alert)

    def outline(node: dict[str, Any], root: dict[str, Any]) -> object:
        while "$ref" in node:
            node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
        for choice in ("oneOf", "anyOf"):
            if choice in node:
                return sorted((outline(n, root) for n in node[choice]), key=str)
        if "enum" in node:
            return sorted(node["enum"])
        if "properties" in node:
            assert node["required"] == list(node["properties"])
            return {k: outline(v, root) for k, v in node["properties"].items()}
        if "prefixItems" in node:
            return [outline(n, root) for n in node["prefixItems"]]
        if node["type"] == "array":
            return [outline(node["items"], root), ...]
        return node["type"]

    # A map with two required names is still a map of strings in the struct.
    shipped = json.loads(json.dumps(load_schema()))
    shipped["properties"]["annotations"].pop("required")

    assert outline(shipped, shipped) == outline(generated, generated)


def test_every_field_of_the_schema_is_described() -> None:
    def walk(node: dict[str, Any]) -> None:
        for name, child in node.get("properties", {}).items():
            assert child.get("description"), name
            walk(child)

    schema = load_schema()
    walk({"properties": schema["properties"]})
    walk(schema["properties"]["features"]["oneOf"][1]["items"])


def test_numbers_survive_the_way_through_json() -> None:
    (message,) = messages([Sample(0, NOON_MS, 1.1 + 1e-15)])

    assert math.isclose(content(message)["score"], 1.1 + 1e-15, rel_tol=0, abs_tol=0)
