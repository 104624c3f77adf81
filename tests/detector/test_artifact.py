"""Artifacts: what is saved is what is loaded, and nothing else is taken for one."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from anomalyd.detector import Artifact, Calibration, Detector, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError
from tests.detector.population import assert_same_bits, every, feed, untrained

SHAPE = Shape(1, 5, 2, 3, joint=False)
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def reseal(folder: Path, **changes: object) -> None:
    """Changes the manifest as somebody would who knows how the hashes are made."""
    manifest = manifest_of(folder) | {"weights_sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()} | changes
    manifest = {key: value for key, value in manifest.items() if key != "hash" and value is not ...}
    manifest["hash"] = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifacts.save(untrained(SHAPE), tmp_path / "model")
    return tmp_path / "model"


# --- round trip -----------------------------------------------------------------------------------------------------------


def test_saved_artifact_is_loaded_as_it_was(tmp_path: Path) -> None:
    artifact = replace(
        untrained(SHAPE),
        name="mine",
        version="7",
        calibration=Calibration(-1.25, 0.5, 3.0),
        several=Calibration(-1, 0.4, 2),
        training={"seed": 3},
    )

    saved = artifacts.save(artifact, tmp_path / "a" / "b")
    loaded = artifacts.load(tmp_path / "a" / "b")

    for got in (saved, loaded):
        assert replace(got, tensors={}, hash="") == replace(artifact, tensors={}, hash="")
        assert got.hash == saved.hash != ""
        assert got.tensors.keys() == artifact.tensors.keys()
        for name, tensor in artifact.tensors.items():
            np.testing.assert_array_equal(got.tensors[name], tensor)


def test_loaded_artifact_scores_as_the_shipped_one(tmp_path: Path, detector: Detector) -> None:
    artifacts.save(detector.artifact, tmp_path)
    value = np.random.default_rng(0).standard_normal(300)

    assert_same_bits(feed(Detector.load(tmp_path, "cpu"), every(300), value), feed(detector, every(300), value))


def test_hash_is_of_content_alone(tmp_path: Path) -> None:
    """Equal content, equal hash; anything else, another one."""
    artifact = untrained(SHAPE)
    same = artifacts.save(artifact, tmp_path / "a").hash
    assert artifacts.save(artifact, tmp_path / "b").hash == same

    others = [
        replace(artifact, name="other"),
        replace(artifact, version="1"),
        replace(artifact, calibration=Calibration(-1.5, 0.2, 6.5)),
        replace(artifact, several=Calibration(-1.5, 0.2, 6.0)),
        replace(artifact, training={"seed": 1}),
        untrained(SHAPE, seed=1),
    ]
    hashes = {artifacts.save(other, tmp_path / str(i)).hash for i, other in enumerate(others)}
    assert len(hashes | {same}) == len(others) + 1


def test_shipped_artifact_is_sound() -> None:
    artifact = artifacts.load(shipped())

    assert artifact.shape == Shape(1, 32, 1, 4, joint=False)
    assert artifact.calibration.slope > 0
    assert artifact.calibration.lowest > 0
    assert len(artifact.hash) == 64
    assert set(load_file(shipped() / WEIGHTS)) == set(artifact.tensors)
    model = Detector(artifact, "cpu").model
    assert (model.name, model.version, model.hash) == (artifact.name, artifact.version, artifact.hash)


def test_weights_are_packed_input_major() -> None:
    """As the compiled step reads them: per layer input rows, recurrent rows and the sum of both biases; then the heads."""
    artifact = untrained(SHAPE)
    t, packed = artifact.tensors, artifact.packed()
    width = 4 * SHAPE.units

    np.testing.assert_array_equal(packed[: 2 * width].reshape(2, width), t["encoder.weight_ih_l0"].T)
    np.testing.assert_array_equal(packed[2 * width : 7 * width].reshape(5, width), t["encoder.weight_hh_l0"].T)
    np.testing.assert_array_equal(packed[7 * width : 8 * width], t["encoder.bias_ih_l0"] + t["encoder.bias_hh_l0"])
    np.testing.assert_array_equal(
        packed[-12:], np.concatenate([t[f"{h}.{p}"].ravel() for h in ("newest", "next") for p in ("weight", "bias")])
    )
    assert packed.dtype == np.float32


def test_sealed_artifact_has_the_hash_it_would_have_on_disk(tmp_path: Path) -> None:
    assert artifacts.sealed(untrained(SHAPE)).hash == artifacts.save(untrained(SHAPE), tmp_path).hash


def test_univariate_network_serves_samples_of_several_values(detector: Detector) -> None:
    """Each value by itself, with a calibration of their joint evidence."""
    three = detector.artifact.for_features(3)

    assert three.shape == replace(detector.artifact.shape, features=3)
    assert three.calibration == detector.artifact.several
    assert detector.artifact.for_features(1) is detector.artifact


def test_network_for_other_values_is_refused_with_both_numbers() -> None:
    with pytest.raises(ArtifactError, match="samples of 3 values, not 2"):
        untrained(Shape(3, 5, 1, 2, joint=True)).for_features(2)
    with pytest.raises(ArtifactError, match="samples of 1 values, not 2"):
        untrained(SHAPE).for_features(2)


# --- what is refused --------------------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        Detector.load(folder, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")

    assert str(tmp_path / "nowhere") in message
    assert "No such file" in message


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()

    assert str(folder / name) in refusal(folder)


def test_file_instead_of_a_folder(folder: Path) -> None:
    assert str(folder / WEIGHTS) in refusal(folder / WEIGHTS)


@pytest.mark.parametrize("at", [0, 8, 200, -1])
def test_flipped_bit_in_the_weights(folder: Path, at: int) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[at] ^= 1
    (folder / WEIGHTS).write_bytes(content)

    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "damaged" in message


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])

    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("key", ["name", "version", "calibration", "shape", "training", "weights_sha256", "hash"])
def test_altered_manifest(folder: Path, key: str) -> None:
    manifest = manifest_of(folder) | {key: "altered"}
    (folder / MANIFEST).write_text(json.dumps(manifest))

    message = refusal(folder)
    assert str(folder / MANIFEST) in message
    assert "altered" in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04"], ids=repr)
def test_manifest_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)

    message = refusal(folder)
    assert str(folder / MANIFEST) in message
    assert "not JSON" in message


@pytest.mark.parametrize("content", ["{}", "[]", "null", '"x"', '{"model_type": "bert"}'])
def test_foreign_manifest(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)

    assert "not the manifest of an anomalyd model" in refusal(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_format(folder: Path, version: object) -> None:
    reseal(folder, format=version)

    message = refusal(folder)
    assert str(folder) in message
    assert f"format {version}" in message
    assert "reads format 1" in message


@pytest.mark.parametrize("key", ["name", "shape", "calibration", "training"])
def test_incomplete_manifest_with_a_right_hash(folder: Path, key: str) -> None:
    reseal(folder, **{key: ...})

    message = refusal(folder)
    assert str(folder) in message
    assert key in message


def test_manifest_without_the_hash_of_the_weights(folder: Path) -> None:
    reseal(folder, weights_sha256=...)

    assert "damaged" in refusal(folder)


def test_unknown_part_of_the_shape(folder: Path) -> None:
    """Of a later version: better refused than half understood."""
    reseal(folder, shape=manifest_of(folder)["shape"] | {"attention": 3})

    assert "attention" in refusal(folder)


def altered_tensors(folder: Path, change: Callable[[dict[str, NDArray[np.float32]]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    (folder / WEIGHTS).write_bytes(save(tensors))
    reseal(folder)


def test_missing_tensor(folder: Path) -> None:
    altered_tensors(folder, lambda tensors: tensors.pop("decoder.bias_hh_l1"))

    message = refusal(folder)
    assert str(folder) in message
    assert "lacks the tensor decoder.bias_hh_l1" in message


def test_tensor_of_another_shape(folder: Path) -> None:
    altered_tensors(folder, lambda tensors: tensors.update({"code.weight": np.zeros((4, 5), np.float32)}))

    message = refusal(folder)
    assert "code.weight has shape (4, 5)" in message
    assert "(3, 5)" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite(folder: Path, bad: float) -> None:
    altered_tensors(folder, lambda tensors: tensors["next.bias"].fill(bad))

    message = refusal(folder)
    assert "next.bias" in message
    assert "not finite" in message


def test_weight_that_is_out_of_all_proportion(folder: Path) -> None:
    altered_tensors(folder, lambda tensors: tensors["next.bias"].fill(1e7))

    message = refusal(folder)
    assert "next.bias" in message
    assert "1e+06" in message


@pytest.mark.parametrize(
    "wrong", [{"slope": 0.0}, {"slope": -1.0}, {"intercept": "x"}, {"lowest": True}, {"intercept": float("nan")}], ids=repr
)
def test_a_calibration_that_lays_no_threshold(folder: Path, wrong: dict[str, object]) -> None:
    reseal(folder, calibration=manifest_of(folder)["calibration"] | wrong)

    assert "calibration" in refusal(folder)


def test_weights_of_another_network(folder: Path) -> None:
    """The manifest of one model over the weights of another, resealed."""
    other: Artifact = untrained(Shape(1, 6, 1, 3, joint=False))
    (folder / WEIGHTS).write_bytes(save(dict(other.tensors)))
    reseal(folder)

    assert "shape" in refusal(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    """A pickle, say: never unpickled."""
    (folder / WEIGHTS).write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00c")
    reseal(folder)

    message = refusal(folder)
    assert str(folder) in message
    assert "not a usable artifact" in message


def test_a_shipped_artifact_that_is_missing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalyd.detector.detector.shipped", lambda: tmp_path)

    with pytest.raises(ArtifactError, match=r"no model artifact in .*reinstall anomalyd"):
        Detector.load()
    with pytest.raises(ArtifactError, match=r"\(.*manifest.*\)$"):
        Detector.load(tmp_path)


# --- what releases add ----------------------------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "architecture": "lstm-autoencoder",
    "data": {"first": "2026-01-01T00:00:00Z", "last": "2026-02-01T00:00:00Z", "sha256": "ab" * 32, "series": 12},
    "metrics": {"likelihood": -1.25},
    "parent": "cd" * 32,
    "libraries": {"torch": "2.15.0"},
    "created_at": "2026-02-01T08:00:00+01:00",
}


def test_what_is_said_of_its_making_is_kept(tmp_path: Path) -> None:
    saved = artifacts.save(replace(untrained(SHAPE), **SAID), tmp_path)

    assert {key: getattr(saved, key) for key in SAID} == SAID
    assert {key: manifest_of(tmp_path)[key] for key in SAID} == SAID
    assert saved.created_s == 1769929200
    assert artifacts.load(tmp_path).hash == saved.hash != artifacts.sealed(untrained(SHAPE)).hash


def test_the_shipped_artifact_keeps_its_hash_when_it_is_written_again() -> None:
    """It is from before there were these keys."""
    loaded = artifacts.load(shipped())

    assert loaded.hash == "bab497f339824c852ee4273f1af9475c1d5e5b5b75baad71555fb5f0c777e97e"
    assert (loaded.created_at, loaded.parent, loaded.data) == (None, None, {})
    assert artifacts.sealed(loaded).hash == loaded.hash
    assert artifacts.from_bytes(loaded.to_bytes()).hash == loaded.hash


@pytest.mark.parametrize("later", [{"stage": "gold", "more": {"a": [1]}}, {"parent": None, "data": {}}])
def test_keys_of_a_later_release_have_no_effect_and_stay(folder: Path, later: dict[str, Any]) -> None:
    before = artifacts.load(folder)
    reseal(folder, **later)

    loaded = artifacts.load(folder)
    assert loaded.extra == later
    assert artifacts.from_bytes(loaded.to_bytes()).hash == loaded.hash != before.hash
    again = artifacts.save(loaded, folder.parent / "again")
    assert again.extra == later


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "has artifact format 2; this version reads format 1"),
        ({"architecture": "transformer"}, "its architecture is transformer; this version computes lstm-autoencoder"),
        ({"created_at": "yesterday"}, "yesterday"),
        ({"created_at": "2026-02-01T08:00:00"}, "no offset from UTC"),
        ({"metrics": [1]}, "its metrics is no mapping"),
        ({"parent": 7}, "its parent is no text"),
        ({"shape": {"features": 1, "units": 1 << 40, "layers": 1 << 40, "latent": 4, "joint": False}}, "is none"),
        ({"shape": {"features": 1, "units": "5", "layers": 2, "latent": 3, "joint": False}}, "is none"),
    ],
)
def test_what_must_not_be_passed_over_is_refused(folder: Path, changes: dict[str, Any], told: str) -> None:
    reseal(folder, **changes)

    assert told in refusal(folder)
    with pytest.raises(ArtifactError, match=re.escape(told)):
        artifacts.packed_folder(folder)


# --- as bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_are_the_artifact_and_equal_for_equal_ones(folder: Path) -> None:
    artifact = artifacts.load(folder)
    content = artifact.to_bytes()
    found = artifacts.from_bytes(content)

    assert replace(found, tensors={}) == replace(artifact, tensors={})
    for name, tensor in artifact.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)
    assert found.to_bytes() == content
    assert artifacts.from_bytes(artifacts.packed_folder(folder)).hash == artifact.hash


def test_an_artifact_that_was_changed_has_no_bytes_before_it_is_sealed(folder: Path) -> None:
    changed = replace(artifacts.load(folder), version="other")

    with pytest.raises(ArtifactError, match="no longer the one with the hash"):
        changed.to_bytes()
    assert artifacts.from_bytes(artifacts.sealed(changed).to_bytes()).version == "other"


CONTENT = artifacts.sealed(untrained(SHAPE)).to_bytes()


@settings(max_examples=200)
@given(st.integers(0, 8 * len(CONTENT) - 1))
def test_one_damaged_bit_anywhere_in_the_bytes_is_noticed(bit: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8

    try:
        found = artifacts.from_bytes(bytes(damaged), "it")
    except ArtifactError as error:
        assert "it " in str(error)  # noqa: PT017  most are refused
    else:
        # A bit of the manifest may change how it is written and nothing that it says.
        assert found.hash == artifacts.from_bytes(CONTENT).hash


@given(st.integers(0, len(CONTENT) - 1))
def test_cut_bytes_are_noticed(size: int) -> None:
    with pytest.raises(ArtifactError):
        artifacts.from_bytes(CONTENT[:size])


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: b"anom\x10\x00\x00\x00" + rest))
def test_bytes_of_others_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        artifacts.from_bytes(content)
