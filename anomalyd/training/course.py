"""One training, whatever the number of features: prepared pieces in, a network with its course out. Pure functions of data and seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyd.detector import Artifact, Detector, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.weights import tensor_shapes
from anomalyd.errors import ArtifactError
from anomalyd.training import generate, joint
from anomalyd.training.data import Data, History
from anomalyd.training.features import network_inputs, row_inputs
from anomalyd.training.history import filled
from anomalyd.training.later import Errors, Floats32, Pieces, Stopper, cut_at, errors, held_back, stacked
from anomalyd.training.trainer import Plan, Progress, fit

PIECE: Final = 512
"""Samples of a piece of a single series: the network begins each one from zero state and carries it on to the end."""
ROWS_PER_PIECE: Final = 512
"""Pieces of a single series overlap so much that there are about 512 of them, as far as they are 16 samples apart; beyond, by half."""
GENERATED_SERIES: Final = 384
"""So many generated series are mixed in, whatever their share."""


@dataclass(frozen=True)
class Regime:
    """How to train, beyond one step after another."""

    plan: Plan
    held_back: float
    """Share of each series, the latest part, that is not trained on; the loss on it stops the training early. 0: none."""
    patience: int = 6
    """Looks at the held-back loss (of 25 in a whole training) without an improvement that stop it; 0: never."""
    generated: float = 0.0
    """Share of generated series in what a single-metric network is trained on, so that it stays able to judge what it has never seen."""


SINGLE: Final = Regime(Plan(batch=64), held_back=0.2, generated=0.25)
"""For one feature: the pretraining's plan, on smaller batches since there is less to see."""
SINGLE_TUNED_RATE: Final = 1e-3
"""Learning rate where training begins from weights that are good already."""
JOINT: Final = Regime(joint.PLAN, held_back=0.0)
"""For several features: as measured."""


@dataclass(frozen=True)
class Prepared:
    """What a network is trained on and judged by."""

    pieces: Pieces
    draw: Floats32 | None
    """How often each piece is drawn, (N,); None: all equally often, and every step of them counts."""
    later: Pieces | None
    linear: torch.Tensor | None = None


@dataclass
class Learned:
    """A trained network and how it went."""

    network: Autoencoder
    loss: float
    """Mean of the last tenth of the steps."""
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    later: list[tuple[int, float]] = field(default_factory=list)
    """Steps done, and loss on what was held back."""
    best_step: int = 0
    """After so many steps the weights are taken."""
    errors: Errors | None = None
    """On what was held back."""

    @property
    def tensors(self) -> Mapping[str, NDArray[np.float32]]:
        """What scoring needs."""
        state = self.network.state_dict()
        return {name: state[name].numpy() for name in tensor_shapes(self.network.shape)}


def prepared(data: Data, shape: Shape, regime: Regime, seed: int) -> Prepared:
    """Runs the detector's front end over the histories and cuts what comes out.

    Series count alike whatever their length when there is a single feature; for several features every piece does.
    """
    return _joint(data.histories, shape, regime) if shape.joint else _single(data.histories, regime, seed)


def _single(histories: Sequence[History], regime: Regime, seed: int) -> Prepared:
    detector = Detector(artifacts.load(shipped()), "cpu")
    series = []
    for history in histories:
        inputs = row_inputs(detector, history.time_ms, history.value)
        series.append((inputs, inputs[:, :1]))
    rows = [cut_at(len(inputs), regime.held_back) for inputs, _ in series]
    stride = int(np.clip(sum(rows) // ROWS_PER_PIECE, 16, PIECE // 2))
    parts, draw = [], []
    for (inputs, targets), cut in zip(series, rows, strict=True):
        starts = [*range(0, max(1, cut - PIECE), stride), max(0, cut - PIECE)]
        for start in starts:
            piece = slice(start, min(cut, start + PIECE))
            parts.append((inputs[piece], targets[piece], np.ones(piece.stop - start, np.float32)))
        draw += [(1.0 - regime.generated) / len(series) / len(starts)] * len(starts)
    if regime.generated > 0.0:
        values, step_s = generate.series(GENERATED_SERIES, PIECE, seed=seed + 1)
        inputs, targets = network_inputs(values[:, :, None], step_s * 1000.0, detector.artifact.shape)
        parts += [(x, y, np.ones(PIECE, np.float32)) for x, y in zip(inputs, targets, strict=True)]
        draw += [regime.generated / GENERATED_SERIES] * GENERATED_SERIES
    return Prepared(stacked(parts), np.array(draw, np.float32), held_back(series, regime.held_back))


def _joint(histories: Sequence[History], shape: Shape, regime: Regime) -> Prepared:
    whole = joint.scaled([filled(history.value) for history in histories], shape)
    earlier = [inputs[: cut_at(len(inputs), regime.held_back)] for inputs in whole]
    pieces = joint.overlapping(earlier)
    later = held_back([(inputs, inputs) for inputs in whole], regime.held_back)
    counts = np.ones(pieces.shape[:2], np.float32)
    return Prepared(Pieces(pieces, pieces, counts), None, later, joint.linear_map(earlier))


def learn(
    on: Prepared,
    shape: Shape,
    regime: Regime,
    seed: int,
    progress: Progress | None = None,
    begin: Artifact | None = None,
    look: Callable[[Autoencoder, int], None] | None = None,
    device: str = "cpu",
) -> Learned:
    """Trains a network and takes the weights that were best on what was held back, or the last ones where nothing was.

    Args:
        on: see `prepared`.
        shape: of the network.
        regime: how to train.
        seed: equal seeds, equal weights.
        progress: told after each step.
        begin: weights to begin with, of the same shape.
        look: gets the network and how many steps are done at each look at what was held back; may raise to end the training.
        device: see `fit`.

    Raises:
        ArtifactError: the loss is not finite.
    """
    losses: list[float] = []
    stopper = None if on.later is None else Stopper(on.later, regime.plan, regime.patience)

    def make(shape: Shape, window: int) -> Autoencoder:
        network = Autoencoder(shape, window)
        if begin is not None:
            network.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in begin.tensors.items()}, strict=False)
        return network

    def step(done: int, of: int, loss: float) -> None:
        losses.append(loss)
        if progress:
            progress(done, of, loss)

    def watch(network: Autoencoder, done: int) -> bool:
        if stopper is None:
            return False
        looked = len(stopper.curve)
        stop = stopper(network, done)
        if look and len(stopper.curve) > looked:
            look(network, done)
        return stop

    counts = None if on.draw is None else on.pieces.counts
    network, loss = fit(
        on.pieces.inputs,
        on.pieces.targets,
        shape,
        regime.plan,
        seed,
        step,
        on.linear,
        make,
        counts=counts,
        draw=on.draw,
        watch=watch,
        device=device,
    )
    if not math.isfinite(loss):
        raise ArtifactError("training went astray: its loss is not a number any more; a lower --learning-rate or --clip keeps it in bounds")
    if stopper is None or on.later is None:
        return Learned(network, loss, losses, best_step=len(losses))
    stopper.restore(network)
    return Learned(network, loss, losses, stopper.curve, stopper.best_step, errors(network, on.later))
