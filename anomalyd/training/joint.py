"""A joint model for entities with several features, fitted on their own past.

The network reads all features at once and must squeeze them through one code, so that it learns how they move together; noise on its
inputs keeps it from copying them. Settings as measured on server metrics: more cells and a wider code than the univariate network, the
newest values as the only window.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd import __version__
from anomalyd.detector import Artifact, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.weights import tensor_shapes
from anomalyd.training.features import network_inputs
from anomalyd.training.trainer import Plan, Progress, fit

PLAN: Final = Plan(steps=600, batch=64, stretch=64, window=1, input_noise=0.3)
STRETCH: Final = 1024
"""Length of the pieces that a history is cut into; that of the shortest history, if that is shorter."""
UNITS: Final = 64
LATENT: Final = 8
STEP_MS: Final = 60_000.0
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
    length = min(STRETCH, *map(len, histories))
    inputs = np.concatenate([_pieces(history, length, shape) for history in histories])
    network, loss = fit(inputs, inputs, shape, plan, seed, progress)
    state = network.state_dict()
    template = artifacts.load(shipped()).for_features(features)
    about = {"entities": len(histories), "samples": sum(map(len, histories)), "seed": seed, "steps": plan.steps, "loss": round(loss, 4)}
    tensors = {name: state[name].numpy() for name in tensor_shapes(shape)}
    version = f"{__version__}+seed{seed}"
    return artifacts.sealed(replace(template, name="joint", version=version, shape=shape, tensors=tensors, several=None, training=about))


def _pieces(history: NDArray[np.float64], length: int, shape: Shape) -> NDArray[np.float32]:
    """The scaled history (T, F) in pieces (N, length, F), half overlapping."""
    scaled, _ = network_inputs(history[None], np.array([STEP_MS]), shape)
    starts = range(0, len(history) - length + 1, max(1, length // 2))
    return np.stack([scaled[0, start : start + length] for start in starts])
