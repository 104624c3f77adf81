"""What the baselines compute sample by sample, compiled: statistics of the past, and the calibration of a raw score.

Every function takes its state as arrays, scores each sample against what came before it and then learns it, so that nothing depends on
how a series is cut into calls. Letters: n samples, F features. Values lie within ± VALUE_LIMIT of the recipe, so that squares are finite.
"""

import math

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP
from anomalyd.detector import recipe as R  # noqa: N812 - constants, named on every other line
from anomalyd.detector.step_cpu import evidence, floored_sd, length_term
from anomalyd.jit import njit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAD_SD = 1.4826
"""Standard deviations in a median absolute deviation of normal noise."""
MEAN_SD = 1.2533
"""Likewise in a mean absolute deviation."""
LIMIT = 1e6
"""No z is larger."""
LEAST = 10
"""Samples before statistics say anything."""
TOP = 5
"""Of many features, those that stand out most make the score: an incident touches few."""

_F4 = np.float32
_LOG10 = 1.0 / math.log(10.0)
_DECAY = math.exp(-1.0 / R.ENVELOPE_SAMPLES)


@njit
def _median(ordered: Floats) -> float:
    n = len(ordered)
    return float(0.5 * ordered[(n - 1) // 2] + 0.5 * ordered[n // 2])


@njit
def _deviation(ordered: Floats, centre: float, k: int) -> float:
    """The k-th smallest distance to `centre`, k from 1: the k nearest values lie side by side, and bisection finds where they begin."""
    low, high = 0, len(ordered) - k
    while low < high:
        middle = (low + high) // 2
        if centre - ordered[middle] > ordered[middle + k] - centre:
            low = middle + 1
        else:
            high = middle
    return float(max(centre - ordered[low], ordered[low + k - 1] - centre))


@njit
def _put(ordered: Floats, at: int, new: float) -> None:
    """Puts `new` in the place of the value at `at`, and then where it belongs."""
    while at + 1 < len(ordered) and ordered[at + 1] < new:
        ordered[at] = ordered[at + 1]
        at += 1
    while at > 0 and ordered[at - 1] > new:
        ordered[at] = ordered[at - 1]
        at -= 1
    ordered[at] = new


@njit
def _spread(ordered: Floats, centre: float) -> float:
    """One standard deviation by the median absolute deviation; where that is zero, by the mean one."""
    n = len(ordered)
    mad = 0.5 * _deviation(ordered, centre, (n + 1) // 2) + 0.5 * _deviation(ordered, centre, n // 2 + 1)
    if mad > 0.0:
        return MAD_SD * mad
    total = 0.0
    for x in ordered:
        total += abs(x - centre)
    return MEAN_SD * total / n


@njit
def window_z(value: Floats, ring: Floats, ordered: Floats, count: Integers, z: Floats, centre: Floats, spread: Floats) -> None:
    """Distance of `value` (n, F) to the median of the last W values, in standard deviations by their median absolute deviation.

    Where more than half of the values are equal that deviation is zero, and the mean absolute deviation takes its place (Iglewicz and
    Hoaglin, How to detect and handle outliers, 1993).

    Args:
        value: the samples.
        ring: state, the last W values as they came, (F, W).
        ordered: state, the same in ascending order, (F, W).
        count: state, samples so far, (1,).
        z: result, signed, (n, F).
        centre: result, the median, (n, F).
        spread: result, one standard deviation, (n, F).
    """
    features, window = ring.shape
    for i in range(len(value)):
        size = min(count[0], window)
        slot = count[0] % window
        full = size == window
        for k in range(features):
            x = value[i, k]
            centre[i, k] = x
            z[i, k] = spread[i, k] = 0.0
            if size:
                known = ordered[k, :size]
                middle = _median(known)
                centre[i, k] = middle
                if size >= LEAST:
                    spread[i, k] = _spread(known, middle)
                    z[i, k] = min(max((x - middle) / (spread[i, k] + floored_sd(0.0, middle)), -LIMIT), LIMIT)
            if full:
                _put(ordered[k], np.searchsorted(ordered[k], ring[k, slot]), x)
            else:
                _put(ordered[k, : size + 1], size, x)
            ring[k, slot] = x
        count[0] += 1


@njit
def strongest(z: Floats, raw: Floats) -> None:
    """Writes the mean of the TOP largest |z| (n, F) of each sample into `raw` (n,)."""
    size = min(TOP, z.shape[1])
    best = np.zeros(size)
    for i in range(len(z)):
        best[:] = 0.0
        for k in range(z.shape[1]):
            x = abs(z[i, k])
            at = size
            while at > 0 and best[at - 1] < x:
                if at < size:
                    best[at] = best[at - 1]
                at -= 1
            if at < size:
                best[at] = x
        raw[i] = best.mean()


@njit
def smoothed(raw: Floats, level: Floats, span: float) -> None:
    """Replaces `raw` (n,) by its exponentially weighted mean over a span; `level` (1,) is the state."""
    for i in range(len(raw)):
        level[0] += (raw[i] - level[0]) * 2.0 / (span + 1.0)
        raw[i] = level[0]


@njit
def daily_residual(
    value: Floats,
    bin_: Integers,
    days: Floats,
    filled: Integers,
    mean: Floats,
    current: Floats,
    count: Integers,
    expected: Floats,
) -> None:
    """What is usual at the time of day of each sample: the median over the last days of the mean in its part of the day.

    Where that part of the day was not seen yet, the mean of all samples so far; for the first one itself.

    Args:
        value: the samples, (n, F).
        bin_: part of the day that each lies in, (n,).
        days: state, the means of the last D days, (B, D, F).
        filled: state, how often a mean was put there, (B,).
        mean: state, of all samples, (F,).
        current: state, sum over the part of the day that goes on, (F,).
        count: state, samples in all, samples in that part, that part, (3,).
        expected: result, (n, F).
    """
    features, kept = value.shape[1], days.shape[1]
    scratch = np.empty(kept)
    for i in range(len(value)):
        b = bin_[i]
        if count[1] and count[2] != b:
            past = count[2]
            days[past, filled[past] % kept] = current / count[1]
            filled[past] += 1
            current[:] = 0.0
            count[1] = 0
        count[2] = b
        size = min(filled[b], kept)
        for k in range(features):
            if size:
                ordered = scratch[:size]
                ordered[:] = days[b, :size, k]
                ordered.sort()
                expected[i, k] = _median(ordered)
            else:
                expected[i, k] = mean[k] if count[0] else value[i, k]
            mean[k] += (value[i, k] - mean[k]) / (count[0] + 1)
            current[k] += value[i, k]
        count[0] += 1
        count[1] += 1


@njit
def standardised(value: Floats, mean: Floats, variance: Floats, count: Integers, memory: float, limit: float, z: Floats) -> None:
    """Distance of `value` (n, F) to the mean so far in standard deviations, within ± limit, by the rule of the detector's own front end.

    Plain averages while younger than `memory` samples, exponentially weighted after; a sample moves them by a few standard deviations
    only. `mean` and `variance` (F,) and `count` (1,) are the state, `z` (n, F) the result.
    """
    for i in range(len(value)):
        weight = 1.0 / min(count[0] + 1.0, memory)
        for k in range(value.shape[1]):
            difference = value[i, k] - mean[k]
            sd = floored_sd(variance[k], mean[k])
            z[i, k] = min(max(difference / sd, -limit), limit) if count[0] >= 2 else 0.0
            if count[0] >= LEAST:
                most = min(max(R.CLIP_SD * sd, R.CLIP_SHARE * abs(difference)), R.CLIP_FAR * sd)
                difference = min(max(difference, -most), most)
            mean[k] += weight * difference
            variance[k] = (1.0 - weight) * (variance[k] + weight * difference * difference)
        count[0] += 1


@njit
def _order(
    now: int,
    x: Floats,
    time: Integers,
    last: Floats,
    age: NDArray[np.int32],
    late_run: NDArray[np.int32],
    step_ms: NDArray[np.float32],
) -> int:
    """LATE or REPEATED, by the detector's rules, if a sample is; keeps the usual step."""
    dt = now - time[0] if age[0] > 0 else np.int64(0)
    if dt < 0:
        late_run[0] += 1
        if late_run[0] < R.LATE_RUN:
            return LATE
        late_run[0] = 0
        return 0
    late_run[0] = 0
    if age[0] > 0 and dt == 0 and np.all(x == last):
        return REPEATED
    if dt > 0:
        change = _F4(dt) - step_ms[0]
        if step_ms[0] > 0.0:
            change = min(max(change, _F4(-0.5) * step_ms[0]), _F4(0.5) * step_ms[0]) / _F4(16.0)
        step_ms[0] += change
    return 0


@njit
def judge(
    raw: Floats,
    time_ms: Integers,
    value: Floats,
    blind: int,
    line: Floats,
    time: Integers,
    last: Floats,
    age: NDArray[np.int32],
    late_run: NDArray[np.int32],
    step_ms: NDArray[np.float32],
    envelope: NDArray[np.float32],
    mean: Floats,
    variance: Floats,
    histogram: NDArray[np.int16],
    cluster: NDArray[np.int16],
    score: Floats,
    flags: NDArray[np.uint8],
    found: Floats,
) -> None:
    """What the detector does with the error of several features, done with the raw score of a baseline of one series.

    The score is standardised by its own past, its tail evidence taken from the same histogram, and compared with the threshold that the
    alert budget asks for; warm-up, late and repeated samples and the refractory envelope go by the same rules.

    Args:
        raw: the score, (n,).
        time_ms: event times, (n,).
        value: the samples, (n, F).
        blind: samples of a series that `raw` says nothing about.
        line: log10 of the budget per ms, intercept, slope and lowest threshold, (4,).
        time: field of the state row, as all up to `cluster`.
        last: likewise.
        age: likewise.
        late_run: likewise.
        step_ms: likewise.
        envelope: likewise.
        mean: likewise; of the score.
        variance: likewise.
        histogram: likewise.
        cluster: likewise.
        score: result, (n,).
        flags: result, (n,).
        found: result, the evidence, (n,).
    """
    for i in range(len(raw)):
        flag = _order(time_ms[i], value[i], time, last, age, late_run, step_ms)
        known = max(age[0] - blind, 0)
        sd = math.sqrt(variance[0]) + 1e-12
        difference = raw[i] - mean[0]
        standard = min(max(difference / sd, -R.JOINT_LIMIT), R.JOINT_LIMIT) if known >= 2 else 0.0
        found[i] = score[i] = 0.0
        if age[0] >= blind:
            channel = histogram.copy() if flag else histogram
            found[i], size = evidence(channel, _F4(max(standard + 1.0, 1e-3)), known, length_term(known), cluster[0])
            if not flag:
                cluster[0] = size
        if known < R.WARMUP_SAMPLES:
            flag |= WARMUP
        else:
            log10_rate = line[0] + math.log(max(step_ms[0], R.TRIAL_MS)) * _LOG10
            score[i] = found[i] / max((line[1] - log10_rate) / line[2], line[3])
            if score[i] > envelope[0]:
                flag |= ARMED
            if not flag & (LATE | REPEATED):
                envelope[0] = max(_F4(score[i]), envelope[0] * _F4(_DECAY))
        flags[i] = flag
        if flag & (LATE | REPEATED):
            continue
        if age[0] >= blind:
            weight = 1.0 / min(known + 1.0, R.JOINT_SCALER_SAMPLES)
            if known >= LEAST:
                difference = min(max(difference, -R.CLIP_SD * sd), R.CLIP_SD * sd)
            mean[0] += weight * difference
            variance[0] = (1.0 - weight) * (variance[0] + weight * difference * difference)
        age[0] += 1
        time[0] = time_ms[i]
        last[:] = value[i]
