"""What came out of an evaluation: a detector's runs, one a seed, their mean and spread, and detectors against each other."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from anomalyd.evaluation.measures import Paired, paired
from anomalyd.evaluation.scorecard import Card

COMPARED: Final = ("vus_pr", "auc_pr", "best_f1")
"""Measures of a stream by which detectors are compared, stream by stream."""


@dataclass(frozen=True, slots=True)
class Run:
    """A detector on a set, with one seed."""

    seed: int
    cards: tuple[Card, ...]
    """Of the streams, in the order of the set."""
    measures: dict[str, float | None]
    """Of the set; None where no stream can have the measure."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure with several seeds."""

    sd: float | None
    """Standard deviation of the values, as of a sample; None with fewer than two."""
    values: tuple[float | None, ...]
    """Of each seed."""


@dataclass(frozen=True, slots=True)
class Result:
    """A detector on a set."""

    detector: str
    runs: tuple[Run, ...]
    """One a seed, all with the same measures. What does not depend on the seed is the same in each."""
    samples: int
    samples_per_s: int

    @property
    def measures(self) -> dict[str, float | None]:
        """Of the set, each the mean over seeds."""
        return {name: mean(run.measures.get(name) for run in self.runs) for name in self.runs[0].measures}

    @property
    def spread(self) -> dict[str, Spread]:
        """Of the measures."""
        found = {}
        for name in self.runs[0].measures:
            values = tuple(run.measures.get(name) for run in self.runs)
            known = [value for value in values if value is not None]
            found[name] = Spread(float(np.std(known, ddof=1)) if len(known) > 1 else None, values)
        return found

    @property
    def streams(self) -> list[dict[str, Any]]:
        """Figures of each stream with its name, each the mean over seeds."""
        return [
            {"stream": cards[0].stream, **{name: mean(card.figures[name] for card in cards) for name in cards[0].figures}}
            for cards in zip(*(run.cards for run in self.runs), strict=True)
        ]


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are known; the value itself where all are equal, so that a count stays one; None where none is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if all(value == known[0] for value in known) else math.fsum(known) / len(known)


def against(ours: Result, theirs: Result) -> dict[str, Paired]:
    """Differences stream by stream, by measure, of means over seeds."""
    found = {}
    for name in COMPARED:
        a, b = ([one[name] for one in result.streams] for result in (ours, theirs))
        compared = paired(a, b)
        if compared is not None:
            found[name] = compared
    return found


def seeds_of(results: Sequence[Result]) -> tuple[int, ...]:
    """The seeds, of every result the same."""
    return tuple(run.seed for run in results[0].runs)
