"""`anomalyd retrain` in a process of its own, on a real Kafka."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalyd.alerts.messages import iso
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.kafka import models
from anomalyd.kafka.registry import Registry
from anomalyd.settings import Settings
from tests.integration.daemon import START_S, Daemon
from tests.integration.test_models import Operated
from tests.support.poll import poll_until
from tests.support.topics import produce, read_until

SERIES = 16
SAMPLES = 1_000
OPEN = 6
"""Samples of an incident that nothing follows: its alert stays open."""
NOISE = np.random.default_rng(0).standard_normal((SERIES, SAMPLES + 100))
BASE = artifacts.load(shipped())
NEW = iso((START_S + 60 * (SAMPLES - 50)) * 1000)


class Retrainer(Daemon):
    """As its user runs it."""

    verb = "retrain"


def retrained(tmp_path: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401  settings
    return {"retrain": {"interval_s": 10, "steps": 40, "http": {"host": "127.0.0.1", "port": 0}, "folder": str(tmp_path / "kept"), **more}}


def records(begin: int = 0, end: int = SAMPLES) -> list[bytes]:
    """All hosts; from a third of the samples on they behave in another way than before."""
    return [record(str(k), i, value(k, i)) for i in range(begin, end) for k in range(SERIES)]


def shifted(host: str, begin: int, count: int) -> list[bytes]:
    """An incident: a host far above what it ever was."""
    return [record(host, i, value(int(host), i) + 300) for i in range(begin, begin + count)]


def record(host: str, i: int, value: float) -> bytes:
    return json.dumps({"name": "load", "ts": START_S + 60 * i, "value": value, "tags": {"host": host}}).encode()


def value(k: int, i: int) -> float:
    base = 20 * np.sin(2 * np.pi * (i / 60 + k / SERIES)) ** 3 + 10 * (i % 24 < 3) if i >= SAMPLES // 3 else 5 * np.sin(i / 40 + k)
    return float(100 + base + NOISE[k, i])


def alerts_of(daemon: Daemon, host: str, count: int) -> list[dict[str, Any]]:
    """So many messages about a host, or more, of alerts that began when it already behaved in its new way for long."""

    def found(messages: list[Any]) -> list[dict[str, Any]]:
        alerts = [json.loads(message.value or b"") for message in messages]
        return [alert for alert in alerts if alert["series"]["labels"]["host"] == host and alert["starts_at"] >= NEW]

    read = read_until(daemon.bootstrap, daemon.alerts, lambda messages: len(found(messages)) >= count, f"{host}'s alerts", 60)
    return found(read)


def registry(daemon: Daemon) -> Registry:
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": daemon.bootstrap, "group_id": daemon.group},
            "streams": [{"name": "hosts", "topics": [daemon.source], "format": "plain-json"}],
            "alerts": {"topic": daemon.alerts},
        }
    )
    return asyncio.run(models.read(settings))


@pytest.mark.timeout(400)  # a training, a gate and several processes, on a machine that may be busy
@pytest.mark.real_kafka
def test_data_drift_a_challenger_passes_is_swapped_in_and_rolled_back(kafka: str, tmp_path: Path) -> None:
    settings = retrained(tmp_path)
    with Operated(kafka, tmp_path, settings=settings) as daemon:
        daemon.until_ready()
        produce(kafka, daemon.source, [*records(), *shifted("0", SAMPLES, OPEN)])
        daemon.until_read(SERIES * SAMPLES + OPEN)
        opened = alerts_of(daemon, "0", 1)[0]
        assert opened["status"] == "firing"

        with Retrainer(kafka, tmp_path, source=daemon.source, group=daemon.group, settings=settings) as process:
            process.until_ready()
            poll_until(lambda: process.events("retrain_round"), f"a round; its log: {process.log()[-3000:]}", 200, 0.5)
            told = process.events("retrain_round")[0]
            assert told["verdict"] == "published", told
            process.until_metric("anomalyd_retrain_series", SERIES)
            process.until_metric("anomalyd_retrain_samples", SERIES * SAMPLES + OPEN)
            assert process.metric("anomalyd_retrain_lag_records") == 0
            assert (process.metric("anomalyd_retrain_incidents") or 0) >= 1
            assert process.stop() == 0

            process.start()  # a restart forgets nothing
            process.until_ready()
            poll_until(lambda: process.metric("anomalyd_retrain_samples") == SERIES * SAMPLES + OPEN, "what was kept", 30, 0.1)
            assert process.metric("anomalyd_retrain_records_total") == 0
            assert process.stop() == 0

        listed = daemon.models("list")
        shown = daemon.models("show", told["model"])
        assert listed["champions"]["hosts"]["model"] == told["model"]
        assert shown["parent"] == BASE.hash, shown
        daemon.until_scored_by(told["model"], "retrained")
        daemon.until_metric('anomalyd_model_swaps_total{reason="retrain",stream="hosts"}', 1)

        # The alert that was open goes on and ends; a new incident is told by the new model.
        produce(kafka, daemon.source, records(SAMPLES + OPEN, SAMPLES + OPEN + 60))
        daemon.until_committed(SERIES * (SAMPLES + 60) + OPEN)
        told_of_it = [alert for alert in alerts_of(daemon, "0", 2) if alert["alert_id"] == opened["alert_id"]]
        assert [alert["status"] for alert in told_of_it if alert["status"] != "updated"] == ["firing", "resolved"]
        assert told_of_it[-1]["model"]["hash"] == told["model"]
        produce(kafka, daemon.source, shifted("1", SAMPLES + OPEN + 60, 5))
        assert alerts_of(daemon, "1", 1)[0]["model"]["hash"] == told["model"]

        assert daemon.models("rollback", "--stream", "hosts")["model"] == BASE.hash
        daemon.until_scored_by(BASE.hash)
        produce(kafka, daemon.source, shifted("2", SAMPLES + OPEN + 60, 5))
        assert alerts_of(daemon, "2", 1)[0]["model"]["hash"] == BASE.hash
        assert daemon.metric("anomalyd_model_swap_failures_total") == 0
        daemon.until_committed(SERIES * (SAMPLES + 60) + OPEN + 10)
        assert daemon.stop() == 0
    # What is committed keeps of these only what a replay may still need.
    offsets = {event["model"]: event["offset"] for event in daemon.events("model_scores")}
    assert SERIES * SAMPLES + OPEN <= offsets[told["model"]] < offsets[BASE.hash]


def test_an_empty_topic_publishes_nothing(kafka: str, tmp_path: Path) -> None:
    with Retrainer(kafka, tmp_path, settings=retrained(tmp_path)) as process:
        process.until_ready()
        poll_until(lambda: process.events("retrain_waiting"), f"a round that is due; its log: {process.log()[-3000:]}", 60, 0.2)

        assert registry(process).champions == {}
        assert process.metric("anomalyd_retrain_rounds_total") == 0
        assert process.stop() == 0


def test_a_topic_that_is_not_there_is_one_line(kafka: str, tmp_path: Path) -> None:
    process = Retrainer(kafka, tmp_path, source="absent", settings=retrained(tmp_path))
    with process:
        assert process.process.wait(60) == 1

        assert "absent" in process.log()
        assert "Traceback" not in process.log()
