"""Where histories come from, as commands name it: files, or a topic as it is committed now."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from anomalyd.batch import Record, Source
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.backtest import settings_for, stream_for
from anomalyd.evaluation.readers import find
from anomalyd.kafka.past import read_past
from anomalyd.settings import Settings, StreamSettings
from anomalyd.training.data import Collector, Data, lines_of, of_tables

MOST_SAMPLES: Final = 2_000_000
"""Of a topic, unless something else is said: the newest ones."""
_UNITS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True)
class FromFiles:
    """History in files."""

    paths: Sequence[Path]
    settings: Settings | None = None
    """Of the stream that says how records are read; None: the defaults."""
    format: str | None = None
    """Of files that are neither CSV nor npz."""


@dataclass(frozen=True)
class FromTopic:
    """History in a topic, as it is committed now."""

    settings: Settings
    topic: str
    since_ms: int | None = None
    """Not what was produced before; None: all that the topic holds."""
    samples: int = MOST_SAMPLES
    """At most; the newest ones."""


def source_of(
    paths: Sequence[Path],
    settings: Settings | None,
    format: str | None,  # noqa: A002  the name of the option
    topic: str | None,
    since: str | None,
    samples: int | None,
) -> FromFiles | FromTopic:
    """The source that options name.

    Raises:
        ConfigError: they name none, two, or do not go together.
    """
    if topic is None:
        if not paths:
            raise ConfigError("got neither DATA nor --topic: name files of history, or a topic with -c and --topic")
        if since is not None or samples is not None:
            raise ConfigError("--since, --samples: are about a topic, got files")
        return FromFiles(paths, settings, format)
    if paths:
        raise ConfigError("got DATA and --topic, must be one of them")
    if format is not None:
        raise ConfigError("--format: is about files; the configuration says the format of a topic")
    if settings is None:
        raise ConfigError("--topic: wants a configuration (-c) that says how to reach Kafka and how to read the topic")
    return FromTopic(settings, topic, None if since is None else moment_ms(since, time.time_ns() // 1_000_000), samples or MOST_SAMPLES)


def read(source: FromFiles | FromTopic) -> Data:
    """The histories.

    Raises:
        ConfigError: no stream of the configuration reads the topic.
        InputFileError: a file cannot be read, has too few rows, or two have different columns; or no series has enough samples.
        AnomalydError: the topic cannot be read.
    """
    if isinstance(source, FromTopic):
        return asyncio.run(_of_topic(source))
    files = find(source.paths, lines=source.format is not None or source.settings is not None)
    lines = [file for file in files if file.kind == "lines"]
    if not lines:
        return of_tables(files)
    if len(lines) < len(files):
        other = next(file for file in files if file.kind != "lines")
        raise InputFileError(f"{lines[0].path} holds records, {other.path} columns; train on files of one kind")
    stream = stream_for(source.settings, source.format)
    collector = Collector(source.settings or settings_for(stream), stream)
    for file in lines:
        take = collector.partition(Source(str(file.path), 0))
        for records in lines_of(file):
            take(records)
    return collector.data()


async def _of_topic(source: FromTopic) -> Data:
    collector = Collector(source.settings, stream_of(source.settings, source.topic))
    takers: dict[int, Callable[[Sequence[Record]], None]] = {}
    # A record holds a sample at least, so as many records as samples are enough.
    async for partition, records in read_past(source.settings.kafka, source.topic, since_ms=source.since_ms, records=source.samples):
        if partition not in takers:
            takers[partition] = collector.partition(Source(source.topic, partition))
        takers[partition](records)
    return collector.data(most=source.samples)


def stream_of(settings: Settings, topic: str) -> StreamSettings:
    """The stream that reads a topic. Raises ConfigError."""
    found = next((stream for stream in settings.streams if topic in stream.topics), None)
    if found is None:
        known = ", ".join(topic for stream in settings.streams for topic in stream.topics)
        raise ConfigError(f"--topic: no stream of the configuration reads {topic}; they read {known}")
    return found


def moment_ms(text: str, now_ms: int) -> int:
    """A moment in milliseconds since the epoch: ISO 8601 (without a zone UTC), or how long ago, such as 90m, 12h or 7d.

    Raises:
        ConfigError: it is neither.
    """
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip()):
        return now_ms - round(float(ago[1]) * _UNITS[ago[2]])
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"--since: got {text!r}, must be ISO 8601 such as 2026-01-01T12:00:00Z, or how long ago, such as 7d") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
