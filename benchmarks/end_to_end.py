"""The daemon's rate over a real Kafka, against the fastest thing that its client could do: a bare `getmany` loop.

    python benchmarks/end_to_end.py                      10,000 series, 1 sample a record
    python benchmarks/end_to_end.py --fields 5           5 samples a record
    python benchmarks/end_to_end.py --series 1000000 --records 3000000

Each run reads the same topic twice: a bare loop in its own process, then `anomalyd run` as a user starts it, commits and all. Rates are
taken between 10 % and 90 % of the records. Needs Java 17 and Maven, or --kafka HOST:PORT. Prints progress on stderr and one JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # noqa: E402  after the path

from tests.support.kafka import Cluster  # noqa: E402
from tests.support.topics import create_topic, unique  # noqa: E402

PARTITIONS: Final = 4
START_S: Final = 1_760_000_000
FIRST, LAST = 0.1, 0.9


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=2_000_000)
    options.add_argument("--series", type=int, default=10_000)
    options.add_argument("--fields", type=int, default=1, help="samples a record")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--kafka", metavar="HOST:PORT", help="instead of a broker of its own")
    chosen = options.parse_args()
    with broker(chosen.kafka) as address:
        topic = create_topic(address, unique("end-to-end"), PARTITIONS)
        asyncio.run(fill(address, topic, chosen.records, chosen.series, chosen.fields))
        runs = [one_run(address, topic, chosen) for _ in range(chosen.runs)]
    ratios = sorted(run["ratio"] for run in runs)
    print(
        json.dumps(
            {
                "records": chosen.records,
                "series": chosen.series,
                "samples_per_record": chosen.fields,
                "cores": os.cpu_count(),
                "ratio_min": ratios[0],
                "ratio_median": statistics.median(ratios),
                "ratio_max": ratios[-1],
                "samples_per_s_median": round(statistics.median(run["daemon_records_per_s"] for run in runs) * chosen.fields),
                "runs": runs,
            }
        )
    )


@contextlib.contextmanager
def broker(given: str | None) -> Iterator[str]:
    """The address of a real Kafka."""
    if given:
        yield given
    else:
        with Cluster() as cluster:
            yield cluster.bootstrap_servers


def one_run(address: str, topic: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Both loops over the topic."""
    arguments = [sys.executable, __file__, address, topic, str(chosen.records)]
    bare = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ | {BARE: "1"}).stdout)
    daemon = measure_daemon(address, topic, chosen.records, chosen.fields)
    run = {"ratio": round(daemon["records_per_s"] / bare["records_per_s"], 3)}
    run |= {f"bare_{key}": value for key, value in bare.items()} | {f"daemon_{key}": value for key, value in daemon.items()}
    print(json.dumps(run), file=sys.stderr)
    return run


# --- records ------------------------------------------------------------------------------------------------------


async def fill(address: str, topic: str, records: int, series: int, fields: int) -> None:
    """Writes records in Telegraf's JSON: series in turn, 10 s of event time a turn, a series always in the same partition."""
    began = time.perf_counter()
    draw = random.Random(3)
    levels = [draw.uniform(1, 1_000) for _ in range(series)]
    producer = AIOKafkaProducer(bootstrap_servers=address, max_batch_size=512 << 10, linger_ms=20)
    await producer.start()
    batches = [producer.create_batch() for _ in range(PARTITIONS)]
    for i in range(records):
        one = i % series
        level, partition = levels[one], one % PARTITIONS
        values = ",".join(f'"f{k}":{level * (1 + 0.05 * draw.gauss(0, 1)):.4f}' for k in range(fields))
        value = (
            f'{{"fields":{{{values}}},"name":"cpu","tags":{{"host":"h{one:07d}"}},"timestamp":{START_S + 10 * (i // series)}}}\n'.encode()
        )
        if batches[partition].append(key=None, value=value, timestamp=None) is None:
            batches[partition].close()
            await producer.send_batch(batches[partition], topic, partition=partition)
            batches[partition] = producer.create_batch()
            batches[partition].append(key=None, value=value, timestamp=None)
    for partition, batch in enumerate(batches):
        batch.close()
        await producer.send_batch(batch, topic, partition=partition)
    await producer.flush()
    await producer.stop()
    print(f"{records:,} records written in {time.perf_counter() - began:.0f} s", file=sys.stderr)


# --- the bare loop ------------------------------------------------------------------------------------------------

BARE: Final = "END_TO_END_BARE"


async def bare(address: str, topic: str, records: int) -> dict[str, float]:
    """Fetches and counts, nothing else."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=address,
        group_id=unique("bare"),
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 << 20,
        fetch_max_bytes=64 << 20,
    )
    await consumer.start()
    seen, began, seen_then, cpu_then = 0, 0.0, 0, 0.0
    while seen < LAST * records:
        seen += sum(map(len, (await consumer.getmany(timeout_ms=500, max_records=20_000)).values()))
        if not began and seen > FIRST * records:
            began, seen_then, cpu_then = time.perf_counter(), seen, time.process_time()
    figures = rates(seen - seen_then, time.perf_counter() - began, time.process_time() - cpu_then)
    await consumer.stop()
    return figures


def rates(records: float, seconds: float, cpu_s: float) -> dict[str, float]:
    """Records a second, and what one costs in processor time whoever else is busy on the machine."""
    return {"records_per_s": round(records / seconds), "cpu_us_per_record": round(cpu_s / records * 1e6, 2)}


# --- the daemon ---------------------------------------------------------------------------------------------------


def measure_daemon(address: str, topic: str, records: int, fields: int) -> dict[str, float]:
    """Starts `anomalyd run` and follows its own counters."""
    group = unique("end-to-end")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(
            json.dumps(  # JSON is YAML
                {
                    "kafka": {"bootstrap_servers": address, "group_id": group},
                    "streams": [{"name": "bench", "topics": [topic], "format": "telegraf-json", "start_from": "earliest"}],
                    "alerts": {"topic": f"{group}.alerts"},
                    "http": {"host": "127.0.0.1", "port": 0},
                    "log": {"format": "json"},
                }
            )
        )
        command = [sys.executable, "-m", "anomalyd"]
        subprocess.run([*command, "topics", "create", "-c", config], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        log = Path(folder, "log")
        with log.open("wb") as stderr:
            process = subprocess.Popen([*command, "run", "-c", config], stderr=stderr, cwd=ROOT)
        try:
            return follow(process, log, records * fields, fields)
        finally:
            process.terminate()
            process.wait(60)


def follow(process: subprocess.Popen[bytes], log: Path, samples: int, fields: int) -> dict[str, float]:
    """Rates between the first and the last time that the counter was seen to move inside the measured part."""
    seen: list[tuple[float, float, float]] = []
    address, rss = None, 0.0
    while not seen or seen[-1][1] < LAST * samples:
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended: {log.read_text()[-2000:]}")
        time.sleep(0.1)
        address = address or listening(log)
        metrics = scrape(address) if address else {}
        scored, cpu_s = metrics.get("anomalyd_samples_scored_total", 0.0), metrics.get("process_cpu_seconds_total", 0.0)
        rss = metrics.get("process_resident_memory_bytes", 0.0)
        if scored > FIRST * samples and (not seen or scored > seen[-1][1]):
            seen.append((time.perf_counter(), scored, cpu_s))
    (began, first, cpu_then), (ended, last, cpu_now) = seen[0], seen[-1]
    return rates((last - first) / fields, ended - began, cpu_now - cpu_then) | {"rss_mib": round(rss / 2**20)}


def listening(log: Path) -> str | None:
    """The address of the daemon's HTTP server, out of its log."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return next((f"http://127.0.0.1:{line['port']}/metrics" for line in lines if line["event"] == "http_listening"), None)


def scrape(address: str) -> dict[str, float]:
    """Unlabelled metrics."""
    text = urllib.request.urlopen(address, timeout=10).read().decode()  # noqa: S310  our own daemon
    return {name: float(value) for name, _, value in (line.partition(" ") for line in text.splitlines()) if "{" not in name and name != "#"}


if __name__ == "__main__":
    if BARE in os.environ:
        print(json.dumps(asyncio.run(bare(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
    else:
        main()
