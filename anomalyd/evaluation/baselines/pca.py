"""Principal components, learned as the series goes: how far a sample lies from the plane that its past spans."""

from typing import Any, Final

import numpy as np

from anomalyd.evaluation.baselines.kernels import standardised
from anomalyd.evaluation.baselines.measure import Floats, Lags, Measure, Strangeness, Times, joint, of_values, optional

LAGS: Final = 16
BATCH: Final = 256
"""Samples that are learned together, after all of them were scored; no fewer than there are inputs."""
EXPLAINED: Final = 0.9
"""Share of the variance that the plane holds."""
MEMORY: Final = 10_000.0
LIMIT: Final = 30.0
"""Standard deviations beyond which inputs are cut, so that one sample does not turn the plane towards itself."""


class OnlinePca:
    """scikit-learn's incremental PCA over standardised features, or over windows of LAGS samples of a single one."""

    def __init__(self, features: int, train: Floats | None) -> None:
        self._features = features
        self._mean, self._variance, self._count = np.zeros(features), np.zeros(features), np.zeros(1, np.int64)
        self._lags = Lags(features, LAGS)
        self._pca: Any = optional("sklearn.decomposition").IncrementalPCA()
        self._centre = np.zeros(self._lags.width)
        self._axes = np.empty((0, self._lags.width))  # (K, width)
        self._learned = 0
        self._pending = np.empty((BATCH, self._lags.width))
        self._waiting = 0
        if train is not None:
            self._residuals(train)
        self.blind = 0 if self._learned else BATCH

    def update(self, _time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        squared = self._residuals(value) ** 2
        part = squared if self._features > 1 else np.ones_like(value)
        return of_values(np.sqrt(squared.mean(axis=1)), value, part)

    def _residuals(self, value: Floats) -> Floats:
        """What the plane leaves of each sample, (n, width); learns a batch whenever one is full."""
        z = np.empty_like(value)
        standardised(value, self._mean, self._variance, self._count, MEMORY, LIMIT, z)
        windows = self._lags.windows(z)
        left = np.zeros(windows.shape)
        at = 0
        while at < len(windows):
            rows = windows[at : at + BATCH - self._waiting]
            if self._learned:
                centred = rows - self._centre
                left[at : at + len(rows)] = centred - centred @ self._axes.T @ self._axes
            self._pending[self._waiting : self._waiting + len(rows)] = rows
            self._waiting += len(rows)
            at += len(rows)
            if self._waiting == BATCH:
                self._learn()
        return left

    def _learn(self) -> None:
        self._waiting, self._learned = 0, self._learned + BATCH
        with np.errstate(invalid="ignore", divide="ignore"):  # shares of a variance of zero, which are not used
            self._pca.partial_fit(self._pending)
        variance = self._pca.explained_variance_
        needed = np.searchsorted(np.cumsum(variance), EXPLAINED * variance.sum()) + 1 if variance.sum() > 0 else 0
        self._centre, self._axes = self._pca.mean_, self._pca.components_[:needed]


def online_pca(features: int, train: Floats | None, _step_ms: int, _seed: int) -> Measure:
    """Makes an online PCA."""
    return joint(OnlinePca(features, train), features)
