"""A challenger that scores beside the champion, on the same samples and on rows of its own, and alerts nobody.

Its rows begin as the champion's do at a swap, when their series is first heard of; they are not written down, so a challenger begins anew
with every restart. Nothing of the champion's is touched: what it says and knows is the same with and without.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import LATE, REPEATED, WARMUP, SampleBatch, Verdicts
from anomalyd.detector import Detector, Rows
from anomalyd.detector.migrate import described

LEAST_SCORE: Final = 1e-3
"""Scores below are all the same: nothing whatever."""


class Disagreement(NamedTuple):
    """What was counted; samples of series that are old enough, in order."""

    samples: int = 0
    both: int = 0
    """Samples with a score of 1 or more from both."""
    champion: int = 0
    """From the champion alone."""
    challenger: int = 0
    """From the challenger alone."""
    log_difference: float = 0.0
    """Sum of |log10 challenger's score - log10 champion's|."""

    def plus(self, other: "Disagreement") -> "Disagreement":
        """Both together."""
        return Disagreement(
            self.samples + other.samples,
            self.both + other.both,
            self.champion + other.champion,
            self.challenger + other.challenger,
            self.log_difference + other.log_difference,
        )


class Shadow:
    """The challenger of one shard.

    Args:
        detector: the challenger.
        capacity: most rows.
    """

    def __init__(self, detector: Detector, capacity: int) -> None:
        self.detector = detector
        self._pages = detector.new_pages(capacity)
        self._known = np.zeros(max(1, capacity), np.bool_)
        self._tally = np.zeros(3, np.int64)

    def follow(self, champion: Rows, rows: NDArray[np.int32]) -> None:
        """Before the champion learns samples of these rows, which it has brought over: those that are new here are made from its own."""
        fresh = np.unique(rows[~self._known[rows]])
        if len(fresh):
            same = champion.detector.model.hash == self.detector.model.hash
            layout: Sequence[tuple[str, str, int, int]] = described(champion.pages.layout)
            self._pages.buffer[fresh] = self.detector.taken_over(champion.pages.buffer[fresh], layout, same_model=same)
            self._known[fresh] = True

    def score(self, batch: SampleBatch, verdicts: Verdicts, budget_per_day: float, correction: float) -> Disagreement:
        """What it says of samples that the champion has judged, against that."""
        own = self.detector.step(self._pages, batch, self.detector.threshold_at(budget_per_day, correction), self._tally)
        counted = ((verdicts.flags | own.flags) & (WARMUP | LATE | REPEATED)) == 0
        champion, challenger = verdicts.score[counted], own.score[counted]
        apart = np.log10(np.maximum(challenger, LEAST_SCORE)) - np.log10(np.maximum(champion, LEAST_SCORE))
        return Disagreement(
            len(champion),
            int(np.count_nonzero((champion >= 1) & (challenger >= 1))),
            int(np.count_nonzero((champion >= 1) & ~(challenger >= 1))),
            int(np.count_nonzero(~(champion >= 1) & (challenger >= 1))),
            float(np.abs(apart).sum()),
        )

    def clear(self, rows: NDArray[np.int32]) -> None:
        """Series in these rows are no more."""
        self._known[rows] = False
