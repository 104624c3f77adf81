"""From a record being produced to its alert being read by a read_committed consumer, while the daemon works at half of its rate.

    python benchmarks/latency.py                          10,000 series, one minute
    python benchmarks/latency.py --series 500 --seconds 20 --warm-up 300      a quick try

The daemon first catches up with a history, which gives its end-to-end rate on this machine; then the load goes on at half of it, and a few
series after another have a spike. Every alert whose record is part of a spike counts. The load is made by a process of its own on the
same machine. Needs Java 17 and Maven, or --kafka HOST:PORT. Prints progress on stderr, a table and one JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

import numpy as np  # noqa: E402  after the path
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition  # noqa: E402

from benchmarks.end_to_end import broker, follow, listening  # noqa: E402
from tests.support.topics import create_topic, unique  # noqa: E402

PARTITIONS: Final = 4
START_S: Final = 1_700_000_000
SPIKE_SAMPLES: Final = 3
SPIKE: Final = 3.0
"""Times the level; the noise is a twentieth of it."""
TICK_S: Final = 0.01
TEXTS: Final = 64

Place = tuple[int, int]
"""Partition and offset of a record."""


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=10_000)
    options.add_argument("--warm-up", type=int, default=150, help="samples of each series before the load begins")
    options.add_argument("--seconds", type=float, default=60.0, help="of load")
    options.add_argument("--load", type=float, default=0.5, help="of the rate that the daemon reached")
    options.add_argument("--rate", type=float, help="records a second, instead of a part of what was reached")
    options.add_argument("--alerts", type=float, default=20.0, metavar="N", help="series that begin a spike, a second")
    options.add_argument("--delivery", choices=["exactly-once", "at-least-once"], default="exactly-once")
    options.add_argument("--kafka", metavar="HOST:PORT", help="instead of a broker of its own")
    chosen = options.parse_args()
    with broker(chosen.kafka) as address:
        figures = measure(address, chosen)
    width = max(map(len, figures))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in figures.items()), file=sys.stderr)
    print(json.dumps(figures))


def measure(address: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """History, then load."""
    topic = create_topic(address, unique("latency"), PARTITIONS)
    history = chosen.series * chosen.warm_up
    began = time.perf_counter()
    Load(address, topic, chosen.series).history(chosen.warm_up)
    tell(f"{history:,} records written in {time.perf_counter() - began:.0f} s")
    with daemon(address, topic, chosen.delivery) as (process, log, group):
        reached = follow(process, log, history, 1)["records_per_s"]
        until_caught_up(process, log)
        rate = chosen.rate or chosen.load * reached
        tell(f"caught up at {reached:,.0f} records/s; {rate:,.0f} for {chosen.seconds:g} s")
        with Reader(address, f"{group}.alerts") as reader:
            answers: multiprocessing.Queue[tuple[dict[Place, float], int]] = multiprocessing.get_context("spawn").Queue()
            arguments = (answers, address, topic, chosen.series, chosen.warm_up, rate, chosen.seconds, chosen.alerts)
            load = multiprocessing.get_context("spawn").Process(target=steady, args=arguments)
            load.start()
            try:
                spikes, sent = answers.get(timeout=chosen.seconds + 120)
            finally:
                load.join(10)
                load.kill()
            lag = metrics(log)["anomalyd_consumer_lag_records"]
            until_caught_up(process, log)
        seen = reader.seen
    seconds = sorted(seen[place] - produced for place, produced in spikes.items() if place in seen)
    if not seconds:
        raise SystemExit("no spike became an alert; give them more --warm-up")
    return {
        "series": chosen.series,
        "delivery": chosen.delivery,
        "cores": os.cpu_count(),
        "end_to_end_records_per_s": reached,
        "load_records_per_s": round(sent / chosen.seconds),
        "lag_at_the_end": round(lag),
        "alerts": len(seconds),
        **{f"p{part}_ms": round(1_000 * float(np.percentile(seconds, part)), 1) for part in (50, 90, 99)},
        "max_ms": round(1_000 * seconds[-1], 1),
    }


# --- the load -----------------------------------------------------------------------------------------------------


class Load:
    """Writes samples of the series in turn, ten seconds of event time a turn; prepared so that one costs little."""

    def __init__(self, address: str, topic: str, series: int, turn: int = 0) -> None:
        draw = np.random.default_rng(3)
        self.refused: list[KafkaError] = []
        self._topic = topic
        self._series = series
        self._turn = turn
        self._levels = draw.uniform(1, 1_000, series).tolist()
        noise = 1 + 0.05 * draw.standard_normal(TEXTS)
        self._heads = [b'{"name":"cpu","tags":{"host":"h%07d"},"value":' % one for one in range(series)]
        self._texts = [[b"%.4f" % (level * part) for part in noise] for level in self._levels]
        self._draw = draw
        self.producer = Producer(
            {"bootstrap.servers": address, "linger.ms": 5, "batch.size": 512 << 10, "queue.buffering.max.messages": 500_000}
        )

    def history(self, turns: int) -> None:
        """So many samples of each series, as fast as it goes."""
        for _ in range(turns):
            for partition, record, _spike in self.turn({}):
                self.write(partition, record, self.acknowledged)
        self.finish()

    def turn(self, spiking: dict[int, int]) -> Iterator[tuple[int, bytes, bool]]:
        """One sample of each series: partition, record, whether it is part of a spike.

        Args:
            spiking: series to samples that its spike still lasts; counted down here.
        """
        tail = b',"ts":%d}' % (START_S + 10 * self._turn)
        texts = self._draw.integers(0, TEXTS, self._series).tolist()
        self._turn += 1
        for one, (head, text) in enumerate(zip(self._heads, texts, strict=True)):
            if one in spiking:
                spiking[one] -= 1
                if not spiking[one]:
                    del spiking[one]
                yield one % PARTITIONS, b"%b%.4f%b" % (head, SPIKE * self._levels[one], tail), True
            else:
                yield one % PARTITIONS, head + self._texts[one][text] + tail, False

    def write(self, partition: int, record: bytes, acknowledged: Callable[[KafkaError | None, Message], None]) -> None:
        """Hands a record to the producer."""
        while True:
            try:
                self.producer.produce(self._topic, record, partition=partition, on_delivery=acknowledged)
                return
            except BufferError:  # the local queue is full: let deliveries drain
                self.producer.poll(0.05)

    def finish(self) -> None:
        """Waits for the acknowledgements."""
        left = self.producer.flush(120)
        if left or self.refused:
            raise SystemExit(f"{left} records not acknowledged; {self.refused[:1]}")

    def acknowledged(self, error: KafkaError | None, _: Message) -> None:
        """Called for each record."""
        if error is not None:
            self.refused.append(error)


def noted(produced: dict[Place, float], now: float) -> Callable[[KafkaError | None, Message], None]:
    """Notes where a record went that was produced now."""

    def acknowledged(error: KafkaError | None, message: Message) -> None:
        if error is None:
            produced[message.partition() or 0, message.offset() or 0] = now

    return acknowledged


def steady(
    answers: "multiprocessing.Queue[tuple[dict[Place, float], int]]",
    address: str,
    topic: str,
    series: int,
    turn: int,
    rate: float,
    seconds: float,
    alerts: float,
) -> None:
    """The load, in a process of its own: answers with the spikes' records and how many records there were."""
    load, draw = Load(address, topic, series, turn), np.random.default_rng(5)
    spiking: dict[int, int] = {}
    produced: dict[Place, float] = {}
    rested = dict.fromkeys(range(series), 0.0)
    began, sent, begun = time.monotonic(), 0, 0
    records: Iterator[tuple[int, bytes, bool]] = iter(())
    while (elapsed := time.monotonic() - began) < seconds:
        while begun < alerts * elapsed:
            begun += 1
            one = int(draw.integers(series))
            # A series that alerts already would only go on to do so.
            if one not in spiking and rested[one] <= elapsed:
                spiking[one], rested[one] = SPIKE_SAMPLES, elapsed + max(5.0, 60 * series / rate)
        while sent < rate * elapsed:
            record = next(records, None)
            if record is None:
                records = load.turn(spiking)
                continue
            load.write(record[0], record[1], noted(produced, time.time()) if record[2] else load.acknowledged)
            sent += 1
        load.producer.poll(0)
        time.sleep(TICK_S)
    load.finish()
    answers.put((produced, sent))


# --- the daemon and its reader ------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon(address: str, topic: str, delivery: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path, str]]:
    """`anomalyd run` with topics of its own: process, log, group."""
    group, command = unique("latency"), [sys.executable, "-m", "anomalyd"]
    settings = {
        "kafka": {"bootstrap_servers": address, "group_id": group},
        "streams": [{"name": "bench", "topics": [topic], "format": "plain-json", "start_from": "earliest"}],
        "alerts": {"topic": f"{group}.alerts"},
        "http": {"host": "127.0.0.1", "port": 0},
        "log": {"format": "json"},
        "delivery": delivery,
    }
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "log")
        config.write_text(json.dumps(settings))  # JSON is YAML
        subprocess.run([*command, "topics", "create", "-c", config], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        with log.open("wb") as stderr:
            process = subprocess.Popen([*command, "run", "-c", config], stderr=stderr, cwd=ROOT)
        try:
            yield process, log, group
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def metrics(log: Path) -> dict[str, float]:
    """The daemon's metrics, added up over their labels. Empty while it does not listen."""
    address, found = listening(log), dict[str, float]()
    if address is not None:
        for line in urllib.request.urlopen(address, timeout=10).read().decode().splitlines():  # noqa: S310  our own daemon
            if not line.startswith("#"):
                name, value = line.partition("{")[0].partition(" ")[0], line.rpartition(" ")[2]
                found[name] = found.get(name, 0.0) + float(value)
    return found


def until_caught_up(process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 600.0) -> None:
    """Waits until nothing is left to be read."""
    deadline = time.monotonic() + timeout_s
    while metrics(log).get("anomalyd_consumer_lag_records") != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the daemon does not catch up: {log.read_text()[-2000:]}")
        time.sleep(0.2)


class Reader:
    """Reads alerts as a user would, from `with` to its end, and notes when the alert about a record is there."""

    def __init__(self, address: str, topic: str) -> None:
        self.seen: dict[Place, float] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": unique("reader"),
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._over.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                now = time.time()
                source = json.loads(message.value() or b"")["source"]
                self.seen.setdefault((source["partition"], source["offset"]), now)


def tell(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
