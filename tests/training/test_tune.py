"""`anomalyd tune`: a search that is judged on later data, goes on where it was, and ends in an artifact."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anomalyd.detector import artifact as artifacts
from anomalyd.errors import ConfigError
from anomalyd.training import course, pretrain, tune
from anomalyd.training.design import Wanted
from anomalyd.training.sources import FromFiles
from tests.training.test_train_single import waves, write_csv

PLAN: dict[str, object] = {"steps": 12, "batch": 8, "stretch": 64}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape stays the shipped one, for which the step is compiled already."""
    monkeypatch.setattr(pretrain, "CALM_SERIES", (64, 1000))
    monkeypatch.setattr(course, "GENERATED_SERIES", 8)
    fixed = {"units": ("choice", (32,)), "layers": ("choice", (1,)), "latent": ("choice", (4,)), "window": ("choice", (4, 16))}
    monkeypatch.setattr(tune, "SINGLE_SPACE", tune.SINGLE_SPACE | fixed)


def search(folder: Path, trials: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  whatever `run` takes
    path = write_csv(folder / "a.csv", waves(700, 1)) if not (folder / "a.csv").exists() else folder / "a.csv"
    assert tune.run(FromFiles([path]), folder / "out", trials=trials, steps=8, seed=3, wanted=Wanted(plan=PLAN), **more) == 0
    told: dict[str, Any] = json.loads((folder / "out" / "study.json").read_text())
    return told


def test_the_best_is_trained_and_the_search_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = search(tmp_path, 2)
    again = search(tmp_path, 3)

    out = capsys.readouterr().out
    model = artifacts.load(tmp_path / "out")
    assert [trial["trial"] for trial in again["trials"]] == [0, 1, 2]
    assert again["trials"][:2] == first["trials"]
    assert first["trials"][0]["settings"]["learning_rate"] == 3e-3, "the first trial is what train does by itself"
    finished = [trial["value"] for trial in again["trials"] if trial["state"] == "complete"]
    assert again["best"]["value"] == min(finished)
    assert again["artifact"] == model.hash
    assert model.training["tuning"]["trials"] == 3
    assert model.training["plan"]["window"] == again["best"]["settings"]["window"]
    assert model.calibration.slope > 0
    lines = [line.split() for line in out.splitlines()]
    assert ["trial", "measure", "forecast", *again["best"]["settings"]] in lines
    with pytest.raises(ConfigError, match="holds a study with steps 8, not 9"):
        tune.run(FromFiles([tmp_path / "a.csv"]), tmp_path / "out", trials=3, steps=9, seed=3)


def test_a_trial_that_was_interrupted_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tune, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt, match="after 0 of 1 trials"):
            search(tmp_path, 1)
    told = search(tmp_path, 1)

    assert [trial["state"] for trial in told["trials"]] == ["fail", "complete"]
    assert told["best"]["settings"]["learning_rate"] == 3e-3, "the first trial is what train does by itself"


def test_refitted_on_all_data_nothing_is_held_back(tmp_path: Path) -> None:
    search(tmp_path, 1, refit=True)

    about = artifacts.load(tmp_path / "out").training
    assert (about["plan"]["held_back"], about["held_back_loss"], about["tuning"]["refit"]) == (0.0, None, True)
    assert about["steps"] <= 12


def test_a_missing_extra_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(ConfigError, match=r"pip install 'anomalyd\[tuning\]'"):
        tune.run(FromFiles([tmp_path / "a.csv"]), tmp_path / "out")
