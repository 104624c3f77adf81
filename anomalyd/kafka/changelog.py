"""Reading back what was committed to one changelog partition, as fast as the brokers hand it out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from anomalyd.batch import LogRecord
from anomalyd.errors import AnomalydError, DeliveryError, StateError
from anomalyd.kafka import client
from anomalyd.kafka.salvage import UNREADABLE
from anomalyd.settings import KafkaSettings

QUIET_S: Final = 30.0
"""A record is there and none arrives for so long: something is wrong."""

_FETCH_BYTES: Final = 8 << 20  # a page of state has half a megabyte, seldom two; a larger one comes alone
_FETCH_WAIT_MS: Final = 50  # a fetch at the end of the log, made ahead for nobody, holds up the next read so long
_POLL_MS: Final = 500
_READS_BEFORE_DAMAGED: Final = 4
_READ_AGAIN_S: Final = 0.2


class Consuming(Protocol):
    """What is used of a client."""

    async def start(self) -> None:
        """Connects."""

    async def stop(self) -> None:
        """Disconnects."""

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """Reads these from now on."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Goes on from there."""

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Any]]:
        """The next records, with `offset`, `key` and `value`; empty where none came in time."""

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where logs begin."""


C = TypeVar("C", bound=Consuming)


async def started(make: Callable[..., C], settings: KafkaSettings, **more: object) -> C:
    """A client for reading a changelog partition, connected. Raises KafkaError, OSError."""
    consumer = make(
        **client.groupless(settings),
        max_partition_fetch_bytes=_FETCH_BYTES,
        # Records have a checksum of their own, and a better one.
        check_crcs=False,
        **more,
    )
    try:
        await consumer.start()
    except BaseException:
        await client.close(consumer)
        raise
    return consumer


class ChangelogReader:
    """Reads committed records of one changelog partition; belongs to no group.

    Args:
        settings: how to reach Kafka.
        topic: of the changelog.
        partition: of the changelog.
        make: makes a client.
    """

    def __init__(self, settings: KafkaSettings, topic: str, partition: int, *, make: Callable[..., Consuming] = AIOKafkaConsumer) -> None:
        self._settings = settings
        self._tp = TopicPartition(topic, partition)
        self._make = make
        self._client: Consuming | None = None
        self._assigned = False

    async def first(self) -> int:
        """The offset at which the log begins.

        Raises:
            DeliveryError: no answer for too long.
            KafkaRefusedError: waiting would not help.
        """
        try:
            async with asyncio.timeout(QUIET_S):
                consumer = await self._connected()
                return (await consumer.beginning_offsets([self._tp]))[self._tp]
        except (KafkaError, OSError) as error:
            raise self._failure(error) from error

    async def read(self, start: int, through: int) -> AsyncIterator[list[LogRecord]]:
        """Committed records with start <= offset <= through, in order, some at a time.

        Ends once a record at or behind `through` was seen, and never before: compaction may have taken the one at `through`, but then
        there is a newer one of its key. No offset is proof of the end, since aborted records and markers lie there that nobody is handed.

        Args:
            start: the first offset.
            through: of a record that was committed.

        Raises:
            DeliveryError: no answer for too long.
            KafkaRefusedError: waiting would not help.
            StateError: the log does not reach back to `start`, or what it holds cannot be read.
        """
        loop = asyncio.get_running_loop()
        position, heard_s, unreadable, seek = start, loop.time(), 0, True
        while position <= through:
            try:
                async with asyncio.timeout_at(heard_s + QUIET_S):
                    consumer = await self._connected()
                    if seek:
                        self._seek(consumer, position)
                    got = await consumer.getmany(self._tp, timeout_ms=_POLL_MS)
                    seek = False
            except OffsetOutOfRangeError as error:
                raise StateError(
                    f"{self._place} does not hold offset {position}: was the topic made anew, were records deleted, or is its "
                    f"cleanup.policy not compact?"
                ) from error
            except UNREADABLE as error:
                # It may be the network's fault. What was read in front of it is lost with the exception, so it is read again.
                unreadable, seek = unreadable + 1, True
                if unreadable >= _READS_BEFORE_DAMAGED:
                    raise StateError(f"{self._place} holds records behind offset {position} that can't be read: {error!r}") from error
                await asyncio.sleep(_READ_AGAIN_S)
                continue
            except (KafkaError, OSError) as error:
                raise self._failure(error) from error
            if records := got.get(self._tp):
                position, heard_s, unreadable = records[-1].offset + 1, loop.time(), 0
                # A record without a key is not ours; whoever decodes it finds that out.
                if wanted := [LogRecord(record.offset, record.key or b"", record.value) for record in records if record.offset <= through]:
                    yield wanted
                    heard_s = loop.time()  # whoever asked may have taken its time
            elif loop.time() - heard_s >= QUIET_S:
                raise self._failure(TimeoutError())

    async def close(self) -> None:
        """Lets go of the connection within a few seconds."""
        if self._client is not None:
            consumer, self._client = self._client, None
            await client.close(consumer)

    @property
    def _place(self) -> str:
        return f"{self._tp.topic}/{self._tp.partition}"

    async def _connected(self) -> Consuming:
        if self._client is not None:
            return self._client
        self._client = await started(self._make, self._settings, fetch_max_wait_ms=_FETCH_WAIT_MS)
        self._assigned = False
        return self._client

    def _seek(self, consumer: Consuming, position: int) -> None:
        if not self._assigned:
            # Not before: as soon as a partition is assigned and has no position, the client goes and looks for one itself.
            consumer.assign([self._tp])
            self._assigned = True
        consumer.seek(self._tp, position)

    def _failure(self, error: Exception) -> AnomalydError:
        if type(error) is TimeoutError:
            return DeliveryError(f"{self._place}: nothing to read for {QUIET_S:g} s")
        return client.refusal(error, self._settings) or DeliveryError(f"{self._place}: {client.reason(error)}")
