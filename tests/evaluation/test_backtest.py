"""Backtest: what production would have said about files."""

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from anomalyd.alerts.messages import load_schema
from anomalyd.app import App
from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.demo.fleet import Fleet
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.backtest import out_of_order, run
from anomalyd.evaluation.readers import FIRST_MS, STEP_MS
from anomalyd.evaluation.replay import Trace
from anomalyd.kafka.topics import CHANGELOG_CONFIG, MODELS_CONFIG
from anomalyd.settings import Settings
from anomalyd.shard import Shard
from anomalyd.training.joint import PLAN, fit_joint
from tests.support.poll import until
from tests.support.topics import create_topic, produce, read_until, unique

DATA = Path(os.environ.get("ANOMALYD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SPIKES = [(700, 706, 60), (1100, 1103, 900)]


def series(rows: int = 1500, seed: int = 0, level: float = 100.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Noise with two spikes that nobody can miss."""
    values = level + np.random.default_rng(seed).standard_normal(rows)
    for start, end, height in SPIKES:
        values[start:end] += height
    return values


def write_csv(path: Path, values: Iterable[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{1_760_000_000 + 60 * i},{value}" for i, value in enumerate(values))
    path.write_text("timestamp,value\n" + "\n".join(rows) + "\n")


def backtest(*paths: Path, out: Path | None = None, config: Settings | None = None, wire_format: str | None = None, **options: Any) -> int:  # noqa: ANN401  of run
    defaults = {"report": None, "json_output": False, "no_fit": False, "shared": False}
    return run(paths=list(paths), settings=config, out=out, format=wire_format, **(defaults | options))


def scores(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def alerts(out: Path) -> list[dict[str, Any]]:
    messages = [json.loads(line) for line in (out / "alerts.jsonl").read_text().splitlines()]
    for message in messages:
        jsonschema.validate(message, load_schema())
    return messages


def test_a_csv_gives_a_score_for_each_row_and_the_alerts_of_production(tmp_path: Path) -> None:
    write_csv(tmp_path / "in/web/load.csv", series())

    assert backtest(tmp_path / "in", out=tmp_path / "out") == 0

    columns = scores(tmp_path / "out/web/load.npz")
    assert {name: (column.shape, str(column.dtype)) for name, column in columns.items()} == {
        "row": ((1500,), "int64"),
        **dict.fromkeys(("score", "evidence", "expected", "low", "high"), ((1500,), "float64")),
    }
    assert columns["row"].tolist() == list(range(1500))
    assert all(np.isfinite(column).all() for column in columns.values())
    assert columns["score"][700] >= 1
    assert columns["evidence"][700] > np.median(columns["evidence"])

    fired = [message for message in alerts(tmp_path / "out") if message["status"] == "firing"]
    assert {message["source"]["offset"] for message in fired} >= {700}
    first = next(message for message in fired if message["source"]["offset"] == 700)
    assert first["series"] == {"key": "web/load", "name": "web/load", "labels": {}}
    assert first["source"]["topic"] == str(tmp_path / "in/web/load.csv")
    assert first["detected_at"] == first["event_time"]
    assert first["stream"] == "backtest"


def test_rows_without_a_value_are_not_scored_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    values = series().tolist()
    values[10] = values[699] = float("nan")
    write_csv(tmp_path / "a.csv", values)

    backtest(tmp_path / "a.csv", out=tmp_path / "out")

    rows = scores(tmp_path / "out/a.npz")["row"].tolist()
    assert rows == [row for row in range(1500) if row not in (10, 699)]
    assert 700 in {message["source"]["offset"] for message in alerts(tmp_path / "out")}


def test_what_was_not_as_it_should_be_is_said_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = series(60).tolist()
    values[50] = float("nan")
    write_csv(tmp_path / "a.csv", values)
    header, *rows = (tmp_path / "a.csv").read_text().splitlines()
    rows[10], rows[12] = rows[12], rows[10]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "b.csv").write_text("timestamp,load\n1,\n2,nan\n")

    backtest(tmp_path)

    assert [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line] == [
        f"{tmp_path / 'a.csv'}: 1 row without a value",
        f"{tmp_path / 'a.csv'}: 2 of 59 rows are not in time order; they are scored as late samples (docs/input-rules.md)",
        f"{tmp_path / 'a.csv'}: has 59 samples: nothing could alert, since the first 100 of a series never do",
        f"{tmp_path / 'b.csv'}: 2 rows without a value",
    ]
    with pytest.raises(InputFileError, match=r"nothing was scored: .*b\.csv: column load holds no number in any of the 2 rows"):
        backtest(tmp_path / "b.csv")


def test_order_is_that_of_each_series() -> None:
    nothing = np.empty(5)
    wide = np.empty((5, 1))
    verdicts = Verdicts(nothing, nothing, wide, wide, wide, wide, share=wide.astype(np.float32), flags=np.zeros(5, np.uint8))
    trace = Trace(np.arange(5), np.array([0, 1, 0, 1, 0], np.int32), np.array([50, 10, 40, 20, 60]), verdicts, ("a", "b"))

    assert out_of_order(trace).tolist() == [False, False, True, False, False]


def test_every_file_starts_afresh(tmp_path: Path) -> None:
    write_csv(tmp_path / "in/a.csv", series())
    write_csv(tmp_path / "in/b.csv", series())
    write_csv(tmp_path / "alone/a.csv", series())

    backtest(tmp_path / "in", out=tmp_path / "together")
    backtest(tmp_path / "alone", out=tmp_path / "single")

    together, single = scores(tmp_path / "together/b.npz"), scores(tmp_path / "single/a.npz")
    assert all(np.array_equal(together[name], single[name]) for name in single)


def test_train_is_learned_and_only_test_is_reported(tmp_path: Path) -> None:
    values = series()
    np.savez(tmp_path / "a.npz", train=values[:650], test=values[650:], label=np.zeros(850))
    write_csv(tmp_path / "b.csv", values)

    backtest(tmp_path / "a.npz", tmp_path / "b.csv", out=tmp_path / "out")

    split, whole = scores(tmp_path / "out/a.npz"), scores(tmp_path / "out/b.npz")
    assert split["row"].tolist() == list(range(850))
    assert np.array_equal(split["score"], whole["score"][650:])
    own = [message for message in alerts(tmp_path / "out") if message["series"]["key"] == "a"]
    assert own[0]["source"]["offset"] == 50
    assert own[0]["starts_at"].startswith("2000-01-01T")
    assert np.datetime64(own[0]["starts_at"][:-1]) == np.datetime64(FIRST_MS + 700 * STEP_MS, "ms")


def test_an_episode_that_began_in_train_is_not_told_of_again(tmp_path: Path) -> None:
    values = series()
    np.savez(tmp_path / "a.npz", train=values[:703], test=values[703:])

    backtest(tmp_path / "a.npz", out=tmp_path / "out")

    messages = alerts(tmp_path / "out")
    assert messages[0]["status"] == "firing"
    assert {message["alert_id"] for message in messages} == {m["alert_id"] for m in messages if m["status"] == "firing"}


def test_several_values_give_shares_and_names(tmp_path: Path) -> None:
    values = np.column_stack([series(seed=1), 5 + 0.1 * np.random.default_rng(2).standard_normal(1500)])
    rows = [f"{1_760_000_000 + 60 * i},{a},{b}" for i, (a, b) in enumerate(values)]
    (tmp_path / "host.csv").write_text("timestamp,cpu,mem\n" + "\n".join(rows))

    config = settings("unused:9092", unique("topic"), "anomalyd.alerts", budget=1000)

    backtest(tmp_path / "host.csv", out=tmp_path / "out", config=config, no_fit=True)

    columns = scores(tmp_path / "out/host.npz")
    assert columns["expected"].shape == columns["low"].shape == columns["high"].shape == columns["share"].shape == (1500, 2)
    assert columns["share"].dtype == np.float32
    assert columns["share"][700].argmax() == 0
    fired = [
        message for message in alerts(tmp_path / "out") if message["status"] == "firing" and message["source"]["offset"] in (700, 1100)
    ]
    assert [feature["name"] for feature in fired[0]["features"]] == ["cpu", "mem"]


def test_the_json_object_is_the_last_line_and_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "a.csv", series())
    write_csv(tmp_path / "b.csv", series(seed=3)[:150])

    backtest(tmp_path, json_output=True)

    captured = capsys.readouterr()
    told = json.loads(captured.out.splitlines()[-1])
    assert set(told) == {"series", "samples", "episodes", "samples_per_s", "files"}
    assert [set(file) for file in told["files"]] == [{"path", "series", "samples", "episodes"}] * 2
    assert (told["series"], told["samples"]) == (2, 1650)
    assert told["episodes"] == sum(file["episodes"] for file in told["files"]) >= 1
    assert "compiling" in captured.err or not captured.err  # progress is for terminals


def test_lines_are_records_bad_ones_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for i, value in enumerate(series()):
        lines += [json.dumps({"name": "load", "ts": 1_760_000_000 + 60 * i, "value": value, "tags": {"host": "a"}}), ""]
    lines[0] = "not json"
    (tmp_path / "dump.txt").write_text("\n".join(lines))

    backtest(tmp_path / "dump.txt", out=tmp_path / "out", wire_format="plain-json")

    columns = scores(tmp_path / "out/dump.npz")
    assert columns["row"].tolist() == list(range(2, 3000, 2))
    assert columns["keys"].tolist() == ['load{host="a"}']
    assert not columns["series"].any()
    assert alerts(tmp_path / "out")[0]["source"]["offset"] == 1400
    assert "1 record" in capsys.readouterr().err


def test_the_policy_of_a_configuration_applies(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", series())
    config = settings("unused:9092", unique("topic"), "anomalyd.alerts", direction="below")

    backtest(tmp_path / "a.csv", out=tmp_path / "out", config=config)

    assert "above" not in {message["direction"] for message in alerts(tmp_path / "out")}


def test_the_report_shows_the_series(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", series())

    backtest(tmp_path / "a.csv", report=tmp_path / "a.html")

    page = (tmp_path / "a.html").read_text()
    assert "<svg" in page
    assert "a.csv" in page


def test_wrong_usage_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [1, 2])
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"--format: got 'xml', valid are plain-json"):
        backtest(tmp_path / "a.csv", wire_format="xml")
    with pytest.raises(ConfigError, match="no such file"):
        backtest(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="--out"):
        backtest(tmp_path / "a.csv", out=tmp_path / "file")
    with pytest.raises(ConfigError, match="--report"):
        backtest(tmp_path / "a.csv", report=tmp_path / "absent" / "a.html")


def settings(bootstrap: str, topic: str, alerts_topic: str, **policy: Any) -> Settings:  # noqa: ANN401  a policy's fields
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": bootstrap, "group_id": unique("group")},
            "streams": [{"name": "hosts", "topics": [topic], "format": "telegraf-json", "start_from": "earliest"}],
            "alerts": {"topic": alerts_topic, **policy},
            "dead_letters": {"topic": f"{alerts_topic}-dead"},
            "http": {"host": "127.0.0.1", "port": 0},
        }
    )


async def test_backtest_and_daemon_give_the_same_alerts(kafka: str, tmp_path: Path) -> None:
    """The same records through a file and through Kafka: equal messages but for the clock's `detected_at` and the name of the source."""
    fleet = Fleet(20, seed=1)
    lines = [
        text.encode()
        for _ in range(25)
        for block in [fleet.block()]
        for tick in range(len(block))
        for _, text in fleet.records(block, tick)
    ]
    lines[500] = b'{"bad": 1}'
    path = tmp_path / "dump.jsonl"
    path.write_bytes(b"\n".join(lines))
    topic, alerts_topic = [await asyncio.to_thread(create_topic, kafka) for _ in range(2)]
    await asyncio.to_thread(create_topic, kafka, f"{alerts_topic}-dead")
    config = settings(kafka, topic, alerts_topic)
    await asyncio.to_thread(create_topic, kafka, config.changelog_topic(topic), config=dict(CHANGELOG_CONFIG))
    await asyncio.to_thread(create_topic, kafka, config.models_topic, config=dict(MODELS_CONFIG))
    await asyncio.to_thread(produce, kafka, topic, lines)
    seen = 0

    def count(_: Shard, batch: SampleBatch, __: Verdicts, ___: list[dict[str, Any]]) -> None:
        nonlocal seen
        seen += len(batch)

    async with App(config, observer=count):
        await until(lambda: seen >= 5 * (len(lines) - 1), "the daemon to score every sample", timeout_s=60)
    backtest(path, config=config, out=tmp_path)
    expected = alerts(tmp_path)

    records = await asyncio.to_thread(read_until, kafka, alerts_topic, lambda got: len(got) >= len(expected), "all alerts")

    got = [json.loads(record.value or b"") for record in records]
    assert len(expected) > 4
    for message in (*expected, *got):
        assert message.pop("detected_at")
        message["source"].pop("topic")
    assert got == expected


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no labelled data at {DATA} (set ANOMALYD_TEST_DATA)")
def test_all_streams_of_nab_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backtest(DATA / "nab" / "data", out=tmp_path, json_output=True)

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["series"], told["samples"]) == (58, 365_558)
    assert len(list(tmp_path.rglob("*.npz"))) == 58
    assert (tmp_path / "realTweets" / "Twitter_volume_AAPL.npz").is_file()


def test_a_joint_model_is_fitted_on_train_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalyd.training.joint.fit_joint", partial(fit_joint, plan=replace(PLAN, steps=5)))
    rng = np.random.default_rng(4)
    load = np.cumsum(rng.standard_normal(900)) * 0.1
    both = np.column_stack([load + 0.1 * rng.standard_normal(900), 50 - load + 0.1 * rng.standard_normal(900)])
    for name in ("in/a.npz", "in/b.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, train=both[:400], test=both[400:], label=np.zeros(500))
    config = settings("unused:9092", unique("topic"), "anomalyd.alerts", budget=1000)

    backtest(tmp_path / "in/a.npz", out=tmp_path / "fitted", config=config)
    backtest(tmp_path / "in/a.npz", out=tmp_path / "again", config=config)
    backtest(tmp_path / "in", out=tmp_path / "shared", config=config, shared=True)
    backtest(tmp_path / "in/a.npz", out=tmp_path / "zero-shot", config=config, no_fit=True)

    fitted, again, zero = (scores(tmp_path / name / "a.npz") for name in ("fitted", "again", "zero-shot"))
    assert all(np.array_equal(fitted[name], again[name]) for name in fitted)
    assert not np.array_equal(fitted["evidence"], zero["evidence"])
    one, other = (scores(tmp_path / "shared" / name) for name in ("a.npz", "b.npz"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert fitted["row"].tolist() == list(range(500))


def test_a_train_part_too_short_to_fit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=np.ones((20, 2)), test=np.ones((20, 2)))

    with pytest.raises(InputFileError, match=r"train has 20 rows, a model needs 256; use --no-fit"):
        backtest(tmp_path / "a.npz")
    assert backtest(tmp_path / "a.npz", no_fit=True) == 0
