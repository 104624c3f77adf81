"""The log's vocabulary: what each event means and what the operator must do.

An event's name and level are public: alert rules on logs rely on them. A level says what is asked of the operator:
error: act, something stays broken until you do; warning: look, it may pass by itself; info: nothing, the life of the
daemon; debug: for whoever hunts a problem. A test holds this table and the code together.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple


class Event(NamedTuple):
    """One entry of the vocabulary."""

    level: Literal["debug", "info", "warning", "error"]
    meaning: str
    action: str = "nothing"


EVENTS: Final[Mapping[str, Event]] = {
    "library_message": Event(
        "warning",
        "A library below anomalyd (`logger`) warns of something (`message`); lines that repeat are counted, one a minute is shown.",
        "look at the message; report it if it keeps coming",
    ),
}
