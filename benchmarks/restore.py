"""How soon an instance that was killed works again, and what the changelog costs that makes it possible.

    python benchmarks/restore.py                                                 a million series, about ten minutes
    python benchmarks/restore.py --series 10000 --rate 2000 --turn 10            a quick try

The daemon learns all series from Kafka; then a load goes on that picks series at random, and a few of them have spikes, before, while and
after the daemon is killed (SIGKILL) and started again. Bytes in the changelog are counted by a consumer over one turn of pages and compared
with K (1 - exp(-lambda T / K)) / T times the bytes of a row: K series, lambda records a second, T seconds a turn. That formula is what each
changed row written once a turn would cost; K / T is what it costs to write all, which is the same where pages hold more series than stay
unchanged. Times count from the start of the new process. Needs Java 17 and Maven, or --kafka HOST:PORT. Prints progress on stderr, a table
and one JSON object.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

import numpy as np  # noqa: E402  after the path
from confluent_kafka import OFFSET_END, Consumer, KafkaError, Message, Producer, TopicPartition  # noqa: E402

from anomalyd.detector import Detector  # noqa: E402
from anomalyd.state import codec  # noqa: E402
from benchmarks.end_to_end import broker  # noqa: E402
from benchmarks.latency import PARTITIONS, Reader, metrics, tell, until_caught_up  # noqa: E402
from tests.support.topics import create_topic, unique  # noqa: E402

START_MS: Final = 1_700_000_000_000
STEP_MS: Final = 10_000
TURNS: Final = 3
"""Samples of each series before the load begins."""
PROBES: Final = 200
"""Series with a longer history, that have spikes."""
PROBE_TURNS: Final = 200
PROBE_EVERY_S: Final = 0.5
SPIKES_PER_S: Final = 5.0
SPIKE_SAMPLES: Final = 3
TEXTS: Final = [b"%.3f" % value for value in 100 * (1 + 0.05 * np.random.default_rng(3).standard_normal(64))]
GIVE_UP_S: Final = 900.0


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=1_000_000)
    options.add_argument("--rate", type=float, default=20_000.0, help="records a second of load")
    options.add_argument("--turn", type=float, default=60.0, metavar="SECONDS", help="state.turn_s")
    options.add_argument("--turns", type=float, default=2.0, help="of load before the kill; the last one is measured")
    options.add_argument("--static", action="store_true", help="a static member need not wait until the group notices that it died")
    options.add_argument("--kafka", metavar="HOST:PORT", help="instead of a broker of its own")
    chosen = options.parse_args()
    with broker(chosen.kafka) as address, tempfile.TemporaryDirectory() as folder:
        figures = measure(address, Path(folder), chosen)
    width = max(map(len, figures))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in figures.items()), file=sys.stderr)
    print(json.dumps(figures))


def measure(address: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Learn, load, kill, start."""
    topic = create_topic(address, unique("restore"), PARTITIONS)
    began = time.perf_counter()
    written = History(address, topic, chosen.series).write()
    tell(f"{written:,} records written in {time.perf_counter() - began:.0f} s")
    rig = Rig(address, topic, folder, chosen)
    spawn = multiprocessing.get_context("spawn")
    enough = spawn.Event()
    load = spawn.Process(target=steady, args=(enough, address, topic, chosen.series, chosen.rate))
    try:
        rig.start()
        until_caught_up(rig.process, rig.log, GIVE_UP_S)
        tell(f"learned {metrics(rig.log)['anomalyd_series']:,.0f} series")
        load.start()
        with Reader(address, rig.alerts) as reader:
            rig.go_on(chosen.turn * max(0.0, chosen.turns - 1))
            changelog = under_load(rig, address, chosen)
            until(lambda: len(reader.seen) > 0, "an alert before the kill", 60)
            recovery = kill_and_start(rig, reader)
    finally:
        enough.set()
        if load.pid is not None:
            load.join(60)
            load.kill()
        rig.end()
    return {
        "series": chosen.series,
        "turn_s": chosen.turn,
        "cores": os.cpu_count(),
        "static_member": chosen.static,
        **changelog,
        **recovery,
    }


def under_load(rig: "Rig", address: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One turn: records, and what they make the daemon write."""
    with Meter(address, rig.changelog) as meter:
        before, began = metrics(rig.log), time.perf_counter()
        rig.go_on(chosen.turn)
        after, seconds = metrics(rig.log), time.perf_counter() - began
    rate = (after["anomalyd_records_consumed_total"] - before["anomalyd_records_consumed_total"]) / seconds
    series, row = after["anomalyd_series"], Detector.load(device="cpu").new_pages(1).layout.row_bytes
    changed = series * (1 - math.exp(-rate * chosen.turn / series)) / chosen.turn
    return {
        "load_records_per_s": round(rate),
        "lag_records": round(after["anomalyd_consumer_lag_records"]),
        "changelog_bytes_per_s": round(sum(meter.bytes.values()) / seconds),
        "changelog_bytes_per_s_by_kind": {kind: round(size / seconds) for kind, size in sorted(meter.bytes.items())},
        "formula_changed_rows_bytes_per_s": round(changed * row),
        "formula_all_rows_bytes_per_s": round(series / chosen.turn * row),
        "row_bytes": row,
        "bytes_per_row_in_pages": round(meter.page_bytes / max(1, meter.page_rows), 1),
    }


def kill_and_start(rig: "Rig", reader: Reader) -> dict[str, Any]:
    """From SIGKILL until alerts come again."""
    rig.kill()
    killed = time.time()
    rig.start()
    started = time.time()
    done: dict[str, float] = {}
    known: set[tuple[int, int]] | None = None
    deadline = time.monotonic() + GIVE_UP_S
    while len(done) < 3:
        if rig.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"no recovery, but {done}: {rig.log.read_text()[-2000:]}")
        time.sleep(0.02)
        now = time.time()
        if known is None:
            # What the old process had committed is read by now, and the new one can't have come so far.
            known = set(reader.seen) if now - started > 1 else None
        elif "alert" not in done and (new := [at for place, at in reader.seen.copy().items() if place not in known]):
            done["alert"] = min(new)
        restored = rig.events("partition_restored")
        if len(restored) >= PARTITIONS:
            done.setdefault("restored", when(restored[-1]))
            if "replayed" not in done and metrics(rig.log).get("anomalyd_replay_remaining_records") == 0:
                done["replayed"] = time.time()
    restored, assigned = rig.events("partition_restored"), rig.events("partitions_assigned")
    replayed, pages = sum(event["replay"] for event in restored), sum(event["pages"] for event in restored)
    # A partition is replayed as soon as it is restored.
    replay_s = max(1e-3, done["replayed"] - when(restored[0]))
    return {
        "start_to_assigned_s": round(when(assigned[0]) - started, 2),
        "start_to_restored_s": round(done["restored"] - started, 2),
        "assigned_to_restored_s": round(done["restored"] - when(assigned[0]), 2),
        "start_to_replayed_s": round(done["replayed"] - started, 2),
        "start_to_alert_s": round(done["alert"] - started, 2),
        "kill_to_alert_s": round(done["alert"] - killed, 2),
        "pages_read": pages,
        "series_restored": sum(event["series"] for event in restored),
        "replayed_records": replayed,
        "replayed_records_per_s": round(replayed / replay_s),
    }


def when(event: dict[str, Any]) -> float:
    """The time of a line of the log."""
    return datetime.fromisoformat(event["time"]).timestamp()


def until(condition: Any, what: str, timeout_s: float) -> None:  # noqa: ANN401  a function of whatever is true
    """Waits."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.1)


# --- records ------------------------------------------------------------------------------------------------------


class _Writer:
    """Records of plain-json into the partition of their series."""

    def __init__(self, address: str, topic: str, series: int) -> None:
        self.series = series
        self.probes = min(PROBES, series)
        self._topic = topic
        self._refused: list[KafkaError] = []
        self._producer = Producer(
            {"bootstrap.servers": address, "linger.ms": 5, "batch.size": 512 << 10, "queue.buffering.max.messages": 500_000}
        )

    def sample(self, one: int, time_ms: int, text: bytes) -> None:
        """One sample of a series; those before the first ordinary one are probes."""
        record = b'{"name":"cpu","tags":{"host":"host-%07d"},"value":%b,"ts":%d}' % (one, text, time_ms)
        while True:
            try:
                self._producer.produce(self._topic, record, partition=one % PARTITIONS, on_delivery=self._acknowledged)
                return
            except BufferError:  # the local queue is full: let deliveries drain
                self.poll(0.05)

    def poll(self, seconds: float = 0.0) -> None:
        """Lets acknowledgements come in."""
        self._producer.poll(seconds)

    def finish(self) -> None:
        """Waits for the acknowledgements."""
        left = self._producer.flush(120)
        if left or self._refused:
            raise SystemExit(f"{left} records not acknowledged; {self._refused[:1]}")

    def _acknowledged(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._refused.append(error)


class History(_Writer):
    """What the daemon learns first."""

    def write(self) -> int:
        """Writes it; returns the number of records."""
        draw = np.random.default_rng(7)
        for turn in range(PROBE_TURNS):
            for probe in range(self.probes):
                self.sample(probe, START_MS + STEP_MS * turn, TEXTS[draw.integers(len(TEXTS))])
        for turn in range(TURNS):
            texts = draw.integers(0, len(TEXTS), self.series).tolist()
            for one in range(self.probes, self.series):
                self.sample(one, START_MS + STEP_MS * turn, TEXTS[texts[one]])
        self.finish()
        return PROBE_TURNS * self.probes + TURNS * (self.series - self.probes)


def steady(enough: Event, address: str, topic: str, series: int, rate: float) -> None:
    """The load, in a process of its own, until `enough`: series at random, and probes in turn, some of which have a spike."""
    writer, draw = _Writer(address, topic, series), np.random.default_rng(11)
    ordinary, probes = random_series(writer, draw), probe_samples(writer, draw)
    began, sent, probed = time.monotonic(), 0, 0
    while not enough.is_set():
        elapsed = time.monotonic() - began
        while probed < elapsed * writer.probes / PROBE_EVERY_S:
            next(probes)
            probed += 1
        while sent < elapsed * rate:
            next(ordinary)
            sent += 1
            if sent % 1_000 == 0:
                writer.poll()
        writer.poll()
        time.sleep(0.01)
    writer.finish()


def random_series(writer: _Writer, draw: np.random.Generator) -> Iterator[None]:
    """Writes a sample of a series picked at random at each step. All together take ten seconds of event time for as many as there are."""
    time_ms, step = float(START_MS + STEP_MS * TURNS), STEP_MS / writer.series
    while True:
        chosen = draw.integers(min(writer.probes, writer.series - 1), writer.series, 10_000).tolist()
        for one, text in zip(chosen, draw.integers(0, len(TEXTS), len(chosen)).tolist(), strict=True):
            writer.sample(one, int(time_ms), TEXTS[text])
            time_ms += step
            yield


def probe_samples(writer: _Writer, draw: np.random.Generator) -> Iterator[None]:
    """Writes a sample of the next probe at each step."""
    spiking: dict[int, int] = {}
    chance = SPIKES_PER_S * PROBE_EVERY_S / writer.probes
    for turn in range(PROBE_TURNS, 1 << 40):
        for probe in range(writer.probes):
            if probe not in spiking and draw.random() < chance:
                spiking[probe] = SPIKE_SAMPLES + 12  # and then it rests, so that its alert is resolved
            high = spiking.get(probe, 0) > 12
            if probe in spiking:
                spiking[probe] -= 1
                if not spiking[probe]:
                    del spiking[probe]
            writer.sample(probe, START_MS + STEP_MS * turn, b"300.0" if high else TEXTS[draw.integers(len(TEXTS))])
            yield


# --- the daemon ---------------------------------------------------------------------------------------------------


class Rig:
    """`anomalyd run` with topics of its own, started as often as needed, each time with a new log."""

    def __init__(self, address: str, topic: str, folder: Path, chosen: argparse.Namespace) -> None:
        group = unique("restore")
        self.alerts = f"{group}.alerts"
        self.changelog = f"{group}-state-{topic}"
        self._folder = folder
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "config.yaml"
        self._config.write_text(
            json.dumps(  # JSON is YAML
                {
                    "kafka": {"bootstrap_servers": address, "group_id": group} | ({"group_instance_id": "one"} if chosen.static else {}),
                    "streams": [{"name": "bench", "topics": [topic], "format": "plain-json", "start_from": "earliest"}],
                    "alerts": {"topic": self.alerts},
                    "http": {"host": "127.0.0.1", "port": 0},
                    "log": {"format": "json"},
                    "state": {"turn_s": chosen.turn},
                    "max_series": 2 * chosen.series + 1_000,
                }
            )
        )
        if self._run("topics", "create").wait(60):
            raise SystemExit(self.log.read_text())

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The one that runs."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    @property
    def log(self) -> Path:
        """Of the last start."""
        return self._folder / f"{self._starts}.log"

    def start(self) -> None:
        """Starts it."""
        self._starts += 1
        self._process = self._run("run")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def end(self) -> None:
        """SIGKILL, if anything runs."""
        if self._process is not None:
            self.kill()

    def go_on(self, seconds: float) -> None:
        """Lets it work."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"the daemon ended: {self.log.read_text()[-2000:]}")
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log, the last of which may not be whole yet."""
        lines = (json.loads(line) for line in self.log.read_text().rpartition("\n")[0].splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]

    def _run(self, *words: str) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as stderr:
            command = [sys.executable, "-m", "anomalyd", *words, "-c", str(self._config)]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT)


class Meter:
    """Counts what is committed to a changelog from `with` to its end, by kind of record."""

    def __init__(self, address: str, topic: str) -> None:
        self.bytes: Counter[str] = Counter()
        """Keys and values, before compression and without what Kafka adds."""
        self.page_bytes = self.page_rows = 0
        """Of some of the pages."""
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": unique("meter"),
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in range(PARTITIONS)])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> Self:
        self._consumer.poll(5.0)  # positions are looked up now, not when the first record is asked for
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def _count(self) -> None:
        pages = 0
        while not self._over.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            key, value = message.key() or b"", message.value() or b""
            self.bytes[key[:1].decode()] += len(key) + len(value)
            if key.startswith(b"S"):
                pages += 1
                if pages % 20 == 1:
                    self.page_bytes += len(key) + len(value)
                    page = codec.decode(key, value)
                    self.page_rows += len(page.keys) if isinstance(page, codec.Page) else 0


if __name__ == "__main__":
    main()
