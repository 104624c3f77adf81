"""A real Apache Kafka (KRaft) on loopback, from the jars of Maven Central; no Docker, no root.

    with Cluster(brokers=3) as cluster:
        cluster.bootstrap_servers
        cluster.brokers[0].kill()

Needs java 17+ and, the first time, mvn. `missing()` says what is not there.
"""

import base64
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka.admin import AdminClient

from tests.support.cache import cached, place
from tests.support.poll import poll_until

KAFKA_VERSION: Final = "4.3.0"
JARS: Final = f"kafka-{KAFKA_VERSION}"
LOG4J_VERSION: Final = "2.25.4"
_PROTOCOLS: Final = "listener.security.protocol.map"

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>anomalyd</groupId><artifactId>test-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{LOG4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""


def missing() -> str | None:
    """What must be installed before a real Kafka can run here; None when all is there."""
    java = shutil.which("java")
    if java is None:
        return "java 17 or newer"
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        return "java 17 or newer"
    if not place(JARS).is_dir() and shutil.which("mvn") is None:
        return "maven (mvn)"
    return None


def jars() -> Path:
    """The folder of jars; fetched once a machine (44 MB)."""
    return cached(JARS, _fetch)


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "pom.xml").write_text(POM)
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
        subprocess.run(command, cwd=scratch, check=True, timeout=300)


class Broker:
    """One broker process that is its own controller; it keeps its ports and its data over stop, kill and start."""

    def __init__(self, node: int, home: Path, ports: dict[int, tuple[int, int]], more: Mapping[str, object]) -> None:
        """`ports` gives every node's client and controller port; `home` is a folder for this node alone; `more` are further properties."""
        self.node = node
        self.address = f"127.0.0.1:{ports[node][0]}"
        self._home = home
        self.data = home / "data"
        self._process: subprocess.Popen[bytes] | None = None
        nodes = len(ports)
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(f"{i}@127.0.0.1:{controller}" for i, (_, controller) in ports.items()),
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{ports[node][1]}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            _PROTOCOLS: "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.data,
            # A topic that nobody created is a mistake of the code under test.
            "auto.create.topics.enable": "false",
            "default.replication.factor": nodes,
            "min.insync.replicas": max(1, nodes - 1),
            "offsets.topic.replication.factor": nodes,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": nodes,
            "transaction.state.log.min.isr": max(1, nodes - 1),
            "transaction.state.log.num.partitions": 1,
            # Groups form at once, and a killed member or broker is noticed quickly.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            # The default cleaner buffer is a quarter of our heap.
            "log.cleaner.dedupe.buffer.size": 4 << 20,
            # A test can wait for compaction.
            "log.cleaner.backoff.ms": 200,
        }
        for name, value in more.items():  # those that are lists grow
            before = properties.get(name)
            properties[name] = f"{before},{value}" if name in {"listeners", "advertised.listeners", _PROTOCOLS} else value
        home.mkdir(parents=True)
        self._properties = home / "server.properties"
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (home / "log4j2.properties").write_text(
            "appender.console.type=Console\nappender.console.name=console\nappender.console.layout.type=PatternLayout\n"
            "appender.console.layout.pattern=%d %p %c: %m%n\nrootLogger.level=WARN\nrootLogger.appenderRef.console.ref=console\n"
        )

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        # The second compiler costs a broker that lives for minutes more than it brings: with it a start takes half as much again.
        options = [
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={self._home}/log4j2.properties",
            "-cp",
            f"{jars()}/*",
        ]
        with self._log.open("ab") as log:
            return subprocess.Popen(["java", *options, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def _log(self) -> Path:
        return self._home / "broker.log"

    def format(self, cluster_id: str) -> subprocess.Popen[bytes]:
        """Begin to write the cluster's identity into the data folder; the caller waits for the process."""
        return self._java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties))

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; returns before the broker serves."""
        if not self.running:
            self._process = self._java("kafka.Kafka", str(self._properties))

    def stop(self) -> None:
        """End the broker in good order: its leaderships move away first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def kill(self) -> None:
        """End the broker without a word, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)

    def freeze(self) -> None:
        """Stop the process where it stands: connections stay open, nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End `freeze`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def log_tail(self) -> str:
        """The end of what the broker logged, for a failure's message."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""


class Cluster:
    """Brokers on loopback from `with` to its end; internal topics have as many replicas as there are brokers."""

    def __init__(self, brokers: int = 1, more: Mapping[str, object] | None = None) -> None:
        """`more` are properties of every broker besides the usual ones; listeners are added to those."""
        self._home = Path(tempfile.mkdtemp(prefix="anomalyd-kafka-"))
        nodes = range(1, brokers + 1)
        ports = dict(zip(nodes, _free_port_pairs(brokers), strict=True))
        self.brokers = [Broker(node, self._home / str(node), ports, more or {}) for node in nodes]
        self.bootstrap_servers = ",".join(broker.address for broker in self.brokers)

    def __enter__(self) -> Self:
        try:
            # An id that begins with "-" is taken for an option.
            cluster_id = "a" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
            for formatting, broker in [(broker.format(cluster_id), broker) for broker in self.brokers]:
                if formatting.wait(60):
                    raise AssertionError(f"kafka could not format its storage: {broker.log_tail()}")
            self.ensure_up()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def ensure_up(self) -> None:
        """Start what is not running and return when every broker is registered and serves."""
        for broker in self.brokers:
            broker.start()
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        poll_until(lambda: self._serving(admin), f"{len(self.brokers)} brokers at {self.bootstrap_servers}", timeout_s=90, interval_s=0.1)

    def _serving(self, admin: AdminClient) -> bool:
        for broker in self.brokers:
            if not broker.running:
                raise AssertionError(f"kafka broker {broker.node} ended: {broker.log_tail()}")
        try:
            return len(admin.list_topics(timeout=2).brokers) == len(self.brokers)
        except Exception:  # noqa: BLE001 - not up yet, whatever the client says; the caller has the deadline
            return False

    def _end(self) -> None:
        for broker in self.brokers:
            broker.kill()
        shutil.rmtree(self._home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that the system says are free, held until all are chosen so that none is given twice."""
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports: list[int] = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _free_port_pairs(count: int) -> list[tuple[int, int]]:
    ports = free_ports(2 * count)
    return list(zip(ports[::2], ports[1::2], strict=True))
