"""The input of a chaos run: a fleet with incidents and bad records, the same for the same seed, and a feeder that writes it steadily.

Event time runs half an hour a step, so that a week, after which a silent series expires, passes in some minutes of the run.
"""

import json
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
from confluent_kafka import KafkaError, Message, Producer

START_S: Final = 1_700_000_000
STEP_S: Final = 1_800
POISON: Final = 0.001
"""Bad records, as part of all."""
WARM_UP: Final = 120
"""Steps before the first incident of a series."""
LIFE: Final = 150
"""Steps that a mortal series lives; its successor has another name."""

_BAD: Final = (b'{"bad": %d', b"\xff\xfe %d", b'{"name": 5, "value": %d}', b'{"name": "load", "ts": "soon", "value": %d}')


class Fed(NamedTuple):
    """A record of the input."""

    partition: int
    key: bytes
    value: bytes
    bad: bool


class Fleet:
    """Series in turn, each always in the same partition.

    Some are mortal: few in even partitions, where they expire after a week of silence, and many in odd ones, where they make each other
    room before (see `most_series`).
    """

    def __init__(self, series: int, partitions: int, seed: int) -> None:
        self.series = series
        self.partitions = partitions
        self._seed = seed

    @property
    def most_series(self) -> int:
        """What `max_series` has to be for evictions in odd partitions and none in even ones."""
        each = -(-self.series // self.partitions)
        return self.partitions * (each + max(4, each // 3))

    def records(self) -> Iterator[Fed]:
        """All records, without end."""
        draw = np.random.default_rng(self._seed)
        n = self.series
        level, noise = 10 ** draw.uniform(0, 3, n), draw.uniform(0.01, 0.05, n)
        period, phase, swing = draw.choice([48, 96, 336], n), draw.random(n), draw.uniform(0, 0.3, n)
        begins, ends, size = WARM_UP + draw.integers(0, 200, n), np.zeros(n, np.int64), np.zeros(n)
        ends[:] = begins
        place = np.arange(n) // self.partitions
        mortal = np.where(np.arange(n) % self.partitions % 2 == 0, place % 12 == 5, place % 3 == 1)
        bad = 0
        for step in range(1 << 40):
            over = step >= ends
            begins[over] = step + draw.integers(60, 400, over.sum()) if step >= WARM_UP else begins[over]
            ends[over] = begins[over] + draw.integers(3, 25, over.sum())
            size[over] = draw.choice([-1.0, 1.0], over.sum()) * draw.uniform(12, 25, over.sum())
            hit = (step >= begins) & (step < ends)
            value = level * (1 + swing * np.sin(2 * np.pi * (step / period + phase)) + noise * (draw.standard_normal(n) + size * hit))
            poisoned = draw.random(n) < POISON
            for one in range(n):
                partition = one % self.partitions
                if poisoned[one]:
                    yield Fed(partition, b"bad-%d" % bad, _BAD[bad % len(_BAD)] % bad, bad=True)
                    bad += 1
                host = f"h{one:04d}-{(step + 7 * one) // LIFE}" if mortal[one] else f"h{one:04d}"
                sample = {"name": "load", "ts": START_S + STEP_S * step, "value": round(float(value[one]), 6), "tags": {"host": host}}
                yield Fed(partition, host.encode(), json.dumps(sample).encode(), bad=False)


class Feeder:
    """Writes a fleet to a topic from `with` to its end, a given number of records a second; `finish` writes the rest as fast as it goes.

    The last record of every partition is a bad one: once its dead letter is readable, everything in front of it is done.
    """

    def __init__(self, bootstrap: str, topic: str, fleet: Fleet, *, rate: float, at_least: int) -> None:
        self.bad: dict[tuple[int, int], bytes] = {}
        """Bad records that were acknowledged: partition and offset, value."""
        self.last: dict[int, bytes] = {}
        """Value of the last record of each partition, once all is written."""
        self.fed = 0
        self._topic = topic
        self._fleet = fleet
        self._rate = rate
        self._at_least = at_least
        self._failed: list[KafkaError] = []
        self._finishing, self._given_up = threading.Event(), threading.Event()
        # Brokers are killed under it: what it was told to write it writes, once and in order, however long that takes.
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "message.timeout.ms": 300_000, "linger.ms": 5, "log_level": 0}
        )
        self._thread = threading.Thread(target=self._feed, name="feeder")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._given_up.set()
        self._thread.join()

    def finish(self, timeout_s: float = 600.0) -> None:
        """Writes what is left to be written, and waits until all is acknowledged."""
        self._finishing.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the feeder needs longer than {timeout_s:g} s"
        assert not self._failed, f"records refused: {self._failed[0]}"

    @property
    def alive(self) -> bool:
        """Whether it still writes."""
        return self._thread.is_alive()

    def _feed(self) -> None:
        began = time.monotonic()
        for record in self._fleet.records():
            if self._finishing.is_set():
                if self.fed >= self._at_least:
                    break
            elif (ahead := self.fed / self._rate - (time.monotonic() - began)) > 0:
                self._finishing.wait(ahead)
            if self._given_up.is_set():
                return
            self._write(record)
        for partition in range(self._fleet.partitions):
            self.last[partition] = b'{"last": %d' % partition
            self._write(Fed(partition, b"last", self.last[partition], bad=True))
        self._producer.flush(300)

    def _write(self, record: Fed) -> None:
        while not self._given_up.is_set():
            try:
                acknowledged = self._acknowledged if record.bad else self._good
                self._producer.produce(self._topic, record.value, record.key, record.partition, on_delivery=acknowledged)
                break
            except BufferError:  # the local queue is full: let deliveries drain
                self._producer.poll(0.1)
        self._producer.poll(0)
        self.fed += 1

    def _acknowledged(self, error: KafkaError | None, message: Message) -> None:
        self._good(error, message)
        if error is None:
            self.bad[message.partition() or 0, message.offset() or 0] = message.value() or b""

    def _good(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(error)
