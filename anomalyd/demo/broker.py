"""A broker inside this process: librdkafka's mock cluster, real TCP, no Java.

Consumer groups and transactions run on it, but it proves nothing about delivery: it never fences, never hides uncommitted records and keeps
only about 5 MB a partition. Topics come into being when a client first asks for them, always with `PARTITIONS` partitions, and cannot be
created, configured or deleted.
"""

from types import TracebackType
from typing import Final, Self

from anomalyd.errors import ConfigError

PARTITIONS: Final = 4
"""Partitions of every topic of the mock cluster; librdkafka gives no way to choose."""


class EmbeddedBroker:
    """A mock cluster that lives from `with` to its end; `bootstrap_servers` is its address."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        """Start the cluster.

        Raises:
            ConfigError: confluent-kafka is not installed.
        """
        try:
            from confluent_kafka import Producer  # noqa: PLC0415 - an extra: only who wants the embedded broker must have it
        except ImportError as error:
            raise ConfigError("the embedded broker needs confluent-kafka: pip install 'anomalyd[demo]'") from error
        # The mock cluster belongs to a producer and lives as long as it does. log_level 3 silences the notice that the address is ignored.
        self._owner = Producer({"bootstrap.servers": "embedded", "test.mock.num.brokers": self._brokers, "log_level": 3})
        members = self._owner.list_topics(timeout=10).brokers.values()
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in members)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._owner.close()
