"""The whole demo, shortened."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from anomalyd.demo.fleet import WARM_UP
from anomalyd.demo.main import run
from anomalyd.demo.wire import lay
from anomalyd.errors import ConfigError, KafkaUnavailableError
from anomalyd.evaluation.report import MAX_CHARTS

FIELDS = {
    "records_in",
    "samples_scored",
    "series",
    "alerts_fired",
    "alerts_resolved",
    "incidents_injected",
    "incidents_detected",
    "false_episodes",
    "series_days",
    "median_detection_delay_s",
    "samples_per_s",
}


def figures(captured: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(captured.splitlines()[-1])
    assert set(told) == FIELDS
    return told


def test_the_demo_runs_from_kafka_to_kafka_and_tells_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # How far simulated time gets depends on how busy the machine is; a busy one gets more of it.
    for seconds in (11.0, 30.0, 90.0):
        code = run(seconds=seconds, series=20, json_output=True, kafka=None, report=tmp_path / "demo.html", seed=1)
        captured = capsys.readouterr()
        told = figures(captured.out)
        ticks = told["series_days"] * 1440 / 20
        if ticks > WARM_UP + 200:
            break

    assert code == 0
    assert ticks > WARM_UP + 200
    assert told["series"] > 20  # this host's, too
    assert told["samples_scored"] > 20 * ticks
    assert told["incidents_injected"] >= 2
    assert 0 <= told["incidents_detected"] <= told["incidents_injected"]
    assert told["alerts_fired"] >= told["incidents_detected"] + told["false_episodes"] - 1
    assert "per 10 series-days" in captured.err
    assert "samples (" in captured.err  # plain progress lines
    page = (tmp_path / "demo.html").read_text()
    assert page.count("<figure") >= min(told["incidents_injected"], MAX_CHARTS)


def test_a_cluster_is_left_as_it_was_found(kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    if str(admin.list_topics(timeout=10).cluster_id).startswith("mockCluster"):
        pytest.skip("the embedded broker cannot delete topics")

    run(seconds=2, series=5, json_output=True, kafka=kafka, report=None, seed=0)

    assert figures(capsys.readouterr().out)["samples_scored"] > 0
    assert not [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith("anomalyd-demo")]
    assert not [group.group_id for group in admin.list_consumer_groups().result().valid if group.group_id.startswith("anomalyd-demo")]


def test_an_absent_cluster_is_one_line() -> None:
    with pytest.raises(KafkaUnavailableError, match=r"--kafka 127\.0\.0\.1:1"), lay("127.0.0.1:1"):
        pass


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)

    for kafka in (None, "127.0.0.1:1"):
        with pytest.raises(ConfigError, match=r"pip install 'anomalyd\[demo\]'"), lay(kafka):
            pass


def test_a_report_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--report"):
        run(seconds=1, series=1, json_output=False, kafka=None, report=tmp_path / "absent" / "demo.html", seed=0)
