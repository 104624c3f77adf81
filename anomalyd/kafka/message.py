"""Alerts, dead letters and scores on their way out, and what becomes of one that its topic refuses for its size."""

import zlib
from collections.abc import Collection, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import structlog

TRUNCATED_BYTES: Final = 1_024
"""What is kept of the key and of the value of a dead letter that its topic refuses for its size."""

_log = structlog.get_logger(__name__)


Kind = Literal["alert", "dead-letter", "score"]


class Message(NamedTuple):
    """A record to be written."""

    topic: str
    partition: int
    """Of the input that it comes from. It is written to this modulo the topic's count, so that what one input partition causes stays
    together and a transaction of it touches few partitions."""
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    kind: Kind = "alert"
    """A dead letter may be cut. The others may not: half of its JSON would break whoever reads it."""

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.key or b"") + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


class Metrics(Protocol):
    """What is counted here."""

    def dropped(self, kind: str) -> None:
        """A message, one of Kind, was given up because its topic refuses it for its size."""


def truncated(message: Message) -> Message:
    """The first KiB of the key and of the value, with the value's full length and checksum in a header."""
    told = f"{len(message.value)} bytes, crc32 {zlib.crc32(message.value):08x}".encode()
    key = None if message.key is None else message.key[:TRUNCATED_BYTES]
    return message._replace(key=key, value=message.value[:TRUNCATED_BYTES], headers=(*message.headers, ("anomalyd-truncated", told)))


def fitting(messages: Sequence[Message], too_large: Collection[int], metrics: Metrics) -> list[Message]:
    """What to send instead of messages of which some were refused for their size.

    A dead letter is cut and marked with the header `anomalyd-truncated`; anything else, or one that is too large even so, is dropped with
    an error in the log: it must not hold up what comes behind it.

    Args:
        messages: what was tried.
        too_large: indices into it.
        metrics: where to count.
    """
    instead = []
    for i, message in enumerate(messages):
        if i not in too_large:
            instead.append(message)
        elif message.kind == "dead-letter" and max(len(message.value), len(message.key or b"")) > TRUNCATED_BYTES:
            _log.warning("message_truncated", topic=message.topic, bytes=message.size, kept=TRUNCATED_BYTES)
            instead.append(truncated(message))
        else:
            _log.error("message_dropped", topic=message.topic, kind=message.kind, bytes=message.size)
            metrics.dropped(message.kind)
    return instead
