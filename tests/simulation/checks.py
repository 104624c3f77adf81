"""What has to hold, while it runs and in the end."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from anomalyd.state import codec
from anomalyd.state.codec import Fence, Page, Position
from tests.simulation.log import Log, Record

_SHOWN: Final = 3


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Golden(NamedTuple):
    """What an uninterrupted run brings, by input partition."""

    alerts: list[list[dict[str, Any]]]
    dead_letters: list[list[dict[str, bytes]]]
    digests: list[str]
    corrections: list[list[tuple[int, int]]]
    models: list[list[tuple[int, str]]]
    scores: list[list[bytes]]


class Chain:
    """Looks at a changelog partition as it grows: positions, pages and owners.

    Args:
        log: the partition.
        transactional: without transactions only what does not depend on them is checked.
    """

    def __init__(self, log: Log, *, transactional: bool) -> None:
        self._log = log
        self._transactional = transactional
        self._next = 0
        self._pages: list[tuple[bytes, int]] = []
        self.last: Position | None = None
        self.furthest = -1
        """Position that somebody has come to; without transactions others may stand behind it."""
        self.policies: list[tuple[int, str]] = []
        """All that were ever in force."""
        self.corrections: list[tuple[int, int]] = []
        """Likewise."""
        self.models: list[tuple[int, str]] = []
        """All that ever scored."""
        self._owner: bytes | None = None
        self.overwritten = False
        """Somebody has written a position behind the fence of a successor, which is possible without transactions only."""
        self.positions = 0
        self.fences = 0

    def look(self) -> None:
        """Takes in what has become visible. Raises BrokenError."""
        log, stable = self._log, self._log.lso
        for batch in log.batches[log._at(self._next) :]:
            if batch.last >= stable:
                break
            self._next = batch.last + 1
            if batch.marker is None and not batch.aborted:
                for record in batch.records:
                    self._take(record)

    def _take(self, record: Record) -> None:
        if record.value is None or record.key is None:
            return
        value = codec.decode(record.key, record.value)
        where = f"{self._log.tp.topic}/{self._log.tp.partition} offset {record.offset}"
        if isinstance(value, Fence):
            self.fences += 1
            self._owner = value.owner
        elif isinstance(value, Page):
            self._pages.append((record.key, value.position))
        elif isinstance(value, Position):
            self.positions += 1
            if self._transactional:
                self._link(value, where)
            self.overwritten |= value.owner != self._owner
            self.last = value
            self.furthest = max(self.furthest, value.position)
            _go_on(self.policies, value.policies)
            _go_on(self.corrections, value.corrections)
            _go_on(self.models, value.timeline)

    def _link(self, value: Position, where: str) -> None:
        if value.owner != self._owner:
            raise BrokenError("I7", f"{where}: a position of {value.owner.hex()} behind the fence of {(self._owner or b'').hex()}")
        before = self.last
        if before is not None and (
            value.sequence != before.sequence + 1 or value.previous != before.position or value.position < before.position
        ):
            raise BrokenError(
                "I3", f"{where}: {value.sequence} at {value.position} from {value.previous} after {before.sequence} at {before.position}"
            )
        if before is None and (value.sequence, value.previous) != (0, -1):
            raise BrokenError("I3", f"{where}: the first position is number {value.sequence} from {value.previous}")
        if value.replay_from > value.position:
            raise BrokenError("I4", f"{where}: replay from {value.replay_from} behind the position {value.position}")
        for key, position in self._pages:
            if position > value.position:
                raise BrokenError("I4", f"{where}: page {key.decode()} of offset {position} is ahead of the position {value.position}")
        self._pages.clear()


def _go_on(known: list[Any], entries: Sequence[Any]) -> None:
    """Takes up the entries behind the last one that is known."""
    numbers = [number for number, entry in enumerate(entries, 1) if known[-1:] == [entry]]
    known += entries[max(numbers, default=0) :]


def alerts_of(logs: Sequence[Log], partitions: int) -> list[list[dict[str, Any]]]:
    """Committed alerts by input partition, in their order, without the time of detection, which is the wall clock's."""
    found: list[list[dict[str, Any]]] = [[] for _ in range(partitions)]
    for log in logs:
        for record in log.visible():
            alert = plain(record.value or b"")
            found[alert["source"]["partition"]].append(alert)
    return found


def plain(value: bytes) -> dict[str, Any]:
    """An alert message without its time of detection."""
    alert: dict[str, Any] = json.loads(value)
    del alert["detected_at"]
    return alert


def dead_letters_of(logs: Sequence[Log], partitions: int) -> list[list[dict[str, bytes]]]:
    """Committed dead letters by input partition, in their order."""
    found: list[list[dict[str, bytes]]] = [[] for _ in range(partitions)]
    for log in logs:
        for record in log.visible():
            letter = {name: value or b"" for name, value in record.headers} | {"key": record.key or b"", "value": record.value or b""}
            found[int(letter["anomalyd-partition"])].append(letter)
    return found


def check_alerts(
    found: Sequence[list[dict[str, Any]]], golden: Golden, *, exactly_once: bool, gaps: bool, overwritten: Sequence[bool] = ()
) -> None:
    """I1 and I2: those of an uninterrupted run, each once, in order.

    Without transactions a zombie's position may hide what its successor had learned. Episodes then begin at other samples, and a series
    that has become too young to alert by it goes unheard. Where no zombie has written, no series that alerts does.
    """
    for partition, (ours, wanted) in enumerate(zip(found, golden.alerts, strict=True)):
        if gaps or (overwritten and overwritten[partition]):
            continue
        if not exactly_once:
            if unheard := _firing(wanted) - _firing(ours):
                raise BrokenError("I1", f"partition {partition}: no alert of {sorted(unheard)}")
            continue
        have, want = Counter(map(_text, ours)), Counter(map(_text, wanted))
        lost, more = want - have, have - want
        if lost or more:
            raise BrokenError(
                "I1", f"partition {partition}: lost {lost.total()} {list(lost)[:_SHOWN]}, too many {more.total()} {list(more)[:_SHOWN]}"
            )
        if list(map(_text, ours)) != list(map(_text, wanted)):
            raise BrokenError("I2", f"partition {partition}: order")


def scores_of(logs: Sequence[Log], partitions: int) -> list[list[bytes]]:
    """Committed scores by input partition, in their order."""
    found: list[list[bytes]] = [[] for _ in range(partitions)]
    for log in logs:
        for record in log.visible():
            found[json.loads(record.value or b"")["source"]["partition"]].append(record.value or b"")
    return found


def check_scores(found: Sequence[list[bytes]], golden: Golden) -> None:
    """I13: those of an uninterrupted run, each once, in order, bit by bit."""
    for partition, (ours, wanted) in enumerate(zip(found, golden.scores, strict=True)):
        if ours != wanted:
            lost, more = Counter(wanted) - Counter(ours), Counter(ours) - Counter(wanted)
            told = f"lost {lost.total()} {list(lost)[:_SHOWN]}, too many {more.total()} {list(more)[:_SHOWN]}"
            raise BrokenError("I13", f"partition {partition}: {told if lost or more else 'order'}")


def check_corrections(chains: Sequence[Chain], golden: Golden) -> None:
    """I12: from where on the threshold gave, and how far, is what an uninterrupted run comes to."""
    for partition, (chain, wanted) in enumerate(zip(chains, golden.corrections, strict=True)):
        if chain.corrections != wanted:
            raise BrokenError("I12", f"partition {partition}: corrections {chain.corrections[-_SHOWN:]} are not {wanted[-_SHOWN:]}")


def check_models(chains: Sequence[Chain], golden: Golden, ends: Sequence[int]) -> None:
    """I8: from where on which model scored is what an uninterrupted run was told, and nothing besides.

    Of two at one offset the first has scored nothing: it could not be had when the next owner began there. Neither has one behind the last
    record, which an owner writes down when it begins there and cannot have the model before.

    Args:
        chains: a partition each.
        golden: what an uninterrupted run brings.
        ends: offset behind the last record of each partition.
    """
    for partition, (chain, wanted, end) in enumerate(zip(chains, golden.models, ends, strict=True)):
        scored = [(offset, model) for offset, model in dict(chain.models).items() if offset < end]
        # One in place of another that could not be had may be the one of before: no change to whoever has the timeline.
        replaced = {offset for offset, times in Counter(offset for offset, _ in chain.models).items() if times > 1}
        changes = [now for before, now in pairwise([(-1, ""), *scored]) if now[1] != before[1] or now[0] not in replaced]
        if changes != wanted:
            raise BrokenError("I8", f"partition {partition}: models {chain.models} are not {wanted}, in front of offset {end}")


def check_dead_letters(found: Sequence[list[dict[str, bytes]]], golden: Golden, *, exactly_once: bool, gaps: bool, most_bytes: int) -> None:
    """I6: each bad record once."""
    for partition, (ours, wanted) in enumerate(zip(found, golden.dead_letters, strict=True)):
        have = Counter(_letter(letter, most_bytes) for letter in ours)
        want = Counter(_letter(letter, most_bytes) for letter in wanted)
        lost, more = want - have, have - want
        if not exactly_once:
            more = Counter({text: count for text, count in more.items() if text not in want})
        if (lost and not gaps) or more:
            raise BrokenError("I6", f"partition {partition}: lost {list(lost)[:_SHOWN]}, too many {list(more)[:_SHOWN]}")


def _letter(letter: dict[str, bytes], most_bytes: int) -> tuple[bytes, ...]:
    """What identifies one; of one that may have been cut, its value is not compared."""
    value = b"(large)" if "anomalyd-truncated" in letter or len(letter["value"]) > most_bytes // 2 else letter["value"]
    return (letter["anomalyd-offset"], letter["anomalyd-reason"], letter["key"], value)


def _firing(alerts: Sequence[dict[str, Any]]) -> set[str]:
    """Series that an alert began for."""
    return {alert["series"]["key"] for alert in alerts if alert["status"] == "firing"}


def _text(alert: dict[str, Any]) -> str:
    return json.dumps(alert, sort_keys=True)
