"""What a scrape shows."""

import re
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from anomalyd import __version__
from anomalyd.telemetry.metrics import Metrics

PUBLIC = {
    "anomalyd_records_consumed_total": (),
    "anomalyd_samples_scored_total": (),
    "anomalyd_records_rejected_total": ("reason",),
    "anomalyd_alerts_total": ("status", "severity"),
    "anomalyd_series": (),
    "anomalyd_open_episodes": (),
    "anomalyd_silent_series": (),
    "anomalyd_consumer_lag_records": ("topic", "partition"),
    "anomalyd_detection_latency_seconds": (),
    "anomalyd_step_seconds": (),
    "anomalyd_build_info": None,
    "anomalyd_model_info": None,
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(reasons=("malformed", "no-name"))


def scraped(metrics: Metrics) -> dict[str, float]:
    """Samples by `name{label="value"}`, labels sorted."""
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items())) + "}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_and_labels_that_rules_rely_on_are_there(metrics: Metrics) -> None:
    declared = {metric.name: metric.labels for metric in metrics.declared}

    for name, labels in PUBLIC.items():
        assert labels is None or declared[name] == labels
    assert PUBLIC.keys() <= declared.keys()


def test_every_declared_metric_is_named_by_the_rules_and_explained(metrics: Metrics) -> None:
    for metric in metrics.declared:
        assert re.fullmatch(r"anomalyd_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith((".", ";"))


def test_closed_label_sets_are_preset_to_zero(metrics: Metrics) -> None:
    seen = scraped(metrics)

    assert seen['anomalyd_records_rejected_total{reason="malformed"}'] == 0
    assert len([key for key in seen if key.startswith("anomalyd_alerts_total")]) == 6
    assert seen['anomalyd_worker_busy_seconds_total{stage="step"}'] == 0
    assert seen['anomalyd_records_lost_total{reason="expired"}'] == 0
    assert seen['anomalyd_messages_dropped_total{kind="alert"}'] == 0
    assert seen['anomalyd_fences_total{why="doubt"}'] == 0


def test_no_created_series_beside_the_counters(metrics: Metrics) -> None:
    assert not [key for key in scraped(metrics) if "_created" in key]


def test_process_and_build_come_with_it(metrics: Metrics) -> None:
    seen = scraped(metrics)

    assert seen["process_resident_memory_bytes"] > 1e6
    assert any(key.startswith("python_gc_collections_total") for key in seen)
    (build,) = (key for key in seen if key.startswith("anomalyd_build_info"))
    assert f'version="{__version__}"' in build


def test_a_batch_is_counted(metrics: Metrics) -> None:
    metrics.batch(
        records=10, samples=9, rejected={"malformed": 2}, late=1, repeated=3, evicted=4, decode_s=0.1, step_s=0.02, episodes_s=0.01
    )
    metrics.batch(records=1, samples=0, rejected={"unheard-of": 1})
    seen = scraped(metrics)

    assert seen["anomalyd_records_consumed_total"] == 11
    assert seen["anomalyd_samples_scored_total"] == 9
    assert seen['anomalyd_records_rejected_total{reason="malformed"}'] == 2
    assert seen['anomalyd_records_rejected_total{reason="unheard-of"}'] == 1
    assert (seen["anomalyd_samples_late_total"], seen["anomalyd_samples_repeated_total"], seen["anomalyd_series_evicted_total"]) == (
        1,
        3,
        4,
    )
    assert seen["anomalyd_step_seconds_count"] == 2
    assert seen['anomalyd_worker_busy_seconds_total{stage="decode"}'] == 0.1


def test_room_and_what_takes_it_are_told_beside_each_other(metrics: Metrics) -> None:
    metrics.capacity(series=1_000, workers=2, pending_bytes=64 << 20)
    metrics.pending(5_000)
    seen = scraped(metrics)

    assert (seen["anomalyd_series_limit"], seen["anomalyd_workers"], seen["anomalyd_pending_limit_bytes"]) == (1_000, 2, 64 << 20)
    assert seen["anomalyd_pending_bytes"] == 5_000


def test_readiness_is_asked_for_when_somebody_scrapes(metrics: Metrics) -> None:
    ready = False
    metrics.readiness(lambda: ready)
    assert scraped(metrics)["anomalyd_ready"] == 0
    ready = True
    assert scraped(metrics)["anomalyd_ready"] == 1


def test_a_stage_says_when_it_last_did_something_and_how_long_it_took(metrics: Metrics) -> None:
    assert not [key for key in scraped(metrics) if key.startswith("anomalyd_last_batch")]
    metrics.taken_in("hosts", 1_760_000_000.5)
    metrics.turned_around(0.02)
    metrics.restored(3.0)
    seen = scraped(metrics)

    assert seen['anomalyd_last_batch_timestamp_seconds{stream="hosts"}'] == 1_760_000_000.5
    assert (seen["anomalyd_batch_seconds_count"], seen['anomalyd_batch_seconds_bucket{le="0.01"}']) == (1, 0)
    assert (seen["anomalyd_restore_seconds_sum"], seen["anomalyd_restore_seconds_count"]) == (3.0, 1)


def test_a_checkpoint_counts_what_was_acknowledged(metrics: Metrics) -> None:
    alerts = {("firing", "warning"): 2, ("resolved", "critical"): 1}
    metrics.checkpoint(
        seconds=0.2, at_s=1_760_000_000.5, alerts=alerts, dead_letters=3, latencies_s=[0.3, 0.4, -1.0], pages=2, page_bytes=1_000
    )
    seen = scraped(metrics)

    assert seen['anomalyd_alerts_total{severity="warning",status="firing"}'] == 2
    assert seen['anomalyd_alerts_total{severity="critical",status="resolved"}'] == 1
    assert seen["anomalyd_dead_letters_total"] == 3
    assert seen["anomalyd_last_checkpoint_timestamp_seconds"] == 1_760_000_000.5
    assert (seen["anomalyd_state_pages_written_total"], seen["anomalyd_state_bytes_written_total"]) == (2, 1_000)
    assert seen["anomalyd_detection_latency_seconds_count"] == 3
    assert seen["anomalyd_detection_latency_seconds_sum"] == pytest.approx(0.7)  # a producer's clock ahead of ours counts as no delay


def test_alerts_that_the_policy_held_back_are_counted_by_its_reason(metrics: Metrics) -> None:
    metrics.batch(records=9, samples=9, rejected={}, muted=2, flapping=3)
    seen = scraped(metrics)

    assert (seen["anomalyd_alerts_muted_total"], seen["anomalyd_alerts_flapping_total"]) == (2, 3)


def test_what_a_restore_has_still_to_do_is_told(metrics: Metrics) -> None:
    metrics.restoring(partitions=3, records=12_000)
    metrics.batch(records=0, samples=0, rejected={}, replayed=500, expired=2, divergences=1)
    metrics.gap(40)
    metrics.checkpoint_age(700)
    metrics.stopped(1)
    for why in ("claim", "claim", "doubt"):
        metrics.fenced(why)
    seen = scraped(metrics)

    assert (seen["anomalyd_restoring_partitions"], seen["anomalyd_replay_remaining_records"]) == (3, 12_000)
    assert (seen["anomalyd_records_replayed_total"], seen["anomalyd_records_consumed_total"]) == (500, 0)
    assert (seen["anomalyd_replay_divergences_total"], seen["anomalyd_series_expired_total"]) == (1, 2)
    assert (seen["anomalyd_replay_gap_records_total"], seen["anomalyd_checkpoint_age_records"]) == (40, 700)
    assert seen["anomalyd_stopped_partitions"] == 1
    assert (seen['anomalyd_fences_total{why="claim"}'], seen['anomalyd_fences_total{why="doubt"}']) == (2, 1)


def test_lag_of_a_revoked_partition_disappears(metrics: Metrics) -> None:
    metrics.lag("metrics", 0, 5)
    metrics.lag("metrics", 1, -2)
    metrics.revoked("metrics", 0)
    metrics.revoked("metrics", 7)  # never known
    lags = {key: value for key, value in scraped(metrics).items() if "consumer_lag" in key}

    assert lags == {'anomalyd_consumer_lag_records{partition="1",topic="metrics"}': 0}


def test_the_budget_is_told_by_stream_and_its_correction_by_partition(metrics: Metrics) -> None:
    for fired in (1, 3):
        metrics.budget("hosts", asked=0.1, watched_days=20.0, allowed=2.0, fired=fired, crossings=7, expected=6.5)
    metrics.correction("metrics", 1, 0.3)

    def value(name: str, labels: dict[str, str]) -> float | None:
        return metrics.registry.get_sample_value(f"anomalyd_budget_{name}", labels)

    names = ("series_days_total", "alerts_allowed_total", "alerts_fired_total", "crossings_total", "crossings_expected_total")
    assert [value(name, {"stream": "hosts"}) for name in names] == [40, 4, 4, 14, 13]
    assert value("per_series_day", {"stream": "hosts"}) == 0.1
    assert value("correction", {"topic": "metrics", "partition": "1"}) == 0.3
    metrics.revoked("metrics", 1)
    assert value("correction", {"topic": "metrics", "partition": "1"}) is None


def test_watermark_is_absent_until_known(metrics: Metrics) -> None:
    assert not [key for key in scraped(metrics) if key.startswith("anomalyd_last_event")]
    metrics.watermark("hosts", 1_760_000_000_500)
    assert scraped(metrics)['anomalyd_last_event_timestamp_seconds{stream="hosts"}'] == 1_760_000_000.5


def test_gauges_and_the_rest_say_what_they_were_told(metrics: Metrics) -> None:
    metrics.in_flight(2)
    metrics.state(series=10, open_episodes=3, silent_series=1)
    metrics.rebalanced(4)
    metrics.rebalanced(2)
    metrics.paused(1)
    metrics.fetch_failed()
    metrics.reconnected()
    metrics.lost("corrupt", 7)
    metrics.loop_lag(0.02)
    metrics.model("hosts", "pretrained", "1", "ab", created_s=time.time() - 100)
    metrics.model("pods", "pretrained", "1", "ab")
    metrics.model("hosts", "tuned", "2", "cd", created_s=time.time() - 50)
    metrics.swapped("hosts", "rollback")
    metrics.swapped("hosts", "a whim")
    metrics.swap_failed("pods")
    metrics.decided("hosts", "rejected")
    seen = scraped(metrics)

    assert (seen["anomalyd_series"], seen["anomalyd_open_episodes"], seen["anomalyd_batches_in_flight"]) == (10, 3, 2)
    assert (seen["anomalyd_assigned_partitions"], seen["anomalyd_rebalances_total"], seen["anomalyd_paused_partitions"]) == (2, 2, 1)
    assert (seen["anomalyd_fetch_errors_total"], seen["anomalyd_kafka_reconnects_total"]) == (1, 1)
    assert seen['anomalyd_records_lost_total{reason="corrupt"}'] == 7
    assert seen["anomalyd_event_loop_lag_seconds_count"] == 1
    assert [key for key in seen if key.startswith("anomalyd_model_info")] == [
        'anomalyd_model_info{hash="cd",name="tuned",stream="hosts",version="2"}',
        'anomalyd_model_info{hash="ab",name="pretrained",stream="pods",version="1"}',
    ]
    assert 49 < seen['anomalyd_model_age_seconds{stream="hosts"}'] < 60
    assert 'anomalyd_model_age_seconds{stream="pods"}' not in seen  # nobody wrote down when it was made
    assert seen['anomalyd_model_swaps_total{reason="rollback",stream="hosts"}'] == 1
    assert seen['anomalyd_model_swaps_total{reason="other",stream="hosts"}'] == 1
    assert seen['anomalyd_model_swaps_total{reason="retrain",stream="pods"}'] == 0
    assert (seen['anomalyd_model_swap_failures_total{stream="pods"}'], seen['anomalyd_model_swap_failures_total{stream="hosts"}']) == (1, 0)
    assert seen['anomalyd_model_decisions_total{stream="hosts",verdict="rejected"}'] == 1


def test_instances_in_one_process_do_not_meet() -> None:
    registry = CollectorRegistry()
    first, second = Metrics(registry), Metrics()
    first.fetch_failed()

    assert first.registry is registry
    assert scraped(second)["anomalyd_fetch_errors_total"] == 0


def test_only_telemetry_knows_the_metrics_library() -> None:
    package = Path(__file__).parent.parent.parent / "anomalyd"
    users = {path.parent.name for path in package.rglob("*.py") if "prometheus_client" in path.read_text("utf-8")}

    assert users == {"telemetry"}
