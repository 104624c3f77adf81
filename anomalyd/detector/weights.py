"""The network's tensors as the compiled step wants them: one flat float32 vector, every matrix input-major.

Tensor names are those of the torch module in `network`; only numpy is needed here, so that the daemon runs without torch.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector.layout import Shape
from anomalyd.detector.recipe import JOINT_LAGS
from anomalyd.errors import ArtifactError

LARGEST: Final = 1e6
"""Of a weight. Trained ones are below 100; with larger ones sums may overflow, and what is not finite would stay in the rows."""


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that scoring needs, in the order in which they are packed."""
    h, z, out = shape.units, shape.latent, shape.features if shape.joint else 1
    shapes: dict[str, tuple[int, ...]] = {}
    for part, inputs in (("encoder", shape.inputs), ("decoder", z)):
        for layer in range(shape.layers):
            width = inputs if layer == 0 else h
            shapes[f"{part}.weight_ih_l{layer}"] = (4 * h, width)
            shapes[f"{part}.weight_hh_l{layer}"] = (4 * h, h)
            shapes[f"{part}.bias_ih_l{layer}"] = (4 * h,)
            shapes[f"{part}.bias_hh_l{layer}"] = (4 * h,)
        if part == "encoder":
            shapes["code.weight"], shapes["code.bias"] = (z, h), (z,)
    for head in ("newest", "next"):
        shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (out, h), (out,)
    if shape.joint:
        shapes["linear.weight"] = (out, len(JOINT_LAGS) * out)
    return shapes


def pack(tensors: Mapping[str, NDArray[np.float32]], shape: Shape) -> NDArray[np.float32]:
    """Flattens the tensors: per LSTM layer its input rows, recurrent rows and summed bias, each of 4 * units; heads row by row.

    Raises ArtifactError for a missing tensor, a wrong shape, a value that is not finite or beyond LARGEST.
    """
    for name, wanted in tensor_shapes(shape).items():
        if name not in tensors:
            msg = f"the artifact lacks the tensor {name}"
            raise ArtifactError(msg)
        if tensors[name].shape != wanted:
            msg = f"the artifact's tensor {name} has shape {tensors[name].shape}, its manifest says {wanted}"
            raise ArtifactError(msg)
        if not np.isfinite(tensors[name]).all():
            msg = f"the artifact's tensor {name} holds values that are not finite"
            raise ArtifactError(msg)
        if (np.abs(tensors[name]) > LARGEST).any():
            msg = f"the artifact's tensor {name} holds values beyond {LARGEST:g}, with which scores would not be finite"
            raise ArtifactError(msg)

    parts: list[NDArray[np.float32]] = []

    def lstm(part: str) -> None:
        for layer in range(shape.layers):
            parts.append(tensors[f"{part}.weight_ih_l{layer}"].T)
            parts.append(tensors[f"{part}.weight_hh_l{layer}"].T)
            parts.append(tensors[f"{part}.bias_ih_l{layer}"] + tensors[f"{part}.bias_hh_l{layer}"])

    lstm("encoder")
    parts += [tensors["code.weight"], tensors["code.bias"]]
    lstm("decoder")
    for head in ("newest", "next"):
        parts += [tensors[f"{head}.weight"], tensors[f"{head}.bias"]]
    if shape.joint:
        parts.append(tensors["linear.weight"])
    return np.concatenate([np.ascontiguousarray(part, np.float32).ravel() for part in parts])
