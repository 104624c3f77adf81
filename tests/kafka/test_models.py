"""The models topic on a broker: publishing, reading on, going back, what is passed over."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import structlog

from anomalyd.errors import ArtifactError, TopicError
from anomalyd.kafka import models, topics
from anomalyd.kafka.registry import KEPT_MODELS, PART_BYTES, Champion, Decision, Packed, Registry, model_entries
from anomalyd.settings import Settings
from tests.support.topics import create_topic, produce, read_committed, unique

BASE = Packed("ba5e" * 16, b"base")
FIRST, SECOND = Packed("01" * 32, b"first"), Packed("02" * 32, b"2" * (PART_BYTES + 7))


@pytest.fixture
def settings(kafka: str) -> Settings:
    found = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka, "group_id": unique("group")},
            "streams": [{"name": "hosts", "topics": [create_topic(kafka)], "format": "plain-json"}],
            "alerts": {"topic": unique("alerts")},
        }
    )
    for topic in (found.alerts.topic, found.dead_letter_topic, found.changelog_topic(found.streams[0].topics[0]), found.models_topic):
        create_topic(kafka, topic, config=topics.MODELS_CONFIG if topic == found.models_topic else None)
    return found


async def published(settings: Settings, artifact: Packed, reason: str = "") -> Champion:
    return await models.publish(settings, artifact, "hosts", Decision("published", reason, {"gain": 0.1}), base=BASE)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(within())


def test_publishing_makes_a_champion_and_keeps_what_was_before(settings: Settings) -> None:
    async def work() -> None:
        first = await published(settings, FIRST, "drift")
        second = await published(settings, SECOND)
        found = await models.read(settings)

        assert (first.model, first.previous, first.by, first.reason) == (FIRST.hash, BASE.hash, "retrain", "drift")
        assert found.champions == {"hosts": second}
        assert (second.model, second.previous) == (SECOND.hash, FIRST.hash)
        assert [found.content(model.hash) for model in (BASE, FIRST, SECOND)] == [model.content for model in (BASE, FIRST, SECOND)]
        assert [(model, told.verdict) for (_, model), told in found.decisions.items()] == [
            (BASE.hash, "base"),
            (FIRST.hash, "published"),
            (SECOND.hash, "published"),
        ]
        assert found.decisions["hosts", FIRST.hash].figures == {"gain": 0.1}

    run(work)


def test_publishing_again_changes_nothing(settings: Settings) -> None:
    async def work() -> None:
        first = await published(settings, FIRST)
        again = await published(settings, FIRST)
        assert again == first

    run(work)
    written = [record.key for record in read_committed(settings.kafka.bootstrap_servers, settings.models_topic)]
    assert written.count(b"champion|hosts") == 1
    assert written.count(f"model|{FIRST.hash}".encode()) == 1


def test_rolling_back_returns_and_once_more_undoes_it(settings: Settings) -> None:
    async def work() -> None:
        await published(settings, FIRST)
        back = await models.roll_back(settings, "hosts", "too many alerts")
        assert (back.model, back.previous, back.by, back.reason) == (BASE.hash, FIRST.hash, "rollback", "too many alerts")
        told = (await models.read(settings)).decisions["hosts", FIRST.hash]
        assert (told.verdict, told.reason, told.figures) == ("rolled-back", "too many alerts", {"gain": 0.1})
        assert (await models.roll_back(settings, "hosts")).model == FIRST.hash
        # Several instances may say that one has to go; it goes once.
        assert [(await models.roll_back(settings, "hosts", by="rule", of=FIRST.hash)).model for _ in range(2)] == [BASE.hash, BASE.hash]

    run(work)


def test_there_is_nothing_to_go_back_to(settings: Settings) -> None:
    async def work() -> None:
        with pytest.raises(ArtifactError, match="the stream hosts has no champion"):
            await models.roll_back(settings, "hosts")
        await models.publish(settings, FIRST, "hosts", Decision("promoted"))
        with pytest.raises(ArtifactError, match="has none before it"):
            await models.roll_back(settings, "hosts")

    run(work)


def test_a_decision_against_a_model_leaves_the_champion(settings: Settings) -> None:
    async def work() -> None:
        champion = await published(settings, FIRST)
        await models.decide(settings, SECOND.hash, "hosts", Decision("rejected", "worse", {"gain": float("nan")}, FIRST.hash))
        found = await models.read(settings)
        assert found.champions == {"hosts": champion}
        assert found.decisions["hosts", SECOND.hash].figures == {"gain": None}
        assert SECOND.hash not in found.models()

    run(work)


def test_old_models_are_removed(settings: Settings) -> None:
    many = [Packed(f"{n:02x}" * 32, b"%d" % n) for n in range(KEPT_MODELS + 2)]

    async def work() -> None:
        for artifact in many:
            await published(settings, artifact)
        assert (await models.read(settings)).models() == [artifact.hash for artifact in many[-KEPT_MODELS:]]

    run(work)


def test_damaged_records_are_told_and_passed_over(settings: Settings) -> None:
    async def work() -> None:
        champion = await published(settings, FIRST)
        for key, value in ((b"champion|hosts", b"{}"), (b"junk", b"?"), (model_entries(SECOND)[1].key, b"cut")):
            await asyncio.to_thread(produce, settings.kafka.bootstrap_servers, settings.models_topic, [value], 0, key)
        with structlog.testing.capture_logs() as logs:
            found = await models.read(settings)
        assert [(line["event"], line["records"]) for line in logs] == [("model_records_unusable", 3)]
        assert found.champions == {"hosts": champion}
        # What is published behind them is found.
        assert (await published(settings, SECOND)).previous == FIRST.hash

    run(work)


def test_a_reader_goes_on_where_it_was(settings: Settings) -> None:
    async def work() -> None:
        log, found = models.ModelsLog(settings), Registry()
        try:
            assert await log.news() == []
            for artifact in (FIRST, SECOND):
                champion = await published(settings, artifact)
                models.take(found, await log.news(), settings.models_topic)
                assert found.champions == {"hosts": champion}
            assert await log.news() == []
        finally:
            await log.close()

    run(work)


def test_the_records_are_json_for_people(settings: Settings) -> None:
    run(lambda: _publish_first(settings))
    records = {record.key: record.value for record in read_committed(settings.kafka.bootstrap_servers, settings.models_topic)}

    champion = json.loads(records[b"champion|hosts"] or b"")
    assert champion["model"] == FIRST.hash
    assert champion.keys() == {"model", "previous", "since", "by", "reason", "version", "check"}


async def _publish_first(settings: Settings) -> None:
    await published(settings, FIRST)


def test_a_missing_topic_says_what_makes_it(kafka: str) -> None:
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka, "group_id": unique("group")},
            "streams": [{"name": "hosts", "topics": ["metrics"], "format": "plain-json"}],
        }
    )

    with pytest.raises(TopicError, match=r"-models \(models\) missing.*anomalyd topics create"):
        run(lambda: _publish_first(settings))
