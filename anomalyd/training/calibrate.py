"""How much evidence means how many false alarms: the one number that turns an alert budget into a threshold.

The detector runs over generated calm series that training never saw; openings of episodes are counted at many thresholds, and a straight
line is laid through log10 of their rate in typical series. Rates beyond what was counted are extrapolated along it, as tails of evidence
fall exponentially.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, SampleBatch
from anomalyd.detector import Artifact, Calibration, Detector
from anomalyd.errors import ArtifactError

QUIET_SAMPLES: Final = 10
"""Samples below the threshold that end an episode; the default of the alert policy."""
RATES: Final = (5e-5, 2e-3)
"""Openings per sample between which the line is laid: enough events to count, few enough to be alarms."""
TYPICAL: Final = 0.9
"""Share of the series that the line is laid for: at each threshold the noisiest tenth is left out, or it alone would decide."""
CALM_TO_REAL: Final = 2.3
"""Generated calm series alarm so many times as often as real ones between their incidents, single metrics of public sets (half of them; see
docs/detection.md): they are made to be awkward."""
CALM_TO_REAL_SEVERAL: Final = 3.0
"""The same for entities with several features, between what the choosing halves of three public sets say, which lie far apart."""
START: Final = 250
"""Samples of each series that are left out: full confidence comes with age."""


Progress = Callable[[int, int], None]
"""Told after each step of all series how many are done, of how many."""


def on_cpu(artifact: Artifact) -> Detector:
    """The detector of an artifact, by the compiled step."""
    return Detector(artifact, "cpu")


def calibrate(
    artifact: Artifact,
    values: NDArray[np.float64],
    step_ms: NDArray[np.float64],
    make: Callable[[Artifact], Detector] = on_cpu,
    progress: Progress | None = None,
) -> Calibration:
    """Lays the line for an artifact, of which `make` makes the detector, from calm series (N, T, F) sampled every step_ms (N,).

    `progress` is told of each of the T steps.

    Raises ArtifactError when the detector hardly alarms or alarms all the time, so that no line can be laid.
    """
    neutral = replace(artifact, calibration=Calibration(0.0, 1.0, 1.0))
    streamed = stream(make(neutral), values, step_ms, progress)
    return line(streamed.evidence, streamed.armed)


def realistic(calibration: Calibration, rarer: float = CALM_TO_REAL) -> Calibration:
    """The line for real series, which alarm so many times rarer, from the one that generated calm series gave."""
    return replace(calibration, intercept=round(calibration.intercept - math.log10(rarer), 4))


def realistic_several(calibration: Calibration) -> Calibration:
    """The same for entities with several features. The line is steep, so its lowest threshold moves with it."""
    lowest = round(calibration.lowest - math.log10(CALM_TO_REAL_SEVERAL) / calibration.slope, 4)
    return replace(realistic(calibration, CALM_TO_REAL_SEVERAL), lowest=lowest)


def line(evidence: NDArray[np.float64], armed: NDArray[np.bool_]) -> Calibration:
    """Lays the line through what calm series gave: evidence, and where an episode may open, (T, N). Raises ArtifactError as above."""
    thresholds = np.arange(1.0, 40.0, 0.25)
    typical = max(1, round(TYPICAL * evidence.shape[1]))
    rates = np.array([np.sort(openings(evidence, armed, t)[START:].mean(axis=0))[:typical].mean() for t in thresholds])
    usable = (rates >= RATES[0]) & (rates <= RATES[1]) & (thresholds >= thresholds[np.argmax(rates)])
    if usable.sum() < 3:
        msg = f"cannot calibrate: episodes open at {rates.min():.1e} to {rates.max():.1e} per sample"
        raise ArtifactError(msg)
    slope, intercept = np.polyfit(thresholds[usable], np.log10(rates[usable]), 1)
    return Calibration(intercept=round(float(intercept), 4), slope=round(float(-slope), 4), lowest=float(thresholds[usable][0]))


def openings(evidence: NDArray[np.float64], armed: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """Where episodes open at a threshold: armed, and nothing above it in the QUIET_SAMPLES before. All arrays (T, N)."""
    above = evidence >= threshold
    so_far = np.cumsum(above, axis=0)
    before = np.vstack([np.zeros_like(so_far[:1]), so_far[:-1]])
    long_ago = np.vstack([np.zeros_like(so_far[: QUIET_SAMPLES + 1]), so_far[: -QUIET_SAMPLES - 1]])
    opened: NDArray[np.bool_] = above & armed & (before == long_ago)
    return opened


class Streamed(NamedTuple):
    """What became of series that were streamed side by side, each (T, N)."""

    evidence: NDArray[np.float64]
    score: NDArray[np.float64]
    armed: NDArray[np.bool_]
    """Where an episode may open."""


def stream(detector: Detector, values: NDArray[np.float64], step_ms: NDArray[np.float64], progress: Progress | None = None) -> Streamed:
    """Steps the detector over series from their first sample on: values (N, T, F) sampled every step_ms (N,)."""
    count, samples, _ = values.shape
    pages = detector.new_pages(count)
    rows = np.arange(count, dtype=np.int32)
    found = Streamed(np.empty((samples, count)), np.empty((samples, count)), np.empty((samples, count), bool))
    for t in range(samples):
        verdicts = detector.step(pages, SampleBatch(rows, (step_ms * t).astype(np.int64), np.ascontiguousarray(values[:, t]), rows))
        found.evidence[t], found.score[t], found.armed[t] = verdicts.evidence, verdicts.score, verdicts.flags & ARMED > 0
        if progress:
            progress(t + 1, samples)
    return found
