"""The commands about state, on changelogs that real writers have written."""

import asyncio
import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from anomalyd import state_commands
from anomalyd.alerts.machine import EPISODE
from anomalyd.batch import Entry, Source
from anomalyd.errors import ConfigError, KafkaUnavailableError, TopicError
from anomalyd.kafka import topics
from anomalyd.kafka.transactions import TransactionalWriter
from anomalyd.settings import Settings
from anomalyd.state import codec
from anomalyd.state.codec import Fence, Page, Position
from anomalyd.state.digest import digest
from tests.support.topics import create_topic, produce, unique

LAYOUT = (("seen", "f8", 0, 1), ("kind", "i4", 8, 1), ("episode", "u1", 16, 96))
ROW_BYTES = 128


class NoMetrics:
    """Nothing is counted."""

    def dropped(self, kind: str) -> None:
        raise AssertionError(kind)


def row(value: float = 0.0, *, kind: int = 1, **episode: Any) -> bytes:  # noqa: ANN401  any field of an episode
    """A state row with these fields of its episode."""
    found = np.zeros(ROW_BYTES, np.uint8)
    found[0:8] = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    found[8:12] = np.frombuffer(np.int32(kind).tobytes(), np.uint8)
    view = found[16:112].view(EPISODE)
    for name, entry in episode.items():
        view[name] = entry
    return found.tobytes()


FIRING: dict[str, Any] = {
    "state": 2,
    "severity": 2,
    "direction": 1,
    "opened": 1,
    "starts_ms": 1_760_000_000_000,
    "seen_ms": 1_760_000_060_000,
    "peak": 4.5,
}
QUIET: dict[str, Any] = {"quiet": 3, "quiet_ms": 1_760_000_030_000}


def page(number: int, position: int, rows: dict[str, bytes]) -> Entry:
    key = codec.page_key(4, number)
    found = Page(
        position=position,
        number=number,
        page_rows=4,
        model="m" * 32,
        layout=LAYOUT,
        row_bytes=ROW_BYTES,
        reading="",
        keys=list(rows),
        slots=np.arange(len(rows), dtype=np.uint8).data,
        last_use=np.full(len(rows), position - 1, np.int64).data,
        spellings=np.zeros(2 * len(rows), np.uint64).data,
        rows=memoryview(b"".join(rows.values())),
    )
    return Entry(key, codec.encode(key, found))


def position(sequence: int, position: int, previous: int, **changed: Any) -> Entry:  # noqa: ANN401  any field
    fields: dict[str, Any] = {
        "replay_from": position,
        "restore_from": 0,
        "partitions": 2,
        "owner": b"m" * 16,
        "stream_time_ms": 1_760_000_060_000,
    }
    found = Position(sequence, previous, position, **(fields | {"timeline": ((0, "m" * 32),)} | changed))
    return Entry(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, found))


FENCE = Entry(codec.FENCE_KEY, codec.encode(codec.FENCE_KEY, Fence(b"m" * 16, "host-a")))


class Rig:
    """An input of two partitions with a changelog."""

    def __init__(self, bootstrap: str, partitions: int = 2) -> None:
        self.source = create_topic(bootstrap, partitions=partitions)
        self.settings = Settings.model_validate(
            {
                "kafka": {"bootstrap_servers": bootstrap, "group_id": unique("group")},
                "streams": [{"name": "hosts", "topics": [self.source], "format": "plain-json"}],
                "alerts": {"topic": unique("alerts")},
            }
        )
        assert topics.create(self.settings) == 0

    async def write(self, *transactions: list[Entry], partition: int = 0, cut: bool = False) -> None:
        """Commits these; with `cut` an aborted one lies behind them, so that the log ends with records that nobody is handed."""
        changelog = self.settings.changelog_topic(self.source)
        name = self.settings.transactional_id(Source(self.source, partition))
        writer = TransactionalWriter(self.settings.kafka, name, changelog, partition, NoMetrics())
        await writer.open()
        try:
            for entries in transactions:
                await writer.commit([], entries)
        finally:
            await writer.close()
        if cut:
            producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka.bootstrap_servers, transactional_id=name, acks="all")
            async with producer:
                with contextlib.suppress(ZeroDivisionError):
                    async with producer.transaction():
                        await producer.send_and_wait(changelog, b"junk", b"P", partition=partition)
                        raise ZeroDivisionError


@pytest.fixture
def rig(kafka: str, capsys: pytest.CaptureFixture[str]) -> Rig:
    made = Rig(kafka)
    capsys.readouterr()
    return made


def test_inspect_tells_what_a_restart_would_find(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = {"a": row(1.0, **FIRING), "b": row(2.0)}, {"c": row(3.0)}
    pages = [page(0, 100, first), position(0, 100, -1, replay_from=80)], [page(1, 140, second), position(1, 150, 100, replay_from=110)]
    asyncio.run(rig.write([FENCE], *pages, [FENCE], cut=True))

    assert state_commands.inspect(rig.settings, topic=None, partition=None, json_output=True) == 0
    one, two = json.loads(capsys.readouterr().out)["partitions"]
    assert {name: one[name] for name in ("topic", "partition", "position", "sequence", "replay_records", "oldest_page_behind")} == {
        "topic": rig.source,
        "partition": 0,
        "position": 150,
        "sequence": 1,
        "replay_records": 40,
        "oldest_page_behind": 50,
    }
    assert (one["pages"], one["series"], one["open_episodes"], one["fences"], one["fenced_by"]) == (2, 3, 1, 1, "host-a")
    assert one["timeline"] == [{"from": 0, "model": "m" * 32}]
    assert one["log_end"] > one["log_start"] == 0
    assert one["restore_bytes"] > one["page_bytes"] > 3 * ROW_BYTES
    assert (two["partition"], two["position"], two["pages"]) == (1, None, 0)

    assert state_commands.inspect(rig.settings, topic=rig.source, partition=0, json_output=False) == 0
    told = capsys.readouterr().out
    assert re.search(r"position +150 \(number 1\), event time 2025-10-09T08:54:20.000Z", told)
    assert "replays 40 records at most, from 110" in told
    assert f"{rig.source}/1" not in told


def test_verify_finds_nothing_in_what_writers_write(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a": row(1.0), "b": row(2.0)}
    asyncio.run(rig.write([FENCE], [page(0, 100, rows), position(0, 100, -1)], [position(1, 150, 100)], cut=True))

    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=True) == 0
    found = json.loads(capsys.readouterr().out)
    one, two = found["partitions"]
    assert (found["findings"], one["findings"], two["findings"]) == (0, [], [])
    assert (one["records"], one["series"], one["digest"], one["settled"]) == (4, 2, digest(rows.items()), True)
    assert (two["records"], two["digest"]) == (0, "0" * 32)


def test_verify_says_where_a_log_is_wrong_and_what_to_do(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(rig.write([FENCE], [page(0, 100, {"a": row()}), position(0, 100, -1)], [position(1, 150, 99)], partition=1))
    produce(rig.settings.kafka.bootstrap_servers, rig.settings.changelog_topic(rig.source), [b"hello"], partition=1, key=b"S|4|0")

    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=False) == 1
    told = capsys.readouterr().out
    assert f"{rig.source}/0  sound" in told
    assert f"{rig.source}/1  2 findings" in told
    assert "at 5: position 1 goes on from input offset 99, the one before ended at 100" in told
    assert "is not anomalyd's" in told
    assert "anomalyd state restart" in told


def test_what_does_not_exist_is_named(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="--partition: got 2, valid are 0 to 1"):
        state_commands.inspect(rig.settings, topic=None, partition=2, json_output=False)
    with pytest.raises(ConfigError, match=f'--topic: got "what", valid are the input topics {rig.source}'):
        state_commands.verify(rig.settings, topic="what", partition=None, json_output=False)
    elsewhere = rig.settings.model_copy(update={"state": rig.settings.state.model_copy(update={"prefix": unique("none")})})
    with pytest.raises(TopicError, match="anomalyd topics create"):
        state_commands.inspect(elsewhere, topic=None, partition=None, json_output=False)


def test_without_brokers_there_is_one_clear_line(rig: Rig) -> None:
    away = rig.settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1", "request_timeout_ms": 3_000})
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1"):
        state_commands.inspect(rig.settings.model_copy(update={"kafka": away}), topic=None, partition=None, json_output=False)
