"""The demo's side of Kafka: topics that come and go, a paced producer of both inputs, a plain consumer of the alerts."""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from anomalyd.demo.broker import PARTITIONS, EmbeddedBroker
from anomalyd.demo.fleet import Fleet
from anomalyd.demo.host import Host
from anomalyd.errors import ConfigError, DeliveryError, KafkaUnavailableError
from anomalyd.kafka.topics import CHANGELOG_CONFIG, MODELS_CONFIG

if TYPE_CHECKING:
    from confluent_kafka import KafkaException, Message

TICKS_PER_S: Final = 75
"""Pace of simulated time: a day in 19 seconds."""
MOST_SAMPLES_PER_S: Final = 60_000
"""Larger fleets tick more slowly."""
MOST_BYTES_AHEAD: Final = 2_000_000
"""How far the producer may be ahead of the daemon: the embedded broker forgets what lies more than about 5 MB back in a partition."""

_QUIET: Final = {"log_level": 0, "socket.timeout.ms": 10_000}


@dataclass(frozen=True, slots=True)
class Wire:
    """Where everything flows."""

    bootstrap_servers: str
    group_id: str
    fleet: str
    host: str
    alerts: str
    dead_letters: str

    @property
    def changelogs(self) -> list[str]:
        """Where the daemon keeps its state, by the names that it gives them."""
        return [f"{self.group_id}-state-{topic}" for topic in (self.fleet, self.host)]

    @property
    def models(self) -> str:
        """Where the daemon looks for models, by the name that it gives the topic."""
        return f"{self.group_id}-models"

    @property
    def topics(self) -> list[str]:
        """All of them."""
        return [self.fleet, self.host, self.alerts, self.dead_letters, *self.changelogs, self.models]


@contextlib.contextmanager
def lay(kafka: str | None) -> Iterator[Wire]:
    """An embedded broker (or the cluster given) with topics for the demo; what was made is removed at the end.

    Raises:
        ConfigError: the extra is not installed.
        KafkaUnavailableError: no broker answers, or it refuses.
    """
    with contextlib.ExitStack() as stack:
        if kafka is None:
            wire = _wire(stack.enter_context(EmbeddedBroker()).bootstrap_servers, "demo")
            _touch(wire)
        else:
            # A cluster may be shared, also with other demos.
            wire = _wire(kafka, f"anomalyd-demo-{secrets.token_hex(4)}")
            _reach(wire)
            stack.callback(_remove, wire)
            _create(wire)
        yield wire


def _wire(bootstrap_servers: str, prefix: str) -> Wire:
    return Wire(bootstrap_servers, prefix, f"{prefix}.fleet", f"{prefix}.host", f"{prefix}.alerts", f"{prefix}.dead-letters")


def _client(name: str) -> Any:  # noqa: ANN401  the package has no types
    try:
        import confluent_kafka  # noqa: PLC0415  an extra: only the demo needs it
        import confluent_kafka.admin  # noqa: PLC0415
    except ImportError:
        raise ConfigError("demo: confluent-kafka is not installed; install it with: pip install 'anomalyd[demo]'") from None
    return getattr(confluent_kafka, name, None) or getattr(confluent_kafka.admin, name)


def _touch(wire: Wire) -> None:
    """The mock cluster makes a topic when somebody asks for it."""
    admin = _client("AdminClient")({"bootstrap.servers": wire.bootstrap_servers, **_QUIET})
    for topic in wire.topics:
        admin.list_topics(topic, timeout=10)


def _reach(wire: Wire) -> None:
    with _explained(wire):
        _client("AdminClient")({"bootstrap.servers": wire.bootstrap_servers, **_QUIET}).list_topics(timeout=5)


def _create(wire: Wire) -> None:
    admin, new_topic = _client("AdminClient")({"bootstrap.servers": wire.bootstrap_servers, **_QUIET}), _client("NewTopic")
    with _explained(wire):
        special = dict.fromkeys(wire.changelogs, CHANGELOG_CONFIG) | {wire.models: MODELS_CONFIG}
        # -1: as many copies as the cluster makes by default.
        topics = [new_topic(topic, 1 if topic == wire.models else PARTITIONS, -1, config=special.get(topic, {})) for topic in wire.topics]
        made = admin.create_topics(topics, operation_timeout=20, request_timeout=30)
        for future in made.values():
            future.result()


@contextlib.contextmanager
def _explained(wire: Wire) -> Iterator[None]:
    failure: type[KafkaException] = _client("KafkaException")
    try:
        yield
    except failure as error:
        raise KafkaUnavailableError(f"--kafka {wire.bootstrap_servers}: {error.args[0].str()}") from None


def _remove(wire: Wire) -> None:
    admin = _client("AdminClient")({"bootstrap.servers": wire.bootstrap_servers, **_QUIET})
    removals = admin.delete_topics(wire.topics, request_timeout=15) | admin.delete_consumer_groups([wire.group_id], request_timeout=15)
    for future in removals.values():
        # What was never made, or what the cluster does not let us remove, is no failure of the demo.
        with contextlib.suppress(_client("KafkaException")):
            future.result()


class Feeder(threading.Thread):
    """Produces both inputs: the host each second, the fleet as planned but never far ahead of the daemon.

    Args:
        wire: where to.
        fleet: whose ticks to produce.
        host: whose metrics to produce.
        ticks: how many.
        seconds: in which time; after it the rest is dropped.
        scored: how many samples of the fleet the daemon has scored.
    """

    def __init__(self, wire: Wire, fleet: Fleet, host: Host, ticks: int, seconds: float, scored: Callable[[], int]) -> None:
        super().__init__(name="feeder", daemon=True)
        self._wire, self._fleet, self._host = wire, fleet, host
        self._ticks, self._seconds, self._scored = ticks, seconds, scored
        self._stopping = threading.Event()
        self._producer = _client("Producer")({"bootstrap.servers": wire.bootstrap_servers, "linger.ms": 5, **_QUIET})
        self.ticks = 0
        """Ticks produced, all of the fleet's series each."""
        self.host_records = 0
        """Records about this host."""
        self.fleet_records = 0
        """Records about the fleet."""
        self.failure: Exception | None = None
        """Why it ended before its time."""

    @property
    def fleet_samples(self) -> int:
        """Samples produced."""
        return self.ticks * len(self._fleet)

    def stop(self) -> None:
        """Asks for an end."""
        self._stopping.set()

    def run(self) -> None:
        """See the class."""
        try:
            self._feed()
            if self._producer.flush(60):
                raise DeliveryError("the demo's producer could not deliver all records")
        except Exception as error:  # noqa: BLE001  told by the main thread
            self.failure = error

    def _feed(self) -> None:
        began = time.monotonic()
        # The plan ends a little before the time is up, so that a short delay changes nothing.
        per_second = self._ticks / (0.97 * self._seconds)
        most_ahead, host_due = 0, 0.0
        block, position = self._fleet.block(), 0
        while self.ticks < self._ticks and not self._stopping.is_set() and (now := time.monotonic() - began) < self._seconds:
            if now >= host_due:
                self._produce(self._wire.host, self._host.records())
                host_due = int(now) + 1.0
            if self.ticks > now * per_second or self.fleet_samples - self._scored() > most_ahead:
                self._producer.poll(0)
                self._stopping.wait(0.005)
                continue
            if position == len(block):
                block, position = self._fleet.block(), 0
            records = self._fleet.records(block, position)
            self._produce(self._wire.fleet, records)
            most_ahead = most_ahead or self._ahead(records)
            position += 1
            self.ticks += 1

    def _ahead(self, records: Sequence[tuple[str, str]]) -> int:
        """Samples that fit into what the broker is trusted to keep."""
        return max(1, MOST_BYTES_AHEAD * len(self._fleet) // sum(len(value) + 80 for _, value in records))

    def _produce(self, topic: str, records: Sequence[tuple[str, str]]) -> None:
        for key, value in records:
            while True:
                try:
                    self._producer.produce(topic, value, key, on_delivery=self._delivered)
                    break
                except BufferError:  # librdkafka's queue is full
                    self._producer.poll(0.1)
        if topic == self._wire.fleet:
            self.fleet_records += len(records)
        else:
            self.host_records += len(records)
        self._producer.poll(0)

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            raise DeliveryError(f"the demo's producer: {error}")


class AlertReader(threading.Thread):
    """Reads the alerts topic from its beginning like anybody would, and hands every message on as plain data."""

    def __init__(self, wire: Wire, take: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(name="alerts", daemon=True)
        self._take = take
        self._stopping = threading.Event()
        self._consumer = _client("Consumer")(
            {"bootstrap.servers": wire.bootstrap_servers, "group.id": f"{wire.group_id}-reader", "enable.auto.commit": False, **_QUIET}
        )
        partition = _client("TopicPartition")
        self._consumer.assign([partition(wire.alerts, p, 0) for p in range(PARTITIONS)])

    def stop(self) -> None:
        """Asks for an end."""
        self._stopping.set()

    def run(self) -> None:
        """See the class."""
        while not self._stopping.is_set():
            messages: list[Message] = self._consumer.consume(500, timeout=0.1)
            for message in messages:
                if message.error() is None:
                    self._take(json.loads(message.value() or b""))
        self._consumer.close()
