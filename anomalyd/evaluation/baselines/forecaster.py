"""The forecaster: the LSTM that the detector has, trained to foretell the next sample and judged by its error there.

Inputs, network, trainer and the compiled step are those of the detector, and its state is carried likewise; only the idea differs. What is
trained is the head `newest`, on the sample after the newest; it then serves as the head `next`, whose forecast the step keeps in the row.
"""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from anomalyd import __version__
from anomalyd.batch import SampleBatch
from anomalyd.detector import Artifact, Detector, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.recipe import FIXED_POINT, RECENT
from anomalyd.detector.weights import tensor_shapes
from anomalyd.evaluation.baselines.kernels import standardised
from anomalyd.evaluation.baselines.measure import Floats, Measure, Strangeness, Times, joint

if TYPE_CHECKING:
    from anomalyd.training.trainer import Plan

SERIES: Final = (512, 1024)
"""Series that it is trained on, from the same generator and seed as those of the shipped artifact."""
STEPS: Final = 200
"""Less than for the shipped artifact: it is trained anew in every process, in less than a minute."""
MEMORY: Final = 10_000.0
LIMIT: Final = 30.0


class Forecaster:
    """Distance of each scaled sample to the forecast of it; of several features the mean, each measured by its own past errors."""

    blind = 1

    def __init__(self, artifact: Artifact) -> None:
        self._detector = Detector(artifact, "cpu")
        self._pages = self._detector.new_pages(1)
        shape = artifact.shape
        self._forecast = cast("NDArray[np.float32]", self._pages.field("forecast")[0])
        inputs = self._pages.field("recent")[0].reshape(RECENT, shape.networks * shape.inputs)
        # A network that sees one feature has u and d of each side by side.
        self._u = cast("NDArray[np.int16]", inputs if shape.joint else inputs[:, ::2])
        self._age = self._pages.field("age")[0]
        self._newest_ms: int | None = None
        f = shape.features
        self._mean, self._variance, self._count = np.zeros(f), np.zeros(f), np.zeros(1, np.int64)

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        error, expected, spread = np.empty_like(value), np.empty_like(value), np.empty_like(value)
        for i, t in enumerate(time_ms.tolist()):
            forecast = self._forecast.copy()
            # The detector learns nothing from a sample that is late or repeated; a measure learns every row of a file.
            self._newest_ms = t if self._newest_ms is None else max(t, self._newest_ms + 1)
            verdicts = self._detector.step(self._pages, SampleBatch(_ROW, np.array([self._newest_ms]), value[i : i + 1], _ROW))
            error[i] = np.abs(self._u[(self._age[0] - 1) % RECENT] / FIXED_POINT - forecast)
            expected[i], spread[i] = verdicts.expected[0], 0.5 * (verdicts.high[0] - verdicts.low[0])
        if value.shape[1] == 1:
            return Strangeness(error[:, 0], expected, spread, np.ones_like(value))
        z = np.empty_like(error)
        standardised(error, self._mean, self._variance, self._count, MEMORY, LIMIT, z)
        return Strangeness(z.mean(axis=1), expected, spread, np.maximum(z, 0.0) ** 2)


_ROW: Final = np.zeros(1, np.int32)


def lstm_forecaster(features: int, train: Floats | None, _step_ms: int, seed: int) -> Measure:
    """Makes a forecaster: of all features together, fitted on train, where there are several and a train; else of each by itself."""
    if features > 1 and train is not None:
        return joint(Forecaster(_fitted(train, seed)), features)
    return joint(Forecaster(_pretrained(seed).for_features(features)), features)


@cache
def _pretrained(seed: int) -> Artifact:
    """The univariate one; trained once in a process."""
    from anomalyd.training import generate  # noqa: PLC0415  torch takes seconds to import, and the other baselines need none
    from anomalyd.training.features import network_inputs  # noqa: PLC0415  likewise
    from anomalyd.training.trainer import Plan  # noqa: PLC0415  likewise

    shape = artifacts.load(shipped()).shape
    values, step_s = generate.series(*SERIES, seed=seed + 1)
    inputs, targets = network_inputs(values[:, :, None], step_s * 1000.0, shape)
    return _trained(inputs, targets, shape, Plan(steps=STEPS, batch=64, stretch=64, window=1), seed)


def _fitted(train: Floats, seed: int) -> Artifact:
    """One for several features, fitted like a joint model, but without noise on its inputs: nothing is to be copied here."""
    from anomalyd.training.joint import LATENT, PLAN, UNITS, joint_pieces  # noqa: PLC0415  as above

    shape = Shape(train.shape[1], UNITS, 1, LATENT, joint=True)
    _, pieces = joint_pieces([train], shape)
    return _trained(pieces, pieces, shape, replace(PLAN, input_noise=0.0), seed)


def _trained(inputs: NDArray[np.float32], targets: NDArray[np.float32], shape: Shape, plan: "Plan", seed: int) -> Artifact:
    from anomalyd.training.trainer import fit  # noqa: PLC0415  as above

    network, _ = fit(inputs[:, :-1], targets[:, 1:], shape, plan, seed)
    state = network.state_dict()
    tensors = {name: state[name].numpy() for name in tensor_shapes(shape)}
    tensors |= {f"next.{kind}": tensors[f"newest.{kind}"] for kind in ("weight", "bias")}
    template = artifacts.load(shipped())
    return artifacts.sealed(
        replace(template, name="forecaster", version=f"{__version__}+seed{seed}", shape=shape, tensors=tensors, training={})
    )
