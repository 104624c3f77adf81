"""Which topics are needed, what is wrong with those that exist, and making them on a real broker."""

import asyncio

import pytest

from anomalyd.errors import KafkaUnavailableError, TopicError
from anomalyd.kafka import topics
from anomalyd.kafka.topics import Existing, Need, compare, needs
from anomalyd.settings import Settings
from tests.support.topics import create_topic, unique


def configured(bootstrap: str, *inputs: str, replication_factor: int | None = None, group: str = "g") -> Settings:
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": bootstrap, "group_id": group, "request_timeout_ms": 3_000},
            "streams": [{"name": name, "topics": [name], "format": "influx"} for name in inputs],
            "alerts": {"topic": f"{group}.alerts"},
            "topics": {"replication_factor": replication_factor},
        }
    )


def test_every_input_partition_finds_one_of_its_own_to_write_to() -> None:
    settings = configured("b:1", "a", "b")

    alerts, dead = needs(settings, {"a": Existing(3, 1), "b": Existing(12, 1)}, brokers=5)

    assert (alerts.name, alerts.partitions, alerts.replication_factor, alerts.config["min.insync.replicas"]) == ("g.alerts", 12, 3, "2")
    assert (dead.name, dead.partitions) == ("g-dead-letters", 12)
    assert (alerts.config["cleanup.policy"], alerts.config["retention.ms"]) == ("delete", str(7 * 86_400_000))
    assert (dead.config["cleanup.policy"], dead.config["retention.ms"]) == ("delete", str(14 * 86_400_000))


@pytest.mark.parametrize(
    ("brokers", "asked", "copies", "in_sync"), [(1, None, 1, "1"), (2, None, 2, "1"), (3, None, 3, "2"), (9, None, 3, "2"), (3, 2, 2, "1")]
)
def test_copies_follow_the_brokers_unless_told(brokers: int, asked: int | None, copies: int, in_sync: str) -> None:
    alerts, _ = needs(configured("b:1", "a", replication_factor=asked), {"a": Existing(1, 1)}, brokers)

    assert (alerts.replication_factor, alerts.config["min.insync.replicas"]) == (copies, in_sync)


NEED = Need("alerts", "alerts", 4, 3, {"cleanup.policy": "delete"})


@pytest.mark.parametrize(
    ("existing", "problem"),
    [
        (Existing(3, 3, {"cleanup.policy": "delete"}), "has 3 partitions, needs at least 4"),
        (Existing(4, 3, {"cleanup.policy": "compact"}), "cleanup.policy compact"),
        (Existing(4, 3, {"cleanup.policy": "compact,delete"}), "cleanup.policy compact,delete"),
        (Existing(4, 1, {"cleanup.policy": "delete", "min.insync.replicas": "2"}), "no write can succeed"),
    ],
)
def test_what_does_not_do_is_named(existing: Existing, problem: str) -> None:
    assert problem in "; ".join(compare(NEED, existing))


def test_what_is_the_operators_choice_does() -> None:
    assert compare(NEED, Existing(8, 2, {"cleanup.policy": "delete", "min.insync.replicas": "1", "retention.ms": "3600000"})) == []


@pytest.mark.real_kafka
class TestOnABroker:
    """plan and create as a user runs them."""

    def test_create_makes_what_plan_says_and_may_be_repeated(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        source = create_topic(kafka, partitions=3)
        settings = configured(kafka, source, group=unique("group"))

        assert topics.plan(settings) == 0
        planned = capsys.readouterr().out
        assert topics.create(settings) == 0
        created = capsys.readouterr().out
        assert topics.create(settings) == 0
        again = capsys.readouterr().out

        assert [line.split()[0] for line in planned.splitlines()] == ["ok", "missing", "missing"]
        assert [line.split()[0] for line in created.splitlines()] == ["ok", "created", "created"]
        assert [line.split()[0] for line in again.splitlines()] == ["ok", "ok", "ok"]
        assert "3 partitions" in created
        asyncio.run(topics.verify(settings))

    def test_a_compacted_alerts_topic_is_a_mismatch_and_is_left_alone(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        settings = configured(kafka, create_topic(kafka), group=unique("group"))
        create_topic(kafka, settings.alerts.topic, config={"cleanup.policy": "compact"})

        assert topics.create(settings) == 1
        assert "mismatch" in capsys.readouterr().out
        assert topics.plan(settings) == 1

    def test_input_topics_are_never_created(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        settings = configured(kafka, unique("absent"), group=unique("group"))

        assert topics.plan(settings) == 1
        assert topics.create(settings) == 1
        assert "its producers own it" in capsys.readouterr().out
        with pytest.raises(TopicError, match="anomalyd topics create"):
            asyncio.run(topics.verify(settings))

    def test_an_error_of_a_single_topic_is_not_lost(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The brokers put it into the answer, and the client raises nothing."""
        settings = configured(kafka, create_topic(kafka), replication_factor=3, group=unique("group"))

        assert topics.create(settings) == 1
        assert "not created" in capsys.readouterr().out


def test_without_brokers_there_is_one_clear_line() -> None:
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1"):
        topics.plan(configured("127.0.0.1:1", "a"))
