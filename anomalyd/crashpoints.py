"""Places in the protocol where a test ends the process as a power cut would.

In production nothing is armed, and `reached` is a look at an empty variable. A test arms one place of a process that it starts, by
ANOMALYD_CRASH_AT=<name>[:<n>]: the process then kills itself when it comes there for the n-th time.
"""

import os
import signal
from typing import Final

from anomalyd.errors import ConfigError

NAMES: Final = (
    "begin",  # a transaction is about to begin
    "sent",  # everything of a transaction is on its way to the brokers, and not yet acknowledged
    "before-commit",  # everything is acknowledged, the transaction still open
    "after-commit",  # the brokers committed, and nobody here knows yet
    "after-init",  # the predecessor is fenced, and nothing written
    "after-fence",  # our fence is committed, and nothing read
    "restore",  # the changelog is being read
    "replay",  # records in front of the position go through the pages again
    "revoke",  # the group takes partitions back, and what was read is not committed
    "flush",  # the last pages of a planned stop are about to be written
    "dead-letter",  # a transaction with a dead letter, acknowledged and not committed
    "swap",  # another model scores, and that is not committed
    "expiry",  # series were forgotten, and that is not committed
)

_armed: str | None = None
_countdown = 0


def arm(where: str | None) -> None:
    """Sets the place.

    Args:
        where: `<name>`, `<name>:<n>`, or None for none.

    Raises:
        ConfigError: there is no such place.
    """
    global _armed, _countdown
    name, _, count = (where or "").partition(":")
    if where is not None and (name not in NAMES or not (count or "1").isdigit()):
        raise ConfigError(f"ANOMALYD_CRASH_AT: got {where!r}, valid are {', '.join(NAMES)}, with :n behind for the n-th time")
    _armed, _countdown = (name, int(count or 1)) if where is not None else (None, 0)


def reached(name: str) -> None:
    """Ends the process if the place is armed and it is time: no cleanup, no exit handlers, nothing flushed."""
    global _countdown  # noqa: PLW0603  likewise
    if name == _armed:
        _countdown -= 1
        if _countdown <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
