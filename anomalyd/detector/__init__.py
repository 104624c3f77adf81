"""The detector as a library: `Detector.pretrained().update(series_keys, times_ms, values) -> Verdicts`."""

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector.artifact import Artifact, Calibration
from anomalyd.detector.detector import Detector, Device, ModelInfo, Options
from anomalyd.detector.layout import Layout, Shape
from anomalyd.detector.pages import Pages
from anomalyd.detector.recipe import EPISODE_BYTES
from anomalyd.detector.rows import Rows

__all__ = [
    "EPISODE_BYTES",
    "Artifact",
    "Calibration",
    "Detector",
    "Device",
    "Layout",
    "ModelInfo",
    "Options",
    "Pages",
    "Rows",
    "SampleBatch",
    "Shape",
    "Verdicts",
]
