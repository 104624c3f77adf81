"""Whether the alert budget's control measures what it should: crossings ÷ expected beside false alarms ÷ budget, on ordinary rows.

    python benchmarks/budget.py nab=NAB kpi=KPI [--half choose] [--json]

Labelled sets as `anomalyd evaluate` reads them, single metrics only; every stream is a partition by itself and nothing is corrected.
Ordinary rows are those behind the first 1,000 that lie farther than five rows from a label. A false alarm is a row where an episode may
open, with no score of 1 in the ten rows before it. Without sets: calm generated series, and independent normal samples.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED
from anomalyd.detector import Detector, SampleBatch
from anomalyd.detector.detector import MS_PER_DAY
from anomalyd.detector.recipe import YOUNG_SAMPLES
from anomalyd.evaluation.sets import LabelledSet
from anomalyd.training import generate
from anomalyd.training.calibrate import openings

AROUND = 5
"""Rows beside a label that are not ordinary either."""
GENERATED = (150, 4_000)
NOISE = (100, 8_000)
"""Series and samples in each."""

Stream = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]
"""Times (n,), values (n,), ordinary rows (n,)."""


def labelled(name: str, folder: Path, half: str | None) -> Iterator[Stream]:
    """The single metrics of a set."""
    found = LabelledSet(name, folder)
    if half is not None:
        found.keep("choose" if half == "choose" else "hold")
    for file in found.files:
        stream = found.read(file)
        if stream.table.value.shape[1] == 1:
            ordinary = np.convolve(stream.label, np.ones(2 * AROUND + 1), "same") == 0
            yield stream.table.time_ms, stream.table.value[:, 0], ordinary


def generated() -> Iterator[Stream]:
    """Calm series that training never saw, a minute apart."""
    values, _ = generate.series(*GENERATED, seed=78, calm=True)
    for value in values:
        yield 60_000 * np.arange(len(value), dtype=np.int64), value, np.ones(len(value), np.bool_)


def noise(step_s: int) -> Iterator[Stream]:
    """Series of independent normal samples about a level, a step apart."""
    series, samples = NOISE
    time_ms = 1_000 * step_s * np.arange(samples, dtype=np.int64)
    for values in np.random.default_rng(79).standard_normal((series, samples)):
        yield time_ms, 100 + values, np.ones(samples, np.bool_)


def measured(detector: Detector, streams: Iterator[Stream]) -> dict[str, float]:
    """What is counted over all streams together."""
    tally, alarms, allowed = np.zeros(3, np.int64), 0, 0.0
    for time_ms, value, ordinary in streams:
        pages, parts = detector.new_pages(1), []
        edges = [0, *(np.flatnonzero(np.diff(ordinary)) + 1).tolist(), len(value)]
        before = int(tally[1])
        for begin, end in pairwise(edges):
            rows = np.zeros(end - begin, np.int32)
            batch = SampleBatch(rows, time_ms[begin:end], value[begin:end, None].copy(), np.arange(end - begin, dtype=np.int32))
            parts.append(detector.step(pages, batch, None, tally if ordinary[begin] else np.zeros(3, np.int64)))
        if int(tally[1]) == before:
            continue  # too short, or the threshold is as low as the level: nothing to compare
        score, flags = (np.concatenate([getattr(part, name) for part in parts]) for name in ("score", "flags"))
        counted = ordinary & (np.arange(len(value)) >= YOUNG_SAMPLES)
        alarms += int(np.count_nonzero(openings(score[:, None], flags[:, None] & ARMED > 0, 1.0)[:, 0] & counted))
        step_ms = float(np.median(np.diff(time_ms)))
        allowed += float(np.count_nonzero(counted)) * step_ms / MS_PER_DAY * detector.options.budget_per_day
    expected = float(tally[1]) / 1e9
    return {
        "crossings": int(tally[0]),
        "crossings_to_expected": round(float(tally[0]) / max(expected, 1e-9), 2),
        "false_alarms": alarms,
        "false_alarms_to_budget": round(alarms / max(allowed, 1e-9), 2),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET=FOLDER")
    parser.add_argument("--half", choices=["choose", "hold"], help="of each set")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    detector = Detector.load(device="cpu")
    named = [one.split("=", 1) for one in arguments.sets]
    results = {name: measured(detector, labelled(name, Path(folder), arguments.half)) for name, folder in named}
    if not named:
        results["calm generated series"] = measured(detector, generated())
        results |= {f"normal samples, {step_s} s apart": measured(detector, noise(step_s)) for step_s in (10, 60, 300)}
    if arguments.json:
        print(json.dumps(results))
        return
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
