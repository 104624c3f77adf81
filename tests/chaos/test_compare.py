"""Differences between two runs are seen, each as what it is."""

import json

from tests.chaos.compare import Comparison, compare
from tests.support.topics import Record


def alert(n: int, status: str = "firing", partition: int = 0, at: int = 0, **changed: object) -> Record:
    value = {"alert_id": f"a{n}", "status": status, "score": 1.5, "detected_at": f"{at}", "source": {"partition": partition, "offset": n}}
    return Record("alerts", partition, at, 0, f"a{n}".encode(), json.dumps(value | changed).encode(), {})


def dead(n: int, at: int = 0, value: bytes = b"{") -> Record:
    return Record("dead", 0, at, 0, None, value, {"anomalyd-partition": b"0", "anomalyd-offset": str(n).encode()})


GOLDEN = [alert(1, at=0), alert(2, at=1), alert(1, "resolved", at=2)]
DEAD = [dead(5, 0), dead(9, 1)]
FED = {(0, 5): b"{", (0, 9): b"{"}


def differences(have: list[Record], have_dead: list[Record] = DEAD) -> dict[str, int]:
    found = compare(GOLDEN, have, DEAD, have_dead, FED)
    equal = Comparison(alerts=3, dead_letters=2)
    names = [name for name in Comparison.__dataclass_fields__ if name != "examples"]
    assert bool(found.examples) == (found != equal)
    return {name: getattr(found, name) for name in names if getattr(found, name) != getattr(equal, name)}


def test_other_offsets_and_another_clock_are_no_difference() -> None:
    assert differences([alert(2, at=10), alert(1, at=11), alert(1, "resolved", at=12)]) == {}


def test_a_lost_alert() -> None:
    assert differences(GOLDEN[1:]) == {"lost": 1}


def test_a_doubled_alert() -> None:
    assert differences([*GOLDEN, alert(2, at=3)]) == {"doubled": 1}


def test_a_doubled_alert_does_not_make_up_for_a_lost_one() -> None:
    assert differences([alert(1, at=0), alert(1, at=1), alert(1, "resolved", at=2)]) == {"lost": 1, "doubled": 1}


def test_an_alert_that_nobody_should_have_sent() -> None:
    assert differences([*GOLDEN, alert(7, at=3)]) == {"foreign": 1}


def test_another_score() -> None:
    assert differences([*GOLDEN[:2], alert(1, "resolved", at=2, score=1.5000001)]) == {"changed": 1}


def test_another_order_of_an_alerts_messages() -> None:
    assert differences([alert(1, "resolved", at=0), alert(2, at=1), alert(1, at=2)]) == {"disordered": 1}


def test_another_order_of_different_alerts_is_free() -> None:
    assert differences([alert(2, at=0), alert(1, at=1), alert(1, "resolved", at=2)]) == {}


def test_an_alert_in_another_partition() -> None:
    moved = [record._replace(partition=3) for record in GOLDEN]

    assert differences(moved)["changed"] == 3


def test_dead_letters_lost_doubled_changed_and_foreign() -> None:
    assert differences(GOLDEN, DEAD[:1]) == {"dead_lost": 1}
    assert differences(GOLDEN, [*DEAD, dead(9, 2)]) == {"dead_doubled": 1}
    assert differences(GOLDEN, [DEAD[0], dead(9, 1, value=b"?")]) == {"dead_changed": 1}
    assert differences(GOLDEN, [*DEAD, dead(7, 2)]) == {"dead_foreign": 1}
