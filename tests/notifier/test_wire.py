"""What Alertmanager is told of an alert."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.errors import StateError
from anomalyd.notifier.wire import posted, read
from anomalyd.settings import AlertmanagerSettings
from tests.notifier.alerts import SETTINGS, alert, message, post

NOW_MS = 1_767_268_800_000 + 60_000  # a minute after the alert's start
UNTIL_MS = NOW_MS + 240_000


def test_who_it_is_is_in_the_labels_and_what_changes_is_not() -> None:
    first, later = post(), post(status="updated", score=9.0, value=99.0, direction="below", peak_score=9.0)

    assert dict(first.labels) == {
        "alertname": "MetricAnomaly",
        "severity": "warning",
        "stream": "hosts",
        "metric": "cpu.usage",
        "host": "web-01",
    }
    assert later.labels == first.labels
    assert (later.annotations["value"], later.annotations["score"]) == ("99", "9")
    assert later.annotations["summary"] == "cpu.usage is high"


def test_a_silent_series_has_a_name_of_its_own() -> None:
    assert dict(post(kind="silent").labels)["alertname"] == "MetricSilent"


def test_names_are_made_fit_and_what_meets_is_kept_apart() -> None:
    series = {"key": "k", "name": "up", "labels": {"service.name": "a", "service_name": "b", "severity": "c", "1st": "d", "empty": ""}}

    found = dict(post(series=series, labels={"team": "sre", "stream": "other"}).labels)

    assert found == {
        "alertname": "MetricAnomaly",
        "severity": "warning",
        "exported_severity": "c",
        "stream": "hosts",
        "metric": "up",
        "service_name": "a",
        "exported_service_name": "b",
        "_1st": "d",
        "team": "sre",
    }


@given(st.dictionaries(st.text(max_size=8), st.text(min_size=1, max_size=4), max_size=8))
def test_no_label_is_lost_and_every_name_is_valid(labels: dict[str, str]) -> None:
    found = post(series={"key": "k", "name": "m", "labels": labels}).labels

    assert len(found) == 4 + len(labels) == len({name for name, _ in found})
    assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) for name, _ in found)


def test_an_open_one_ends_in_time_and_a_resolved_one_now_at_the_latest() -> None:
    assert post().as_json(NOW_MS, UNTIL_MS)["startsAt"] == "2026-01-01T12:00:00.000Z"
    assert post().as_json(NOW_MS, UNTIL_MS)["endsAt"] == "2026-01-01T12:05:00.000Z"
    # Event time is ahead of the clock: an end that is still to come would keep it open.
    assert post(status="resolved").as_json(NOW_MS, UNTIL_MS)["endsAt"] == "2026-01-01T12:01:00.000Z"
    early = post(status="resolved").as_json(NOW_MS - 120_000, UNTIL_MS)
    assert early["startsAt"] == early["endsAt"] == "2026-01-01T11:59:00.000Z"


def test_a_link_is_made_of_the_series() -> None:
    settings = AlertmanagerSettings(urls=SETTINGS.urls, generator_url="https://g.example/d/m?s={series}&from={start_ms}")

    link = posted(alert(), settings).link

    assert link == "https://g.example/d/m?s=cpu.usage%7Bhost%3D%22web-01%22%7D&from=1767268800000"
    assert "generatorURL" not in post().as_json(NOW_MS, UNTIL_MS)


FOREIGN = [b'{"stream": "\xff\xfe"}', b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"]


@pytest.mark.parametrize("value", [None, b"", b"rubbish", b"[]", b"{}", message(starts_at=5), message(schema_version=2), *FOREIGN])
def test_what_is_no_alert_is_refused(value: bytes | None) -> None:
    with pytest.raises(StateError):
        read(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"starts_at": "yesterday"},
        {"event_time": "2026-01-01T00:00:00"},
        {"starts_at": "0001-01-01T00:00:00Z"},
        {"ends_at": "", "status": "resolved"},
    ],
)
def test_times_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        post(**changes)
