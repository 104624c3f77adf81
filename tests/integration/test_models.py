"""A model's life as its operators see it: promoted by command, swapped in by the daemon that runs, in alerts, and rolled back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from tests.integration.daemon import Daemon, sample
from tests.support.poll import poll_until
from tests.support.topics import produce, read_until

BASE = artifacts.load(shipped())


class Operated(Daemon):
    """A daemon with an operator."""

    def models(self, *words: str) -> dict[str, Any]:
        """`anomalyd models … --json`."""
        command = [sys.executable, "-m", "anomalyd", "models", *words, "-c", str(self.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def until_scored_by(self, model: str, name: str = "pretrained") -> None:
        """Waits until the daemon has it at work."""
        key = f'anomalyd_model_info{{hash="{model}",name="{name}",stream="hosts",version='
        poll_until(
            lambda: self._alive() and key in self.get("/metrics")[1], f"{model[:8]} at work; its log: {self.log()[-2000:]}", 60, 0.05
        )

    def incident(self, host: str) -> dict[str, Any]:
        """Feeds a host that has an incident; returns its alert."""
        rng = np.random.default_rng(0)
        value = 1 + 0.1 * rng.standard_normal(520)
        value[500:] += 20
        produce(self.bootstrap, self.source, [sample(host, i, float(v)) for i, v in enumerate(value)])
        key = f'load{{host="{host}"}}'

        def alerts(records: list[Any]) -> list[dict[str, Any]]:
            found = [json.loads(record.value or b"") for record in records]
            return [alert for alert in found if alert["series"]["key"] == key]

        alert: dict[str, Any] = alerts(read_until(self.bootstrap, self.alerts, lambda records: bool(alerts(records)), f"{host}'s", 60))[0]
        return alert


@pytest.mark.timeout(300)  # several processes start, on a machine that may be busy
@pytest.mark.real_kafka
def test_a_promotion_is_swapped_in_seen_in_alerts_survives_a_crash_and_is_rolled_back(kafka: str, tmp_path: Path) -> None:
    tuned = artifacts.save(replace(BASE, version="tuned", parent=BASE.hash, created_at="2026-01-01T00:00:00+00:00"), tmp_path / "tuned")

    with Operated(kafka, tmp_path) as daemon:
        daemon.until_ready()
        first = daemon.incident("a")
        assert daemon.models("promote", str(tmp_path / "tuned"), "--stream", "hosts")["model"] == tuned.hash
        daemon.until_scored_by(tuned.hash)
        second = daemon.incident("b")
        daemon.until_committed(1040)

        daemon.kill()  # nobody but the topic remembers the model that has to be replayed now
        daemon.start()
        daemon.until_ready()
        daemon.until_scored_by(tuned.hash)
        third = daemon.incident("c")

        assert daemon.models("rollback", "--stream", "hosts")["model"] == BASE.hash
        daemon.until_scored_by(BASE.hash)
        fourth = daemon.incident("d")
        position = daemon.until_committed(4 * 520)

        daemon.until_metric('anomalyd_model_swaps_total{reason="rollback",stream="hosts"}', 1)
        assert daemon.metric("anomalyd_model_swap_failures_total") == 0
        assert daemon.metric("anomalyd_replay_divergences_total") == 0
        assert daemon.stop() == 0

    assert [alert["model"]["hash"] for alert in (first, second, third, fourth)] == [BASE.hash, tuned.hash, tuned.hash, BASE.hash]
    # The same weights say the same of the same values.
    assert len({alert["score"] for alert in (first, second, third, fourth)}) == 1
    assert position.timeline[-1][1] == BASE.hash


@pytest.mark.timeout(300)  # several processes start, on a machine that may be busy
@pytest.mark.real_kafka
def test_a_run_is_repeated_with_its_timeline(kafka: str, tmp_path: Path) -> None:
    """The models change at the same offsets, whatever the topic says."""
    artifacts.save(replace(BASE, version="tuned"), tmp_path / "tuned")
    tuned = artifacts.load(tmp_path / "tuned").hash
    timeline = tmp_path / "timeline.jsonl"
    timeline.touch()
    daemon = Operated(kafka, tmp_path, settings={"models": {"timeline": str(timeline)}})
    daemon.models("promote", str(tmp_path / "tuned"), "--stream", "hosts")
    changes = [(0, BASE.hash), (300, tuned), (700, BASE.hash[:12])]
    timeline.write_text("".join(json.dumps({"topic": daemon.source, "partition": 0, "offset": o, "model": m}) + "\n" for o, m in changes))
    with daemon:
        daemon.until_ready()
        hashes = [daemon.incident(host)["model"]["hash"] for host in ("a", "b")]
        position = daemon.until_committed(1040)

    assert hashes == [tuned, BASE.hash]
    scores = [(line["offset"], line["model"]) for line in daemon.events("model_scores")]
    assert scores == [(0, BASE.hash), (300, tuned), (700, BASE.hash)]
    assert position.timeline[-1] == (700, BASE.hash)
