"""A stretch of a topic that has an end: what was committed when somebody looked, from a time or a number of records on. For no group."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from anomalyd.batch import Record
from anomalyd.errors import AnomalydError, KafkaUnavailableError, TopicError
from anomalyd.kafka import client
from anomalyd.kafka.salvage import UNREADABLE
from anomalyd.settings import KafkaSettings

_POLL_MS: Final = 500
_QUIET_POLLS: Final = 60
_DEADLINE_S: Final = 60.0
_LOOK_DEADLINE_S: Final = 5.0


async def read_past(
    settings: KafkaSettings, topic: str, *, since_ms: int | None = None, records: int | None = None
) -> AsyncIterator[tuple[int, Sequence[Record]]]:
    """Committed records of a topic as it stands, some at a time with their partition, one partition after the other, each in order.

    Args:
        settings: how to reach Kafka.
        topic: it has to exist.
        since_ms: not those produced before; None: from the beginning.
        records: at most so many, the newest of each partition; None: all.

    Raises:
        KafkaUnavailableError: no answer.
        KafkaRefusedError: not allowed.
        TopicError: there is no such topic, or it was made anew while it was read, or holds what cannot be read.
    """
    consumer = AIOKafkaConsumer(**client.groupless(settings))
    try:
        async with asyncio.timeout(_DEADLINE_S):
            await consumer.start()
            spans = await _spans(consumer, topic, since_ms, records)
        for partition, (first, end) in spans.items():
            async for found in between(consumer, partition, first, end):
                yield partition.partition, found
    except NothingToReadError as error:
        raise KafkaUnavailableError(f"{topic}: {error}") from error
    except OffsetOutOfRangeError as error:
        raise TopicError(f"{topic}: records were deleted while they were read; try again") from error
    except UNREADABLE as error:
        raise TopicError(f"{topic} holds records that can't be read: {error!r}") from error
    except (KafkaError, OSError) as error:
        raise client.unavailable(error, settings) from error
    finally:
        await client.close(consumer)


class NothingToReadError(Exception):
    """No record for long, though the end was not reached and brokers answer."""


async def between(consumer: AIOKafkaConsumer, partition: TopicPartition, first: int, end: int) -> AsyncIterator[list[Record]]:
    """Records with first <= offset < end, in order, by a client that reads nothing else meanwhile.

    Raises:
        NothingToReadError: for half a minute none came. Compaction may have left nothing in front of the end.
        OffsetOutOfRangeError: the log does not hold the first offset any more.
        KafkaError: and other errors of the client.
    """
    consumer.assign([partition])
    consumer.seek(partition, first)
    position, quiet = first, 0
    # The client's position passes markers and aborted records, of which nothing is handed out.
    while position < end:
        got = (await consumer.getmany(partition, timeout_ms=_POLL_MS)).get(partition, [])
        position = await consumer.position(partition)
        if found := [record for record in got if record.offset < end]:
            quiet = 0
            yield found
        elif (quiet := quiet + 1) >= _QUIET_POLLS:
            raise NothingToReadError(f"nothing to read in partition {partition.partition} for {_QUIET_POLLS * _POLL_MS // 1000} s")


async def _spans(
    consumer: AIOKafkaConsumer, topic: str, since_ms: int | None, records: int | None
) -> dict[TopicPartition, tuple[int, int]]:
    """First offset and end of each partition that has anything."""
    partitions = await partitions_of(consumer, topic)
    if not partitions:
        raise TopicError(f"there is no topic {topic}")
    first, last = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    if since_ms is not None:
        first = await offsets_since(consumer, since_ms, first, last)
    if records is not None:
        share = max(1, records // len(partitions))
        first = {p: max(first[p], last[p] - share) for p in partitions}
    return {p: (first[p], last[p]) for p in partitions if first[p] < last[p]}


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """The partitions of a topic, for a client that has not subscribed to it; none where there is no such topic. Raises KafkaError."""
    if topic not in await consumer.topics():  # asking for its partitions would make it, where brokers allow that
        return []
    await consumer._client.add_topic(topic)  # noqa: SLF001  subscribing would be the public way; it wants a group, and assigns
    return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]


def missing(topic: str, *, ours: bool = True) -> str:
    """What is said of a topic that is not there: who makes it, if it is one of ours."""
    return f"topic {topic} missing, or not to be seen by this user" + ("; make with: anomalyd topics create -c CONFIG" if ours else "")


async def unanswered(
    consumer: AIOKafkaConsumer, topics: Iterable[str], error: Exception, settings: KafkaSettings, *, ours: bool = True
) -> AnomalydError:
    """What to raise for an error of the client, which says of a topic that was deleted only that nobody answered."""
    try:
        async with asyncio.timeout(_LOOK_DEADLINE_S):
            there = await consumer.topics()
    except (KafkaError, OSError):
        return client.unavailable(error, settings)
    gone = [topic for topic in topics if topic not in there]
    return KafkaUnavailableError(missing(", ".join(gone), ours=ours)) if gone else client.unavailable(error, settings)


async def offsets_since(
    consumer: AIOKafkaConsumer, since_ms: int, first: Mapping[TopicPartition, int], last: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where records begin that were produced since then, of partitions with these ends; behind the last one where there is none."""
    later = await consumer.offsets_for_times(dict.fromkeys(first, since_ms))
    return {p: last[p] if later[p] is None else max(first[p], later[p].offset) for p in first}
