"""Reading a changelog partition as it stands, for those who only look and leave no fence to read up to."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from anomalyd.batch import LogRecord
from anomalyd.errors import StateError
from anomalyd.kafka import client
from anomalyd.kafka.changelog import started
from anomalyd.kafka.past import NothingToReadError, between, unanswered
from anomalyd.kafka.salvage import UNREADABLE
from anomalyd.settings import KafkaSettings

_DEADLINE_S: Final = 60.0


class CommittedLog:
    """Committed records of one changelog partition. Belongs to no group and writes nothing.

    Args:
        settings: how to reach Kafka.
        topic: of the changelog; it has to exist.
        partition: of the changelog.
    """

    def __init__(self, settings: KafkaSettings, topic: str, partition: int) -> None:
        self._settings = settings
        self._tp = TopicPartition(topic, partition)
        self._client: AIOKafkaConsumer | None = None

    async def bounds(self) -> tuple[int, int]:
        """The offset at which the log begins, and the one in front of which everything is committed or aborted.

        Raises:
            KafkaUnavailableError: no answer, or the topic is gone.
            KafkaRefusedError: not allowed.
        """
        try:
            async with asyncio.timeout(_DEADLINE_S):
                consumer = await self._connected()
                first: int = (await consumer.beginning_offsets([self._tp]))[self._tp]
                # Of a reader of committed records this is the last stable offset, not the high watermark.
                end: int = (await consumer.end_offsets([self._tp]))[self._tp]
        except (KafkaError, OSError) as error:
            if self._client is not None:
                raise await unanswered(self._client, [self._tp.topic], error, self._settings) from error
            raise client.unavailable(error, self._settings) from error
        return first, end

    async def read(self, start: int, end: int) -> AsyncIterator[list[LogRecord]]:
        """Committed records with start <= offset < end, in order.

        Args:
            start: the first offset.
            end: as `bounds` said, or less.

        Raises:
            KafkaUnavailableError: no answer.
            KafkaRefusedError: not allowed.
            StateError: the log does not reach back to `start`, or what it holds cannot be read.
        """
        if start >= end:
            return
        place, position = f"{self._tp.topic}/{self._tp.partition}", start
        try:
            async for found in between(await self._connected(), self._tp, start, end):
                position = found[-1].offset + 1
                yield [LogRecord(record.offset, record.key or b"", record.value) for record in found]
        except NothingToReadError:
            await self.bounds()  # compaction may leave nothing at the very end; with brokers away this fails
        except OffsetOutOfRangeError as error:
            raise StateError(f"{place} does not hold offset {position} any more: was the topic made anew meanwhile?") from error
        except UNREADABLE as error:
            raise StateError(f"{place} holds records behind offset {position} that can't be read: {error!r}") from error
        except (KafkaError, OSError) as error:
            raise client.unavailable(error, self._settings) from error

    async def close(self) -> None:
        """Lets go of the connection."""
        if self._client is not None:
            consumer, self._client = self._client, None
            await client.close(consumer)

    async def _connected(self) -> AIOKafkaConsumer:
        if self._client is None:
            self._client = await started(AIOKafkaConsumer, self._settings)
        return self._client
