"""`anomalyd models`: what people see of models, and what they do with them."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from anomalyd.cli import main
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.kafka.registry import Packed, model_entries
from anomalyd.kafka.topics import MODELS_CONFIG
from tests.support.topics import create_topic, produce, unique

BASE = artifacts.load(shipped())


class Shell:
    """Runs commands and reads what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: object, code: int = 0) -> str:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["models", *map(str, words)])
        out, self.err = self._capsys.readouterr()
        assert ended.value.code == code, (out, self.err)
        return out

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*words, "--json", code=code).splitlines()[-1])
        return found


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """Afterwards logging is as it was."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield Shell(capsys)
    root.handlers, root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A model of the same network with other calibration."""
    folder = tmp_path / "artifacts" / "tuned"
    line = replace(BASE.calibration, intercept=BASE.calibration.intercept + 1.5)
    artifacts.save(
        replace(
            BASE,
            version="tuned",
            calibration=line,
            parent=BASE.hash,
            created_at="2026-01-01T00:00:00+00:00",
            data={"first": "2025-12-01T00:00:00Z", "last": "2026-01-01T00:00:00Z", "sha256": "ab" * 32},
            metrics={"likelihood": -1.25},
            libraries={"torch": "2.15.0"},
        ),
        folder,
    )
    return folder


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts" / "joint"
    artifacts.save(replace(BASE, name="joint", several=None, feature_names=("load",)), folder)
    return folder


@pytest.fixture
def config(kafka: str, tmp_path: Path) -> Path:
    group = unique("group")
    create_topic(kafka, f"{group}-models", config=MODELS_CONFIG)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "kafka": {"bootstrap_servers": kafka, "group_id": group},
                "streams": [{"name": name, "topics": [name], "format": "plain-json"} for name in ("hosts", "pods")],
            }
        )
    )
    return path


# --- folders --------------------------------------------------------------------------------------------------------


def test_list_of_folders(shell: Shell, tuned: Path, joint: Path) -> None:
    told = shell("list", "--dir", tuned.parent)
    lines = {line.split()[1]: line for line in told.splitlines()}

    assert list(lines) == ["name", "joint", "pretrained"]
    assert artifacts.load(tuned).hash[:12] in lines["pretrained"]
    assert BASE.hash[:12] in lines["pretrained"]  # its parent
    assert " d " in lines["pretrained"]  # its age
    assert "1x32, code 4" in lines["joint"]
    assert lines["joint"].endswith(str(joint))
    found = shell.json("list", "--dir", tuned)
    (one,) = found["models"]
    assert (one["hash"], one["version"], one["shape"]["units"], one["champion_of"]) == (artifacts.load(tuned).hash, "tuned", 32, [])


def test_a_damaged_folder_is_shown_with_what_is_wrong(shell: Shell, tuned: Path) -> None:
    weights = tuned / artifacts.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])

    assert "can't be used: " in shell("list", "--dir", tuned, code=1)
    assert "is damaged" in shell("list", "--dir", tuned, code=1)
    assert shell("show", tuned, code=1) == ""
    assert "is damaged" in shell.err
    shell("show", "12345678", "--dir", tuned.parent, code=2)
    assert f"damaged ({tuned})" in shell.err


def test_a_folder_is_found_by_its_name_among_those_looked_through(shell: Shell, tuned: Path, joint: Path) -> None:
    assert shell.json("show", "tuned", "--dir", tuned.parent)["where"] == str(tuned)
    assert "tuned" in shell("compare", "joint", "tuned", "--dir", joint.parent)


def test_show_tells_all_that_is_written_down(shell: Shell, tuned: Path) -> None:
    told = shell("show", tuned)

    for text in ("tuned", f"parent: {BASE.hash}", "likelihood: -1.25", "torch: 2.15.0", "sha256: ababab", "row_bytes: 1,792", "seed: 0"):
        assert text in told
    manifest = shell.json("show", "shipped")["manifest"]
    assert (manifest["hash"], manifest["architecture"]) == (BASE.hash, "lstm-autoencoder")
    assert shell.json("show", BASE.hash[:8], "--dir", shipped())["manifest"] == manifest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "nonsense"], "say where models are: -c CONFIG"),
        (["list"], "say where models are: -c CONFIG"),
        (["list", "--dir", "nowhere"], "--dir nowhere: holds no artifact"),
        (["show", "12345678", "--dir", str(shipped())], "no model 12345678, valid are a folder with an artifact, shipped, or the first 8"),
        (["show", "HEAD", "--dir", str(shipped())], "got 'HEAD', valid are"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_valid(shell: Shell, words: list[str], told: str) -> None:
    shell(*words, code=2)
    assert told in " ".join(shell.err.split())


# --- compare --------------------------------------------------------------------------------------------------------


def test_compare_puts_manifests_side_by_side(shell: Shell, tuned: Path) -> None:
    rows = {line.split("  ")[0]: line.split() for line in shell("compare", "shipped", tuned).splitlines()}

    assert rows["version"][1:] == [BASE.version, "tuned"]
    assert rows["shape.units"][1:] == ["32", "32"]
    assert rows["metrics.likelihood"][1:] == ["-", "-1.25"]


@pytest.mark.parametrize("labelled", [False, True])
def test_compare_runs_both_over_the_same_data(shell: Shell, tuned: Path, tmp_path: Path, *, labelled: bool) -> None:
    rng = np.random.default_rng(0)
    value = np.sin(np.arange(4000) / 20) + 0.1 * rng.standard_normal(4000)
    value[3000:3010] += 3
    columns: dict[str, Any] = {"label": (np.arange(4000) // 10 == 300).astype(np.uint8)} if labelled else {}
    times = 1_760_000_000 + 60 * np.arange(4000)
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "a.npz", timestamp=times, value=value, **columns)

    found = shell.json("compare", "shipped", tuned, "--data", data)
    a, b = (found[side]["measures"] for side in "ab")

    assert (a["samples"], b["samples"]) == (4000, 4000)
    assert a["series_days"] == pytest.approx(3999 / 1440, abs=1e-3)
    # The other one's line says that what is normal alarms more often: it takes more to be told.
    assert a["episodes"] >= b["episodes"] >= 0
    assert a["episodes"] >= 1
    assert a["episodes_per_series_day"] == pytest.approx(a["episodes"] * 1440 / 3999)
    assert ("event_recall" in a) == labelled
    if labelled:
        assert a["event_recall"] == 1
    assert "episodes_per_series_day" in shell("compare", "shipped", tuned, "--data", data)


# --- the topic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "warned"), [(6.25, True), (0.5, False)])
def test_promote_says_what_the_manifest_holds_against_a_model(
    shell: Shell, config: Path, tmp_path: Path, own: float, *, warned: bool
) -> None:
    errors = {"trained": {"forecast": own}, "shipped": {"forecast": 1.0}}
    artifacts.save(replace(BASE, version=f"own-{own}", training={**BASE.training, "errors": errors}), tmp_path / "own")

    shell("promote", tmp_path / "own", "--stream", "hosts", "-c", config)

    assert ("forecasts worse than the shipped one, 6.25 against 1" in shell.err) == warned


def test_promote_and_roll_back(shell: Shell, config: Path, tuned: Path) -> None:
    hash_ = artifacts.load(tuned).hash
    told = shell("promote", tuned, "--stream", "hosts", "-c", config, "--reason", "trained on May")
    assert f"hosts: {hash_[:12]} is champion since " in told
    assert f"before it {BASE.hash[:12]}" in told

    listed = shell("list", "-c", config)
    assert f"hosts: {hash_[:12]} since " in listed
    assert "by promote: trained on May" in listed
    assert "pods: the shipped model" in listed
    found = shell.json("list", "-c", config)
    by_hash = {one["hash"]: one for one in found["models"] if one["where"] == "topic"}
    assert (by_hash[hash_]["champion_of"], by_hash[BASE.hash]["previous_of"]) == (["hosts"], ["hosts"])
    assert by_hash[hash_]["decisions"]["hosts"]["verdict"] == "promoted"
    assert "trained on May" in shell("show", hash_[:8], "-c", config)

    # What is in the topic is promoted by its hash, and again without effect.
    again = shell.json("promote", hash_[:10], "--stream", "hosts", "-c", config)
    assert again == found["champions"]["hosts"] | {"stream": "hosts", "pinned": None}
    assert shell.json("promote", hash_[:10], "--stream", "pods", "-c", config)["model"] == hash_

    back = shell.json("rollback", "--stream", "hosts", "-c", config)
    assert (back["model"], back["previous"], back["by"]) == (BASE.hash, hash_, "rollback")
    assert shell.json("list", "-c", config)["champions"]["pods"]["model"] == hash_


def test_what_cannot_be_done_is_refused_before_anything_is_written(shell: Shell, config: Path, tuned: Path, joint: Path) -> None:
    shell("promote", tuned, "--stream", "host", "-c", config, code=2)
    assert '--stream: got "host", valid are hosts, pods' in shell.err
    shell("promote", joint, "--stream", "hosts", "-c", config, code=1)
    assert "was trained on other features" in shell.err
    shell("rollback", "--stream", "hosts", "-c", config, code=1)
    assert "the stream hosts has no champion" in shell.err

    assert [one["where"] for one in shell.json("list", "-c", config)["models"]] == ["shipped"]


def test_a_pinned_stream_is_warned_of(shell: Shell, config: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_MODELS__PIN", "shipped")

    assert "with this configuration it has no effect: models.pin says shipped" in shell("promote", tuned, "--stream", "hosts", "-c", config)
    assert "hosts: pinned to shipped; its champion" in shell("list", "-c", config)


def test_a_damaged_model_in_the_topic_is_listed_as_such(shell: Shell, config: Path, kafka: str) -> None:
    topic = json.loads(config.read_text())["kafka"]["group_id"] + "-models"
    (part,) = model_entries(Packed("ab" * 32, b"not an artifact"))
    produce(kafka, topic, [part.value or b""], key=part.key)

    assert "can't be used: the model abababababab is not an artifact of anomalyd" in shell("list", "-c", config, code=1)
