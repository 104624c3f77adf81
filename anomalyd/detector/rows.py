"""The state rows of one partition while one model follows another.

A series has the same row number under every model. What the row holds lies in the pages of one of them: that which learned it last, or
to which it was brought over. From the offset of a swap on every row belongs to the new model, but making it one of its own takes the
new network some microseconds, so rows come over when they are met: those of a batch in front of it, those of a page before it is written
down, the others some at a time. What a row becomes follows from what is in it, and goes through all models in between, one after the
other, so it does not matter when that happens. Old and new pages lie side by side until the last row has come.

Whoever changes something in rows has them brought over first, and finds them in `pages`. Whoever looks at many of them asks `take`, which
finds them wherever they are.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector.detector import Detector
from anomalyd.detector.layout import Layout
from anomalyd.detector.migrate import described, without_network
from anomalyd.detector.pages import Pages

_AT_ONCE: Final = 4096
"""Rows made into others together: what is needed meanwhile takes two kilobytes each."""
_MOST_PLACES: Final = 255


class _Place(NamedTuple):
    """Where rows of one model lie."""

    detector: Detector
    pages: Pages
    layout: tuple[tuple[str, str, int, int], ...]


class Rows:
    """Rows for at most `capacity` series.

    Args:
        detector: the model that scores.
        capacity: most rows.
    """

    def __init__(self, detector: Detector, capacity: int) -> None:
        self.capacity = capacity
        self._of = np.zeros(max(1, capacity), np.uint8)  # in which place each row lies; all from `current` on where nobody uses it
        self.follow([detector])

    def follow(self, detectors: Sequence[Detector]) -> None:
        """Begins with nothing; these models score, one after the other, the first one now."""
        self._places: list[_Place | None] = [self._place(detector) for detector in detectors]
        self._of[:] = 0
        self._enter(0)
        self._waiting: NDArray[np.int32] = np.empty(0, np.int32)

    def _place(self, detector: Detector) -> _Place:
        return _Place(detector, detector.new_pages(self.capacity), described(detector.layout))

    def _enter(self, number: int) -> None:
        place = self._there(number)
        self._current = number
        self.detector = place.detector
        """The model that scores."""
        self.pages = place.pages
        """Its rows."""
        self.layout = place.layout
        """Their fields, as `migrate.described` tells."""

    def _there(self, number: int) -> _Place:
        place = self._places[number]
        if place is None:
            raise LookupError(f"the pages of model {number} were given back")
        return place

    @property
    def moving(self) -> int:
        """Rows that were not brought over yet, at most."""
        return len(self._waiting)

    @property
    def page_rows(self) -> int:
        """Rows of a page that is large enough for no model."""
        return min(place.pages.page_rows for place in self._places if place is not None)

    def layout_of(self, number: int) -> Layout:
        """Where the fields of the model in a place lie."""
        return self._there(number).pages.layout

    # --- looking ----------------------------------------------------------------------------------------------------

    def take(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """A field of these rows, wherever they lie, (n, count); a copy. Only for fields that are the same for all models of a stream."""
        found: NDArray[Any] = self.pages.field(name)[rows]
        if len(self._places) > 1:
            for number in np.unique(self._of[rows]).tolist():
                if number != self._current:
                    there = self._of[rows] == number
                    found[there] = self._there(number).pages.field(name)[rows[there]]
        return found

    # --- coming over ------------------------------------------------------------------------------------------------

    def swap(self, used: NDArray[np.int32], detector: Detector | None = None) -> NDArray[np.int32]:
        """From now on rows belong to another model.

        Args:
            used: rows that hold series.
            detector: the model; None: the next one of `follow`.

        Returns:
            Those of them that have yet to come over.
        """
        if detector is not None:
            if len(self._places) == _MOST_PLACES:
                self.bring(used)
                self._forget_places()
            self._places.append(self._place(detector))
        where = self._of[used]
        self._enter(self._current + 1)
        self._of[:] = self._current
        self._of[used] = where
        self._waiting = used[where < self._current]
        self._forget_places()
        return self._waiting

    def bring(self, rows: NDArray[Any]) -> None:
        """Makes these rows, which may repeat, rows of the model that scores."""
        if not len(self._waiting):
            return
        late = np.unique(rows[self._of[rows] < self._current])
        for begin in range(0, len(late), _AT_ONCE):
            part = late[begin : begin + _AT_ONCE]
            for number in range(int(self._of[part].min()), self._current):
                self._move(part[self._of[part] == number], number)

    def bring_some(self, most: int) -> None:
        """Brings up to so many rows over that nobody has met yet; with the last one the pages that they lay in are given back."""
        if len(self._waiting):
            self.bring(self._waiting[:most])
            self._waiting = self._waiting[most:]
            self._forget_places()

    def empty_soon(self, rows: NDArray[Any]) -> None:
        """The same as `bring` for rows of which only what is not the network's is asked before they are emptied."""
        if len(self._places) == 1:
            return
        for number in np.unique(self._of[rows]).tolist():
            if number != self._current:
                there, place = rows[self._of[rows] == number], self._there(number)
                self.pages.buffer[there] = without_network(self.pages.layout, place.pages.buffer[there], place.layout)
                self._of[there] = self._current

    def _move(self, rows: NDArray[Any], number: int) -> None:
        """One model further."""
        if len(rows):
            old, new = self._there(number), self._there(number + 1)
            same = old.detector.model.hash == new.detector.model.hash
            new.pages.buffer[rows] = new.detector.taken_over(old.pages.buffer[rows], old.layout, same_model=same)
            self._of[rows] = number + 1

    def _forget_places(self) -> None:
        if not len(self._waiting):
            self._places[: self._current] = [None] * self._current
            if self._current == len(self._places) - 1:
                self._places = [self._places[self._current]]
                self._of[:] = 0
                self._current = 0

    # --- other changes ----------------------------------------------------------------------------------------------

    def clear(self, rows: NDArray[Any]) -> None:
        """Makes the rows as if they had never been used."""
        for place in self._places[self._current :]:
            if place is not None:
                place.pages.clear(rows)
        self._of[rows] = self._current

    def made(
        self, number: int, states: NDArray[np.uint8], layout: tuple[tuple[str, str, int, int], ...], model: str, *, same_features: bool
    ) -> tuple[NDArray[np.uint8], bool]:
        """Rows that were written down, as the model in a place has them, and whether they are others now. Raises StateError."""
        place = self._there(number)
        same_model = model == place.detector.model.hash
        if same_model and same_features and layout == place.layout and states.shape[1] == place.pages.layout.row_bytes:
            return states, False
        return place.detector.taken_over(states, layout, same_model=same_model, same_features=same_features), True

    def put(self, number: int, rows: NDArray[Any], states: NDArray[np.uint8]) -> None:
        """Rows of the model in a place, (n,) and (n, row_bytes)."""
        if len(rows):
            buffer = self._there(number).pages.buffer
            if rows[-1] - rows[0] == len(rows) - 1:  # a full page, as almost all are: one copy, not three
                buffer[rows[0] : rows[-1] + 1] = states
            else:
                buffer[rows] = states
            self._of[rows] = number

    def wipe(self, number: int, rows: NDArray[Any]) -> None:
        """Undoes `put`."""
        self._there(number).pages.clear(rows)
        self._of[rows] = self._current
