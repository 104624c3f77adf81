"""Which broker a test gets.

1. ANOMALYD_TEST_KAFKA=host:port, if set;
2. else a real Kafka, if java 17+ and mvn are there (tests/support/kafka.py);
3. else the embedded mock: tests marked `real_kafka` are skipped and the last line says what to install. With CI=true there is no 3.

Other real parts, such as Prometheus: tests/support/parts.py.
"""

import os
import sys
import threading
from collections.abc import Iterator

import pytest
from numba.core import event

from anomalyd.demo.broker import EmbeddedBroker
from tests.support import parts
from tests.support.kafka import Cluster, missing
from tests.support.secured import SecuredKafka

GIVEN = os.environ.get("ANOMALYD_TEST_KAFKA")
CI = os.environ.get("CI", "").lower() == "true"
OWN_FIXTURES = {"kafka_cluster", "breakable_kafka", "secured_kafka"}
"""Real brokers of the session's own, whatever broker is given."""
BROKER_FIXTURES = {"kafka", "mock_kafka"} | OWN_FIXTURES
LACKING = pytest.StashKey[str]()


class _Untraced(event.Listener):
    """Keeps coverage's tracer out of numba's compiler, which is all Python and a good part of a fresh test run."""

    def __init__(self) -> None:
        self._here = threading.local()

    def on_start(self, event: event.Event) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        if self._here.depth == 1:
            self._here.trace = sys.gettrace()
            sys.settrace(None)

    def on_end(self, event: event.Event) -> None:
        self._here.depth -= 1
        if self._here.depth == 0:
            sys.settrace(self._here.trace)


def pytest_configure() -> None:
    """See `_Untraced`."""
    event.register("numba:compile", _Untraced())  # type: ignore[no-untyped-call] # numba does not annotate it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a broker by the fixtures it asks for, before `-m` chooses."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")  # smaller tests reach the same lines, and tracing makes Python two to three times slower
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & BROKER_FIXTURES:
            item.add_marker("broker")
        if fixtures & OWN_FIXTURES:
            item.add_marker("real_kafka")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Skip what only a real Kafka can prove where there is none, unless this is CI, where the fixture then fails."""
    needing = [item for item in session.items if item.get_closest_marker("real_kafka")]
    own = [item for item in needing if not GIVEN or OWN_FIXTURES & set(getattr(item, "fixturenames", ()))]
    if own and not CI and (lacking := missing()):
        session.config.stash[LACKING] = f"{len(own)} TESTS AGAINST A REAL KAFKA WERE SKIPPED: install {lacking}"
        for item in own:
            item.add_marker(pytest.mark.skip(reason=f"needs a real Kafka: install {lacking}"))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what was not tested."""
    if lacking := config.stash.get(LACKING, None):
        terminalreporter.write_sep("!", lacking, red=True, bold=True)
    for name, tests in sorted(parts.LACKING.items()):
        terminalreporter.write_sep("!", f"{tests} TESTS AGAINST A REAL {name.upper()} WERE SKIPPED: install {name}", red=True, bold=True)


def _demand_real() -> None:
    if lacking := missing():
        pytest.fail(f"no real Kafka: install {lacking}", pytrace=False)


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The address of the session's broker; topics and groups are to be of the test's own names."""
    if GIVEN:
        yield GIVEN
    elif missing() and not CI:
        with EmbeddedBroker() as embedded:
            yield embedded.bootstrap_servers
    else:
        _demand_real()
        with Cluster() as cluster:
            yield cluster.bootstrap_servers


@pytest.fixture(scope="session")
def _three_brokers() -> Iterator[Cluster]:
    _demand_real()
    with Cluster(brokers=3) as cluster:
        yield cluster


@pytest.fixture
def kafka_cluster(_three_brokers: Cluster) -> Cluster:
    """Three real brokers of the session, all up at the start of a test, which may stop, kill and start them."""
    _three_brokers.ensure_up()
    return _three_brokers


@pytest.fixture
def breakable_kafka() -> Iterator[Cluster]:
    """One real broker for this test alone, which may end it."""
    _demand_real()
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def secured_kafka() -> Iterator[SecuredKafka]:
    """A real broker with TLS, SASL and an authorizer; users, groups and topics are to be of the test's own names."""
    _demand_real()
    with SecuredKafka() as secured:
        yield secured


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[str]:
    """The address of the embedded broker, whatever else there is."""
    with EmbeddedBroker() as embedded:
        yield embedded.bootstrap_servers
