"""Every error that anomalyd raises on purpose.

    AnomalydError
    ├── ConfigError          the configuration or the command line is wrong (exit code 2)
    ├── InputFileError       a file given to backtest or training cannot be used
    ├── ArtifactError        a model artifact is damaged, foreign or of an unknown version
    ├── TopicError           a topic is missing, differs from what is needed or cannot be made
    ├── KafkaUnavailableError   no broker answers (retriable)
    ├── KafkaRefusedError       the brokers answer and refuse: authorisation, group membership, protocol
    ├── StateError           state in a changelog is damaged, from a newer release, or does not fit the input
    └── DeliveryError        alerts, dead letters, state or positions could not be written, or it is not known whether they were (retriable)
        ├── FencedError      another producer writes under our transactional id
        ├── LostError        the partition is somebody else's now, or was in between
        └── TooLargeError    a topic refuses a message for its size; nothing was written

`retriable` says whether the same call may succeed later. `exit_code` is what a command ends with.
"""

from collections.abc import Sequence
from typing import Any, ClassVar


class AnomalydError(Exception):
    """Base of all errors that are reported to the operator as one line, without a traceback."""

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class ConfigError(AnomalydError):
    """The configuration or the command line is wrong."""

    exit_code: ClassVar[int] = 2


class InputFileError(AnomalydError):
    """A file given to a command cannot be used."""


class ArtifactError(AnomalydError):
    """A model artifact is damaged, foreign or of an unknown version."""


class TopicError(AnomalydError):
    """A topic is missing, differs from what is needed or cannot be made."""


class KafkaUnavailableError(AnomalydError):
    """No broker answers."""

    retriable: ClassVar[bool] = True


class KafkaRefusedError(AnomalydError):
    """The brokers answer and refuse what is asked."""


class StateError(AnomalydError):
    """State in a changelog is damaged, from a newer release, or does not fit the input."""


class DeliveryError(AnomalydError):
    """Alerts, dead letters or positions could not be written."""

    retriable: ClassVar[bool] = True


class FencedError(DeliveryError):
    """Another producer has opened our transactional id since."""


class LostError(DeliveryError):
    """The partition is somebody else's now, or was in between: what is in memory of it is worth nothing any more."""


class TooLargeError(DeliveryError):
    """A topic refuses a message for its size; nothing of the transaction was written."""

    def __init__(self, text: str, instead: Sequence[Any] | None, together: int) -> None:
        super().__init__(text)
        self.instead = instead
        """What to send instead of the messages; None where it is not known which of a batch is too large."""
        self.together = together
        """So many bytes may go together where it has to be found out; more were refused."""

    def smaller(self, messages: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """What to send next in place of these messages, and in pieces of how many bytes; 0: as usual."""
        return (messages, self.together) if self.instead is None else (self.instead, 0)
