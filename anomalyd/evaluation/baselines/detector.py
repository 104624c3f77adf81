"""A baseline in the place of the detector: the same loop, evidence, threshold and episodes around another idea of what is strange."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd import __version__
from anomalyd.batch import ARMED, SampleBatch, Verdicts
from anomalyd.detector import Artifact, Calibration, Detector, Layout, Options, Pages, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.recipe import BINS, VALUE_LIMIT
from anomalyd.detector.weights import tensor_shapes
from anomalyd.evaluation.baselines.kernels import judge
from anomalyd.evaluation.baselines.measure import Baseline, Floats, Measure, Strangeness
from anomalyd.training.history import filled

CALM_SERIES: Final = (64, 3000)
CALM_ENTITIES: Final = (48, 3000, 8)
"""Generated series that a baseline's threshold is laid on."""
CALM_SEED: Final = 2
NEUTRAL: Final = Calibration(0.0, 1.0, 1.0)


class BaselinePages(Pages):
    """State rows whose series each have a measure besides."""

    def __init__(self, layout: Layout, capacity: int) -> None:
        super().__init__(layout, capacity)
        self.measures: dict[int, Measure] = {}
        self._known: dict[int, Floats] = {}
        """Last known value of each feature, (F,), by row."""

    def clear(self, rows: NDArray[np.int32]) -> None:
        """Makes the rows as if they had never been used."""
        super().clear(rows)
        for row in rows.tolist():
            self.measures.pop(row, None)
            self._known.pop(row, None)

    def complete(self, row: int, value: Floats) -> Floats:
        """The next samples of a row, (n, F), without holes: a feature keeps its last known value, and is zero before the first."""
        known = filled(value, self._known.get(row, np.zeros(value.shape[1])))
        self._known[row] = known[-1]
        return known


class BaselineDetector(Detector):
    """A detector whose step is a baseline; its artifact has a shape and a calibration, and nothing was trained in it.

    The raw score of the measure is the evidence of the verdicts. Their score is the calibrated one: tail evidence of the raw score by the
    detector's own histogram, over the threshold at which calm generated series give as many false alarms as the budget allows. Every row
    is learned, in the order of the file: late and repeated ones too, which the flags tell of.

    Args:
        baseline: which.
        features: values of a sample.
        train: history that a measure may be fitted on, (m, features). Streaming it is for the caller, as with the detector.
        step_ms: usual distance of samples.
        seed: for what is random.
        options: the alert budget.
        line: evidence against false alarms; None: found by running the baseline over generated series, once in a process.
    """

    def __init__(
        self,
        baseline: Baseline,
        features: int,
        *,
        train: Floats | None = None,
        step_ms: int = 60_000,
        seed: int = 0,
        options: Options | None = None,
        line: Calibration | None = None,
    ) -> None:
        shape = Shape(features, units=1, layers=1, latent=1, joint=features > 1)
        artifact = Artifact(
            name=baseline.name,
            version=__version__,
            shape=shape,
            calibration=line or calibration(baseline, several=features > 1),
            tensors={name: np.zeros(size, np.float32) for name, size in tensor_shapes(shape).items()},
            training={"seed": seed},
        )
        super().__init__(artifacts.sealed(artifact), "cpu", options)
        history = None if train is None else _limited(filled(train))
        self._backend = BaselineBackend(lambda: baseline.make(features, history, step_ms, seed))

    def new_pages(self, capacity: int) -> BaselinePages:
        """Empty state for at most `capacity` series."""
        return BaselinePages(self.layout, capacity)


class BaselineBackend:
    """The step of a baseline.

    Args:
        make: a fresh measure, for each new series.
    """

    def __init__(self, make: Callable[[], Measure]) -> None:
        self._make = make

    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts, threshold: Floats, tally: NDArray[np.int64]) -> None:  # noqa: ARG002  it counts nothing
        """Fills `verdicts` and counts nothing; see Detector.step. `pages` must be those of BaselineDetector.new_pages."""
        if not isinstance(pages, BaselinePages):
            raise TypeError("a baseline needs its own pages")
        for row in np.unique(batch.row).tolist():
            here = np.flatnonzero(batch.row == row)
            time_ms, value = batch.time_ms[here], _limited(pages.complete(row, batch.value[here]))
            answer, score, flags, _ = self.score(pages, row, time_ms, value, threshold)
            verdicts.score[here], verdicts.flags[here], verdicts.evidence[here] = score, flags, answer.raw
            verdicts.observed[here], verdicts.expected[here] = value, answer.expected
            verdicts.low[here], verdicts.high[here] = answer.expected - answer.spread, answer.expected + answer.spread
            verdicts.share[here] = _shares(answer)

    def score(
        self, pages: BaselinePages, row: int, time_ms: NDArray[np.int64], value: Floats, threshold: Floats
    ) -> tuple[Strangeness, Floats, NDArray[np.uint8], Floats]:
        """The next samples of a row: what the measure says, the calibrated scores, flags, and the evidence behind the scores, each (n,)."""
        measure = pages.measures.get(row)
        if measure is None:
            measure = pages.measures[row] = self._make()
        answer = measure.update(time_ms, value)
        score, flags, found = np.empty(len(value)), np.empty(len(value), np.uint8), np.empty(len(value))

        def state(name: str, count: int | None = None) -> Any:  # noqa: ANN401 - an array of whatever type the field has
            return pages.field(name)[row, :count]

        judge(
            answer.raw,
            time_ms,
            value,
            measure.blind,
            threshold,
            state("time"),
            state("last"),
            state("age"),
            state("late_run"),
            state("step_ms"),
            state("envelope"),
            state("mean"),
            state("variance"),
            state("histogram", BINS),
            state("cluster", 1),
            score,
            flags,
            found,
        )
        pages.field("seen")[row] = value[-1]
        return answer, score, flags, found


@cache
def calibration(baseline: Baseline, *, several: bool) -> Calibration:
    """The line from evidence to false alarms of a baseline, laid like that of the shipped artifact, on fewer series.

    What fits on train has none here, as the detector's own line for several features is laid without: evidence is calibrated per series.
    """
    from anomalyd.training import generate  # noqa: PLC0415  training brings torch, which takes seconds to import
    from anomalyd.training.calibrate import line  # noqa: PLC0415  likewise

    if several:
        values, step_s = generate.entities(*CALM_ENTITIES, seed=CALM_SEED)
    else:
        single, step_s = generate.series(*CALM_SERIES, seed=CALM_SEED, calm=True)
        values = single[:, :, None]
    columns = [_calm(baseline, value, round(1000.0 * step)) for value, step in zip(values, step_s.tolist(), strict=True)]
    evidence, armed = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return line(evidence, armed)


def _calm(baseline: Baseline, value: Floats, step_ms: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Evidence (n,) of one calm series, and where an episode may open, (n,)."""
    detector = BaselineDetector(baseline, value.shape[1], line=NEUTRAL)
    backend = BaselineBackend(lambda: baseline.make(value.shape[1], None, step_ms, CALM_SEED))
    time_ms = step_ms * np.arange(len(value), dtype=np.int64)
    _, _, flags, evidence = backend.score(detector.new_pages(1), 0, time_ms, value, detector.threshold)
    return evidence, flags & ARMED > 0


def _limited(value: Floats) -> Floats:
    return np.clip(value, -VALUE_LIMIT, VALUE_LIMIT)


def _shares(answer: Strangeness) -> Floats:
    """Rows that sum to 1."""
    total = answer.part.sum(axis=1, keepdims=True)
    return np.where(total > 0, answer.part / np.where(total > 0, total, 1.0), 1.0 / answer.part.shape[1])
