"""Scores on a topic and in a real Prometheus, from a daemon that is killed in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalyd.batch import Source
from anomalyd.detector import Detector
from anomalyd.formats import make_decoder
from anomalyd.selection import Selection
from anomalyd.shard import Shard, StreamPlan
from anomalyd.shard_scores import ScorePlan
from tests.integration.daemon import START_S, Daemon, sample
from tests.support.poll import poll_until
from tests.support.prometheus import Prometheus
from tests.support.topics import create_topic, produce, read_until, unique
from tests.test_shard import records

pytestmark = pytest.mark.timeout(240)

SAMPLES = 400


def values() -> list[bytes]:
    noise = np.random.default_rng(3).standard_normal((SAMPLES, 2))
    return [
        sample(host, i, 100 + noise[i, k] + (50 if i >= 395 and k else 0))
        for i in range(SAMPLES)
        for k, host in enumerate(("web-1", "web-2"))
    ]


def uninterrupted(source: str) -> list[tuple[bytes, bytes]]:
    """Every score that one life without an end would have written."""
    plan = ScorePlan(Selection())
    shard = Shard(StreamPlan("hosts"), Source(source, 0), Detector.load(device="cpu"), make_decoder("plain-json"), 100, scores=plan)
    return shard.process(records(values())).scores


@pytest.mark.real_kafka
def test_each_score_is_written_once_whatever_is_killed_and_prometheus_has_them_too(kafka: str, tmp_path: Path) -> None:
    topic = create_topic(kafka, unique("scores"))
    with Prometheus(tmp_path / "prometheus", {}, receives=True) as prometheus:
        settings: dict[str, Any] = {
            "scores": {"topic": topic},
            "remote_write": {
                "url": f"{prometheus.url}/api/v1/write",
                "include": ['*{host="web-2"}'],
                "labels": {"cluster": "test"},
            },
        }
        with Daemon(kafka, tmp_path, settings=settings) as daemon:
            daemon.until_ready(120)
            for start in range(0, 2 * SAMPLES, 200):
                produce(kafka, daemon.source, values()[start : start + 200])
                read_until(kafka, topic, lambda found, least=start + 1: len(found) >= least, "scores of this part", 60)  # type: ignore[misc]  # mypy takes a default for no argument
                if start in {200, 400}:
                    daemon.kill()
                    daemon.start()
            found = read_until(kafka, topic, lambda found: len(found) >= 2 * SAMPLES, "all scores", 60)
            daemon.until_read(1)
            poll_until(
                lambda: daemon.metric("anomalyd_remote_write_queue_samples") == 0 and daemon.metric("anomalyd_remote_write_samples_total"),
                "an empty queue",
            )
            expected = uninterrupted(daemon.source)
            refused = daemon.metric("anomalyd_remote_write_dropped_samples_total")
            assert daemon.stop() == 0

        assert [(record.key, record.value) for record in found] == expected
        end_s = START_S + 10 * SAMPLES
        stored = {
            name: prometheus.samples(f'{name}{{host="web-2",for="load",stream="hosts",cluster="test"}}', START_S - 1, end_s)
            for name in ("anomaly_score", "yhat", "yhat_lower", "yhat_upper")
        }
        assert prometheus.query('count({__name__=~".+",host="web-1"})', end_s) == []

    told = {START_S + 10 * i: json.loads(value) for i, (_, value) in enumerate(expected[1::2])}
    (scores,) = stored["anomaly_score"].values()
    # What waited when the process was killed is lost to Prometheus, and only that.
    assert len(scores) >= SAMPLES // 4
    assert all(value == told[int(at)]["score"] for at, value in scores)
    (lows,), (highs,) = stored["yhat_lower"].values(), stored["yhat_upper"].values()
    assert all([low, high] == told[int(at)]["expected_range"] for (at, low), (_, high) in zip(lows, highs, strict=True))
    (best,) = stored["yhat"].values()
    assert all(value == told[int(at)]["expected"] for at, value in best)
    assert refused == 0
