"""The state row: everything that is carried for one series, in one contiguous row of bytes.

One table says field, type and count; offsets follow from the artifact's shape. Both backends, the pages and (later) the
changelog read rows through it and nothing else. The offsets are compiled into the numba kernels.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from anomalyd.detector.recipe import BINS, EPISODE_BYTES, PROTOTYPES, RECENT

GAUGE_KIND: Final = 1
"""In the field `kind` of a row: the feature is judged as it is."""
COUNTER_KIND: Final = 2
"""In the field `kind` of a row: the feature is a counter."""

ALIGNMENT: Final = 64
"""Rows begin on a cache line."""


@dataclass(frozen=True)
class Shape:
    """What of the network decides the layout of a row."""

    features: int
    """F: values of one sample."""
    units: int
    """H: cells per LSTM layer."""
    layers: int
    """LSTM layers in the encoder, and as many in the decoder."""
    latent: int
    """Size of the bottleneck code z."""
    joint: bool
    """One network over all F features (True), or the same univariate network for each of them (False)."""

    @property
    def networks(self) -> int:
        """Independent recurrent states in a row."""
        return 1 if self.joint else self.features

    @property
    def inputs(self) -> int:
        """Inputs of one network: (u, d) of a single feature, or u of all features."""
        return self.features if self.joint else 2

    @property
    def channels(self) -> int:
        """Calibrated channels: four for a single feature, the joint error smoothed and the largest one otherwise."""
        return 4 if self.features == 1 else 2


@dataclass(frozen=True)
class Field:
    """Where a field lies in the row."""

    name: str
    dtype: np.dtype[np.generic]
    offset: int
    """In bytes."""
    count: int

    @property
    def first(self) -> int:
        """Offset in elements of its own type."""
        return self.offset // self.dtype.itemsize


def _table(shape: Shape) -> list[tuple[str, str, int]]:
    """Fields with their types and counts, widest types first so that every field is aligned."""
    f, n = shape.features, shape.networks
    state = n * shape.layers * shape.units
    single = f == 1
    return [
        ("time", "i8", 1),  # event time of the newest sample, ms
        ("filling", "i8", 0 if single else 1),  # event time of the sample that is being assembled, or was last
        ("whole_time", "i8", 0 if single else 1),  # of the newest one that was assembled
        ("late_time", "i8", 0 if single else 1),  # of the newest value from before the one that is being assembled
        ("filled", "f8", 0 if single else f),  # its values so far, NaN for those that are not there
        ("last", "f8", f),  # newest raw value
        ("seen", "f8", f),  # newest judged value (a rate for counters)
        ("mean", "f8", f),
        ("variance", "f8", f),
        ("step_size", "f8", f),  # mean |difference|, the scale of d
        ("long_mean", "f8", 1 if single else 0),  # the same two over a longer memory
        ("long_variance", "f8", 1 if single else 0),
        ("low", "f8", f),  # guard: decaying minimum
        ("high", "f8", f),
        ("age", "i4", 1),  # samples learned since the row (re)started
        ("born", "i4", f),  # samples learned since the feature (re)started
        ("late_run", "i4", 1),
        ("stage", "i4", 0 if single else 1),  # of assembling: see assembler.py
        ("late_times", "i4", 0 if single else 1),  # in a row from before it
        ("rises", "i4", f),
        ("falls", "i4", f),
        ("run", "i4", f),  # times in a row that the value has not changed
        ("longest", "i4", f),  # such run so far
        ("kind", "i4", f),  # 0 undecided, 1 gauge, 2 counter
        ("step_ms", "f4", 1),  # usual distance of samples
        ("step_spread", "f4", 1),  # mean |distance - step_ms|, in ms, each counted as half a step at most
        ("envelope", "f4", 1),  # refractory
        ("rest", "i4", 1),  # samples until the series is a try again by which the alert budget is checked
        ("smooth", "f4", 1 if single else 0),  # level of u
        ("sustained", "f4", 1 if single else 0),  # evidence, smoothed
        ("unchanged", "f4", f),  # share of samples equal to the one before
        ("forecast", "f4", f),  # of the next input u
        ("error", "f4", f),  # mean |u - forecast|
        ("error_square", "f4", 0 if single else f),  # mean (u - forecast)^2
        ("part", "f4", 0 if single else f),  # (u - forecast)^2 in units of that, smoothed
        ("a_mean", "f4", 1 + shape.latent if single else 0),
        ("a_variance", "f4", 1 + shape.latent if single else 0),
        ("b_mean", "f4", 3 if single else 0),
        ("b_variance", "f4", 3 if single else 0),
        ("encoder_h", "f4", state),
        ("encoder_c", "f4", state),
        ("decoder_h", "f4", state),
        ("decoder_c", "f4", state),
        ("a_centre", "i2", PROTOTYPES * (1 + shape.latent) if single else 0),
        ("a_weight", "i2", PROTOTYPES if single else 0),
        ("b_centre", "i2", PROTOTYPES * 3 if single else 0),
        ("b_weight", "i2", PROTOTYPES if single else 0),
        ("histogram", "i2", shape.channels * BINS),
        ("cluster", "i2", shape.channels),  # of each channel, samples in a row that are as rare as an incident's
        ("recent", "i2", RECENT * n * shape.inputs),  # ring of the newest network inputs, 1/2048
        ("awaited", "u1", 0 if single else f),  # for how many more samples each feature is waited for
        ("episode", "u1", EPISODE_BYTES),
    ]


class Layout:
    """Offsets of all fields for one network shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.fields: dict[str, Field] = {}
        offset = 0
        for name, code, count in _table(shape):
            dtype: np.dtype[np.generic] = np.dtype(code)
            offset = -(-offset // dtype.itemsize) * dtype.itemsize
            if name == "episode":
                offset = -(-offset // 8) * 8
            self.fields[name] = Field(name, dtype, offset, count)
            offset += dtype.itemsize * count
        self.row_bytes = -(-offset // ALIGNMENT) * ALIGNMENT

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]
