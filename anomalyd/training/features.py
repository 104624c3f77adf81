"""The detector's own front end over whole series, so that training sees exactly what scoring sees."""

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.detector import Artifact, Detector
from anomalyd.detector.layout import Layout, Shape
from anomalyd.detector.recipe import FIXED_POINT, RECENT
from anomalyd.detector.step_torch import front, judged, unpack


@torch.inference_mode()
def network_inputs(
    values: NDArray[np.float64], step_ms: NDArray[np.float64], shape: Shape
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the network is fed for series of finite values (N, T, F) sampled every step_ms (N,).

    Returns inputs (N, T, I) and the scaled values u (N, T, F) that it has to reconstruct. For a shape that is not joint, N * F
    univariate series come back, feature by feature.
    """
    if not shape.joint and values.shape[2] > 1:
        flat = values.transpose(0, 2, 1).reshape(-1, values.shape[1], 1)
        return network_inputs(flat, np.repeat(step_ms, values.shape[2]), Shape(1, shape.units, shape.layers, shape.latent, joint=False))
    n, t, f = values.shape
    layout = Layout(shape)
    s = unpack(torch.zeros(n, layout.row_bytes, dtype=torch.uint8), layout)
    dt = torch.from_numpy(step_ms).long()
    s["step_ms"] = dt[:, None].float()
    no_gap = torch.zeros(n, dtype=torch.bool)
    u_all, d_all = np.empty((n, t, f), np.float32), np.empty((n, t, f), np.float32)
    for i in range(t):
        x = torch.from_numpy(values[:, i])
        y = judged(s, x, dt, single=f == 1)
        u, d, *_ = front(s, y, no_gap, single=f == 1)
        s["last"] = x
        u_all[:, i], d_all[:, i] = u.numpy(), d.numpy()
    return (u_all if shape.joint else np.concatenate([u_all, d_all], axis=2)), u_all


def row_inputs(detector: Detector, time_ms: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float32]:
    """What the network of a detector is fed for one series, (n, I): to 1/2048, as rows keep it, and by the compiled step.

    Args:
        detector: for F values; its weights do not matter.
        time_ms: event times, each later than the one before, shape (n,).
        values: NaN where one of several is missing, shape (n, F).
    """
    width = detector.layout["recent"].count // RECENT
    pages = detector.new_pages(1)
    inputs = np.empty((len(values), width), np.float32)
    for start in range(0, len(values), RECENT):
        part = np.ascontiguousarray(values[start : start + RECENT], np.float64)
        n = len(part)
        detector.step(pages, SampleBatch(np.zeros(n, np.int32), time_ms[start : start + n], part, np.arange(n, dtype=np.int32)))
        ring = pages.field("recent")[0].reshape(RECENT, width)
        newest = int(pages.field("age")[0, 0])
        inputs[start : start + n] = ring[(newest - n + np.arange(n)) % RECENT] / FIXED_POINT
    return inputs


def joint_inputs(history: NDArray[np.float64], step_ms: int, artifact: Artifact) -> NDArray[np.float32]:
    """What a joint network is fed for one entity's history (T, F), NaN where a value is missing, (T, F): see `row_inputs`.

    Args:
        history: in the order of time.
        step_ms: its sampling interval.
        artifact: of the network's shape; its weights do not matter.
    """
    return row_inputs(Detector(artifact, "cpu"), step_ms * np.arange(1, len(history) + 1, dtype=np.int64), history)
