"""`anomalyd train`: from files to a joint model that backtest and evaluate score with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anomalyd.detector import Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.errors import AnomalydError, ArtifactError, ConfigError, InputFileError
from anomalyd.evaluation import backtest, evaluate
from anomalyd.training import joint
from anomalyd.training.design import Wanted
from anomalyd.training.sources import FromFiles
from anomalyd.training.train import run as run_train
from tests.detector.population import Floats, batch_of

PLAN: dict[str, object] = {"steps": 40, "batch": 8, "stretch": 32}
NAMES = ("cpu", "mem", "net")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    # The step is compiled for every shape: this one is that of other tests, too.
    monkeypatch.setattr(joint, "UNITS", 7)
    monkeypatch.setattr(joint, "LATENT", 2)


def run(paths: list[Path], out: Path, seed: int = 0) -> int:
    return run_train(FromFiles(paths), out, seed, Wanted(plan=PLAN))


def entity(rows: int, seed: int, features: int = 3) -> Floats:
    """Values that follow one driver, (rows, features)."""
    rng = np.random.default_rng(seed)
    driver = np.sin(np.arange(rows) / 10)[:, None]
    return np.asarray(driver * (1 + np.arange(features)) + 0.1 * rng.standard_normal((rows, features)))


def write_csv(path: Path, values: Floats, names: tuple[str, ...] = NAMES) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = (",".join([str(1_760_000_000 + 60 * i), *("" if np.isnan(x) else repr(float(x)) for x in row)]) for i, row in enumerate(values))
    path.write_text("\n".join([f"timestamp,{','.join(names)}", *rows]) + "\n")
    return path


def test_a_folder_of_entities_becomes_a_model_that_files_are_scored_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write_csv(tmp_path / "past" / f"{i}.csv", entity(600, i))
    value = entity(800, 9)
    value[600:610, 1] += 200
    new = write_csv(tmp_path / "new.csv", value)

    assert run([tmp_path / "past"], tmp_path / "model", seed=4) == 0
    said = capsys.readouterr().out
    code = backtest.run(
        [new], None, tmp_path / "out", None, json_output=True, format=None, no_fit=False, shared=False, model=tmp_path / "model"
    )

    model = artifacts.load(tmp_path / "model")
    assert (model.feature_names, model.shape.joint, model.training["data"]["series"]) == (NAMES, True, 2)
    assert model.hash in said
    assert "2 entities of 3 values, 1,200 rows" in said
    assert code == 0
    detector = Detector(model, "cpu")
    verdicts = detector.step(detector.new_pages(1), batch_of(0, 1_760_000_000_000 + 60_000 * np.arange(800), value))
    with np.load(tmp_path / "out" / "new.npz") as scored:
        np.testing.assert_array_equal(scored["score"], verdicts.score)
        assert scored["share"][600].argmax() == 1


def test_train_is_what_is_trained_on_and_a_missing_value_is_the_last_known(tmp_path: Path) -> None:
    history = entity(400, 1)
    history[100:104, 2] = history[99, 2]
    holed = history.copy()
    holed[100:104, 2] = np.nan
    np.savez(tmp_path / "a.npz", train=holed, test=entity(300, 2))
    np.savez(tmp_path / "b.npz", timestamp=np.arange(400), values=history)

    run([tmp_path / "a.npz"], tmp_path / "one")
    run([tmp_path / "b.npz"], tmp_path / "two")

    one, two = artifacts.load(tmp_path / "one"), artifacts.load(tmp_path / "two")
    for name, tensor in one.tensors.items():  # equal seeds and histories, equal weights
        np.testing.assert_array_equal(tensor, two.tensors[name])
    assert one.feature_names is None


def test_data_can_be_held_back_of_entities_too(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "past.csv", entity(600, 1))

    run_train(FromFiles([path]), tmp_path / "model", 0, Wanted(held_back=0.25, plan=PLAN))

    about = artifacts.load(tmp_path / "model").training
    assert about["held_back_loss"] < 1.0
    assert set(about["errors"]) == {"trained"}
    assert about["held_back_alerts"]["series_days"] == round(149 / 1440, 3)


def test_an_evaluation_goes_by_the_model_and_fits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "past.csv", entity(400, 1))
    run([tmp_path / "past.csv"], tmp_path / "model")
    value, label = entity(500, 2), np.zeros(500)
    value[300:306] += 30
    label[300:306] = 1
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "a.npz", train=entity(300, 3), test=value, label=label)
    monkeypatch.setattr(joint, "fit_joint", None)

    evaluate.run("folder", tmp_path / "set", None, model=tmp_path / "model")

    assert "auc_pr" in capsys.readouterr().out


def few_rows(folder: Path) -> list[Path]:
    return [write_csv(folder / "a.csv", entity(12, 1))]


def few_rows_of_train(folder: Path) -> list[Path]:
    np.savez(folder / "a.npz", train=entity(20, 1), test=entity(900, 1))
    return [folder / "a.npz"]


def different_widths(folder: Path) -> list[Path]:
    return [write_csv(folder / "a.csv", entity(400, 1)), write_csv(folder / "b.csv", entity(400, 1, 2), NAMES[:2])]


def different_names(folder: Path) -> list[Path]:
    return [write_csv(folder / "a.csv", entity(400, 1)), write_csv(folder / "b.csv", entity(400, 1), ("mem", "cpu", "net"))]


def nothing(folder: Path) -> list[Path]:
    return [folder / "none.csv"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (few_rows, r"a\.csv: has 12 rows, a model needs 256"),
        (few_rows_of_train, r"a\.npz: has 20 rows of train, a model needs 256"),
        (different_widths, r"b\.csv: has 2 value columns, .*a\.csv has 3 value columns; .*train one for each kind"),
        (different_names, r"b\.csv: columns are mem, cpu, net; those of .*a\.csv are cpu, mem, net"),
        (nothing, r"none\.csv: no such file"),
    ],
)
def test_what_cannot_be_trained_on_is_said(tmp_path: Path, make: Callable[[Path], list[Path]], said: str) -> None:
    with pytest.raises(AnomalydError, match=said):
        run(make(tmp_path), tmp_path / "model")


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="--out"):
        run(few_rows(tmp_path), tmp_path / "file")


def score_with(model: Path, path: Path, *, no_fit: bool = False) -> None:
    backtest.run([path], None, None, None, json_output=True, format=None, no_fit=no_fit, shared=False, model=model)


def test_a_model_for_other_values_is_said_with_both(tmp_path: Path) -> None:
    model = tmp_path / "model"
    run([write_csv(tmp_path / "past.csv", entity(400, 1))], model)
    cases: list[tuple[Path, bool, type[AnomalydError], str]] = [
        (
            write_csv(tmp_path / "two.csv", entity(400, 1, 2), NAMES[:2]),
            False,
            InputFileError,
            r"2 values a row.* is for 3 \(cpu, mem, net\)",
        ),
        (write_csv(tmp_path / "one.csv", entity(400, 1, 1), NAMES[:1]), False, InputFileError, "has single values; .* is for 3"),
        (
            write_csv(tmp_path / "turned.csv", entity(400, 1), NAMES[::-1]),
            False,
            InputFileError,
            "in the order of the model .*: cpu, mem, net",
        ),
        (tmp_path / "past.csv", True, ConfigError, "--model: .*--no-fit"),
    ]

    for path, no_fit, error, said in cases:
        with pytest.raises(error, match=said):
            score_with(model, path, no_fit=no_fit)
    with pytest.raises(ArtifactError, match="no model artifact"):
        score_with(tmp_path / "past", tmp_path / "past.csv")


def test_a_model_that_names_other_than_its_values_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    run([write_csv(tmp_path / "past.csv", entity(400, 1))], tmp_path / "model")

    with pytest.raises(ArtifactError, match="names 2 features and has 3"):
        artifacts.save(replace(artifacts.load(tmp_path / "model"), feature_names=("a", "b")), tmp_path / "other")
