"""What a command was asked to train, settled by the data: the network's shape, the regime, and the weights to begin with."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from anomalyd.detector import Artifact, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError, ConfigError
from anomalyd.training import joint, pretrain
from anomalyd.training.course import JOINT, SINGLE, SINGLE_TUNED_RATE, Regime
from anomalyd.training.data import Data
from anomalyd.training.later import cut_at

SHIPPED: Final = "shipped"


@dataclass(frozen=True)
class Wanted:
    """What the command was asked for; None: the default, which depends on the number of features."""

    features: int | None = None
    units: int | None = None
    layers: int | None = None
    latent: int | None = None
    epochs: float | None = None
    held_back: float | None = None
    patience: int | None = None
    generated: float | None = None
    begin: str | None = None
    """`shipped`, or the folder of an artifact; None: from scratch."""
    plan: dict[str, Any] = field(default_factory=dict)
    """Fields of `Plan`."""


@dataclass(frozen=True)
class Design:
    """What is trained, and how."""

    shape: Shape
    regime: Regime
    begin: Artifact | None


def designed(data: Data, wanted: Wanted) -> Design:
    """The network and its training for some data.

    Raises:
        ArtifactError: the model to begin with cannot be used.
        ConfigError: what is wanted does not fit the data, or itself.
    """
    features = data.features
    if wanted.features is not None and wanted.features != features:
        raise ConfigError(f"--features: got {wanted.features}, {_said(data)}{_way_out(wanted.features, features)}")
    begin = None if wanted.begin is None else _begin(wanted.begin, data)
    usual = begin.shape if begin else pretrain.SHAPE if features == 1 else Shape(features, joint.UNITS, 1, joint.LATENT, joint=True)
    shape = replace(
        usual,
        units=usual.units if wanted.units is None else wanted.units,
        layers=usual.layers if wanted.layers is None else wanted.layers,
        latent=usual.latent if wanted.latent is None else wanted.latent,
    )
    if begin and shape != begin.shape:
        raise ConfigError(
            f"--from {wanted.begin}: has {begin.shape.units} units, {begin.shape.layers} layers and a code of {begin.shape.latent}; "
            "weights can be taken over for the same only: leave --units, --layers and --latent out, or --from"
        )
    regime = SINGLE if features == 1 else JOINT
    plan = replace(regime.plan, **({"learning_rate": SINGLE_TUNED_RATE} if begin else {}) | wanted.plan)
    held_back = regime.held_back if wanted.held_back is None else wanted.held_back
    patience = regime.patience if wanted.patience is None else wanted.patience
    generated = regime.generated if wanted.generated is None else wanted.generated
    if features > 1 and generated:
        raise ConfigError("--generated: is for one feature; a joint network is for the entities that it was trained on")
    if wanted.epochs is not None:
        rows = sum(cut_at(len(history), held_back) for history in data.histories)
        plan = replace(plan, steps=max(1, math.ceil(wanted.epochs * rows / ((1.0 - generated) * plan.batch * plan.stretch))))
    return Design(shape, Regime(plan, held_back, patience, generated), begin)


def _said(data: Data) -> str:
    names = f" ({', '.join(data.names)})" if data.names else ""
    return f"the data has {data.features} value{'s' * (data.features > 1)} a sample{names}"


def _way_out(wanted: int, have: int) -> str:
    if wanted == 1:
        return "; a file of its own for each column makes them single metrics, without --features one joint model is trained"
    return "; metrics that belong together go into one file, a column each" if have == 1 else ""


def _begin(name: str, data: Data) -> Artifact:
    artifact = artifacts.load(shipped() if name == SHIPPED else Path(name))
    if artifact.shape.features != data.features:
        raise ArtifactError(f"--from {name}: is for {artifact.shape.features} features, {_said(data)}")
    if artifact.feature_names and data.names and artifact.feature_names != data.names:
        raise ArtifactError(
            f"--from {name}: was trained on {', '.join(artifact.feature_names)}, in that order; the data has {', '.join(data.names)}"
        )
    return artifact
