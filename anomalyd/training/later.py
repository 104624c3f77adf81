"""What is held back: the latest part of each series, which training does not see and by which it is judged and stopped."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector.network import Autoencoder
from anomalyd.training.trainer import Plan, guesses, loss_of

Floats32 = NDArray[np.float32]

WARM: Final = 256
"""Steps in front of what is held back that the network runs over to come to its state; they count for nothing."""
LONGEST: Final = 512
"""Steps of a series that are judged, at most: the first ones behind the cut."""
MOST: Final = 128
"""Series that are judged, at most, evenly over all."""
UNSEEN: Final = 32
"""Of the warm steps the first ones are no measure of how well a series is usually forecast."""
LEAST_SCALE: Final = 0.05
"""Smallest scale of forecast errors, in asinh units: to miss a constant by less is hardly strange."""


class Pieces(NamedTuple):
    """Series, or parts of them, of one length; padded with zeros behind their end."""

    inputs: Floats32
    """(N, L, I)"""
    targets: Floats32
    """(N, L, F)"""
    counts: Floats32
    """How much each step counts, (N, L)."""


class Errors(NamedTuple):
    """How far off a network is on what was held back, in units of the scaled value."""

    forecast: float
    """Mean absolute error of the next value."""
    reconstruction: float
    """Mean absolute error of the newest value."""
    surprise: float
    """Mean negative log-likelihood of forecast errors under a Laplace distribution, of which each series' own warm steps give the scale:
    calibrated by the past of the series, as scores are."""


def stacked(parts: Sequence[tuple[Floats32, Floats32, Floats32]]) -> Pieces:
    """Parts (inputs, targets, counts) of different lengths as pieces of the longest one."""
    longest = max(len(inputs) for inputs, _, _ in parts)

    def padded(column: Floats32) -> Floats32:
        return np.pad(column, [(0, longest - len(column)), *[(0, 0)] * (column.ndim - 1)])

    return Pieces(*(np.stack([padded(part[i]) for part in parts]) for i in range(3)))


def cut_at(samples: int, share: float) -> int:
    """How many of a series' samples are trained on when a share of them, the latest, is held back."""
    return samples - round(share * samples)


def held_back(series: Sequence[tuple[Floats32, Floats32]], share: float) -> Pieces | None:
    """The pieces to judge by, of whole series (inputs (n, I), targets (n, F)); None where nothing is held back."""
    if share <= 0.0:
        return None
    chosen = np.unique(np.linspace(0, len(series) - 1, min(MOST, len(series))).round().astype(int))
    parts = []
    for i in chosen.tolist():
        inputs, targets = series[i]
        cut = cut_at(len(inputs), share)
        start, end = max(0, cut - WARM), min(len(inputs), cut + LONGEST)
        counts = np.zeros(end - start, np.float32)
        counts[cut - start :] = 1.0
        parts.append((inputs[start:end], targets[start:end], counts))
    return stacked(parts)


def errors(network: Autoencoder, later: Pieces) -> Errors:
    """How far off a network is."""
    newest, following = guesses(network, later.inputs)
    missed = np.abs(later.targets[:, 1:] - following[:, :-1]).mean(axis=2)
    rebuilt = np.abs(later.targets - newest).mean(axis=2)
    counts, aimed = later.counts, later.counts[:, 1:]
    warm = np.cumsum(later.counts, axis=1) == 0
    warm[:, :UNSEEN] = False
    warm = warm[:, 1:]
    scale = np.maximum((missed * warm).sum(axis=1) / np.maximum(warm.sum(axis=1), 1), LEAST_SCALE)[:, None]
    surprise = np.log(2.0 * scale) + missed / scale
    return Errors(*(_mean(value, weight) for value, weight in ((missed, aimed), (rebuilt, counts), (surprise, aimed))))


def _mean(value: NDArray[np.floating], weight: Floats32) -> float:
    """Over series, each by the mean of its steps: the long ones do not decide."""
    own = weight.sum(axis=1)
    return float(((value * weight).sum(axis=1)[own > 0] / own[own > 0]).mean())


class Stopper:
    """Looks at the held-back loss every so often, keeps the best weights, and stops when they have not become better for long.

    Args:
        later: what was held back.
        plan: of the training.
        patience: looks without an improvement after which to stop; 0: never.
    """

    LOOKS: Final = 25
    """In a whole training."""

    def __init__(self, later: Pieces, plan: Plan, patience: int) -> None:
        self._later, self._plan, self._patience = later, plan, patience
        self._every = max(1, plan.steps // self.LOOKS)
        self.curve: list[tuple[int, float]] = []
        """Steps done and loss then."""
        self.best_step = 0
        self.best_loss = math.inf
        self._best: dict[str, NDArray[np.generic]] = {}

    def __call__(self, network: Autoencoder, done: int) -> bool:
        """See `trainer.Watch`."""
        if done % self._every and done < self._plan.steps:
            return False
        loss = loss_of(network, *self._later, self._plan)
        self.curve.append((done, loss))
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, done
            self._best = {name: tensor.cpu().numpy().copy() for name, tensor in network.state_dict().items()}
        looks_since = sum(step > self.best_step for step, _ in self.curve)
        return bool(self._patience) and looks_since >= self._patience

    def restore(self, network: Autoencoder) -> None:
        """Gives the network the best weights."""
        state = network.state_dict()
        for name, values in self._best.items():
            state[name].copy_(state[name].new_tensor(values))
