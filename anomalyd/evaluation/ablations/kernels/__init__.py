"""Parts of the step that experiments put in the place of the detector's own: see `step_cpu.Parts`."""

# ruff: noqa: ANN001, ANN201, ANN202 - numba types kernels by their arguments; they take columns, not objects

import math
from typing import Final

import numpy as np

from anomalyd.detector import recipe as R  # noqa: N812 - constants, named on every other line
from anomalyd.detector.layout import Layout
from anomalyd.detector.step_cpu import LANES, LENGTH, Kernel, clustered, evidence, learnable, tanh
from anomalyd.jit import njit

F4 = np.float32
FIRST_WEIGHT: Final = 7
"""Where the weights of the parts begin among the numbers of the threshold: behind those of `Detector.threshold_at`."""
WEIGHTS: Final = LENGTH + 1

_HALF = F4(0.5)
_ONE = F4(1.0)
_ZERO = F4(0.0)
_LOG10 = F4(1.0 / math.log(10.0))
_LEAST = 1e-300
_MEAN, _VARIANCE = 0, 1


@njit(forceinline=True)
def weighted(threshold, part, evidence):
    """What a part of the score adds to it: its evidence, times the weight behind the threshold."""
    return evidence * F4(threshold[FIRST_WEIGHT + part])


def build_gru(units: int) -> Kernel:
    """Compiles what makes a GRU of the four blocks of gates.

    K. Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014; as torch has it, with the reset gate behind the
    product with the state.
    """
    WIDTH = 4 * units

    @njit
    def gru(gates, h, c):
        """Blocks r, z, n of the input, n of the state: n = tanh(n_input + r * n_state), h = (1 - z) * n + z * h."""
        for lane in range(LANES):
            first = lane * WIDTH
            for j in range(units):
                r = _HALF * tanh(_HALF * gates[first + j]) + _HALF
                z = _HALF * tanh(_HALF * gates[first + units + j]) + _HALF
                n = tanh(gates[first + 2 * units + j] + r * gates[first + 3 * units + j])
                h[lane, j] = (_ONE - z) * n + z * h[lane, j]
                c[lane, j] = h[lane, j]

    return gru


def re_encoded(network: Kernel, layout: Layout) -> Kernel:
    """Compiles the network run anew on each sample: from zero state over the inputs that the row keeps, at most RECENT with the newest.

    The older ones have the row's rounding, to 1/2048.
    """
    shape = layout.shape
    INPUTS = shape.networks * shape.inputs
    STATE = shape.networks * shape.layers * shape.units
    EH, EC, DH, DC = (layout[name].first for name in ("encoder_h", "encoder_c", "decoder_h", "decoder_c"))
    AGE, RECENT = layout["age"].first, layout["recent"].first

    @njit
    def course(w, inputs, lanes, count, f4, i4, i2, x, h, c, gates, z, newest, lagged):
        own = inputs[:count].copy()
        for back in range(R.RECENT - 1, -1, -1):
            for lane in range(count):
                a4, a2 = lanes[lane] // 4, lanes[lane] // 2
                age = i4[a4 + AGE]
                # Lanes step together: a young series steps on what it does not have, and begins when its first input is due.
                if back == min(age, R.RECENT - 1):
                    for first in (EH, EC, DH, DC):
                        f4[a4 + first : a4 + first + STATE] = _ZERO
                slot = a2 + RECENT + ((age - back) % R.RECENT) * INPUTS
                for j in range(INPUTS):
                    inputs[lane, j] = own[lane, j] if back == 0 else F4(i2[slot + j]) / F4(R.FIXED_POINT)
            # It puts what it reads into the newest slot of the ring, which is not read again.
            network(w, inputs, lanes, count, f4, i4, i2, x, h, c, gates, z, newest, lagged)

    return course


@njit
def by_sample(histogram, error, age, length_term, cluster):
    """How surprising `error` is, by the histogram; each sample of a cluster is learned like any other, and none is one of a cluster."""
    result, _ = evidence(histogram, error, age, length_term, cluster)
    return result, cluster


@njit
def normal_evidence(histogram, error, age, length_term, cluster):
    """How surprising `error` is if the logarithm of this channel's errors is normal; then learns it, clusters as `step_cpu.evidence` does.

    Mean and variance of the logarithm, with the histogram's memory, lie in its place; errors below its lowest bin count as that bin.
    """
    state = histogram.view(np.float32)
    x = F4(max(math.log(error + F4(1e-6)), R.BIN_LOW))
    mean, variance = state[_MEAN], state[_VARIANCE]
    result = _ZERO
    if age >= R.EVIDENCE_AGE:
        z = (x - mean) / (F4(math.sqrt(variance)) + F4(1e-3))
        share = max(0.5 * math.erfc(z / math.sqrt(2.0)), _LEAST)
        rarity = -F4(math.log(share)) * _LOG10
        result = min(max(rarity - length_term, _ZERO), F4(R.EVIDENCE_LIMIT))
        cluster = clustered(cluster, rarity)
    if not learnable(cluster):
        return result, cluster
    weight = max(_ONE / F4(age + 1), F4(1.0 / R.HISTOGRAM_SAMPLES))
    delta = x - mean
    state[_MEAN] = mean + weight * delta
    state[_VARIANCE] = (_ONE - weight) * (variance + weight * delta * delta)
    return result, cluster
