"""What scores cost a daemon that hands them out, in microseconds a sample and thread.

    python benchmarks/scores.py                          50,000 series; `--series`, `--kafka HOST:PORT` for the way into a topic, too

`off`: the engine of one partition, as the daemon runs it, without scores. `chosen_1_percent`, `topic` and `remote`: what is added to that
where messages of one series in a hundred are wanted, those of all, or columns of all for remote write; all in the worker. `encode`: a
request of remote write out of those columns, in a thread of its own. `send`: a message into a transaction of a broker, on the event loop.
Best of five, which take turns.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

from anomalyd.batch import Points, Source  # noqa: E402  after the path
from anomalyd.detector import Detector  # noqa: E402
from anomalyd.formats import make_decoder  # noqa: E402
from anomalyd.kafka.message import Message  # noqa: E402
from anomalyd.kafka.transactions import TransactionalWriter  # noqa: E402
from anomalyd.remote.series import Names, Requests  # noqa: E402
from anomalyd.selection import Selection  # noqa: E402
from anomalyd.settings import KafkaSettings  # noqa: E402
from anomalyd.shard import Shard, StreamPlan  # noqa: E402
from anomalyd.shard_scores import ScorePlan  # noqa: E402
from anomalyd.telemetry.metrics import Metrics  # noqa: E402

START_S: Final = 1_760_000_000
BATCH: Final = 2_000
ROUNDS: Final = 4


class Record(NamedTuple):
    """A record as the consumer hands it over."""

    value: bytes
    offset: int
    timestamp: int = 0
    key: bytes | None = None


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=50_000)
    options.add_argument("--kafka", metavar="HOST:PORT")
    given = options.parse_args()
    detector, everything = Detector.load(device="cpu"), Selection()
    plans = {
        "off": None,
        "chosen_1_percent": ScorePlan(Selection(['{host=~"web-.*00"}'])),
        "topic": ScorePlan(everything),
        "remote": ScorePlan(remote=everything),
    }
    took: dict[str, float] = dict.fromkeys(plans, math.inf)
    messages: list[tuple[bytes, bytes]] = []
    points: list[Points] = []
    for _ in range(5):
        for name, plan in plans.items():
            shard = Shard(StreamPlan("bench"), Source("m", 0), detector, make_decoder("plain-json"), 2 * given.series, scores=plan)
            work = list(batches(given.series))
            for batch in work[: len(work) // ROUNDS]:
                shard.process(batch)  # every series is new, which costs more than scores
            began = time.process_time()
            outcomes = [shard.process(batch) for batch in work[len(work) // ROUNDS :]]
            took[name] = min(took[name], 1e6 * (time.process_time() - began) / sum(outcome.samples for outcome in outcomes))
            messages = [message for outcome in outcomes for message in outcome.scores] if name == "topic" else messages
            points = [point for outcome in outcomes for point in outcome.points] if name == "remote" else points
    figures = {name: round(value - (took["off"] if name != "off" else 0), 2) for name, value in took.items()}
    figures["encode"] = encode(points)
    if given.kafka:
        figures["send"] = asyncio.run(send(given.kafka, messages[:50_000]))
    print(json.dumps(figures | {"message_bytes": round(sum(len(key) + len(value) for key, value in messages) / len(messages))}))


def batches(series: int) -> Iterator[list[Record]]:
    """Some samples of each series."""
    for i in range(ROUNDS):
        for start in range(0, series, BATCH):
            yield [Record(plain(one, i), i * series + one) for one in range(start, min(start + BATCH, series))]


def plain(one: int, i: int) -> bytes:
    """A record with one sample."""
    return b'{"name": "cpu.usage_user", "ts": %d, "value": %d.5, "tags": {"host": "web-%06d"}}' % (START_S + 10 * i, one % 97, one)


def encode(points: Sequence[Points]) -> float:
    """Microseconds a sample for requests."""
    times = []
    for _ in range(3):
        requests = Requests(Names(), {})
        requests.make(points[: len(points) // 3])  # labels are encoded once
        rest = points[len(points) // 3 :]
        began = time.process_time()
        for one in rest:
            requests.make([one])
        times.append((time.process_time() - began) / sum(map(len, rest)))
    return round(1e6 * min(times), 2)


async def send(servers: str, messages: Sequence[tuple[bytes, bytes]]) -> float:
    """Microseconds a message for transactions of some thousand."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: PLC0415  only here

    name = f"bench-scores-{time.time_ns()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1)])
    await admin.close()
    writer = TransactionalWriter(KafkaSettings(bootstrap_servers=servers), name, name, 0, Metrics())
    await writer.open()
    times = []
    for _ in range(3):
        began = time.process_time()
        for start in range(0, len(messages), 10_000):
            batch = [Message(name, 0, key, value, kind="score") for key, value in messages[start : start + 10_000]]
            await writer.commit(batch, [])
        times.append((time.process_time() - began) / len(messages))
    await writer.close()
    return round(1e6 * min(times), 2)


if __name__ == "__main__":
    main()
