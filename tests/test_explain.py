"""Why was it strange: gates and memory recomputed, evidence taken apart, and the command that tells it."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomalyd.batch import Entry, LogRecord, Source
from anomalyd.detector import Artifact, Detector, Options, Shape
from anomalyd.detector.explain import channels, fields, half_life, memory, run
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.recipe import JOINT_LAGS
from anomalyd.errors import AnomalydError, ConfigError, InputFileError, StateError
from anomalyd.evaluation.explain import command
from anomalyd.evaluation.explain.facts import state_facts
from anomalyd.evaluation.explain.told import told
from anomalyd.evaluation.explain.witness import Witness
from anomalyd.formats import make_decoder
from anomalyd.settings import Settings
from anomalyd.shard import Shard, StreamPlan
from anomalyd.state.codec import Episode, encode, episode_key
from anomalyd.state.inspect import Contents
from anomalyd.state_commands import Place
from tests.detector.population import assert_same_bits, batch_of, every, untrained
from tests.evaluation.test_report import Page
from tests.support.changelog import FENCE, Rig, position

SPIKE = 450
Rows = NDArray[np.uint8]


@pytest.fixture(scope="module")
def shipped() -> Artifact:
    return Detector.pretrained().artifact


def values(rows: int = 480, seed: int = 0) -> NDArray[np.float64]:
    """A wave with noise and one spike."""
    wave = 100 + 10 * np.sin(np.arange(rows) / 40) + np.random.default_rng(seed).standard_normal(rows)
    wave[SPIKE : SPIKE + 3] += 60
    return wave


def watched(artifact: Artifact, count: int = 480, last: int = 40) -> tuple[Witness, Any]:
    """A detector that has seen the wave and kept its newest rows, and its verdicts."""
    wanted = np.arange(count - last, count, dtype=np.int64)
    witness = Witness(artifact, "cpu", Options(), wanted)
    return witness, witness.step(witness.new_pages(1), batch_of(0, every(count), values(count)))


# --- gates and memory


@pytest.mark.parametrize(
    "shape", [Shape(1, 32, 1, 4, joint=False), Shape(1, 7, 2, 3, joint=False), Shape(3, 10, 2, 4, joint=True)], ids=str
)
def test_recomputed_gates_give_the_states_and_heads_of_the_network(shape: Shape) -> None:
    artifact, rng = untrained(shape, seed=3), np.random.default_rng(3)
    inputs = rng.standard_normal((20, 1, shape.inputs))
    h, c = rng.uniform(-0.5, 0.5, (2, 2, shape.layers, 1, shape.units))
    network = Autoencoder.from_artifact(artifact)
    state = [(torch.tensor(h[p]).float(), torch.tensor(c[p]).float()) for p in (0, 1)]

    course = run(artifact, inputs, h, c)

    for t in range(20):
        with torch.inference_mode():
            out = network.step(torch.tensor(inputs[t]).float(), *state)
        state = [out.encoder, out.decoder]
        for p in (0, 1):
            np.testing.assert_allclose(course.hidden[t, p], state[p][0], atol=1e-5)
            np.testing.assert_allclose(course.cell[t, p], state[p][1], atol=1e-5)
        np.testing.assert_allclose(course.newest[t], out.newest[0], atol=1e-5)
        coming = out.next[0]
        if network.linear is not None:
            past = [torch.tensor(inputs[t - lag, 0] if lag <= t else 0.0 * inputs[0, 0]).float() for lag in JOINT_LAGS]
            coming = coming + network.linear(torch.cat(past)).detach()
        np.testing.assert_allclose(course.forecast[t], coming, atol=1e-5)
        np.testing.assert_allclose(course.code[t], out.code, atol=1e-5)
    assert ((course.gates > 0) & (course.gates < 1)).all()


def test_the_window_is_run_from_the_state_that_the_step_carried(shipped: Artifact) -> None:
    witness, _ = watched(shipped)

    found = memory(shipped, witness.layout, witness.rows)

    assert found is not None
    assert (found.beginning, found.inputs.shape) == ("carried", (16, 1, 2))
    # The step computed with inputs that the row keeps to 1/2048.
    assert found.deviation < 5e-3


def test_a_series_younger_than_the_window_is_run_from_its_birth(shipped: Artifact) -> None:
    witness, _ = watched(shipped, count=9, last=1)

    found = memory(shipped, witness.layout, witness.rows)

    assert found is not None
    assert (found.beginning, len(found.inputs)) == ("birth", 9)
    assert found.deviation < 5e-3


def test_one_row_alone_says_that_the_state_in_front_of_its_window_is_not_known(shipped: Artifact) -> None:
    witness, _ = watched(shipped)

    found = memory(shipped, witness.layout, witness.rows[-1:])

    assert found is not None
    assert found.beginning == "empty"
    assert found.deviation > 5e-3
    assert memory(shipped, witness.layout, np.zeros((1, witness.layout.row_bytes), np.uint8)) is None


def test_a_forget_gate_of_a_half_halves_in_one_step_and_one_that_is_open_is_a_number() -> None:
    lives = half_life(np.array([[0.5, 1.0, 0.0, 0.9], [0.5, 1.0, 0.0, 0.9]]))

    np.testing.assert_allclose(lives[[0, 3]], [1.0, np.log(0.5) / np.log(0.9)])
    assert np.isfinite(lives).all()
    assert lives[1] > 1e6


# --- evidence


def test_the_channels_add_up_to_the_evidence_and_the_guard_says_why(shipped: Artifact) -> None:
    witness, verdicts = watched(shipped, last=60)
    rows, first = witness.rows, 480 - 60

    for i in range(60):
        k = first + i
        found = channels(shipped, witness.layout, rows[i], rows[i + 1], verdicts.observed[k], float(verdicts.evidence[k]))
        guards = found[4]
        assert [channel.name for channel in found][:5] == ["A", "value", "jump", "B", "guards"]
        assert [channel.name for channel in found][5:] in ([], ["sustained"])
        assert sum(channel.evidence for channel in found) == pytest.approx(verdicts.evidence[k], abs=0.05)
        if k == SPIKE:
            assert guards.evidence > 4
            assert "leaves the range" in guards.about
            assert found[2].evidence > 3
        elif k < SPIKE:
            assert guards.evidence == 0


def test_a_flat_line_is_told_as_one(shipped: Artifact) -> None:
    series = values(300)
    series[240:] = series[239]
    witness = Witness(shipped, "cpu", Options(), np.arange(299, 300))
    verdicts = witness.step(witness.new_pages(1), batch_of(0, every(300), series))

    found = channels(shipped, witness.layout, witness.rows[0], witness.rows[1], verdicts.observed[-1], float(verdicts.evidence[-1]))

    assert found[4].evidence > 10
    assert "has not changed for 60 samples" in found[4].about


def test_of_a_sample_that_was_not_learned_no_channel_is_known(shipped: Artifact) -> None:
    witness = Witness(shipped, "cpu", Options(), np.arange(200, 201))
    times = every(201)
    times[-1] -= 90_000
    witness.step(witness.new_pages(1), batch_of(0, times, values(201)))

    assert channels(shipped, witness.layout, witness.rows[0], witness.rows[1], np.array([1.0]), 3.0) == []


def test_watching_changes_no_verdict(shipped: Artifact) -> None:
    plain = Detector(shipped, "cpu")
    batch = batch_of(np.arange(300) % 2, every(300), values(300))
    witness = Witness(shipped, "cpu", Options(), np.array([0, 100, 102, 298]))

    assert_same_bits(witness.step(witness.new_pages(2), batch), plain.step(pages := plain.new_pages(2), batch))
    assert len(witness.rows) == 5
    assert not witness.rows[0].any()
    assert bytes(witness.rows[-1]) == bytes(pages.buffer[0])


# --- the command, on files


def write_csv(path: Path, columns: dict[str, Sequence[float]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    lines = (",".join([str(1_760_000_000 + 60 * i), *map(str, row)]) for i, row in enumerate(rows))
    path.write_text("\n".join([",".join(["timestamp", *columns]), *lines]) + "\n")
    return path


def explain(path: Path | None = None, **options: Any) -> int:  # noqa: ANN401  of run
    defaults: dict[str, Any] = dict.fromkeys(("settings", "series", "at", "row", "topic", "partition", "report", "format"))
    return command.run(path=path, **(defaults | {"json_output": False, "no_fit": False} | options))


def facts(capsys: pytest.CaptureFixture[str], path: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401  of run
    assert explain(path, json_output=True, **options) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    return found


def test_a_sample_of_a_file_is_explained_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "load.csv", {"value": values().tolist()})

    found = facts(capsys, path, row=SPIKE, report=tmp_path / "why.html")

    sample, network = found["sample"], found["network"]
    assert (found["series"], sample["row"], sample["features"], sample["flags"]) == ("load", SPIKE, None, [])
    assert sample["observed"] > sample["high"] > sample["expected"]
    assert sample["score"] == pytest.approx(sample["evidence"] / sample["threshold"], rel=1e-4)
    assert sum(channel["evidence"] for channel in found["channels"]) == pytest.approx(sample["evidence"], abs=0.05)
    assert sample["unusual"] in found["alert"]["description"]
    last = found["window"]["steps"][-1]
    assert (len(found["window"]["steps"]), last["step"], last["time"], last["value"]) == (16, 0, sample["time"], sample["observed"])
    assert last["reconstructed_value"] < last["value"] - 20
    assert network["deviation"] < 5e-3
    for part in ("encoder", "decoder"):
        assert len(network[part]["forget_gate"]["course"]) == 16
        assert len(network[part]["half_life_steps"]["units"]) == len(network[part]["cell"]["state"]) == 32
        assert network[part]["half_life_steps"]["shortest"] > 0
        assert set(network[part]["cell"]["outside"]) <= set(range(32))
    assert "this series" in network["usual_of"]

    page = Page((tmp_path / "why.html").read_text())
    assert page.text["title"][0] == "Why: load"
    assert page.text["h2"][:3] == ["The series", "What the evidence is made of", "The window that the model saw"]
    assert page.tags.count("svg") >= 9


def test_the_text_names_all_parts_and_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "load.csv", {"value": values().tolist()})

    texts = []
    for _ in range(2):
        explain(path)
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1]
    assert f"row {SPIKE} of {path}" in texts[0]  # the strangest where none is asked for
    for part in ("seen ", "score ", "alert      ", "A ", "guards ", "together ", "encoder ", "decoder ", "halves in "):
        assert f"\n  {part}" in texts[0] or part in texts[0]


@pytest.mark.parametrize("at", ["2025-10-09T16:23:59", "2025-10-09T18:23:20.500+02:00", "1760027039", "1760027039999"])
def test_a_time_means_the_newest_sample_up_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str) -> None:
    path = write_csv(tmp_path / "load.csv", {"value": values().tolist()})

    assert facts(capsys, path, at=at)["sample"]["row"] == SPIKE


def test_a_young_series_and_a_late_sample_say_why_they_never_alert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = "1760000000,100"
    path = write_csv(tmp_path / "load.csv", {"value": values(200).tolist()})
    path.write_text(path.read_text() + late + "\n")

    assert "had 20 samples" in facts(capsys, path, row=20)["sample"]["note"]
    found = facts(capsys, path, row=200)
    assert found["channels"] == []
    assert "nothing learned" in found["sample"]["note"]
    assert found["window"]["steps"][-1]["time"] == "2025-10-09T12:12:20.000Z"  # it ends with the last one that was learned
    assert "nothing learned" in told(found)


def test_several_features_have_shares_and_the_first_has_the_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    columns = {name: rng.standard_normal(400) for name in ("cpu", "mem")}
    columns["mem"][350:354] += 15
    path = write_csv(tmp_path / "host.csv", {name: column.tolist() for name, column in columns.items()})

    found = facts(capsys, path)

    sample = found["sample"]
    assert 350 <= sample["row"] < 354
    assert [feature["name"] for feature in sample["features"]] == ["mem", "cpu"]
    assert sum(feature["share"] for feature in sample["features"]) == pytest.approx(1, abs=1e-5)
    assert [channel["name"] for channel in found["channels"]] == ["smoothed", "largest", "size", "guards"]
    assert sum(channel["evidence"] for channel in found["channels"]) == pytest.approx(sample["evidence"], abs=0.05)
    assert (found["window"]["feature"], found["learned"]["feature"]) == ("mem", "mem")
    assert found["window"]["steps"][-1]["value"] == pytest.approx(columns["mem"][sample["row"]], rel=1e-5)
    assert "mem" in told(found)


def test_of_several_series_one_has_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump.jsonl"
    record = '{{"name":"load","ts":{},"value":{},"tags":{{"host":"web-{}"}}}}\n'
    path.write_text("".join(record.format(1_760_000_000 + 60 * i, v + host, host) for i, v in enumerate(values()) for host in (1, 2)))

    with pytest.raises(ConfigError, match=r'--series: missing; .* holds 2 series, the strangest are load\{host="web-'):
        explain(path, format="plain-json")
    with pytest.raises(ConfigError, match=r'has no load\{host="web-3"\}; there are load\{host="web-2"\}, load\{host="web-1"\}'):
        explain(path, format="plain-json", series='load{host="web-3"}')

    found = facts(capsys, path, format="plain-json", series='load{host="web-2"}')
    assert found["sample"]["row"] == 2 * SPIKE + 1
    assert found["sample"]["observed"] == pytest.approx(values()[SPIKE] + 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"at": "2025-10-01"}, r"--at: got 2025-10-01T00:00:00.000Z, the series has samples from 2025-10-09T08:53:20.000Z to "),
        ({"at": "2026-10-01"}, r"--at: got 2026-10-01"),
        ({"at": "soon"}, r"--at: got 'soon', must be ISO 8601 such as"),
        ({"at": "nan"}, r"--at: got 'nan', must be"),
        ({"row": 1000}, r"no sample of this series in row 1000; the closest is in row 199"),
        ({"row": 1, "at": "2026"}, r"--at, --row: got both"),
        ({"topic": "metrics"}, r"--topic, --partition: are about state"),
        ({"series": "laod"}, r"has no laod; there are load"),
    ],
)
def test_what_does_not_fit_says_what_would(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    path = write_csv(tmp_path / "load.csv", {"value": values(200).tolist()})

    with pytest.raises(ConfigError, match=text):
        explain(path, **options)


def test_a_directory_is_none_and_without_a_file_a_configuration_and_a_series_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is a directory"):
        explain(tmp_path)
    with pytest.raises(ConfigError, match="neither a FILE of history nor a configuration"):
        explain()
    with pytest.raises(ConfigError, match="--series: missing"):
        explain(settings=SETTINGS)
    with pytest.raises(ConfigError, match="--at, --row: want a FILE"):
        explain(settings=SETTINGS, series="load", row=3)


# --- the command, on state


SETTINGS = Settings.model_validate(
    {
        "kafka": {"bootstrap_servers": "127.0.0.1:1", "group_id": "g"},
        "streams": [{"name": "hosts", "topics": ["metrics"], "format": "plain-json"}],
        "alerts": {"topic": "alerts"},
    }
)
PLACE = Place(Source("metrics", 3), "g-state-metrics")


class Record(NamedTuple):
    value: bytes | None
    offset: int
    timestamp: int = -1
    key: bytes | None = None


@pytest.fixture(scope="module")
def pages() -> dict[bytes, bytes | None]:
    """State of thirty series, two of which are young, as it is written down."""
    shard = Shard(StreamPlan("hosts"), PLACE.source, Detector.pretrained(), make_decoder("plain-json"), 100)
    lines = []
    for i in range(150):
        for host in range(30):
            if host < 28 or i >= 145:
                value = values(150, host)[i]
                lines.append(f'{{"name":"load","ts":{1_760_000_000 + 60 * i},"value":{value},"tags":{{"host":"web-{host}"}}}}'.encode())
    return shard.process([Record(line, offset) for offset, line in enumerate(lines)], snapshots=100).pages


@pytest.fixture
def kept(pages: dict[bytes, bytes | None]) -> Contents:
    """A changelog with these, and with the alert of a series that is on none of them."""
    contents = Contents()
    contents.add(LogRecord(offset, key, value) for offset, (key, value) in enumerate(pages.items()))
    key = episode_key("load")
    contents.add([LogRecord(1000, key, encode(key, Episode(5, bytes(96))))])
    return contents


def test_a_snapshot_tells_what_was_learned_what_is_expected_and_what_cells_hold(kept: Contents) -> None:
    known: list[str] = []
    found = command.look(kept, PLACE, 'load{host="web-7"}', known)
    assert found is not None
    assert (len(known), len(found.others)) == (30, 27)

    explained = command.explained(SETTINGS, found).facts

    state, network = explained["state"], explained["network"]
    assert state["observed"] == pytest.approx(values(150, 7)[-1], rel=1e-5)
    assert state["next"]["low"] < state["next"]["expected"] < state["next"]["high"]
    assert (explained["learned"]["samples"], explained["learned"]["step_s"], state["alert_since"]) == (150, 60, None)
    assert explained["window"]["steps"][-1]["value"] == pytest.approx(values(150, 7)[-1], abs=0.3)
    assert network["usual_of"] == "27 other series of the partition, as they are now"
    assert "zero state" in network["about"]
    assert explained["note"] == ""
    text = told(explained)
    assert "metrics/3" in text
    assert "27 other series" in text
    json.dumps(explained, allow_nan=False)


def test_the_state_of_several_features_tells_of_the_one_that_the_network_gives_back_worst(shipped: Artifact) -> None:
    several = shipped.for_features(2)
    witness = Witness(several, "cpu", Options(), np.arange(299, 300))
    course = np.random.default_rng(2).standard_normal((300, 2))
    course[-1, 1] += 20
    witness.step(witness.new_pages(1), batch_of(0, every(300), course))

    found = state_facts(witness, witness.rows[-1], witness.rows[:0])

    assert (found["window"]["feature"], found["learned"]["feature"]) == ("feature_1", "feature_1")
    assert found["state"]["observed"] == pytest.approx(course[-1, 1], rel=1e-5)
    # In units of the series as it is behind the sample, which has widened them.
    assert found["window"]["steps"][-1]["value"] == pytest.approx(course[-1, 1], rel=0.5)
    assert found["network"]["usual_of"] is None
    assert "too little to say" in told({"series": "a", "source": {"topic": "m", "partition": 0, "learned_up_to": 1}, **found})


def test_state_of_another_model_is_shown_as_a_restart_would_take_it_over(kept: Contents) -> None:
    found = command.look(kept, PLACE, 'load{host="web-7"}', [])
    assert found is not None

    explained = command.explained(SETTINGS, found._replace(model="f" * 64)).facts

    assert "written by model ffffffffffff" in explained["note"]
    assert explained["learned"]["samples"] == 150


def test_a_series_without_state_is_not_found_and_one_with_an_alert_alone_has_none_yet(kept: Contents) -> None:
    assert command.look(kept, PLACE, "other", []) is None
    with pytest.raises(StateError, match="is on no page of state yet"):
        command.look(kept, PLACE, "load", [])


def test_state_is_found_in_the_changelog_whichever_partition_it_is_in(
    kafka: str, pages: dict[bytes, bytes | None], capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(kafka)
    with pytest.raises(StateError, match="there is no state yet"):
        explain(settings=rig.settings, series="load")
    asyncio.run(rig.write([FENCE], [*(Entry(*page) for page in pages.items()), position(0, 5000, -1)], partition=1))
    capsys.readouterr()

    assert explain(settings=rig.settings, series='load{host="web-7"}', json_output=True) == 0

    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["source"]["topic"], found["source"]["partition"]) == (rig.source, 1)
    assert found["learned"]["samples"] == 150
    with pytest.raises(ConfigError, match=r'no state of load\{host="web-77"\}; there are load\{host="web-7"\}'):
        explain(settings=rig.settings, series='load{host="web-77"}')


def test_near_matches_are_of_the_same_metric() -> None:
    known = [f'disk{{host="web-{i}"}}' for i in range(9)] + ['load{host="db-1"}']

    assert command.near('load{host="web-1"}', known) == 'there are load{host="db-1"} and others, 10 in all'
    assert command.near("network", known).startswith("there are disk")


def test_with_no_broker_it_says_so() -> None:
    with pytest.raises(AnomalydError, match=r"127\.0\.0\.1:1"):
        explain(settings=SETTINGS, series="load")


def test_the_row_reader_gives_copies(shipped: Artifact) -> None:
    witness, _ = watched(shipped, count=20, last=1)
    row = witness.rows[-1].copy()

    fields(row, witness.layout)["mean"][:] = 0

    assert bytes(row) == bytes(witness.rows[-1])
