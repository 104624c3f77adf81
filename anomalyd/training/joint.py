"""A joint model for entities with several features, fitted on their own past.

What can be forecast by a linear map of a few newest inputs is, as in an autoregressive highway (Lai et al.: Modeling long- and short-term
temporal patterns with deep neural networks, SIGIR 2018): ridge regression finds it exactly, in a moment, and equally for every seed. The
network reads all features at once and must squeeze them through one code, so that it learns how they move together; it forecasts what the
map does not. Noise on its inputs keeps it from copying them. Settings as measured on server metrics: more cells and a wider code than the
univariate network, the newest values as the only window.
"""

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyd import __version__
from anomalyd.detector import Artifact, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.recipe import JOINT_LAGS
from anomalyd.detector.weights import tensor_shapes
from anomalyd.training.features import joint_inputs
from anomalyd.training.trainer import Plan, Progress, fit, lagged

PLAN: Final = Plan(steps=300, batch=32, stretch=64, window=1, input_noise=0.3, loss="huber")
RIDGE: Final = 0.1
"""Penalty of the linear map, per sample: about what PLAN's noise on the inputs would be to it."""
STRETCH: Final = 1024
"""Length of the pieces that a history is cut into; that of the shortest history, if that is shorter."""
UNITS: Final = 64
LATENT: Final = 8
STEP_MS: Final = 60_000
"""Sampling interval where none is known; it only matters to counters, whose rates are scaled anyway."""


def fit_joint(histories: list[NDArray[np.float64]], seed: int = 0, plan: Plan = PLAN, progress: Progress | None = None) -> Artifact:
    """Fits one network to the histories (T, F) of one or several entities with the same features; equal seeds, equal weights.

    Histories are taken as normal; what is not is rare enough not to matter. The threshold's calibration is the shipped one for several
    features: evidence is calibrated per series, so it carries over. Raises ValueError for histories of different widths.
    """
    features = histories[0].shape[1]
    if any(history.shape[1] != features for history in histories):
        msg = f"histories have different numbers of features: {sorted({h.shape[1] for h in histories})}"
        raise ValueError(msg)
    shape = Shape(features, UNITS, 1, LATENT, joint=True)
    whole, inputs = joint_pieces(histories, shape)
    network, loss = fit(inputs, inputs, shape, plan, seed, progress, linear_map(whole))
    state = network.state_dict()
    about = {"entities": len(histories), "samples": sum(map(len, histories)), "seed": seed, "steps": plan.steps, "loss": round(loss, 4)}
    tensors = {name: state[name].numpy() for name in tensor_shapes(shape)}
    version = f"{__version__}+seed{seed}"
    template = artifacts.load(shipped()).for_features(features)
    return artifacts.sealed(replace(template, name="joint", version=version, shape=shape, tensors=tensors, several=None, training=about))


def joint_pieces(histories: list[NDArray[np.float64]], shape: Shape) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """What a network of this shape is fed for histories (T, F): whole, (T, F) each, and in pieces of one length that overlap, (N, L, F)."""
    whole = scaled(histories, shape)
    return whole, overlapping(whole)


def scaled(histories: list[NDArray[np.float64]], shape: Shape) -> list[NDArray[np.float32]]:
    """What a network of this shape is fed for histories (T, F), (T, F) each."""
    template = artifacts.load(shipped()).for_features(shape.features)
    blank = replace(template, shape=shape, tensors={name: np.zeros(size, np.float32) for name, size in tensor_shapes(shape).items()})
    return [joint_inputs(history, STEP_MS, blank) for history in histories]


def overlapping(whole: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Histories (T, F) in pieces of one length that overlap by half, (N, L, F)."""
    length = min(STRETCH, *map(len, whole))
    starts = [(one, start) for one in whole for start in range(0, len(one) - length + 1, max(1, length // 2))]
    return np.stack([one[start : start + length] for one, start in starts])


def linear_map(whole: list[NDArray[np.float32]]) -> torch.Tensor:
    """Ridge regression of the next inputs on the lagged ones, over all (T, F): weights (F, lags * F)."""
    features = whole[0].shape[1]
    width = len(JOINT_LAGS) * features
    gram, moment, count = np.zeros((width, width)), np.zeros((width, features)), 0
    for one in whole:
        seen = lagged(torch.from_numpy(one)[None])[0, :-1].double().numpy()
        gram += seen.T @ seen
        moment += seen.T @ one[1:].astype(np.float64)
        count += len(seen)
    weight = np.linalg.solve(gram + RIDGE * count * np.eye(width), moment).T
    return torch.from_numpy(weight.astype(np.float32))
