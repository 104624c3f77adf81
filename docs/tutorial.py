# ruff: noqa: INP001, T201  a script, not a package; what it prints is what it is for
"""What the tutorial has beside anomalyd itself: a metric with known incidents, a broker, and a hand to send and to read with.

python docs/tutorial.py metric FOLDER              writes past.csv, later.csv, and both as labelled/orders.csv
python docs/tutorial.py broker FILE TOPIC...       a broker inside this process; its address goes to FILE
python docs/tutorial.py send BROKER TOPIC CSV...   the rows as plain JSON records
python docs/tutorial.py alerts BROKER TOPIC N      prints N messages
"""

import csv
import json
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from anomalyd.demo.broker import PARTITIONS, EmbeddedBroker

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
STEP = timedelta(minutes=5)
DAY = timedelta(days=1) // STEP
PAST, LATER = 14 * DAY, 5 * DAY
INCIDENTS = ((1.5, 12, -0.9), (3.0, 12, 1.5), (4.25, 24, -0.6))
"""In later.csv: on which day, for how many rows, and what part of the usual value is added."""
WAIT_S = 60


def metric(folder: str) -> None:
    """Orders per minute in a shop: busy by day, quiet by night and on Sundays."""
    rng = np.random.default_rng(7)
    rows = np.arange(PAST + LATER)
    day = rows / DAY
    usual = 30 + 70 * np.exp(-0.5 * (((day % 1.0) - 0.6) / 0.15) ** 2) * np.where(day % 7 >= 6, 0.6, 1.0)
    noise = np.zeros(len(rows))
    for i in rows[1:]:
        noise[i] = 0.6 * noise[i - 1] + rng.normal(0, 2.0)
    value, label = usual + noise, np.zeros(len(rows), int)
    for on_day, length, part in INCIDENTS:
        first = PAST + round(on_day * DAY)
        value[first : first + length] += part * usual[first : first + length]
        label[first : first + length] = 1
    (Path(folder) / "labelled").mkdir(parents=True, exist_ok=True)
    for name, here in (("past", slice(0, PAST)), ("later", slice(PAST, None)), ("labelled/orders", slice(None))):
        with (Path(folder) / f"{name}.csv").open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["timestamp", "orders", "label"])
            for row, v, truth in zip(rows[here].tolist(), value[here].tolist(), label[here].tolist(), strict=True):
                writer.writerow([(BEGIN + row * STEP).isoformat(), f"{max(v, 0.0):.2f}", truth])


def broker(file: str, *topics: str) -> None:
    """Runs until SIGTERM. The topics come into being when they are asked for."""
    with EmbeddedBroker() as embedded:
        admin = AdminClient({"bootstrap.servers": embedded.bootstrap_servers})
        for topic in topics:
            admin.list_topics(topic, timeout=10)
        Path(file).write_text(embedded.bootstrap_servers)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


def send(address: str, topic: str, *paths: str) -> None:
    """A record for each row, in order; the key keeps the series in one partition."""
    producer = Producer({"bootstrap.servers": address})
    for path in paths:
        with Path(path).open(newline="") as opened:
            for row in csv.DictReader(opened):
                record = {"name": "orders", "ts": row["timestamp"], "value": float(row["orders"]), "tags": {"shop": "main"}}
                producer.produce(topic, json.dumps(record), key="main")
                producer.poll(0)
    if producer.flush(WAIT_S):
        sys.exit("not all records were delivered")


def alerts(address: str, topic: str, count: str) -> None:
    """Messages as they come."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "tutorial-reader", "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    for _ in range(int(count)):
        got = consumer.consume(1, timeout=WAIT_S)
        if not got:
            sys.exit(f"no alert within {WAIT_S} s")
        told = json.loads(got[0].value() or b"")
        print(told["event_time"], told["status"], told["annotations"]["summary"], f"(model {told['model']['name']})")
    consumer.close()


if __name__ == "__main__":
    commands = {"metric": metric, "broker": broker, "send": send, "alerts": alerts}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
