"""What of a configuration becomes of a running daemon, and what of another one it takes over."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import yaml

import anomalyd.app
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.mutes import Mute
from anomalyd.app import App, _verify_topics, read_plans, run, stream_plan
from anomalyd.detector import Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.detector.weights import tensor_shapes
from anomalyd.errors import ArtifactError, KafkaUnavailableError
from anomalyd.kafka import topics
from anomalyd.settings import Settings, StreamSettings, environment_overrides, load
from anomalyd.stream_model import artifact_of
from anomalyd.telemetry.metrics import Metrics
from tests.support.poll import until

HOSTS = {"name": "hosts", "topics": ["metrics", "more"], "format": "influx"}
PODS = {"name": "pods", "topics": ["pods"], "format": "influx"}
SECRET = "not-for-logs"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment_overrides():
        monkeypatch.delenv(name)


class File:
    """A configuration file that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sections: dict[str, Any] = {"kafka": {"bootstrap_servers": "a:1"}, "streams": [HOSTS, PODS]}

    def write(self, **sections: object) -> None:
        self.sections |= sections
        self.path.write_text(yaml.safe_dump(self.sections), "utf-8")

    def read(self) -> Settings:
        return load(self.path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    made = File(tmp_path / "config.yaml")
    made.write()
    return made


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def test_brokers_that_were_never_there_are_what_the_probe_names(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: Settings) -> None:
        raise KafkaUnavailableError("no answer from a:1")

    monkeypatch.setattr(topics, "verify", away)
    app = App(file.read())
    ready, unreachable = app._ready, app._unreachable  # noqa: SLF001  what the HTTP server is given, and the start
    before = ready()
    waiting = asyncio.create_task(_verify_topics(app.settings, unreachable))
    await until(lambda: ready() != before, "an attempt")
    waiting.cancel()

    assert before == (False, {"kafka": "starting"})
    assert ready() == (False, {"kafka": "unreachable", "reason": "no answer from a:1"})


def test_the_policy_of_a_stream_is_what_its_settings_say(file: File) -> None:
    weekly = {"series": ["cpu.*"], "days": ["sun", "mon"], "from": "22:00", "to": "06:00", "timezone": "Europe/Berlin", "reason": "backups"}
    span = {"start": "2026-03-01T08:00:00+01:00", "end": "2026-03-01T07:30:00Z"}
    own = {"min_deviation": 5, "min_deviation_ratio": 0.2, "min_duration_s": 60, "direction": "above", "resolve_after_samples": 4}
    file.write(
        alerts={"critical_score": 2, "reopen_after_s": 1.5, "mutes": [weekly]}, streams=[HOSTS | {"alerts": own | {"mutes": [span]}}]
    )
    settings = file.read()

    assert stream_plan(settings.streams[0], settings.policy(settings.streams[0])).policy == Policy(
        min_deviation=5,
        min_deviation_ratio=0.2,
        min_duration_ms=60_000,
        reopen_after_ms=1_500,
        resolve_after_samples=4,
        critical_score=2,
        direction="above",
        budget_per_day=0.1,
        mutes=(
            Mute(("cpu.*",), (6, 0), 22 * 60, 6 * 60, "Europe/Berlin"),
            Mute(start_ms=1_772_348_400_000, end_ms=1_772_350_200_000),
        ),
    )


def test_policies_labels_and_annotations_are_taken_over(file: File) -> None:
    running, metrics = file.read(), Metrics()
    file.write(
        alerts={"min_deviation": 3, "labels": {"team": "a"}, "budget": 0.4},
        streams=[HOSTS | {"alerts": {"direction": "above", "budget_control": False}}, PODS],
    )

    with structlog.testing.capture_logs() as logs:
        plans = read_plans(running, file.read, metrics)

    assert plans is not None
    assert {topic: (plan.name, plan.policy.direction) for topic, plan in plans.items()} == {
        "metrics": ("hosts", "above"),
        "more": ("hosts", "above"),
        "pods": ("pods", "both"),
    }
    assert {(plan.policy.min_deviation, plan.policy.budget_per_day, plan.labels["team"]) for plan in plans.values()} == {(3, 0.4, "a")}
    assert {topic: plan.policy.budget_control for topic, plan in plans.items()} == {"metrics": False, "more": False, "pods": True}
    assert [entry["event"] for entry in logs] == ["config_reloaded"]
    assert value(metrics, "anomalyd_config_reload_success") == 1
    assert value(metrics, "anomalyd_config_reload_success_timestamp_seconds") > 1e9


def test_what_needs_a_restart_is_named_and_not_taken_over(file: File) -> None:
    running, metrics = file.read(), Metrics()
    file.write(
        kafka={"bootstrap_servers": "a:1", "sasl_password": SECRET, "security_protocol": "SASL_PLAINTEXT"}
        | {"sasl_mechanism": "PLAIN", "sasl_username": "me", "session_timeout_ms": 9_000},
        alerts={"budget": 0.2, "topic": "other"},
        streams=[
            HOSTS | {"topics": ["metrics"], "include": ["cpu.*"], "alerts": {"budget": 0.3, "direction": "below"}},
            PODS | {"name": "new"},
        ],
        max_series=5,
    )

    with structlog.testing.capture_logs() as logs:
        plans = read_plans(running, file.read, metrics)

    assert plans is not None
    assert {topic: plan.policy.direction for topic, plan in plans.items()} == {"metrics": "below", "more": "below"}
    told = next(entry for entry in logs if entry["event"] == "config_needs_restart")
    assert told["keys"] == [
        "alerts.topic",
        *(f"kafka.{key}" for key in ("sasl_mechanism", "sasl_password", "sasl_username", "security_protocol", "session_timeout_ms")),
        "max_series",
        *(f"streams.{key}" for key in ("hosts.include", "hosts.topics", "new", "pods")),
    ]
    assert SECRET not in str(logs)


@pytest.mark.parametrize("text", ["alerts: [", "alerts: {min_deviation: -1}", None])
def test_a_configuration_that_is_not_valid_changes_nothing_until_it_is_corrected(file: File, text: str | None) -> None:
    running, metrics = file.read(), Metrics()
    metrics.configured(5.0)
    if text is None:
        file.path.unlink()
    else:
        file.path.write_text(text, "utf-8")

    with structlog.testing.capture_logs() as logs:
        assert read_plans(running, file.read, metrics) is None

    assert [(entry["event"], entry["log_level"], str(file.path) in entry["reason"]) for entry in logs] == [
        ("config_reload_failed", "error", True)
    ]
    assert value(metrics, "anomalyd_config_reload_success") == 0
    assert value(metrics, "anomalyd_config_reload_success_timestamp_seconds") == 5

    file.write()
    assert read_plans(running, file.read, metrics) is not None
    assert value(metrics, "anomalyd_config_reload_success") == 1


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_daemon_that_nobody_cancelled_does_not_end_in_silence(file: File, monkeypatch: pytest.MonkeyPatch, stopping: bool) -> None:
    """The client awaits what it has cancelled itself, and lets that out of its calls."""

    class Ending:
        async def run(self) -> None:
            raise asyncio.CancelledError

    async def assemble(*_: object) -> Ending:
        return Ending()

    monkeypatch.setattr(App, "_assemble", assemble)
    app = App(file.read())
    app.stopping = stopping

    with pytest.raises(RuntimeError, match="cancelled by nobody"):
        await app.run()


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_has_stopped_waits_for_no_worker(file: File, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """It may be compiling, for a minute, and whoever asked the process to end has been told that it has."""
    left: list[int] = []
    done = threading.Event()
    monkeypatch.setattr(anomalyd.app, "_LEAVE_S", 0.01)
    monkeypatch.setattr(os, "_exit", left.append)

    async def assemble(_: App, teardown: AsyncExitStack) -> None:
        worker = ThreadPoolExecutor(1, "worker-0")
        teardown.callback(worker.shutdown, wait=False, cancel_futures=True)
        compiling = asyncio.get_running_loop().run_in_executor(worker, done.wait)
        if fails:
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGTERM)
        await compiling

    monkeypatch.setattr(App, "_assemble", assemble)
    try:
        assert run(file.read(), file.read) == fails
    finally:
        done.set()

    assert left == [fails]


async def test_a_daemon_that_is_stopped_while_it_waits_for_brokers_ends_well(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    async def assemble(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(App, "_assemble", assemble)
    app = App(file.read())
    running = asyncio.create_task(app.run())
    await asyncio.sleep(0)

    app.stop()
    await asyncio.wait_for(running, 5)


# --- which model scores a stream ----------------------------------------------------------------------------------------


def artifact_folder(tmp_path: Path, features: int, names: tuple[str, ...] = ()) -> Path:
    """A joint model with weights that nobody trained."""
    shape = Shape(features, 8, 1, 2, joint=True)
    tensors = {name: np.zeros(size, np.float32) for name, size in tensor_shapes(shape).items()}
    template = artifacts.load(shipped()).for_features(features)
    artifacts.save(replace(template, name="joint", shape=shape, tensors=tensors, several=None, feature_names=names or None), tmp_path)
    return tmp_path


def stream_of(names: Sequence[str], folder: Path | None) -> StreamSettings:
    stream = {"name": "hosts", "topics": ["metrics"], "format": "influx", "features": {"names": names, "by": ["h"]}, "model": folder}
    return StreamSettings.model_validate(stream)


def test_the_model_of_a_stream_is_the_one_that_ships_or_the_one_that_is_named(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, 3, ("m.a", "m.b", "m.c"))

    zero_shot, joint = (artifact_of(stream_of(["m.a", "m.b", "m.c"], model)) for model in (None, folder))

    assert (zero_shot.shape.features, zero_shot.shape.joint) == (3, False)
    assert (joint.shape.features, joint.shape.joint, joint.feature_names) == (3, True, ("m.a", "m.b", "m.c"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["m.a", "m.b"], "the model joint is for samples of 3 values, not 2"),
        (["m.b", "m.a", "m.c"], "the same features in another order: features.names must be m.a, m.b, m.c"),
        (["m.a", "m.b", "m.d"], "other features: features.names lack m.c; it does not know m.d"),
    ],
)
def test_a_model_for_other_features_is_refused(tmp_path: Path, names: list[str], told: str) -> None:
    folder = artifact_folder(tmp_path, 3, ("m.a", "m.b", "m.c"))

    with pytest.raises(ArtifactError) as caught:
        artifact_of(stream_of(names, folder))

    assert told in str(caught.value)
    assert f"streams: hosts: model: {folder}" in str(caught.value)


def test_a_manifest_that_names_too_few_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="it names 2 features and has 3"):
        artifact_folder(tmp_path, 3, ("m.a", "m.b"))


def test_a_joint_model_does_not_score_single_series(tmp_path: Path) -> None:
    stream = {"name": "hosts", "topics": ["metrics"], "format": "influx", "model": artifact_folder(tmp_path, 3)}

    with pytest.raises(ArtifactError, match="is for samples of 3 values, not 1"):
        artifact_of(StreamSettings.model_validate(stream))


def test_a_process_that_hangs_says_where_and_goes_on() -> None:
    """In the image nothing else could."""
    script = """
import asyncio, os, signal
from anomalyd.app import stop_at_signals
async def hanging():
    stop_at_signals(None)
    secret = "hunter2"
    os.kill(os.getpid(), signal.SIGUSR1)
    print("on")
asyncio.run(hanging())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "in hanging" in done.stderr
    assert "hunter2" not in done.stderr
    assert done.stdout == "on\n"
