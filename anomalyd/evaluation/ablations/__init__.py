"""Ablations: the detector with one thing left out or exchanged, so that each can show what it is good for."""

from anomalyd.evaluation.ablations.models import prepared
from anomalyd.evaluation.ablations.table import table
from anomalyd.evaluation.ablations.variants import VARIANTS, Variant, VariantDetector

__all__ = ["VARIANTS", "Variant", "VariantDetector", "prepared", "table"]
