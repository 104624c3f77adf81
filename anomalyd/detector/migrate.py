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
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import recipe as R  # noqa: N812 - constants, as in the steps
from anomalyd.detector.layout import Layout
from anomalyd.detector.step_cpu import dot, novelty, remember, tanh
from anomalyd.errors import StateError
from anomalyd.jit import njit

if TYPE_CHECKING:
    from anomalyd.detector.detector import Detector

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]

MARGIN: Final = 2.0
"""By how much the spread of codes is taken for larger than what is known of it."""
LEAST_VARIANCE: Final = 1e-3
"""Of the kept inputs: less is a series that stood still."""

_NOTHING: Final = np.zeros((0, 0), np.int16)
_CODE: Final = re.compile(r"[iu][1248]|f[48]")
_NETWORK: Final = ("encoder_h", "encoder_c", "decoder_h", "decoder_c", "forecast")
_LONG: Final = {"long_mean": "mean", "long_variance": "variance"}
_MEMORY: Final = ("mean", "variance", "centre", "weight")
_LAGS: Final = np.array(R.JOINT_LAGS, np.int64)
_HALF: Final = np.float32(0.5)
_INPUT_LIMIT: Final = np.float32(R.INPUT_LIMIT)


def described(layout: Layout) -> tuple[tuple[str, str, int, int], ...]:
    """The fields of our rows, as `migrated` wants those of others: name, numpy type code, offset in bytes, count."""
    return tuple((f.name, f.dtype.str[1:], f.offset, f.count) for f in layout.fields.values() if f.count)


def migrated(
    detector: "Detector",
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
    if not len(rows):
        return np.zeros((0, ours.row_bytes), np.uint8)
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
    inputs, kept = _kept(_field(result, ours, "age")[:, 0], old.get("recent", _NOTHING), ours)
    _write_ring(result, inputs, ours)
    if foreign or memories:
        _relearn(detector, result, inputs, kept, memories, foreign=foreign)
    return result


def without_network(ours: Layout, rows: NDArray[np.uint8], layout: Sequence[tuple[str, str, int, int]]) -> NDArray[np.uint8]:
    """Of `migrated` what does not belong to a network: enough to say something about series that are about to be forgotten."""
    result = np.zeros((len(rows), ours.row_bytes), np.uint8)
    _carry({name: column for name, column in _columns(rows, layout).items() if name not in _NETWORK}, result, ours)
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
    width, features = ours.shape.networks * ours.shape.inputs, ours.shape.features
    if ours.shape.joint and ring.shape[1] == 2 * R.RECENT * features and ring.dtype.kind == "i":
        # Each feature had a network of its own, which read its level and its step: a joint one reads the levels.
        ring = np.ascontiguousarray(ring.reshape(len(ring), R.RECENT, features, 2)[..., 0]).reshape(len(ring), -1)
    length = ring.shape[1] // width
    inputs = np.zeros((len(age), R.RECENT, width), np.float32)
    steps_lack = features > 1 and not ours.shape.joint and ring.shape[1] == R.RECENT * features
    if not length or ring.shape[1] % width or ring.dtype.kind != "i" or steps_lack:
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
    detector: "Detector", rows: NDArray[np.uint8], inputs: Floats, kept: NDArray[np.int64], memories: Sequence[str], *, foreign: bool
) -> None:
    """Runs the network over the inputs that are kept; `memories` learn what it makes of them, and if `foreign` the rows take its state."""
    ours, single = detector.layout, detector.features == 1
    shape = ours.shape
    state = np.zeros((len(rows), 4, shape.networks * shape.layers * shape.units), np.float32)
    forecast = np.zeros((len(rows), shape.features), np.float32)
    residual_code = np.zeros((len(rows), R.RECENT, 1 + shape.latent), np.float32)
    sizes = (shape.networks, shape.inputs, shape.units, shape.layers, shape.latent, int(shape.joint))
    _read(inputs, kept, detector.artifact.packed(), sizes, _LAGS, state, forecast, residual_code)
    if foreign:
        for k, name in enumerate(_NETWORK[:4]):
            _field(rows, ours, name)[:] = state[:, k]
        _field(rows, ours, "forecast")[:] = forecast
    if not single:
        return

    u_d_level = np.zeros((len(rows), R.RECENT, 3), np.float32)
    level = np.zeros(len(rows), np.float32)
    for t in range(R.RECENT):
        u_d_level[:, t, :2], u_d_level[:, t, 2] = inputs[:, t], level
        level += (inputs[:, t, 0] - level) / np.float32(R.LEVEL_SAMPLES)
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
            one = v[i, v.shape[1] - kept[i] + age]
            distance, nearest = novelty(one, variance[i], centre[i], weight[i], scratch)
            remember(one, mean[i], variance[i], centre[i], weight[i], distance, nearest, age)


@njit
def _read(
    inputs: Floats,
    kept: NDArray[np.int64],
    w: Floats,
    sizes: tuple[int, int, int, int, int, int],
    lags: NDArray[np.int64],
    state: Floats,
    forecast: Floats,
    residual_code: Floats,
) -> None:
    """Runs the network from zero state over the newest `kept` (n,) of the inputs (n, RECENT, width) of each row, row by row.

    Args:
        inputs: of all networks of a row, the newest last.
        kept: how many of them are known.
        w: the weights as `weights.pack` lays them out.
        sizes: networks, inputs of each, units, layers, size of the code, whether there is one network over all features.
        lags: of the linear part of a joint forecast.
        state: receives h and c of encoder and decoder, (n, 4, networks * layers * units).
        forecast: receives the next input, (n, F).
        residual_code: receives what the first network makes of each input: u less its reconstruction, then the code, (n, RECENT, 1 + Z).
    """
    networks, width, units, layers, latent, joint = sizes
    recent, features = inputs.shape[1], forecast.shape[1]
    out = features if joint else 1
    code = (width + units + 1) * 4 * units + (layers - 1) * (2 * units + 1) * 4 * units
    decoder = code + latent * (units + 1)
    newest = decoder + (latent + units + 1) * 4 * units + (layers - 1) * (2 * units + 1) * 4 * units
    coming = newest + out * (units + 1)
    linear = coming + out * (units + 1)
    gates = np.zeros(4 * units, np.float32)
    z = np.zeros(latent, np.float32)
    lagged = np.zeros(len(lags) * features, np.float32)
    for i in range(len(inputs)):
        for n in range(networks):
            first = n * layers * units
            for t in range(recent - kept[i], recent):
                x = inputs[i, t, n * width : (n + 1) * width]
                top = _stack(w, 0, x, state[i, 0, first:], state[i, 1, first:], layers, gates)
                for j in range(latent):
                    z[j] = dot(w[code + j * units : code + (j + 1) * units], top) + w[code + latent * units + j]
                top = _stack(w, decoder, z, state[i, 2, first:], state[i, 3, first:], layers, gates)
                if n == 0:
                    residual_code[i, t, 0] = x[0] - (dot(w[newest : newest + units], top) + w[newest + out * units])
                    residual_code[i, t, 1:] = z
                if t < recent - 1:
                    continue
                if joint:
                    for k in range(len(lags)):
                        lagged[k * features : (k + 1) * features] = inputs[i, t - lags[k]]
                for j in range(out):
                    next_ = dot(w[coming + j * units : coming + (j + 1) * units], top) + w[coming + out * units + j]
                    if joint:
                        next_ += dot(w[linear + j * len(lagged) : linear + (j + 1) * len(lagged)], lagged)
                    forecast[i, n * out + j] = min(max(next_, -_INPUT_LIMIT), _INPUT_LIMIT)


@njit
def _stack(w: Floats, at: int, x: Floats, h: Floats, c: Floats, layers: int, gates: Floats) -> Floats:
    """Advances an LSTM with all its layers, whose weights begin at `at`, by the input x; returns the top layer's output, a view of h."""
    units = len(gates) // 4
    top = x
    for layer in range(layers):
        own, cell = h[layer * units : (layer + 1) * units], c[layer * units : (layer + 1) * units]
        bias = at + (len(top) + units) * len(gates)
        gates[:] = w[bias : bias + len(gates)]
        _add_products(w, at, top, gates)
        _add_products(w, at + len(top) * len(gates), own, gates)
        for j in range(units):
            i, f = _HALF * tanh(_HALF * gates[j]) + _HALF, _HALF * tanh(_HALF * gates[units + j]) + _HALF
            g, o = tanh(gates[2 * units + j]), _HALF * tanh(_HALF * gates[3 * units + j]) + _HALF
            cell[j] = f * cell[j] + i * g
            own[j] = o * tanh(cell[j])
        at, top = bias + len(gates), own
    return top


@njit
def _add_products(w: Floats, at: int, x: Floats, gates: Floats) -> None:
    """Adds the products of x with the columns of a matrix that begins at `at`, row by row of it."""
    n, k = len(gates), 0
    while k + 4 <= len(x):  # four rows at a time: the sums are read and written a quarter as often
        first = at + k * n
        a, b, c, d = w[first : first + n], w[first + n : first + 2 * n], w[first + 2 * n : first + 3 * n], w[first + 3 * n : first + 4 * n]
        for j in range(n):
            gates[j] += a[j] * x[k] + b[j] * x[k + 1] + c[j] * x[k + 2] + d[j] * x[k + 3]
        k += 4
    while k < len(x):
        a = w[at + k * n : at + (k + 1) * n]
        for j in range(n):
            gates[j] += a[j] * x[k]
        k += 1
