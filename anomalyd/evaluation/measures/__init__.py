"""Measures of alert quality: pure functions of scores, episodes and labels. Nothing here reads files or knows a detector.

A measure that a stream cannot have (no anomaly, no event) is None and never a number.
"""

from anomalyd.evaluation.measures.attribution import Entry, hit_rate
from anomalyd.evaluation.measures.bootstrap import Interval, Paired, paired, ratio_of_sums
from anomalyd.evaluation.measures.columns import segments
from anomalyd.evaluation.measures.events import Told, judge
from anomalyd.evaluation.measures.nab import PROFILES, NabScore, Profile, Sweep, sweep
from anomalyd.evaluation.measures.ranking import BestF1, average_precision, best_f1
from anomalyd.evaluation.measures.vus import vus_pr

__all__ = [
    "PROFILES",
    "BestF1",
    "Entry",
    "Interval",
    "NabScore",
    "Paired",
    "Profile",
    "Sweep",
    "Told",
    "average_precision",
    "best_f1",
    "hit_rate",
    "judge",
    "paired",
    "ratio_of_sums",
    "segments",
    "sweep",
    "vus_pr",
]
