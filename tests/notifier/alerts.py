"""Messages of the alerts topic for tests of the notifier."""

import json
from typing import Any

from anomalyd.alerts.messages import Alert
from anomalyd.notifier.wire import Post, posted, read
from anomalyd.settings import AlertmanagerSettings
from tests.alerts.test_messages import EXAMPLE

SETTINGS = AlertmanagerSettings(urls=("http://127.0.0.1:9093",))


def message(host: str = "web-01", status: str = "firing", **changes: object) -> bytes:
    """One about `cpu.usage` of a host, its alert id the host's name."""
    about: dict[str, Any] = {
        "alert_id": host,
        "status": status,
        "series": {"key": f'cpu.usage{{host="{host}"}}', "name": "cpu.usage", "labels": {"host": host}},
        "ends_at": "2026-01-01T12:10:00.000Z" if status == "resolved" else None,
        "annotations": {"summary": "cpu.usage is high", "description": "97.1, expected 25.2 to 37.9"},
    }
    return json.dumps(EXAMPLE | about | changes).encode()


def alert(host: str = "web-01", status: str = "firing", **changes: object) -> Alert:
    """The same, read."""
    return read(message(host, status, **changes))


def post(host: str = "web-01", status: str = "firing", **changes: object) -> Post:
    """What members are told of it."""
    return posted(alert(host, status, **changes), SETTINGS)
