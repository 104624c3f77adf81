"""The daemon as a user runs it: `anomalyd run` in a process of its own, seen through its log and its HTTP server only."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from anomalyd.kafka.topics import CHANGELOG_CONFIG, MODELS_CONFIG
from anomalyd.state import codec
from tests.support.poll import poll_until
from tests.support.topics import create_topic, read_committed, unique

START_S: Final = 1_760_000_000


def sample(host: str, i: int, value: float) -> bytes:
    """A record with one sample: ten seconds of event time after another."""
    return json.dumps({"name": "load", "ts": START_S + 10 * i, "value": value, "tags": {"host": host}}).encode()


def incident(host: str, samples: int = 600, at: int = 500) -> list[bytes]:
    """Samples of noise with an incident of six samples in them: one alert, firing and resolved."""
    noise = np.random.default_rng(1).standard_normal(samples)
    return [sample(host, i, 100 + noise[i] + (60 if at <= i < at + 6 else 0)) for i in range(samples)]


def poison(n: int) -> bytes:
    """A bad record that no other is equal to: it comes back as a dead letter, so it proves what became of its offset."""
    return b'{"bad": %d' % n


class Daemon:
    """A configuration with topics of its own, and at most one process that runs it."""

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        *,
        partitions: int = 1,
        source: str | None = None,
        group: str | None = None,
        make_topics: bool = True,
        kafka: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        changelog: dict[str, str] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.group = group or unique("group")
        self.source = source or (create_topic(bootstrap, partitions=partitions) if make_topics else unique("input"))
        self.alerts = f"{self.group}.alerts"
        self.dead = f"{self.group}-dead-letters"
        self.changelog = f"{self.group}-state-{self.source}"
        if make_topics and group is None:
            create_topic(bootstrap, self.alerts, partitions)
            create_topic(bootstrap, self.dead, partitions)
            create_topic(bootstrap, self.changelog, partitions, changelog or CHANGELOG_CONFIG)
            create_topic(bootstrap, f"{self.group}-models", config=MODELS_CONFIG)
        name = unique("daemon")
        self.config = folder / f"{name}.json"
        self._log = folder / f"{name}.log"
        self.config.write_text(
            json.dumps(
                {
                    "kafka": {"bootstrap_servers": bootstrap, "group_id": self.group, "session_timeout_ms": 6_000, **(kafka or {})},
                    "streams": [{"name": "hosts", "topics": [self.source], "format": "plain-json", "start_from": "earliest"}],
                    "alerts": {"topic": self.alerts},
                    "checkpoint": {"interval_s": 0.2},
                    "http": {"host": "127.0.0.1", "port": 0},
                    "log": {"format": "json"},
                }
                | (settings or {})
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    verb = "run"
    """What the process is asked to do."""

    def start(self, **environment: str) -> Self:
        """Starts the process, with these variables besides those of this one."""
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "anomalyd", self.verb, "-c", str(self.config)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=os.environ | environment)
        return self

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The process that runs."""
        assert self._process is not None
        return self._process

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def reconfigure(self, **sections: object) -> None:
        """Replaces sections of the configuration file and sends SIGHUP."""
        self.config.write_text(json.dumps(json.loads(self.config.read_text()) | sections))
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL, also of a process that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def log(self) -> str:
        """Everything it wrote."""
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log with this event; the last one may not be written to its end yet."""
        whole = self.log().rpartition("\n")[0].splitlines()
        lines: Sequence[dict[str, Any]] = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP answer; status 0 while it does not listen."""
        listening = self.events("http_listening")
        if not listening:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{listening[-1]['port']}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels, or the one with these labels if they are given; None while there is none."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        rows = [line for line in lines if name in (line.rpartition(" ")[0], line.partition("{")[0].partition(" ")[0])]
        return sum(float(row.rpartition(" ")[2]) for row in rows) if rows else None

    def until_metric(self, name: str, value: float | None, timeout_s: float = 30.0) -> None:
        """Waits until a metric has this value: gauges are set each second at most, and counters follow a commit."""
        found: float | None = None

        def there() -> bool:
            nonlocal found
            found = self.metric(name)
            return found == value

        try:
            poll_until(there, name, timeout_s, 0.1)
        except AssertionError:
            raise AssertionError(f"{name} was {found}, not {value}, for {timeout_s:g} s; its log: {self.log()[-2000:]}") from None

    def until_ready(self, timeout_s: float = 60.0) -> None:
        """Waits for /readyz."""
        poll_until(lambda: self._alive() and self.get("/readyz")[0] == 200, f"readiness; its log: {self.log()[-2000:]}", timeout_s, 0.05)

    def until_read(self, records: int, timeout_s: float = 60.0) -> None:
        """Waits until so many records were read and none is left."""
        poll_until(
            lambda: (
                self._alive()
                and (self.metric("anomalyd_records_consumed_total") or 0) >= records
                and self.metric("anomalyd_consumer_lag_records") == 0
            ),
            f"{records} records; its log: {self.log()[-2000:]}",
            timeout_s,
            0.05,
        )

    def status(self) -> dict[str, Any]:
        """What /readyz says; empty while it does not listen."""
        body = self.get("/readyz")[1]
        found: dict[str, Any] = json.loads(body) if body else {}
        return found

    def position(self, partition: int = 0) -> codec.Position | None:
        """What it has committed of a partition, out of its changelog; None while there is nothing."""
        found = [r for r in read_committed(self.bootstrap, self.changelog) if r.partition == partition and r.key == codec.POSITION_KEY]
        position = codec.decode(codec.POSITION_KEY, found[-1].value or b"") if found else None
        assert position is None or isinstance(position, codec.Position)
        return position

    def until_committed(self, position: int, partition: int = 0, timeout_s: float = 60.0) -> codec.Position:
        """Waits until everything in front of an input offset is committed."""

        def there() -> codec.Position | None:
            found = self.position(partition)
            return found if found is not None and found.position >= position else None

        found = poll_until(there, f"position {position}; its log: {self.log()[-2000:]}", timeout_s, 0.2)
        assert found is not None
        return found

    def committed(self, partition: int = 0) -> int:
        """The group's position in the input; negative while there is none."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.group})
        try:
            return int(consumer.committed([TopicPartition(self.source, partition)], timeout=10)[0].offset)
        finally:
            consumer.close()

    def _alive(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}: {self.log()[-3000:]}"
        return True
