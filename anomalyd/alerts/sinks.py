"""Where alert messages go. The sink that writes to Kafka lives in anomalyd.kafka; this is the protocol and its twin in memory."""

from collections.abc import Sequence
from typing import Protocol

from anomalyd.alerts.messages import Message
from anomalyd.errors import DeliveryError


class Sink(Protocol):
    """Takes alert messages."""

    async def send(self, messages: Sequence[Message]) -> None:
        """Returns once every message is acknowledged; messages with equal keys keep their order.

        Raises:
            DeliveryError: one of them may not have been written; sending all of them again is right.
        """


class MemorySink:
    """Keeps messages in a list, in the order in which they came.

    Args:
        failures: how many sends fail before one succeeds, for rehearsing an outage; a failing send writes nothing.
    """

    def __init__(self, failures: int = 0) -> None:
        self.messages: list[Message] = []
        self._failures = failures

    async def send(self, messages: Sequence[Message]) -> None:
        """Appends the messages.

        Raises:
            DeliveryError: while `failures` are left.
        """
        if self._failures:
            self._failures -= 1
            raise DeliveryError("rehearsed: the alerts were not written")
        self.messages.extend(messages)
