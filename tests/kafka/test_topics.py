"""Which topics are needed, what is wrong with those that exist, and making them on a real broker."""

import asyncio
import re

import pytest

from anomalyd.errors import KafkaUnavailableError, TopicError
from anomalyd.kafka import topics
from anomalyd.kafka.topics import Existing, Need, compare, needs
from anomalyd.settings import Settings
from tests.support.topics import create_topic, produce, unique


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

    alerts, dead, *_ = needs(settings, {"a": Existing(3, 1), "b": Existing(12, 1)}, brokers=5)

    assert (alerts.name, alerts.partitions, alerts.replication_factor, alerts.config["min.insync.replicas"]) == ("g.alerts", 12, 3, "2")
    assert (dead.name, dead.partitions) == ("g-dead-letters", 12)
    assert (alerts.config["cleanup.policy"], alerts.config["retention.ms"]) == ("delete", str(7 * 86_400_000))
    assert (dead.config["cleanup.policy"], dead.config["retention.ms"]) == ("delete", str(14 * 86_400_000))


def test_a_changelog_has_the_partitions_of_its_input_and_keeps_the_newest_of_each_key() -> None:
    settings = configured("b:1", "a", "b")

    _, _, a, b, _ = needs(settings, {"a": Existing(3, 1), "b": Existing(12, 1)}, brokers=3)

    assert [(need.name, need.role, need.partitions, need.replication_factor) for need in (a, b)] == [
        ("g-state-a", "state", 3, 3),
        ("g-state-b", "state", 12, 3),
    ]
    assert a.config["cleanup.policy"] == "compact"
    assert "retention.ms" not in a.config
    assert a.config["min.insync.replicas"] == "2"
    assert (int(a.config["segment.bytes"]), int(a.config["max.message.bytes"])) == (64 << 20, 8 << 20)
    assert 0.1 <= float(a.config["min.cleanable.dirty.ratio"]) <= 0.3


def test_models_lie_in_one_partition_and_the_newest_of_each_key_is_kept() -> None:
    *_, models = needs(configured("b:1", "a"), {"a": Existing(12, 1)}, brokers=3)

    assert (models.name, models.role, models.partitions, models.replication_factor) == ("g-models", "models", 1, 3)
    assert (models.config["cleanup.policy"], models.config["min.insync.replicas"]) == ("compact", "2")


@pytest.mark.parametrize(
    ("brokers", "asked", "copies", "in_sync"), [(1, None, 1, "1"), (2, None, 2, "1"), (3, None, 3, "2"), (9, None, 3, "2"), (3, 2, 2, "1")]
)
def test_copies_follow_the_brokers_unless_told(brokers: int, asked: int | None, copies: int, in_sync: str) -> None:
    for need in needs(configured("b:1", "a", replication_factor=asked), {"a": Existing(1, 1)}, brokers):
        assert (need.replication_factor, need.config["min.insync.replicas"]) == (copies, in_sync)


ALERTS = Need("out", "alerts", 4, 3, {"cleanup.policy": "delete"})
STATE = Need("log", "state", 4, 3, {"cleanup.policy": "compact"}, "metrics")
MODELS = Need("models", "models", 1, 3, {"cleanup.policy": "compact"})
COMPACT = {"cleanup.policy": "compact", "max.message.bytes": "8388608"}


@pytest.mark.parametrize(
    ("need", "existing", "problem", "repair"),
    [
        (
            ALERTS,
            Existing(4, 3, {"cleanup.policy": "compact"}),
            "cleanup.policy compact",
            "--entity-name out --add-config cleanup.policy=delete",
        ),
        (
            ALERTS,
            Existing(4, 3, {"cleanup.policy": "compact,delete"}),
            "cleanup.policy compact,delete",
            "--add-config cleanup.policy=delete",
        ),
        (ALERTS, Existing(4, 1, {"min.insync.replicas": "2"}), "no write can succeed", "--add-config min.insync.replicas=1"),
        (STATE, Existing(3, 3, COMPACT), "has 3 partitions, needs 4", "anomalyd state restart -c CONFIG --topic metrics"),
        (STATE, Existing(5, 3, COMPACT), "has 5 partitions, needs 4", "--delete --topic log"),
        # What is to be deleted needs no other setting first.
        (STATE, Existing(5, 3, {"cleanup.policy": "delete", "max.message.bytes": "1048588"}), "has 5 partitions", "--delete --topic log"),
        (STATE, Existing(3, 3, {"cleanup.policy": "delete"}, blank=True), "nothing is in it yet", "--delete --topic log"),
        (STATE, Existing(5, 3, {"max.message.bytes": "1048588"}, blank=True), "nothing is in it yet", "--delete --topic log"),
        (
            STATE,
            Existing(4, 3, COMPACT | {"cleanup.policy": "delete"}),
            "state would expire",
            "--entity-name log --add-config cleanup.policy=compact",
        ),
        (
            STATE,
            Existing(4, 3, COMPACT | {"cleanup.policy": "compact,delete"}),
            "state would expire",
            "--add-config cleanup.policy=compact",
        ),
        (
            STATE,
            Existing(4, 3, COMPACT | {"max.message.bytes": "1048588"}),
            "max.message.bytes 1048588",
            "--add-config max.message.bytes=8388608",
        ),
        (MODELS, Existing(1, 3, {"cleanup.policy": "delete"}), "models would expire", "--add-config cleanup.policy=compact"),
        (
            MODELS,
            Existing(1, 3, COMPACT | {"max.message.bytes": "65536"}),
            "max.message.bytes 65536",
            "--add-config max.message.bytes=1048576",
        ),
        (STATE, Existing(4, 2, COMPACT | {"min.insync.replicas": "3"}), "no write can succeed", "--add-config min.insync.replicas=1"),
    ],
)
def test_what_does_not_do_is_named_with_the_command_that_repairs_it(need: Need, existing: Existing, problem: str, repair: str) -> None:
    (text,) = compare(need, existing, "kafka-1:9092")

    assert problem in text
    assert repair in text
    assert "--bootstrap-server kafka-1:9092" in text or "anomalyd state restart" in text


@pytest.mark.parametrize(
    ("need", "existing"),
    [
        (ALERTS, Existing(8, 2, {"cleanup.policy": "delete", "min.insync.replicas": "1", "retention.ms": "3600000"})),
        (ALERTS, Existing(1, 3, {"cleanup.policy": "delete"})),
        (STATE, Existing(4, 1, COMPACT | {"max.message.bytes": "6291456", "segment.bytes": "1073741824"})),
        (MODELS, Existing(4, 1, COMPACT)),
        (STATE, Existing(4, 3)),  # its settings are hidden from us
    ],
)
def test_what_is_the_operators_choice_does(need: Need, existing: Existing) -> None:
    assert compare(need, existing) == []


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

        assert [line.split()[0] for line in planned.splitlines()] == ["ok", "missing", "missing", "missing", "missing"]
        assert [line.split()[0] for line in created.splitlines()] == ["ok", "created", "created", "created", "created"]
        assert [line.split()[0] for line in again.splitlines()] == ["ok", "ok", "ok", "ok", "ok"]
        assert "3 partitions" in created
        assert settings.changelog_topic(source) in created
        asyncio.run(topics.verify(settings))

    def test_one_missing_input_does_not_hold_up_the_others(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        here, absent = create_topic(kafka, partitions=2), unique("absent")
        settings = configured(kafka, here, absent, group=unique("group"))

        assert topics.create(settings) == 1
        lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}

        assert lines[settings.alerts.topic].startswith("created")
        assert lines[settings.changelog_topic(here)].startswith("created")
        assert lines[settings.changelog_topic(absent)].startswith("waits")
        assert f"partitions of {absent}, which does not exist yet" in lines[settings.changelog_topic(absent)]
        asyncio.run(topics.verify(settings))  # what is there can be read; the daemon waits for the other input

        create_topic(kafka, absent, partitions=3)
        with pytest.raises(
            TopicError, match=re.escape(f"topic {settings.changelog_topic(absent)} missing; make with: anomalyd topics create")
        ):
            asyncio.run(topics.verify(settings))
        assert topics.create(settings) == 0
        assert "ok       " + settings.alerts.topic in capsys.readouterr().out
        asyncio.run(topics.verify(settings))

    @pytest.mark.parametrize(
        ("partitions", "config", "problem"),
        [
            (2, {"cleanup.policy": "delete", "max.message.bytes": "8388608"}, "--add-config cleanup.policy=compact"),
            (
                1,
                {"cleanup.policy": "compact", "max.message.bytes": "8388608"},
                "has 1 partitions, needs 2 as its input; nothing is in it yet",
            ),
            (3, {}, "has 3 partitions, needs 2 as its input; nothing is in it yet"),
            (2, {"cleanup.policy": "compact"}, "--add-config max.message.bytes=8388608"),
        ],
    )
    def test_a_changelog_that_would_lose_state_is_refused_with_the_repair(
        self, kafka: str, partitions: int, config: dict[str, str], problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = create_topic(kafka, partitions=2)
        settings = configured(kafka, source, group=unique("group"))
        create_topic(kafka, settings.changelog_topic(source), partitions, config)

        assert topics.create(settings) == 1
        assert problem in capsys.readouterr().out
        with pytest.raises(TopicError, match=re.escape(problem)):
            asyncio.run(topics.verify(settings))

    def test_a_changelog_that_holds_state_is_not_deleted_before_what_is_open_was_ended(self, kafka: str) -> None:
        source = create_topic(kafka, partitions=2)
        settings = configured(kafka, source, group=unique("group"))
        assert topics.create(settings) == 0
        changelog = settings.changelog_topic(source)
        produce(kafka, changelog, [b"state"], partition=1, key=b"P")
        asyncio.run(topics.widen(settings, changelog, 3))

        with pytest.raises(TopicError, match=r"(?s)has 3 partitions, needs 2 .*state restart .* --yes, then .* --delete --topic"):
            asyncio.run(topics.verify(settings))

    def test_all_that_is_wrong_is_told_at_once(self, kafka: str) -> None:
        settings = configured(kafka, create_topic(kafka), group=unique("group"))
        create_topic(kafka, settings.alerts.topic, config={"cleanup.policy": "compact"})

        with pytest.raises(TopicError) as told:
            asyncio.run(topics.verify(settings))

        missing, wrong = str(told.value).splitlines()
        changelog = settings.changelog_topic(settings.streams[0].topics[0])
        assert f"topics {settings.dead_letter_topic}, {changelog}, {settings.models_topic} missing" in missing
        assert f"topic {settings.alerts.topic} (alerts) has cleanup.policy compact" in wrong

    def test_a_wrong_alerts_topic_is_refused_at_the_start(self, kafka: str) -> None:
        settings = configured(kafka, create_topic(kafka), group=unique("group"))
        create_topic(kafka, settings.alerts.topic, config={"cleanup.policy": "compact"})
        assert topics.create(settings) == 1

        with pytest.raises(TopicError, match=r"cleanup\.policy=delete"):
            asyncio.run(topics.verify(settings))

    def test_alerts_may_have_fewer_partitions_than_inputs(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        settings = configured(kafka, create_topic(kafka, partitions=3), group=unique("group"))
        create_topic(kafka, settings.alerts.topic, partitions=2)

        assert topics.create(settings) == 0
        assert "modulo 2" in capsys.readouterr().out
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
        told = capsys.readouterr().out
        assert "its producers own it" in told
        assert "run this again" in told
        with pytest.raises(TopicError, match="anomalyd topics create") as refused:
            asyncio.run(topics.verify(settings))
        assert f"topic {settings.streams[0].topics[0]} (input) missing" in str(refused.value)

    def test_an_error_of_a_single_topic_is_not_lost(self, kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The brokers put it into the answer, and the client raises nothing."""
        settings = configured(kafka, create_topic(kafka), replication_factor=3, group=unique("group"))

        assert topics.create(settings) == 1
        assert "not created" in capsys.readouterr().out


def test_without_brokers_there_is_one_clear_line() -> None:
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1"):
        topics.plan(configured("127.0.0.1:1", "a"))


def test_the_embedded_broker_has_no_settings_to_look_at(mock_kafka: str) -> None:
    embedded = mock_kafka
    settings = configured(embedded, unique("input"), group=unique("group"))
    for name in (settings.streams[0].topics[0], settings.alerts.topic, settings.dead_letter_topic, settings.models_topic):
        create_topic(embedded, name)

    with pytest.raises(TopicError, match="-state-"):
        asyncio.run(topics.verify(settings))
    create_topic(embedded, settings.changelog_topic(settings.streams[0].topics[0]))
    asyncio.run(topics.verify(settings))
