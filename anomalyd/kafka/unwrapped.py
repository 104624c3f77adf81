"""The client's compiled records as they are.

For every record that it has decoded in C, aiokafka 0.14 builds a Python dataclass of eleven fields, which is half of all the time that
fetching takes (1.2 us a record with it, 0.6 without). Key, value, timestamp and offset, all that is used here, are in the compiled record.
"""

from collections import OrderedDict
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import FetchResult


def unwrap(consumer: AIOKafkaConsumer) -> None:
    """Makes a started consumer hand out compiled records. For this consumer only: others in the process keep theirs."""
    consumer._fetcher._records = _Buffer()  # noqa: SLF001  the client has no switch for it; a test says when it moves


class _Buffer(OrderedDict[Any, Any]):
    """Fetched data by partition, as the client keeps it."""

    def __setitem__(self, partition: Any, fetched: Any) -> None:  # noqa: ANN401  the client ships no types
        if isinstance(fetched, FetchResult):
            # Decoding is lazy: it calls this for each record when somebody asks for them.
            fetched._partition_records._consumer_record = _as_it_is  # noqa: SLF001
        super().__setitem__(partition, fetched)


def _as_it_is(_: Any, record: Any) -> Any:  # noqa: ANN401
    return record
