"""An alert as Alertmanager knows it. Pure functions.

There an alert is its labels: two with the same labels are one. So labels hold what never changes while an episode lasts, and what changes
(score, value, expectation) is annotations. A label name that its older versions refuse would cost the alert, so names are made of letters,
digits and underscores. https://github.com/prometheus/alertmanager/blob/main/docs/alerts_api.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from anomalyd.alerts.messages import SCHEMA_VERSION, Alert
from anomalyd.errors import StateError
from anomalyd.labels import fit, fitted
from anomalyd.settings import AlertmanagerSettings

Labels = tuple[tuple[str, str], ...]
"""Names and values, by name: who an alert is."""

ALERT_NAMES: Final[Mapping[str, str]] = {"anomaly": "MetricAnomaly", "silent": "MetricSilent"}
"""By kind of alert."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DECODER: Final = msgspec.json.Decoder(Alert)


@dataclass(frozen=True, slots=True)
class Post:
    """What members are told of an alert."""

    labels: Labels
    annotations: Mapping[str, str]
    starts_ms: int
    """Event time."""
    ends_ms: int | None
    """Event time at which it was over; None while it is open."""
    link: str | None
    event_ms: int
    """Event time of the message that said so."""

    def as_json(self, now_ms: int, until_ms: int) -> dict[str, Any]:
        """One element of a request.

        Args:
            now_ms: the clock. Event time may be ahead of it, and Alertmanager takes an end that is still to come for an open alert.
            until_ms: when an open alert ends that nobody sends again.
        """
        starts_ms = min(self.starts_ms, now_ms)
        ends_ms = until_ms if self.ends_ms is None else max(starts_ms, min(self.ends_ms, now_ms))
        told: dict[str, Any] = {
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "startsAt": _rfc3339(starts_ms),
            "endsAt": _rfc3339(ends_ms),
        }
        return told if self.link is None else told | {"generatorURL": self.link}


def read(value: bytes | None) -> Alert:
    """A message of the alerts topic.

    Raises:
        StateError: it is none, or of a newer schema.
    """
    try:
        alert = _DECODER.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # the last two of what others have written
        raise StateError(str(error)) from None
    if alert.schema_version > SCHEMA_VERSION:
        raise StateError(f"schema version {alert.schema_version} is newer than {SCHEMA_VERSION}, which this version knows")
    return alert


def posted(alert: Alert, settings: AlertmanagerSettings) -> Post:
    """What to tell of an alert.

    Raises:
        StateError: a time in it is none.
    """
    try:
        starts_ms, event_ms = _ms(alert.starts_at), _ms(alert.event_time)
        ends_ms = event_ms if alert.ends_at is None else _ms(alert.ends_at)
    except (ValueError, OverflowError) as error:
        raise StateError(str(error)) from None
    link = settings.link(series=alert.series.key, stream=alert.stream, start_ms=starts_ms, alert_id=alert.alert_id)
    return Post(labels(alert), _annotations(alert), starts_ms, ends_ms if alert.status == "resolved" else None, link, event_ms)


def labels(alert: Alert) -> Labels:
    """Who an alert is: what it is about, how severe it is, and what the configuration adds.

    A label of the series whose name, made fit, is taken already gets `exported_` in front, as Prometheus does it, and then a number.
    """
    # What users have configured may replace nothing that tells one alert from another, but may name the alert as they like.
    found = {"alertname": ALERT_NAMES.get(alert.kind, alert.kind)}
    found |= {fit(name): value for name, value in sorted(alert.labels.items()) if value}
    found |= {"severity": alert.severity, "stream": alert.stream, "metric": alert.series.name}
    found |= fitted({name: value for name, value in alert.series.labels.items() if value}, found)
    return tuple(sorted(found.items()))


def _annotations(alert: Alert) -> dict[str, str]:
    numbers = {
        "value": f"{alert.value:.6g}",
        "expected": f"{alert.expected:.6g}",
        "expected_range": f"{alert.expected_range[0]:.6g} to {alert.expected_range[1]:.6g}",
        "score": f"{alert.score:.3g}",
        "peak_score": f"{alert.peak_score:.3g}",
    }
    about = {
        "series": alert.series.key,
        "direction": alert.direction,
        "alert_id": alert.alert_id,
        "event_time": alert.event_time,
        "model": f"{alert.model.name} {alert.model.version}",
    }
    shares = {"features": ", ".join(f"{f.name} {f.share:.0%}" for f in alert.features[:5])} if alert.features else {}
    return {**numbers, **about, **shares, **alert.annotations}


def _ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} names no time zone")
    # Year 1 is no time for Alertmanager, and the ends of the calendar cannot be written in every zone.
    if not 1970 <= moment.year < 9999:
        raise ValueError(f"{text} is no time of an alert")
    return round((moment - _EPOCH) / timedelta(milliseconds=1))


def _rfc3339(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
