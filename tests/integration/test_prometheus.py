"""What ships for Prometheus and Grafana, against a real Prometheus that scrapes a running daemon."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric, start_http_server

from anomalyd.retrainer.gate import MEASURES
from anomalyd.telemetry.metrics import Declaring, Metrics
from anomalyd.telemetry.notifying import NotifyMetrics
from anomalyd.telemetry.retraining import RetrainMetrics
from tests.integration.daemon import Daemon, sample
from tests.support.poll import poll_until
from tests.support.prometheus import Prometheus
from tests.support.topics import produce

pytestmark = pytest.mark.timeout(240)

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "rules.yaml"

ELSEWHERE: Final = ("anomalyd_model_age_seconds", "anomalyd_shadow_samples_total", "anomalyd_shadow_score_distance_total")
"""A daemon with the model that ships, and without a challenger, does not have these."""


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Every expression of every dashboard as Grafana would send it, with its place."""
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", "30s")
                yield f"{path.name}: {panel['title']}", re.sub(r"\$(namespace|job|instance)", ".*", expr)


def rule_expressions() -> Iterator[tuple[str, str]]:
    """Of recording rules the expression. That of an alert finds nothing while all is well, so of those everything that they look at."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                yield rule["record"], rule["expr"]
            else:
                yield from (
                    (rule["alert"], selector) for selector in re.findall(r"[a-z_]*:?anomalyd_[a-z0-9_:]+(?:{[^}]*})?", rule["expr"])
                )


@contextmanager
def beside() -> Iterator[int]:
    """The metrics of a retrainer that has had a round, of a notifier that has sent something, and what a daemon has only with a model of
    one's own; yields the port."""
    registry = CollectorRegistry()
    retrainer = RetrainMetrics(registry, measures=MEASURES)
    retrainer.begin("hosts")
    retrainer.kept("hosts", 10, 20_480, 1 << 20, 3)
    retrainer.taken("hosts", 100)
    retrainer.lag(0)
    retrainer.drift("hosts", 0.01)
    retrainer.round("hosts", "rejected", {measure: {"champion": 1.0, "challenger": 1.1} for measure in MEASURES}, 12.0, time.time())
    notifier = NotifyMetrics(CollectorRegistry())
    notifier.begin(10_000)
    notifier.member("http://a:9093")
    notifier.read(10, 0)
    notifier.sent("http://a:9093", 3)
    notifier.queued("http://a:9093", 0)
    notifier.look(1, 0)
    notifier.members(1)
    notifier.answered(0.01)
    daemon = Metrics()
    daemon.model("hosts", "mine", "1", "ab", created_s=time.time() - 100)
    daemon.shadow("hosts", samples=100, both=1, champion=1, challenger=1, distance=3.0)
    registry.register(_Some(daemon, ELSEWHERE))
    registry.register(_Some(notifier, _names(notifier)))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Some:
    """Collects some of the metrics of a process."""

    def __init__(self, metrics: Declaring, names: Sequence[str]) -> None:
        self._metrics = metrics
        self._names = names

    def collect(self) -> Iterable[Metric]:
        return self._metrics.registry.restricted_registry(self._names).collect()


def _names(metrics: Declaring) -> list[str]:
    """Of a process, without what every process has; a histogram goes by those of its parts."""
    own = [metric for metric in metrics.declared if metric.name != "anomalyd_build_info"]
    return [metric.name + suffix for metric in own for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))]


def lacking(found: Callable[[str], list[Any]], expressions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(place, expr) for place, expr in expressions if not found(expr)]


@pytest.mark.real_kafka
def test_every_expression_of_dashboards_and_rules_finds_data(kafka: str, tmp_path: Path) -> None:
    quiet = [sample("web-1", i, 100 + i % 7) for i in range(500)]
    incident = [sample("web-1", i, 400) for i in range(500, 506)] + [sample("web-1", i, 100 + i % 7) for i in range(506, 530)]
    with Daemon(kafka, tmp_path) as daemon, beside() as port:
        daemon.until_ready(120)
        listens = daemon.events("http_listening")[-1]["port"]
        with Prometheus(tmp_path / "prometheus", {"anomalyd": listens, "retrainer": port}, RULES) as prometheus:
            poll_until(lambda: len(prometheus.query("up == 1")) == 2, "both targets")
            poll_until(lambda: prometheus.query("anomalyd_records_consumed_total"), "a first look at the daemon")
            produce(kafka, daemon.source, [*quiet, b"unreadable"])
            daemon.until_read(501)
            produce(kafka, daemon.source, incident)
            daemon.until_read(531)
            left = [*dashboard_expressions(), *rule_expressions()]
            assert len(left) > 120

            def look() -> bool:
                left[:] = lacking(prometheus.query, left)
                return not left

            try:
                poll_until(look, "data for every expression", 60, 1.0)
            finally:
                assert left == []
            fired = 'sum(anomalyd_alerts_total{status="firing"})'
            poll_until(lambda: prometheus.query(f"{fired} == 1"), "a scrape behind the incident")
            firing = [one["metric"]["alertname"] for one in prometheus.query('ALERTS{alertstate="firing"}')]

    assert firing == []
