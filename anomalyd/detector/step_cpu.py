"""The step on the CPU: the recipe compiled with numba, sample after sample.

`step_torch` states the same mathematics readably in batched tensor operations; a test holds the two together. Here a sample
goes through scalar code from front to end, so scores and state bytes cannot depend on what else is in the batch.

Every function works on `row`, a flat view of all rows per element type, and on `at`, where the series' row begins in it.
The factory `build_step` turns the artifact's shape into constants, which is what lets the compiler unroll the inner loops.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - numba types kernels by their arguments; they take columns, not objects

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP, SampleBatch, Verdicts
from anomalyd.detector import recipe as R  # noqa: N812 - constants, named on every other line
from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import ALIGNMENT, COUNTER_KIND, Layout, Shape
from anomalyd.detector.pages import Pages
from anomalyd.intrinsics import prefetch, unowned
from anomalyd.jit import njit

F4 = np.float32
Kernel = Callable[..., Any]

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
_DECAY = math.exp(-1.0 / R.ENVELOPE_SAMPLES)
LANES = 4
"""Series whose networks advance side by side."""
A: Final = 0
VALUE: Final = 1
JUMP: Final = 2
B: Final = 3
GUARDS: Final = 4
SUSTAIN: Final = 5
LENGTH: Final = 6
"""What of one feature's score can be counted or not, the channels first; see `counted`."""


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


@njit(forceinline=True)
def clustered(cluster, rarity):
    """The size of a channel's cluster behind a sample that is `rarity` powers of ten rare: one more, or half where it is not rare."""
    if rarity < F4(R.CLUSTER_RARITY):
        return cluster >> 1
    return min(cluster + 1, R.CLUSTER_LONGEST)


@njit(forceinline=True)
def learnable(cluster):
    """Whether a histogram learns the newest of a cluster of that size: of one that is none, the first, and then each CLUSTER_PACE-th."""
    return cluster <= 1 or cluster % R.CLUSTER_PACE == 0


@njit
def evidence(histogram, error, age, length_term, cluster):
    """How surprising `error` is after all the errors of this channel so far; then learns it, unless it is one more of a cluster.

    Tail probability p from a decayed histogram of the log error, extrapolated by an exponential (that is, Pareto in the
    error) tail above the 90 % quantile; evidence is -log10 p, less a term that grows with the length of the history.
    Returns the evidence and the size of the cluster, of which `cluster` was that before.
    """
    position = (F4(math.log(error + F4(1e-6))) - F4(R.BIN_LOW)) / F4(R.BIN_WIDTH)
    inside = min(max(position, _ZERO), F4(R.BINS) - F4(1e-3))
    bin_ = int(inside)
    total = 0
    for k in range(R.BINS):
        total += histogram[k]
    result = _ZERO
    if age >= R.EVIDENCE_AGE and total > 0:
        # the quantile's bin: the first from the top at which the share above reaches TAIL_SHARE
        need = F4(R.TAIL_SHARE) * F4(total)
        above = 0
        k = R.BINS - 1
        while k > 0 and F4(above + histogram[k]) < need:
            above += histogram[k]
            k -= 1
        part = (need - F4(above)) / F4(max(histogram[k], 1))
        edge = F4(k + 1) - min(part, _ONE)  # position of the quantile, in bins
        if position > edge:
            mass = F4(R.TAIL_PRIOR_COUNT * R.HISTOGRAM_UNIT)
            excess = mass * F4(R.TAIL_PRIOR_MEAN / R.BIN_WIDTH)
            for j in range(k, R.BINS):
                beyond = F4(j) + _HALF - edge
                if beyond > _ZERO:
                    count = F4(histogram[j])
                    mass += count
                    excess += count * beyond
            log10p = -_ONE - (position - edge) * mass / max(excess, F4(1e-6)) * _LOG10
            seen = 0
            for j in range(bin_, R.BINS):
                seen += histogram[j]
            if seen >= R.FAMILIAR * R.HISTOGRAM_UNIT:
                log10p = max(log10p, F4(math.log(F4(seen) / F4(total))) * _LOG10)
        else:
            # inside the body: the share above, the own bin in proportion
            higher = 0
            for j in range(bin_ + 1, R.BINS):
                higher += histogram[j]
            share = (F4(higher) + F4(histogram[bin_]) * (F4(bin_ + 1) - inside)) / F4(total)
            log10p = F4(math.log(max(share, F4(R.TAIL_SHARE)))) * _LOG10
        result = min(max(-log10p - length_term, _ZERO), F4(R.EVIDENCE_LIMIT))
        cluster = clustered(cluster, -log10p)
    if age % R.HISTOGRAM_HALVING == R.HISTOGRAM_HALVING - 1:
        for k in range(R.BINS):
            histogram[k] = histogram[k] >> 1
    if learnable(cluster):
        histogram[bin_] += R.HISTOGRAM_UNIT
    return result, cluster


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
def novelty(v, variance, centre, weight, distances):
    """Distance of v (D,) to the nearest prototype of this series, in units of each dimension's own spread, and which one that is.

    `mean` and `variance` (D,) are those of v so far; `centre` (D * PROTOTYPES,) and `weight` (PROTOTYPES,) the memory. Centres lie
    dimension by dimension, so that all distances are computed side by side. Without prototypes it is 0 and -1.
    """
    size = len(variance)
    inverse = F4(1.0 / R.FIXED_POINT)
    for p in range(R.PROTOTYPES):
        distances[p] = _ZERO
    for j in range(size):
        scale = _ONE / (variance[j] + F4(1e-4))
        x = v[j]
        side_by_side = centre[j * R.PROTOTYPES : (j + 1) * R.PROTOTYPES]
        for p in range(R.PROTOTYPES):
            e = x - F4(side_by_side[p]) * inverse
            distances[p] += e * e * scale
    best = F4(1e30)
    nearest = -1
    for p in range(R.PROTOTYPES):
        if weight[p] == 0:
            break  # prototypes fill from the front: beyond the first free one all are
        if distances[p] < best:
            best = distances[p]
            nearest = p
    return F4(math.sqrt(best / F4(size))) if nearest >= 0 else _ZERO, nearest


@njit
def remember(v, mean, variance, centre, weight, distance, nearest, age):
    """Learns v, of which `novelty` said `distance` and `nearest`. A new prototype counts as normal at once."""
    size = len(mean)
    inverse = F4(1.0 / R.FIXED_POINT)
    fresh = -1
    if nearest < 0 or distance > F4(R.PROTOTYPE_NEW):
        lightest = 0
        for p in range(R.PROTOTYPES):
            if weight[p] < weight[lightest]:
                lightest = p  # of free ones, which weigh nothing, the first
        if weight[lightest] == 0 or distance > F4(R.PROTOTYPE_REPLACE):
            fresh = lightest
    if fresh >= 0:
        for j in range(size):
            centre[j * R.PROTOTYPES + fresh] = fixed(v[j])
        weight[fresh] = R.PROTOTYPE_UNIT
    else:
        grown = weight[nearest] + R.PROTOTYPE_UNIT
        rate = max(F4(R.PROTOTYPE_UNIT) / F4(grown), F4(R.PROTOTYPE_RATE))
        for j in range(size):
            k = j * R.PROTOTYPES + nearest
            old = F4(centre[k]) * inverse
            centre[k] = fixed(old + rate * (v[j] - old))
        weight[nearest] = grown
    if age % R.PROTOTYPE_HALVING == R.PROTOTYPE_HALVING - 1:
        for p in range(R.PROTOTYPES):
            if weight[p] > 1:
                weight[p] = weight[p] >> 1

    share = max(_ONE / F4(age + 1), F4(1.0 / R.PROTOTYPE_SAMPLES))
    for j in range(size):
        e = v[j] - mean[j]
        mean[j] += share * e
        variance[j] = (_ONE - share) * (variance[j] + share * e * e)


@cache
def build_lstm(units: int) -> Kernel:
    """Compiles what makes an LSTM of the four blocks of gates."""
    WIDTH = 4 * units

    @njit(forceinline=True)
    def lstm(gates, h, c):
        """Gates i, f, g, o as in torch: c = f * c + i * g, h = o * tanh(c)."""
        for lane in range(LANES):
            first = lane * WIDTH
            for j in range(first, first + 2 * units):
                gates[j] = _HALF * tanh(_HALF * gates[j]) + _HALF
            for j in range(first + 2 * units, first + 3 * units):
                gates[j] = tanh(gates[j])
            for j in range(first + 3 * units, first + WIDTH):
                gates[j] = _HALF * tanh(_HALF * gates[j]) + _HALF
            for j in range(units):
                state = gates[first + units + j] * c[lane, j] + gates[first + j] * gates[first + 2 * units + j]
                c[lane, j] = state
                h[lane, j] = gates[first + 3 * units + j] * tanh(state)

    return lstm


@cache
def build_cells(units: int, build_cell: Callable[[int], Kernel] = build_lstm) -> Kernel:
    """Compiles one recurrent layer for LANES series side by side; `units` becomes a constant of the machine code.

    Side by side, because the weights of two layers do not fit the first cache: what is loaded once serves LANES series. Every
    lane sums in the same order whatever the others hold, so a series' result does not depend on its company.
    """
    WIDTH = 4 * units
    cell = build_cell(units)

    @njit
    def add_products(w, at, v, n, gates):
        """gates[lane] += v[lane] . rows of w, two rows at a time.

        Rows are sliced out first: an index that might be negative costs a test in the loop, and the loop is no longer vectorised.
        """
        k = 0
        while k + 2 <= n:
            p, q = w[at : at + WIDTH], w[at + WIDTH : at + 2 * WIDTH]
            a0, a1, b0, b1 = v[0, k], v[0, k + 1], v[1, k], v[1, k + 1]
            c0, c1, d0, d1 = v[2, k], v[2, k + 1], v[3, k], v[3, k + 1]
            for j in range(WIDTH):
                gates[j] += a0 * p[j] + a1 * q[j]
                gates[WIDTH + j] += b0 * p[j] + b1 * q[j]
                gates[2 * WIDTH + j] += c0 * p[j] + c1 * q[j]
                gates[3 * WIDTH + j] += d0 * p[j] + d1 * q[j]
            at += 2 * WIDTH
            k += 2
        if k < n:
            p = w[at : at + WIDTH]
            a0, b0, c0, d0 = v[0, k], v[1, k], v[2, k], v[3, k]
            for j in range(WIDTH):
                gates[j] += a0 * p[j]
                gates[WIDTH + j] += b0 * p[j]
                gates[2 * WIDTH + j] += c0 * p[j]
                gates[3 * WIDTH + j] += d0 * p[j]

    @njit
    def cells(w, at, x, inputs, h, c, gates):
        """h, c (LANES, units) become the next ones for x (LANES, inputs); `gates` (LANES * 4 * units) is scratch.

        `w` from `at`: input rows, recurrent rows, bias.
        """
        bias = w[at + (inputs + units) * WIDTH :]
        for lane in range(LANES):
            for j in range(WIDTH):
                gates[lane * WIDTH + j] = bias[j]
        add_products(w, at, x, inputs, gates)
        add_products(w, at + inputs * WIDTH, h, units, gates)
        cell(gates, h, c)

    return cells


@njit(forceinline=True)
def dot(a, b):
    """The product a . b in eight running sums: a single one would wait for itself at every element."""
    n = len(a)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
    k = 0
    while k + 8 <= n:
        s0 += a[k] * b[k]
        s1 += a[k + 1] * b[k + 1]
        s2 += a[k + 2] * b[k + 2]
        s3 += a[k + 3] * b[k + 3]
        s4 += a[k + 4] * b[k + 4]
        s5 += a[k + 5] * b[k + 5]
        s6 += a[k + 6] * b[k + 6]
        s7 += a[k + 7] * b[k + 7]
        k += 8
    s = _ZERO
    while k < n:
        s += a[k] * b[k]
        k += 1
    return s + (((s0 + s4) + (s1 + s5)) + ((s2 + s6) + (s3 + s7)))


def carried(network: Kernel, _layout: Layout) -> Kernel:
    """The network as it is: its state is carried from sample to sample."""
    return network


@njit(forceinline=True)
def counted(_threshold, _part, evidence):
    """What one part of the score (A to LENGTH) adds to it: all."""
    return evidence


class Parts(NamedTuple):
    """What an experiment may exchange in the step for a single feature; without one these are compiled in."""

    build_cell: Callable[[int], Kernel] = build_lstm
    """units → what makes the next state of the four blocks of gates."""
    course: Callable[[Kernel, Layout], Kernel] = carried
    """The network, a layout → how the network is run on each sample."""
    evidence: Kernel = evidence
    """How surprising an error of a channel is."""
    counted: Kernel = counted
    """What a part of the score adds to it."""


def build_step(layout: Layout, parts: Parts = Parts()) -> Kernel:  # noqa: B008 - a constant
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
    RUN, LONGEST, UNCHANGED = layout["run"].first, layout["longest"].first, layout["unchanged"].first
    RISES, FALLS, KIND = layout["rises"].first, layout["falls"].first, layout["kind"].first
    STEP_MS, ENVELOPE, SMOOTH = layout["step_ms"].first, layout["envelope"].first, layout["smooth"].first
    REST = layout["rest"].first
    STEP_SPREAD = layout["step_spread"].first
    LONG_MEAN, LONG_VARIANCE, SUSTAINED = layout["long_mean"].first, layout["long_variance"].first, layout["sustained"].first
    FORECAST, ERROR = layout["forecast"].first, layout["error"].first
    ERROR_SQUARE, PART = layout["error_square"].first, layout["part"].first
    A_MEAN, A_VARIANCE = layout["a_mean"].first, layout["a_variance"].first
    B_MEAN, B_VARIANCE = layout["b_mean"].first, layout["b_variance"].first
    EH, EC, DH, DC = (layout[n].first for n in ("encoder_h", "encoder_c", "decoder_h", "decoder_c"))
    A_CENTRE, A_WEIGHT = layout["a_centre"].first, layout["a_weight"].first
    B_CENTRE, B_WEIGHT = layout["b_centre"].first, layout["b_weight"].first
    HISTOGRAM, RECENT, CLUSTER = layout["histogram"].first, layout["recent"].first, layout["cluster"].first
    EPISODE = layout["episode"].offset
    SCALER = R.SCALER_SAMPLES if SINGLE else R.JOINT_SCALER_SAMPLES
    CLIP_SD = R.CLIP_SD if SINGLE else R.JOINT_CLIP_SD
    LAGS = np.array(R.JOINT_LAGS)
    LAGGED = len(R.JOINT_LAGS) * F
    cells = build_cells(H, parts.build_cell)
    surprise, counted = parts.evidence, parts.counted
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
    LINEAR = NEXT_BIAS + OUT

    @njit
    def restart(u1, at, f8, i4, f4, i8):
        """Forgets what was learned about the values, but neither time, step, kind nor the open episode."""
        a8, a4 = at // 8, at // 4
        time, step, late_run = i8[a8 + TIME], f4[a4 + STEP_MS], i4[a4 + LATE_RUN]
        spread = f4[a4 + STEP_SPREAD]
        kind, last = i4[a4 + KIND], f8[a8 + LAST]
        u1[at : at + EPISODE] = 0
        i8[a8 + TIME], f4[a4 + STEP_MS], i4[a4 + LATE_RUN] = time, step, late_run
        f4[a4 + STEP_SPREAD] = spread
        i4[a4 + KIND], f8[a8 + LAST] = kind, last

    @njit
    def judged(x, k, dt, fixed, at, u1, f8, i8, f4, i4):
        """The value to judge: x itself, or for a counter its increase per second; decides which of the two a series is if `fixed` is 0.

        A counter that falls below half its value was restarted. How much of the time since the last sample it then counted is not
        known, so it is taken to have gone on as before. One that falls by less was no counter after all, unless it is fixed.
        """
        a8, a4 = at // 8, at // 4
        x = min(max(x, -R.VALUE_LIMIT), R.VALUE_LIMIT)
        last = f8[a8 + LAST + k]
        kind = i4[a4 + KIND + k]
        if fixed > 0 and kind != fixed:
            kind = fixed
            if SINGLE and i4[a4 + BORN + k] > 0:
                restart(u1, at, f8, i4, f4, i8)
            i4[a4 + KIND + k] = fixed
            i4[a4 + BORN + k] = 0
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
            if not SINGLE and math.isnan(last):  # nobody knows over how many samples it has increased
                return f8[a8 + SEEN + k]
            increase = x - last
            if increase < 0.0:
                if x < 0.5 * last or fixed == COUNTER_KIND:
                    if i4[a4 + BORN + k] > 0:
                        return f8[a8 + SEEN + k]
                    increase = max(x, 0.0)
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
    def front(y, k, gap, at, f8, f4, i4, inputs, lane, expected, low, high, i):
        """Scales one judged value with the statistics before it, writes the network's inputs and the expectation; then learns it.

        Returns the evidence of the guards: of a value outside the range so far, and of one that no longer moves.
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
            reach = R.GUARD_GROWTH * span if n >= 10 and highest - lowest >= span else math.inf  # a constant's first change sets the range
            f8[a8 + LOW + k] = min(lowest + (mean - lowest) / R.GUARD_SAMPLES, max(y, lowest - reach))
            f8[a8 + HIGH + k] = max(highest + (mean - highest) / R.GUARD_SAMPLES, min(y, highest + reach))

            share = 1.0 / min(n + 1.0, SCALER)
            run, longest, unchanged = i4[a4 + RUN + k], i4[a4 + LONGEST + k], f4[a4 + UNCHANGED + k]
            same = y == f8[a8 + SEEN + k] and not gap
            if same:
                run += 1
                if n >= R.EVIDENCE_AGE and run >= R.FLAT_RUN and run > 4 * longest:
                    # how likely it is to stand still so often in a row, had each time the same chance
                    chance = max(unchanged, _ONE / F4(n + 2))
                    guard = max(guard, min(-F4(run) * F4(math.log(chance)) * _LOG10, F4(R.FLAT_LIMIT)))
            if not same or run > R.FLAT_LONG:
                longest = max(longest, run)
                run = run if same else 0
            i4[a4 + RUN + k] = run
            i4[a4 + LONGEST + k] = longest
            f4[a4 + UNCHANGED + k] = unchanged + F4(share) * ((_ONE if same else _ZERO) - unchanged)

            delta = y - mean
            limit = max(CLIP_SD * sd, min(R.CLIP_SHARE * abs(delta), R.CLIP_FAR * sd))
            if n >= 10:
                delta = min(max(delta, -limit), limit)
            f8[a8 + MEAN + k] = mean + share * delta
            f8[a8 + VARIANCE + k] = (1.0 - share) * (variance + share * delta * delta)
            size = abs(difference)
            if n >= 10:
                size = min(size, max(R.CLIP_SD * scale, min(R.CLIP_SHARE * size, R.CLIP_FAR_STEP * scale)))
            f8[a8 + STEP_SIZE + k] = step_size + (size - step_size) * (1.0 / min(float(n), SCALER))
        f8[a8 + SEEN + k] = y
        i4[a4 + BORN + k] = n + 1
        if JOINT:
            inputs[lane, k] = u
        else:
            inputs[lane, 2 * k] = u
            inputs[lane, 2 * k + 1] = d
        return guard

    @njit
    def absent(k, at, f8, i4, f4, inputs, lane, expected, low, high, i):
        """A feature that the sample lacks: the network reads its mean, the expectation stands, nothing is learned."""
        a8, a4 = at // 8, at // 4
        inputs[lane, k if JOINT else 2 * k] = _ZERO
        if not JOINT:
            inputs[lane, 2 * k + 1] = _ZERO
        mean = f8[a8 + MEAN + k]
        sd = floored_sd(f8[a8 + VARIANCE + k], mean)
        band = F4(R.BAND_ERRORS) * f4[a4 + ERROR + k]
        known = i4[a4 + BORN + k] > 0
        forecast = f4[a4 + FORECAST + k]
        expected[i, k] = unscaled(forecast, mean, sd) if known else math.nan
        low[i, k] = unscaled(forecast - band, mean, sd) if known else math.nan
        high[i, k] = unscaled(forecast + band, mean, sd) if known else math.nan

    @njit
    def stack(w, at, inputs, x, lanes, count, f4, h_at, c_at, h, c, gates):
        """One LSTM with all its layers, in the rows that begin at `lanes`; leaves the top layer's output in h (LANES, H)."""
        for layer in range(L):
            for lane in range(LANES):
                if layer > 0:
                    x[lane, :H] = h[lane]
                if lane < count:
                    first = lanes[lane] // 4 + layer * H
                    h[lane] = f4[first + h_at : first + h_at + H]
                    c[lane] = f4[first + c_at : first + c_at + H]
                else:  # a lane without a sample computes on zeros, so that the others always take the same path
                    h[lane] = _ZERO
                    c[lane] = _ZERO
            cells(w, at, x, inputs, h, c, gates)
            for lane in range(count):
                first = lanes[lane] // 4 + layer * H
                f4[first + h_at : first + h_at + H] = h[lane]
                f4[first + c_at : first + c_at + H] = c[lane]
            at += (inputs + H + 1) * 4 * H
            inputs = H

    @njit
    def linear(w, j, at, i4, i2, lagged):
        """The linear part of the joint forecast of feature j: a map of the newest inputs, which the ring holds."""
        ring = at // 2 + RECENT
        age = i4[at // 4 + AGE]
        if j == 0:
            for n in range(len(LAGS)):
                slot = ring + ((age - LAGS[n]) % R.RECENT) * INPUTS
                for k in range(F):
                    lagged[n * F + k] = F4(i2[slot + k]) * F4(1.0 / R.FIXED_POINT)
        return dot(w[LINEAR + j * LAGGED : LINEAR + (j + 1) * LAGGED], lagged)

    @njit
    def network(w, inputs, lanes, count, f4, i4, i2, x, h, c, gates, z, newest, lagged):
        """Advances every recurrent state of `count` rows by one sample.

        newest[lane, k] becomes the reconstruction of u, z[lane] the code (of the last network), FORECAST in the row the next u.
        """
        for lane in range(count):
            at = lanes[lane]
            ring = at // 2 + RECENT + (i4[at // 4 + AGE] % R.RECENT) * NETWORKS * INPUTS
            for j in range(NETWORKS * INPUTS):
                i2[ring + j] = fixed(inputs[lane, j])
        for n in range(NETWORKS):
            own = n * L * H
            for lane in range(LANES):
                for j in range(INPUTS):
                    x[lane, j] = inputs[lane, n * INPUTS + j] if lane < count else _ZERO
            stack(w, 0, INPUTS, x, lanes, count, f4, own + EH, own + EC, h, c, gates)
            for lane in range(LANES):
                for j in range(Z):
                    z[lane, j] = dot(w[CODE + j * H : CODE + (j + 1) * H], h[lane]) + w[CODE_BIAS + j]
                    x[lane, j] = z[lane, j]
            stack(w, DECODER, Z, x, lanes, count, f4, own + DH, own + DC, h, c, gates)
            for lane in range(count):
                for j in range(OUT):
                    newest[lane, n * OUT + j] = dot(w[NEWEST + j * H : NEWEST + (j + 1) * H], h[lane]) + w[NEWEST_BIAS + j]
                    coming = dot(w[NEXT + j * H : NEXT + (j + 1) * H], h[lane]) + w[NEXT_BIAS + j]
                    if JOINT:
                        coming += linear(w, j, lanes[lane], i4, i2, lagged)
                    coming = min(max(coming, -F4(R.INPUT_LIMIT)), F4(R.INPUT_LIMIT))
                    f4[lanes[lane] // 4 + FORECAST + n * OUT + j] = coming

    course = parts.course(network, layout)

    @njit
    def calibrated(channel, error, a2, i2, age, term):
        """The evidence of a channel's error; then learns it."""
        first = a2 + HISTOGRAM + channel * R.BINS
        found, i2[a2 + CLUSTER + channel] = surprise(i2[first : first + R.BINS], error, age, term, i2[a2 + CLUSTER + channel])
        return found

    @njit
    def unfamiliar(channel, v, size, means, variances, centres, weights, a4, a2, f4, i2, age, term, distances):
        """The evidence of the novelty of v (size,); then learns both, with the memory in the fields that begin at the four offsets.

        Of a cluster not even the first becomes a prototype: one would hide the next.
        """
        variance = f4[a4 + variances : a4 + variances + size]
        centre = i2[a2 + centres : a2 + centres + size * R.PROTOTYPES]
        weight = i2[a2 + weights : a2 + weights + R.PROTOTYPES]
        distance, nearest = novelty(v, variance, centre, weight, distances)
        found = calibrated(channel, distance, a2, i2, age, term)
        if i2[a2 + CLUSTER + channel] % R.CLUSTER_PACE == 0:
            remember(v, f4[a4 + means : a4 + means + size], variance, centre, weight, distance, nearest, age)
        return found

    @njit
    def single_evidence(inputs, newest, z, lane, at, f4, i2, age, budget, v, distances):
        """F = 1: the summed evidence of novelty in [residual, code], |u|, |d| and novelty in [u, d, level of u]."""
        a4, a2 = at // 4, at // 2
        u, d = inputs[lane, 0], inputs[lane, 1]
        term = counted(budget, LENGTH, length_term(age))
        v[0] = u - newest[lane, 0]
        v[1:A_SIZE] = z[lane]
        a = unfamiliar(A, v, A_SIZE, A_MEAN, A_VARIANCE, A_CENTRE, A_WEIGHT, a4, a2, f4, i2, age, term, distances)
        value = calibrated(VALUE, abs(u), a2, i2, age, term)
        jump = calibrated(JUMP, abs(d), a2, i2, age, term)
        v[0] = u
        v[1] = d
        v[2] = f4[a4 + SMOOTH]
        b = unfamiliar(B, v, 3, B_MEAN, B_VARIANCE, B_CENTRE, B_WEIGHT, a4, a2, f4, i2, age, term, distances)
        f4[a4 + SMOOTH] += (u - f4[a4 + SMOOTH]) * F4(1.0 / R.LEVEL_SAMPLES)
        return counted(budget, A, a) + counted(budget, VALUE, value) + counted(budget, JUMP, jump) + counted(budget, B, b)

    @njit
    def joint_errors(lane, at, inputs, f4, i4, observed, share, i):
        """F > 1: squared forecast errors in units of what each feature's errors usually are; then learns them. Must precede `network`.

        `share` becomes each feature's part of their smoothed mean; returns the largest now. Missing features count as forecast exactly.
        """
        a4 = at // 4
        largest = total = _ZERO
        for k in range(F):
            n = i4[a4 + BORN + k]  # this sample counted
            relative = _ZERO
            if n > 1 and not math.isnan(observed[i, k]):
                error = abs(inputs[lane, k if JOINT else 2 * k] - f4[a4 + FORECAST + k])
                square = f4[a4 + ERROR_SQUARE + k]
                scale = F4(math.sqrt(square + F4(R.JOINT_FLOOR**2)))
                relative = min(error / scale, F4(R.JOINT_LIMIT))
                relative *= relative
                if n > 10:
                    error = min(error, F4(R.JOINT_ERROR_CLIP) * scale)
                f4[a4 + ERROR_SQUARE + k] = square + (error * error - square) * F4(1.0 / min(n - 1.0, R.JOINT_SCALER_SAMPLES))
            largest = max(largest, relative)
            part = f4[a4 + PART + k] + (relative - f4[a4 + PART + k]) * F4(2.0 / (R.JOINT_SAMPLES + 1.0))
            f4[a4 + PART + k] = part
            share[i, k] = part + F4(1e-6)
            total += part + F4(1e-6)
        for k in range(F):
            share[i, k] /= total
        return largest

    @njit
    def joint_evidence(largest, at, f4, i2, age):
        """F > 1: evidence of the errors together, smoothed, of the largest one now, and of how large they are: what lasts becomes usual."""
        smooth = _ZERO
        for k in range(F):
            smooth += f4[at // 4 + PART + k]
        smooth /= F4(F)
        a2 = at // 2
        term = length_term(age)
        total = calibrated(0, F4(math.sqrt(smooth)), a2, i2, age, term)
        total += F4(R.JOINT_LARGEST) * calibrated(1, F4(math.sqrt(largest)), a2, i2, age, term)
        return total + F4(math.log(_ONE + smooth))

    @njit
    def receive(i, lane, at, fixed, u1, f8, i8, f4, i4, times, values, inputs, backup, observed, expected, low, high):
        """What comes before the network: order, rate of a counter, scaling. Returns flags and the evidence of the guards."""
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
                        if not math.isnan(values[i, k]) and min(max(values[i, k], -R.VALUE_LIMIT), R.VALUE_LIMIT) != f8[a8 + LAST + k]:
                            flag = 0
        if flag:
            backup[lane, :] = u1[at : at + ROW]

        step_ms = f4[a4 + STEP_MS]
        if dt > 0 and not flag:
            if step_ms == 0.0:
                step_ms = F4(dt)
            else:
                change = min(max(F4(dt) - step_ms, -_HALF * step_ms), _HALF * step_ms)
                f4[a4 + STEP_SPREAD] += (abs(change) - f4[a4 + STEP_SPREAD]) * F4(1.0 / R.SPREAD_SAMPLES)
                step_ms += change * F4(1.0 / R.STEP_SAMPLES)
            f4[a4 + STEP_MS] = step_ms
        gap = F4(dt) > F4(R.GAP_STEPS) * step_ms and age > 1

        guard = _ZERO
        for k in range(F):
            if not SINGLE and math.isnan(values[i, k]):
                observed[i, k] = math.nan
                f8[a8 + LAST + k] = math.nan
                absent(k, at, f8, i4, f4, inputs, lane, expected, low, high, i)
                continue
            unknown = fixed == COUNTER_KIND and age == 0  # one reading of a counter is no rate yet
            if not SINGLE:
                unread = i4[a4 + KIND + k] == 0 or (math.isnan(f8[a8 + LAST + k]) and i4[a4 + BORN + k] == 0)
                unknown = fixed == COUNTER_KIND and unread
            y = judged(values[i, k], k, dt, fixed, at, u1, f8, i8, f4, i4)
            if i4[a4 + KIND + k] == 2:
                flag |= COUNTER
            if unknown:
                y = 0.0
            observed[i, k] = y
            guard = max(guard, front(y, k, gap, at, f8, f4, i4, inputs, lane, expected, low, high, i))
            if unknown:
                i4[a4 + BORN + k] = 0
            f8[a8 + LAST + k] = min(max(values[i, k], -R.VALUE_LIMIT), R.VALUE_LIMIT)
        return flag, guard

    @njit
    def sustain(y, total, at, f8, f4, i4):
        """F = 1: evidence smoothed, a value far from what is usual in the long run counted in; then learns both."""
        a8, a4 = at // 8, at // 4
        n = i4[a4 + BORN] - 1
        far = _ZERO
        if n <= 0:
            f8[a8 + LONG_MEAN] = y
            f8[a8 + LONG_VARIANCE] = 0.0
        else:
            mean, variance = f8[a8 + LONG_MEAN], f8[a8 + LONG_VARIANCE]
            sd = floored_sd(variance, mean)
            far = abs(scaled(y, mean, sd))
            delta = y - mean
            if n >= 10:
                limit = max(R.CLIP_SD * sd, min(R.CLIP_SHARE * abs(delta), R.CLIP_FAR * sd))
                delta = min(max(delta, -limit), limit)
            share = 1.0 / min(n + 1.0, R.LONG_SAMPLES)
            f8[a8 + LONG_MEAN] = mean + share * delta
            f8[a8 + LONG_VARIANCE] = (1.0 - share) * (variance + share * delta * delta)
        now = total + F4(R.LONG_WEIGHT) * far
        smoothed = f4[a4 + SUSTAINED] + (now - f4[a4 + SUSTAINED]) * F4(2.0 / (R.SUSTAINED_SAMPLES + 1.0))
        f4[a4 + SUSTAINED] = smoothed
        return F4(R.SUSTAINED_SHARE) * smoothed

    @njit
    def control(strength, threshold, flag, at, f4, i4, budget, tally):
        """Counts the try that a sample is, if it is one, and whether it crosses the level; see `Detector.step`."""
        a4 = at // 4
        step_ms, rest = f4[a4 + STEP_MS], i4[a4 + REST]
        if not flag & WARMUP:
            tally[2] += np.int64(step_ms)
        if rest == 0 and i4[a4 + AGE] >= R.CONTROL_AGE:
            chance = budget[5] - budget[6] * max(step_ms, F4(R.TRIAL_MS))
            if chance > 0.0:
                tally[1] += np.int64(chance * min(1.0, step_ms / R.TRIAL_MS))
                if flag & ARMED and budget[4] <= strength < threshold:
                    tally[0] += 1
        i4[a4 + REST] = R.CONTROL_REST if strength >= budget[4] else max(rest - 1, 0)

    @njit
    def conclude(i, lane, at, flag, total, u1, f8, i8, f4, i4, times, budget, tally, backup, observed, score, raw, flags):
        """What comes after the evidence: threshold, refractory envelope, flags; a sample that must not be learned is undone."""
        a8, a4 = at // 8, at // 4
        age = i4[a4 + AGE]
        log10_rate = budget[0] + F4(math.log(max(f4[a4 + STEP_MS], F4(R.TRIAL_MS)))) * _LOG10
        threshold = max((budget[1] - log10_rate) / budget[2], budget[3])
        if R.WARMUP_SAMPLES <= age < R.YOUNG_SAMPLES:
            threshold += R.YOUNG_DECADES / budget[2] * math.log10(R.YOUNG_SAMPLES / age)
        strength = max(total, counted(budget, SUSTAIN, sustain(observed[i, 0], total, at, f8, f4, i4))) if SINGLE else total
        result = 0.0
        if age < R.WARMUP_SAMPLES:
            flag |= WARMUP
        else:
            result = strength / threshold
            # What begins arms, not what goes on.
            fresh, envelope = total / threshold, f4[a4 + ENVELOPE]
            if fresh > envelope:
                flag |= ARMED
            f4[a4 + ENVELOPE] = max(F4(fresh), envelope * F4(_DECAY))
        score[i] = result
        raw[i] = strength
        flags[i] = flag
        if not flag & (LATE | REPEATED):
            control(strength, threshold, flag, at, f4, i4, budget, tally)
        i4[a4 + AGE] = age + 1
        i8[a8 + TIME] = times[i]
        if flag & (LATE | REPEATED):
            late_run = i4[a4 + LATE_RUN]
            u1[at : at + ROW] = backup[lane, :]
            i4[a4 + LATE_RUN] = late_run

    @njit
    def step(pages, rows, times, values, w, budget, tally, fixed, verdicts, scratch):
        """Scores every sample in order, then learns it.

        `pages` are all rows, flat, once per element type; `budget` and `tally` are as in `Detector.step`; `fixed` is the kind of all
        series, 0 where each finds its own; `verdicts` are the columns of Verdicts; `scratch` is as `new_scratch` makes it.
        """
        u1, f8, i8, f4, i4, i2 = pages
        u1, f8, i8, f4, i4, i2 = unowned(u1), unowned(f8), unowned(i8), unowned(f4), unowned(i4), unowned(i2)
        rows, times, values, w, budget = unowned(rows), unowned(times), unowned(values), unowned(w), unowned(budget)
        tally = unowned(tally)
        score, raw, observed, expected, low, high, share, flags = verdicts
        score, raw, observed, expected = unowned(score), unowned(raw), unowned(observed), unowned(expected)
        low, high, share, flags = unowned(low), unowned(high), unowned(share), unowned(flags)
        inputs, newest, x, h, c, z, gates, v, distances, guards, lagged, backup, lanes, lane_flags = scratch
        inputs, newest, x, h, c, z = unowned(inputs), unowned(newest), unowned(x), unowned(h), unowned(c), unowned(z)
        gates, v, distances, guards, lagged = unowned(gates), unowned(v), unowned(distances), unowned(guards), unowned(lagged)
        backup, lanes, lane_flags = unowned(backup), unowned(lanes), unowned(lane_flags)
        begin = 0
        while begin < len(rows):
            # a block: the next samples, as long as each is of another series
            count = 0
            while count < LANES and begin + count < len(rows):
                at = np.int64(rows[begin + count]) * ROW
                known = False
                for lane in range(count):
                    known |= lanes[lane] == at
                if known:
                    break
                lanes[count] = at
                count += 1
            for ahead in range(begin + count, min(begin + count + LANES, len(rows))):
                for line in range(0, ROW, ALIGNMENT):
                    prefetch(u1, np.int64(rows[ahead]) * ROW + line)
            for lane in range(count):
                i = begin + lane
                lane_flags[lane], guards[lane] = receive(
                    i, lane, lanes[lane], fixed, u1, f8, i8, f4, i4, times, values, inputs, backup, observed, expected, low, high
                )
                if not SINGLE:
                    guards[lane] = joint_errors(lane, lanes[lane], inputs, f4, i4, observed, share, i)
            course(w, inputs, lanes, count, f4, i4, i2, x, h, c, gates, z, newest, lagged)
            for lane in range(count):
                i = begin + lane
                at = lanes[lane]
                age = i4[at // 4 + AGE]
                if SINGLE:
                    share[i, 0] = _ONE
                    guard = counted(budget, GUARDS, guards[lane])
                    total = guard + single_evidence(inputs, newest, z, lane, at, f4, i2, age, budget, v, distances)
                else:
                    total = joint_evidence(guards[lane], at, f4, i2, age)
                conclude(
                    i, lane, at, lane_flags[lane], total, u1, f8, i8, f4, i4, times, budget, tally, backup, observed, score, raw, flags
                )
            begin += count

    return step


def new_scratch(shape: Shape) -> tuple[NDArray[Any], ...]:
    """What the step keeps between its parts, for one thread: made here, because arrays that a kernel makes are counted."""
    h = shape.units
    floats: list[tuple[int, ...]] = [
        (LANES, shape.networks * shape.inputs),
        (LANES, shape.features),
        (LANES, max(h, shape.latent, shape.inputs)),
        (LANES, h),
        (LANES, h),
        (LANES, shape.latent),
        (LANES * 4 * h,),
        (max(1 + shape.latent, 3),),
        (R.PROTOTYPES,),
        (LANES,),
        (len(R.JOINT_LAGS) * shape.features,),
    ]
    backup = np.zeros((LANES, Layout(shape).row_bytes), np.uint8)
    return (*(np.zeros(size, np.float32) for size in floats), backup, np.zeros(LANES, np.int64), np.zeros(LANES, np.int64))


class CpuBackend:
    """Runs the compiled step over the flat views of a partition's pages."""

    def __init__(
        self,
        layout: Layout,
        artifact: Artifact,
        fixed_kind: int = 0,
        parts: Parts = Parts(),  # noqa: B008 - a constant
    ) -> None:
        self._step = build_step(layout, parts)
        self._fixed_kind = fixed_kind
        self._weights = artifact.packed()
        self._shape = layout.shape
        self._threads = threading.local()

    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts, threshold: NDArray[np.float64], tally: NDArray[np.int64]) -> None:
        """Fills `verdicts`; see Detector.step."""
        scratch = getattr(self._threads, "scratch", None)
        if scratch is None:
            scratch = self._threads.scratch = new_scratch(self._shape)
        flat = pages.buffer.reshape(-1)
        self._step(
            tuple(flat.view(t) for t in (np.uint8, np.float64, np.int64, np.float32, np.int32, np.int16)),
            batch.row,
            batch.time_ms,
            batch.value,
            self._weights,
            threshold,
            tally,
            self._fixed_kind,
            (
                verdicts.score,
                verdicts.evidence,
                verdicts.observed,
                verdicts.expected,
                verdicts.low,
                verdicts.high,
                verdicts.share,
                verdicts.flags,
            ),
            scratch,
        )
