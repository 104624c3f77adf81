"""The one way out: alerts, dead letters and positions leave through a checkpoint, in an order that decides what a crash can cost."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from anomalyd.batch import Source
from anomalyd.kafka.consumer import Consumer
from anomalyd.kafka.message import Message
from anomalyd.kafka.producer import Producer

MESSAGE_BYTES: Final = 1_024
"""What a message takes besides its content: its objects, its headers', its note, and its acknowledgement while it is on its way."""

NOTE_BYTES: Final = 128
"""What is left of an alert once it is delivered."""


class AlertNote(NamedTuple):
    """What is counted about an alert once it is acknowledged."""

    status: str
    severity: str
    produced_ms: int
    """When the record behind it was produced, milliseconds since the epoch; negative if unknown."""


@dataclass(slots=True)
class Pending:
    """What was computed since the last checkpoint. The positions vouch for everything in front of them, so both travel together."""

    messages: list[Message] = field(default_factory=list)
    """Alerts and dead letters, per input partition in its order."""
    positions: dict[Source, int] = field(default_factory=dict)
    """Offset of the first record of a partition that is not accounted for yet."""
    bytes: int = 0
    """Memory that all this takes, about."""
    alerts: list[AlertNote] = field(default_factory=list)
    """What metrics want to know of the alerts among the messages."""
    dead_letters: int = 0
    """How many of the messages are dead letters."""

    def __bool__(self) -> bool:
        return bool(self.messages or self.positions)

    def add(self, message: Message) -> None:
        """Appends a message."""
        self.messages.append(message)
        self.bytes += MESSAGE_BYTES + message.size

    def delivered(self) -> None:
        """The messages are acknowledged. From here on a repetition of this checkpoint is about positions only, and about counting."""
        self.messages, self.bytes = [], NOTE_BYTES * len(self.alerts)

    def put_before(self, later: "Pending") -> "Pending":
        """This and what came later as one."""
        return Pending(
            self.messages + later.messages,
            self.positions | later.positions,
            self.bytes + later.bytes,
            self.alerts + later.alerts,
            self.dead_letters + later.dead_letters,
        )


class Checkpoint(Protocol):
    """Makes pending work durable. What survives a crash at which moment is the implementation's promise."""

    async def write(self, pending: Pending) -> None:
        """Returns when everything in `pending` is durable.

        Raises:
            DeliveryError: it may not be, or in part only; writing the same again is right.
            KafkaRefusedError: and writing it again would not help.
        """


class AtLeastOnce:
    """Alerts first, positions after: a crash in between repeats alerts (with equal ids), and loses none."""

    def __init__(self, producer: Producer, consumer: Consumer) -> None:
        self._producer = producer
        self._consumer = consumer

    async def write(self, pending: Pending) -> None:
        """Writes a checkpoint.

        1. Send alerts and dead letters, and await every acknowledgement.
        2. Commit the positions behind which all of them lie.

        Raises:
            DeliveryError: the positions could not be committed.
            KafkaRefusedError: not allowed.
        """
        # 1.
        if pending.messages:
            await self._producer.deliver(pending.messages)
            pending.delivered()
        # 2.
        if pending.positions:
            await self._consumer.commit(pending.positions)
