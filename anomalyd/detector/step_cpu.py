"""The step on the CPU: the recipe compiled with numba, sample after sample.

`step_torch` states the same mathematics readably in batched tensor operations; a test holds the two together. Here a sample
goes through scalar code from front to end, so scores and state bytes cannot depend on what else is in the batch.

Every function works on `row`, a flat view of all rows per element type, and on `at`, where the series' row begins in it.
The factory `build_step` turns the artifact's shape into constants, which is what lets the compiler unroll the inner loops.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba types kernels by their arguments; they take columns, not objects

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP, SampleBatch, Verdicts
from anomalyd.detector import recipe as R  # noqa: N812 - constants, named on every other line
from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import ALIGNMENT, Layout
from anomalyd.detector.pages import Pages
from anomalyd.intrinsics import prefetch
from anomalyd.jit import njit

F4 = np.float32

# Rational approximation of tanh on [-7.9, 7.9] (the minimax polynomial of the Eigen library), exact to 2 units in the last
# place there and, unlike libm's, open to vectorisation.
_A1, _A3, _A5, _A7 = F4(4.89352455891786e-03), F4(6.37261928875436e-04), F4(1.48572235717979e-05), F4(5.12229709037114e-08)
_A9, _A11, _A13 = F4(-8.60467152213735e-11), F4(2.00018790482477e-13), F4(-2.76076847742355e-16)
_B0, _B2, _B4, _B6 = F4(4.89352518554385e-03), F4(2.26843463243900e-03), F4(1.18534705686654e-04), F4(1.19825839466702e-06)
_TANH_LIMIT = F4(7.90531110763549805)
_HALF = F4(0.5)
_ONE = F4(1.0)
_ZERO = F4(0.0)
_LOG10 = F4(1.0 / math.log(10.0))
AHEAD = 2
"""Samples whose rows are already on their way to the cache while one is stepped."""


@njit(forceinline=True)
def tanh(x):
    """Hyperbolic tangent in single precision."""
    x = min(max(x, -_TANH_LIMIT), _TANH_LIMIT)
    s = x * x
    p = _A13
    p = p * s + _A11
    p = p * s + _A9
    p = p * s + _A7
    p = p * s + _A5
    p = p * s + _A3
    p = p * s + _A1
    q = _B6
    q = q * s + _B4
    q = q * s + _B2
    q = q * s + _B0
    return x * p / q


@njit(forceinline=True)
def scaled(x, mean, sd):
    """Asinh of the standardised value, within ± INPUT_LIMIT: linear near zero, logarithmic far out."""
    r = abs(x - mean) / sd
    u = min(F4(math.log(F4(r + math.sqrt(r * r + 1.0)))), F4(R.INPUT_LIMIT))
    return u if x >= mean else -u


@njit(forceinline=True)
def unscaled(u, mean, sd):
    """The value whose scaled form is u."""
    e = F4(math.exp(min(max(u, -F4(R.BAND_LIMIT)), F4(R.BAND_LIMIT))))
    return mean + sd * 0.5 * (e - 1.0 / e)


@njit(forceinline=True)
def floored_sd(variance, mean):
    """Standard deviation, never below what is float noise at this level."""
    return max(math.sqrt(variance), R.RELATIVE_FLOOR * abs(mean), R.ABSOLUTE_FLOOR)


@njit
def evidence(i2, at, error, age, length_term):
    """How surprising `error` is after all the errors of this channel so far; then learns it.

    Tail probability p from a decayed histogram of the log error, extrapolated by an exponential (that is, Pareto in the
    error) tail above the 90 % quantile; evidence is -log10 p, less a term that grows with the length of the history.
    """
    position = (F4(math.log(error + F4(1e-6))) - F4(R.BIN_LOW)) / F4(R.BIN_WIDTH)
    inside = min(max(position, _ZERO), F4(R.BINS) - F4(1e-3))
    bin_ = int(inside)
    total = 0
    for k in range(R.BINS):
        total += i2[at + k]
    result = _ZERO
    if age >= R.EVIDENCE_AGE and total > 0:
        # the quantile's bin: the first from the top at which the share above reaches TAIL_SHARE
        need = F4(R.TAIL_SHARE) * F4(total)
        above = 0
        k = R.BINS - 1
        while k > 0 and F4(above + i2[at + k]) < need:
            above += i2[at + k]
            k -= 1
        part = (need - F4(above)) / F4(max(i2[at + k], 1))
        edge = F4(k + 1) - min(part, _ONE)  # position of the quantile, in bins
        if position > edge:
            mass = F4(R.TAIL_PRIOR_COUNT * R.HISTOGRAM_UNIT)
            excess = mass * F4(R.TAIL_PRIOR_MEAN / R.BIN_WIDTH)
            for j in range(k, R.BINS):
                beyond = F4(j) + _HALF - edge
                if beyond > _ZERO:
                    count = F4(i2[at + j])
                    mass += count
                    excess += count * beyond
            log10p = -_ONE - (position - edge) * mass / max(excess, F4(1e-6)) * _LOG10
        else:
            # inside the body: the share above, the own bin in proportion
            higher = 0
            for j in range(bin_ + 1, R.BINS):
                higher += i2[at + j]
            share = (F4(higher) + F4(i2[at + bin_]) * (F4(bin_ + 1) - inside)) / F4(total)
            log10p = F4(math.log(max(share, F4(R.TAIL_SHARE)))) * _LOG10
        result = min(max(-log10p - length_term, _ZERO), F4(R.EVIDENCE_LIMIT))
    if age % R.HISTOGRAM_HALVING == R.HISTOGRAM_HALVING - 1:
        for k in range(R.BINS):
            i2[at + k] = i2[at + k] >> 1
    i2[at + bin_] += R.HISTOGRAM_UNIT
    return result


@njit(forceinline=True)
def length_term(age):
    """What evidence must exceed beyond a fixed probability: half a decade for every decade of history."""
    length = min(F4(age + R.EVIDENCE_AGE), F4(R.HISTOGRAM_SAMPLES))
    return F4(R.LENGTH_COEFFICIENT) * (F4(math.log(length)) * _LOG10 - F4(3.0))


@njit(forceinline=True)
def fixed(x):
    """To 1/2048 fixed point, saturating; floor(x + 1/2), so that every backend rounds alike."""
    return np.int16(min(max(math.floor(x * F4(R.FIXED_POINT) + _HALF), F4(-32767.0)), F4(32767.0)))


@njit
def novelty(v, size, mean_at, variance_at, centre_at, weight_at, f4, i2, distances, age):
    """Distance of v (size,) to the nearest prototype of this series, in units of each dimension's own spread; then learns it.

    A new prototype counts as normal at once. Centres lie dimension by dimension, so that all distances are computed side by side.
    """
    inverse = F4(1.0 / R.FIXED_POINT)
    for p in range(R.PROTOTYPES):
        distances[p] = _ZERO
    for j in range(size):
        weight = _ONE / (f4[variance_at + j] + F4(1e-4))
        x = v[j]
        base = centre_at + j * R.PROTOTYPES
        for p in range(R.PROTOTYPES):
            e = x - F4(i2[base + p]) * inverse
            distances[p] += e * e * weight
    best = F4(1e30)
    nearest = -1
    lightest = 0
    free = -1
    for p in range(R.PROTOTYPES):
        if i2[weight_at + p] == 0:
            free = p  # prototypes fill from the front: beyond the first free one all are
            break
        if i2[weight_at + p] < i2[weight_at + lightest]:
            lightest = p
        if distances[p] < best:
            best = distances[p]
            nearest = p
    distance = F4(math.sqrt(best / F4(size))) if nearest >= 0 else _ZERO

    fresh = -1
    if free >= 0:
        if nearest < 0 or distance > F4(R.PROTOTYPE_NEW):
            fresh = free
    elif distance > F4(R.PROTOTYPE_REPLACE):
        fresh = lightest
    if fresh >= 0:
        for j in range(size):
            i2[centre_at + j * R.PROTOTYPES + fresh] = fixed(v[j])
        i2[weight_at + fresh] = R.PROTOTYPE_UNIT
    else:
        weight_now = i2[weight_at + nearest] + R.PROTOTYPE_UNIT
        rate = max(F4(R.PROTOTYPE_UNIT) / F4(weight_now), F4(R.PROTOTYPE_RATE))
        for j in range(size):
            k = centre_at + j * R.PROTOTYPES + nearest
            old = F4(i2[k]) * inverse
            i2[k] = fixed(old + rate * (v[j] - old))
        i2[weight_at + nearest] = weight_now
    if age % R.PROTOTYPE_HALVING == R.PROTOTYPE_HALVING - 1:
        for p in range(R.PROTOTYPES):
            if i2[weight_at + p] > 1:
                i2[weight_at + p] = i2[weight_at + p] >> 1

    share = max(_ONE / F4(age + 1), F4(1.0 / R.PROTOTYPE_SAMPLES))
    for j in range(size):
        e = v[j] - f4[mean_at + j]
        f4[mean_at + j] += share * e
        f4[variance_at + j] = (_ONE - share) * (f4[variance_at + j] + share * e * e)
    return distance


@njit
def cell(w, weights_at, x, x_at, inputs, f4, h_at, c_at, units, gates):
    """One LSTM layer: f4[h_at:], f4[c_at:] become the next h and c for the input x[x_at : x_at + inputs].

    Gates i, f, g, o as in torch: c = f * c + i * g, h = o * tanh(c). `w` from `weights_at`: input rows, recurrent rows, bias,
    each of 4 * units.
    """
    width = 4 * units
    bias = weights_at + (inputs + units) * width
    for j in range(width):
        gates[j] = w[bias + j]
    at = weights_at
    for k in range(inputs):
        a = x[x_at + k]
        for j in range(width):
            gates[j] += a * w[at + j]
        at += width
    k = 0
    while k + 8 <= units:  # eight rows at a time: each sum is loaded and stored an eighth as often
        a, b, c, d = f4[h_at + k], f4[h_at + k + 1], f4[h_at + k + 2], f4[h_at + k + 3]
        e, f, g, h = f4[h_at + k + 4], f4[h_at + k + 5], f4[h_at + k + 6], f4[h_at + k + 7]
        for j in range(width):
            gates[j] += (
                (a * w[at + j] + b * w[at + width + j])
                + (c * w[at + 2 * width + j] + d * w[at + 3 * width + j])
                + (e * w[at + 4 * width + j] + f * w[at + 5 * width + j])
                + (g * w[at + 6 * width + j] + h * w[at + 7 * width + j])
            )
        at += 8 * width
        k += 8
    while k < units:
        a = f4[h_at + k]
        for j in range(width):
            gates[j] += a * w[at + j]
        at += width
        k += 1
    for j in range(2 * units):
        gates[j] = _HALF * tanh(_HALF * gates[j]) + _HALF
    for j in range(2 * units, 3 * units):
        gates[j] = tanh(gates[j])
    for j in range(3 * units, width):
        gates[j] = _HALF * tanh(_HALF * gates[j]) + _HALF
    for j in range(units):
        state = gates[units + j] * f4[c_at + j] + gates[j] * gates[2 * units + j]
        f4[c_at + j] = state
        f4[h_at + j] = gates[3 * units + j] * tanh(state)


@njit(forceinline=True)
def dot(w, at, bias, x, x_at, n):
    """w[at:at+n] . x[x_at:x_at+n] + w[bias], in eight running sums: a single one would wait for itself n times."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
    k = 0
    while k + 8 <= n:
        i, j = at + k, x_at + k
        s0 += w[i] * x[j]
        s1 += w[i + 1] * x[j + 1]
        s2 += w[i + 2] * x[j + 2]
        s3 += w[i + 3] * x[j + 3]
        s4 += w[i + 4] * x[j + 4]
        s5 += w[i + 5] * x[j + 5]
        s6 += w[i + 6] * x[j + 6]
        s7 += w[i + 7] * x[j + 7]
        k += 8
    s = w[bias]
    while k < n:
        s += w[at + k] * x[x_at + k]
        k += 1
    return s + (((s0 + s4) + (s1 + s5)) + ((s2 + s6) + (s3 + s7)))


def build_step(layout: Layout) -> Callable[..., None]:
    """Compiles the step for one row layout. The constants below become immediate values in the machine code."""
    shape = layout.shape
    F, H, L, Z = shape.features, shape.units, shape.layers, shape.latent
    NETWORKS, INPUTS = shape.networks, shape.inputs
    JOINT = shape.joint
    OUT = F if JOINT else 1
    SINGLE = F == 1
    A_SIZE = 1 + Z
    ROW = layout.row_bytes
    TIME = layout["time"].first
    LAST, SEEN, MEAN, VARIANCE, STEP_SIZE = (layout[n].first for n in ("last", "seen", "mean", "variance", "step_size"))
    LOW, HIGH = layout["low"].first, layout["high"].first
    AGE, BORN, LATE_RUN = layout["age"].first, layout["born"].first, layout["late_run"].first
    RISES, FALLS, KIND = layout["rises"].first, layout["falls"].first, layout["kind"].first
    STEP_MS, ENVELOPE, SMOOTH = layout["step_ms"].first, layout["envelope"].first, layout["smooth"].first
    FORECAST, ERROR = layout["forecast"].first, layout["error"].first
    ERROR_MEAN, ERROR_VARIANCE = layout["error_mean"].first, layout["error_variance"].first
    A_MEAN, A_VARIANCE = layout["a_mean"].first, layout["a_variance"].first
    B_MEAN, B_VARIANCE = layout["b_mean"].first, layout["b_variance"].first
    EH, EC, DH, DC = (layout[n].first for n in ("encoder_h", "encoder_c", "decoder_h", "decoder_c"))
    A_CENTRE, A_WEIGHT = layout["a_centre"].first, layout["a_weight"].first
    B_CENTRE, B_WEIGHT = layout["b_centre"].first, layout["b_weight"].first
    HISTOGRAM, RECENT = layout["histogram"].first, layout["recent"].first
    EPISODE = layout["episode"].offset
    SCALER = R.SCALER_SAMPLES if SINGLE else R.JOINT_SCALER_SAMPLES
    # where the parts of the packed weights begin: see weights.pack
    FIRST_CELL = (INPUTS + H + 1) * 4 * H
    NEXT_CELL = (2 * H + 1) * 4 * H
    CODE = FIRST_CELL + (L - 1) * NEXT_CELL
    CODE_BIAS = CODE + Z * H
    DECODER = CODE_BIAS + Z
    FIRST_DECODER_CELL = (Z + H + 1) * 4 * H
    NEWEST = DECODER + FIRST_DECODER_CELL + (L - 1) * NEXT_CELL
    NEWEST_BIAS = NEWEST + OUT * H
    NEXT = NEWEST_BIAS + OUT
    NEXT_BIAS = NEXT + OUT * H

    @njit
    def restart(u1, at, f8, i4, f4, i8):
        """Forgets what was learned about the values, but neither time, step, kind nor the open episode."""
        a8, a4 = at // 8, at // 4
        time, step, late_run = i8[a8 + TIME], f4[a4 + STEP_MS], i4[a4 + LATE_RUN]
        kind, last = i4[a4 + KIND], f8[a8 + LAST]
        u1[at : at + EPISODE] = 0
        i8[a8 + TIME], f4[a4 + STEP_MS], i4[a4 + LATE_RUN] = time, step, late_run
        i4[a4 + KIND], f8[a8 + LAST] = kind, last

    @njit
    def judged(x, k, dt, at, u1, f8, i8, f4, i4):
        """The value to judge: x itself, or for a counter its increase per second; decides which of the two a series is.

        A counter that falls below half its value was restarted, and its new value is the increase; one that falls by less
        was no counter after all.
        """
        a8, a4 = at // 8, at // 4
        x = min(max(x, -R.VALUE_LIMIT), R.VALUE_LIMIT)
        last = f8[a8 + LAST + k]
        kind = i4[a4 + KIND + k]
        if i4[a4 + BORN + k] > 0 and kind == 0:
            if x > last:
                i4[a4 + RISES + k] += 1
            elif x < last:
                i4[a4 + FALLS + k] += 1 if 0.0 <= x < 0.5 * last else R.COUNTER_AGE
            if i4[a4 + BORN + k] == R.COUNTER_AGE:
                kind = 2 if i4[a4 + FALLS + k] <= 1 and 2 * i4[a4 + RISES + k] >= R.COUNTER_AGE and last >= 0.0 else 1
                i4[a4 + KIND + k] = kind
                if kind == 2:
                    if SINGLE:
                        restart(u1, at, f8, i4, f4, i8)
                    i4[a4 + BORN + k] = 0
        if kind == 2:
            increase = x - last
            if increase < 0.0:
                if x < 0.5 * last:
                    increase = x
                else:
                    i4[a4 + KIND + k] = 1
                    if SINGLE:
                        restart(u1, at, f8, i4, f4, i8)
                    i4[a4 + BORN + k] = 0
                    return x
            seconds = (dt if dt > 0 else max(F4(1.0), f4[a4 + STEP_MS])) / 1000.0
            return min(increase / seconds, R.VALUE_LIMIT)
        return x

    @njit
    def front(y, k, gap, at, f8, f4, i4, inputs, expected, low, high, i):
        """Scales one judged value with the statistics before it, writes the network's inputs and the expectation; then learns it.

        Returns the evidence of the range guard.
        """
        a8, a4 = at // 8, at // 4
        n = i4[a4 + BORN + k]
        u = d = _ZERO
        guard = _ZERO
        mean, variance = f8[a8 + MEAN + k], f8[a8 + VARIANCE + k]
        if n == 0:
            f8[a8 + MEAN + k] = y
            f8[a8 + VARIANCE + k] = 0.0
            f8[a8 + STEP_SIZE + k] = 0.0
            f8[a8 + LOW + k] = y
            f8[a8 + HIGH + k] = y
            f4[a4 + FORECAST + k] = _ZERO
            f4[a4 + ERROR + k] = _ZERO
            expected[i, k] = y
            low[i, k] = y
            high[i, k] = y
        else:
            sd = floored_sd(variance, mean)
            u = scaled(y, mean, sd)
            difference = 0.0 if gap else y - f8[a8 + SEEN + k]
            step_size = f8[a8 + STEP_SIZE + k]
            scale = max(step_size, R.RELATIVE_FLOOR * abs(mean), R.ABSOLUTE_FLOOR)
            d = scaled(difference, 0.0, scale)

            forecast, error = f4[a4 + FORECAST + k], f4[a4 + ERROR + k]
            expected[i, k] = unscaled(forecast, mean, sd)
            low[i, k] = unscaled(forecast - F4(R.BAND_ERRORS) * error, mean, sd)
            high[i, k] = unscaled(forecast + F4(R.BAND_ERRORS) * error, mean, sd)
            f4[a4 + ERROR + k] += max(_ONE / F4(n), F4(1.0 / R.ERROR_SAMPLES)) * (abs(u - forecast) - error)

            lowest, highest = f8[a8 + LOW + k], f8[a8 + HIGH + k]
            span = max(highest - lowest, R.RELATIVE_FLOOR * abs(mean), R.ABSOLUTE_FLOOR)
            excess = max(y - highest, lowest - y) / span
            if n >= R.EVIDENCE_AGE and excess > R.GUARD_TOLERANCE:
                guard = F4(min(R.GUARD_EVIDENCE + math.log10(1.0 + excess), R.EVIDENCE_LIMIT))
            f8[a8 + LOW + k] = min(lowest + (mean - lowest) / R.GUARD_SAMPLES, y)
            f8[a8 + HIGH + k] = max(highest + (mean - highest) / R.GUARD_SAMPLES, y)

            share = 1.0 / min(n + 1.0, SCALER)
            delta = y - mean
            limit = max(R.CLIP_SD * sd, R.CLIP_SHARE * abs(delta))
            if n >= 10:
                delta = min(max(delta, -limit), limit)
            f8[a8 + MEAN + k] = mean + share * delta
            f8[a8 + VARIANCE + k] = (1.0 - share) * (variance + share * delta * delta)
            size = abs(difference)
            if n >= 10:
                size = min(size, max(R.CLIP_SD * scale, R.CLIP_SHARE * size))
            f8[a8 + STEP_SIZE + k] = step_size + (size - step_size) * (1.0 / min(float(n), SCALER))
        f8[a8 + SEEN + k] = y
        i4[a4 + BORN + k] = n + 1
        if JOINT:
            inputs[k] = u
        else:
            inputs[2 * k] = u
            inputs[2 * k + 1] = d
        return guard

    @njit
    def network(w, inputs, at, f4, i2, age, gates, z, newest):
        """Advances every recurrent state of the row by one sample; newest[k] becomes the reconstruction of u, FORECAST the next u."""
        a4 = at // 4
        ring = at // 2 + RECENT + (age % R.RECENT) * NETWORKS * INPUTS
        for j in range(NETWORKS * INPUTS):
            i2[ring + j] = fixed(inputs[j])
        for n in range(NETWORKS):
            own = a4 + n * L * H
            cell(w, 0, inputs, n * INPUTS, INPUTS, f4, own + EH, own + EC, H, gates)
            for layer in range(1, L):
                cell(
                    w,
                    FIRST_CELL + (layer - 1) * NEXT_CELL,
                    f4,
                    own + EH + (layer - 1) * H,
                    H,
                    f4,
                    own + EH + layer * H,
                    own + EC + layer * H,
                    H,
                    gates,
                )
            for j in range(Z):
                z[j] = dot(w, CODE + j * H, CODE_BIAS + j, f4, own + EH + (L - 1) * H, H)
            cell(w, DECODER, z, 0, Z, f4, own + DH, own + DC, H, gates)
            for layer in range(1, L):
                cell(
                    w,
                    DECODER + FIRST_DECODER_CELL + (layer - 1) * NEXT_CELL,
                    f4,
                    own + DH + (layer - 1) * H,
                    H,
                    f4,
                    own + DH + layer * H,
                    own + DC + layer * H,
                    H,
                    gates,
                )
            top = own + DH + (L - 1) * H
            for j in range(OUT):
                newest[n * OUT + j] = dot(w, NEWEST + j * H, NEWEST_BIAS + j, f4, top, H)
                f4[a4 + FORECAST + n * OUT + j] = min(
                    max(dot(w, NEXT + j * H, NEXT_BIAS + j, f4, top, H), -F4(R.INPUT_LIMIT)), F4(R.INPUT_LIMIT)
                )

    @njit
    def single_evidence(inputs, newest, z, at, f4, i2, age, v, distances):
        """F = 1: the summed evidence of novelty in [residual, code], |u|, |d| and novelty in [u, d, level of u]."""
        a4, a2 = at // 4, at // 2
        u, d = inputs[0], inputs[1]
        v[0] = u - newest[0]
        for j in range(Z):
            v[1 + j] = z[j]
        a = novelty(v, A_SIZE, a4 + A_MEAN, a4 + A_VARIANCE, a2 + A_CENTRE, a2 + A_WEIGHT, f4, i2, distances, age)
        v[0] = u
        v[1] = d
        v[2] = f4[a4 + SMOOTH]
        b = novelty(v, 3, a4 + B_MEAN, a4 + B_VARIANCE, a2 + B_CENTRE, a2 + B_WEIGHT, f4, i2, distances, age)
        f4[a4 + SMOOTH] += (u - f4[a4 + SMOOTH]) * F4(1.0 / R.LEVEL_SAMPLES)
        at2 = a2 + HISTOGRAM
        term = length_term(age)
        return (
            evidence(i2, at2, a, age, term)
            + evidence(i2, at2 + R.BINS, abs(u), age, term)
            + evidence(i2, at2 + 2 * R.BINS, abs(d), age, term)
            + evidence(i2, at2 + 3 * R.BINS, b, age, term)
        )

    @njit
    def joint_evidence(inputs, newest, at, f4, i2, age, share, i):
        """F > 1: summed evidence of the error, standardised per feature and averaged over features, now and smoothed; writes the shares."""
        a4 = at // 4
        total = _ZERO
        weight = F4(1.0 / min(age + 1.0, R.JOINT_SCALER_SAMPLES))
        parts = F4(1e-6) * F4(F)
        for k in range(F):
            u = inputs[k] if JOINT else inputs[2 * k]
            error = abs(u - newest[k])
            mean, variance = f4[a4 + ERROR_MEAN + k], f4[a4 + ERROR_VARIANCE + k]
            standard = (error - mean) / (F4(math.sqrt(variance)) + F4(1e-3))
            standard = min(max(standard, -F4(R.JOINT_LIMIT)), F4(R.JOINT_LIMIT))
            if age < 2:
                standard = _ZERO
            delta = error - mean
            limit = F4(R.CLIP_SD) * (F4(math.sqrt(variance)) + F4(1e-3))
            if age >= 10:
                delta = min(max(delta, -limit), limit)
            f4[a4 + ERROR_MEAN + k] = mean + weight * delta
            f4[a4 + ERROR_VARIANCE + k] = (_ONE - weight) * (variance + weight * delta * delta)
            total += standard
            part = max(standard, _ZERO)
            share[i, k] = part * part + F4(1e-6)
            parts += part * part
        for k in range(F):
            share[i, k] /= parts
        now = total / F4(F)
        smooth = f4[a4 + SMOOTH] + (now - f4[a4 + SMOOTH]) * F4(2.0 / (R.JOINT_SAMPLES + 1.0))
        f4[a4 + SMOOTH] = smooth
        first = at // 2 + HISTOGRAM
        term = length_term(age)
        return evidence(i2, first, max(smooth + _ONE, F4(1e-3)), age, term) + evidence(
            i2, first + R.BINS, max(now + _ONE, F4(1e-3)), age, term
        )

    @njit
    def step(u1, f8, i8, f4, i4, i2, rows, times, values, w, budget, score, raw, observed, expected, low, high, share, flags):
        """Scores every sample in order, then learns it. Arrays as in SampleBatch and Verdicts; u1 … i2 are the pages, flat."""
        inputs = np.empty(2 * F, np.float32)
        newest = np.empty(F, np.float32)
        gates = np.empty(4 * H, np.float32)
        z = np.empty(Z, np.float32)
        v = np.empty(max(A_SIZE, 3), np.float32)
        distances = np.empty(R.PROTOTYPES, np.float32)
        backup = np.empty(ROW, np.uint8)
        log10_budget, intercept, slope, lowest = budget[0], budget[1], budget[2], budget[3]
        decay = F4(math.exp(-1.0 / R.ENVELOPE_SAMPLES))
        for i in range(len(rows)):
            ahead = np.int64(rows[min(i + AHEAD, len(rows) - 1)]) * ROW
            for line in range(0, ROW, ALIGNMENT):
                prefetch(u1, ahead + line)
            at = np.int64(rows[i]) * ROW
            a8, a4 = at // 8, at // 4
            age = i4[a4 + AGE]
            dt = times[i] - i8[a8 + TIME] if age > 0 else np.int64(0)
            flag = 0
            if age > 0:
                if dt < 0:
                    i4[a4 + LATE_RUN] += 1
                    if i4[a4 + LATE_RUN] < R.LATE_RUN:
                        flag = LATE
                    else:
                        i4[a4 + LATE_RUN] = 0
                        dt = np.int64(0)
                else:
                    i4[a4 + LATE_RUN] = 0
                    if dt == 0:
                        flag = REPEATED
                        for k in range(F):
                            if values[i, k] != f8[a8 + LAST + k]:
                                flag = 0
            if flag:
                backup[:] = u1[at : at + ROW]

            step_ms = f4[a4 + STEP_MS]
            if dt > 0 and not flag:
                if step_ms == 0.0:
                    step_ms = F4(dt)
                else:
                    change = min(max(F4(dt) - step_ms, -_HALF * step_ms), _HALF * step_ms)
                    step_ms += change * F4(1.0 / 16.0)
                f4[a4 + STEP_MS] = step_ms
            gap = F4(dt) > F4(R.GAP_STEPS) * step_ms and age > 1

            guard = _ZERO
            counter = 0
            for k in range(F):
                y = judged(values[i, k], k, dt, at, u1, f8, i8, f4, i4)
                if i4[a4 + KIND + k] == 2:
                    counter = COUNTER
                observed[i, k] = y
                guard = max(guard, front(y, k, gap, at, f8, f4, i4, inputs, expected, low, high, i))
                f8[a8 + LAST + k] = min(max(values[i, k], -R.VALUE_LIMIT), R.VALUE_LIMIT)
            age = i4[a4 + AGE]  # a series that turned out to be a counter starts anew
            network(w, inputs, at, f4, i2, age, gates, z, newest)
            if SINGLE:
                share[i, 0] = _ONE
                total = guard + single_evidence(inputs, newest, z, at, f4, i2, age, v, distances)
            else:
                total = joint_evidence(inputs, newest, at, f4, i2, age, share, i)

            log10_rate = log10_budget + F4(math.log(max(step_ms, F4(R.TRIAL_MS)))) * _LOG10
            threshold = max((intercept - log10_rate) / slope, lowest)
            result = 0.0
            if age < R.WARMUP_SAMPLES:
                flag |= WARMUP
            else:
                result = total / threshold
                envelope = f4[a4 + ENVELOPE]
                if result > envelope:
                    flag |= ARMED
                f4[a4 + ENVELOPE] = max(F4(result), envelope * decay)
            score[i] = result
            raw[i] = total
            flags[i] = flag | counter
            i4[a4 + AGE] = age + 1
            i8[a8 + TIME] = times[i]
            if flag & (LATE | REPEATED):
                late_run = i4[a4 + LATE_RUN]
                u1[at : at + ROW] = backup
                i4[a4 + LATE_RUN] = late_run

    return step


class CpuBackend:
    """Runs the compiled step over the flat views of a partition's pages."""

    def __init__(self, layout: Layout, artifact: Artifact, threshold: NDArray[np.float64]) -> None:
        self._step = build_step(layout)
        self._weights = artifact.packed()
        self._threshold = threshold

    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts) -> None:
        """Fills `verdicts`; see Detector.step."""
        flat = pages.buffer.reshape(-1)
        self._step(
            flat,
            *(flat.view(t) for t in (np.float64, np.int64, np.float32, np.int32, np.int16)),
            batch.row,
            batch.time_ms,
            batch.value,
            self._weights,
            self._threshold,
            verdicts.score,
            verdicts.evidence,
            verdicts.observed,
            verdicts.expected,
            verdicts.low,
            verdicts.high,
            verdicts.share,
            verdicts.flags,
        )
