"""Which alert policy is in force from which input offset of a partition on.

A policy may change while series are in the middle of something: an episode that is pending under one would have fired under another. A
replay has to come to what was told, so each change is written down with its offset and content, and a replay goes through the same ones.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from anomalyd.alerts.episodes import Policy
from anomalyd.errors import AnomalydError, StateError

NEVER: Final = 1 << 62
"""Behind every offset."""

Entry = tuple[int, str]
"""Input offset from which on a policy is in force, and the policy as `written`."""


class Timeline:
    """The policies of one partition.

    Args:
        policy: in force until something else is said.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        """In force now."""
        self._newest: str | None = None  # as it was written down last
        self._ahead: list[tuple[int, Policy]] = []  # what a replay has not come to yet, newest first

    @property
    def boundary(self) -> int:
        """Input offset from which on another policy is in force; NEVER: as far as is known, none is."""
        return self._ahead[-1][0] if self._ahead else NEVER

    def begin(self, entries: Sequence[Entry], offset: int) -> None:
        """Goes back to what was in force.

        In front of the first entry that is its policy, too: what came before was not written down, or is not needed.

        Args:
            entries: what was written down, oldest first.
            offset: of the record that comes next.

        Raises:
            StateError: an entry cannot be understood.
        """
        if entries:
            self._newest = entries[-1][1]
            self._ahead = [(start, read(text)) for start, text in reversed(entries)]
            self.policy = self._ahead.pop()[1]
            self.reach(offset)

    def reach(self, offset: int) -> bool:
        """The record at this offset is next; returns whether another policy is in force now."""
        before = self.policy
        while self._ahead and self._ahead[-1][0] <= offset:
            self.policy = self._ahead.pop()[1]
        return self.policy is not before

    def settle(self, policy: Policy, offset: int) -> list[Entry]:
        """This policy is in force from an offset on, behind every change so far; returns what has to be written down."""
        self.policy = policy
        self._ahead.clear()
        text = written(policy)
        if text == self._newest:
            return []
        self._newest = text
        return [(offset, text)]


def written(policy: Policy) -> str:
    """A policy as text: JSON of all its fields, the defaults too, which may be others in the next release."""
    return msgspec.json.encode(policy, order="deterministic").decode()


def read(text: str) -> Policy:
    """The policy behind a text of `written`. Fields of newer releases are passed over.

    Raises:
        StateError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=Policy)
    except (AnomalydError, msgspec.DecodeError) as error:
        raise StateError(f"the alert policy that was in force can't be understood: {error}: go back to the newer release") from error
