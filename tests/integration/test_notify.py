"""`anomalyd notify` between Kafka and a cluster of real Alertmanagers."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from anomalyd.alerts.messages import iso
from tests.integration.daemon import Daemon
from tests.notifier.alerts import message
from tests.support.alertmanager import Alertmanager
from tests.support.kafka import Cluster
from tests.support.poll import poll_until
from tests.support.topics import produce


class Notifier(Daemon):
    """As its user runs it."""

    verb = "notify"

    def tell(self, host: str, status: str = "firing", severity: str = "warning", value: float = 97.1) -> None:
        """Writes an alert as the daemon would."""
        now = iso(time.time_ns() // 1_000_000)
        ends = {"ends_at": now} if status == "resolved" else {}
        produce(self.bootstrap, self.alerts, [message(host, status, severity=severity, value=value, starts_at=now, event_time=now, **ends)])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Alertmanager, Alertmanager]]:
    """Two members."""
    with Alertmanager(tmp_path / "one") as one, Alertmanager(tmp_path / "two", [one]) as two:
        yield one, two


def seen(member: Alertmanager) -> dict[tuple[str, str], str]:
    """State by host and severity of what is open."""
    return {(told["labels"]["host"], told["labels"]["severity"]): told["status"]["state"] for told in member.alerts()}


def until_seen(member: Alertmanager, wanted: dict[tuple[str, str], str]) -> None:
    """Waits until exactly these are open."""
    poll_until(lambda: seen(member) == wanted, f"{wanted}, not {seen(member)}", 30)


def settings(*members: Alertmanager) -> dict[str, Any]:
    return {
        "alertmanager": {
            "urls": [member.url for member in members],
            "resend_s": 1,
            "timeout_s": 2,
            "generator_url": "http://grafana.example/d/x?var-series={series}",
            "http": {"host": "127.0.0.1", "port": 0},
        }
    }


def test_every_member_knows_what_is_open_whoever_is_killed(kafka: str, tmp_path: Path, cluster: tuple[Alertmanager, Alertmanager]) -> None:
    one, two = cluster
    with Notifier(kafka, tmp_path, settings=settings(one, two)) as notifier:
        notifier.tell("old")
        notifier.tell("old", "resolved")
        notifier.tell("a")
        notifier.until_ready()
        for member in cluster:
            until_seen(member, {("a", "warning"): "active"})
        (told,) = one.alerts()
        assert told["labels"]["alertname"] == "MetricAnomaly"
        assert told["annotations"]["value"] == "97.1"
        assert told["generatorURL"].startswith("http://grafana.example/d/x?var-series=cpu.usage%7B")

        two.kill()
        notifier.tell("b")
        until_seen(one, {("a", "warning"): "active", ("b", "warning"): "active"})
        two.start()
        until_seen(two, {("a", "warning"): "active", ("b", "warning"): "active"})
        notifier.until_metric("anomalyd_notify_open_alerts", 2)
        assert json.loads(notifier.get("/readyz")[1])["alertmanagers"] == dict.fromkeys((one.url, two.url), "ok")

        notifier.process.send_signal(signal.SIGHUP)  # as one sends it to all that is anomalyd's
        poll_until(lambda: notifier.events("config_reload_passed_over"), "word of it")

        notifier.kill()
        notifier.tell("a", "resolved")
        notifier.start()
        for member in cluster:
            until_seen(member, {("b", "warning"): "active"})
        assert notifier.stop() == 0


def test_a_silence_holds_over_an_episodes_life(kafka: str, tmp_path: Path, cluster: tuple[Alertmanager, Alertmanager]) -> None:
    """New values, another severity: who is silenced stays so, on all members."""
    one, two = cluster
    with Notifier(kafka, tmp_path, settings=settings(one, two)) as notifier:
        notifier.until_ready()
        notifier.tell("a")
        until_seen(one, {("a", "warning"): "active"})
        one.silence('host="a"')
        until_seen(one, {("a", "warning"): "suppressed"})

        notifier.tell("a", "updated", value=120.0)
        poll_until(lambda: [told["annotations"]["value"] for told in one.alerts()] == ["120"], "the new value")
        assert seen(one) == {("a", "warning"): "suppressed"}
        notifier.tell("a", "updated", severity="critical")
        until_seen(one, {("a", "critical"): "suppressed"})
        until_seen(two, {("a", "critical"): "suppressed"})
        notifier.tell("a", "resolved", severity="critical")
        until_seen(one, {})
        assert notifier.stop() == 0


class _Refuses(BaseHTTPRequestHandler):
    """A member that takes nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(422)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def bad_members() -> Iterator[list[str]]:
    """One that accepts connections and never answers, one that is not there, one that refuses whatever it gets."""
    with socket.create_server(("127.0.0.1", 0)) as slow, ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as refusing:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            gone = closed.getsockname()[1]
        thread = threading.Thread(target=refusing.serve_forever, args=(0.05,))
        thread.start()
        yield [f"http://127.0.0.1:{port}" for port in (slow.getsockname()[1], gone, refusing.server_port)]
        refusing.shutdown()
        thread.join()


def test_members_that_hang_are_gone_or_refuse_hold_up_no_other(kafka: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "one") as well, bad_members() as (slow, gone, refusing):
        own = settings(well)
        own["alertmanager"] |= {"urls": [slow, gone, refusing, well.url], "timeout_s": 600}
        with Notifier(kafka, tmp_path, settings=own) as notifier:
            notifier.until_ready()
            for host in "abc":
                notifier.tell(host)
                poll_until(lambda host=host: (host, "warning") in seen(well), f"{host} at the one that is well", 10)  # type: ignore[misc]  # bound at once
            notifier.tell("a", "resolved")
            until_seen(well, {("b", "warning"): "active", ("c", "warning"): "active"})

            notifier.until_metric(f'anomalyd_notify_alerts_sent_total{{alertmanager="{slow}"}}', 0)
            assert notifier.metric(f'anomalyd_notify_errors_total{{alertmanager="{gone}",reason="unreachable"}}')
            assert notifier.metric(f'anomalyd_notify_alerts_rejected_total{{alertmanager="{refusing}"}}')


def test_while_kafka_is_away_what_is_open_is_told_on(breakable_kafka: Cluster, tmp_path: Path) -> None:
    """Alerts that nobody tells again end after four rounds."""
    with Alertmanager(tmp_path / "one") as one, Notifier(breakable_kafka.bootstrap_servers, tmp_path, settings=settings(one)) as notifier:
        notifier.until_ready()
        notifier.tell("a")
        until_seen(one, {("a", "warning"): "active"})

        breakable_kafka.brokers[0].kill()
        poll_until(lambda: notifier.get("/readyz")[0] == 503, "it to notice", 30)
        told = notifier.metric("anomalyd_notify_alerts_sent_total") or 0
        poll_until(lambda: (notifier.metric("anomalyd_notify_alerts_sent_total") or 0) >= told + 5, "five rounds")
        assert seen(one) == {("a", "warning"): "active"}

        breakable_kafka.ensure_up()
        notifier.tell("a", "resolved")
        until_seen(one, {})


def test_a_notifier_without_alertmanagers_says_what_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("kafka: {bootstrap_servers: '127.0.0.1:1'}\nstreams: [{name: a, topics: [t], format: plain-json}]\n")

    done = subprocess.run([sys.executable, "-m", "anomalyd", "notify", "-c", str(config)], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "alertmanager.urls: missing" in done.stderr
