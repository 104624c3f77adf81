"""The settings tree: one YAML file, overridden by `ANOMALYD_` environment variables, frozen once loaded.

Times and sizes carry their unit in the name. Defaults live in the leaf classes only, so that overriding one nested
field keeps its siblings' defaults. This is the only module that reads the environment; `load` does, the classes do not,
so settings built in code (demo, tests) never depend on the caller's shell.
"""

import base64
import contextlib
import difflib
import json
import os
import re
import ssl
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args
from urllib.parse import quote
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from anomalyd.errors import ConfigError
from anomalyd.selection import MOST_FEATURES, Features, Selection
from anomalyd.tls import FreshContext

ENV_PREFIX: Final = "ANOMALYD_"
ENV_DELIMITER: Final = "__"

LONGEST_TOPIC: Final = 249
"""Characters in the name of a topic; Kafka's limit."""

LONGEST_GAP_S: Final = 7 * 86_400
"""How long a series may stay away without losing its open alert: `alerts.episodes.Policy.max_gap_ms`."""

_MOST_VALUES: Final = 2**31 - 1
"""Features of all entities of an instance together: they are numbered in 32 bits."""

SHIPPED: Final = "shipped"
"""Pins the model that comes with the package."""

EVERY_STREAM: Final = "*"
"""Stands for the streams that are not named."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# --- kinds of values ----------------------------------------------------------------------------------------------


def _topic_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in {".", ".."}:
        raise ValueError("must be a Kafka topic name: 1 to 249 of the characters A-Z a-z 0-9 . _ -")
    return name


def _stream_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise ValueError("must be 1 to 100 of the characters A-Z a-z 0-9 . _ -")
    return name


def _servers(text: str) -> str:
    for server in text.split(","):
        found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", server.strip())
        if found is None or not 1 <= int(found[1]) <= 65535:
            raise ValueError("must be host:port, or several of them with commas between")
    return ",".join(server.strip() for server in text.split(","))


def _http_url(url: str) -> str:
    found = re.fullmatch(r"https?://([^/?#\s]+)([/?][^#\s]*)?", url)
    if found is None or "@" in found[1]:
        raise ValueError("must be a URL such as https://service.example.org/path, without user and password")
    return url


def _oauth_extension(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z]+", name) or name == "auth":
        raise ValueError("must be the name of an extension: letters, and not auth")
    return name


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("must be a file that exists")
    return path


def _selector(text: str) -> str:
    try:
        Selection(include=(text,))
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("include: ")) from None
    return text


def _feature(text: str) -> str:
    try:
        Features.check(text)
    except ConfigError as error:
        raise ValueError(re.sub("^(names|include): ", "", str(error))) from None
    return text


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("must be a folder that exists")
    return path


def _label_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be a label name: letters, digits and _, not starting with a digit")
    return name


def _sexagesimal(value: object) -> object:
    """YAML 1.1 takes 22:30 without quotes for a number of base 60, which is the minutes since midnight."""
    if isinstance(value, int) and not isinstance(value, bool) and 60 <= value <= 24 * 60:
        return f"{value // 60:02}:{value % 60:02}"
    return value


def _time_of_day(text: str) -> str:
    found = re.fullmatch(r"([01]?[0-9]|2[0-4]):([0-5][0-9])", text)
    if found is None or (found[1] == "24" and found[2] != "00"):
        raise ValueError("must be a time of day from 00:00 to 24:00, such as 22:30")
    return f"{int(found[1]):02}:{found[2]}"


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError("must be a time zone of the IANA database, such as Europe/Berlin or UTC") from None
    return name


def _moment(moment: datetime) -> datetime:
    if not 1970 <= moment.year < 2100:
        raise ValueError("must be a moment from 1970 to 2099, such as 2026-03-01T08:00:00+01:00")
    return moment


def _written_as_text(value: object) -> object:
    """YAML takes a hash of digits only, without quotes, for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _by_stream(value: object) -> object:
    """What is said of no stream by name is said of all; a mapping in the environment is JSON."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return value if isinstance(value, Mapping) or value is None else {EVERY_STREAM: value}


def _pinned(name: str) -> str:
    if name != SHIPPED and not re.fullmatch(r"[0-9a-f]{8,64}", name):
        raise ValueError('must be the hash of a model, or its first 8 characters or more, or "shipped"')
    return name


def _metric_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_:][A-Za-z0-9_:]*", name):
        raise ValueError("must be a metric name: letters, digits, _ and :, not starting with a digit")
    return name


TopicName = Annotated[str, AfterValidator(_topic_name)]
StreamName = Annotated[str, AfterValidator(_stream_name)]
Servers = Annotated[str, AfterValidator(_servers)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
OAuthExtension = Annotated[str, AfterValidator(_oauth_extension)]
ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
MetricName = Annotated[str, AfterValidator(_metric_name)]
LabelName = Annotated[str, AfterValidator(_label_name)]
Text = Annotated[str, Field(min_length=1)]
Selector = Annotated[Text, AfterValidator(_selector)]
Feature = Annotated[Text, AfterValidator(_feature)]
ExistingFolder = Annotated[Path, AfterValidator(_existing_folder), WithJsonSchema({"type": "string", "format": "directory-path"})]
TimeOfDay = Annotated[str, BeforeValidator(_sexagesimal), AfterValidator(_time_of_day)]
Pin = Annotated[str, BeforeValidator(_written_as_text), AfterValidator(_pinned)]
Pins = Annotated[
    dict[str, Pin],
    NoDecode,  # from the environment, too, a text stands for all streams
    BeforeValidator(_by_stream),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Moment = Annotated[datetime, AfterValidator(_moment)]

Format = Literal["plain-json", "telegraf-json", "influx"]
Kind = Literal["auto", "gauge", "counter", "delta"]
Direction = Literal["both", "above", "below"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Device = Literal["auto", "cpu", "cuda"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]
Delivery = Literal["exactly-once", "at-least-once"]
OnGap = Literal["continue", "stop"]


class _Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, docstrings are the descriptions, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# --- the tree -----------------------------------------------------------------------------------------------------


class KafkaSettings(_Section):
    """How to reach Kafka and how to behave as a member of the consumer group."""

    bootstrap_servers: Servers
    """Brokers to ask first: `host:port`, several with commas between."""
    group_id: Text = "anomalyd"
    """Consumer group. Instances with the same group share the partitions, positions and state."""
    group_instance_id: Text | None = None
    """Static membership: a name unique to this instance. A restart within the session timeout then moves no partition; on a clean stop
    the instance does not leave the group."""
    client_id: Text = "anomalyd"
    """Name shown in the brokers' logs, metrics and quotas."""
    session_timeout_ms: int = Field(default=10_000, ge=1_000, le=1_800_000)
    """Without a heartbeat for so long, the group gives this instance's partitions to others. Heartbeats are sent three times as often."""
    rebalance_timeout_ms: int = Field(default=60_000, ge=1_000, le=1_800_000)
    """How long a rebalance waits for this instance to finish its batch and commit."""
    max_poll_interval_ms: int = Field(default=300_000, ge=1_000)
    """An instance that has not fetched for so long leaves the group: its loop hangs."""
    request_timeout_ms: int = Field(default=40_000, ge=1_000)
    """How long one request to a broker may take."""
    fetch_max_bytes: int = Field(default=64 << 20, ge=1_024)
    """Most bytes of one fetch answer of a broker."""
    max_partition_fetch_bytes: int = Field(default=4 << 20, ge=1_024)
    """Most bytes of a partition in one fetch answer. Memory for fetched data is at most this times the partitions assigned."""
    fetch_max_wait_ms: int = Field(default=500, ge=1)
    """How long a broker may hold a fetch while there is nothing new."""
    max_poll_records: int = Field(default=20_000, ge=1, le=1_000_000)
    """Most records taken into one micro-batch, over all partitions."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Encryption and authentication of the connection."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """How to prove who we are; needed with SASL_PLAINTEXT and SASL_SSL."""
    sasl_username: Text | None = None
    """User name for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """Password for PLAIN and SCRAM. Better: sasl_password_file."""
    sasl_password_file: ExistingFile | None = None
    """File that holds the password for PLAIN and SCRAM, such as a mounted secret; read at each new connection, so it may be rotated."""
    sasl_oauth_token_file: ExistingFile | None = None
    """File that holds the token for OAUTHBEARER, such as a projected service account token; read at each new connection."""
    sasl_oauth_token_url: HttpUrl | None = None
    """Token endpoint that gives tokens for OAUTHBEARER by the client credentials grant (RFC 6749, section 4.4), instead of a file. Tokens
    are asked for when they are needed, kept, and renewed before they end."""
    sasl_oauth_client_id: Text | None = None
    """Client id for the token endpoint."""
    sasl_oauth_client_secret: SecretStr | None = None
    """Client secret for the token endpoint. Better: sasl_oauth_client_secret_file."""
    sasl_oauth_client_secret_file: ExistingFile | None = None
    """File that holds the client secret; read with each question to the token endpoint."""
    sasl_oauth_scope: Text | None = None
    """Scope to ask the token endpoint for; several with blanks between."""
    sasl_oauth_cafile: ExistingFile | None = None
    """Certificates (PEM) of the authorities to trust for the token endpoint; without it, those of the system."""
    sasl_oauth_extensions: dict[OAuthExtension, Text] = Field(default_factory=dict)
    """What goes to the brokers beside the token, such as `logicalCluster: lkc-1` for Confluent Cloud."""
    ssl_cafile: ExistingFile | None = None
    """Certificates (PEM) of the authorities to trust; without it, those of the system. Like all files of TLS it is looked at with each
    new connection, so it may be replaced while the daemon runs."""
    ssl_certfile: ExistingFile | None = None
    """This client's certificate (PEM), for brokers that ask for one."""
    ssl_keyfile: ExistingFile | None = None
    """The private key (PEM) of ssl_certfile."""
    ssl_keyfile_password: SecretStr | None = None
    """Password of ssl_keyfile. Better: ssl_keyfile_password_file."""
    ssl_keyfile_password_file: ExistingFile | None = None
    """File that holds the password of ssl_keyfile."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name the host that was dialled."""

    @property
    def heartbeat_interval_ms(self) -> int:
        """Three heartbeats fit a session, so that one lost packet costs no partition."""
        return min(3_000, self.session_timeout_ms // 3)

    @property
    def uses_sasl(self) -> bool:
        """Whether the connection authenticates with SASL."""
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.security_protocol.endswith("SSL")

    def read_sasl_password(self) -> str | None:
        """The password, out of its file if that is how it is given. Raises ConfigError if the file can no longer be read, or is empty."""
        return _proof(self.sasl_password, self.sasl_password_file, "kafka.sasl_password_file")

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for TLS, whose connections each take the files as they are then; None for connections without.

        One for all clients: a client that is made while only half of a pair has been replaced goes on with the pair before.

        Raises:
            ConfigError: a certificate or key is not usable, the first time.
        """
        if not self.uses_tls:
            return None
        files = (self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password_file)
        return FreshContext(self._ssl_context, [file for file in files if file is not None])

    @cached_property
    def credentials(self) -> str | None:
        """Who we are by SASL, once it is known that password or token can be read. Later each connection reads them, and waits for them.

        Raises:
            ConfigError: a file cannot be used, the first time.
        """
        if self.sasl_mechanism != "OAUTHBEARER":
            self.read_sasl_password()
        elif self.sasl_oauth_token_file is not None:
            self.read_oauth_token()
        return self.sasl_username

    def _ssl_context(self) -> ssl.SSLContext:
        context = _trusting(self.ssl_cafile, "kafka.ssl_cafile")
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile is not None:
            password = _secret(self.ssl_keyfile_password, self.ssl_keyfile_password_file, "kafka.ssl_keyfile_password_file")
            _identify(context, self.ssl_certfile, self.ssl_keyfile, "kafka.ssl", password)
        return context

    def read_oauth_token(self) -> str:
        """The token out of its file. Raises ConfigError if it cannot be read or is empty."""
        token = (_secret(None, self.sasl_oauth_token_file, "kafka.sasl_oauth_token_file") or "").strip()
        if not token:
            raise ConfigError(f"kafka.sasl_oauth_token_file: {self.sasl_oauth_token_file}: is empty")
        return token

    def read_oauth_client_secret(self) -> str:
        """The secret for the token endpoint. Raises ConfigError if its file can no longer be read, or is empty."""
        where = "kafka.sasl_oauth_client_secret_file"
        return _proof(self.sasl_oauth_client_secret, self.sasl_oauth_client_secret_file, where) or ""

    @cached_property
    def oauth_ssl_context(self) -> ssl.SSLContext | None:
        """As `ssl_context`, for the token endpoint; None for one without TLS."""
        if self.sasl_oauth_token_url is None or not self.sasl_oauth_token_url.startswith("https:"):
            return None
        return FreshContext(self._oauth_ssl_context, [] if self.sasl_oauth_cafile is None else [self.sasl_oauth_cafile])

    def _oauth_ssl_context(self) -> ssl.SSLContext:
        return _trusting(self.sasl_oauth_cafile, "kafka.sasl_oauth_cafile")

    def _sasl_problems(self) -> Iterator[tuple[str, str]]:
        """Keys that are missing for the mechanism, or belong to another one."""
        oauth = self.sasl_mechanism == "OAUTHBEARER"
        if self.sasl_mechanism is None:
            wanted: dict[str, object] = {"sasl_mechanism": None}
        elif not oauth:
            wanted = {"sasl_username": self.sasl_username, "sasl_password_file": self.sasl_password or self.sasl_password_file}
        elif self.sasl_oauth_token_url is None:
            wanted = {"sasl_oauth_token_file": self.sasl_oauth_token_file}
        else:
            secret = self.sasl_oauth_client_secret or self.sasl_oauth_client_secret_file
            wanted = {"sasl_oauth_client_id": self.sasl_oauth_client_id, "sasl_oauth_client_secret_file": secret}
        needing = f"security_protocol {self.security_protocol}" if self.sasl_mechanism is None else f"sasl_mechanism {self.sasl_mechanism}"
        yield from ((name, f"missing; {needing} needs it") for name, got in wanted.items() if not got)
        if self.sasl_oauth_token_file is not None and self.sasl_oauth_token_url is not None:
            yield "sasl_oauth_token_url", "give either sasl_oauth_token_file or sasl_oauth_token_url, not both"
        elif oauth and self.sasl_oauth_token_url is None:
            asking = ("client_id", "client_secret", "client_secret_file", "scope", "cafile")
            for name in (f"sasl_oauth_{name}" for name in asking):
                if getattr(self, name) is not None:
                    yield name, "has no effect without sasl_oauth_token_url"
        if self.sasl_mechanism is not None:
            other = ("sasl_username", "sasl_password") if oauth else ("sasl_oauth_",)
            for name in sorted(self.model_fields_set):
                if name.startswith(other) and getattr(self, name):
                    yield name, f"has no effect with sasl_mechanism {self.sasl_mechanism}; change the one or remove the other"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            (name, f"give either {name} or {name}_file, not both")
            for name in ("sasl_password", "sasl_oauth_client_secret", "ssl_keyfile_password")
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None
        ]
        if self.uses_sasl:
            problems += self._sasl_problems()
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            problems.append(("ssl_certfile", "ssl_certfile and ssl_keyfile belong together, give both or neither"))
        for name in sorted(self.model_fields_set):
            idle = (name.startswith("sasl_") and not self.uses_sasl) or (name.startswith("ssl_") and not self.uses_tls)
            default = type(self).model_fields[name].get_default(call_default_factory=True, validated_data={})
            if idle and getattr(self, name) != default:
                problems.append(
                    (name, f"has no effect with security_protocol {self.security_protocol}; change the one or remove the other")
                )
        if self.fetch_max_bytes < self.max_partition_fetch_bytes:
            problems.append(
                (
                    "fetch_max_bytes",
                    f"got {self.fetch_max_bytes}, must be at least max_partition_fetch_bytes ({self.max_partition_fetch_bytes})",
                )
            )
        if self.max_poll_interval_ms <= self.session_timeout_ms:
            problems.append(
                (
                    "max_poll_interval_ms",
                    f"got {self.max_poll_interval_ms}, must be greater than session_timeout_ms ({self.session_timeout_ms})",
                )
            )
        _refuse(problems)
        return self


class MuteSettings(_Section):
    """A time in which no alert fires: a part of certain days of every week, or one span."""

    series: tuple[Selector, ...] = ()
    """Selectors of the series that are muted, of which one has to match; none: all. They see a series as alerts name it, without dropped
    labels."""
    days: tuple[Day, ...] = ()
    """Days of the week on which the time begins; none: every day."""
    from_: TimeOfDay = Field(default="00:00", alias="from")
    """When it begins, by the clocks of the time zone: `"22:30"`."""
    to: TimeOfDay = "24:00"
    """When it is over; earlier than `from` is on the next day."""
    timezone: TimeZone = "UTC"
    """Time zone of all times here that name none themselves. Daylight saving is heeded."""
    start: Moment | None = None
    """Beginning of a single span, such as `2026-03-01T08:00:00+01:00`, instead of days and times of day."""
    end: Moment | None = None
    """End of the span."""
    reason: str = ""
    """Why; for people."""

    @property
    def from_min(self) -> int:
        """Minutes from midnight to the beginning."""
        return _minutes(self.from_)

    @property
    def to_min(self) -> int:
        """Minutes from midnight to the end."""
        return _minutes(self.to)

    @property
    def start_ms(self) -> int | None:
        """Beginning of the span, milliseconds since the epoch."""
        return None if self.start is None else self._ms(self.start)

    @property
    def end_ms(self) -> int | None:
        """End of the span, milliseconds since the epoch."""
        return None if self.end is None else self._ms(self.end)

    def _ms(self, moment: datetime) -> int:
        local = moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(self.timezone))
        # Across offsets first: within one zone Python subtracts clock faces.
        return round((local.astimezone(UTC) - _EPOCH).total_seconds() * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # By value, so that settings that are shown with all their defaults can be loaded again.
        plain = type(self).model_fields
        weekly = [name for name in ("days", "from_", "to") if getattr(self, name) != plain[name].default]
        problems: list[tuple[str, str]] = []
        if self.start is None and self.end is None:
            if not weekly:
                problems.append(
                    ("days", "missing; give days, from and to, or start and end; to mute series for ever, streams[].exclude them")
                )
            elif self.from_min == self.to_min or self.from_ == "24:00" or self.to == "00:00":
                problems.append(
                    ("to", f'got "{self.to}" with from "{self.from_}", must be another time of day; a whole day is 00:00 to 24:00')
                )
        elif weekly:
            problems += [(name.rstrip("_"), "does not go with start and end; give a mute of its own") for name in weekly]
        elif self.start_ms is None or self.end_ms is None:
            problems.append(("start" if self.start is None else "end", "missing; start and end belong together"))
        elif self.end_ms <= self.start_ms:
            problems.append(("end", f"got {_show(str(self.end))}, must be later than start"))
        _refuse(problems)
        return self


class AlertPolicy(_Section):
    """When a series alerts and what its alerts carry."""

    budget: float = Field(default=0.1, gt=0, le=1_000)
    """False alarms that you accept per series and day of event time. Less: fewer alerts, only the strangest; more: more sensitive."""
    budget_control: bool = True
    """Hold the budget: where the series of a partition turn out to be strange more often, or less, than calibrated, the threshold gives,
    slowly and within bounds. false leaves it where the calibration puts it."""
    min_deviation: float = Field(default=0.0, ge=0, le=1e18)
    """Least distance from the expected value that can alert, in the units of the series (per second for counters); 0: any. Such as 5 for
    a percentage, of which nobody wants to hear that 0.3 is unusual. Of several features the one with the largest share counts."""
    min_deviation_ratio: float = Field(default=0.0, ge=0, le=1e18)
    """The same as a part of the expected value: 0.2 lets values alert that lie a fifth or more away from it; 0: any. With both, both must
    be reached."""
    min_duration_s: float = Field(default=0.0, ge=0, le=7 * 86_400)
    """How long, in event time, a series must stay anomalous before its alert fires."""
    direction: Direction = "both"
    """Alert on values above what was expected, below it, or both."""
    resolve_after_samples: int = Field(default=10, ge=1, le=100_000)
    """Samples in a row below the threshold that end an episode."""
    reopen_after_s: float = Field(default=0.0, ge=0, le=LONGEST_GAP_S)
    """For a series that flaps: so long after the end of an alert, in event time, no other one of the same series fires. What is still
    anomalous when the time is over fires then."""
    critical_score: float = Field(default=3.0, gt=1)
    """Score from which an alert's severity is critical instead of warning (1.0 is the threshold)."""
    mutes: tuple[MuteSettings, ...] = Field(default=(), max_length=100)
    """Times in which no alert fires, such as maintenance: what is anomalous only then is never told of, what is still anomalous afterwards
    fires then, and an alert that is open goes on. Event time counts, and learning goes on."""
    labels: dict[LabelName, str] = Field(default_factory=dict)
    """Labels added to every alert, for routing: `team: storage`."""
    annotations: dict[LabelName, str] = Field(default_factory=dict)
    """Annotations added to every alert, such as a `runbook_url`."""


class AlertSettings(AlertPolicy):
    """Where alerts go, and the policy for streams that do not override it."""

    topic: TopicName = "anomalyd.alerts"
    """Topic that alerts are written to."""


class SilenceSettings(_Section):
    """When a series that sends nothing is an alert, of the kind silent: by event time, against the others of its partition."""

    enabled: Literal["auto", "on", "off"] = "auto"
    """auto: for series with a steady step; on: for all of at least 100 samples; off: for none."""
    after_steps: float = Field(default=10.0, ge=2, le=100_000)
    """Usual steps of the series that it may miss, and"""
    after_s: float = Field(default=600.0, ge=60, le=30 * 86_400)
    """event time for which it may send nothing: the longer of both counts."""


class FeatureSettings(_Section):
    """Which values of a stream belong together, as features of entities."""

    names: tuple[Feature, ...]
    """The features: names of metrics as in series keys, with label matchers where an entity has several series of one name:
    `[mem.used_percent, 'cpu.usage_idle{cpu="cpu-total"}']`. The order is part of what is learned: a change has the entities learn anew."""
    by: tuple[Text, ...] = Field(min_length=1)
    """Labels that tell entities apart, such as `[host]`; they become the labels of the entity's series. Values that lack one of them are
    passed over."""
    entity: Text | None = None
    """Name of the entities' series: `host` makes `host{host="web-01"}`. Default: the first label of `by`."""
    interval_s: float = Field(default=0.0, ge=0, le=86_400)
    """Event times are rounded down to multiples of this, so that values that were measured within one interval form one sample; 0: only
    those of the very same time do. For sources that do not round their times."""

    @property
    def name(self) -> str:
        """Name of the entities' series, its default resolved."""
        return self.entity or self.by[0]

    @property
    def interval_ms(self) -> int:
        """What event times are rounded down to multiples of, milliseconds."""
        return round(self.interval_s * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            (key, f'"{one}" is given twice')
            for key, given in (("names", self.names), ("by", self.by))
            for one in sorted({one for one in given if given.count(one) > 1})
        ]
        if not 2 <= len(self.names) <= MOST_FEATURES:
            problems.append(("names", f"got {len(self.names)}, an entity has 2 to {MOST_FEATURES} features"))
        if 0 < self.interval_s < 0.001:
            problems.append(("interval_s", f"got {self.interval_s:g}, must be 0 or at least 0.001: times are in milliseconds"))
        _refuse(problems)
        return self


class StreamSettings(_Section):
    """Where records come from and how they become series."""

    name: StreamName
    """Name of the stream, part of every alert and of its id: changing it later opens alerts anew."""
    topics: tuple[TopicName, ...] = Field(min_length=1)
    """Topics to read. A topic belongs to one stream."""
    format: Format
    """Wire format of the records."""
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """Unit of numeric timestamps in records; auto goes by magnitude."""
    kind: Kind = "auto"
    """What the values are. gauge: a level, judged as it is; counter: a total that only grows, judged by its increase per second; delta: an
    increase since the last sample, judged as it is; auto finds out which of its series are counters. A change has its series learn anew."""
    start_from: Literal["latest", "earliest"] = "latest"
    """Where a new consumer group begins; ignored once a position is committed."""
    include: tuple[Selector, ...] = ()
    """Only series that match one of these selectors; none means all. A selector is a glob for the name, label matchers as in Prometheus,
    or both: `cpu.*`, `net.*{host=~"web-.*"}`, `{env!="test"}`."""
    exclude: tuple[Selector, ...] = ()
    """Never series that match one of these selectors, even if included."""
    drop_labels: tuple[Text, ...] = ()
    """Label names (globs) left out of the series' identity, such as pod uids that change at every deployment."""
    features: FeatureSettings | None = None
    """Values that are judged together: an entity, such as a host, has a fixed vector of features, which get one score and one alert. What
    is no feature is passed over. Left out: each series is judged by itself."""
    model: ExistingFolder | None = None
    """Folder of the artifact that scores this stream; with `features`, one for exactly these. Left out: the one that ships with anomalyd,
    which looks at each feature by itself."""
    silence: SilenceSettings = Field(default_factory=SilenceSettings)
    """When a series that sends nothing is an alert."""
    alerts: AlertPolicy = Field(default_factory=AlertPolicy)
    """Overrides of `alerts.*` for this stream; what is not given here is taken from there. Labels, annotations and mutes are added to
    those."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [("topics", f'"{topic}" is given twice') for topic in sorted({t for t in self.topics if self.topics.count(t) > 1})]
        if self.features is not None and self.drop_labels:
            problems.append(("drop_labels", "has no effect with features: features.by says which labels count; remove it"))
        _refuse(problems)
        return self


class DeadLetterSettings(_Section):
    """Where records go that cannot be read."""

    topic: TopicName | None = None
    """Topic for bad records, unchanged, with headers that say why. Default: `<group_id>-dead-letters`."""


class ScoreSettings(_Section):
    """Where the scores of samples go, which alerts need not."""

    topic: TopicName | None = None
    """Topic for a message for each sample, keyed by its series, with score, value and what was expected; as the alerts, each exactly once.
    None: scores are not written. A message takes far more than a sample takes to score: choose series."""
    include: tuple[Selector, ...] = ()
    """Only series that match one of these selectors, as in `streams[].include`, by the labels of the series key. Empty: all."""
    exclude: tuple[Selector, ...] = ()
    """Never series that match one of these selectors, even if included."""


class ScoreNames(_Section):
    """Names of the series that remote write makes: those that vmanomaly has."""

    score: MetricName = "anomaly_score"
    """Of the score; 1 is the threshold."""
    expected: MetricName = "yhat"
    """Of the value that was expected, a rate per second for counters."""
    low: MetricName = "yhat_lower"
    """Of the lower end of the expected band."""
    high: MetricName = "yhat_upper"
    """Of its upper end."""


class _ClientTls(_Section):
    """TLS towards servers that are dialled by HTTP."""

    section: ClassVar[str]
    """Where it stands in the configuration, for errors."""

    ssl_cafile: ExistingFile | None = None
    """Certificates (PEM) of the authorities to trust; without it, those of the system. Like all files of TLS it is looked at with each
    new connection."""
    ssl_certfile: ExistingFile | None = None
    """Our certificate (PEM), for servers that ask for one."""
    ssl_keyfile: ExistingFile | None = None
    """The private key (PEM) of ssl_certfile, without a password."""
    ssl_check_hostname: bool = True
    """Whether the server's certificate must name the host that was dialled."""

    def ssl_context(self) -> ssl.SSLContext:
        """A context whose connections each take the files as they are then. Raises ConfigError if one is not usable."""
        files = (self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile)
        return FreshContext(self._ssl_context, [file for file in files if file is not None])

    def _ssl_context(self) -> ssl.SSLContext:
        context = _trusting(self.ssl_cafile, f"{self.section}.ssl_cafile")
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile is not None:
            _identify(context, self.ssl_certfile, self.ssl_keyfile, f"{self.section}.ssl")
        return context

    @model_validator(mode="after")
    def _key_has_certificate(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            _refuse([("ssl_keyfile", "needs ssl_certfile")])
        return self


class RemoteWriteSettings(_ClientTls):
    """Scores as time series for Prometheus, or whatever takes its remote write (version 1): for graphs, and rules of your own."""

    section = "remote_write"
    url: HttpUrl | None = None
    """Where to write, such as http://prometheus:9090/api/v1/write. None: nowhere."""
    include: tuple[Selector, ...] = ()
    """Series that match one of these selectors, as in `scores.include`; `['*']`: all. Each makes four time series."""
    exclude: tuple[Selector, ...] = ()
    """Never series that match one of these selectors, even if included."""
    names: ScoreNames = Field(default_factory=ScoreNames)
    """What the time series are called. Each has the labels of its series, `for` with the name of that, and `stream`."""
    labels: dict[LabelName, str] = Field(default_factory=dict)
    """Added to each time series."""
    headers: dict[str, Text] = Field(default_factory=dict)
    """Sent with each request, such as {X-Scope-OrgID: "team"}. For secrets there is token_file."""
    token_file: ExistingFile | None = None
    """A bearer token to send, in a mounted file; read again for each request."""
    queue_samples: int = Field(default=100_000, ge=1_000, le=10_000_000)
    """Samples that may wait while nobody takes them, about 64 bytes each; beyond, the oldest are dropped and counted. Alerts never wait for
    them."""
    batch_samples: int = Field(default=2_000, ge=1, le=100_000)
    """Most samples in one request; each is up to four values."""
    timeout_s: float = Field(default=10.0, gt=0, le=300)
    """For one request."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.url is not None and not self.include:
            problems.append(("include", "missing; name the series whose scores are wanted, or all of them: ['*']"))
        names = [self.names.score, self.names.expected, self.names.low, self.names.high]
        if len(set(names)) < len(names):
            problems.append(("names", f"must be four different names, got {', '.join(names)}"))
        _refuse(problems)
        return self


class HttpSettings(_Section):
    """The HTTP server for /metrics, /healthz and /readyz."""

    section: ClassVar[str] = "http"
    """Where it stands in the configuration, for errors."""
    host: Text = "0.0.0.0"  # noqa: S104  scraping and probes come from other hosts; restrict it in the configuration
    """Address to listen on."""
    port: int = Field(default=9464, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and says which."""
    tls_certfile: ExistingFile | None = None
    """Certificate (PEM, with the chain) to serve HTTPS with instead of HTTP; looked at with each new connection, so it may be replaced."""
    tls_keyfile: ExistingFile | None = None
    """The private key (PEM) of tls_certfile, without a password."""
    token_file: ExistingFile | None = None
    """File with bearer tokens, one a line, of which /metrics asks for one; read with each request. Without a token, /healthz and /readyz
    answer with their status alone and say no reasons."""

    def ssl_context(self) -> ssl.SSLContext | None:
        """A context for HTTPS, None for HTTP. Raises ConfigError if certificate or key are not usable."""
        if self.tls_certfile is None or self.tls_keyfile is None:
            return None
        return FreshContext(partial(self._ssl_context, self.tls_certfile, self.tls_keyfile), [self.tls_certfile, self.tls_keyfile])

    def _ssl_context(self, certfile: Path, keyfile: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        _identify(context, certfile, keyfile, f"{self.section}.tls")
        return context

    def read_tokens(self) -> list[str] | None:
        """Tokens that are accepted, None where none is asked for. Raises ConfigError if their file cannot be read or holds none."""
        if self.token_file is None:
            return None
        tokens = (_secret(None, self.token_file, f"{self.section}.token_file") or "").split()
        if not tokens:
            raise ConfigError(f"{self.section}.token_file: {self.token_file}: holds no token")
        return tokens

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            _refuse([("tls_certfile", "tls_certfile and tls_keyfile belong together, give both or neither")])
        return self


class TopicSettings(_Section):
    """How `anomalyd topics create` makes the topics that anomalyd writes."""

    replication_factor: int | None = Field(default=None, ge=1, le=32767)
    """Copies of each partition. Default: 3, or the number of brokers if there are fewer."""


class CheckpointSettings(_Section):
    """How often alerts, positions and state are made durable."""

    interval_s: float = Field(default=1.0, ge=0.01, le=60)
    """Longest time between checkpoints: alerts, dead letters, the state that is due and the position behind them are written together. An
    alert does not wait for it."""


class StateSettings(_Section):
    """What has been learned about the series, kept in changelog topics so that a restart or another instance goes on where it was."""

    prefix: TopicName | None = None
    """Beginning of the names of the changelog topics, `<prefix>-<input topic>`, and of the transactional ids,
    `<prefix>-<input topic>.<partition>`. Default: `<group_id>-state`. Another prefix is another memory: nothing is known, and alerts that
    were open are never resolved."""
    turn_s: float = Field(default=60.0, ge=1, le=3_600)
    """Every page of state in use is written to the changelog once in this time. More: fewer bytes to Kafka, more input to replay after a
    crash."""
    on_gap: OnGap = "continue"
    """When input that a restore has to replay is no longer retained: continue goes on with what is there, and the series that lack it learn
    again; stop leaves that partition alone until somebody decides."""
    series_ttl_s: float = Field(default=8 * 86_400.0, ge=LONGEST_GAP_S, le=10 * 365 * 86_400)
    """A series that was away for longer than this, in event time, begins anew when it returns, and its memory is freed. 8 days by default,
    so that a weekly series may be late; at least 7, for so long an open alert waits for its series."""


class ModelSettings(_Section):
    """Which models score, where retrained and promoted ones come from."""

    topic: TopicName | None = None
    """Compacted topic of one partition that holds models, and which of them is the champion of each stream; `anomalyd models` and the
    retrainer write to it, every instance follows it. Default: `<group_id>-models`."""
    pin: Pins = Field(default_factory=dict)
    """Stay with one model, whatever the topic says: the first 8 characters of its hash or more, or `shipped`, for all streams; or a mapping
    from the names of streams to these, with `*` for all others. A pinned model that cannot be had leaves the last good one at work, and is
    told of."""
    most_alerts: float = Field(default=3.0, ge=0, le=1_000)
    """Back by rule: where a model that has just taken over a stream fires more than so many times the alerts that the budget allows (or
    that fired before, where that is more), or says what is not finite, the one before takes over again, on all instances. 0: never."""
    shadow: dict[str, Pin] = Field(default_factory=dict)
    """Challengers that score beside the model at work and alert nobody, by the names of streams: the first 8 characters of a hash or more.
    How often they disagree is in the metrics `anomalyd_shadow_*`. They double the work of the stream and the memory of its series."""
    timeline: ExistingFile | None = None
    """To repeat a run: a file of JSON lines `{"topic": …, "partition": …, "offset": …, "model": …}`. The models change at exactly these
    offsets, and the topic and the pin have no say."""

    def pinned(self, stream: str) -> str | None:
        """What a stream is pinned to."""
        return self.pin.get(stream, self.pin.get(EVERY_STREAM))


class RetrainHttpSettings(HttpSettings):
    """The retrainer's HTTP server for /metrics, /healthz and /readyz."""

    section = "retrain.http"
    port: int = Field(default=9465, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and says which."""


class RetrainSettings(_Section):
    """`anomalyd retrain`, which is a process of its own and reads the same configuration; the daemon passes over this section."""

    interval_s: float = Field(default=86_400.0, ge=10)
    """From one round to the next: a challenger is trained for each stream, and published if it proves better than the champion. A stream
    that has too little for a round is looked at again in a tenth of it."""
    drift_check_s: float = Field(default=3_600.0, ge=0)
    """So often is the champion's forecast held against what it was at first; 0: never."""
    drift: float = Field(default=0.25, gt=0)
    """A champion that has become worse by this, beyond doubt, has its round at once; in nats of likelihood a sample."""
    memory_mb: int = Field(default=64, ge=1, le=65_536)
    """Samples kept of each stream, in MiB. How many series that are, drawn by their keys, follows: 2,048 samples of a single metric are
    32 KiB. Beside it, each raw spelling of a series costs up to 48 bytes, for at most four million of them."""
    samples: int = Field(default=2_048, ge=512, le=1 << 20)
    """Kept of each series, the newest: the first two thirds are trained on, the last is judged by."""
    folder: Path | None = None
    """What was kept survives restarts here. None: after a restart the topics are read again from `reread_s` ago on, as far as they are
    retained."""
    reread_s: float = Field(default=3 * 86_400.0, ge=0)
    """How far back a retrainer reads that has nothing in `folder`, by the time of production."""
    leave_out: tuple[MuteSettings, ...] = ()
    """Times that are not learned from and not judged by, such as incidents that nobody was alerted to. Open alerts and the mutes of the
    stream are left out anyway."""
    publish: bool = True
    """Make a challenger that passes the champion; false: only write down what was decided."""
    steps: int | None = Field(default=None, ge=1, le=100_000)
    """Of a training; None: as many as `anomalyd train` takes."""
    threads: int = Field(default=1, ge=1, le=256)
    """Of the training, so that a daemon on the same machine does not starve."""
    nice: int = Field(default=10, ge=0, le=19)
    """Priority of the process, 19 is the lowest."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Of the draw of series, of weights and of injected incidents."""
    http: RetrainHttpSettings = Field(default_factory=RetrainHttpSettings)
    """The retrainer's HTTP server for /metrics, /healthz and /readyz."""


class NotifyHttpSettings(HttpSettings):
    """The notifier's HTTP server for /metrics, /healthz and /readyz."""

    section = "alertmanager.http"
    port: int = Field(default=9466, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and says which."""


class AlertmanagerSettings(_ClientTls):
    """`anomalyd notify`, a process of its own that brings alerts from Kafka to Alertmanager; the daemon passes over this section."""

    section = "alertmanager"
    urls: tuple[HttpUrl, ...] = ()
    """Every member of the Alertmanager cluster, with its path prefix if it has one: `http://alertmanager-0.alertmanager:9093`. Never a load
    balancer: members tell each other who has notified, not which alerts there are."""
    discover: bool = False
    """Each host name stands for all its addresses, such as a headless service of Kubernetes; they are looked up anew each `resend_s`."""
    resend_s: float = Field(default=60.0, ge=1, le=3_600)
    """Open alerts are sent again so often; one that nobody sends any more ends after four times that."""
    batch: int = Field(default=256, ge=1, le=10_000)
    """Most alerts in one request."""
    queue: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most news that wait for one member; beyond that the oldest are dropped, and are told with the next round if the alert is open. How
    many are open has no limit."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """How long a member may take to answer."""
    generator_url: Text | None = None
    """Where an alert's link leads; `{series}`, `{stream}`, `{start_ms}` and `{alert_id}` are filled in, encoded:
    `https://grafana.example/d/metrics?var-series={series}`."""
    basic_auth_username: Text | None = None
    """User name for basic authentication."""
    basic_auth_password_file: ExistingFile | None = None
    """File that holds the password; read with each request."""
    bearer_token_file: ExistingFile | None = None
    """File that holds a bearer token; read with each request."""
    proxy_url: HttpUrl | None = None
    """HTTP proxy to go through. None: none, whatever the environment says."""
    http: NotifyHttpSettings = Field(default_factory=NotifyHttpSettings)
    """The notifier's HTTP server for /metrics, /healthz and /readyz."""

    def authorization(self) -> str | None:
        """The header that proves who we are, as the files are now. Raises ConfigError if one can no longer be read, or holds no token."""
        if self.bearer_token_file is not None:
            token = (_secret(None, self.bearer_token_file, "alertmanager.bearer_token_file") or "").strip()
            if not re.fullmatch("[!-~]+", token):
                raise ConfigError(f"alertmanager.bearer_token_file: {self.bearer_token_file}: must hold a token, and nothing else")
            return f"Bearer {token}"
        if self.basic_auth_username is None:
            return None
        password = _secret(None, self.basic_auth_password_file, "alertmanager.basic_auth_password_file") or ""
        return "Basic " + base64.b64encode(f"{self.basic_auth_username}:{password}".encode()).decode()

    def link(self, *, series: str, stream: str, start_ms: int, alert_id: str) -> str | None:
        """`generator_url` of an alert."""
        if self.generator_url is None:
            return None
        names = {"series": series, "stream": stream, "alert_id": alert_id, "start_ms": str(start_ms)}
        return self.generator_url.format(**{name: quote(value, safe="", errors="replace") for name, value in names.items()})

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = []
        if len(set(self.urls)) < len(self.urls):
            problems.append(("urls", "the same member is named twice"))
        # It would be a secret in metrics and log, and the way to alerts is put behind the path.
        problems += [(f"urls[{i}]", "must have no ?") for i, url in enumerate(self.urls) if "?" in url]
        problems += [
            (f"urls[{i}]", "ends with the path of the API; give the address in front of it")
            for i, url in enumerate(self.urls)
            if "/api/" in url
        ]
        if (self.basic_auth_username is None) != (self.basic_auth_password_file is None):
            problems.append(("basic_auth_username", "belongs together with basic_auth_password_file, give both or neither"))
        if self.bearer_token_file is not None and self.basic_auth_username is not None:
            problems.append(("bearer_token_file", "give this or basic_auth_username, not both"))
        if self.discover and self.proxy_url is not None:
            problems.append(("discover", "does not go with proxy_url: the proxy looks names up"))
        try:
            link = self.link(series="s", stream="s", start_ms=0, alert_id="s")
        except (ValueError, LookupError, AttributeError):
            problems.append(("generator_url", "may have {series}, {stream}, {start_ms} and {alert_id} in braces, and nothing else"))
        else:
            # One link that is no URI costs a whole batch: Alertmanager answers 422 and takes none of it.
            if link is not None and not re.fullmatch(r"https?://[^\s/]+(/(?:[!-$&-~]|%[0-9A-Fa-f]{2})*)?", link):
                problems.append(
                    ("generator_url", f"got {_USER.sub('…@', str(self.generator_url))}, must be a URL that begins with http:// or https://")
                )
        _refuse(problems)
        return self


class LogSettings(_Section):
    """The log on stderr."""

    level: LogLevel = "info"
    """Least level that is written."""
    format: LogFormat = "auto"
    """json: one object a line; console: for people; auto: console on a terminal, json otherwise."""


class Settings(BaseSettings):
    """All settings of an instance."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        title="anomalyd configuration",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
    )

    kafka: KafkaSettings
    """How to reach Kafka and how to behave as a member of the consumer group."""
    streams: tuple[StreamSettings, ...] = Field(min_length=1)
    """Where records come from and how they become series."""
    alerts: AlertSettings = Field(default_factory=AlertSettings)
    """Where alerts go, and the policy for streams that do not override it."""
    dead_letters: DeadLetterSettings = Field(default_factory=DeadLetterSettings)
    """Where records go that cannot be read."""
    scores: ScoreSettings = Field(default_factory=ScoreSettings)
    """Where the scores of samples go, which alerts need not."""
    remote_write: RemoteWriteSettings = Field(default_factory=RemoteWriteSettings)
    """Scores as time series for Prometheus, or whatever takes its remote write (version 1): for graphs, and rules of your own."""
    http: HttpSettings = Field(default_factory=HttpSettings)
    """The HTTP server for /metrics, /healthz and /readyz."""
    topics: TopicSettings = Field(default_factory=TopicSettings)
    """How `anomalyd topics create` makes the topics that anomalyd writes."""
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    """How often alerts, positions and state are made durable."""
    state: StateSettings = Field(default_factory=StateSettings)
    """What has been learned about the series, kept in changelog topics so that a restart or another instance goes on where it was."""
    models: ModelSettings = Field(default_factory=ModelSettings)
    """Which models score, where retrained and promoted ones come from."""
    retrain: RetrainSettings = Field(default_factory=RetrainSettings)
    """`anomalyd retrain`, which is a process of its own and reads the same configuration; the daemon passes over this section."""
    alertmanager: AlertmanagerSettings = Field(default_factory=AlertmanagerSettings)
    """`anomalyd notify`, a process of its own that brings alerts from Kafka to Alertmanager; the daemon passes over this section."""
    log: LogSettings = Field(default_factory=LogSettings)
    """The log on stderr."""
    delivery: Delivery = "exactly-once"
    """What readers of the alerts find after crashes and rebalances. exactly-once: alerts, dead letters, state and position of a partition
    leave in one transaction; who reads with `isolation.level=read_committed` sees each alert once, as if nothing had happened.
    at-least-once: no transactions, for clusters that forbid them. State survives all the same and a crash loses no alert, but after it
    alerts and dead letters may come again (an alert with the same alert_id), and while a partition moves, two instances may both write for
    a moment: one that stood still for longer than its session may then undo what its successor has learned."""
    device: Device = "auto"
    """Where the detector runs; auto takes the GPU if there is one that works."""
    max_series: int = Field(default=1_000_000, ge=1, le=100_000_000)
    """Most series kept by this instance at a time, shared out over its partitions; the longest idle are forgotten first.
    A series takes about 2 KiB, taken as series appear. An entity counts once and takes about 0.7 KiB a feature, less with a joint model."""

    @property
    def dead_letter_topic(self) -> str:
        """The dead-letter topic, its default resolved."""
        return self.dead_letters.topic or f"{self.kafka.group_id}-dead-letters"

    @property
    def state_prefix(self) -> str:
        """What the names of the changelog topics begin with, its default resolved."""
        return self.state.prefix or f"{self.kafka.group_id}-state"

    @property
    def models_topic(self) -> str:
        """The models topic, its default resolved."""
        return self.models.topic or f"{self.kafka.group_id}-models"

    def changelog_topic(self, input_topic: str) -> str:
        """The topic that holds what was learned from an input topic."""
        return f"{self.state_prefix}-{input_topic}"

    def transactional_id(self, source: tuple[str, int]) -> str:
        """The id under which only one instance at a time can write for an input partition (topic, number).

        It goes with the changelog, so that whoever would write into the same one is fenced.
        """
        topic, partition = source
        return f"{self.transactional_prefix(topic)}{partition}"

    def transactional_prefix(self, input_topic: str) -> str:
        """What the transactional ids of an input topic begin with, and no others."""
        return f"{self.changelog_topic(input_topic)}."

    @property
    def retrain_group(self) -> str:
        """The group that the retrainer's positions are written down for."""
        return f"{self.kafka.group_id}-retrainer"

    @property
    def transactional(self) -> bool:
        """Whether what is computed leaves in transactions."""
        return self.delivery == "exactly-once"

    def policy(self, stream: StreamSettings) -> AlertPolicy:
        """The alert policy of a stream: its overrides laid over `alerts.*`."""
        general = {name: getattr(self.alerts, name) for name in AlertPolicy.model_fields}
        own = {name: getattr(stream.alerts, name) for name in stream.alerts.model_fields_set}
        for name in ("labels", "annotations"):
            own[name] = general[name] | own.get(name, {})
        own["mutes"] = tuple(dict.fromkeys((*general["mutes"], *own.get("mutes", ()))))
        return AlertPolicy.model_validate(general | own)

    def effective(self) -> dict[str, Any]:
        """All settings as plain data with defaults resolved and secrets masked: what the instance really runs with."""
        data = self.model_dump(mode="json", by_alias=True)
        data["dead_letters"]["topic"] = self.dead_letter_topic
        data["state"]["prefix"] = self.state_prefix
        data["models"]["topic"] = self.models_topic
        data["remote_write"]["headers"] = {name: str(SecretStr(value)) for name, value in self.remote_write.headers.items()}
        for shown, stream in zip(data["streams"], self.streams, strict=True):
            shown["alerts"] = self.policy(stream).model_dump(mode="json", by_alias=True)
        return data

    def unusable(self) -> list[str]:
        """What is wrong with the files that are named, as they are now: certificates, keys, passwords and tokens."""
        kafka, servers = self.kafka, (self.http, self.retrain.http, self.alertmanager.http)
        tries: list[Callable[[], object]] = [
            lambda: kafka.ssl_context,
            lambda: kafka.credentials,
            lambda: kafka.oauth_ssl_context,
            kafka.read_oauth_client_secret,
            *(use for server in servers for use in (server.ssl_context, server.read_tokens)),
            self.remote_write.ssl_context,
            lambda: _proof(None, self.remote_write.token_file, "remote_write.token_file"),
            self.alertmanager.ssl_context,
            self.alertmanager.authorization,
        ]
        found = []
        for use in tries:
            try:
                use()
            except ConfigError as error:
                found.append(str(error))
        return found

    def needs_restart(self, fresh: "Settings") -> list[str]:
        """Keys in which fresh settings differ from these and which a running instance does not take over: all but alert policies."""
        before, after = self._fixed(), fresh._fixed()  # noqa: SLF001  of another one of the same class
        keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        for name in {stream.name for stream in self.streams} ^ {stream.name for stream in fresh.streams}:
            keys = {key for key in keys if not key.startswith(f"streams.{name}.")} | {f"streams.{name}"}
        return sorted(keys)

    def _fixed(self) -> dict[str, Any]:
        """What holds for the life of an instance, by dotted key; streams go by their names."""
        data = self.model_dump(exclude={"streams", "alerts"})
        data["alerts"] = self.alerts.model_dump(exclude=set(AlertPolicy.model_fields))
        data["streams"] = {}
        for stream in self.streams:
            data["streams"][stream.name] = stream.model_dump(exclude={"name", "alerts"})
        return dict(_flat(data))

    def summary(self) -> list[str]:
        """What is configured, in a few lines for people."""
        kafka = self.kafka
        static = f", static member {kafka.group_instance_id}" if kafka.group_instance_id else ""
        rows = [("kafka", f"{kafka.bootstrap_servers} ({kafka.security_protocol}), group {kafka.group_id}{static}")]
        for stream in self.streams:
            policy = self.policy(stream)
            rows.append(
                (f"stream {stream.name}", f"{stream.format} from {', '.join(stream.topics)}; a new group starts at {stream.start_from}")
            )
            if stream.features is not None:
                features = stream.features
                rows.append(("", f"{len(features.names)} features of each {features.name}, told apart by {', '.join(features.by)}"))
            if stream.model is not None:
                rows.append(("", f"model of {stream.model}"))
            rows.append(
                ("", f"{policy.budget:g} false alarms per series-day, direction {policy.direction}, after {policy.min_duration_s:g} s")
            )
        rows += [
            ("alerts", f"to {self.alerts.topic}, {self.delivery}"),
            ("dead letters", f"to {self.dead_letter_topic}"),
            *([("scores", f"to {self.scores.topic}")] if self.scores.topic else []),
            *([("", f"to {self.remote_write.url}, remote write")] if self.remote_write.url else []),
            ("state", f"in {self.state_prefix}-<topic>, every page each {self.state.turn_s:g} s"),
            ("models", f"in {self.models_topic}{self._pins()}"),
            ("http", f"{self.http.host}:{self.http.port}"),
            *([("notify", f"tells {', '.join(self.alertmanager.urls)}")] if self.alertmanager.urls else []),
            ("series", f"at most {self.max_series:,}"),
        ]
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {text}" for name, text in rows]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems: list[tuple[str, str]] = []
        names = [stream.name for stream in self.streams]
        reader: dict[str, str] = {}
        for i, stream in enumerate(self.streams):
            if stream.name in names[:i]:
                problems.append((f"streams[{i}].name", f'got "{stream.name}", which streams[{names.index(stream.name)}] has already'))
            if stream.features is not None and self.max_series * len(stream.features.names) > _MOST_VALUES:
                count = len(stream.features.names)
                most = f"{_MOST_VALUES // count} with the {count} features of streams[{i}]"
                problems.append(("max_series", f"got {self.max_series}, must be at most {most}"))
            for k, topic in enumerate(stream.topics):
                if topic in reader:
                    problems.append((f"streams[{i}].topics[{k}]", f'got "{topic}", which {reader[topic]} reads already'))
                reader.setdefault(topic, f"streams[{i}]")
        if self.alerts.topic in reader:
            problems.append(
                ("alerts.topic", f'got "{self.alerts.topic}", which {reader[self.alerts.topic]} reads: alerts would come back as input')
            )
        dead = self.dead_letter_topic
        if dead in reader:
            problems.append(("dead_letters.topic", f'got "{dead}", which {reader[dead]} reads: bad records would come back for ever'))
        elif dead == self.alerts.topic:
            problems.append(("dead_letters.topic", f'got "{dead}", which is alerts.topic; give each its own'))
        else:
            try:
                _topic_name(dead)
            except ValueError:
                problems.append(
                    ("dead_letters.topic", f'missing; kafka.group_id "{self.kafka.group_id}" makes no topic name to take as default')
                )
        problems += self._score_problems(reader)
        problems += self._state_problems(reader)
        problems += self._model_problems(reader)
        _refuse(problems)
        return self

    def _pins(self) -> str:
        """How streams are pinned, in a few words."""
        models = self.models
        if models.timeline is not None:
            return f"; changes as in {models.timeline}"
        pins = [f"{stream.name} to {pin}" for stream in self.streams if (pin := models.pinned(stream.name)) is not None]
        return f"; pinned: {', '.join(pins)}" if pins else ""

    def _score_problems(self, reader: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """What is wrong with the scores topic.

        Args:
            reader: which stream reads a topic.
        """
        name = self.scores.topic
        taken = {topic: f"which {stream} reads: scores would come back as input" for topic, stream in reader.items()}
        taken |= {self.alerts.topic: "which is alerts.topic; give each its own"}
        taken |= {self.dead_letter_topic: "which is dead_letters.topic; give each its own"}
        taken |= {self.changelog_topic(topic): f"which is the changelog of {topic}; give each its own" for topic in reader}
        if name in taken:
            yield ("scores.topic", f'got "{name}", {taken[name]}')

    def _model_problems(self, reader: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """What is wrong with the models topic and the pins.

        Args:
            reader: which stream reads a topic.
        """
        name = self.models_topic
        taken = {topic: f"which {stream} reads" for topic, stream in reader.items()}
        taken |= {self.changelog_topic(topic): f"which is the changelog of {topic}" for topic in reader}
        taken |= {self.alerts.topic: "which is alerts.topic", self.dead_letter_topic: "which is dead_letters.topic"}
        taken |= {self.scores.topic: "which is scores.topic"} if self.scores.topic else {}
        if name in taken:
            yield ("models.topic", f'got "{name}", {taken[name]}; give each its own')
        else:
            try:
                _topic_name(name)
            except ValueError:
                yield ("models.topic", f'missing; kafka.group_id "{self.kafka.group_id}" makes no topic name to take as default')
        names = [stream.name for stream in self.streams]
        for key, given, valid in (("pin", self.models.pin, (*names, EVERY_STREAM)), ("shadow", self.models.shadow, tuple(names))):
            for stream in given:
                if stream not in valid:
                    yield (f"models.{key}.{stream}", f"no such stream{_hint(stream, names)}, valid are {', '.join(valid)}")

    def _state_problems(self, reader: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """What is wrong with the changelogs.

        Args:
            reader: which stream reads a topic.
        """
        prefix = self.state_prefix
        try:
            _topic_name(prefix)
        except ValueError:
            yield ("state.prefix", f'missing; kafka.group_id "{self.kafka.group_id}" makes no topic name to take as default')
            return
        taken = {self.alerts.topic: "alerts.topic", self.dead_letter_topic: "dead_letters.topic"} | {
            topic: f"a topic that {stream} reads" for topic, stream in reader.items()
        }
        for topic in reader:
            name = self.changelog_topic(topic)
            if len(name) > LONGEST_TOPIC:
                length = f"{len(name)} characters; Kafka takes {LONGEST_TOPIC}"
                yield ("state.prefix", f"got {_show(prefix)}, with which the changelog of {_show(topic)} gets a name of {length}")
            elif name in taken:
                yield ("state.prefix", f'got "{prefix}", with which the changelog of "{topic}" is "{name}", {taken[name]}; use another')
        if self.state.turn_s < self.checkpoint.interval_s:
            least = f"checkpoint.interval_s ({self.checkpoint.interval_s:g})"
            yield ("state.turn_s", f"got {self.state.turn_s:g}, must be at least {least}: state is written with checkpoints")

    @classmethod
    def settings_customise_sources(  # noqa: D102  inherited
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Only what the caller gives: `load` lays the environment over the file itself.
        return (init_settings,)


# --- loading ------------------------------------------------------------------------------------------------------


def load(path: Path | None) -> Settings:
    """The settings out of a YAML file (none: the environment alone) with the environment laid over it.

    Raises ConfigError that names every field at fault, what it got and what is valid.
    """
    environment, sources = _from_environment()
    data = _merge(_read_yaml(path) if path is not None else {}, environment)
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        details = [d for d in error.errors(include_url=False) if not (d["type"] == "too_short" and d["input"])]  # bad entries are named
        lines = list(dict.fromkeys(line for detail in details for line in _explain(detail, sources)))
        raise ConfigError(headed(path, lines)) from None


def environment_overrides() -> list[str]:
    """Names of the environment variables that `load` takes into account, sorted."""
    return sorted(_from_environment()[1].values())


def crash_at() -> str | None:
    """Where a test wants the process to end, see `anomalyd.crashpoints`. Not a setting: nobody else has a use for it."""
    return os.environ.get("ANOMALYD_CRASH_AT") or None


def headed(path: Path | None, lines: Sequence[str]) -> str:
    """What is wrong with a configuration, under its name."""
    where = str(path) if path is not None else "no file given (-c), environment alone"
    return f"{where}: {lines[0]}" if len(lines) == 1 else "\n".join([f"{where}: {len(lines)} errors", *(f"  {line}" for line in lines)])


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: PyYAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'key "{key.value}" is given twice', key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: got {_show(data)}, must be a mapping with the keys {', '.join(Settings.model_fields)}")
    return {str(key): value for key, value in data.items()}


def _from_environment() -> tuple[dict[str, Any], dict[str, str]]:
    """What the environment sets as a tree, and the variables by their path (`kafka__group_id`)."""
    fields = list(Settings.model_fields)
    variables: dict[str, str] = {}
    unknown: dict[str, Any] = {}
    for name, value in os.environ.items():
        if not name.upper().startswith(ENV_PREFIX) or not value:
            continue
        path = name[len(ENV_PREFIX) :].lower()
        section, delimiter, rest = path.partition(ENV_DELIMITER)
        if section in fields:
            variables[path] = name
        elif not delimiter and _meant(path) and not re.match("(tcp|udp|sctp)://", value):
            variables[path] = name
            unknown[path] = value
        elif delimiter or difflib.get_close_matches(section, fields, cutoff=0.85):
            # Any other name is not ours: beside a service called anomalyd, Kubernetes puts ANOMALYD_PORT and the like into every pod, and
            # ANOMALYD_HTTP_PORT beside one called anomalyd-http.
            variables[path] = name
            unknown[section] = {rest: value} if delimiter else value
    try:
        tree = EnvSettingsSource(Settings)()
    except SettingsError as error:
        section = str(error).partition('field "')[2].partition('"')[0]
        candidates = sorted(name for path, name in variables.items() if path.partition(ENV_DELIMITER)[0] == section)
        example = _EXAMPLES.get(section, '{"key": "value"}')
        raise ConfigError(f"{section}: {' or '.join(candidates)}: must be JSON, such as {example}") from None
    if isinstance(tree.get("streams"), dict):
        raise ConfigError(f"streams: single entries can't be set by the environment; set the whole list, as JSON in {ENV_PREFIX}STREAMS")
    return tree | unknown, variables


def _meant(name: str) -> str | None:
    """The key, with `ENV_DELIMITER` between its parts, that differs from a name in underscores only."""
    return _by_letters().get(name.replace("_", ""))


@cache
def _by_letters() -> dict[str, str]:
    """Every key that the environment may set, without its underscores; those that stand at the top are left to `_hint`."""

    def keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from keys(field.annotation, f"{prefix}{name}{ENV_DELIMITER}")
            elif prefix:
                yield prefix + name

    return {key.replace("_", ""): key for key in keys(Settings, "")}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; anything else, lists too, is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _minutes(time_of_day: str) -> int:
    hours, minutes = time_of_day.split(":")
    return 60 * int(hours) + int(minutes)


def _secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    if file is None:
        return value.get_secret_value() if value is not None else None
    try:
        return file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {file}: {getattr(error, 'strerror', None) or error}") from None


def _proof(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    """As `_secret`, of what nobody can have empty."""
    secret = _secret(value, file, name)
    if file is not None and not secret:
        raise ConfigError(f"{name}: {file}: is empty")
    return secret


def _trusting(cafile: Path | None, where: str) -> ssl.SSLContext:
    """A context that trusts the authorities of a file, or those of the system. Raises ConfigError if it holds none."""
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as error:  # ssl.SSLError is one, too
        raise ConfigError(f"{where}: {cafile}: must hold certificates (PEM): {error}") from error


def _identify(context: ssl.SSLContext, certfile: Path, keyfile: Path | None, where: str, password: str | None = None) -> None:
    """Has the context say who we are. Raises ConfigError, which names the keys `where`_certfile and `where`_keyfile."""
    try:
        # An empty password keeps OpenSSL from asking for one on the terminal, where a daemon would wait for ever.
        context.load_cert_chain(certfile, keyfile, password=password or "")
    except OSError as error:  # ssl.SSLError is one, too
        raise ConfigError(f"{where}_certfile, {where}_keyfile: {certfile}, {keyfile or certfile}: {error}") from error


# --- saying what is wrong -----------------------------------------------------------------------------------------


_EXAMPLES: Final[Mapping[str, str]] = {
    "streams": '[{"name": "hosts", "topics": ["metrics"], "format": "telegraf-json"}]',
    "alertmanager": '["http://alertmanager-0:9093"] for urls',
}


def _refuse(problems: list[tuple[str, str]]) -> None:
    """Raises what pydantic turns into one error that holds all problems: (path below the model, what is wrong)."""
    if problems:
        text = "; ".join(f"{path}: {problem}" for path, problem in problems)
        raise PydanticCustomError("problems", "{text}", {"text": text, "problems": problems})


def _explain(error: ErrorDetails, sources: Mapping[str, str]) -> Iterator[str]:
    """A pydantic error as lines `path: what it got, what is valid`."""
    loc = error["loc"]
    if error["type"] == "problems":
        for path, problem in error["ctx"]["problems"]:
            yield f"{_path((*loc, path))}: {problem}"
        return
    origin = _origin(loc, sources)
    suffix = f" (from {origin})" if origin else ""
    if error["type"] == "extra_forbidden":
        if len(loc) == 1 and (meant := _meant(str(loc[0]).lower())):
            wanted = ENV_PREFIX + meant.upper() if origin else meant.replace(ENV_DELIMITER, ".")
            yield f"{_path(loc)}: unknown key (did you mean {wanted}?){suffix}"
        else:
            yield _unknown_key(loc) + suffix
    elif error["type"] == "missing":
        yield f"{_path(loc)}: missing; {_needed(loc)}{suffix}"
    else:
        yield f"{_path(loc)}: {_wrong_value(error)}{suffix}"


def _path(loc: Sequence[int | str]) -> str:
    text = ""
    for part in loc:
        if part != "[key]":  # pydantic's mark for "the key itself", which the part before shows
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _origin(loc: Sequence[int | str], sources: Mapping[str, str]) -> str | None:
    """The environment variable that a value came from."""
    keys = [ENV_DELIMITER.join(str(part).lower() for part in loc[:n]) for n in range(len(loc), 0, -1)]
    exact = next((sources[key] for key in keys if key in sources), None)
    return exact or next((name for path, name in sources.items() if path.startswith(keys[0] + ENV_DELIMITER)), None) if keys else None


def _unknown_key(loc: Sequence[int | str]) -> str:
    key, valid = str(loc[-1]), [field.alias or name for name, field in _model_at(loc[:-1]).model_fields.items()]
    return f"{_path(loc)}: unknown key{_hint(key, valid)}, valid are {', '.join(valid)}"


def _needed(loc: Sequence[int | str]) -> str:
    field = _model_at(loc[:-1]).model_fields[str(loc[-1])]
    choices = get_args(field.annotation)
    text = " ".join((field.description or "").split())
    return (
        f"valid are {', '.join(choices)}"
        if choices and all(isinstance(c, str) for c in choices)
        else text[:1].lower() + text[1:].rstrip(".")
    )


def _wrong_value(error: ErrorDetails) -> str:
    got = "a hidden value" if _is_secret(error["loc"]) else _show(error["input"])
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        return f"got {got}, valid are {', '.join(valid)}{_hint(str(error['input']), valid)}"
    if error["type"] == "value_error":
        return f"got {got}, {context['error']}"
    if error["type"] == "string_type" and isinstance(error["input"], list | tuple):
        return f"got {got}, must be one text" + (", with commas between the servers" if error["loc"][-1] == "bootstrap_servers" else "")
    describe = _MUST.get(error["type"])
    return f"got {got}, {describe(context) if describe else error['msg'][:1].lower() + error['msg'][1:]}"


_MUST: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:.10g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:.10g}",
    "finite_number": lambda _: "must be a finite number",
    "int_parsing": lambda _: "must be a whole number, written with digits only",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_parsing": lambda _: "must be a number",
    "float_type": lambda _: "must be a number",
    "bool_parsing": lambda _: "must be true or false",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be text; put it in quotes",
    "string_too_short": lambda _: "must not be empty",
    "path_type": lambda _: "must be the path of a file",
    "tuple_type": lambda _: "must be a list",
    "too_short": lambda c: f"must have at least {c['min_length']} entry",
    "too_long": lambda c: f"must have at most {c['max_length']} entries",
    **dict.fromkeys(
        ("datetime_type", "datetime_parsing", "datetime_from_date_parsing", "datetime_object_invalid"),
        lambda _: "must be a moment such as 2026-03-01T08:00:00+01:00",
    ),
    "dict_type": lambda _: "must be a mapping",
    "model_type": lambda _: "must be a mapping",
    "model_attributes_type": lambda _: "must be a mapping",
    "invalid_key": lambda _: "must be text; put the key in quotes",
}


_USER: Final = re.compile(r'(?<=://)\S*@|(?<=^")[^\s@/]*:\S*@')
"""User and password in front of a host. Up to the last @, since a password that nobody has encoded may hold one, or a slash."""


def _show(value: object) -> str:
    """A value as the operator wrote it, short; never a URL's password, or the inside of a mapping or list, where a secret may sit."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text = _USER.sub("…@", text)
    return text if len(text) <= 80 else text[:77] + '…"'


def _hint(got: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(got.lower(), {v.lower(): v for v in valid}, n=1)
    return f" (did you mean {next(v for v in valid if v.lower() == close[0])}?)" if close else ""


def _is_secret(loc: Sequence[int | str]) -> bool:
    return any(
        any(word in str(part) for word in ("password", "secret", "token_url", "headers")) and not str(part).endswith("_file")
        for part in loc
    )


def _model_at(loc: Sequence[int | str]) -> type[BaseModel]:
    """The model class at a path; the path must lead to one."""
    model: type[BaseModel] = Settings
    for part in loc:
        if isinstance(part, str):
            model = next(models_in(model.model_fields[part].annotation))
    return model


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections in a field's annotation, however nested."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)
