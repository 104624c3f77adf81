"""Streams with features on a real Kafka: one alert for an entity, and no sample is lost that was half assembled at a crash."""

import json
from pathlib import Path
from typing import Any, Final

import jsonschema
import numpy as np
import pytest

from anomalyd.alerts.messages import load_schema
from tests.integration.daemon import Daemon
from tests.support.topics import create_topic, produce, read_committed, read_until

pytestmark = pytest.mark.timeout(600)  # the step for six features is compiled at the first start

START_S: Final = 1_760_000_000
ROUNDS: Final = 1100
INCIDENT: Final = range(1000, 1010)
FEATURES: Final = {
    "names": ['cpu.idle{cpu="cpu-total"}', 'cpu.user{cpu="cpu-total"}', "mem.used", "mem.free", "system.load1", "system.load5"],
    "by": ["host"],
}


def fleet() -> list[bytes]:
    """Three records of each of two hosts a minute, with two features of six each; web-1 has an incident in two of them."""
    noise = np.random.default_rng(3).standard_normal((ROUNDS, 2, 6))
    records = []
    for i in range(ROUNDS):
        for h, host in enumerate(("web-1", "web-2")):
            x = (50 + 5 * np.sin(i / 20) + noise[i, h]).tolist()
            if h == 0 and i in INCIDENT:
                x[1], x[4] = x[1] + 400, x[4] - 300
            tags = {"host": host, "cpu": "cpu-total"}
            for name, fields in (
                ("cpu", {"idle": x[0], "user": x[1]}),
                ("mem", {"used": x[2], "free": x[3]}),
                ("system", {"load1": x[4], "load5": x[5]}),
            ):
                records.append(json.dumps({"name": name, "tags": tags, "timestamp": START_S + 60 * i, "fields": fields}).encode())
    return records


def messages(daemon: Daemon) -> list[dict[str, Any]]:
    """All that it has told, without the clock's time."""
    alerts = [json.loads(record.value or b"") for record in read_committed(daemon.bootstrap, daemon.alerts)]
    return [alert | {"detected_at": ""} for alert in alerts]


@pytest.mark.real_kafka
def test_an_incident_of_a_host_is_one_alert_whatever_is_killed(kafka: str, tmp_path: Path) -> None:
    """The kill comes when two of three records of the first strange sample are committed."""
    records, source = fleet(), create_topic(kafka)
    stream = {"name": "hosts", "topics": [source], "format": "telegraf-json", "start_from": "earliest", "features": FEATURES}
    settings = {"streams": [stream], "state": {"turn_s": 1.0}}
    cut = 6 * INCIDENT.start + 2
    produce(kafka, source, records[:cut])

    with Daemon(kafka, tmp_path, source=source, settings=settings) as daemon:
        daemon.until_ready(400)
        daemon.until_committed(cut)
        assert messages(daemon) == []
        daemon.kill()
        produce(kafka, source, records[cut:])
        daemon.start()
        read_until(kafka, daemon.alerts, lambda found: len(found) >= 2, "an episode", 120)
        daemon.until_committed(len(records))
        assert daemon.metric("anomalyd_replay_divergences_total") == 0
        daemon.until_metric("anomalyd_series", 2)
        assert daemon.stop() == 0
    with Daemon(kafka, tmp_path, source=source, settings=settings) as alone:
        alone.until_committed(len(records))
        alone.until_metric("anomalyd_samples_scored_total", 2 * ROUNDS)
        assert alone.stop() == 0

    told = messages(daemon)
    assert told == messages(alone)
    firing = [alert for alert in told if alert["status"] == "firing"]
    assert [alert["series"]["key"] for alert in firing] == ['host{host="web-1"}']
    assert {feature["name"] for feature in firing[0]["features"][:2]} == {'cpu.user{cpu="cpu-total"}', "system.load1"}
    assert firing[0]["source"]["offset"] == cut
    for alert in told:
        jsonschema.validate(alert | {"detected_at": alert["event_time"]}, load_schema())
