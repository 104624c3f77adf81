"""Where to begin reading a partition, decided explicitly and committed at once."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from aiokafka import TopicPartition

from anomalyd.batch import Source

StartFrom = Literal["earliest", "latest"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Located:
    """Where a partition is read from."""

    position: int
    end: int
    """Of the log, at the time of asking."""
    expired: int
    """Records that the group had not read yet and that are gone."""


async def locate(client: Any, wanted: Mapping[Source, int | None], start_from: Mapping[str, StartFrom]) -> dict[Source, Located]:  # noqa: ANN401  the client ships no types
    """The positions to read from, for partitions with a known position and (None) for those where the group's committed one counts.

    A partition without a committed position begins where `start_from` says, and that is committed before anything is read: otherwise
    "latest" would move on with every restart before the first commit, and lose what came in between.

    A position outside of the log (its records have expired, or the topic was made anew) becomes the earliest that is there.

    Raises:
        KafkaError: of the client; CommitFailedError and IllegalStateError when the group rebalances meanwhile.
    """
    partitions = {source: TopicPartition(*source) for source in wanted}
    unknown = [source for source, position in wanted.items() if position is None]
    committed = dict(zip(unknown, await asyncio.gather(*(client.committed(partitions[source]) for source in unknown)), strict=True))
    first = await client.beginning_offsets(list(partitions.values()))
    end = await client.end_offsets(list(partitions.values()))
    located, pinned = {}, {}
    for source, tp in partitions.items():
        before = wanted[source] if wanted[source] is not None else committed[source]
        if before is None:
            position = first[tp] if start_from[source.topic] == "earliest" else end[tp]
            pinned[tp] = position
            _log.info(
                "partition_begun", topic=source.topic, partition=source.partition, position=position, start_from=start_from[source.topic]
            )
        else:
            position = before if first[tp] <= before <= end[tp] else first[tp]
        expired = 0 if before is None else max(0, first[tp] - before)
        if before is not None and position != before:
            _log.error(
                "position_out_of_range", topic=source.topic, partition=source.partition, position=before, first=first[tp], end=end[tp]
            )
        located[source] = Located(position, end[tp], expired)
    if pinned:
        await client.commit(pinned)
    return located
