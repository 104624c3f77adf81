"""The whole room with real parts: Kafka, the daemon, the notifier, Alertmanager, and a Prometheus with the rules that ship."""

import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemon import Daemon, sample
from tests.integration.test_notify import Notifier
from tests.support.alertmanager import Alertmanager
from tests.support.poll import poll_until
from tests.support.prometheus import Prometheus
from tests.support.topics import produce

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yaml"
WITHIN_S = 30.0
"""From an incident to Alertmanager, on a machine that does much else; a second or two where it does not."""


def port_of(process: Daemon) -> int:
    return int(process.events("http_listening")[-1]["port"])


def quiet(begin: int, end: int) -> list[bytes]:
    """Two hosts, as ever."""
    return [sample(host, i, 50 + 10 * math.sin(i / 7 + len(host))) for i in range(begin, end) for host in ("web", "db-1")]


def strange(begin: int, end: int) -> list[bytes]:
    """One of them far from what it ever was."""
    return [record for i in range(begin, end) for record in (sample("web", i, 400.0), sample("db-1", i, 50 + 10 * math.sin(i / 7 + 4)))]


@pytest.mark.timeout(400)  # a rule that waits a minute, and six processes that start
@pytest.mark.real_kafka
def test_an_incident_reaches_alertmanager_and_a_daemon_that_stands_still_is_noticed(kafka: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "alertmanager") as alertmanager, Daemon(kafka, tmp_path) as daemon:
        notifying: dict[str, Any] = {
            "alertmanager": {"urls": [alertmanager.url], "resend_s": 5, "http": {"host": "127.0.0.1", "port": 0}},
        }
        daemon.until_ready(120)
        with Notifier(kafka, tmp_path, group=daemon.group, source=daemon.source, settings=notifying) as notifier:
            notifier.until_ready()
            targets = {"anomalyd": port_of(daemon), "anomalyd-notify": port_of(notifier)}
            with Prometheus(tmp_path / "prometheus", targets, RULES, alertmanagers=[alertmanager.port]) as prometheus:
                produce(kafka, daemon.source, quiet(0, 300))
                daemon.until_read(600)
                assert alertmanager.alerts() == []

                began_s = time.monotonic()
                produce(kafka, daemon.source, strange(300, 306))
                named = poll_until(lambda: _named(alertmanager, "MetricAnomaly"), "the incident in Alertmanager", 60)
                took_s = time.monotonic() - began_s
                assert took_s < WITHIN_S
                (told,) = named
                assert (told["labels"]["host"], told["labels"]["metric"], told["labels"]["stream"]) == ("web", "load", "hosts")
                assert told["status"]["state"] == "active"
                assert "400" in told["annotations"]["description"]

                produce(kafka, daemon.source, quiet(306, 400))
                poll_until(lambda: not _named(alertmanager, "MetricAnomaly"), "its end in Alertmanager", 60)

                # Nothing shows from inside of a process that stands still: who watches it has to be elsewhere.
                poll_until(lambda: prometheus.query('up{job="anomalyd"} == 1'), "a scrape")
                assert _named(alertmanager, "AnomalydDown") == []
                daemon.process.send_signal(signal.SIGSTOP)
                try:
                    (down,) = poll_until(lambda: _named(alertmanager, "AnomalydDown"), "the rule to fire", 150, 0.5)
                finally:
                    daemon.process.send_signal(signal.SIGCONT)
                assert (down["labels"]["job"], down["labels"]["severity"]) == ("anomalyd", "critical")
                poll_until(lambda: not _named(alertmanager, "AnomalydDown"), "it to be over", 120, 0.5)
            assert notifier.stop() == 0
        assert daemon.stop() == 0


def _named(alertmanager: Alertmanager, name: str) -> list[dict[str, Any]]:
    return [told for told in alertmanager.alerts() if told["labels"]["alertname"] == name]
