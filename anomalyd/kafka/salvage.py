"""Finding the way past records that can't be read."""

import gzip
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

import cramjam
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException

from anomalyd.batch import Source
from anomalyd.kafka import client
from anomalyd.settings import KafkaSettings

UNREADABLE: Final = (
    # checksum and structure
    CorruptRecordException,
    AssertionError,
    IndexError,
    ValueError,
    struct.error,
    # compression; the checksum is that of the compressed bytes, so it may well be right
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    cramjam.DecompressionError,
)
"""What the client raises for a batch that is not as it should be."""

_FETCH_MS = 2_000


async def first_readable(settings: KafkaSettings, source: Source, position: int) -> int:
    """The first offset from `position` on at which records can be read; `position` itself if nothing is wrong.

    Raises:
        KafkaError: of the client.
    """
    tp = TopicPartition(*source)
    reader = AIOKafkaConsumer(**client.groupless(settings), max_partition_fetch_bytes=settings.max_partition_fetch_bytes)
    await reader.start()
    try:
        reader.assign([tp])
        end = (await reader.end_offsets([tp]))[tp]

        async def readable(offset: int) -> bool:
            reader.seek(tp, offset)
            try:
                await reader.getmany(tp, timeout_ms=_FETCH_MS, max_records=1)
            except UNREADABLE:
                return False
            return True

        return await first_good(position, end, readable)
    finally:
        await client.close(reader)


async def first_good(start: int, end: int, good: Callable[[int], Awaitable[bool]]) -> int:
    """The first good offset behind a bad stretch that begins at `start`; asks about log2 of its length times. `end` counts as good."""
    if start >= end or await good(start):
        return start
    bad, step = start, 1
    while (candidate := min(bad + step, end)) < end and not await good(candidate):
        bad, step = candidate, step * 2
    while candidate - bad > 1:
        middle = (bad + candidate) // 2
        if await good(middle):
            candidate = middle
        else:
            bad = middle
    return candidate
