"""State rows that another release or another model wrote, as rows of ours: the swap rule.

- A field of the same name and count is carried over, whatever its width: statistics of the values, guards, counts, histograms, episode.
  A field that the old rows lack begins at zero, as in a new row, but for a longer memory, which begins with what the shorter one knows;
  one that we lack is left out.
- What is in a network's own terms means nothing to another network: its recurrent state, its forecast, and the memory of codes seen. They
  are learned anew from the inputs that the row keeps (`recent`, up to 16), from zero state, as the step would have learned them. For a
  series younger than that, this is what the new model would have reached itself.
- Sixteen inputs show less of a series than its whole life, and what lies outside of them would be alarming. So the spread of the codes
  is taken for as much larger as the spread of the inputs over the series' life is than among the sixteen, and twice that; the spread of
  the residual, which has the same unit in all models, stays at what it was where that is more.

- A row for another number of features, or for other ones, has nothing to say about the values; only its episode is carried, so that it
  can end.

Measured between two models of different training seeds, series of 1200 samples, episodes opened in the 200 samples after the swap:

                              500 calm   500 with incidents   390 of all kinds, with spikes
    no swap                         84                  107                              60
    the new model all along         93                  110                              61
    by this rule                    99                  118                              67
    memory learned anew alone      218                  249                             101
    memory kept                    210                  249                              91
    memory cleared                 439                  455                             194

To clear the histogram of what the memory says as well is no better (162 calm), and muting by a raised envelope hides real incidents.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import recipe as R  # noqa: N812 - constants, as in the steps
from anomalyd.detector.detector import Detector
from anomalyd.detector.layout import Layout
from anomalyd.detector.step_cpu import novelty
from anomalyd.errors import StateError
from anomalyd.jit import njit

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]

TILE: Final = 256
"""Rows that the network goes over together, always full: where numpy leaves its vectorised loops depends on how many there are."""
MARGIN: Final = 2.0
"""By how much the spread of codes is taken for larger than what is known of it."""
LEAST_VARIANCE: Final = 1e-3
"""Of the kept inputs: less is a series that stood still."""

_NOTHING: Final = np.zeros((0, 0), np.int16)
_CODE: Final = re.compile(r"[iu][1248]|f[48]")
_NETWORK: Final = ("encoder_h", "encoder_c", "decoder_h", "decoder_c", "forecast")
_LONG: Final = {"long_mean": "mean", "long_variance": "variance"}
_MEMORY: Final = ("mean", "variance", "centre", "weight")


def described(layout: Layout) -> tuple[tuple[str, str, int, int], ...]:
    """The fields of our rows, as `migrated` wants those of others: name, numpy type code, offset in bytes, count."""
    return tuple((f.name, f.dtype.str[1:], f.offset, f.count) for f in layout.fields.values() if f.count)


def migrated(
    detector: Detector,
    rows: NDArray[np.uint8],
    layout: Sequence[tuple[str, str, int, int]],
    *,
    same_model: bool,
    same_features: bool = True,
) -> NDArray[np.uint8]:
    """Rows for `detector` with what other rows have learned, by the rule above; a plain copy where nothing differs.

    Args:
        detector: for whom.
        rows: the old rows, shape (n, row_bytes of theirs).
        layout: their fields: name, numpy type code, byte offset, count.
        same_model: whether they were written with the detector's own weights.
        same_features: whether they are about the same features of entities, in the same order, or about one each.

    Returns:
        Shape (n, row_bytes of ours); the same for a row whatever the others are.

    Raises:
        StateError: the layout does not describe rows of that size.
    """
    ours = detector.layout
    if same_model and same_features and tuple(layout) == described(ours) and rows.shape[1] == ours.row_bytes:
        return rows.copy()
    result = np.zeros((len(rows), ours.row_bytes), np.uint8)
    old = _columns(rows, layout)
    if not same_features or "last" not in old or old["last"].shape[1] != detector.features:
        _carry({name: column for name, column in old.items() if name == "episode"}, result, ours)
        return result
    carried = _carry(old, result, ours)
    for name, shorter in _LONG.items():
        if ours[name].count and name not in carried and shorter in carried:
            # From zero, every series would be far from what is usual for it.
            _field(result, ours, name)[:] = _field(result, ours, shorter)
    foreign = not same_model or not carried.issuperset(_NETWORK)
    memories = [memory for memory in "ab" if (foreign and memory == "a") or not carried.issuperset(_names(memory, ours))]
    for begin in range(0, len(rows), TILE):
        tile = result[begin : begin + TILE]
        inputs, kept = _kept(_field(tile, ours, "age")[:, 0], old.get("recent", _NOTHING)[begin : begin + TILE], ours)
        _write_ring(tile, inputs, ours)
        if foreign or memories:
            _relearn(detector, tile, inputs, kept, memories, foreign=foreign)
    return result


def _columns(rows: NDArray[np.uint8], layout: Sequence[tuple[str, str, int, int]]) -> Columns:
    columns = {}
    for name, code, offset, count in layout:
        if not _CODE.fullmatch(code) or count < 1 or not 0 <= offset <= rows.shape[1] - np.dtype(code).itemsize * count:
            raise StateError(f"a row of {rows.shape[1]} bytes can't have {count} {code!r} at {offset} ({name})")
        columns[name] = np.ascontiguousarray(rows[:, offset : offset + np.dtype(code).itemsize * count]).view(code)
    return columns


def _carry(old: Columns, rows: NDArray[np.uint8], ours: Layout) -> set[str]:
    """Copies the fields that fit; returns their names."""
    carried = set()
    for name, field in ours.fields.items():
        if not field.count or name not in old or old[name].shape[1] != field.count:
            continue
        column = old[name]
        whole, was_whole = field.dtype.kind in "iu", column.dtype.kind in "iu"
        if whole != was_whole:  # another unit then, certainly
            continue
        if column.dtype != field.dtype:
            limits: Any = np.iinfo(field.dtype.str) if whole else np.finfo(field.dtype.str)
            column = np.clip(column, limits.min, limits.max)
        _field(rows, ours, name)[:] = column
        carried.add(name)
    return carried


def _field(rows: NDArray[np.uint8], layout: Layout, name: str) -> NDArray[Any]:
    field = layout[name]
    return rows.view(field.dtype)[:, field.first : field.first + field.count]


def _names(memory: str, layout: Layout) -> list[str]:
    """The fields of a memory; none where the shape has no such memory."""
    return [name for part in _MEMORY if layout[name := f"{memory}_{part}"].count]


def _kept(age: NDArray[np.int32], ring: NDArray[Any], ours: Layout) -> tuple[Floats, NDArray[np.int64]]:
    """The inputs that rows keep, (n, RECENT, width), the newest last and zeros in front, and how many they are, (n,).

    The step writes the input of age a into slot a of the ring, modulo its length, before it counts the sample.
    """
    width = ours.shape.networks * ours.shape.inputs
    length = ring.shape[1] // width
    inputs = np.zeros((len(age), R.RECENT, width), np.float32)
    if not length or ring.shape[1] % width or ring.dtype.kind != "i":
        return inputs, np.zeros(len(age), np.int64)
    kept = np.minimum(np.maximum(age, 0), min(length, R.RECENT)).astype(np.int64)
    slots = ring.reshape(len(age), length, width)
    for back in range(1, min(length, R.RECENT) + 1):
        there = np.flatnonzero(kept >= back)
        inputs[there, R.RECENT - back] = slots[there, (age[there] - back) % length] / np.float32(R.FIXED_POINT)
    return inputs, kept


def _write_ring(rows: NDArray[np.uint8], inputs: Floats, ours: Layout) -> None:
    """Puts the inputs where the step of this release looks for them: a ring of another length has them elsewhere."""
    age, each = _field(rows, ours, "age")[:, 0].astype(np.int64), np.arange(len(rows))
    ring = np.zeros_like(inputs, np.int16)
    for back in range(1, R.RECENT + 1):
        ring[each, (age - back) % R.RECENT] = np.rint(inputs[:, R.RECENT - back] * R.FIXED_POINT)
    _field(rows, ours, "recent")[:] = ring.reshape(len(rows), -1)


def _relearn(
    detector: Detector, rows: NDArray[np.uint8], inputs: Floats, kept: NDArray[np.int64], memories: Sequence[str], *, foreign: bool
) -> None:
    """Runs the network over the inputs that are kept; `memories` learn what it makes of them, and if `foreign` the rows take its state."""
    ours, single = detector.layout, detector.features == 1
    network = _Network(detector)
    residual_code = np.zeros((len(rows), R.RECENT, 1 + ours.shape.latent), np.float32)
    u_d_level = np.zeros((len(rows), R.RECENT, 3), np.float32)
    level = np.zeros(len(rows), np.float32)
    for t in range(R.RECENT):
        newest, code = network.step(inputs[:, t], t >= R.RECENT - kept)
        if single:
            u = inputs[:, t, 0]
            residual_code[:, t, 0], residual_code[:, t, 1:] = u - newest, code
            u_d_level[:, t, :2], u_d_level[:, t, 2] = inputs[:, t], level
            level += (u - level) / np.float32(R.LEVEL_SAMPLES)
    if foreign:
        for name, state in network.state(len(rows)).items():
            _field(rows, ours, name)[:] = state
    if not single:
        return

    margin = _margin(_field(rows, ours, "b_variance")[:, 0], inputs[:, :, 0], _field(rows, ours, "age")[:, 0])
    for memory in memories:
        mean, variance, centre, weight = (_field(rows, ours, f"{memory}_{part}") for part in _MEMORY)
        spread = variance[:, 0].copy()
        for field in (mean, variance, centre, weight):
            field[:] = 0
        _learn(residual_code if memory == "a" else u_d_level, kept, mean, variance, centre, weight, np.zeros(R.PROTOTYPES, np.float32))
        variance *= margin[:, None]
        older = _field(rows, ours, "age")[:, 0] > R.RECENT
        variance[older, 0] = np.maximum(variance[older, 0], spread[older])


def _margin(lifelong: Floats, u: Floats, age: NDArray[np.int32]) -> Floats:
    """What to multiply the spread among the kept inputs u (n, RECENT) with, for rows whose u had the variance `lifelong` (n,)."""
    wider = np.maximum(lifelong / np.maximum(_variance(u), np.float32(LEAST_VARIANCE)), np.float32(1.0))
    return np.where(age > R.RECENT, np.float32(MARGIN) * wider, np.float32(1.0))


def _variance(u: Floats) -> Floats:
    """Of each row of u (n, T). Column by column: in which order numpy sums along a row depends on how many rows there are."""
    mean = sum(u.T, np.zeros(len(u), np.float32)) / np.float32(u.shape[1])
    spread: Floats = sum(((column - mean) ** 2 for column in u.T), np.zeros(len(u), np.float32)) / np.float32(u.shape[1])
    return spread


@njit
def _learn(
    v: Floats,
    kept: NDArray[np.int64],
    mean: Floats,
    variance: Floats,
    centre: NDArray[np.int16],
    weight: NDArray[np.int16],
    scratch: Floats,
) -> None:
    """Shows an empty memory of each row the newest `kept` of v (n, RECENT, D), as the step would have."""
    for i in range(len(v)):
        for age in range(kept[i]):
            novelty(v[i, v.shape[1] - kept[i] + age], mean[i], variance[i], centre[i], weight[i], scratch, age)


class _Network:
    """The network in numpy, over one tile, from zero state."""

    def __init__(self, detector: Detector) -> None:
        self._shape = shape = detector.layout.shape
        self._tensors = detector.artifact.tensors
        size = (shape.layers, TILE * shape.networks, shape.units)
        self._state = {name: np.zeros(size, np.float32) for name in _NETWORK[:4]}
        self._forecast = np.zeros((TILE, shape.features), np.float32)
        self._past = [np.zeros((TILE, shape.networks * shape.inputs), np.float32)] * (max(R.JOINT_LAGS) + 1)  # inputs, newest first

    def step(self, inputs: Floats, live: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Advances the `live` (n,) of n <= TILE rows by one input (n, width).

        Returns the reconstruction of the newest u and the code of a network that looks at one feature alone, (n,) and (n, Z); of several
        the first one's.
        """
        n, shape = len(inputs), self._shape
        x = np.zeros((TILE, inputs.shape[1]), np.float32)
        x[:n] = inputs
        moves = np.zeros(TILE, bool)
        moves[:n] = live
        each = np.repeat(moves, shape.networks)[:, None]
        code = self._linear("code", self._stack("encoder", x.reshape(-1, shape.inputs), each))
        top = self._stack("decoder", code, each)
        newest, coming = self._linear("newest", top), self._linear("next", top)
        if shape.joint:
            self._past = [x, *self._past[: max(R.JOINT_LAGS)]]
            coming = coming + _products(np.hstack([self._past[lag] for lag in R.JOINT_LAGS]), self._tensors["linear.weight"])
        coming = np.clip(coming.reshape(TILE, -1), -R.INPUT_LIMIT, R.INPUT_LIMIT)
        self._forecast = np.where(moves[:, None], coming, self._forecast)
        return newest.reshape(TILE, -1)[:n, 0], code.reshape(TILE, shape.networks, -1)[:n, 0]

    def state(self, n: int) -> Columns:
        """The fields of the first n rows."""
        columns = {name: state.transpose(1, 0, 2).reshape(TILE, -1)[:n] for name, state in self._state.items()}
        return columns | {"forecast": self._forecast[:n]}

    def _linear(self, name: str, x: Floats) -> Floats:
        return _products(x, self._tensors[f"{name}.weight"]) + self._tensors[f"{name}.bias"]

    def _stack(self, part: str, x: Floats, each: NDArray[np.bool_]) -> Floats:
        tensors, hs, cs = self._tensors, self._state[f"{part}_h"], self._state[f"{part}_c"]
        for layer in range(self._shape.layers):
            bias = tensors[f"{part}.bias_ih_l{layer}"] + tensors[f"{part}.bias_hh_l{layer}"]
            gates = _products(x, tensors[f"{part}.weight_ih_l{layer}"]) + _products(hs[layer], tensors[f"{part}.weight_hh_l{layer}"]) + bias
            i, f, g, o = (np.ascontiguousarray(gate) for gate in np.split(gates, 4, axis=1))
            c = _sigmoid(f) * cs[layer] + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            cs[layer], hs[layer] = np.where(each, c, cs[layer]), np.where(each, h, hs[layer])
            x = h
        return x


@njit
def _products(x: Floats, weight: Floats) -> Floats:
    """Products of x (n, K) with the rows of weight (M, K). A library's may depend, in the last bit, on where in x a row lies."""
    across = weight.T.copy()
    result = np.zeros((len(x), len(weight)), np.float32)
    for i in range(len(x)):
        for k in range(x.shape[1]):
            for j in range(len(weight)):
                result[i, j] += x[i, k] * across[k, j]
    return result


def _sigmoid(x: Floats) -> Floats:
    half = np.float32(0.5)
    sigmoid: Floats = half * np.tanh(half * x) + half
    return sigmoid
