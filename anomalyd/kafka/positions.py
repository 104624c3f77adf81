"""Where to begin reading a partition, decided explicitly."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog
from aiokafka import TopicPartition

from anomalyd.batch import Source

StartFrom = Literal["earliest", "latest"]

BEGUN: Final = "anomalyd"
"""Metadata of the offsets that are committed once our state has a position: without one later on, state was lost."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Located:
    """Where a partition is read from."""

    position: int
    first: int
    """The log's oldest record, at the time of asking."""
    end: int
    """Of the log, at the time of asking."""
    begun: bool = False
    """No position was wanted, though we had committed one: the group's offset says so."""


async def locate(client: Any, source: Source, wanted: int | None, start_from: StartFrom) -> Located:  # noqa: ANN401  the client ships no types
    """The position to read a partition from.

    Where none is wanted, because nothing was ever committed with our state, the group's committed one counts, and where there is none
    either, what `start_from` says. That is committed at once: otherwise "latest" would move on with every restart before the first commit
    of ours, and lose what came in between.

    A position outside of the log (its records have expired, or the topic was made anew) becomes the earliest that is there.

    Raises:
        KafkaError: of the client; CommitFailedError and IllegalStateError when the group rebalances meanwhile.
    """
    tp = TopicPartition(*source)
    begun = False
    if wanted is None:
        # The public committed() keeps the metadata to itself.
        committed = (await client._coordinator.fetch_committed_offsets([tp])).get(tp)  # noqa: SLF001
        if committed is not None and committed.offset >= 0:
            wanted, begun = committed.offset, committed.metadata == BEGUN
    first = (await client.beginning_offsets([tp]))[tp]
    end = (await client.end_offsets([tp]))[tp]
    where = {"topic": source.topic, "partition": source.partition}
    if wanted is None:
        position = first if start_from == "earliest" else end
        await client.commit({tp: position})
        _log.info("partition_begun", **where, position=position, start_from=start_from)
        return Located(position, first, end)
    if not first <= wanted <= end:
        _log.error("position_out_of_range", **where, position=wanted, first=first, end=end)
        return Located(first, first, end, begun)
    return Located(wanted, first, end, begun)
