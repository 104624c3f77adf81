"""Baselines: other ideas of what is strange, in the detector's own loop, so that only the idea is compared."""

from typing import Final

from anomalyd.evaluation.baselines.detector import BaselineDetector
from anomalyd.evaluation.baselines.forecaster import lstm_forecaster
from anomalyd.evaluation.baselines.measure import Baseline, Measure, Strangeness
from anomalyd.evaluation.baselines.pca import online_pca
from anomalyd.evaluation.baselines.robust import robust_z, seasonal_z
from anomalyd.evaluation.baselines.trees import half_space_trees, isolation_forest

BASELINES: Final[dict[str, Baseline]] = {
    baseline.name: baseline
    for baseline in (
        Baseline("robust-z", "distance to the median of the last 1,000 samples in units of their MAD", robust_z),
        Baseline("seasonal-z", "the same for what is left when the usual value of the time of day is taken off", seasonal_z),
        Baseline("half-space-trees", "river's Half-Space Trees, 25 of them over windows of 250 samples", half_space_trees, seeded=True),
        Baseline("online-pca", "scikit-learn's incremental PCA, distance to the plane of the past", online_pca),
        Baseline(
            "isolation-forest",
            "scikit-learn's isolation forest, fitted on train or else on the first 600 samples",
            isolation_forest,
            seeded=True,
        ),
        Baseline(
            "lstm-forecaster",
            "the detector's LSTM, trained to foretell the next sample, judged by its error there",
            lstm_forecaster,
            seeded=True,
        ),
    )
}
"""By name, as `evaluate --detector` takes it."""

__all__ = ["BASELINES", "Baseline", "BaselineDetector", "Measure", "Strangeness"]
