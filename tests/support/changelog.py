"""Changelogs as writers write them: rows, records, and an input with a changelog on a real broker."""

import contextlib
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from anomalyd.alerts.machine import EPISODE
from anomalyd.batch import Entry, Source
from anomalyd.kafka import topics
from anomalyd.kafka.transactions import TransactionalWriter
from anomalyd.settings import Settings
from anomalyd.state import codec
from anomalyd.state.codec import Fence, Page, Position
from tests.support.topics import create_topic, unique

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


def page(number: int, position: int, rows: dict[str, bytes], **changed: Any) -> Entry:  # noqa: ANN401  any field
    """A page record; rows by series."""
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
    return Entry(key, codec.encode(key, msgspec.structs.replace(found, **changed)))


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
