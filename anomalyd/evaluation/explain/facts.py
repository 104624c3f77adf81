"""What an explanation says, as plain data: it is the JSON output, and what text and picture are made of."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.machine import EPISODE, OPEN
from anomalyd.alerts.messages import iso
from anomalyd.alerts.rarity import Rarity
from anomalyd.alerts.text import frequency
from anomalyd.batch import COUNTER, LATE, REPEATED, WARMUP
from anomalyd.detector import Detector
from anomalyd.detector.explain import PARTS, Memory, Row, carried, channels, fields, half_life, memory, unscaled
from anomalyd.detector.layout import COUNTER_KIND
from anomalyd.detector.recipe import BAND_ERRORS, LATE_RUN, WARMUP_SAMPLES
from anomalyd.evaluation.replay import Trace, grown_threshold

Facts = dict[str, Any]
Rows = NDArray[np.uint8]

USUAL_FROM: Final = 0.05
USUAL_TO: Final = 0.95
LEAST_USUAL: Final = 20
"""States fewer than which say nothing about what is usual."""

BEGINNINGS: Final = {
    "carried": "run again from the state in which the network came to the window: what it computed then, but for rounding",
    "birth": "run again from zero state, in which the series began with the window: what it computed then, but for rounding",
    "empty": "run from zero state, because the state in front of the window is not kept: what the network makes of these inputs alone",
}
_FLAGS: Final = ((WARMUP, "warm-up"), (LATE, "late"), (REPEATED, "repeated"), (COUNTER, "counter"))


def sample_facts(detector: Detector, trace: Trace, own: NDArray[np.int64], rows: Rows, names: Sequence[str]) -> Facts:
    """Facts about the last of some samples of one series.

    Args:
        detector: that judged them.
        trace: all samples.
        own: indices of the series' samples up to the one that is explained, in order.
        rows: state rows around the last of them, uint8 (m + 1, row_bytes): in front of the first, and behind each.
        names: of the features.
    """
    k, verdicts = int(own[-1]), trace.verdicts
    order = np.lexsort((-verdicts.share[k], np.isnan(verdicts.observed[k])))  # those that the sample lacks come last
    top = int(order[0])
    row, flags = fields(rows[-1], detector.layout), int(verdicts.flags[k])
    score, evidence = float(verdicts.score[k]), float(verdicts.evidence[k])
    threshold = evidence / score if score > 0 and evidence > 0 else grown_threshold(detector, float(row["step_ms"][0]))
    parts = channels(detector.artifact, detector.layout, rows[-2], rows[-1], verdicts.observed[k], evidence)
    # The state behind a sample of which nothing was learned is that of the one before it: there the window ends.
    found = memory(detector.artifact, detector.layout, rows)
    several = verdicts.share.shape[1] > 1
    values = [
        {"name": names[f]}
        | {name: _known(float(getattr(verdicts, name)[k, f])) for name in ("observed", "expected", "low", "high")}
        | {"share": _short(float(verdicts.share[k, f]))}
        for f in order.tolist()
    ]
    return {
        "sample": {
            "time": iso(int(trace.time_ms[k])),
            "row": int(trace.row[k]),
            "score": _short(score),
            "evidence": _short(evidence),
            "threshold": _short(threshold),
            "unusual": _unusual(detector, evidence / threshold, evidence),
            "flags": [name for flag, name in _FLAGS if flags & flag],
            "note": _note(flags, int(fields(rows[-2], detector.layout)["age"][0]), int(row["age"][0])),
            **{name: values[0][name] for name in ("observed", "expected", "low", "high")},
            "features": values if several else None,
        },
        "channels": [
            {"name": c.name, "measure": None if c.measure is None else _short(c.measure), "evidence": _short(c.evidence), "about": c.about}
            for c in parts
        ],
        "learned": learned(detector, row, top) | {"feature": names[top] if several else None},
        "window": None if found is None else _window(detector, found, trace, own, rows, top) | {"feature": names[top] if several else None},
        "network": None
        if found is None
        else network(
            detector,
            found,
            top,
            [carried(fields(r, detector.layout), detector.layout, "c") for r in rows[:-1]],
            f"this series, its last {len(rows) - 1} samples",
        ),
    }


def state_facts(detector: Detector, row_bytes: Rows, others: Rows, names: Sequence[str] = ()) -> Facts:
    """Facts about a series by its state row alone; of several features about the one that the network fails most to give back.

    Args:
        detector: whose row it is.
        row_bytes: uint8 (row_bytes,).
        others: rows of other series, uint8 (m, row_bytes), to compare with.
        names: of the features, where there are several; left out: feature_0, feature_1, …
    """
    row = fields(row_bytes, detector.layout)
    found = memory(detector.artifact, detector.layout, row_bytes[None, :])
    joint, f = detector.artifact.shape.joint, 0
    if found is not None and detector.features > 1:
        newest = found.inputs[-1, 0] if joint else found.inputs[-1, :, 0]
        f = int(np.abs(newest - found.course.newest[-1]).argmax())
    name = None if detector.features == 1 else names[f] if names else f"feature_{f}"
    u = row["forecast"].astype(np.float64)
    band = BAND_ERRORS * row["error"]
    expected, low, high = (float(unscaled(v, row)[f]) for v in (u, u - band, u + band))
    cells = [carried(fields(other, detector.layout), detector.layout, "c") for other in others]
    episode = row["episode"].view(EPISODE)[0]
    window: Facts | None = None
    if found is not None:
        values = unscaled(found.inputs[:, 0] if joint else found.inputs[:, :, 0], row)[:, f]
        course = unscaled(found.course.newest, row)[:, f]
        window = {
            "about": BEGINNINGS[found.beginning],
            "values": "inputs, brought back into units by the scale of today",
            "feature": name,
            "steps": [
                _step(found, t, f, joint=joint) | {"value": _short(float(values[t])), "reconstructed_value": _short(float(course[t]))}
                for t in range(len(values))
            ],
        }
    return {
        "state": {
            "time": iso(int(row["time"][0])),
            "observed": _short(float(row["seen"][f])),
            "next": {"expected": _short(expected), "low": _short(low), "high": _short(high)},
            "threshold": _short(grown_threshold(detector, float(row["step_ms"][0]))),
            "alert_since": iso(int(episode["starts_ms"])) if episode["state"] == OPEN else None,
            "peak_score": _short(float(episode["peak"])) if episode["state"] == OPEN else None,
        },
        "learned": learned(detector, row, f) | {"feature": name},
        "window": window,
        "network": None
        if found is None
        else network(detector, found, f, cells, f"{len(cells)} other series of the partition, as they are now"),
    }


def learned(detector: Detector, row: Row, feature: int) -> Facts:
    """What a row knows of the course of one feature."""
    facts: Facts = {
        "feature": None,
        "samples": int(row["age"][0]),
        "step_s": _short(float(row["step_ms"][0]) / 1000),
        "counter": int(row["kind"][feature]) == COUNTER_KIND,
        "mean": _short(float(row["mean"][feature])),
        "deviation": _short(math.sqrt(float(row["variance"][feature]))),
        "usual_change": _short(float(row["step_size"][feature])),
        "range": [_short(float(row["low"][feature])), _short(float(row["high"][feature]))],
        "unchanged": _short(float(row["unchanged"][feature])),
    }
    if detector.features == 1:
        facts["patterns"] = {name: int((row[f"{name.lower()}_weight"] > 0).sum()) for name in ("A", "B")}
    return facts


def network(detector: Detector, found: Memory, feature: int, cells: Sequence[NDArray[np.float64]], usual_of: str) -> Facts:
    """Gates, half-lives and cells, part by part.

    Args:
        detector: whose network it is.
        found: its course over the window.
        feature: which one's network, where each has its own.
        cells: states (2, L, N, H) to take for usual.
        usual_of: whose they are.
    """
    n = 0 if detector.artifact.shape.joint else feature
    parts: Facts = {}
    for p, part in enumerate(PARTS):
        gates = found.course.gates[:, :, p, :, n].reshape(len(found.inputs), 3, -1)  # (T, 3, L * H)
        lives = half_life(gates[:, 1])
        cell = found.cell[p, :, n].reshape(-1)
        usual = np.stack([c[p, :, n].reshape(-1) for c in cells]) if len(cells) >= LEAST_USUAL else None
        low, high = (None, None) if usual is None else np.quantile(usual, (USUAL_FROM, USUAL_TO), axis=0)
        parts[part] = {
            **{
                f"{name}_gate": {
                    "mean": _short(float(gates[:, g].mean())),
                    "course": _list(gates[:, g].mean(axis=1)),
                    "units": _list(gates[:, g].mean(axis=0)),
                }
                for g, name in enumerate(("input", "forget", "output"))
            },
            "half_life_steps": {
                "shortest": _short(float(lives.min())),
                "median": _short(float(np.median(lives))),
                "longest": _short(float(lives.max())),
                "units": _list(lives),
            },
            "cell": {
                "state": _list(cell),
                "usual_low": None if low is None else _list(low),
                "usual_high": None if high is None else _list(high),
                "outside": None if low is None or high is None else np.flatnonzero((cell < low) | (cell > high)).tolist(),
            },
        }
    return {
        "about": BEGINNINGS[found.beginning],
        "deviation": _short(found.deviation),
        "usual_of": usual_of if len(cells) >= LEAST_USUAL else None,
        **parts,
    }


def _unusual(detector: Detector, score: float, evidence: float) -> str | None:
    calibration = detector.artifact.calibration
    recurrence = Rarity(detector.options.budget_per_day, calibration.slope, calibration.lowest).recurrence(score, evidence)
    return None if recurrence is None else frequency(recurrence)


def _note(flags: int, before: int, after: int) -> str:
    """What keeps a sample from being judged like any other."""
    if flags & LATE:
        return (
            f"older than the newest sample: scored against a copy of the state, nothing learned, never an alert (until {LATE_RUN} in a row)"
        )
    if flags & REPEATED:
        return "same time and value as the sample before: nothing learned, never an alert"
    if after != before + 1:
        return "the series begins anew with it"
    if flags & WARMUP:
        return f"the series is in warm-up: it had {before} samples, and the first {WARMUP_SAMPLES} never alert"
    return ""


def _window(detector: Detector, found: Memory, trace: Trace, own: NDArray[np.int64], rows: Rows, feature: int) -> Facts:
    """The samples behind the inputs of the window, in the units of the series."""
    verdicts = trace.verdicts
    # The last samples that were learned: place among the rows (behind the sample) and in the trace.
    learned_from = np.flatnonzero((verdicts.flags[own] & (LATE | REPEATED)) == 0)[-len(found.inputs) :]
    steps = []
    for t, place in enumerate(learned_from.tolist()):
        k, behind = int(own[place]), place - len(own) + len(rows)
        step = _step(found, t, feature, joint=detector.artifact.shape.joint) | {"time": iso(int(trace.time_ms[k]))}
        step |= {"value": _known(float(verdicts.observed[k, feature])), "expected": _known(float(verdicts.expected[k, feature]))}
        if behind > 0:  # by the scale of the moment, which is that in front of the sample
            value = unscaled(found.course.newest[t], fields(rows[behind - 1], detector.layout))[feature]
            step |= {"reconstructed_value": _short(float(value))}
        steps.append(step | {"score": _short(float(verdicts.score[k]))})
    return {"about": BEGINNINGS[found.beginning], "values": "as they were judged", "steps": steps}


def _step(found: Memory, t: int, feature: int, *, joint: bool) -> Facts:
    return {
        "step": t - len(found.inputs) + 1,
        "input": _list(found.inputs[t, 0, feature : feature + 1] if joint else found.inputs[t, feature]),
        "reconstructed": _short(float(found.course.newest[t, feature])),
        "code": _list(found.course.code[t, 0 if joint else feature]),
    }


def _list(values: NDArray[np.float64]) -> list[float]:
    return [_short(value) for value in values.tolist()]


def _known(value: float) -> float | None:
    """None for what a sample lacks of several features."""
    return None if math.isnan(value) else _short(value)


def _short(value: float) -> float:
    """Six digits are more than anybody reads."""
    return float(f"{value:.6g}")
