"""A stretch of a topic that has an end."""

import asyncio
import json

import numpy as np
import pytest

from anomalyd.errors import ConfigError, KafkaUnavailableError, TopicError
from anomalyd.kafka.past import read_past
from anomalyd.settings import KafkaSettings, Settings
from anomalyd.training import sources
from tests.support.topics import create_topic, produce, unique

START_MS = 1_760_000_000_000


def settings(bootstrap: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bootstrap, group_id="anomalyd", request_timeout_ms=3_000)


def read(bootstrap: str, topic: str, **which: int) -> dict[int, list[bytes | None]]:
    async def all_of_it() -> dict[int, list[bytes | None]]:
        found: dict[int, list[bytes | None]] = {}
        async for partition, records in read_past(settings(bootstrap), topic, **which):
            found.setdefault(partition, []).extend(record.value for record in records)
        return found

    return asyncio.run(all_of_it())


@pytest.fixture(scope="module")
def topic(kafka: str) -> str:
    """Two partitions at least, 40 records in one and 10 in the other, a second apart."""
    name = create_topic(kafka, partitions=2)
    for partition, count in ((0, 40), (1, 10)):
        for i in range(0, count, 10):
            produce(kafka, name, [b"%d" % n for n in range(i, i + 10)], partition, timestamp_ms=START_MS + 1000 * i)
    return name


def test_all_of_a_topic_is_read_and_then_it_ends(kafka: str, topic: str) -> None:
    found = read(kafka, topic)

    assert found == {0: [b"%d" % n for n in range(40)], 1: [b"%d" % n for n in range(10)]}


def test_the_newest_records_are_read(kafka: str, topic: str) -> None:
    found = read(kafka, topic, records=8)

    assert set(found) == {0, 1}
    assert found[0] == [b"%d" % n for n in range(40 - len(found[0]), 40)]
    assert 1 <= len(found[0]) <= 4  # a share for each partition


@pytest.mark.real_kafka
def test_what_was_produced_since_is_read(kafka: str, topic: str) -> None:
    assert read(kafka, topic, since_ms=START_MS + 20_000) == {0: [b"%d" % n for n in range(20, 40)]}


def test_an_empty_topic_has_nothing(kafka: str) -> None:
    assert read(kafka, create_topic(kafka)) == {}


def test_a_topic_that_is_not_there_is_said_and_not_made(kafka: str) -> None:
    name = unique("absent")
    for _ in range(2):
        with pytest.raises(TopicError, match=f"there is no topic {name}"):
            read(kafka, name)


def test_an_absent_cluster_is_said() -> None:
    with pytest.raises(KafkaUnavailableError, match=r"no answer from 127\.0\.0\.1:1"):
        read("127.0.0.1:1", "metrics")


def test_a_topic_becomes_the_histories_that_a_model_is_trained_on(kafka: str) -> None:
    """Entities of two features, assembled as the daemon does, the newest samples of them."""
    topic = create_topic(kafka)
    names = ("a", "b")
    values = [(float(i), float(i % 17)) for i in range(300)]
    produce(
        kafka,
        topic,
        [
            json.dumps({"name": name, "ts": START_MS + 60_000 * i, "value": value, "tags": {"host": "h"}}).encode()
            for i, pair in enumerate(values)
            for name, value in zip(names, pair, strict=True)
        ],
    )
    stream = {"name": "s", "topics": [topic], "format": "plain-json", "features": {"names": names, "by": ["host"]}}
    configured = Settings.model_validate({"kafka": settings(kafka), "streams": [stream], "alerts": {"topic": "alerts"}})

    whole = sources.read(sources.FromTopic(configured, topic))
    newest = sources.read(sources.FromTopic(configured, topic, samples=4 * 2 * 280))

    (history,) = whole.histories
    assert (history.name, whole.names, whole.timed) == ('host{host="h"}', names, True)
    np.testing.assert_array_equal(history.value, values)
    np.testing.assert_array_equal(history.time_ms, START_MS + 60_000 * np.arange(300))
    assert 280 <= newest.samples <= 300
    np.testing.assert_array_equal(newest.histories[0].value, values[-newest.samples :])
    with pytest.raises(ConfigError, match=f"--topic: no stream of the configuration reads other; they read {topic}"):
        sources.read(sources.FromTopic(configured, "other"))
