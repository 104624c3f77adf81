"""Which model scores from which input offset of a partition on.

What a row remembers, and what was told, depends on the model, so each change is written down with its offset (`P.timeline`), and a replay
goes through the same models at the same offsets. The daemon asks for a model at any moment; it scores from the next batch on. A run that is
to be repeated is told the offsets in advance.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from anomalyd.batch import Source
from anomalyd.detector import Detector
from anomalyd.errors import ArtifactError, StateError
from anomalyd.state.ports import Restored

NEVER: Final = 1 << 62
"""Behind every offset."""

Entry = tuple[int, str]
"""Input offset from which on a model scores, and its hash."""
Planned = tuple[int, Detector]
"""Input offset from which on a model is to score."""

_log = structlog.get_logger(__name__)


class Models:
    """The models of one partition.

    Args:
        source: the partition.
        detector: scores until something else is said.
        find: by the hash of a model that scored once; raises ArtifactError where it cannot be had.
        plan: changes that are known in advance, oldest first; what is asked for besides does not count then.
    """

    def __init__(self, source: Source, detector: Detector, find: Callable[[str], Detector], plan: Sequence[Planned] = ()) -> None:
        self.detector = detector
        """Scores now."""
        self.written: list[Entry] = []
        """What has to be written down; whoever does so empties it."""
        self._source = source
        self._own = detector
        self._find = find
        self._asked: Detector | None = None
        # What is left of it, newest first; of several at one offset the last one: those before it could not be had, and scored nothing.
        self._plan = list(reversed(dict(plan).items()))
        self._planned = bool(plan)
        self._since = -1  # offset of the last change that was written down, or of what comes behind a restore
        self._known = False  # something was written down
        self._lost = False  # what was written down cannot be had: rows were made for our own
        self._ahead: list[Planned] = []  # what a replay has not come to yet, newest first
        self._starts: list[int] = []  # of the models of a restore

    # --- from one instance to the next ------------------------------------------------------------------------------

    def begin(self, restored: Restored) -> list[Detector]:
        """Goes back to the models that scored from `replay_from` on; returns them, the first one in force there.

        One that cannot be had is missed only where records in front of the position have to be replayed. Else the present one takes over.

        Raises:
            StateError: a replay needs a model that cannot be had.
        """
        position, timeline = restored.position, restored.timeline
        self.detector, self._ahead, self._starts, self._known, self._since = self._own, [], [], False, -1
        if position is None:
            return [self._own]
        found: list[Detector] = []
        for number, (start, model) in enumerate(timeline):
            try:
                found.append(self._own if model == self._own.model.hash else self._find(model))
            except ArtifactError as error:
                where = {"topic": self._source.topic, "partition": self._source.partition, "model": model, "offset": start}
                if restored.replay_from < position:
                    end = timeline[number + 1][0] if number + 1 < len(timeline) else position
                    raise StateError(
                        f"{self._source.topic}/{self._source.partition}: input offsets {max(start, restored.replay_from)} to {end} have to "
                        f"be replayed, model {model[:12]} scored them, and it cannot be had: {error}; put it back into the models topic, "
                        f"or give the partition's state up with `anomalyd state restart`"
                    ) from error
                _log.warning("model_missing", **where, reason=str(error), instead=self._own.model.hash)
        if not timeline or len(found) < len(timeline):
            self._lost = True
            return [self._own]
        self._known = True
        self._starts = [start for start, _ in timeline]
        self._since = max(self._starts[-1], position)
        self._plan = [planned for planned in self._plan if planned[0] > self._starts[-1]]  # the rest has happened
        self._ahead = list(zip(self._starts, found, strict=True))[:0:-1]
        self.detector = found[0]
        return found

    def number(self, position: int) -> int:
        """Which of the models of `begin` had learned what was written down at a position."""
        return max(0, sum(start < position for start in self._starts) - 1)

    # --- records ----------------------------------------------------------------------------------------------------

    def ask(self, detector: Detector) -> None:
        """This model is to score as soon as may be. Any thread may say so."""
        self._asked = detector

    @property
    def waits(self) -> bool:
        """Another model was asked for."""
        return not self._planned and self._asked is not None and self._asked is not self.detector

    def may_swap(self, offset: int) -> bool:
        """Whether the model may change at an offset.

        Not where it changed last, for no record would have been scored by the one in between. And not where a restore ended: what is
        written down has to be needed by a replay from there, or it is dropped while pages of the model before still lie about.
        """
        return offset > self._since

    def settle(self, offset: int, *, records: bool) -> Detector | None:
        """What comes from an offset on is news; returns another model if one scores it.

        Args:
            offset: behind every change so far.
            records: there are some.
        """
        if not self._known:
            first = self.detector if self._asked is None or self._planned or self._lost else self._asked
            while self._plan and self._plan[-1][0] <= offset and not self._lost:
                first = self._plan.pop()[1]
            return self._change(first, offset)
        asked = self._asked
        if asked is not None and self.waits and records and self.may_swap(offset):
            return self._change(asked, offset)
        return None

    def _change(self, detector: Detector, offset: int) -> Detector | None:
        self._known, self._since = True, offset
        self.written.append((offset, detector.model.hash))
        return self._enter(detector)

    def _enter(self, detector: Detector) -> Detector | None:
        if detector is self.detector:
            return None
        self.detector = detector
        return detector

    @property
    def boundary(self) -> int:
        """Input offset from which on another model scores, or may; NEVER: as far as is known, none does."""
        if self._ahead:
            return self._ahead[-1][0]
        return max(self._plan[-1][0], self._since + 1) if self._plan and self._known else NEVER

    def reach(self, offset: int, *, replaying: bool) -> tuple[int, Detector] | None:
        """The record at this offset is next; returns a model that scores from some offset in front of it on, the next one first."""
        if self._ahead and self._ahead[-1][0] <= offset:
            start, self.detector = self._ahead.pop()
            return start, self.detector
        while not replaying and self.boundary <= offset:
            start, (_, planned) = self.boundary, self._plan.pop()
            if planned.model.hash != self.detector.model.hash and (changed := self._change(planned, start)) is not None:
                return start, changed
        return None
