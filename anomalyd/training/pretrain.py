"""`anomalyd pretrain`: makes the artifact that ships with the package, from generated series alone."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from anomalyd import __version__
from anomalyd.detector import Artifact, Calibration, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.weights import tensor_shapes
from anomalyd.training import generate
from anomalyd.training.bar import training_bar
from anomalyd.training.calibrate import calibrate, realistic, realistic_several
from anomalyd.training.features import network_inputs
from anomalyd.training.trainer import Plan, fit

SHAPE: Final = Shape(features=1, units=32, layers=1, latent=4, joint=False)
TRAINING_SERIES: Final = (3072, 2048)
CALM_SERIES: Final = (512, 3000)
CALM_ENTITIES: Final = (96, 3000, 8)


def run(out: Path, seed: int = 0, plan: Plan | None = None) -> int:
    """Trains, calibrates and saves; progress on stderr, the artifact's hash on stdout. Returns the exit code."""
    plan = plan or Plan()
    began = time.monotonic()
    with training_bar(plan.steps) as progress:
        values, step_s = generate.series(*TRAINING_SERIES, seed=seed + 1)
        inputs, targets = network_inputs(values[:, :, None], step_s * 1000.0, SHAPE)
        network, loss = fit(inputs, targets, SHAPE, plan, seed, progress)
    state = network.state_dict()
    artifact = Artifact(
        name="pretrained",
        version=f"{__version__}+seed{seed}",
        shape=SHAPE,
        calibration=Calibration(0.0, 1.0, 1.0),
        tensors={name: state[name].numpy() for name in tensor_shapes(SHAPE)},
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
    saved = artifacts.save(calibrated(artifact, seed), out)
    print(f"{out}: {saved.name} {saved.version} {saved.hash} (loss {loss:.3f}, {time.monotonic() - began:.0f} s)")  # noqa: T201 - the result
    return 0


def calibrated(artifact: Artifact, seed: int) -> Artifact:
    """The artifact with its lines from evidence to false alarms, for single and for several features."""
    calm, step_s = generate.series(*CALM_SERIES, seed=seed + 2, calm=True)
    single = realistic(calibrate(artifact, calm[:, :, None], step_s * 1000.0))
    entities, step_s = generate.entities(*CALM_ENTITIES, seed=seed + 3)
    features = entities.shape[2]
    several = calibrate(replace(artifact, several=single).for_features(features), entities, step_s * 1000.0)
    return replace(artifact, calibration=single, several=realistic_several(several))
