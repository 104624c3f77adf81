"""Trees that cut space at random: how few samples share a sample's cell, or how few cuts set it apart."""

from typing import Any, Final

import numpy as np

from anomalyd.evaluation.baselines.measure import Floats, Lags, Measure, Strangeness, Times, joint, of_values, optional

TREES: Final = 25
HEIGHT: Final = 8
"""Below the paper's 15, as in river: a tree has 2^height cells and is walked in Python."""
MASS_WINDOW: Final = 250
OUTSIDE: Final = 1.0
"""How far beyond the range so far, in widths of it, values are told apart."""

LAGS: Final = 16
"""Samples in the window that stands for a single feature."""
FIRST: Final = 600
"""Samples that an isolation forest is fitted on where nothing came before: 15 % of four weeks at ten minutes."""


class HalfSpaceTrees:
    """Half-Space Trees by river (Tan, Ting and Liu, Fast anomaly detection for streaming data, IJCAI 2011).

    Inputs are scaled to [0, 1] by the range so far; of one feature they are windows of LAGS samples.
    """

    blind = MASS_WINDOW

    def __init__(self, features: int, seed: int) -> None:
        anomaly = optional("river.anomaly")
        self._trees: Any = anomaly.HalfSpaceTrees(n_trees=TREES, height=HEIGHT, window_size=MASS_WINDOW, seed=seed)
        self._lags = Lags(features, LAGS)
        self._low, self._high = np.full(features, np.inf), np.full(features, -np.inf)

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        raw = np.empty(len(time_ms))
        score, learn = self._trees.score_one, self._trees.learn_one
        for i, row in enumerate(self._lags.windows(self._scaled(value)).tolist()):
            x = dict(enumerate(row))
            raw[i] = score(x)
            learn(x)
        return of_values(raw, value)

    def _scaled(self, value: Floats) -> Floats:
        low = np.minimum.accumulate(np.vstack([self._low, value]))
        high = np.maximum.accumulate(np.vstack([self._high, value]))
        self._low, self._high = low[-1], high[-1]
        known = np.isfinite(low[:-1])  # all but the very first sample
        start, width = np.where(known, low[:-1], value), np.where(known, high[:-1] - low[:-1], 0.0)
        return np.clip((value - start) / np.where(width > 0.0, width, 1.0), -OUTSIDE, 1.0 + OUTSIDE)


class IsolationForest:
    """scikit-learn's isolation forest, fitted once: on train, or on the first samples; of one feature on windows of LAGS samples."""

    def __init__(self, features: int, train: Floats | None, seed: int) -> None:
        self._forest: Any = optional("sklearn.ensemble").IsolationForest(random_state=seed)
        self._lags = Lags(features, LAGS)
        self._kept: list[Floats] = []
        self._missing = self.blind = 0 if train is not None else FIRST
        if train is not None:
            self._forest.fit(Lags(features, LAGS).windows(_single(train)))

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        raw = np.zeros(len(time_ms))
        windows = self._lags.windows(_single(value))
        first = min(self._missing, len(raw))
        if first:
            self._kept.append(windows[:first].copy())
            self._missing -= first
            if not self._missing:
                self._forest.fit(np.concatenate(self._kept))
                self._kept.clear()
        if first < len(raw):
            raw[first:] = -self._forest.score_samples(windows[first:])
        return of_values(raw, value)


def _single(value: Floats) -> Floats:
    """Within single precision, which the forest works in."""
    return np.clip(value, -1e37, 1e37)


def half_space_trees(features: int, _train: Floats | None, _step_ms: int, seed: int) -> Measure:
    """Makes Half-Space Trees."""
    return joint(HalfSpaceTrees(features, seed), features)


def isolation_forest(features: int, train: Floats | None, _step_ms: int, seed: int) -> Measure:
    """Makes an isolation forest."""
    return joint(IsolationForest(features, train, seed), features)
