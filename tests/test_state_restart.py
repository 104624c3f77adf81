"""Beginning anew, on changelogs that real writers have written; whether it worked, the protocol itself says."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from anomalyd import state_commands, state_restart
from anomalyd.alerts.messages import alert_id, load_schema
from anomalyd.batch import Entry, Source
from anomalyd.errors import StateError
from anomalyd.kafka import topics
from anomalyd.kafka.changelog import ChangelogReader
from anomalyd.kafka.transactions import TransactionalWriter
from anomalyd.state import codec
from anomalyd.state.codec import Episode, Page
from anomalyd.state.ledger import Ledger
from anomalyd.state.ports import Restored
from tests.support.changelog import FENCE, FIRING, QUIET, NoMetrics, Rig, page, position, row
from tests.support.poll import poll_until
from tests.support.topics import produce, read_committed


@pytest.fixture
def rig(kafka: str, capsys: pytest.CaptureFixture[str]) -> Rig:
    made = Rig(kafka)
    capsys.readouterr()
    return made


class Fences(NoMetrics):
    """Nothing is counted."""

    def fenced(self, why: str) -> None:
        """A fence was written."""


async def claim(rig: Rig, partition: int, partitions: int) -> tuple[Restored, list[Page]]:
    """What the next owner finds."""
    source, settings = Source(rig.source, partition), rig.settings
    changelog, pages = settings.changelog_topic(rig.source), list[Page]()

    async def load(found: list[Page]) -> None:
        pages.extend(found)

    async def member() -> bool:
        return True

    ledger = Ledger(
        source,
        open_writer=lambda: TransactionalWriter(settings.kafka, settings.transactional_id(source), changelog, partition, Fences()),
        open_reader=lambda: ChangelogReader(settings.kafka, changelog, partition),
        is_member=member,
        owner=b"n" * 16,
        name="next",
        group="g",
        metrics=Fences(),
    )
    try:
        return await ledger.claim(partitions, load), pages
    finally:
        await ledger.close()


def alerts(rig: Rig) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in read_committed(rig.settings.kafka.bootstrap_servers, rig.settings.alerts.topic)]


def grow(bootstrap: str, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)
    poll_until(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == partitions, f"partitions of {topic}")


def told(series: str, episode: dict[str, Any], position: int) -> Entry:
    """The record of an episode, newer than its page."""
    key = codec.episode_key(series)
    return Entry(key, codec.encode(key, Episode(position, row(**episode)[16:112])))


def test_a_grown_topic_begins_anew_and_open_alerts_are_resolved_once(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    series = 'cpu{host="a"}'
    gone = {"silent": 1, "silent_ms": FIRING["starts_ms"]}
    rows = {series: row(7.5, **FIRING), "quiet": row(1.0), "told": row(2.5, kind=2), "gone": row(3.5, **gone)}
    asyncio.run(rig.write([FENCE], [page(0, 90, rows), told("told", FIRING | QUIET, 100), position(0, 100, -1, replay_from=90)]))
    grow(rig.settings.kafka.bootstrap_servers, rig.source, 3)
    with pytest.raises(StateError, match="anomalyd state restart"):
        asyncio.run(claim(rig, 0, 3))

    assert state_restart.restart(rig.settings, topic=None, yes=False) == 0
    said = capsys.readouterr().out
    assert f"{rig.settings.changelog_topic(rig.source)}: would get 3 partitions" in said
    assert f"{rig.source}/0: would forget 4 series, resolve 3 alerts, go on at input offset 100" in said
    assert f"{rig.source}/2: new; begins at its end" in said
    assert said.splitlines()[-1] == "nothing was done; with --yes it will be"
    assert alerts(rig) == []

    for series_left, alerts_left in ((4, 3), (0, 0)):  # interrupted and repeated, it does nothing twice
        assert state_restart.restart(rig.settings, topic=rig.source, yes=True) == 0
        said = capsys.readouterr().out
        assert f"{rig.source}/0: forgot {series_left} series, resolved {alerts_left} alerts, goes on at input offset 100" in said
        assert said.splitlines()[-1] == "done; start the instances"
        found = {alert["series"]["key"]: alert for alert in alerts(rig)}
        assert sorted(found) == [series, "gone", "told"]
        assert len(alerts(rig)) == 3
    silent = found.pop("gone")
    jsonschema.validate(silent, load_schema())
    assert (silent["kind"], silent["status"], silent["value"]) == ("silent", "resolved", 3.5)
    assert silent["alert_id"] == alert_id("hosts", "silent", "gone", FIRING["starts_ms"])
    for alert in found.values():
        jsonschema.validate(alert, load_schema())
        assert (alert["status"], alert["severity"], alert["peak_score"]) == ("resolved", "critical", 4.5)
        assert alert["source"] == {"topic": rig.source, "partition": 0, "offset": 99}
    assert found[series]["alert_id"] == alert_id("hosts", "anomaly", series, FIRING["starts_ms"])
    assert (found[series]["value"], found[series]["series"]["labels"]) == (7.5, {"host": "a"})
    assert found[series]["ends_at"] == "2025-10-09T08:54:20.000Z"  # when it was last seen
    assert found["told"]["ends_at"] == "2025-10-09T08:53:50.000Z"  # when it became quiet

    asyncio.run(topics.verify(rig.settings))
    restored, pages = asyncio.run(claim(rig, 0, 3))
    assert (restored.position, restored.replay_from, restored.episodes, restored.forgotten) == (100, 100, {}, {})
    assert restored.stream_time_ms == 1_760_000_060_000
    assert pages == []
    new, _ = asyncio.run(claim(rig, 2, 3))
    assert new.position is None
    capsys.readouterr()
    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=False) == 0


def test_a_damaged_changelog_can_be_claimed_again(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    servers, changelog = rig.settings.kafka.bootstrap_servers, rig.settings.changelog_topic(rig.source)
    asyncio.run(rig.write([FENCE], [page(0, 90, {"a": row()}), position(0, 100, -1)], [position(0, 110, 70)], partition=1))
    produce(servers, changelog, [b"hello"], partition=1, key=b"S|4|0")
    produce(servers, changelog, [b"there"], partition=1, key=b"hello")
    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=False) == 1
    with pytest.raises(StateError, match="chain of positions is broken"):
        asyncio.run(claim(rig, 1, 2))

    assert state_restart.restart(rig.settings, topic=None, yes=True) == 0
    assert "goes on at input offset 110" in capsys.readouterr().out
    assert state_commands.verify(rig.settings, topic=None, partition=1, json_output=True) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["partitions"]
    assert (found["findings"], len(found["repaired"])) == ([], 3)
    restored, pages = asyncio.run(claim(rig, 1, 2))
    assert (restored.position, restored.claims, pages) == (110, 1, [])


def test_without_any_position_there_is_nothing_to_go_on_from(rig: Rig) -> None:
    produce(rig.settings.kafka.bootstrap_servers, rig.settings.changelog_topic(rig.source), [b"hello"], key=b"S|4|0")
    with pytest.raises(StateError, match="--delete --topic"):
        state_restart.restart(rig.settings, topic=None, yes=True)


def test_a_changelog_with_too_many_partitions_has_to_be_made_anew(kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(kafka, partitions=1)
    changelog = rig.settings.changelog_topic(rig.source)
    grow(kafka, changelog, 2)
    asyncio.run(rig.write([FENCE], [page(0, 90, {"a": row(**FIRING)}), position(0, 100, -1)]))

    assert state_restart.restart(rig.settings, topic=None, yes=False) == 1
    assert f"--delete --topic {changelog}" in capsys.readouterr().out
    assert state_restart.restart(rig.settings, topic=None, yes=True) == 1
    said = capsys.readouterr().out
    assert f"left to do: {changelog} has 2 partitions and {rig.source} has 1" in said
    assert f"--delete --topic {changelog}" in said
    assert [alert["status"] for alert in alerts(rig)] == ["resolved"]


def test_what_is_running_is_not_pulled_from_under_its_feet(rig: Rig) -> None:
    async def attempt() -> None:
        async with AIOKafkaConsumer(
            rig.source, bootstrap_servers=rig.settings.kafka.bootstrap_servers, group_id=rig.settings.kafka.group_id
        ):
            await asyncio.to_thread(state_restart.restart, rig.settings, topic=None, yes=True)

    with pytest.raises(StateError, match=r"1 instances are in group .*: stop them first"):
        asyncio.run(attempt())
