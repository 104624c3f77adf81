"""The step in batched tensor operations: the readable statement of the recipe, for the GPU, and the oracle of tests.

Letters: B rows, F features, H units, Z latent, I network inputs, P prototypes. A dictionary `s` holds the rows' fields as tensors
(B, count), named and typed as in `layout`; functions take it and replace entries. `step_cpu` is the same, row after row.

Rows are copied to the device tile by tile, 256 rows each, always full: matrix products then take the same path whatever the
batch, so scores do not depend on what else is in it. A series with several samples in a batch is stepped in as many rounds.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP, SampleBatch, Verdicts
from anomalyd.detector import recipe as R  # noqa: N812 - constants, named on every other line
from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import COUNTER_KIND, Layout, Shape
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.pages import Pages

Rows = dict[str, Tensor]
TILE = 256
_F4, _F8, _I4 = torch.float32, torch.float64, torch.int32
_TYPES = {"i8": torch.int64, "f8": _F8, "i4": _I4, "f4": _F4, "i2": torch.int16, "u1": torch.uint8}
_OF_FEATURES = (
    "kind",
    "rises",
    "falls",
    "born",
    "mean",
    "variance",
    "step_size",
    "low",
    "high",
    "run",
    "longest",
    "unchanged",
    "seen",
    "error",
    "forecast",
)
"""Fields that `judged` and `front` learn, feature by feature."""
_KEPT_AT_RESTART = {"time", "step_ms", "step_spread", "late_run", "kind", "last", "episode"}


def cuda_available() -> bool:
    """Whether torch can reach a GPU."""
    return bool(torch.cuda.is_available())


def unpack(rows: Tensor, layout: Layout) -> Rows:
    """Rows of bytes (B, row_bytes) as fields (B, count)."""
    return {
        f.name: rows[:, f.offset : f.offset + f.dtype.itemsize * f.count].contiguous().view(_TYPES[f.dtype.str[1:]])
        for f in layout.fields.values()
        if f.count
    }


def repack(s: Rows, rows: Tensor, layout: Layout) -> None:
    """Writes the fields back into the rows of bytes."""
    for f in layout.fields.values():
        if f.count:
            rows[:, f.offset : f.offset + f.dtype.itemsize * f.count] = s[f.name].contiguous().view(torch.uint8)


def floored(value: Tensor, mean: Tensor) -> Tensor:
    """A scale, never below what is float noise at this level."""
    return torch.clamp(torch.maximum(value, R.RELATIVE_FLOOR * mean.abs()), min=R.ABSOLUTE_FLOOR)


def scaled(x: Tensor, mean: Tensor | float, sd: Tensor) -> Tensor:
    """Asinh of the standardised value, within ± INPUT_LIMIT."""
    return torch.asinh((x - mean) / sd).clamp(-R.INPUT_LIMIT, R.INPUT_LIMIT).to(_F4)


def unscaled(u: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """The value whose scaled form is u."""
    return mean + sd * torch.sinh(u.clamp(-R.BAND_LIMIT, R.BAND_LIMIT).to(_F8))


def restart(s: Rows, which: Tensor) -> None:
    """Forgets what was learned about the values in the rows `which` (B,), but neither time, step, kind nor the open episode."""
    for name, field in s.items():
        if name not in _KEPT_AT_RESTART:
            s[name] = torch.where(which[:, None], torch.zeros_like(field), field)


def judged(s: Rows, x: Tensor, dt: Tensor, *, single: bool, fixed: int = 0) -> Tensor:
    """The values to judge (B, F): x, or for a counter its increase per second; decides which of the two a series is if `fixed` is 0."""
    if fixed:
        other = s["kind"] != fixed
        if single:
            restart(s, (other & (s["born"] > 0))[:, 0])
        s["kind"] = torch.full_like(s["kind"], fixed)
        s["born"] = torch.where(other, 0, s["born"]).int()
    last, born = s["last"], s["born"]
    undecided = (born > 0) & (s["kind"] == 0)
    s["rises"] = s["rises"] + (undecided & (x > last)).int()
    restarted = (x >= 0) & (x < 0.5 * last)
    s["falls"] = s["falls"] + torch.where(undecided & (x < last), torch.where(restarted, 1, R.COUNTER_AGE), 0).int()
    decide = undecided & (born == R.COUNTER_AGE)
    is_counter = decide & (s["falls"] <= 1) & (2 * s["rises"] >= R.COUNTER_AGE) & (last >= 0)
    s["kind"] = torch.where(decide, torch.where(is_counter, 2, 1), s["kind"]).int()

    increase = x - last
    no_counter = (s["kind"] == 2) & (increase < 0) & ~(x < 0.5 * last) & (fixed == 0)
    s["kind"] = torch.where(no_counter, 1, s["kind"]).int()
    anew = is_counter | no_counter
    if single:
        restart(s, anew[:, 0])
    s["born"] = torch.where(anew, 0, s["born"]).int()
    begun = (increase < 0) & (s["born"] > 0)
    increase = torch.where(increase < 0, x.clamp(min=0.0), increase)
    ms = torch.where(dt > 0, dt.to(_F8), s["step_ms"][:, 0].clamp(min=1.0).to(_F8))
    rate = torch.where(begun | last.isnan(), s["seen"], (increase / (ms[:, None] / 1000.0)).clamp(max=R.VALUE_LIMIT))
    return torch.where(s["kind"] == 2, rate, x)


def front(s: Rows, y: Tensor, gap: Tensor, *, single: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scales the judged values (B, F) with the statistics before them, then learns them.

    Returns u, d (B, F), expected, low, high (B, F) in the units of y, and the evidence of the guards (B,).
    """
    n, mean, variance = s["born"], s["mean"], s["variance"]
    scaler, clip_sd = (R.SCALER_SAMPLES, R.CLIP_SD) if single else (R.JOINT_SCALER_SAMPLES, R.JOINT_CLIP_SD)
    first = n == 0
    sd = floored(variance.sqrt(), mean)
    u = torch.where(first, 0.0, scaled(y, mean, sd))
    difference = torch.where(gap[:, None], 0.0, y - s["seen"])
    scale = floored(s["step_size"], mean)
    d = torch.where(first, 0.0, scaled(difference, 0.0, scale))

    forecast, error = s["forecast"], s["error"]
    band = R.BAND_ERRORS * error
    expected, low, high = (torch.where(first, y, unscaled(e, mean, sd)) for e in (forecast, forecast - band, forecast + band))
    rate = torch.maximum(1.0 / n.clamp(min=1), torch.tensor(1.0 / R.ERROR_SAMPLES))
    s["error"] = torch.where(first, 0.0, error + rate * ((u - forecast).abs() - error))
    s["forecast"] = torch.where(first, 0.0, forecast)

    lowest, highest = s["low"], s["high"]
    span = floored(highest - lowest, mean)
    excess = torch.maximum(y - highest, lowest - y) / span
    outside = (n >= R.EVIDENCE_AGE) & (excess > R.GUARD_TOLERANCE)
    guard = torch.where(outside, (R.GUARD_EVIDENCE + torch.log10(1.0 + excess.clamp(min=0.0))).clamp(max=R.EVIDENCE_LIMIT), 0.0)
    reach = torch.where((n >= 10) & (highest - lowest >= span), R.GUARD_GROWTH * span, math.inf)
    s["low"] = torch.where(first, y, torch.minimum(lowest + (mean - lowest) / R.GUARD_SAMPLES, torch.maximum(y, lowest - reach)))
    s["high"] = torch.where(first, y, torch.maximum(highest + (mean - highest) / R.GUARD_SAMPLES, torch.minimum(y, highest + reach)))

    share = 1.0 / (n + 1.0).double().clamp(max=scaler)
    same = ~first & (y == s["seen"]) & ~gap[:, None]
    run, unchanged = torch.where(same, s["run"] + 1, s["run"]), s["unchanged"]
    still = same & (n >= R.EVIDENCE_AGE) & (run >= R.FLAT_RUN) & (run > 4 * s["longest"])
    chance = torch.maximum(unchanged, 1.0 / (n + 2.0).to(_F4))
    flat = torch.where(still, (-run * torch.log10(chance)).clamp(max=R.FLAT_LIMIT), 0.0)
    guard = torch.maximum(guard, flat.to(_F8))
    over = ~first & (~same | (run > R.FLAT_LONG))
    s["longest"] = torch.where(over, torch.maximum(s["longest"], run), s["longest"]).int()
    s["run"] = torch.where(first | same, run, 0).int()
    s["unchanged"] = torch.where(first, unchanged, unchanged + share.to(_F4) * (same.to(_F4) - unchanged))
    delta = y - mean
    limit = torch.maximum(clip_sd * sd, torch.minimum(R.CLIP_SHARE * delta.abs(), R.CLIP_FAR * sd))
    delta = torch.where(n >= 10, torch.clamp(delta, -limit, limit), delta)
    size = difference.abs()
    limit_step = torch.maximum(R.CLIP_SD * scale, torch.minimum(R.CLIP_SHARE * size, R.CLIP_FAR_STEP * scale))
    size = torch.where(n >= 10, torch.minimum(size, limit_step), size)
    s["mean"] = torch.where(first, y, mean + share * delta)
    s["variance"] = torch.where(first, 0.0, (1.0 - share) * (variance + share * delta * delta))
    s["step_size"] = torch.where(first, 0.0, s["step_size"] + (size - s["step_size"]) / n.double().clamp(min=1.0, max=scaler))
    s["seen"] = y
    s["born"] = n + 1
    return u, d, expected, low, high, guard.amax(dim=1).to(_F4)


def absent(
    s: Rows, before: Rows, missing: Tensor, u: Tensor, d: Tensor, expected: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """F > 1: undoes what `judged` and `front` did with features that the sample lacks, (B, F); returns u, d, expected, low and high.

    The network reads their mean, the expectation stands as long as anything was seen of them, and nothing is learned of them.
    """
    for name in _OF_FEATURES:
        s[name] = torch.where(missing, before[name], s[name])
    s["last"] = torch.where(missing, math.nan, s["last"])
    never = missing & (s["born"] == 0)
    expected, low, high = (torch.where(never, math.nan, e) for e in (expected, low, high))
    return torch.where(missing, 0.0, u), torch.where(missing, 0.0, d), expected, low, high


def fixed(x: Tensor) -> Tensor:
    """To 1/2048 fixed point, saturating."""
    return torch.floor(x * R.FIXED_POINT + 0.5).clamp(-32767, 32767).to(torch.int16)


def advance(s: Rows, network: Autoencoder, inputs: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """One step of all recurrent states for inputs (B, networks, I).

    Returns the reconstruction of the newest u (B, F) and the code z (B, networks, Z); `forecast` becomes the next u.
    """
    b, n = inputs.shape[0], shape.networks
    ring = s["recent"].reshape(b, R.RECENT, -1)
    slot = (s["age"][:, 0] % R.RECENT).long()
    newest_in_ring = torch.arange(R.RECENT, device=slot.device)[None, :] == slot[:, None]
    s["recent"] = torch.where(newest_in_ring[:, :, None], fixed(inputs.reshape(b, 1, -1)), ring).reshape(b, -1)

    def layered(name: str) -> Tensor:  # (B, networks * L * H) -> (L, B * networks, H)
        return s[name].reshape(b * n, shape.layers, shape.units).transpose(0, 1).contiguous()

    def flat(state: Tensor) -> Tensor:
        return state.transpose(0, 1).reshape(b, -1)

    encoder, decoder = (layered("encoder_h"), layered("encoder_c")), (layered("decoder_h"), layered("decoder_c"))
    out = network.step(inputs.reshape(b * n, -1), encoder, decoder)
    s["encoder_h"], s["encoder_c"] = flat(out.encoder[0]), flat(out.encoder[1])
    s["decoder_h"], s["decoder_c"] = flat(out.decoder[0]), flat(out.decoder[1])
    coming = out.next.reshape(b, -1)
    if network.linear is not None:
        ring = s["recent"].reshape(b, R.RECENT, -1)
        slots = (s["age"].long() - torch.tensor(R.JOINT_LAGS, device=slot.device)) % R.RECENT  # (B, lags)
        lagged = ring.gather(1, slots[:, :, None].expand(-1, -1, ring.shape[2])).to(_F4) / R.FIXED_POINT
        coming = coming + network.linear(lagged.reshape(b, -1))
    s["forecast"] = coming.clamp(-R.INPUT_LIMIT, R.INPUT_LIMIT)
    return out.newest.reshape(b, -1), out.code.reshape(b, n, -1)


def novelty(s: Rows, memory: str, v: Tensor) -> tuple[Tensor, Rows]:
    """Distance (B,) of v (B, D) to the nearest prototype in units of each dimension's spread; and the memory once it has learned v."""
    b, size = v.shape
    age = s["age"][:, 0]
    centre = s[f"{memory}_centre"].reshape(b, size, R.PROTOTYPES).clone()
    weight = s[f"{memory}_weight"].int()  # (B, P)
    mean, variance = s[f"{memory}_mean"], s[f"{memory}_variance"]
    e = v[:, :, None] - centre.to(_F4) / R.FIXED_POINT
    distances = (e * e / (variance + 1e-4)[:, :, None]).sum(dim=1)
    distances = torch.where(weight == 0, 1e30, distances)
    best, nearest = distances.min(dim=1)
    empty = (weight == 0).all(dim=1)
    distance = torch.where(empty, 0.0, (best / size).sqrt())

    room = (weight == 0).any(dim=1)
    free = (weight > 0).sum(dim=1)  # prototypes fill from the front
    # the first of the lightest: which of several equal ones argmin names is up to the device
    lightest = (weight * R.PROTOTYPES + torch.arange(R.PROTOTYPES, device=weight.device)).argmin(dim=1)
    fresh = torch.where(room, empty | (distance > R.PROTOTYPE_NEW), distance > R.PROTOTYPE_REPLACE)
    chosen = torch.where(fresh, torch.where(room, free, lightest), nearest)[:, None]
    grown = weight.gather(1, chosen) + R.PROTOTYPE_UNIT
    rate = torch.clamp(R.PROTOTYPE_UNIT / grown, min=R.PROTOTYPE_RATE)
    at = chosen[:, None, :].expand(b, size, 1)
    old = centre.gather(2, at)[:, :, 0].to(_F4) / R.FIXED_POINT
    moved = torch.where(fresh[:, None], fixed(v), fixed(old + rate * (v - old)))
    centre.scatter_(2, at, moved[:, :, None])
    weight = weight.scatter(1, chosen, torch.where(fresh[:, None], R.PROTOTYPE_UNIT, grown).int())
    halve = (age % R.PROTOTYPE_HALVING == R.PROTOTYPE_HALVING - 1)[:, None] & (weight > 1)
    share = torch.clamp(1.0 / (age + 1), min=1.0 / R.PROTOTYPE_SAMPLES)[:, None]
    delta = v - mean
    return distance, {
        f"{memory}_centre": centre.reshape(b, -1),
        f"{memory}_weight": torch.where(halve, weight >> 1, weight).to(torch.int16),
        f"{memory}_mean": mean + share * delta,
        f"{memory}_variance": (1.0 - share) * (variance + share * delta * delta),
    }


def unfamiliar(s: Rows, channel: int, memory: str, v: Tensor) -> tuple[Tensor, Tensor]:
    """Novelty (B,) of v (B, D) and the evidence (B,) that it is; then learns both."""
    distance, learned = novelty(s, memory, v)
    found = evidence(s, channel, distance)
    usual = s["cluster"][:, channel, None] % R.CLUSTER_PACE == 0
    s |= {name: torch.where(usual, new, s[name]) for name, new in learned.items()}
    return distance, found


def evidence(s: Rows, channel: int, error: Tensor) -> Tensor:
    """How surprising `error` (B,) is after all the errors of this channel so far; then learns it, unless it is one more of a cluster.

    See step_cpu.evidence.
    """
    age = s["age"][:, 0]
    histogram = s["histogram"].clone()
    own = histogram[:, channel * R.BINS : (channel + 1) * R.BINS]  # (B, BINS), a view
    counts = own.to(_F4)
    total = counts.sum(dim=1)
    position = (torch.log(error + 1e-6) - R.BIN_LOW) / R.BIN_WIDTH
    inside = position.clamp(0.0, R.BINS - 1e-3)
    bin_ = inside.long()

    from_top = counts.flip(1).cumsum(1).flip(1)  # share at or above each bin
    above = from_top - counts
    need = R.TAIL_SHARE * total
    k = torch.arange(R.BINS, device=error.device)
    quantile = torch.where((from_top >= need[:, None]) | (k == 0), k, -1).amax(dim=1)
    at = quantile[:, None]
    part = (need - above.gather(1, at)[:, 0]) / counts.gather(1, at)[:, 0].clamp(min=1.0)
    edge = quantile + 1 - part.clamp(max=1.0)
    beyond = torch.where(k >= at, k + 0.5 - edge[:, None], 0.0).clamp(min=0.0)
    prior = R.TAIL_PRIOR_COUNT * R.HISTOGRAM_UNIT
    mass = prior + (counts * (beyond > 0)).sum(dim=1)
    excess = prior * (R.TAIL_PRIOR_MEAN / R.BIN_WIDTH) + (counts * beyond).sum(dim=1)
    tail = -1.0 - (position - edge) * mass / excess.clamp(min=1e-6) / math.log(10.0)
    mine = bin_[:, None]
    share = (above.gather(1, mine)[:, 0] + counts.gather(1, mine)[:, 0] * (bin_ + 1 - inside)) / total.clamp(min=1.0)
    seen = from_top.gather(1, mine)[:, 0]
    familiar = torch.log10(seen.clamp(min=1.0) / total.clamp(min=1.0))
    tail = torch.where(seen >= R.FAMILIAR * R.HISTOGRAM_UNIT, torch.maximum(tail, familiar), tail)
    log10p = torch.where(position > edge, tail, torch.log10(share.clamp(min=R.TAIL_SHARE)))
    length = (age + R.EVIDENCE_AGE).clamp(max=int(R.HISTOGRAM_SAMPLES)).to(_F4)
    result = (-log10p - R.LENGTH_COEFFICIENT * (torch.log10(length) - 3.0)).clamp(0.0, R.EVIDENCE_LIMIT)

    halve = (age % R.HISTOGRAM_HALVING == R.HISTOGRAM_HALVING - 1)[:, None]
    own.copy_(torch.where(halve, own >> 1, own))
    known = (age >= R.EVIDENCE_AGE) & (total > 0)
    before = s["cluster"][:, channel]
    rare = (before + 1).clamp(max=R.CLUSTER_LONGEST)
    cluster = torch.where(known, torch.where(-log10p >= R.CLUSTER_RARITY, rare, before >> 1), before)
    clusters = s["cluster"].clone()
    clusters[:, channel] = cluster
    s["cluster"] = clusters
    learned = (cluster <= 1) | (cluster % R.CLUSTER_PACE == 0)
    own.scatter_add_(1, mine, torch.where(learned, R.HISTOGRAM_UNIT, 0).to(torch.int16)[:, None])
    s["histogram"] = histogram
    return torch.where(known, result, 0.0)


def single_channels(s: Rows, u: Tensor, d: Tensor, newest: Tensor, code: Tensor) -> list[tuple[Tensor, Tensor]]:
    """F = 1: novelty in [residual, code], |u|, |d| and novelty in [u, d, level of u], each (B,) with its evidence; then learns them."""
    value, jump = u[:, 0].abs(), d[:, 0].abs()
    found = [
        unfamiliar(s, 0, "a", torch.cat([u - newest, code[:, 0]], dim=1)),
        (value, evidence(s, 1, value)),
        (jump, evidence(s, 2, jump)),
        unfamiliar(s, 3, "b", torch.cat([u, d, s["smooth"]], dim=1)),
    ]
    s["smooth"] = s["smooth"] + (u - s["smooth"]) / R.LEVEL_SAMPLES
    return found


def sustain(s: Rows, y: Tensor, evidence_: Tensor) -> Tensor:
    """F = 1: evidence (B,) smoothed, a value y (B,) far from what is usual in the long run counted in; then learns both."""
    n = s["born"][:, 0] - 1
    first = n <= 0
    mean, variance = s["long_mean"][:, 0], s["long_variance"][:, 0]
    sd = floored(variance.sqrt(), mean)
    far = torch.where(first, 0.0, scaled(y, mean, sd).abs())
    delta = y - mean
    limit = torch.maximum(R.CLIP_SD * sd, torch.minimum(R.CLIP_SHARE * delta.abs(), R.CLIP_FAR * sd))
    delta = torch.where(n >= 10, torch.clamp(delta, -limit, limit), delta)
    share = 1.0 / (n + 1.0).double().clamp(min=1.0, max=R.LONG_SAMPLES)
    s["long_mean"] = torch.where(first, y, mean + share * delta)[:, None]
    s["long_variance"] = torch.where(first, 0.0, (1.0 - share) * (variance + share * delta * delta))[:, None]
    before = s["sustained"][:, 0]
    now = before + (evidence_.to(_F4) + R.LONG_WEIGHT * far.to(_F4) - before) * (2.0 / (R.SUSTAINED_SAMPLES + 1.0))
    s["sustained"] = now[:, None]
    return R.SUSTAINED_SHARE * now


def joint_errors(s: Rows, u: Tensor, forecast: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """F > 1: squared forecast errors in units of what each feature's errors usually are; then learns them.

    `present` (B, F) are the features that the sample has; the others count as forecast exactly. Returns the largest (B,) and each feature's
    part (B, F) of their smoothed mean.
    """
    n = s["born"]  # this sample counted
    known = present & (n > 1)
    error, square = (u - forecast).abs(), s["error_square"]
    scale = (square + R.JOINT_FLOOR**2).sqrt()
    relative = torch.where(known, (error / scale).clamp(max=R.JOINT_LIMIT) ** 2, 0.0)
    error = torch.where(n > 10, torch.minimum(error, R.JOINT_ERROR_CLIP * scale), error)
    weight = 1.0 / (n - 1.0).clamp(min=1.0, max=R.JOINT_SCALER_SAMPLES)
    s["error_square"] = torch.where(known, square + (error * error - square) * weight, square)
    s["part"] = s["part"] + (relative - s["part"]) * (2.0 / (R.JOINT_SAMPLES + 1.0))
    part = s["part"] + 1e-6
    return relative.amax(dim=1), part / part.sum(dim=1, keepdim=True)


def joint_evidence(s: Rows, largest: Tensor) -> Tensor:
    """F > 1: evidence (B,) of the errors together, smoothed, of the largest now, and of how large they are: what lasts becomes usual."""
    smooth = s["part"].mean(dim=1)
    calibrated = evidence(s, 0, smooth.sqrt()) + R.JOINT_LARGEST * evidence(s, 1, largest.sqrt())
    return calibrated + torch.log(1.0 + smooth)


def step_rows(
    s: Rows, time: Tensor, x: Tensor, network: Autoencoder, shape: Shape, threshold: NDArray[np.float64], fixed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Scores one sample of each row: time (B,) in ms, x (B, F). Returns the columns of Verdicts and what is added to the tally, (B, 3).

    `s` becomes the state after. `threshold` is as in `Detector.threshold_at`; `fixed` is the kind of all series, 0 where each finds
    its own.
    """
    before = dict(s)
    age = s["age"][:, 0]
    known = age > 0
    dt = torch.where(known, time - s["time"][:, 0], 0)
    backwards = known & (dt < 0)
    late_run = torch.where(backwards, s["late_run"][:, 0] + 1, torch.where(known, 0, s["late_run"][:, 0]))
    set_back = backwards & (late_run >= R.LATE_RUN)
    late_run = torch.where(set_back, 0, late_run)
    late = backwards & ~set_back
    dt = torch.where(set_back, 0, dt)
    missing = x.isnan()
    repeated = known & ~backwards & (dt == 0) & ((x == s["last"]) | missing).all(dim=1)
    unlearned = late | repeated

    step_ms = s["step_ms"][:, 0]
    change = torch.clamp(dt.to(_F4) - step_ms, -0.5 * step_ms, 0.5 * step_ms)
    moved = torch.where(step_ms == 0, dt.to(_F4), step_ms + change / R.STEP_SAMPLES)
    spread = s["step_spread"][:, 0]
    spread = torch.where((dt > 0) & (step_ms > 0), spread + (change.abs() - spread) / R.SPREAD_SAMPLES, spread)
    s["step_spread"] = spread[:, None]
    step_ms = torch.where((dt > 0) & ~unlearned, moved, step_ms)
    s["step_ms"] = step_ms[:, None]
    gap = (dt.to(_F4) > R.GAP_STEPS * step_ms) & (age > 1)

    single = shape.features == 1
    x = torch.where(missing, 0.0, x.clamp(-R.VALUE_LIMIT, R.VALUE_LIMIT))
    unread = ~known[:, None] if single else (s["kind"] == 0) | (s["last"].isnan() & (s["born"] == 0))
    unknown = unread & (fixed == COUNTER_KIND)  # one reading of a counter is no rate yet
    forecast = s["forecast"]
    y = judged(s, x, dt, single=single, fixed=fixed)
    y = torch.where(unknown, 0.0, y)
    u, d, expected, low, high, guard = front(s, y, gap, single=single)
    s["born"] = torch.where(unknown, 0, s["born"])
    s["last"] = x
    if not single:
        u, d, expected, low, high = absent(s, before, missing, u, d, expected, low, high)
        y = torch.where(missing, math.nan, y)
        largest, share = joint_errors(s, u, forecast, ~missing)
    inputs = u[:, None, :] if shape.joint else torch.stack([u, d], dim=2)  # (B, networks, I)
    newest, code = advance(s, network, inputs, shape)
    if single:
        share = torch.ones_like(u)
        (_, a), (_, value), (_, jump), (_, b) = single_channels(s, u, d, newest, code)
        evidence_ = guard + (a + value + jump + b)
    else:
        evidence_ = joint_evidence(s, largest)

    log10_budget, intercept, slope, lowest, level, per_try, alarms_per_ms = (float(t) for t in threshold)
    log10_rate = log10_budget + torch.log10(step_ms.clamp(min=R.TRIAL_MS).to(_F8))
    limit = ((intercept - log10_rate) / slope).clamp(min=lowest)
    age = s["age"][:, 0]
    limit = limit + R.YOUNG_DECADES / slope * torch.log10(R.YOUNG_SAMPLES / age.double().clamp(min=1.0, max=R.YOUNG_SAMPLES))
    warm = age >= R.WARMUP_SAMPLES
    strength = torch.maximum(evidence_, sustain(s, y[:, 0], evidence_)) if single else evidence_
    score = torch.where(warm, strength.to(_F8) / limit, 0.0)
    fresh, envelope = evidence_.to(_F8) / limit, s["envelope"][:, 0]
    armed = warm & (fresh > envelope)  # what begins arms, not what goes on
    decayed = torch.maximum(fresh.to(_F4), envelope * math.exp(-1.0 / R.ENVELOPE_SAMPLES))
    s["envelope"] = torch.where(warm, decayed, envelope)[:, None]
    chance = per_try - alarms_per_ms * step_ms.clamp(min=R.TRIAL_MS).to(_F8)
    rest, alarms, strange = s["rest"][:, 0], strength.to(_F8) >= limit, strength.to(_F8) >= level
    trial = (rest == 0) & (age >= R.CONTROL_AGE) & (chance > 0.0) & ~unlearned
    crossed = trial & armed & strange & ~alarms
    likely = torch.where(trial, chance * (step_ms.to(_F8) / R.TRIAL_MS).clamp(max=1.0), 0.0).long()
    watched = torch.where(warm & ~unlearned, step_ms.long(), 0)
    rest = torch.where(strange, R.CONTROL_REST, (rest - 1).clamp(min=0))
    s["rest"] = rest[:, None].int()
    s["age"] = s["age"] + 1
    s["time"] = time[:, None]
    counter = (s["kind"] == 2).any(dim=1)
    flags = late * LATE + repeated * REPEATED + ~warm * WARMUP + armed * ARMED + counter * COUNTER
    for name, field in s.items():
        s[name] = torch.where(unlearned[:, None], before[name], field)
    s["late_run"] = late_run[:, None].int()
    columns = {
        "score": score,
        "evidence": strength.to(_F8),
        "observed": y,
        "expected": expected,
        "low": low,
        "high": high,
        "share": share,
        "flags": flags.to(torch.uint8),
    }
    return columns, torch.stack([crossed.long(), likely, watched], dim=1)


def rounds(row: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """Sample indices such that no row occurs twice in a round and each row's samples stay in order."""
    order = np.argsort(row, kind="stable")
    first = np.concatenate([[True], row[order][1:] != row[order][:-1]]) if len(row) else np.empty(0, bool)
    begin = np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))
    occurrence = np.empty(len(row), np.int64)
    occurrence[order] = np.arange(len(row)) - begin
    for k in range(int(occurrence.max()) + 1 if len(row) else 0):
        yield np.flatnonzero(occurrence == k)


class TorchBackend:
    """Runs `step_rows` over tiles of the batch on one device."""

    def __init__(self, layout: Layout, artifact: Artifact, device: str, fixed_kind: int = 0) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False  # results must not depend on the batch nor differ from the CPU's
        torch.backends.cudnn.allow_tf32 = False
        self._layout, self._device = layout, torch.device(device)
        self._fixed_kind = fixed_kind
        self._network = Autoencoder.from_artifact(artifact).to(self._device).eval()

    @torch.inference_mode()
    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts, threshold: NDArray[np.float64], tally: NDArray[np.int64]) -> None:
        """Fills `verdicts`; see Detector.step."""
        for members in rounds(batch.row):
            for begin in range(0, len(members), TILE):
                tally += self._tile(pages, batch, verdicts, threshold, members[begin : begin + TILE])

    def _tile(
        self, pages: Pages, batch: SampleBatch, verdicts: Verdicts, threshold: NDArray[np.float64], samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        n = len(samples)
        to: Callable[[NDArray[np.generic]], Tensor] = lambda a: torch.from_numpy(a).to(self._device)  # noqa: E731 - three uses below
        host = np.zeros((TILE, self._layout.row_bytes), np.uint8)
        time, value = np.zeros(TILE, np.int64), np.zeros((TILE, self._layout.shape.features))
        host[:n], time[:n], value[:n] = pages.buffer[batch.row[samples]], batch.time_ms[samples], batch.value[samples]
        rows = to(host)
        s = unpack(rows, self._layout)
        out, counted = step_rows(s, to(time), to(value), self._network, self._layout.shape, threshold, self._fixed_kind)
        repack(s, rows, self._layout)
        pages.buffer[batch.row[samples]] = rows[:n].cpu().numpy()
        for name, column in out.items():
            getattr(verdicts, name)[samples] = column[:n].cpu().numpy()
        tally: NDArray[np.int64] = counted[:n].sum(dim=0).cpu().numpy()
        return tally
