"""A model's weights and everything that must travel with them: safetensors plus a manifest, held together by a hash.

An artifact is a folder with `model.safetensors` and `manifest.json`, or the same two in one run of bytes, as they travel through Kafka.
The manifest names the network's shape, the calibration of the threshold, and the SHA-256 of the weights; its own hash (of its canonical
JSON) is the artifact's identity: the model id.

Releases differ. Keys of a manifest that this release does not know are kept and have no effect; what must not be ignored comes with a
higher `format`, another `architecture` or an unknown key of `shape` or `calibration`, and is refused. Keys that a later release added are
optional.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
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
"""Higher: this release must not use it."""
ARCHITECTURE: Final = "lstm-autoencoder"
"""The network that the step computes; a manifest that names none is of it."""
WEIGHTS_FILE: Final = "model.safetensors"
MANIFEST_FILE: Final = "manifest.json"

LARGEST: Final = 1 << 16
"""Units, layers and so on beyond are damage, whatever the hash says."""

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"anom"
_REQUIRED: Final = frozenset(
    {"format", "name", "version", "shape", "calibration", "calibration_several", "weights_sha256", "training", "hash"}
)
_OPTIONAL: Final[dict[str, type]] = {
    "architecture": str,
    "data": dict,
    "metrics": dict,
    "parent": str,
    "libraries": dict,
    "created_at": str,
}
_KNOWN: Final = _REQUIRED | {*_OPTIONAL, "feature_names"}


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
    """How it was made: seed, settings, losses. For people, not for the daemon."""
    feature_names: tuple[str, ...] | None = None
    """Of a joint network's values, in its order, where they are known."""
    architecture: str | None = None
    """The kind of network; None: `ARCHITECTURE`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on: `first` and `last` (event times of the span, ISO 8601), `sha256` of the data, `series`, `samples`."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """How good it is, by name of the measure."""
    parent: str | None = None
    """Hash of the model that its training began with."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it was made with."""
    created_at: str | None = None
    """When, ISO 8601 with its offset from UTC."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the manifest that this release does not know: kept, and without effect."""
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

    @property
    def created_s(self) -> float | None:
        """When it was made, seconds since the epoch; None where nobody wrote it down."""
        if self.created_at is None:
            return None
        moment = datetime.fromisoformat(self.created_at)
        if moment.tzinfo is None:
            raise ValueError(f"created_at {self.created_at} has no offset from UTC")
        return moment.timestamp()

    def to_bytes(self) -> bytes:
        """Manifest and weights in one run of bytes: equal artifacts give equal bytes.

        Raises ArtifactError for one that has a hash and is not, or not written as, what that stands for; `packed_folder` takes files as
        they are.
        """
        manifest, weights = _written(self)
        if self.hash not in ("", manifest["hash"]):
            raise ArtifactError(f"the model {self.name} is no longer the one with the hash {self.hash[:12]}")
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        return b"".join((_HEAD.pack(_MAGIC, len(text)), text, weights))

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
        manifest = (folder / MANIFEST_FILE).read_bytes()
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        msg = f"no model artifact in {folder}: {error.strerror} ({error.filename})"
        raise ArtifactError(msg) from error
    return _read(manifest, weights, str(folder), str(folder / MANIFEST_FILE), str(folder / WEIGHTS_FILE))


def packed_folder(folder: Path) -> bytes:
    """The artifact in a folder as `Artifact.to_bytes` gives it, its files as they are. Raises ArtifactError."""
    load(folder)
    text, weights = (folder / MANIFEST_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
    return b"".join((_HEAD.pack(_MAGIC, len(text)), text, weights))


def from_bytes(content: bytes, where: str = "the model") -> Artifact:
    """The artifact behind the bytes of `Artifact.to_bytes`, checked.

    Args:
        content: the bytes.
        where: they come from, for errors.

    Raises:
        ArtifactError: damaged, foreign, altered or of an unknown format.
    """
    if len(content) < _HEAD.size or content[: len(_MAGIC)] != _MAGIC:
        raise ArtifactError(f"{where} is not an artifact of anomalyd")
    size = _HEAD.unpack_from(content)[1]
    if _HEAD.size + size > len(content):
        raise ArtifactError(f"{where} is damaged: it was cut off")
    manifest, weights = content[_HEAD.size : _HEAD.size + size], content[_HEAD.size + size :]
    return _read(manifest, weights, where, f"the manifest of {where}", f"the weights of {where}")


def _read(text: bytes, weights: bytes, where: str, where_manifest: str, where_weights: str) -> Artifact:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{where_manifest} is not JSON: {error}"
        raise ArtifactError(msg) from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        msg = f"{where_manifest} is not the manifest of an anomalyd model"
        raise ArtifactError(msg)
    if manifest["format"] != FORMAT:
        msg = f"{where} has artifact format {manifest['format']}; this version reads format {FORMAT}"
        raise ArtifactError(msg)
    if manifest.get("hash") != _hash(manifest):
        msg = f"{where_manifest} was altered: its hash does not fit its content"
        raise ArtifactError(msg)
    if hashlib.sha256(weights).hexdigest() != manifest.get("weights_sha256"):
        msg = f"{where_weights} is damaged: its SHA-256 is not the one in the manifest"
        raise ArtifactError(msg)
    try:
        artifact = _understood(manifest, weights)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, ArtifactError) as error:
        msg = f"{where} is not a usable artifact: {error}"
        raise ArtifactError(msg) from error
    return artifact


def _understood(manifest: Mapping[str, Any], weights: bytes) -> Artifact:
    """The artifact of a manifest whose hashes are right; raises what is wrong with it otherwise."""
    if manifest.get("architecture", ARCHITECTURE) != ARCHITECTURE:
        raise ArtifactError(f"its architecture is {manifest['architecture']}; this version computes {ARCHITECTURE}")
    shape = Shape(**manifest["shape"])
    sizes = (shape.features, shape.units, shape.layers, shape.latent)
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes) or type(shape.joint) is not bool:
        raise ArtifactError(f"its shape {manifest['shape']} is none")
    said = {key: manifest[key] for key in _OPTIONAL if manifest.get(key)}
    for key, kind in ({"training": dict} | {key: _OPTIONAL[key] for key in said}).items():
        if not isinstance(manifest[key], kind):
            raise ArtifactError(f"its {key} is no {'mapping' if kind is dict else 'text'}")
    names = manifest.get("feature_names")
    if names is not None and len(names) != shape.features:
        raise ArtifactError(f"it names {len(names)} features and has {shape.features}")
    artifact = Artifact(
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        shape=shape,
        calibration=Calibration(**manifest["calibration"]),
        several=Calibration(**manifest["calibration_several"]) if manifest["calibration_several"] else None,
        tensors=load_tensors(weights),
        feature_names=None if names is None else tuple(map(str, names)),
        training=manifest["training"],
        **said,
        extra={key: value for key, value in manifest.items() if key not in _KNOWN or (key in _OPTIONAL and key not in said)},
        hash=manifest["hash"],
    )
    for key, line in (("calibration", artifact.calibration), ("calibration_several", artifact.several)):
        if line is not None and not _lays_a_threshold(line):
            raise ArtifactError(f"its {key} is none: {line}")
    artifact.packed()
    _ = artifact.created_s  # a time that is none is found out now
    return artifact


def _lays_a_threshold(line: Calibration) -> bool:
    numbers = (line.intercept, line.slope, line.lowest)
    return all(type(number) in {int, float} and math.isfinite(number) for number in numbers) and line.slope > 0


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
    # What is not said is left out, so that artifacts from before there were these keys keep their hash.
    manifest |= {key: value for key in _OPTIONAL if (value := getattr(artifact, key))}
    if artifact.feature_names is not None:
        manifest["feature_names"] = list(artifact.feature_names)
    manifest |= artifact.extra
    manifest["hash"] = _hash(manifest)
    return manifest, weights


def _hash(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
