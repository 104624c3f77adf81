"""`anomalyd train` for one feature: a network for all series, from files, records or weights that there are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomalyd.detector import Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import AnomalydError, ArtifactError, ConfigError, InputFileError
from anomalyd.training import course, pretrain
from anomalyd.training.design import Wanted
from anomalyd.training.sources import FromFiles, moment_ms, source_of
from anomalyd.training.train import run
from tests.detector.population import Floats, batch_of

START_S = 1_760_000_000
PLAN: dict[str, object] = {"steps": 30, "batch": 16, "stretch": 64, "window": 4}
WANTED = Wanted(plan=PLAN)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "CALM_SERIES", (64, 1000))
    monkeypatch.setattr(course, "GENERATED_SERIES", 16)


def waves(rows: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.asarray(50 + 20 * np.sin(2 * np.pi * np.arange(rows) / 40) + rng.normal(0, 2, rows))


def write_csv(path: Path, values: Floats) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("timestamp,value\n" + "".join(f"{START_S + 300 * i},{v!r}\n" for i, v in enumerate(values.tolist())))
    return path


def write_lines(path: Path, series: dict[str, Floats]) -> Path:
    """Records of several hosts, one after the other in time."""
    longest = max(map(len, series.values()))
    rows = [
        {"name": "load", "ts": START_S + 300 * i, "value": float(values[i]), "tags": {"host": host}}
        for i in range(longest)
        for host, values in series.items()
        if i < len(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_is_trained_calibrated_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest says of what, how and how well; equal seeds and data make equal artifacts, other seeds others."""
    for i in range(2):
        write_csv(tmp_path / "past" / f"{i}.csv", waves(900, i))

    assert run(FromFiles([tmp_path / "past"]), tmp_path / "one", 3, WANTED) == 0
    said, progress = capsys.readouterr()
    assert "training: 30 of 30 steps, loss " in progress
    assert "calibrating: 1,000 of 1,000 steps, on generated series, about 0 s left" in progress
    for folder, seed in (("two", 3), ("three", 4)):
        run(FromFiles([tmp_path / "past"]), tmp_path / folder, seed, WANTED)

    model = artifacts.load(tmp_path / "one")
    about = model.training
    assert model.hash in said
    assert about["architecture"] | {"parameters": 0} == {
        "cell": "lstm", "features": 1, "units": 32, "layers": 1, "latent": 4, "window": 4, "parameters": 0,
    }  # fmt: skip
    assert (about["data"]["series"], about["data"]["samples"]) == (2, 1800)
    assert (about["data"]["first"], about["data"]["last"]) == ("2025-10-09T08:53:20.000Z", "2025-10-12T11:48:20.000Z")
    assert set(about["versions"]) == {"anomalyd", "python", "torch", "numpy"}
    assert about["parent"] is None
    assert about["held_back_loss"] < 2.0
    assert set(about["errors"]) == {"trained", "shipped"}
    assert model.calibration.slope > 0
    assert artifacts.load(tmp_path / "two").hash == model.hash
    assert artifacts.load(tmp_path / "three").hash != model.hash
    detector, values = Detector(model, "cpu"), waves(600, 9)
    values[500] += 400
    verdicts = detector.step(detector.new_pages(1), batch_of(0, (START_S + 300 * np.arange(600)) * 1000, values))
    assert verdicts.score[500] > max(1.0, verdicts.score[200:500].max())
    page = (tmp_path / "one" / "report.html").read_text()
    assert "held back" in page
    assert page.count("<svg") >= 3


def test_what_is_refused_or_interrupted_leaves_no_folder_and_says_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv", waves(400, 1))

    def at_step_7(done: int, *_: object) -> None:
        if done == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr("anomalyd.training.later.Stopper.__call__", lambda _, __, done: at_step_7(done))
    with pytest.raises(KeyboardInterrupt, match="at step 7 of 30"):
        run(FromFiles([path]), tmp_path / "new" / "model", 0, WANTED)
    with pytest.raises(InputFileError):
        run(FromFiles([write_csv(tmp_path / "b.csv", waves(40, 1))]), tmp_path / "new" / "model", 0, WANTED)
    assert not (tmp_path / "new").exists()

    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(FromFiles([path]), tmp_path / "mine", 0, WANTED)
    assert (tmp_path / "mine").is_dir()


def test_training_forecasts_its_series_better_than_the_model_that_ships(tmp_path: Path) -> None:
    """Waves of one period: a few hundred steps on them beat a network that has never seen them."""
    write_csv(tmp_path / "a.csv", waves(2000, 1))

    run(FromFiles([tmp_path / "a.csv"]), tmp_path / "model", 0, Wanted(begin="shipped", plan={**PLAN, "steps": 150}))

    about = artifacts.load(tmp_path / "model").training
    assert about["parent"] == artifacts.load(shipped()).hash
    assert about["errors"]["trained"]["forecast"] < about["errors"]["shipped"]["forecast"]
    assert about["errors"]["trained"]["surprise"] < about["errors"]["shipped"]["surprise"]


def test_records_are_read_as_the_daemon_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Series by series, those that are too short left out, what cannot be read counted; the same as the same series in files."""
    lines = write_lines(tmp_path / "dump.jsonl", {"a": waves(400, 1), "b": waves(300, 2), "c": waves(20, 3)})
    lines.write_text(lines.read_text() + "not a record\n")

    run(FromFiles([lines], format="plain-json"), tmp_path / "one", 0, WANTED)

    said = capsys.readouterr().out
    assert "2 series, 700 samples" in said
    assert "1 series left out: fewer than 256 samples" in said
    assert "records not used, wholly or in part: malformed 1" in said
    for name, values in (("a", waves(400, 1)), ("b", waves(300, 2))):
        write_csv(tmp_path / "files" / f"{name}.csv", values)
    run(FromFiles([tmp_path / "files"]), tmp_path / "two", 0, WANTED)
    one, two = (artifacts.load(tmp_path / folder) for folder in ("one", "two"))
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_epochs_are_passes_over_the_data(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", waves(1280, 1))

    run(FromFiles([tmp_path / "a.csv"]), tmp_path / "model", 0, Wanted(epochs=4, held_back=0.0, generated=0.5, plan=PLAN))

    about = artifacts.load(tmp_path / "model").training
    assert about["steps"] == 4 * 1280 / (16 * 64) / 0.5
    assert (about["errors"], about["held_back_loss"], about["best_step"]) == ({}, None, 10)


def two_columns(folder: Path) -> Path:
    path = folder / "a.csv"
    path.write_text("timestamp,cpu,mem\n" + "".join(f"{START_S + 60 * i},{i % 7},{i % 5}\n" for i in range(300)))
    return path


def one_column(folder: Path) -> Path:
    return write_csv(folder / "a.csv", waves(300, 1))


CASES: list[tuple[Callable[[Path], Path], Wanted, type[AnomalydError], str]] = [
    (two_columns, Wanted(features=1), ConfigError, r"--features: got 1, the data has 2 values a sample \(cpu, mem\); a file of its own"),
    (one_column, Wanted(features=2), ConfigError, "--features: got 2, the data has 1 value a sample; .* into one file"),
    (one_column, Wanted(begin="shipped", units=50), ConfigError, "--from shipped: has 32 units, 1 layers and a code of 4"),
    (two_columns, Wanted(begin="shipped"), ArtifactError, "--from shipped: is for 1 features, the data has 2"),
    (one_column, Wanted(begin="absent"), ArtifactError, "no model artifact in absent"),
    (two_columns, Wanted(generated=0.5), ConfigError, "--generated: is for one feature"),
]


@pytest.mark.parametrize(("make", "wanted", "error", "said"), CASES)
def test_what_does_not_fit_is_said(
    tmp_path: Path, make: Callable[[Path], Path], wanted: Wanted, error: type[AnomalydError], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(FromFiles([make(tmp_path)]), tmp_path / "model", 0, replace(wanted, plan=PLAN))


def test_series_that_are_all_too_short_are_named(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "dump.jsonl", {"a": waves(40, 1), "b": waves(30, 2)})

    with pytest.raises(InputFileError, match=r'no series has 256 samples.*load\{host="a"\} \(40\), load\{host="b"\} \(30\)'):
        run(FromFiles([lines], format="plain-json"), tmp_path / "model", 0, WANTED)


def test_options_that_do_not_go_together_are_said() -> None:
    for arguments, said in (
        (([], None, None, None, None, None), "neither DATA nor --topic"),
        (([Path("a.csv")], None, None, "metrics", None, None), "got DATA and --topic"),
        (([], None, None, "metrics", None, None), "--topic: wants a configuration"),
        (([Path("a.csv")], None, None, None, "7d", None), "--since, --samples: are about a topic"),
    ):
        with pytest.raises(ConfigError, match=said):
            source_of(*arguments)


def test_moments_are_times_or_how_long_ago() -> None:
    assert moment_ms("2026-01-01T00:00:00Z", 0) == 1_767_225_600_000
    assert moment_ms("1.5h", 10_000_000) == 10_000_000 - 5_400_000
    with pytest.raises(ConfigError, match="--since: got 'yesterday'"):
        moment_ms("yesterday", 0)
