"""What was written under faults against what an uninterrupted run wrote."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.topics import Record

Coordinates = tuple[int, int]
"""Partition and offset of a record of the input."""


@dataclass(slots=True)
class Comparison:
    """Counts are messages; everything but `alerts` and `dead_letters` has to be 0."""

    alerts: int = 0
    """That the uninterrupted run wrote."""
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    """About something that the uninterrupted run did not tell."""
    changed: int = 0
    disordered: int = 0
    """Alerts (episodes) whose messages come in another order, or that are not all in one partition."""
    dead_letters: int = 0
    """Bad records that were fed."""
    dead_lost: int = 0
    dead_doubled: int = 0
    dead_foreign: int = 0
    dead_changed: int = 0
    examples: list[str] = field(default_factory=list)
    """The first of each kind of difference, for whoever has to explain it."""


def compare(
    golden: Sequence[Record],
    have: Sequence[Record],
    golden_dead: Sequence[Record],
    have_dead: Sequence[Record],
    fed_bad: Mapping[Coordinates, bytes],
) -> Comparison:
    """Compares alerts and dead letters as read_committed consumers see them, in the order of their partitions and offsets.

    Args:
        golden: alerts of the uninterrupted run.
        have: alerts under faults.
        golden_dead: dead letters of the uninterrupted run.
        have_dead: dead letters under faults.
        fed_bad: the bad records of the input.
    """
    found = Comparison(alerts=len(golden), dead_letters=len(fed_bad))
    _compare_alerts(golden, have, found)
    _compare_dead(golden_dead, have_dead, fed_bad, found)
    return found


def _compare_alerts(golden: Sequence[Record], have: Sequence[Record], found: Comparison) -> None:
    wanted, got = Counter(map(_content, golden)), Counter(map(_content, have))
    told, telling = Counter(map(_identity, golden)), Counter(map(_identity, have))
    lost, more = told - telling, telling - told
    found.lost = lost.total()
    found.doubled = sum(count for identity, count in more.items() if identity in told)
    found.foreign = more.total() - found.doubled
    found.changed = (wanted - got).total() - found.lost
    orders, ordered = _orders(golden), _orders(have)
    disordered = [key for key in orders.keys() & ordered.keys() if orders[key] != ordered[key]]
    # What is lost or doubled was counted above; order is about the messages that are there once.
    found.disordered = len([key for key in disordered if sorted(orders[key]) == sorted(ordered[key])])
    found.examples += [f"lost: {identity}" for identity in list(lost)[:3]]
    found.examples += [f"doubled or foreign: {identity}" for identity in list(more)[:3]]
    should = {_identity(record): record for record in golden}
    changed = [(_identity(record), _difference(should[_identity(record)], record)) for record in have if _identity(record) in should]
    found.examples += [f"changed: {identity}: {difference}" for identity, difference in changed if difference][:3]
    found.examples += [f"disordered: {key!r}" for key in disordered[:3]]


def _content(record: Record) -> str:
    return json.dumps(_fields(record), sort_keys=True)


def _fields(record: Record) -> dict[str, Any]:
    """Everything about an alert but the time that a clock has written."""
    alert = json.loads(record.value or b"null")
    del alert["detected_at"]
    return {**alert, "(partition)": record.partition, "(key)": (record.key or b"").decode()}


def _difference(wanted: Record, got: Record) -> str:
    one, other = _fields(wanted), _fields(got)
    fields = [field for field in one.keys() | other.keys() if one.get(field) != other.get(field)]
    return "; ".join(f"{field} {one.get(field)} became {other.get(field)}" for field in sorted(fields))


def _identity(record: Record) -> tuple[str, str, int, int]:
    alert = json.loads(record.value or b"null")
    return alert["alert_id"], alert["status"], alert["source"]["partition"], alert["source"]["offset"]


def _orders(records: Iterable[Record]) -> dict[bytes, list[tuple[Any, ...]]]:
    """For each key the partition and identity of its messages, in order of partition and offset."""
    orders: dict[bytes, list[tuple[Any, ...]]] = {}
    for record in records:
        orders.setdefault(record.key or b"", []).append((record.partition, *_identity(record)))
    return orders


def _compare_dead(golden: Sequence[Record], have: Sequence[Record], fed: Mapping[Coordinates, bytes], found: Comparison) -> None:
    counts = Counter(map(origin, have))
    found.dead_lost = sum(coordinates not in counts for coordinates in fed)
    found.dead_doubled = sum(count - 1 for count in counts.values())
    found.dead_foreign = sum(coordinates not in fed for coordinates in counts)
    wanted = {origin(letter): _letter(letter) for letter in golden}
    changed = [letter for letter in have if origin(letter) in fed and _letter(letter) != wanted.get(origin(letter))]
    changed += [letter for letter in have if letter.value != fed.get(origin(letter), letter.value) and letter not in changed]
    found.dead_changed = len(changed)
    found.examples += [f"dead letter lost: {coordinates}" for coordinates in fed if coordinates not in counts][:3]
    found.examples += [f"dead letter doubled: {coordinates}" for coordinates, count in counts.items() if count > 1][:3]
    found.examples += [f"dead letter foreign: {coordinates}" for coordinates in counts if coordinates not in fed][:3]
    found.examples += [f"dead letter changed: {letter}" for letter in changed[:3]]


def origin(letter: Record) -> Coordinates:
    """Where the record behind a dead letter lies in the input."""
    return int(letter.headers["anomalyd-partition"]), int(letter.headers["anomalyd-offset"])


def _letter(record: Record) -> tuple[Any, ...]:
    return record.partition, record.key, record.value, sorted(record.headers.items())
