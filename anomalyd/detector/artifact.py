"""A model's weights and everything that must travel with them: safetensors plus a manifest, held together by a hash.

An artifact is a folder with `model.safetensors` and `manifest.json`. The manifest names the network's shape, the calibration
of the threshold, and the SHA-256 of the weights; its own hash (of its canonical JSON) is the artifact's identity.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomalyd.detector.layout import Shape
from anomalyd.detector.weights import pack
from anomalyd.errors import ArtifactError

FORMAT: Final = 1
WEIGHTS_FILE: Final = "model.safetensors"
MANIFEST_FILE: Final = "manifest.json"


@dataclass(frozen=True)
class Calibration:
    """How often the evidence of normal series opens an episode: log10(rate per sample) = intercept - slope * evidence."""

    intercept: float
    slope: float
    lowest: float
    """Smallest evidence that may ever be a threshold."""


@dataclass(frozen=True)
class Artifact:
    """Weights with their manifest, checked."""

    name: str
    version: str
    shape: Shape
    calibration: Calibration
    tensors: Mapping[str, NDArray[np.float32]]
    several: Calibration | None = None
    """The calibration for several features, where a univariate network may be applied to each of them."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: seed, data, losses, library versions. For people, not for the daemon."""
    feature_names: tuple[str, ...] | None = None
    """Of a joint network's values, in its order, where they are known."""
    hash: str = ""
    """SHA-256 over the manifest, which holds that of the weights; empty until saved or loaded."""

    def for_features(self, features: int) -> Self:
        """The same network for samples of `features` values, each of which it looks at by itself.

        Raises ArtifactError when it was made for another number of values.
        """
        if features == self.shape.features:
            return self
        if self.shape.features != 1 or self.several is None:
            msg = f"the model {self.name} is for samples of {self.shape.features} values, not {features}"
            raise ArtifactError(msg)
        return replace(self, shape=replace(self.shape, features=features), calibration=self.several)

    def packed(self) -> NDArray[np.float32]:
        """The weights as the compiled step wants them."""
        return pack(self.tensors, self.shape)


def save(artifact: Artifact, folder: Path) -> Artifact:
    """Writes the artifact into `folder` (made if need be) and returns it with its hash."""
    manifest, weights = _written(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return load(folder)


def sealed(artifact: Artifact) -> Artifact:
    """The artifact with the hash that it would have on disk."""
    return replace(artifact, hash=_written(artifact)[0]["hash"])


def load(folder: Path) -> Artifact:
    """Reads and checks an artifact.

    Raises ArtifactError, with the reason, for files that are missing, damaged, foreign, altered or of an unknown format.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        msg = f"no model artifact in {folder}: {error.strerror} ({error.filename})"
        raise ArtifactError(msg) from error
    except ValueError as error:
        msg = f"{folder / MANIFEST_FILE} is not JSON: {error}"
        raise ArtifactError(msg) from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        msg = f"{folder / MANIFEST_FILE} is not the manifest of an anomalyd model"
        raise ArtifactError(msg)
    if manifest["format"] != FORMAT:
        msg = f"{folder} has artifact format {manifest['format']}; this version reads format {FORMAT}"
        raise ArtifactError(msg)
    if manifest.get("hash") != _hash(manifest):
        msg = f"{folder / MANIFEST_FILE} was altered: its hash does not fit its content"
        raise ArtifactError(msg)
    if hashlib.sha256(weights).hexdigest() != manifest.get("weights_sha256"):
        msg = f"{folder / WEIGHTS_FILE} is damaged: its SHA-256 is not the one in the manifest"
        raise ArtifactError(msg)
    try:
        artifact = Artifact(
            name=str(manifest["name"]),
            version=str(manifest["version"]),
            shape=Shape(**manifest["shape"]),
            calibration=Calibration(**manifest["calibration"]),
            several=Calibration(**manifest["calibration_several"]) if manifest["calibration_several"] else None,
            tensors=load_tensors(weights),
            training=manifest["training"],
            feature_names=tuple(map(str, manifest["feature_names"])) if "feature_names" in manifest else None,
            hash=manifest["hash"],
        )
        artifact.packed()
        if artifact.feature_names is not None and len(artifact.feature_names) != artifact.shape.features:
            raise ArtifactError(f"it names {len(artifact.feature_names)} features and has {artifact.shape.features}")
    except (KeyError, TypeError, SafetensorError, ArtifactError) as error:
        msg = f"{folder} is not a usable artifact: {error}"
        raise ArtifactError(msg) from error
    return artifact


def _written(artifact: Artifact) -> tuple[dict[str, Any], bytes]:
    weights = save_tensors({name: np.ascontiguousarray(t, np.float32) for name, t in sorted(artifact.tensors.items())})
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": artifact.name,
        "version": artifact.version,
        "shape": asdict(artifact.shape),
        "calibration": asdict(artifact.calibration),
        "calibration_several": asdict(artifact.several) if artifact.several else None,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(artifact.training),
    }
    if artifact.feature_names is not None:
        manifest["feature_names"] = list(artifact.feature_names)
    manifest["hash"] = _hash(manifest)
    return manifest, weights


def _hash(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
