"""`anomalyd evaluate` on small sets that are made here, in each publisher's layout."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.detector import Artifact
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import AnomalydError, ConfigError
from anomalyd.evaluation import evaluate
from anomalyd.evaluation.measures import average_precision
from anomalyd.evaluation.sets import LabelledSet, halves

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 900
SPIKE = slice(600, 606)


def course(seed: int, features: int = 1, rows: int = ROWS) -> NDArray[np.float64]:
    """A daily shape with noise, and something that nobody can miss."""
    rng = np.random.default_rng(seed)
    value: NDArray[np.float64] = 10 + np.sin(np.arange(rows) / 46)[:, None] + 0.1 * rng.standard_normal((rows, features))
    value[SPIKE, : max(1, features // 2)] += 9
    return value


def label(rows: int = ROWS) -> NDArray[np.uint8]:
    truth = np.zeros(rows, np.uint8)
    truth[SPIKE] = 1
    return truth


@pytest.fixture
def nab(tmp_path: Path) -> Path:
    """Two categories, one stream with a window and one without."""
    times = [START + timedelta(minutes=5 * i) for i in range(ROWS)]
    windows = {}
    for name, seed in (("real/a", 1), ("made/b", 2)):
        path = tmp_path / "nab" / "data" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True)
        value = course(seed)[:, 0]
        if name == "made/b":
            value[SPIKE] -= 9
        rows = "".join(f"{moment:%Y-%m-%d %H:%M:%S},{x}\n" for moment, x in zip(times, value.tolist(), strict=True))
        path.write_bytes(gzip.compress(f"timestamp,value\n{rows}".encode()))
        windows[f"{name}.csv"] = [[f"{times[590]:%Y-%m-%d %H:%M:%S.000000}", f"{times[620]:%Y-%m-%d %H:%M:%S.000000}"]] * (name == "real/a")
    (tmp_path / "nab" / "windows.json").write_text(json.dumps(windows))
    return tmp_path


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    """Two entities of two values, a shape that other tests compile, too, with train, test and causes."""
    folder = tmp_path / "asd"
    folder.mkdir()
    for i in range(2):
        np.savez(folder / f"omi-{i}.npz", train=course(i, 2)[:300], test=course(9 + i, 2), label=label())
    causes = {"note": "made", "entities": {f"omi-{i}": [{"start": 600, "end": 605, "dims": [1]}] for i in range(2)}}
    (folder / "interpretation.json").write_text(json.dumps(causes))
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_windows_are_rows_and_the_corpus_gets_its_score(nab: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.html"

    assert evaluate.run("nab", nab, None, out=out, report=report, json_output=True) == 0

    found = told(capsys)
    assert (found["set"], found["detector"], found["streams"], found["samples"]) == ("nab", "anomalyd", 2, 2 * ROWS)
    assert found["measures"]["nab_standard"] > 40
    assert found["measures"]["event_recall"] == 1.0
    per_stream = {one["stream"]: one for one in found["per_stream"]}
    assert (per_stream["real/a"]["anomalous_rows"], per_stream["made/b"]["anomalous_rows"]) == (31, 0)
    assert per_stream["made/b"]["vus_pr"] is None
    with np.load(out / "real" / "a.npz") as scores:
        assert scores["row"].tolist() == list(range(ROWS))
        assert 590 <= int(scores["evidence"].argmax()) <= 620
    assert (out / "alerts.jsonl").read_text().count('"firing"') == found["per_stream"][0]["episodes"] + found["per_stream"][1]["episodes"]
    assert "real/a" in report.read_text()


@pytest.mark.parametrize("detector", ["anomalyd", "no-lstm", "robust-z"])
def test_rows_are_ranked_by_what_is_written_and_that_is_as_the_score_says_but_for_baselines(
    nab: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "prepared", lambda variants, *_: {variant.name: artifacts.load(shipped()) for variant in variants})

    evaluate.run("nab", nab, None, detector=detector, out=tmp_path / "out", json_output=True)

    found = {one["stream"]: one["auc_pr"] for one in told(capsys)["per_stream"]}
    streams = LabelledSet("nab", nab)
    label = next(read.label for read in map(streams.read, streams.files) if read.name == "real/a")
    with np.load(tmp_path / "out" / "real" / "a.npz") as columns:
        score, evidence = columns["score"], columns["evidence"]
    assert found["real/a"] == pytest.approx(average_precision(evidence, label), abs=1e-4)
    known = score > 0
    assert (np.ptp(evidence[known] / score[known]) < 1e-9) == (detector != "robust-z")


def test_entities_without_a_fit_are_measured_on_test_alone(entities: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run("asd", entities, None, json_output=True, no_fit=True)

    found = told(capsys)
    assert found["samples"] == 2 * ROWS
    assert found["measures"]["auc_pr"] > 0.3
    assert found["measures"]["hit_rate_100"] == 1.0
    assert found["per_stream"][0]["quiet_days"] == pytest.approx((ROWS - 16 - 1) * 300 / 86_400, abs=0.02)


def test_steps_and_ends_of_causes_are_those_of_the_set(entities: Path) -> None:
    labelled_set = LabelledSet("asd", entities)
    labelled = labelled_set.read(labelled_set.files[0])

    assert np.diff(labelled.table.time_ms).tolist() == [300_000] * (ROWS - 1)
    assert labelled.windows == ((600, 605),)
    assert [(cause.start, cause.end, cause.dims) for cause in labelled.causes] == [(600, 606, (0,))]


def test_causes_are_found_where_rows_without_a_value_are_left_out(entities: Path) -> None:
    test = course(9, 2)
    test[10] = np.nan
    np.savez(entities / "omi-0.npz", train=course(0, 2)[:300], test=test, label=label())

    labelled_set = LabelledSet("asd", entities)
    labelled = labelled_set.read(labelled_set.files[0])

    assert labelled.windows == ((599, 604),)
    assert [(cause.start, cause.end) for cause in labelled.causes] == [(599, 605)]


def test_each_cause_counts_alike_however_many_its_stream_has(entities: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"start": 600, "end": 605, "dims": [2]}
    right = {"start": 600, "end": 605, "dims": [1]}
    (entities / "interpretation.json").write_text(json.dumps({"omi-0": [wrong, wrong, wrong], "omi-1": [right]}))

    evaluate.run("asd", entities, None, json_output=True, no_fit=True)

    found = told(capsys)
    first, second = found["per_stream"]
    assert (first["causes"], second["causes"]) == (3, 1)
    assert first["hit_rate_100"] < second["hit_rate_100"]
    assert found["measures"]["hit_rate_100"] == pytest.approx((3 * first["hit_rate_100"] + second["hit_rate_100"]) / 4, abs=1e-3)


def test_a_cold_start_is_compared_with_the_same_rows(nab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run("nab", nab, None, json_output=True, cold_start=True)

    assert 0.3 < told(capsys)["measures"]["cold_start"] < 3


def test_detectors_are_compared_stream_by_stream(nab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run("nab", nab, None, compare=["robust-z"], json_output=True)

    found = told(capsys)["compared"]["robust-z"]
    assert found["difference"]["vus_pr"]["streams"] == 1
    assert found["difference"]["vus_pr"]["won"] in (0.0, 0.5, 1.0)
    assert found["measures"]["event_recall"] == 1.0


def test_what_draws_is_repeated_with_each_seed_and_what_does_not_is_not(
    nab: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args: dict[str, Any] = {"detector": "isolation-forest", "compare": ["robust-z"], "json_output": True}

    evaluate.run("nab", nab, None, **args, seeds=(0, 3), out=tmp_path / "out")
    both = told(capsys)
    evaluate.run("nab", nab, None, **args, seeds=(3,))
    third = told(capsys)

    assert both["seeds"] == [0, 3]
    first, second = both["spread"]["auc_pr"]["values"]
    assert second == third["measures"]["auc_pr"] != first
    assert both["measures"]["auc_pr"] == pytest.approx((first + second) / 2, abs=1e-4)
    assert both["spread"]["auc_pr"]["sd"] == pytest.approx(abs(first - second) / 2**0.5, abs=1e-4)
    others = both["compared"]["robust-z"]
    assert others["spread"]["auc_pr"] == {"sd": 0.0, "values": [others["measures"]["auc_pr"]] * 2}
    assert both["compared"]["robust-z"]["difference"]["auc_pr"]["mean"] == pytest.approx(
        both["measures"]["auc_pr"] - others["measures"]["auc_pr"], abs=1e-3
    )
    assert "spread" not in third
    assert sorted(path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("alerts.jsonl")) == [
        "out",
        "out/robust-z",
        "out/seed-3",
    ]


def test_a_joint_model_is_fitted_for_each_seed_and_shown_with_its_spread(
    entities: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, int]] = []

    def fit(histories: list[NDArray[np.float64]], seed: int) -> Artifact:
        fitted.append((len(histories), seed))
        return artifacts.load(shipped()).for_features(2)

    monkeypatch.setattr("anomalyd.training.joint.fit_joint", fit)

    evaluate.run("asd", entities, None, seeds=(0, 1), cold_start=True)
    evaluate.run("asd", entities, None, seeds=(0, 1), shared=True)

    assert fitted == [(1, 0), (1, 1)] * 2 + [(2, 0), (2, 1)], "not once more for a cold start, which is of state and not of the model"
    lines = capsys.readouterr().out.splitlines()
    assert "means over the seeds 0, 1 ± their standard deviation" in lines
    assert sum(line.startswith("auc_pr ") and "±" in line for line in lines) == 2
    assert sum("seed 0      seed 1" in line for line in lines) == 2


def test_a_detector_that_does_not_exist_is_said_with_those_that_do(nab: Path) -> None:
    with pytest.raises(ConfigError, match="valid are anomalyd, robust-z"):
        evaluate.run("nab", nab, None, detector="z-score")


def test_halves_are_every_stream_once() -> None:
    names = [f"stream-{i}" for i in range(11)]
    found = halves(names)

    assert found["choose"] | found["hold"] == set(names)
    assert not found["choose"] & found["hold"]
    assert len(found["choose"]) == 6
    assert halves(names[::-1]) == found


def unlabelled(folder: Path) -> None:
    np.savez(folder / "a.npz", timestamp=np.arange(2), value=np.ones(2))


def broken_causes(folder: Path) -> None:
    (folder / "interpretation.json").write_text("{")
    unlabelled(folder)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("nabb", unlabelled, "valid are nab"),
        ("kpi", Path.rmdir, "no such directory"),
        ("nab", unlabelled, "windows.json: no such file"),
        ("kpi", unlabelled, "holds no label"),
        ("smd", broken_causes, "interpretation.json"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, name: str, make: Callable[[Path], None], said: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)

    with pytest.raises(AnomalydError, match=said):
        evaluate.run(name, folder, None)
