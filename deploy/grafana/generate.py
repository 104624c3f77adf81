# ruff: noqa: FBT003, INP001  setters of the SDK take booleans; a script, not a package
"""Writes the dashboards beside it: `python deploy/grafana/generate.py`. A test fails while they differ from it.

Every panel is a title, what a reader should know, a unit and expressions; the SDK makes JSON of it. `$__rate_interval` is Grafana's, the
other variables are declared in `_dashboard`. A label that a target does not have, such as `namespace`, matches the empty text.
"""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE: Final = Path(__file__).parent

OURS: Final = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
FIRING: Final = ', status="firing"'
CLAIM: Final = ', why="claim"'
ALERTING: Final = ', alerts!="none"'
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
_GREEN, _ORANGE, _RED = "green", "orange", "red"


class Stat(NamedTuple):
    """A number that somebody on call looks at first."""

    title: str
    says: str
    expr: str
    unit: str = "short"
    limits: tuple[float, ...] = ()
    """From the first on orange, from the second red."""
    low_is_bad: bool = False
    """Red below the limit instead."""


class Graph(NamedTuple):
    """Courses over time."""

    title: str
    says: str
    exprs: Sequence[tuple[str, str]]
    """Expression and legend."""
    unit: str = "short"
    stacked: bool = False
    wide: bool = False
    signed: bool = False


class Table(NamedTuple):
    """Labels as they are now."""

    title: str
    says: str
    expr: str


Panel: TypeAlias = Stat | Graph | Table
Rows: TypeAlias = Sequence[tuple[str, Sequence[Panel]]]


def rate(name: str, by: str = "", more: str = "") -> str:
    """How much a counter grows a second, all instances together."""
    inner = f"rate({name}{{{OURS}{more}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(q: float, name: str, by: str = "") -> str:
    """A quantile of a histogram, all instances together."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({name}_bucket{{{OURS}}}[$__rate_interval])))"


def share(sum_: str, part: str, whole: str, over: str) -> str:
    """How many of the one there were for each of the other."""
    return f"{sum_} (increase({of(part)}[{over}])) / {sum_} (increase({of(whole)}[{over}]))"


def of(name: str, more: str = "") -> str:
    """The metric of the chosen instances."""
    return f"{name}{{{OURS}{more}}}"


def quantiles(name: str) -> list[tuple[str, str]]:
    """Median, and what one in a hundred exceeds."""
    return [(quantile(0.5, name), "median"), (quantile(0.99, name), "99 %")]


OVERVIEW: Final[Rows] = [
    (
        "Can it be trusted?",
        [
            Stat("Ready", "Instances that have their partitions and state.", f"sum({of('anomalyd_ready')})", limits=(1,), low_is_bad=True),
            Stat(
                "Alerts about anomalyd",
                "Of the rules that ship; each has a runbook.",
                'count(ALERTS{alertstate="firing", alertname=~"Anomalyd.+"}) or vector(0)',
                limits=(1, 3),
            ),
            Stat(
                "Behind",
                "How long what waits takes to read, of the instance with the most.",
                f"max(sum without (topic, partition) ({of('anomalyd_consumer_lag_records')})"
                f" / (rate({of('anomalyd_records_consumed_total')}[5m]) > 0))",
                "s",
                (60, 900),
            ),
            Stat(
                "Alert latency",
                "From a record being produced to its alert being committed; one in a hundred of the last hour takes longer.",
                f"histogram_quantile(0.99, sum by (le) (increase({of('anomalyd_detection_latency_seconds_bucket')}[1h])))",
                "s",
                (2, 10),
            ),
            Stat(
                "Unreadable",
                "Share of records that went to the dead-letter topic.",
                share("sum", "anomalyd_records_rejected_total", "anomalyd_records_consumed_total", "5m"),
                "percentunit",
                (0.01, 0.1),
            ),
            Stat("Stopped partitions", "They wait for somebody to decide.", f"sum({of('anomalyd_stopped_partitions')})", limits=(1, 1)),
        ],
    ),
    (
        "What it does",
        [
            Stat("Records a second", "Read from the input topics.", rate("anomalyd_records_consumed_total"), "ops"),
            Stat("Samples a second", "Scored; a record may hold many.", rate("anomalyd_samples_scored_total"), "ops"),
            Stat("Series", "Whose state is kept.", f"sum({of('anomalyd_series')})"),
            Stat("Open alerts", "About your data.", f"sum({of('anomalyd_open_episodes')})"),
            Stat("Silent series", "That sent steadily and stopped.", f"sum({of('anomalyd_silent_series')})"),
            Stat(
                "Budget used",
                "Alerts of the last day, real ones too, for each false one that the budget allows.",
                share("sum", "anomalyd_budget_alerts_fired_total", "anomalyd_budget_alerts_allowed_total", "1d"),
                "percentunit",
            ),
            Graph(
                "Traffic",
                "Records read and samples scored.",
                [(rate("anomalyd_records_consumed_total"), "records"), (rate("anomalyd_samples_scored_total"), "samples")],
                "ops",
            ),
            Graph(
                "Alerts",
                "Messages written, by what they say.",
                [(f"sum by (status, severity) (increase({of('anomalyd_alerts_total')}[$__rate_interval]))", "{{status}} {{severity}}")],
                stacked=True,
            ),
            Graph("Lag", "Records not read yet.", [(f"sum by (topic) ({of('anomalyd_consumer_lag_records')})", "{{topic}}")]),
            Graph(
                "Newest event",
                "How old it is, by stream. It grows where producers have stopped.",
                [(f"time() - max by (stream) ({of('anomalyd_last_event_timestamp_seconds')})", "{{stream}}")],
                "s",
            ),
        ],
    ),
    (
        "What it needs",
        [
            Graph(
                "Workers",
                "Share of their time that is work; near 1 lag grows.",
                [
                    (
                        f"sum without (stage) (rate({of('anomalyd_worker_busy_seconds_total')}[5m])) / {of('anomalyd_workers')}",
                        "{{instance}}",
                    )
                ],
                "percentunit",
            ),
            Graph(
                "CPU",
                "Cores, all of the process.",
                [(f"rate({of('process_cpu_seconds_total')}[$__rate_interval])", "{{job}} {{instance}}")],
            ),
            Graph("Memory", "Resident.", [(of("process_resident_memory_bytes"), "{{job}} {{instance}}")], "bytes"),
            Graph(
                "Event loop",
                "How late it wakes; heartbeats to Kafka wait as long.",
                [(quantile(0.99, "anomalyd_event_loop_lag_seconds", "instance"), "{{instance}}")],
                "s",
            ),
            Table("Versions", "Every process that is scraped.", of("anomalyd_build_info")),
        ],
    ),
]

DETECTION: Final[Rows] = [
    (
        "Alerts",
        [
            Graph(
                "Open alerts",
                "Now, and series that are silent.",
                [
                    (f"sum({of('anomalyd_open_episodes')})", "open"),
                    (f"sum({of('anomalyd_silent_series')})", "silent"),
                ],
            ),
            Graph(
                "Fired",
                "Alerts of each hour, by severity.",
                [(f"sum by (severity) (increase({of('anomalyd_alerts_total', more=FIRING)}[1h]))", "{{severity}}")],
                stacked=True,
            ),
            Graph(
                "Held back",
                "What the alert policy did not let fire, an hour.",
                [
                    (f"sum(increase({of('anomalyd_alerts_muted_total')}[1h]))", "muted"),
                    (f"sum(increase({of('anomalyd_alerts_flapping_total')}[1h]))", "flapping"),
                ],
            ),
            Graph(
                "Latency",
                "From a record being produced to its alert being committed.",
                quantiles("anomalyd_detection_latency_seconds"),
                "s",
            ),
        ],
    ),
    (
        "The alert budget, asked for and measured",
        [
            Graph(
                "Fired and allowed",
                "Alerts within a week, real ones too, and the false ones that the budget allows for the same series and time.",
                [
                    (f"sum by (stream) (increase({of('anomalyd_budget_alerts_fired_total')}[7d]))", "{{stream}} fired"),
                    (f"sum by (stream) (increase({of('anomalyd_budget_alerts_allowed_total')}[7d]))", "{{stream}} allowed"),
                ],
            ),
            Graph(
                "Calibration",
                "How often data is strange, as a multiple of what the calibration says; hardly moved by incidents. At 1 it is right.",
                [
                    (
                        share("sum by (stream)", "anomalyd_budget_crossings_total", "anomalyd_budget_crossings_expected_total", "1d"),
                        "{{stream}}",
                    )
                ],
            ),
            Graph(
                "Correction",
                "Powers of ten by which thresholds give, by partition; 1 is the bound.",
                [(of("anomalyd_budget_correction"), "{{topic}}/{{partition}}")],
                signed=True,
            ),
            Graph(
                "Budget",
                "False alarms per series and day that are asked for.",
                [(f"max by (stream) ({of('anomalyd_budget_per_series_day')})", "{{stream}}")],
            ),
        ],
    ),
    (
        "Series",
        [
            Graph(
                "Series",
                "Whose state is kept, and room for them.",
                [
                    (of("anomalyd_series"), "{{instance}}"),
                    (of("anomalyd_series_limit"), "{{instance}} limit"),
                ],
            ),
            Graph(
                "Forgotten",
                "For want of room, and because they were away too long, a minute.",
                [
                    (f"60 * {rate('anomalyd_series_evicted_total')}", "for want of room"),
                    (f"60 * {rate('anomalyd_series_expired_total')}", "away too long"),
                ],
            ),
        ],
    ),
    (
        "Samples",
        [
            Graph(
                "Samples",
                "Scored, late (nothing is learned from them) and repeated.",
                [
                    (rate("anomalyd_samples_scored_total"), "scored"),
                    (rate("anomalyd_samples_late_total"), "late"),
                    (rate("anomalyd_samples_repeated_total"), "repeated"),
                ],
                "ops",
            ),
            Graph(
                "Unreadable",
                "Records for the dead-letter topic, by reason.",
                [(rate("anomalyd_records_rejected_total", "reason"), "{{reason}}")],
                "ops",
                stacked=True,
            ),
            Graph("Step", "The detector's time for a batch.", quantiles("anomalyd_step_seconds"), "s"),
            Graph("Batches", "Samples in one.", quantiles("anomalyd_batch_samples")),
            Graph("Work", "Cores, by stage.", [(rate("anomalyd_worker_busy_seconds_total", "stage"), "{{stage}}")], stacked=True),
            Graph("Turnaround", "From records being read to what came of them being taken in.", quantiles("anomalyd_batch_seconds"), "s"),
        ],
    ),
]

DELIVERY: Final[Rows] = [
    (
        "Reading",
        [
            Graph(
                "Lag", "Records not read yet, by partition.", [(of("anomalyd_consumer_lag_records"), "{{topic}}/{{partition}}")], wide=True
            ),
            Graph(
                "Partitions",
                "That instances have, and that are paused because brokers take nothing.",
                [
                    (of("anomalyd_assigned_partitions"), "{{instance}}"),
                    (of("anomalyd_paused_partitions"), "{{instance}} paused"),
                ],
            ),
            Graph(
                "The group",
                "Rebalances, failed fetches, clients that were replaced; an hour.",
                [
                    (f"sum(increase({of('anomalyd_rebalances_total')}[1h]))", "rebalances"),
                    (f"sum(increase({of('anomalyd_fetch_errors_total')}[1h]))", "failed fetches"),
                    (f"sum(increase({of('anomalyd_kafka_reconnects_total')}[1h]))", "clients replaced"),
                ],
            ),
            Graph(
                "Lost",
                "Records that Kafka cannot hand out any more, an hour. Act.",
                [(f"sum by (reason) (increase({of('anomalyd_records_lost_total')}[1h]))", "{{reason}}")],
            ),
            Graph(
                "Since the last batch",
                "By stream.",
                [(f"time() - max by (stream) ({of('anomalyd_last_batch_timestamp_seconds')})", "{{stream}}")],
                "s",
            ),
        ],
    ),
    (
        "Committing",
        [
            Graph(
                "Commits",
                "A second, and those of which it was not known whether they had happened.",
                [
                    (rate("anomalyd_checkpoint_seconds_count"), "commits"),
                    (rate("anomalyd_fences_total", more=', why="doubt"'), "in doubt"),
                ],
                "ops",
            ),
            Graph(
                "Time of a commit",
                "Alerts, dead letters, state and position of a partition.",
                quantiles("anomalyd_checkpoint_seconds"),
                "s",
            ),
            Graph(
                "Since the last commit",
                "Seconds; they come every second while records do.",
                [(f"time() - ({of('anomalyd_last_checkpoint_timestamp_seconds')} > 0)", "{{instance}}")],
                "s",
            ),
            Graph(
                "Waiting for brokers",
                "Memory of messages and state, and the limit behind which nothing more is read.",
                [
                    (of("anomalyd_pending_bytes"), "{{instance}}"),
                    (of("anomalyd_pending_limit_bytes"), "{{instance}} limit"),
                ],
                "bytes",
            ),
            Graph(
                "Messages",
                "Written and acknowledged.",
                [
                    (rate("anomalyd_alerts_total"), "alerts"),
                    (rate("anomalyd_dead_letters_total"), "dead letters"),
                ],
                "ops",
            ),
            Graph(
                "Given up",
                "Messages that their topic refuses for their size, an hour.",
                [(f"sum by (kind) (increase({of('anomalyd_messages_dropped_total')}[1h]))", "{{kind}}")],
            ),
        ],
    ),
    (
        "State",
        [
            Graph("Written", "Pages of state, bytes.", [(rate("anomalyd_state_bytes_written_total"), "bytes")], "Bps"),
            Graph(
                "A restart would replay",
                "Records, of the partition with the most.",
                [(of("anomalyd_checkpoint_age_records"), "{{instance}}")],
            ),
            Graph(
                "Restoring",
                "Partitions whose state is not there yet, and those that wait for somebody to decide.",
                [
                    (of("anomalyd_restoring_partitions"), "{{instance}} restoring"),
                    (of("anomalyd_stopped_partitions"), "{{instance}} stopped"),
                ],
            ),
            Graph(
                "Replay",
                "Records that are still to be replayed, and those that are a second.",
                [
                    (f"sum({of('anomalyd_replay_remaining_records')})", "to go"),
                    (rate("anomalyd_records_replayed_total"), "a second"),
                ],
            ),
            Graph(
                "Time of a restore",
                "From a claim to going on, of the last hour.",
                [
                    (f"histogram_quantile(0.5, sum by (le) (increase({of('anomalyd_restore_seconds_bucket')}[1h])))", "median"),
                    (f"histogram_quantile(0.99, sum by (le) (increase({of('anomalyd_restore_seconds_bucket')}[1h])))", "99 %"),
                ],
                "s",
            ),
            Graph(
                "Out of the ordinary",
                "Claims, episodes that a replay saw otherwise than told, input that a replay lacked; an hour.",
                [
                    (f"sum(increase({of('anomalyd_fences_total', more=CLAIM)}[1h]))", "claims"),
                    (f"sum(increase({of('anomalyd_replay_divergences_total')}[1h]))", "divergences"),
                    (f"sum(increase({of('anomalyd_replay_gap_records_total')}[1h]))", "records lacking"),
                ],
            ),
        ],
    ),
    (
        "Scores",
        [
            Graph(
                "Scores",
                "Messages for the scores topic, and samples that a remote write receiver took.",
                [(rate("anomalyd_scores_written_total"), "topic"), (rate("anomalyd_remote_write_samples_total"), "remote write")],
                "ops",
            ),
            Graph(
                "Given up",
                "Samples that remote write dropped, an hour; requests that failed and were tried again.",
                [
                    (f"sum by (reason) (increase({of('anomalyd_remote_write_dropped_samples_total')}[1h]))", "{{reason}}"),
                    (f"sum(increase({of('anomalyd_remote_write_failures_total')}[1h]))", "failed requests"),
                ],
            ),
            Graph("Waiting", "Samples for remote write.", [(of("anomalyd_remote_write_queue_samples"), "{{instance}}")]),
            Graph("Time of a remote write", "That was taken.", quantiles("anomalyd_remote_write_seconds"), "s"),
        ],
    ),
    (
        "Alertmanager",
        [
            Graph(
                "Sent",
                "Alerts that each member took, repetitions included.",
                [(rate("anomalyd_notify_alerts_sent_total", "alertmanager"), "{{alertmanager}}")],
                "ops",
            ),
            Graph(
                "Not sent",
                "Requests that failed, alerts that a member refused, and those dropped in front of one; an hour.",
                [
                    (f"sum by (alertmanager, reason) (increase({of('anomalyd_notify_errors_total')}[1h]))", "{{alertmanager}} {{reason}}"),
                    (f"sum by (alertmanager) (increase({of('anomalyd_notify_alerts_rejected_total')}[1h]))", "{{alertmanager}} refused"),
                    (f"sum by (alertmanager) (increase({of('anomalyd_notify_alerts_dropped_total')}[1h]))", "{{alertmanager}} dropped"),
                ],
            ),
            Graph(
                "Waiting",
                "Alerts for each member, and room for them.",
                [
                    (of("anomalyd_notify_queue_length"), "{{alertmanager}}"),
                    (of("anomalyd_notify_queue_capacity"), "{{instance}} room"),
                ],
            ),
            Graph(
                "The notifier's input",
                "Alerts that are open, and messages of the alerts topic that it has not read yet.",
                [(of("anomalyd_notify_open_alerts"), "open"), (of("anomalyd_notify_lag_records"), "not read")],
            ),
            Graph("Time of a request", "To a member.", quantiles("anomalyd_notify_request_seconds"), "s"),
            Graph(
                "Since a member took something",
                "With an open alert it does each minute.",
                [(f"time() - {of('anomalyd_notify_last_success_timestamp_seconds')}", "{{alertmanager}}")],
                "s",
            ),
        ],
    ),
]

MODEL: Final[Rows] = [
    (
        "At work",
        [
            Table("Models", "Which model scores each stream, by instance.", of("anomalyd_model_info")),
            Graph(
                "Age",
                "Since a model was trained; the one that ships has none.",
                [(f"max by (stream) ({of('anomalyd_model_age_seconds')})", "{{stream}}")],
                "s",
            ),
            Graph(
                "Changes",
                "Models that took over, and that could not be used; a day.",
                [
                    (f"sum by (stream, reason) (increase({of('anomalyd_model_swaps_total')}[1d]))", "{{stream}} {{reason}}"),
                    (f"sum by (stream) (increase({of('anomalyd_model_swap_failures_total')}[1d]))", "{{stream}} failed"),
                ],
            ),
            Graph(
                "Decisions",
                "That the models topic told of; a day.",
                [(f"sum by (stream, verdict) (increase({of('anomalyd_model_decisions_total')}[1d]))", "{{stream}} {{verdict}}")],
            ),
        ],
    ),
    (
        "A challenger beside it",
        [
            Graph(
                "Who would alert",
                "Samples an hour that the one, the other or both would alert to.",
                [
                    (
                        f"sum by (stream, alerts) (increase({of('anomalyd_shadow_samples_total', more=ALERTING)}[1h]))",
                        "{{stream}} {{alerts}}",
                    )
                ],
            ),
            Graph(
                "How far apart",
                "Mean distance of the scores, in powers of ten.",
                [
                    (
                        f"{rate('anomalyd_shadow_score_distance_total', 'stream')} / {rate('anomalyd_shadow_samples_total', 'stream')}",
                        "{{stream}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Retraining",
        [
            Graph(
                "Drift",
                "Nats a sample by which the champion forecasts worse than it did at first.",
                [(of("anomalyd_retrain_drift"), "{{stream}}")],
                signed=True,
            ),
            Graph(
                "Rounds",
                "By what came of them, a week; and those that failed.",
                [
                    (f"sum by (stream, verdict) (increase({of('anomalyd_retrain_rounds_total')}[7d]))", "{{stream}} {{verdict}}"),
                    (f"sum by (stream) (increase({of('anomalyd_retrain_failures_total')}[7d]))", "{{stream}} failed"),
                ],
            ),
            Graph(
                "Since the last round",
                "By stream; and how long that took.",
                [
                    (f"time() - {of('anomalyd_retrain_last_round_timestamp_seconds')}", "{{stream}}"),
                    (of("anomalyd_retrain_last_round_seconds"), "{{stream}} took"),
                ],
                "s",
            ),
            Graph(
                "The gate",
                "What the last round measured of champion and challenger.",
                [(of("anomalyd_retrain_gate"), "{{stream}} {{measure}} {{model}}")],
                wide=True,
            ),
            Graph("The sample", "Series that are learned from.", [(of("anomalyd_retrain_series"), "{{stream}}")]),
            Graph("Its memory", "Bytes.", [(of("anomalyd_retrain_sample_bytes"), "{{stream}}")], "bytes"),
            Graph(
                "The retrainer's lag",
                "Records not read yet, and spans of alerts that are left out.",
                [
                    (of("anomalyd_retrain_lag_records"), "records"),
                    (of("anomalyd_retrain_incidents"), "{{stream}} left out"),
                ],
            ),
            Graph("Its input", "Records a second.", [(rate("anomalyd_retrain_records_total", "stream"), "{{stream}}")], "ops"),
        ],
    ),
]

DASHBOARDS: Final[dict[str, tuple[str, str, Rows]]] = {
    "overview": ("anomalyd: overview", "Whether anomalyd can be trusted now, and what it does.", OVERVIEW),
    "detection": ("anomalyd: detection", "Alerts, the alert budget, series and samples.", DETECTION),
    "delivery": ("anomalyd: delivery", "Reading, committing, and the state that survives a restart.", DELIVERY),
    "model": ("anomalyd: model", "Which models score, what challengers would do, and retraining.", MODEL),
}


def render(name: str) -> str:
    """A dashboard as JSON."""
    title, says, rows = DASHBOARDS[name]
    built = _dashboard(name, title, says)
    numbers = count(1)
    for row, panels in rows:
        built = built.with_row(dashboard.Row(row).id(next(numbers)))
        for panel in panels:
            built = built.with_panel(_panel(panel).id(next(numbers)))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(built.build())), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard(name: str, title: str, says: str) -> Dashboard:
    built = (
        dashboard.Dashboard(title)
        .uid(f"anomalyd-{name}")
        .description(says)
        .tags(["anomalyd"])
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("anomalyd")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["anomalyd"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    outer = ""
    for label in ("namespace", "job", "instance"):
        query = f"label_values(anomalyd_build_info{{{outer}}}, {label})"
        built = built.with_variable(
            dashboard.QueryVariable(label)
            .label(label)
            .datasource(_SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
        outer = f'{outer}, {label}=~"${label}"'.lstrip(", ")
    return built


def _query(expr: str, legend: str = "", reference: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).datasource(_SOURCE).ref_id(reference)


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel | table.Panel:
    match panel:
        case Stat():
            return (
                stat.Panel()
                .title(panel.title)
                .description(panel.says)
                .datasource(_SOURCE)
                .unit(panel.unit)
                .thresholds(_limits(panel))
                .color_mode(options.BigValueColorMode.VALUE)
                .graph_mode(options.BigValueGraphMode.AREA)
                .with_target(_query(panel.expr))
                .span(4)
                .height(4)
            )
        case Table():
            return (
                table.Panel()
                .title(panel.title)
                .description(panel.says)
                .datasource(_SOURCE)
                .with_target(_query(panel.expr).format(PromQueryFormat.TABLE).instant())
                .with_transformation(
                    DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True, "Value": True, "__name__": True}})
                )
                .span(24)
                .height(7)
            )
        case Graph():
            drawn = (
                timeseries.Panel()
                .title(panel.title)
                .description(panel.says)
                .datasource(_SOURCE)
                .unit(panel.unit)
                .fill_opacity(30 if panel.stacked else 5)
                .line_width(1)
                .legend(
                    common.VizLegendOptions()
                    .display_mode(options.LegendDisplayMode.LIST)
                    .placement(options.LegendPlacement.BOTTOM)
                    .show_legend(True)
                )
                .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
                .span(24 if panel.wide else 12)
                .height(8)
            )
            if not panel.signed:
                drawn = drawn.min(0)
            if panel.stacked:
                drawn = drawn.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
            for reference, (expr, legend) in zip("ABCDEFGH", panel.exprs, strict=False):
                drawn = drawn.with_target(_query(expr, legend, reference))
            return drawn


def _limits(panel: Stat) -> dashboard.ThresholdsConfig:
    if panel.low_is_bad:
        steps = [Threshold(value=None, color=_RED), *(Threshold(value=limit, color=_GREEN) for limit in panel.limits)]
    else:
        colours = zip(panel.limits, (_ORANGE, _RED), strict=False)
        steps = [Threshold(value=None, color=_GREEN), *(Threshold(value=limit, color=colour) for limit, colour in colours)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    for known in DASHBOARDS:
        HERE.joinpath(f"{known}.json").write_text(render(known), "utf-8")
