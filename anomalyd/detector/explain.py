"""Why a sample was strange, read off state rows: gates and memory of the network, and each channel's part of the evidence.

The step keeps neither. Gates are recomputed here from weights, inputs and carried state, by the equations of the cell (Hochreiter &
Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000), and give the step's own h and c but for rounding. Parts of the
evidence are recomputed with the functions of `step_torch` on a copy of the row as it was before the sample.

Letters: T steps, N networks of a row, L layers, H units, I inputs, Z latent, F features; an axis of 2 is encoder and decoder.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import recipe as R  # noqa: N812 - constants, as in the steps
from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import Layout

Floats = NDArray[np.float64]
Row = dict[str, NDArray[Any]]
Beginning = Literal["carried", "birth", "empty"]

PARTS: Final = ("encoder", "decoder")
_NEARLY_OPEN: Final = 1.0 - 1e-9
"""A forget gate that is open altogether would remember for ever, which is no number."""
_ROUNDING: Final = 0.05
"""Evidence that parts computed from rounded inputs may lack or have too much; guards say at least `GUARD_EVIDENCE` or nothing."""


class Gates(NamedTuple):
    """The gates of one layer at one step, each (..., H)."""

    input: Floats
    forget: Floats
    candidate: Floats
    output: Floats


class Course(NamedTuple):
    """The network over T steps."""

    gates: Floats
    """Input, forget and output gate, (T, 3, 2, L, N, H)."""
    hidden: Floats
    """(T, 2, L, N, H)"""
    cell: Floats
    """(T, 2, L, N, H)"""
    code: Floats
    """(T, N, Z)"""
    newest: Floats
    """Reconstruction of the step's own u, (T, F)."""
    forecast: Floats
    """Of the next u, (T, F)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the network did over the inputs that a row keeps, and what it holds after them."""

    inputs: Floats
    """(T, N, I), oldest first."""
    course: Course
    beginning: Beginning
    """From which state the network was run: the one it was carried in; none, because the window begins with the series; none, because the
    state in front of the window is not known."""
    cell: Floats
    """As the row carries it, (2, L, N, H)."""
    deviation: float
    """Largest difference between recomputed and carried h and c. Small but for beginning "empty": inputs are kept to 1/2048."""


class Channel(NamedTuple):
    """One part of the evidence."""

    name: str
    measure: float | None
    """What was calibrated; None for the guards, which are not."""
    evidence: float
    about: str


# --- rows ---------------------------------------------------------------------------------------------------------


def fields(row: NDArray[np.uint8], layout: Layout) -> Row:
    """The fields of one row by name, each (count,); copies."""
    return {f.name: row[f.offset : f.offset + f.dtype.itemsize * f.count].copy().view(f.dtype) for f in layout.fields.values() if f.count}


def recent(row: Row, layout: Layout) -> Floats:
    """The newest network inputs that a row keeps, at most 16, oldest first, (T, N, I)."""
    shape, age = layout.shape, int(row["age"][0])
    ring = row["recent"].reshape(R.RECENT, shape.networks, shape.inputs) / R.FIXED_POINT
    slots = (np.arange(max(0, age - R.RECENT), age) % R.RECENT).astype(np.int64)
    return np.asarray(ring[slots], np.float64)


def carried(row: Row, layout: Layout, kind: Literal["h", "c"]) -> Floats:
    """The state of both LSTMs in a row, (2, L, N, H)."""
    shape = layout.shape
    parts = [row[f"{part}_{kind}"].reshape(shape.networks, shape.layers, shape.units).transpose(1, 0, 2) for part in PARTS]
    return np.asarray(np.stack(parts), np.float64)


def unscaled(u: Floats, row: Row) -> Floats:
    """Values (..., F) in the units of the series whose scaled form by the row's statistics is u (..., F)."""
    mean = row["mean"]
    sd = np.maximum(np.maximum(np.sqrt(row["variance"]), R.RELATIVE_FLOOR * np.abs(mean)), R.ABSOLUTE_FLOOR)
    return np.asarray(mean + sd * np.sinh(np.clip(u, -R.BAND_LIMIT, R.BAND_LIMIT)))


# --- the network --------------------------------------------------------------------------------------------------


def cell_step(artifact: Artifact, part: str, layer: int, x: Floats, h: Floats, c: Floats) -> tuple[Gates, Floats, Floats]:
    """One step of one LSTM layer, with its gates.

    Args:
        artifact: the weights.
        part: encoder or decoder.
        layer: from 0.
        x: input of the layer, (N, width).
        h: hidden state before, (N, H).
        c: cell state before, (N, H).

    Returns:
        Gates, and h and c after, each (N, H).
    """
    w, u, b, b2 = (np.asarray(artifact.tensors[f"{part}.{name}_l{layer}"], np.float64) for name in _CELL)
    # torch stacks the gates in the order input, forget, candidate, output
    i, f, g, o = np.split(x @ w.T + h @ u.T + b + b2, 4, axis=-1)
    gates = Gates(_sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o))
    c = gates.forget * c + gates.input * gates.candidate
    return gates, gates.output * np.tanh(c), c


def run(artifact: Artifact, inputs: Floats, hidden: Floats, cell: Floats) -> Course:
    """Runs the network over inputs (T, N, I) from hidden and cell states (2, L, N, H)."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in artifact.tensors.items()}
    layers = artifact.shape.layers
    h, c, steps = hidden.copy(), cell.copy(), []
    for t, x in enumerate(inputs):
        gates = np.empty((3, *h.shape))
        code = x
        for p, part in enumerate(PARTS):
            if part == "decoder":
                x = code = x @ tensors["code.weight"].T + tensors["code.bias"]  # noqa: PLW2901 - what the next layer reads
            for layer in range(layers):
                opened, h[p, layer], c[p, layer] = cell_step(artifact, part, layer, x, h[p, layer], c[p, layer])
                gates[:, p, layer] = opened.input, opened.forget, opened.output
                x = h[p, layer]  # noqa: PLW2901 - what the next layer reads
        newest, forecast = ((x @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"]).reshape(-1) for head in ("newest", "next"))
        if artifact.shape.joint:
            nothing = np.zeros_like(inputs[0])  # of inputs in front of the window nothing is known
            lagged = np.concatenate([inputs[t - lag] if lag <= t else nothing for lag in R.JOINT_LAGS], axis=1)
            forecast = forecast + (lagged @ tensors["linear.weight"].T).reshape(-1)
        steps.append(Course(gates, h.copy(), c.copy(), code, newest, forecast))
    return Course(*(np.stack(column) for column in zip(*steps, strict=True)))


def memory(artifact: Artifact, layout: Layout, rows: NDArray[np.uint8]) -> Memory | None:
    """The network over the window that the last row keeps; None where it keeps no input.

    Args:
        artifact: the weights.
        layout: of the rows.
        rows: states of one series after successive samples, oldest first, uint8 (m, row_bytes), m > 0. The state in front of the window is
            looked for among them.
    """
    last = fields(rows[-1], layout)
    inputs, age = recent(last, layout), int(last["age"][0])
    if not len(inputs):
        return None
    zero = np.zeros((2, layout.shape.layers, layout.shape.networks, layout.shape.units))
    beginning: Beginning = "birth" if age == len(inputs) else "empty"
    hidden = cell = zero
    if beginning == "empty":
        earlier = [row for row in rows[:-1] if int(fields(row, layout)["age"][0]) == age - len(inputs)]
        if earlier:  # samples of which nothing was learned leave a row as it was
            before = fields(earlier[-1], layout)
            hidden, cell, beginning = carried(before, layout, "h"), carried(before, layout, "c"), "carried"
    course = run(artifact, inputs, hidden, cell)
    own_h, own_c = carried(last, layout, "h"), carried(last, layout, "c")
    deviation = max(float(np.abs(course.hidden[-1] - own_h).max()), float(np.abs(course.cell[-1] - own_c).max()))
    return Memory(inputs, course, beginning, own_c, deviation)


def half_life(forget: Floats) -> Floats:
    """Steps after which half of what a cell holds is left, if its forget gate stays at its mean over the window.

    Args:
        forget: gates over a window, (T, ..., H).

    Returns:
        ln 0.5 / ln mean, (..., H).
    """
    return np.asarray(np.log(0.5) / np.log(np.clip(forget.mean(axis=0), 1e-9, _NEARLY_OPEN)))


# --- the evidence -------------------------------------------------------------------------------------------------


def channels(
    artifact: Artifact, layout: Layout, before: NDArray[np.uint8], after: NDArray[np.uint8], observed: Floats, evidence: float
) -> list[Channel]:
    """What the evidence on a sample is made of, in the order of the channels, guards last; empty where nothing was learned of the sample.

    Args:
        artifact: the weights.
        layout: of the rows.
        before: the row in front of the sample, uint8 (row_bytes,).
        after: and behind it.
        observed: the value that was judged, (F,).
        evidence: on the sample, all of it.
    """
    old, new = fields(before, layout), fields(after, layout)
    if int(new["age"][0]) != int(old["age"][0]) + 1:
        return []
    found = _single(artifact, layout, before, new) if layout.shape.features == 1 else _joint(layout, before, old, new)
    fresh = min(evidence, _fresh(old, new, observed)) if layout.shape.features == 1 else evidence
    rest = fresh - sum(channel.evidence for channel in found)
    # Where the step found a range left or a line flat is not kept, but what it adds is what the channels lack.
    found.append(Channel("guards", None, rest if rest > _ROUNDING else 0.0, _guarded(old, new, observed) if rest > _ROUNDING else ""))
    if evidence - fresh > _ROUNDING:
        about = "it has been strange for some samples, or far from what is usual in the long run"
        found.append(Channel("sustained", float(new["sustained"][0]), evidence - fresh, about))
    return found


def _fresh(old: Row, new: Row, observed: Floats) -> float:
    """One feature: evidence on the sample alone, from how the smoothed one moved."""
    if int(new["born"][0]) <= 1:
        far = 0.0
    else:
        mean, sd = float(old["long_mean"][0]), math.sqrt(float(old["long_variance"][0]))
        far = abs(math.asinh((float(observed[0]) - mean) / max(sd, R.RELATIVE_FLOOR * abs(mean), R.ABSOLUTE_FLOOR)))
        far = min(far, R.INPUT_LIMIT)
    was, now = float(old["sustained"][0]), float(new["sustained"][0])
    return was + (now - was) * (R.SUSTAINED_SAMPLES + 1.0) / 2.0 - R.LONG_WEIGHT * far


def _single(artifact: Artifact, layout: Layout, before: NDArray[np.uint8], new: Row) -> list[Channel]:
    """One feature: novelty in [residual, code], |u|, |d| and novelty in [u, d, level of u]."""
    import torch

    from anomalyd.detector import step_torch

    old = fields(before, layout)
    inputs = recent(new, layout)[-1:]
    course = run(artifact, inputs, carried(old, layout, "h"), carried(old, layout, "c"))
    s = step_torch.unpack(torch.from_numpy(before.copy())[None, :], layout)

    def row(values: Floats) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.float32))

    with torch.inference_mode():
        u, d = row(inputs[:, :, 0]), row(inputs[:, :, 1])
        found = step_torch.single_channels(s, u, d, row(course.newest[:1]), row(course.code[:1]))
    return [Channel(name, float(m[0]), float(part[0]), about) for (name, about), (m, part) in zip(_SINGLE, found, strict=True)]


def _joint(layout: Layout, before: NDArray[np.uint8], old: Row, new: Row) -> list[Channel]:
    """Several features: their forecast errors together, the largest, and their size; all follow from how the smoothed ones moved."""
    import torch

    from anomalyd.detector import step_torch

    part, was = new["part"].astype(np.float64), old["part"].astype(np.float64)
    largest = max(0.0, float((was + (part - was) * (R.JOINT_SAMPLES + 1.0) / 2.0).max()))
    smooth = float(part.mean())
    s = step_torch.unpack(torch.from_numpy(before.copy())[None, :], layout)
    with torch.inference_mode():
        errors = [torch.tensor([math.sqrt(measure)], dtype=torch.float32) for measure in (smooth, largest)]
        parts = [float(step_torch.evidence(s, number, error)[0]) for number, error in enumerate(errors)]
    evidence = parts[0], R.JOINT_LARGEST * parts[1], math.log1p(smooth)
    measures = math.sqrt(smooth), math.sqrt(largest), smooth
    return [Channel(name, measure, share, about) for (name, about), measure, share in zip(_SEVERAL, measures, evidence, strict=True)]


def _guarded(old: Row, new: Row, observed: Floats) -> str:
    if bool(((observed > old["high"]) | (observed < old["low"])).any()):
        return "the value leaves the range that the series has kept to"
    if int(new["run"].max()) >= R.FLAT_RUN:
        return f"the value has not changed for {int(new['run'].max())} samples, far longer than ever before"
    return "what the channels do not account for"


_CELL: Final = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SINGLE: Final = (
    ("A", "a pattern that the network has not met in this series"),
    ("value", "the value is far from the mean"),
    ("jump", "the step from the last value is large"),
    ("B", "an unusual combination of value, step and level"),
)
_SEVERAL: Final = (
    ("smoothed", "the features have been far from their forecast for some samples, more than is usual for the series"),
    ("largest", "one feature of this sample is far from its forecast, more than is usual for the series"),
    ("size", "how far they have been, in units of their usual errors"),
)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))  # the same, without overflow
