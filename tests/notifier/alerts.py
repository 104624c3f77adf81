"""Messages of the alerts topic for tests of the notifier."""

import json
from typing import Any

from anomalyd.alerts.messages import Alert
from anomalyd.notifier.wire import Post, posted, read
from anomalyd.settings import AlertmanagerSettings

SETTINGS = AlertmanagerSettings(urls=("http://127.0.0.1:9093",))


def message(host: str = "web-01", status: str = "firing", **changes: object) -> bytes:
    """One about `cpu.usage` of a host, its alert id the host's name."""
    told: dict[str, Any] = {
        "schema_version": 1,
        "alert_id": host,
        "kind": "anomaly",
        "status": status,
        "stream": "hosts",
        "series": {"key": f'cpu.usage{{host="{host}"}}', "name": "cpu.usage", "labels": {"host": host}},
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
        "ends_at": "2026-01-01T12:10:00.000Z" if status == "resolved" else None,
        "event_time": "2026-01-01T12:00:00.000Z",
        "detected_at": "2026-01-01T12:00:00.412Z",
        "source": {"topic": "metrics", "partition": 0, "offset": 7},
        "model": {"name": "pretrained", "version": "1", "hash": "ab12"},
        "labels": {},
        "annotations": {"summary": "cpu.usage is high", "description": "97.1, expected 25.2 to 37.9"},
    }
    return json.dumps(told | changes).encode()


def alert(host: str = "web-01", status: str = "firing", **changes: object) -> Alert:
    """The same, read."""
    return read(message(host, status, **changes))


def post(host: str = "web-01", status: str = "firing", **changes: object) -> Post:
    """What members are told of it."""
    return posted(alert(host, status, **changes), SETTINGS)
