"""`anomalyd retrain` in a process of its own, on a real Kafka."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

from anomalyd.kafka import models
from anomalyd.kafka.registry import Registry
from anomalyd.settings import Settings
from tests.integration.daemon import START_S, Daemon
from tests.support.poll import poll_until
from tests.support.topics import produce

SERIES = 16
SAMPLES = 900


class Retrainer(Daemon):
    """As its user runs it."""

    verb = "retrain"


def retrained(tmp_path: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401  settings
    return {"retrain": {"interval_s": 10, "steps": 40, "http": {"host": "127.0.0.1", "port": 0}, "folder": str(tmp_path / "kept"), **more}}


def records(begin: int = 0, end: int = SAMPLES) -> list[bytes]:
    rng = np.random.default_rng(0)
    phase = rng.random(SERIES)
    noise = rng.standard_normal((SERIES, SAMPLES))
    found = []
    for i in range(begin, end):
        for k in range(SERIES):
            value = 100 + 20 * np.sin(2 * np.pi * (i / 60 + phase[k])) ** 3 + 10 * (i % 24 < 3) + noise[k, i]
            found.append(json.dumps({"name": "load", "ts": START_S + 60 * i, "value": float(value), "tags": {"host": str(k)}}).encode())
    return found


def registry(daemon: Daemon) -> Registry:
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": daemon.bootstrap, "group_id": daemon.group},
            "streams": [{"name": "hosts", "topics": [daemon.source], "format": "plain-json"}],
            "alerts": {"topic": daemon.alerts},
        }
    )
    return asyncio.run(models.read(settings))


def test_a_better_model_becomes_champion_and_a_restart_forgets_nothing(kafka: str, tmp_path: Path) -> None:
    with Retrainer(kafka, tmp_path, settings=retrained(tmp_path)) as process:
        produce(kafka, process.source, records())
        poll_until(lambda: process.metric("anomalyd_retrain_rounds_total"), f"a round; its log: {process.log()[-3000:]}", 110, 0.5)
        process.until_ready()

        told = process.events("retrain_round")[0]
        assert told["verdict"] == "published", told
        found = registry(process)
        champion = found.champions["hosts"]
        decision = found.decisions[("hosts", champion.model)]
        assert champion.by == "retrain"
        assert decision.verdict == "published"
        assert decision.figures["surprise"]["difference"]["high"] < 0
        assert decision.parent == champion.previous  # the one that ships, which went to the topic, too
        assert process.metric("anomalyd_retrain_series") == SERIES
        assert process.metric("anomalyd_retrain_samples") == SERIES * SAMPLES
        assert process.metric("anomalyd_retrain_lag_records") == 0
        assert process.stop() == 0

        process.start()
        process.until_ready()
        poll_until(lambda: process.metric("anomalyd_retrain_samples") == SERIES * SAMPLES, "what was kept", 30, 0.1)
        assert process.metric("anomalyd_retrain_records_total") == 0
        assert process.stop() == 0


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
