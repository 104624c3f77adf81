"""A witness of the changelog: every committed position as it appears, whether the chain of positions holds, and when a partition moves."""

import threading
import time
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from anomalyd.errors import StateError
from anomalyd.state import codec
from tests.support.topics import unique

_NOT_YET: Final = 0.0


class Step(NamedTuple):
    """A position that was committed."""

    written_s: float
    """When the writer made the record, on the wall clock."""
    seen_s: float
    """When it was readable."""
    offset: int
    """In the changelog."""
    position: codec.Position


class Chain:
    """Reads a changelog as read_committed from `with` to its end; reading along, it sees what compaction takes away later."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self.steps: list[list[Step]] = [[] for _ in range(partitions)]
        """By partition, in order."""
        self.models: list[dict[int, str]] = [{} for _ in range(partitions)]
        """By partition, from which input offset on which model scored, in order; a timeline that repeats the run."""
        self.fences = 0
        self.problems: list[str] = []
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": unique("witness"),
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def progress_s(self, since_s: float) -> float | None:
        """When every partition had moved on by what was written after a moment (wall clock); None while one has not."""
        seen = [self._moved_s(steps, since_s) for steps in self.steps]
        return None if _NOT_YET in seen else max(seen)

    def stuck(self, since_s: float) -> list[int]:
        """Partitions that have not moved since."""
        return [partition for partition, steps in enumerate(self.steps) if self._moved_s(steps, since_s) == _NOT_YET]

    @staticmethod
    def _moved_s(steps: list[Step], since_s: float) -> float:
        first = _NOT_YET
        for i in range(len(steps) - 1, 0, -1):
            if steps[i].written_s <= since_s:
                break
            if steps[i].position.position > steps[i - 1].position.position:
                first = steps[i].seen_s
        return first

    def _watch(self) -> None:
        while not self._over.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:  # errors are brokers that went away; they come back
                try:
                    self._take(message)
                except StateError as error:
                    self.problems.append(f"{self._topic}-{message.partition()}, offset {message.offset()}: {error}")

    def _take(self, message: Message) -> None:
        key, value, partition = message.key() or b"", message.value(), message.partition() or 0
        if value is None or key not in {codec.POSITION_KEY, codec.FENCE_KEY}:
            return
        found = codec.decode(key, value)
        if isinstance(found, codec.Position):
            steps = self.steps[partition]
            step = Step(message.timestamp()[1] / 1000, time.time(), message.offset() or 0, found)
            self._check(partition, steps[-1].position if steps else None, found)
            steps.append(step)
            # Each stands in the position that it came with at least; the same offset once more had scored nothing in between.
            self.models[partition].update(found.timeline)
        else:
            self.fences += 1

    def _check(self, partition: int, before: codec.Position | None, found: codec.Position) -> None:
        where = f"{self._topic}-{partition}, sequence {found.sequence}"
        if before is not None and (found.sequence, found.previous) != (before.sequence + 1, before.position):
            self.problems.append(f"{where}: the chain is broken behind sequence {before.sequence}, position {before.position}: {found}")
        if found.position < (before.position if before else 0):
            self.problems.append(f"{where}: the position went back: {found}")
        if found.replay_from > found.position:
            self.problems.append(f"{where}: a page is ahead of the position: {found}")
