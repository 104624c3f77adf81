"""The brokers that the other tests stand on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kafka import Cluster
from tests.support.poll import poll_until
from tests.support.topics import create_topic, produce, read_committed, read_until


def test_session_broker_keeps_order(kafka: str) -> None:
    topic = create_topic(kafka)
    produce(kafka, topic, [b"1", b"2", b"3"], key=b"k", timestamp_ms=1_700_000_000_000)

    records = read_committed(kafka, topic)

    assert [(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in records] == [
        (0, i, 1_700_000_000_000, b"k", str(i + 1).encode()) for i in range(3)
    ]


def test_embedded_broker_keeps_order(mock_kafka: str) -> None:
    topic = create_topic(mock_kafka)
    produce(mock_kafka, topic, [b"1", b"2"], partition=3)

    records = read_until(mock_kafka, topic, lambda got: len(got) == 2, "both records")

    assert [(r.partition, r.value) for r in records] == [(3, b"1"), (3, b"2")]


def test_a_killed_leader_is_replaced(kafka_cluster: Cluster) -> None:
    topic = create_topic(kafka_cluster.bootstrap_servers)
    produce(kafka_cluster.bootstrap_servers, topic, [b"before"])

    kafka_cluster.brokers[0].kill()
    produce(kafka_cluster.bootstrap_servers, topic, [b"after"])

    assert [r.value for r in read_committed(kafka_cluster.bootstrap_servers, topic)] == [b"before", b"after"]


def test_a_broker_keeps_its_records_over_a_restart(breakable_kafka: Cluster) -> None:
    topic = create_topic(breakable_kafka.bootstrap_servers)
    produce(breakable_kafka.bootstrap_servers, topic, [b"kept"])

    breakable_kafka.brokers[0].stop()
    poll_until(lambda: not breakable_kafka.brokers[0].running, "the broker's end")
    breakable_kafka.ensure_up()

    assert [r.value for r in read_committed(breakable_kafka.bootstrap_servers, topic)] == [b"kept"]


@pytest.mark.parametrize("ci", [False, True])
def test_without_java_the_run_says_so_and_ci_fails(ci: bool, tmp_path: Path) -> None:
    """Where there is no Java, real-Kafka tests are skipped loudly; with CI=true they fail."""
    name = "test_a_broker_keeps_its_records_over_a_restart"
    environment = {k: v for k, v in os.environ.items() if k not in {"ANOMALYD_TEST_KAFKA", "CI"} and not k.startswith("COV_")}
    environment |= {"PATH": str(tmp_path), "CI": "true" if ci else "false"}
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={tmp_path}", f"{__file__}::{name}"]

    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=60)

    if ci:
        assert run.returncode == 1, run.stdout
        assert "no real Kafka: install java 17 or newer" in run.stdout
    else:
        assert run.returncode == 0, run.stdout
        assert "1 TESTS AGAINST A REAL KAFKA WERE SKIPPED: install java 17 or newer" in run.stdout
