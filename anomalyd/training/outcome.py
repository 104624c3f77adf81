"""From what was learned to an artifact: calibrated, with how it was made, in its folder."""

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalyd import __version__
from anomalyd.batch import ARMED, SampleBatch
from anomalyd.detector import Artifact, Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import MS_PER_DAY, shipped
from anomalyd.detector.network import Autoencoder
from anomalyd.errors import ArtifactError, ConfigError
from anomalyd.training import pretrain
from anomalyd.training.calibrate import Progress, openings
from anomalyd.training.course import Learned, Prepared
from anomalyd.training.data import Data
from anomalyd.training.design import Design
from anomalyd.training.later import cut_at, errors


def finished(data: Data, design: Design, on: Prepared, learned: Learned, seed: int, progress: Progress | None = None) -> Artifact:
    """The artifact of what was learned, calibrated.

    One feature: the line is laid on the generated calm series that the shipped model's is laid on, so that a budget means the same; for
    several single metrics of one entity, and for a joint network, the shipped line holds, because evidence is calibrated per series.

    Args:
        data: histories.
        design: of the network.
        on: what it was trained on.
        learned: the network.
        seed: of the training.
        progress: told how far the calibration is, where there is one.

    Raises:
        ArtifactError: no line can be laid.
    """
    template = artifacts.load(shipped())
    single = data.features == 1
    if not single:
        template = template.for_features(data.features)
    artifact = replace(
        template,
        name="trained" if single else "joint",
        version=f"{__version__}+seed{seed}",
        shape=design.shape,
        tensors=learned.tensors,
        several=template.several if single else None,
        feature_names=data.names,
        training={},
        hash="",
    )
    if single:
        artifact = replace(artifact, calibration=pretrain.single_line(artifact, seed, progress=progress))
    return artifacts.sealed(replace(artifact, training=described(data, design, on, learned, seed, artifact)))


def described(data: Data, design: Design, on: Prepared, learned: Learned, seed: int, artifact: Artifact) -> dict[str, Any]:
    """How it was made. Nothing in it depends on when or how fast, so equal trainings have equal hashes."""
    shape, regime = design.shape, design.regime
    others = {}
    if on.later is not None and learned.errors is not None:
        others["trained"] = _rounded(learned.errors._asdict())
        if data.features == 1:
            others["shipped"] = _rounded(errors(Autoencoder.from_artifact(artifacts.load(shipped())), on.later)._asdict())
    return {
        "architecture": {
            "cell": "lstm",
            "features": shape.features,
            "units": shape.units,
            "layers": shape.layers,
            "latent": shape.latent,
            "window": regime.plan.window,
            "parameters": int(sum(np.prod(tensor.shape) for tensor in learned.tensors.values())),
        },
        "plan": asdict(regime.plan)
        | {"held_back": regime.held_back, "patience": regime.patience, "generated": regime.generated if data.features == 1 else 0.0},
        "data": data.described(),
        "seed": seed,
        "steps": len(learned.losses),
        "best_step": learned.best_step,
        "loss": round(learned.loss, 4),
        "held_back_loss": round(min(loss for _, loss in learned.later), 4) if learned.later else None,
        "errors": others,
        "held_back_alerts": None if on.later is None else alerts_on(data, artifact, regime.held_back),
        "calibrated_on": f"generated calm series {pretrain.CALM_SERIES}, seed {seed + 2}" if data.features == 1 else "as the shipped model",
        "parent": design.begin.hash if design.begin else None,
        "versions": {"anomalyd": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}


def alerts_on(data: Data, artifact: Artifact, held_back: float) -> dict[str, float]:
    """How often the production step would have alerted on what was held back, each series streamed from its beginning.

    Returns the budget per series-day, the series-days of event time that were held back, and the alerts in them; incidents among them
    count, too.
    """
    detector = Detector(artifact, "cpu")
    alerts, watched_ms = 0, 0
    for history in data.histories:
        n = len(history)
        batch = SampleBatch(np.zeros(n, np.int32), history.time_ms, history.value, np.arange(n, dtype=np.int32))
        verdicts = detector.step(detector.new_pages(1), batch)
        opened = openings(verdicts.score[:, None], verdicts.flags[:, None] & ARMED > 0, 1.0)[:, 0]
        cut = cut_at(n, held_back)
        alerts += int(opened[cut:].sum())
        watched_ms += int(history.time_ms[-1] - history.time_ms[cut]) if cut < n else 0
    return {"budget": detector.options.budget_per_day, "series_days": round(watched_ms / MS_PER_DAY, 3), "alerts": alerts}


def written(artifact: Artifact, out: Path) -> Artifact:
    """Saves it. Raises ConfigError."""
    try:
        return artifacts.save(artifact, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None


def replaced(out: Path) -> list[str]:
    """What to tell people of the artifact that is there already and will be replaced; nothing if there is none."""
    try:
        before = artifacts.load(out)
    except ArtifactError:
        return []
    return [f"it replaces {before.name} {before.version} {before.hash[:12]}"]
