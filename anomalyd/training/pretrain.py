"""`anomalyd pretrain`: makes the artifact that ships with the package, from generated series alone."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyd import __version__
from anomalyd.detector import Artifact, Calibration, Detector, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.weights import tensor_shapes
from anomalyd.training import generate, trainer
from anomalyd.training.bar import training_bar
from anomalyd.training.calibrate import Progress as CalibrationProgress
from anomalyd.training.calibrate import calibrate, on_cpu, realistic, realistic_several
from anomalyd.training.features import network_inputs
from anomalyd.training.trainer import Plan

SHAPE: Final = Shape(features=1, units=32, layers=1, latent=4, joint=False)
TRAINING_SERIES: Final = (3072, 2048)
CALM_SERIES: Final = (512, 3000)
CALM_ENTITIES: Final = (96, 3000, 8)


def run(out: Path, seed: int = 0, plan: Plan | None = None) -> int:
    """Trains, calibrates and saves; progress on stderr, the artifact's hash on stdout. Returns the exit code."""
    plan = plan or Plan()
    began = time.monotonic()
    with training_bar(plan.steps) as progress:
        network, loss = trained(seed, plan, progress)
    state = network.state_dict()
    artifact = described("pretrained", {name: state[name].numpy() for name in tensor_shapes(SHAPE)}, seed, plan, loss)
    saved = artifacts.save(calibrated(artifact, seed), out)
    print(f"{out}: {saved.name} {saved.version} {saved.hash} (loss {loss:.3f}, {time.monotonic() - began:.0f} s)")  # noqa: T201 - the result
    return 0


def trained(
    seed: int,
    plan: Plan,
    progress: trainer.Progress | None = None,
    make: Callable[[Shape, int], Autoencoder] = Autoencoder,
) -> tuple[Autoencoder, float]:
    """A network fitted to generated series as the shipped one is, and its loss; see `trainer.fit`."""
    values, step_s = generate.series(*TRAINING_SERIES, seed=seed + 1)
    inputs, targets = network_inputs(values[:, :, None], step_s * 1000.0, SHAPE)
    return trainer.fit(inputs, targets, SHAPE, plan, seed, progress, make=make)


def described(name: str, tensors: Mapping[str, NDArray[np.float32]], seed: int, plan: Plan, loss: float) -> Artifact:
    """The artifact of what was trained, with how; not calibrated yet."""
    return Artifact(
        name=name,
        version=f"{__version__}+seed{seed}",
        shape=SHAPE,
        calibration=Calibration(0.0, 1.0, 1.0),
        tensors=tensors,
        training={
            "data": f"{TRAINING_SERIES[0]} generated series of {TRAINING_SERIES[1]} samples, seed {seed + 1}",
            "calibrated_on": f"generated calm series {CALM_SERIES}, seed {seed + 2}; calm entities {CALM_ENTITIES}, seed {seed + 3}",
            "seed": seed,
            "steps": plan.steps,
            "loss": round(loss, 4),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def calibrated(artifact: Artifact, seed: int) -> Artifact:
    """The artifact with its lines from evidence to false alarms, for single and for several features."""
    single = single_line(artifact, seed)
    entities, step_s = generate.entities(*CALM_ENTITIES, seed=seed + 3)
    features = entities.shape[2]
    several = calibrate(replace(artifact, several=single).for_features(features), entities, step_s * 1000.0)
    return replace(artifact, calibration=single, several=realistic_several(several))


def single_line(
    artifact: Artifact, seed: int, make: Callable[[Artifact], Detector] = on_cpu, progress: CalibrationProgress | None = None
) -> Calibration:
    """The line of a detector for a single feature, which `make` makes of the artifact."""
    calm, step_s = generate.series(*CALM_SERIES, seed=seed + 2, calm=True)
    return realistic(calibrate(artifact, calm[:, :, None], step_s * 1000.0, make, progress))
