import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from anomalyd.alerts.episodes import Policy
from anomalyd.errors import ConfigError
from anomalyd.kafka.client import options
from anomalyd.settings import Settings, environment_overrides, load, models_in

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
STREAM = {"name": "hosts", "topics": ["metrics"], "format": "telegraf-json"}
SMALLEST = {"kafka": {"bootstrap_servers": "127.0.0.1:9092"}, "streams": [STREAM]}

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment_overrides():
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the smallest configuration with sections laid over it; text is written as it is."""

    def writer(text: str | None = None, **sections: object) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(SMALLEST | sections) if text is None else text, "utf-8")
        return path

    return writer


def refusal(path: Path | None) -> list[str]:
    """Lines of the error without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in lines[1:]] if len(lines) > 1 else [lines[0].removeprefix(f"{path}: ")]


# --- what is accepted ---------------------------------------------------------------------------------------------


def test_smallest_file_gets_every_default(write: Write) -> None:
    settings = load(write())

    assert settings.alerts.topic == "anomalyd.alerts"
    assert settings.alerts.budget == 0.1
    assert settings.dead_letter_topic == "anomalyd-dead-letters"
    assert settings.streams[0].start_from == "latest"
    assert settings.http.port == 9464
    assert settings.max_series == 1_000_000
    assert settings.delivery == "exactly-once"
    assert (settings.state_prefix, settings.changelog_topic("metrics")) == ("anomalyd-state", "anomalyd-state-metrics")
    assert (settings.state.turn_s, settings.state.on_gap, settings.state.series_ttl_s) == (60, "continue", 8 * 86_400)


def test_settings_are_frozen(write: Write) -> None:
    settings = load(write())

    with pytest.raises(ValidationError, match="frozen"):
        settings.http.port = 1  # type: ignore[misc]  # that is the point
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_series = 1  # type: ignore[misc]  # that is the point


def test_json_is_yaml(write: Write) -> None:
    assert load(write(json.dumps(SMALLEST))) == load(write())


def test_anchors_and_merge_keys_work(write: Write) -> None:
    text = """
kafka: {bootstrap_servers: "127.0.0.1:9092"}
streams:
  - &first {name: a, topics: [a], format: influx, start_from: earliest}
  - {<<: *first, name: b, topics: [b]}
"""
    assert load(write(text)).streams[1].start_from == "earliest"


@pytest.mark.parametrize("servers", ["a:1", "kafka-1.example.com:9092, kafka-2:9093", "[::1]:9092"])
def test_servers_are_hosts_with_ports(write: Write, servers: str) -> None:
    assert load(write(kafka={"bootstrap_servers": servers})).kafka.bootstrap_servers == servers.replace(" ", "")


def test_heartbeats_fit_three_times_into_the_session(write: Write) -> None:
    kafka = {"bootstrap_servers": "a:1", "session_timeout_ms": 6000}
    assert load(write(kafka=kafka)).kafka.heartbeat_interval_ms == 2000


def test_another_group_has_another_memory_unless_told(write: Write) -> None:
    settings = load(write(kafka={"bootstrap_servers": "a:1", "group_id": "mine"}))
    assert settings.changelog_topic("metrics") == "mine-state-metrics"
    assert settings.transactional_id(("metrics", 3)) == "mine-state-metrics.3"
    assert settings.effective()["state"]["prefix"] == "mine-state"

    named = load(write(kafka={"bootstrap_servers": "a:1", "group_id": "mine"}, state={"prefix": "x" * 241}))
    assert named.changelog_topic("metrics") == "x" * 241 + "-metrics"


def test_series_may_stay_away_as_long_as_their_alerts(write: Write) -> None:
    """Else an alert would stay open for ever: the series that could resolve it begins anew."""
    assert load(write()).state.series_ttl_s * 1000 >= Policy().max_gap_ms


def test_summary_says_what_is_promised_and_where_state_is(write: Write) -> None:
    lines = "\n".join(load(write(delivery="at-least-once", state={"prefix": "memory"})).summary())

    assert "to anomalyd.alerts, at-least-once" in lines
    assert "memory-<topic>" in lines


# --- policies of streams ------------------------------------------------------------------------------------------


def test_stream_overrides_only_what_it_names(write: Write) -> None:
    """An override of one key must not bring back the defaults of the others."""
    own = STREAM | {"alerts": {"budget": 0.5, "labels": {"team": "storage"}}}
    settings = load(write(streams=[own], alerts={"direction": "above", "min_duration_s": 9, "labels": {"team": "all", "env": "prod"}}))
    policy = settings.policy(settings.streams[0])

    assert (policy.budget, policy.direction, policy.min_duration_s) == (0.5, "above", 9)
    assert policy.labels == {"team": "storage", "env": "prod"}


def test_stream_can_override_back_to_the_default(write: Write) -> None:
    own = STREAM | {"alerts": {"direction": "both"}}
    settings = load(write(streams=[own], alerts={"direction": "above"}))

    assert settings.policy(settings.streams[0]).direction == "both"


def test_mutes_of_a_stream_are_added_and_times_need_no_quotes(write: Write) -> None:
    """YAML 1.1 reads 22:30 as a number; what it stands for is the same time of day."""
    text = """
kafka: {bootstrap_servers: "a:1"}
alerts:
  mutes: [{series: ["cpu.*"], days: [sat, sun], from: 22:30, to: 04:00, timezone: Europe/Berlin, reason: backups}]
streams:
- name: hosts
  topics: [metrics]
  format: influx
  alerts: {mutes: [{start: 2026-03-29 00:00:00, end: 2026-03-30, timezone: Europe/Berlin}]}
"""
    settings = load(write(text))
    weekly, span = settings.policy(settings.streams[0]).mutes

    assert (weekly.series, weekly.days, weekly.from_min, weekly.to_min) == (("cpu.*",), ("sat", "sun"), 22 * 60 + 30, 4 * 60)
    assert (weekly.timezone, weekly.start_ms) == ("Europe/Berlin", None)
    assert span.start_ms is not None
    assert span.end_ms is not None
    assert (span.start_ms, span.end_ms - span.start_ms) == (1_774_738_800_000, 23 * 3_600_000)  # clocks go forward that day


# --- environment --------------------------------------------------------------------------------------------------


def test_environment_wins_over_the_file_and_leaves_siblings(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_KAFKA__BOOTSTRAP_SERVERS", "kafka:9093")
    monkeypatch.setenv("ANOMALYD_MAX_SERIES", "77")
    monkeypatch.setenv("ANOMALYD_ALERTS__LABELS", '{"env": "prod"}')
    settings = load(
        write(kafka={"bootstrap_servers": "127.0.0.1:9092", "group_id": "mine"}, alerts={"budget": 0.5, "labels": {"team": "a"}})
    )

    assert (settings.kafka.bootstrap_servers, settings.kafka.group_id) == ("kafka:9093", "mine")
    assert settings.max_series == 77
    assert settings.alerts.budget == 0.5
    assert settings.alerts.labels == {"team": "a", "env": "prod"}


def test_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_KAFKA__BOOTSTRAP_SERVERS", "kafka:9093")
    monkeypatch.setenv("ANOMALYD_STREAMS", json.dumps([STREAM]))

    assert load(None).streams[0].name == "hosts"


def test_list_from_the_environment_replaces_the_whole_list(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_STREAMS", json.dumps([STREAM | {"name": "other"}]))
    settings = load(write(streams=[STREAM, STREAM | {"name": "second", "topics": ["b"]}]))

    assert [stream.name for stream in settings.streams] == ["other"]


def test_empty_variable_counts_as_not_set(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_KAFKA__GROUP_INSTANCE_ID", "")
    assert load(write()).kafka.group_instance_id is None


def test_variables_of_kubernetes_beside_a_service_and_of_tests_are_no_settings(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PORT",
        "SERVICE_HOST",
        "SERVICE_PORT_HTTP",
        "PORT_9464_TCP_ADDR",
        "KAFKA_PORT",
        "HTTP_PORT",
        "HTTP_SERVICE_HOST",
        "TEST_KAFKA",
        "CRASH_AT",
        "SIMULATION_SEEDS",
        "FUZZ_INPUTS",
    ):
        monkeypatch.setenv(f"ANOMALYD_{name}", "tcp://10.0.0.1:9464")

    assert load(write()) == load(write())
    assert environment_overrides() == []


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ANOMALYD_HTTP__PORT", "99999", 'http.port: got "99999", must be at most 65535 (from ANOMALYD_HTTP__PORT)'),
        (
            "ANOMALYD_HTTP__PROT",
            "1",
            "http.prot: unknown key (did you mean port?), valid are host, port, tls_certfile, ",
        ),
        ("ANOMALYD_KAFK__GROUP_ID", "a", "kafk: unknown key (did you mean kafka?), valid are kafka, streams"),
        ("ANOMALYD_MAX_SERIE", "5", "max_serie: unknown key (did you mean max_series?), valid are"),
        (
            "ANOMALYD_KAFKA_BOOTSTRAP_SERVERS",
            "a:1",
            "kafka_bootstrap_servers: unknown key (did you mean ANOMALYD_KAFKA__BOOTSTRAP_SERVERS?)",
        ),
        ("ANOMALYD_LOGLEVEL", "debug", "loglevel: unknown key (did you mean ANOMALYD_LOG__LEVEL?) (from ANOMALYD_LOGLEVEL)"),
        ("ANOMALYD_RETRAIN_HTTP_PORT", "1", "retrain_http_port: unknown key (did you mean ANOMALYD_RETRAIN__HTTP__PORT?)"),
        ("ANOMALYD_SCORES__TOPIC", "a b", 'scores.topic: got "a b", must be a Kafka topic name'),
        ("ANOMALYD_STREAMS__0__NAME", "x", "streams: single entries can't be set by the environment"),
        ("ANOMALYD_STREAMS", "hosts", "streams: ANOMALYD_STREAMS: must be JSON, such as [{"),
        ("ANOMALYD_ALERTS__LABELS", "team=a", "alerts: ANOMALYD_ALERTS__LABELS: must be JSON"),
    ],
)
def test_wrong_variable_is_refused_by_name(write: Write, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    (line,) = refusal(write())

    assert message in line


def test_settings_built_in_code_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a variable meant for the daemon would send the demo to a production cluster."""
    monkeypatch.setenv("ANOMALYD_KAFKA__BOOTSTRAP_SERVERS", "production:9092")
    assert Settings.model_validate(SMALLEST).kafka.bootstrap_servers == "127.0.0.1:9092"


def mute(**fields: object) -> dict[str, Any]:
    """The section with one mute."""
    return {"alerts": {"mutes": [fields]}}


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"alerts": {"budget": -1}}, "alerts.budget: got -1, must be greater than 0"),
        (
            {"kafka": {"bootstrap_servers": ["a:1", "b:1"]}},
            "kafka.bootstrap_servers: got a list, must be one text, with commas between the servers",
        ),
        ({"streams": [STREAM | {"name": ["a"]}]}, "streams[0].name: got a list, must be one text"),
        ({"alerts": {"budget": float("inf")}}, "alerts.budget: got Infinity, must be a finite number"),
        ({"alerts": {"budget": "much"}}, 'alerts.budget: got "much", must be a number'),
        ({"alerts": {"min_deviation": -1}}, "alerts.min_deviation: got -1, must be at least 0"),
        ({"alerts": {"min_deviation_ratio": "20%"}}, 'alerts.min_deviation_ratio: got "20%", must be a number'),
        ({"streams": [STREAM | {"alerts": {"reopen_after_s": 1e6}}]}, "streams[0].alerts.reopen_after_s: got 1000000.0, must be at most"),
        (mute(days=["sunday"]), 'alerts.mutes[0].days[0]: got "sunday", valid are mon, tue, wed, thu, fri, sat, sun (did you mean sun?)'),
        (mute(days=["mon"], timezone="Berlin"), 'alerts.mutes[0].timezone: got "Berlin", must be a time zone of the IANA database'),
        (mute(**{"from": "22:60"}), 'alerts.mutes[0].from: got "22:60", must be a time of day from 00:00 to 24:00'),
        (mute(**{"from": 22}), "alerts.mutes[0].from: got 22, must be text"),
        (mute(to="24:01"), 'alerts.mutes[0].to: got "24:01", must be a time of day'),
        (mute(**{"from": "08:00", "to": "8:00"}), 'alerts.mutes[0].to: got "08:00" with from "08:00", must be another time of day'),
        (mute(form="08:00"), "alerts.mutes[0].form: unknown key (did you mean from?), valid are series, days, from, to, timezone"),
        (mute(series=["net{host"], days=["mon"]), 'alerts.mutes[0].series[0]: got "net{host", '),
        (mute(series=["cpu"]), "alerts.mutes[0].days: missing; give days, from and to, or start and end"),
        (mute(start="2026-03-01T08:00:00"), "alerts.mutes[0].end: missing; start and end belong together"),
        (mute(start="2026-03-01T08:00:00", end="2026-03-01T08:00:00"), 'alerts.mutes[0].end: got "2026-03-01 08:00:00", must be later'),
        (mute(start="2026-03-01", end="2026-03-02", days=["mon"]), "alerts.mutes[0].days: does not go with start and end"),
        (mute(start="soon", end="2026-03-02"), 'alerts.mutes[0].start: got "soon", must be a moment such as 2026-03-01T08:00:00+01:00'),
        (mute(start="0001-01-01", end="2026-03-02"), 'alerts.mutes[0].start: got "0001-01-01", must be a moment from 1970'),
        ({"alerts": {"mutes": {"days": ["mon"]}}}, "alerts.mutes: got a mapping, must be a list"),
        ({"alerts": {"mutes": [{"days": ["mon"]}] * 101}}, "alerts.mutes: got a list, must have at most 100 entries"),
        ({"alerts": {"budget": None}}, "alerts.budget: got nothing, must be a number"),
        ({"alerts": {"bugdet": 1}}, "alerts.bugdet: unknown key (did you mean budget?), valid are budget, budget_control, "),
        ({"alerts": {"labels": {"team": 5}}}, "alerts.labels.team: got 5, must be text; put it in quotes"),
        ({"alerts": {"labels": {"a-b": "x"}}}, 'alerts.labels.a-b: got "a-b", must be a label name'),
        ({"alerts": {"labels": {5: "x"}}}, "alerts.labels[5]: got 5, must be text; put it in quotes"),
        ({"alerts": 5}, "alerts: got 5, must be a mapping"),
        ({"alerts": {"topic": "a b"}}, 'alerts.topic: got "a b", must be a Kafka topic name'),
        ({"max_series": "1e6"}, 'max_series: got "1e6", must be a whole number, written with digits only'),
        ({"max_series": 0}, "max_series: got 0, must be at least 1"),
        ({"max_series": 1.5}, "max_series: got 1.5, must be a whole number"),
        ({"http": {"port": 65536}}, "http.port: got 65536, must be at most 65535"),
        ({"device": "gpu"}, 'device: got "gpu", valid are auto, cpu, cuda'),
        ({"delivery": "exactly_once"}, 'delivery: got "exactly_once", valid are exactly-once, at-least-once (did you mean exactly-once?)'),
        ({"state": {"prefix": "a b"}}, 'state.prefix: got "a b", must be a Kafka topic name'),
        ({"state": {"turn_s": 0.5}}, "state.turn_s: got 0.5, must be at least 1"),
        ({"state": {"on_gap": "go"}}, 'state.on_gap: got "go", valid are continue, stop'),
        ({"state": {"series_ttl_s": 3600}}, "state.series_ttl_s: got 3600, must be at least 604800"),
        (
            {"state": {"turn_s": 5}, "checkpoint": {"interval_s": 10}},
            "state.turn_s: got 5, must be at least checkpoint.interval_s (10): state is written with checkpoints",
        ),
        ({"streams": []}, "streams: got an empty list, must have at least 1 entry"),
        ({"streams": STREAM}, "streams: got a mapping, must be a list"),
        ({"streams": [STREAM | {"topics": "metrics"}]}, 'streams[0].topics: got "metrics", must be a list'),
        ({"streams": [STREAM | {"topics": ["a", "a"]}]}, 'streams[0].topics: "a" is given twice'),
        ({"streams": [STREAM | {"name": "a b"}]}, 'streams[0].name: got "a b", must be 1 to 100 of the characters'),
        (
            {"streams": [STREAM | {"format": "telgraf"}]},
            'streams[0].format: got "telgraf", valid are plain-json, telegraf-json, influx (did you mean telegraf-json?)',
        ),
        ({"streams": [{"name": "a", "topics": ["b"]}]}, "streams[0].format: missing; valid are plain-json, telegraf-json, influx"),
        ({"streams": [STREAM | {"include": [5]}]}, "streams[0].include[0]: got 5, must be text"),
        ({"streams": [STREAM | {"include": ["net{host"]}]}, 'streams[0].include[0]: got "net{host", '),
        ({"streams": [STREAM | {"exclude": ['{host=~"("}']}]}, "streams[0].exclude[0]: got "),
        ({"kafka": {"bootstrap_servers": "kafka"}}, 'kafka.bootstrap_servers: got "kafka", must be host:port'),
        ({"kafka": {"bootstrap_servers": "kafka:0"}}, 'kafka.bootstrap_servers: got "kafka:0", must be host:port'),
        ({"kafka": {}}, "kafka.bootstrap_servers: missing; brokers to ask first"),
        ({"streams": [STREAM | {"silence": {"enabled": "yes"}}]}, 'streams[0].silence.enabled: got "yes", valid are auto, on, off'),
        ({"streams": [STREAM | {"silence": {"after_s": 5}}]}, "streams[0].silence.after_s: got 5, must be at least 60"),
        ({"scores": {"topic": "metrics"}}, 'scores.topic: got "metrics", which streams[0] reads: scores would come back as input'),
        ({"scores": {"topic": "anomalyd.alerts"}}, 'scores.topic: got "anomalyd.alerts", which is alerts.topic; give each its own'),
        (
            {"scores": {"topic": "anomalyd-state-metrics"}},
            'scores.topic: got "anomalyd-state-metrics", which is the changelog of metrics; give each its own',
        ),
        ({"remote_write": {"url": "prometheus:9090"}}, 'remote_write.url: got "prometheus:9090", must be a URL such as'),
        ({"remote_write": {"url": "http://a/write"}}, "remote_write.include: missing; name the series whose scores are wanted"),
        ({"remote_write": {"names": {"score": "yhat"}}}, "remote_write.names: must be four different names"),
        ({"alertmanager": {"urls": ["http://a?token=x"]}}, "alertmanager.urls[0]: must have no ?"),
        ({"alertmanager": {"urls": ["http://a/api/v2/alerts"]}}, "alertmanager.urls[0]: ends with the path of the API"),
        ({"alertmanager": {"urls": ["http://a", "http://a"]}}, "alertmanager.urls: the same member is named twice"),
        ({"alertmanager": {"generator_url": "https://a/{serie}"}}, "alertmanager.generator_url: may have {series}, {stream}, {start_ms}"),
        ({"alertmanager": {"generator_url": "https://a/50%/{series}"}}, "alertmanager.generator_url: got https://a/50%/{series}, must be"),
        ({"models": {"pin": "newest"}}, 'models.pin.*: got "newest", must be the hash of a model, or its first 8 characters or more'),
        ({"models": {"pin": {"host": "shipped"}}}, "models.pin.host: no such stream (did you mean hosts?), valid are hosts, *"),
        ({"models": {"topic": "metrics"}}, 'models.topic: got "metrics", which streams[0] reads; give each its own'),
        ({"models": {"timeline": "/nowhere"}}, 'models.timeline: got "/nowhere", must be a file that exists'),
        ({"kafak": {}}, "kafak: unknown key (did you mean kafka?), valid are kafka, streams, alerts"),
    ],
)
def test_wrong_value_is_refused_with_path_value_and_what_is_valid(write: Write, sections: dict[str, Any], message: str) -> None:
    (line,) = refusal(write(**sections))
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("pin", "hosts", "pods"),
    [
        (None, None, None),
        ("shipped", "shipped", "shipped"),
        (12345678, "12345678", "12345678"),
        ({"hosts": "shipped"}, "shipped", None),
        ({"hosts": "0123abcd", "*": "shipped"}, "0123abcd", "shipped"),
    ],
)
def test_streams_are_pinned_together_or_by_name(write: Write, pin: object, hosts: str | None, pods: str | None) -> None:
    models = load(write(models={} if pin is None else {"pin": pin})).models

    assert (models.pinned("hosts"), models.pinned("pods")) == (hosts, pods)


@pytest.mark.parametrize(("text", "pods"), [("shipped", "shipped"), ('{"hosts": "shipped"}', None)])
def test_a_pin_of_the_environment_is_a_text_or_json(write: Write, text: str, pods: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_MODELS__PIN", text)
    models = load(write()).models

    assert (models.pinned("hosts"), models.pinned("pods")) == ("shipped", pods)


def test_all_errors_are_shown_at_once(write: Write) -> None:
    lines = refusal(write(alerts={"budget": -1}, http={"prot": 5}, streams=[{"name": "x"}], max_series=0))
    assert [line.split(":")[0] for line in lines] == ["streams[0].topics", "streams[0].format", "alerts.budget", "http.prot", "max_series"]


@pytest.mark.parametrize(
    ("sections", "messages"),
    [
        ({"streams": [STREAM, STREAM | {"topics": ["b"]}]}, ['streams[1].name: got "hosts", which streams[0] has already']),
        ({"streams": [STREAM, STREAM | {"name": "b"}]}, ['streams[1].topics[0]: got "metrics", which streams[0] reads already']),
        ({"alerts": {"topic": "metrics"}}, ['alerts.topic: got "metrics", which streams[0] reads: alerts would come back as input']),
        ({"dead_letters": {"topic": "metrics"}}, ['dead_letters.topic: got "metrics", which streams[0] reads']),
        (
            {"streams": [STREAM | {"topics": ["metrics", "anomalyd-state-metrics"]}]},
            ['state.prefix: got "anomalyd-state", with which the changelog of "metrics" is "anomalyd-state-metrics", a topic that '],
        ),
        ({"state": {"prefix": "s"}, "alerts": {"topic": "s-metrics"}}, ['state.prefix: got "s", with which the changelog of "metrics"']),
        (
            {"state": {"prefix": "s"}, "dead_letters": {"topic": "s-metrics"}},
            ['state.prefix: got "s", with which the changelog of "metrics" is "s-metrics", dead_letters.topic'],
        ),
        (
            {"state": {"prefix": "s" * 242}},
            [f'state.prefix: got "{"s" * 76}…", with which the changelog of "metrics" gets a name of 250 characters; Kafka takes 249'],
        ),
        ({"dead_letters": {"topic": "anomalyd.alerts"}}, ['dead_letters.topic: got "anomalyd.alerts", which is alerts.topic']),
        (
            {"kafka": {"bootstrap_servers": "a:1", "group_id": "a b"}},
            [
                'dead_letters.topic: missing; kafka.group_id "a b" makes no topic name to take as default',
                'state.prefix: missing; kafka.group_id "a b" makes no topic name to take as default',
                'models.topic: missing; kafka.group_id "a b" makes no topic name to take as default',
            ],
        ),
        (
            {"streams": [STREAM, STREAM], "alerts": {"topic": "metrics"}},
            ["streams[1].name: ", "streams[1].topics[0]: ", "alerts.topic: "],
        ),
    ],
)
def test_streams_and_topics_must_not_meet(write: Write, sections: dict[str, Any], messages: list[str]) -> None:
    lines = refusal(write(**sections))
    assert len(lines) == len(messages)
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafka: {a: [}\n", "line 1, column 13: not valid YAML: expected the node content, but found '}'"),
        ("kafka: {}\nhttp: {}\nkafka: {}\n", 'line 3, column 1: not valid YAML: key "kafka" is given twice'),
        ("kafka:\n\tgroup_id: a\n", "line 2, column 1: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: !!python/object:os.system {}\n", "line 1, column 4: not valid YAML: could not determine a constructor"),
        ("- a\n- b\n", "got a list, must be a mapping with the keys kafka, streams"),
        ("hello\n", 'got "hello", must be a mapping with the keys kafka, streams'),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_place(write: Write, text: str, message: str) -> None:
    (line,) = refusal(write(text))
    assert message in line


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == ["No such file or directory"]
    assert refusal(tmp_path) == ["Is a directory"]
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    assert "not valid YAML" in refusal(tmp_path / "bytes.yaml")[0]


def test_empty_file_says_what_is_needed(write: Write) -> None:
    assert [line.split(";")[0] for line in refusal(write(""))] == ["kafka: missing", "streams: missing"]


# --- secrets ------------------------------------------------------------------------------------------------------


def sasl(**more: object) -> dict[str, object]:
    return {"bootstrap_servers": "a:1", "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "me"} | more


def test_password_comes_from_a_mounted_file_and_follows_its_rotation(write: Write, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    kafka = load(write(kafka=sasl(sasl_password_file=str(secret)))).kafka

    assert kafka.read_sasl_password() == "hunter2"
    secret.write_text("hunter3")
    assert kafka.read_sasl_password() == "hunter3"
    options(kafka)
    secret.unlink()
    assert options(kafka)["sasl_plain_username"] == "me"  # a client that is made now waits for the file
    with pytest.raises(ConfigError, match=r"kafka\.sasl_password_file: .*No such file"):
        kafka.read_sasl_password()


def test_secrets_are_masked_wherever_settings_are_shown(write: Write) -> None:
    settings = load(write(kafka=sasl(sasl_password="hunter2")))

    assert settings.kafka.read_sasl_password() == "hunter2"
    assert "hunter2" not in str(settings) + repr(settings) + json.dumps(settings.effective()) + "".join(settings.summary())


@pytest.mark.parametrize(
    "kafka",
    [
        sasl(sasl_password=["hunter2"]),
        sasl(sasl_pasword="hunter2"),
        sasl(sasl_password={"value": "hunter2"}),
        {"bootstrap_servers": "a:1", "sasl_password": "hunter2"},
    ],
)
def test_secrets_are_not_shown_in_errors(write: Write, kafka: object) -> None:
    assert "hunter2" not in "\n".join(refusal(write(kafka=kafka)))


def oauth(**more: object) -> dict[str, object]:
    return {"bootstrap_servers": "a:1", "security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"} | more


@pytest.mark.parametrize(
    ("kafka", "messages"),
    [
        (
            {"bootstrap_servers": "a:1", "security_protocol": "SASL_SSL"},
            ["kafka.sasl_mechanism: missing"],
        ),
        (sasl(sasl_username=None), ["kafka.sasl_username: missing", "kafka.sasl_password_file: missing"]),
        (oauth(), ["kafka.sasl_oauth_token_file: missing; sasl_mechanism OAUTHBEARER needs it"]),
        (
            oauth(sasl_oauth_token_url="https://a/token"),
            ["kafka.sasl_oauth_client_id: missing", "kafka.sasl_oauth_client_secret_file: missing"],
        ),
        (
            oauth(sasl_oauth_token_file=__file__, sasl_oauth_scope="a"),
            ["kafka.sasl_oauth_scope: has no effect without sasl_oauth_token_url"],
        ),
        (oauth(sasl_oauth_token_file=__file__, sasl_username="me"), ["kafka.sasl_username: has no effect with sasl_mechanism OAUTHBEARER"]),
        (sasl(sasl_password="a", sasl_oauth_scope="b"), ["kafka.sasl_oauth_scope: has no effect with sasl_mechanism PLAIN"]),
        (
            oauth(
                sasl_oauth_token_file=__file__, sasl_oauth_token_url="https://a/", sasl_oauth_client_id="b", sasl_oauth_client_secret="c"
            ),
            ["kafka.sasl_oauth_token_url: give either sasl_oauth_token_file or sasl_oauth_token_url"],
        ),
        (
            oauth(sasl_oauth_token_url="https://me:hunter2@a/token", sasl_oauth_client_id="b", sasl_oauth_client_secret="c"),
            ["kafka.sasl_oauth_token_url: got a hidden value, must be a URL such as"],
        ),
        (
            oauth(sasl_oauth_token_file=__file__, sasl_oauth_extensions={"auth": "x"}),
            ["kafka.sasl_oauth_extensions.auth: "],
        ),
        ({"bootstrap_servers": "a:1", "sasl_username": "me"}, ["kafka.sasl_username: has no effect with security_protocol PLAINTEXT"]),
        (sasl(sasl_password="a", ssl_cafile=__file__), ["kafka.ssl_cafile: has no effect with security_protocol SASL_PLAINTEXT"]),
        (sasl(sasl_password="a", sasl_password_file=__file__), ["kafka.sasl_password: give either sasl_password or sasl_password_file"]),
        (
            {"bootstrap_servers": "a:1", "security_protocol": "SSL", "ssl_certfile": __file__},
            ["kafka.ssl_certfile: ssl_certfile and ssl_keyfile belong together"],
        ),
        (sasl(sasl_password_file="/none"), ['kafka.sasl_password_file: got "/none", must be a file that exists']),
        (
            {"bootstrap_servers": "a:1", "fetch_max_bytes": 1024, "max_poll_interval_ms": 5000},
            ["kafka.fetch_max_bytes: got 1024, must be at least", "kafka.max_poll_interval_ms: got 5000, must be greater than"],
        ),
    ],
)
def test_kafka_keys_that_do_not_go_together_are_refused(write: Write, kafka: object, messages: list[str]) -> None:
    lines = refusal(write(kafka=kafka))
    assert len(lines) == len(messages)
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=True))


def test_tls_context_follows_the_settings(write: Write, tmp_path: Path) -> None:
    key, certificate, password = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "password"
    password.write_text("hunter2\n")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-passout",
            "pass:hunter2",
            "-subj",
            "/CN=a",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    tls = {"bootstrap_servers": "a:1", "security_protocol": "SSL", "ssl_cafile": str(certificate)}
    client = tls | {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}

    assert load(write()).kafka.ssl_context is None
    context = load(write(kafka=tls)).kafka.ssl_context
    assert context is not None
    assert context.check_hostname
    context = load(write(kafka=client | {"ssl_keyfile_password_file": str(password), "ssl_check_hostname": False})).kafka.ssl_context
    assert context is not None
    assert not context.check_hostname
    with pytest.raises(ConfigError, match=r"kafka\.ssl_certfile, kafka\.ssl_keyfile: "):
        assert load(write(kafka=client)).kafka.ssl_context
    with pytest.raises(ConfigError, match=rf"kafka\.ssl_cafile: {password}: must hold certificates"):
        assert load(write(kafka=tls | {"ssl_cafile": str(password)})).kafka.ssl_context
    wrong = {"ssl_cafile": str(password)}
    told = load(write(kafka=tls | wrong, alertmanager=wrong, remote_write=wrong)).unusable()
    assert [line.split(":")[0] for line in told] == ["kafka.ssl_cafile", "remote_write.ssl_cafile", "alertmanager.ssl_cafile"]
    rotated = load(write(kafka=client | {"ssl_keyfile_password_file": str(password)})).kafka
    before = rotated.ssl_context
    certificate.write_text("half of a pair")
    assert options(rotated)["ssl_context"] is before


# --- what comes out -----------------------------------------------------------------------------------------------


def test_effective_settings_load_again_as_the_same(write: Write) -> None:
    mutes = [{"days": ["sat"], "from": "20:00"}, {"start": "2026-03-01T08:00:00+01:00", "end": "2026-03-02"}]
    own = {"budget": 0.5, "mutes": [{"series": ["cpu.*"], "to": "06:00"}]}
    settings = load(write(streams=[STREAM | {"alerts": own, "include": ["cpu.*"]}], alerts={"labels": {"team": "a"}, "mutes": mutes}))
    again = load(write(yaml.safe_dump(settings.effective(), sort_keys=False)))

    assert again.effective() == settings.effective()
    assert again.policy(again.streams[0]) == settings.policy(settings.streams[0])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path, write: Write) -> None:
    """Mounted secrets are not here, so an existing file stands in for each."""
    text = re.sub(r"/etc/anomalyd/\S+", __file__, path.read_text("utf-8"))

    load(write(text))
    jsonschema.validate(yaml.safe_load(text), Settings.model_json_schema())


def test_annotated_configuration_names_every_key_and_shows_its_default(write: Write) -> None:
    path = next(path for path in CONFIGS if path.name == "default.yaml")

    assert load(path).effective() == load(write()).effective()
    words = set(re.findall(r"[a-z_]+(?=:)", path.read_text("utf-8")))
    assert set(keys(Settings)) <= words


def entity(**fields: object) -> dict[str, Any]:
    """A stream of entities."""
    return STREAM | {"features": {"names": ["mem.used", 'cpu.user{cpu="cpu-total"}'], "by": ["host"]} | fields}


def test_features_have_names_labels_and_a_series(write: Write) -> None:
    (stream, named) = load(
        write(streams=[entity(), entity(entity="machine", interval_s=10) | {"name": "b", "topics": ["b"], "model": "."}])
    ).streams

    assert stream.features is not None
    assert named.features is not None
    assert (stream.features.name, stream.features.interval_ms) == ("host", 0)
    assert (named.features.name, named.features.interval_ms, named.model) == ("machine", 10_000, Path())


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (entity(names=["mem.used"]), "streams[0].features.names: got 1, an entity has 2 to 128 features"),
        (entity(names=[f"m.{i}" for i in range(129)]), "streams[0].features.names: got 129, an entity has 2 to 128 features"),
        (entity(names=["mem.used", "mem.used"]), 'streams[0].features.names: "mem.used" is given twice'),
        (entity(names=["mem.used", "cpu.*"]), "streams[0].features.names[1]: got \"cpu.*\", 'cpu.*' has no name without wildcards"),
        (entity(names=["mem.used", '{cpu="cpu-total"}']), "has no name without wildcards"),
        (entity(names=["mem.used", "cpu.user{cpu=total}"]), "has no valid matcher at 'cpu=total'"),
        (entity(by=["host", "host"]), 'streams[0].features.by: "host" is given twice'),
        (entity(by=[]), "streams[0].features.by: got an empty list, must have at least 1 entry"),
        (entity(interval_s=0.0001), "streams[0].features.interval_s: got 0.0001, must be 0 or at least 0.001"),
        (entity() | {"drop_labels": ["pod"]}, "streams[0].drop_labels: has no effect with features"),
        (entity() | {"model": "/none/such"}, 'streams[0].model: got "/none/such", must be a folder that exists'),
    ],
)
def test_wrong_features_are_refused(write: Write, stream: dict[str, Any], message: str) -> None:
    (line,) = refusal(write(streams=[stream]))

    assert message in line


def test_more_values_than_can_be_numbered_are_refused(write: Write) -> None:
    stream = entity(names=[f"m.{i}" for i in range(100)])

    assert refusal(write(streams=[stream], max_series=100_000_000)) == [
        "max_series: got 100000000, must be at most 21474836 with the 100 features of streams[0]"
    ]


def test_schema_refuses_what_settings_refuse() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(SMALLEST | {"kafak": {}}, Settings.model_json_schema())


def test_every_key_is_described() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        mine = [f"{model.__name__}.{name}" for name, field in model.model_fields.items() if not field.description]
        return mine + [
            text for field in model.model_fields.values() for inner in models_in(field.annotation) for text in undescribed(inner)
        ]

    assert undescribed(Settings) == []


def keys(model: type[BaseModel]) -> list[str]:
    return [
        *(field.alias or name for name, field in model.model_fields.items()),
        *(key for field in model.model_fields.values() for inner in models_in(field.annotation) for key in keys(inner)),
    ]
