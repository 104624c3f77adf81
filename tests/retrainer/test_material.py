import json

import numpy as np
import pytest

from anomalyd.alerts.mutes import Mute
from anomalyd.retrainer.incidents import Incidents
from anomalyd.retrainer.material import prepare
from anomalyd.retrainer.reservoir import History

START_MS = 1_760_000_000_000
MINUTE = 60_000


def moment(sample: int) -> str:
    return str(np.datetime64(START_MS + sample * MINUTE, "ms")) + "Z"


def alert(key: str, begin: int, end: int | None = None, stream: str = "s", kind: str = "anomaly") -> bytes:
    ends_at = None if end is None else moment(end)
    status = "firing" if end is None else "resolved"
    return json.dumps(
        {
            "alert_id": f"{key}{begin}",
            "stream": stream,
            "status": status,
            "kind": kind,
            "series": {"key": key},
            "event_time": moment(begin if end is None else end),
            "starts_at": moment(begin),
            "ends_at": ends_at,
        }
    ).encode()


def history(key: str = "m", samples: int = 1200, value: np.ndarray | None = None) -> History:
    values = np.random.default_rng(0).standard_normal(samples) if value is None else value
    return History(key, START_MS + MINUTE * np.arange(len(values)), values.reshape(len(values), -1))


def test_training_ends_where_judging_begins() -> None:
    made = prepare([history()], Incidents("s"))

    (piece,), (judged,) = made.pieces, made.judged
    assert len(piece.value) == judged.later == 800
    assert piece.time_ms[-1] < judged.time_ms[judged.later]
    assert judged.step_ms == MINUTE


def test_alerts_are_left_out_of_both_and_no_piece_reaches_over_them() -> None:
    incidents = Incidents("s")
    for message in (
        alert("m", 300),
        alert("m", 300, 309),
        alert("m", 1000, 1019),
        alert("other", 0),
        alert("m", 0, stream="t"),
        b"rubbish",
        None,
    ):
        incidents.take(message)

    made = prepare([history()], incidents)

    assert made.left_out == 30
    assert [(int(p.time_ms[0] - START_MS) // MINUTE, len(p.value)) for p in made.pieces] == [(0, 300), (310, 490)]
    inside = (made.judged[0].time_ms - START_MS) // MINUTE
    assert not set(inside.tolist()) & {*range(300, 310), *range(1000, 1020)}


def test_an_open_alert_is_left_out_to_its_end() -> None:
    incidents = Incidents("s")
    incidents.take(alert("m", 400))

    made = prepare([history()], incidents)

    assert [len(p.value) for p in made.pieces] == [400]
    assert made.judged == []  # nothing later is left


def test_labelled_incidents_and_mutes_are_left_out() -> None:
    span = Mute(("m",), start_ms=START_MS + 100 * MINUTE, end_ms=START_MS + 200 * MINUTE)

    made = prepare([history(), history("n")], Incidents("s", [span]))

    assert made.left_out == 100


@pytest.mark.parametrize(
    "value",
    [np.full(1200, 5.0), np.full(1200, 1e300), np.where(np.arange(1200) == 3, np.inf, 1.0), np.full((1200, 2), np.nan)],
    ids=["constant", "enormous", "infinite", "never-there"],
)
def test_nothing_is_learned_from_a_broken_series(value: np.ndarray) -> None:
    made = prepare([history(value=value)], Incidents("s"))

    assert made.pieces == []
    assert made.broken == 1
    assert not made.enough


def test_too_young_series_say_nothing() -> None:
    made = prepare([history(samples=200)], Incidents("s"))

    assert (made.pieces, made.judged) == ([], [])


def test_what_was_over_long_ago_is_forgotten() -> None:
    incidents = Incidents("s")
    incidents.take(alert("m", 0, 10))
    incidents.take(alert("m", 50))

    incidents.forget(START_MS + 20 * MINUTE, START_MS + 60 * MINUTE)

    assert len(incidents) == 1


def test_what_nobody_speaks_of_any_more_is_over_and_what_is_older_reopens_nothing() -> None:
    incidents, week = Incidents("s"), 7 * 24 * 60
    incidents.take(alert("m", 0, 10))
    incidents.take(alert("m", 0))  # as it was told of before its end
    incidents.take(alert("n", 5))

    incidents.forget(START_MS, START_MS + (week + 100) * MINUTE)

    later = np.array([START_MS + 50 * MINUTE])
    assert not incidents.inside("m", later).any()
    assert not incidents.inside("n", later).any()
