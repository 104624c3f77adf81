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

    def step(self, pages: Pages, batch: SampleBatch, verdicts: Verdicts) -> None:
        """Fills `verdicts`."""


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
        calibration = artifact.calibration
        # log10 of false alarms per sample is log10_budget + log10(step in ms)
        self.threshold: NDArray[np.float64] = np.array(
            [math.log10(self.options.budget_per_day / MS_PER_DAY), calibration.intercept, calibration.slope, calibration.lowest]
        )
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

    def new_pages(self, capacity: int) -> Pages:
        """Empty state for at most `capacity` series of one partition."""
        return Pages(self.layout, capacity)

    def step(self, pages: Pages, batch: SampleBatch) -> Verdicts:
        """Scores every sample against its series' state, in order, then learns it. Releases the GIL."""
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
        self._backend.step(pages, batch, verdicts)
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
            return "cuda", step_torch.TorchBackend(detector.layout, detector.artifact, detector.threshold, "cuda", detector.fixed_kind)
        if device == "cuda":
            msg = "device: cuda, but torch sees no GPU; use device: cpu or auto"
            raise ArtifactError(msg)
    from anomalyd.detector import step_cpu

    return "cpu", step_cpu.CpuBackend(detector.layout, detector.artifact, detector.threshold, detector.fixed_kind)
