"""Where alert messages go: the protocol and its twin in memory. The sink that writes to Kafka is anomalyd.kafka's producer."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from anomalyd.errors import DeliveryError


class Keyed(Protocol):
    """What every message has; a sink for Kafka wants a topic and a partition besides."""

    @property
    def key(self) -> bytes | None:
        """Messages with equal keys keep their order."""

    @property
    def value(self) -> bytes:
        """What a consumer reads."""


M = TypeVar("M", bound=Keyed)
M_contra = TypeVar("M_contra", bound=Keyed, contravariant=True)


class Sink(Protocol[M_contra]):
    """Takes messages."""

    async def deliver(self, messages: Sequence[M_contra]) -> None:
        """Returns once every message is acknowledged; messages with equal keys keep their order.

        Raises:
            DeliveryError: one of them may not have been written; delivering all of them again is right.
        """


class MemorySink(Generic[M]):
    """Keeps messages in a list, in the order in which they came.

    Args:
        failures: how many deliveries fail before one succeeds, for rehearsing an outage; a failing one writes nothing.
    """

    def __init__(self, failures: int = 0) -> None:
        self.messages: list[M] = []
        self._failures = failures

    async def deliver(self, messages: Sequence[M]) -> None:
        """Appends the messages.

        Raises:
            DeliveryError: while `failures` are left.
        """
        if self._failures:
            self._failures -= 1
            raise DeliveryError("rehearsed: the messages were not written")
        self.messages.extend(messages)
