"""The detector: one artifact, one compiled step, any number of partitions' pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector import artifact as artifacts
from anomalyd.detector import recipe as R  # noqa: N812 - constants, as in the steps
from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import COUNTER_KIND, GAUGE_KIND, Layout
from anomalyd.detector.pages import Pages
from anomalyd.errors import ArtifactError

Device = Literal["auto", "cpu", "cuda"]
Kind = Literal["auto", "gauge", "counter", "delta"]
MS_PER_DAY = 86_400_000.0
_FIXED: dict[Kind, int] = {"auto": 0, "gauge": GAUGE_KIND, "counter": COUNTER_KIND, "delta": GAUGE_KIND}


@dataclass(frozen=True)
class Options:
    """What an operator may choose."""

    budget_per_day: float = 0.1
    """False alarms per series and day of event time that are acceptable; sets the threshold, which score 1.0 stands for."""
    kind: Kind = "auto"
    """What the values are: counters are judged by their increase per second, gauges and deltas (increases since the last sample) as they
    are; auto finds out for each series."""


@dataclass(frozen=True)
class ModelInfo:
    """Which weights are at work, as it appears in alerts and metrics."""

    name: str
    version: str
    hash: str


class Backend(Protocol):
    """The step: scores samples in order and updates their rows."""

    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts, threshold: NDArray[np.float64], tally: NDArray[np.int64]) -> None:
        """Fills `verdicts`; the rest is as in `Detector.step`."""


def shipped() -> Path:
    """Folder of the artifact that comes with the package."""
    return Path(str(files("anomalyd") / "models" / "pretrained"))


class Detector:
    """Scores samples; knows nothing of Kafka, files or clocks.

    >>> detector = Detector.load()
    >>> verdicts = detector.update(["cpu"] * 3, [0, 10_000, 20_000], [1.0, 1.1, 0.9])
    >>> len(verdicts)
    3
    """

    def __init__(self, artifact: Artifact, device: Device = "auto", options: Options | None = None) -> None:
        self.artifact = artifact
        self.options = options or Options()
        self.layout = Layout(artifact.shape)
        self.features = artifact.shape.features
        self.model = ModelInfo(artifact.name, artifact.version, artifact.hash)
        self.threshold = self.threshold_at(self.options.budget_per_day)
        """What a score of 1 stands for unless something else is said."""
        self.fixed_kind = _FIXED[self.options.kind]
        """The field `kind` of every row; 0: each series' own."""
        self.device, self._backend = _backend(self, device)
        self._own: Pages | None = None
        self._rows: dict[str, int] = {}

    @classmethod
    def load(cls, folder: Path | None = None, device: Device = "auto", options: Options | None = None) -> Self:
        """A detector from an artifact's folder, by default the one shipped with the package. Raises ArtifactError."""
        try:
            artifact = artifacts.load(folder or shipped())
        except ArtifactError as error:
            if folder is not None:
                raise
            msg = f"{error}; it comes with the package: reinstall anomalyd"
            raise ArtifactError(msg) from error
        return cls(artifact, device, options)

    @classmethod
    def pretrained(cls) -> Self:
        """The shipped detector with default options."""
        return cls.load()

    def threshold_at(self, budget_per_day: float, correction: float = 0.0) -> NDArray[np.float64]:
        """What a score of 1 stands for, as numbers that the step understands.

        With them goes the level by which the budget is checked: that of the calibration's own 10^-3, whatever the correction is. Crossings
        that go on to an alarm are not expected below the threshold.

        Args:
            budget_per_day: false alarms per series and day of event time.
            correction: powers of ten by which normal data is strange more often than the calibration says.

        Returns:
            Numbers (7,): log10 of the budget per ms (with log10 of the step in ms that of false alarms per sample), intercept, slope,
            lowest threshold, level of evidence; in 10^-9, crossings of it to be expected of a try, and alarms of each ms of a try.
        """
        line = self.artifact.calibration
        log10_budget = math.log10(budget_per_day / MS_PER_DAY)
        level = max((line.intercept - math.log10(R.CONTROL_RATE)) / line.slope, line.lowest)
        crossings, alarms = 10.0 ** (line.intercept - line.slope * level), 10.0 ** (log10_budget - correction)
        return np.array([log10_budget, line.intercept + correction, line.slope, line.lowest, level, 1e9 * crossings, 1e9 * alarms])

    def new_pages(self, capacity: int) -> Pages:
        """Empty state for at most `capacity` series of one partition."""
        return Pages(self.layout, capacity)

    def taken_over(
        self, rows: NDArray[np.uint8], layout: Sequence[tuple[str, str, int, int]], *, same_model: bool, same_features: bool = True
    ) -> NDArray[np.uint8]:
        """Rows for this detector with what other rows have learned; see `migrate.migrated`."""
        from anomalyd.detector.migrate import migrated

        return migrated(self, rows, layout, same_model=same_model, same_features=same_features)

    def step(
        self,
        pages: Pages,
        batch: SampleBatch,
        threshold: NDArray[np.float64] | None = None,
        tally: NDArray[np.int64] | None = None,
    ) -> Verdicts:
        """Scores every sample against its series' state, in order, then learns it. Releases the GIL.

        Args:
            pages: state.
            batch: samples of series in it.
            threshold: as `threshold_at` makes it; None: that of the options.
            tally: is added to, (3,): samples that cross the level of `threshold_at` and do not alarm; how many of them were to be expected,
                in 10^-9; time watched, in ms: the usual steps of samples behind warm-up.
        """
        n, f = len(batch), self.features
        verdicts = Verdicts(
            score=np.empty(n),
            evidence=np.empty(n),
            observed=np.empty((n, f)),
            expected=np.empty((n, f)),
            low=np.empty((n, f)),
            high=np.empty((n, f)),
            share=np.empty((n, f), np.float32),
            flags=np.empty(n, np.uint8),
        )
        self._backend.step(
            pages, batch, verdicts, self.threshold if threshold is None else threshold, np.zeros(3, np.int64) if tally is None else tally
        )
        return verdicts

    def update(self, series_keys: Sequence[str], times_ms: Sequence[int], values: NDArray[np.float64] | Sequence[float]) -> Verdicts:
        """The same for use as a library: keys of any text, state kept inside, at most a million series.

        `values` has shape (n,) or (n, F); of several features those that are NaN are missing. Raises ValueError for columns of different
        lengths, values of another width or not finite, and too many series; nothing is learned then.
        """
        # copies: the compiled step is one for contiguous arrays that can be written, and would be compiled again for others
        time_ms, column = np.array(times_ms, np.int64), np.array(values, np.float64, order="C")
        column = column[:, None] if column.ndim == 1 else column
        if not len(series_keys) == len(time_ms) == len(column):
            msg = f"{len(series_keys)} keys, {len(time_ms)} times and {len(column)} values: there must be as many of each"
            raise ValueError(msg)
        if column.shape[1] != self.features:
            msg = f"samples have {column.shape[1]} values, the model wants {self.features}"
            raise ValueError(msg)
        if np.isinf(column).any() or (self.features == 1 and np.isnan(column).any()):
            msg = "values must be finite; of several features some may be NaN, which says that they are missing"
            raise ValueError(msg)
        if self._own is None:
            self._own = self.new_pages(1_000_000)
        rows, capacity = self._rows, self._own.capacity
        if len(rows) + len(series_keys) > capacity and len(rows.keys() | set(series_keys)) > capacity:
            msg = "more than a million series; use new_pages and step"
            raise ValueError(msg)
        row = np.array([rows.setdefault(key, len(rows)) for key in series_keys], np.int32)
        batch = SampleBatch(row, time_ms, column, np.arange(len(row), dtype=np.int32))
        return self.step(self._own, batch)


def _backend(detector: Detector, device: Device) -> tuple[str, Backend]:
    """The CPU's compiled step, or torch on a GPU where one is wanted or, for "auto", where the driver shows one."""
    if device == "cuda" or (device == "auto" and Path("/dev/nvidiactl").exists()):
        from anomalyd.detector import step_torch

        if step_torch.cuda_available():
            return "cuda", step_torch.TorchBackend(detector.layout, detector.artifact, "cuda", detector.fixed_kind)
        if device == "cuda":
            msg = "device: cuda, but torch sees no GPU; use device: cpu or auto"
            raise ArtifactError(msg)
    from anomalyd.detector import step_cpu

    return "cpu", step_cpu.CpuBackend(detector.layout, detector.artifact, detector.fixed_kind)
