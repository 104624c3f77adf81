"""What we use of the client's private parts, all of it behind names that are looked for when a client starts.

For every record that it has decoded in C, aiokafka 0.14 builds a Python dataclass of eleven fields, which is half of all the time that
fetching takes (1.2 us a record with it, 0.6 without). Key, value, timestamp and offset, all that is used here, are in the compiled record.
"""

import time
from collections import OrderedDict
from functools import cache
from operator import attrgetter
from typing import Any, Final

import aiokafka
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher

from anomalyd.errors import AnomalydError

NEEDED: Final = (
    "_client.cluster.unauthorized_topics",
    "_coordinator.fetch_committed_offsets",
    "_coordinator.generation",
    "_subscription.subscription",
    "_subscription._fetch_count",
    "_subscription._last_fetch_ended",
)
"""Of a consumer; without them it can't be worked with."""

_log = structlog.get_logger(__name__)


def verify(consumer: AIOKafkaConsumer) -> None:
    """Is this a client that we know?

    Raises:
        AnomalydError: no.
    """
    missing = [name for name in NEEDED if not _has(consumer, name)]
    if missing:
        raise AnomalydError(f"aiokafka {aiokafka.__version__} lacks {', '.join(missing)}; install aiokafka 0.14")


def unwrap(consumer: AIOKafkaConsumer) -> None:
    """Makes a started consumer hand out compiled records. For this consumer only: others in the process keep theirs.

    Of a client that is built another way, records come wrapped: slower, and as good.
    """
    if _has(consumer, "_fetcher._records") and _has(fetcher, "PartitionRecords._consumer_record") and _has(fetcher, "FetchResult"):
        consumer._fetcher._records = _Buffer()  # noqa: SLF001  the client has no switch for it
    else:
        _say_slow()


def fetch_ended(consumer: AIOKafkaConsumer) -> None:
    """After getmany() was cut short the client would count it as going on for ever, and never notice that our loop hangs."""
    consumer._subscription._fetch_count = 0  # noqa: SLF001  nobody else fetches
    consumer._subscription._last_fetch_ended = time.monotonic()  # noqa: SLF001


def _has(thing: object, name: str) -> bool:
    try:
        attrgetter(name)(thing)
    except AttributeError:
        return False
    return True


@cache
def _say_slow() -> None:
    _log.warning("records_wrapped", aiokafka=aiokafka.__version__)


class _Buffer(OrderedDict[Any, Any]):
    """Fetched data by partition, as the client keeps it."""

    def __setitem__(self, partition: Any, fetched: Any) -> None:  # noqa: ANN401  the client ships no types
        if isinstance(fetched, fetcher.FetchResult) and _has(fetched, "_partition_records._consumer_record"):
            # Decoding is lazy: it calls this for each record when somebody asks for them.
            fetched._partition_records._consumer_record = _as_it_is  # noqa: SLF001
        super().__setitem__(partition, fetched)


def _as_it_is(_: Any, record: Any) -> Any:  # noqa: ANN401
    return record
