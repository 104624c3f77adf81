"""What consumer, producer and topics share: options of the client, waiting between attempts, and its errors in the operator's words."""

import asyncio
import contextlib
import logging
import random
import ssl
from typing import Any, ClassVar, Final, Protocol

import aiokafka.client
import aiokafka.errors as kafka_errors
import structlog
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import BrokerResponseError, KafkaConnectionError, KafkaError

from anomalyd.errors import AnomalydError, ConfigError, KafkaRefusedError, KafkaUnavailableError
from anomalyd.kafka import oauth
from anomalyd.settings import KafkaSettings
from anomalyd.unless import unasked

METADATA_MAX_AGE_MS: Final = 15_000
"""So soon does a topic that was missing get noticed; the client's own five minutes would look like a hang."""

CLOSE_DEADLINE_S: Final = 3.0

_OTHER_HOST: Final = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

_TASKS: Final = ("_fetch_task", "_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
"""Of a consumer's parts, that go on for ever."""

_log = structlog.get_logger(__name__)


class FencedInstanceIdError(BrokerResponseError):  # type: ignore[misc]  # the client ships no types
    """Another member took over our group_instance_id."""

    errno = 82
    message = "FENCED_INSTANCE_ID"
    description = "The broker rejected this static consumer since another one registered with the same group.instance.id."


# The client does not know code 82 and would report it as "UnknownError", without the number.
kafka_errors.kafka_errors.setdefault(FencedInstanceIdError.errno, FencedInstanceIdError)

_REFUSED: Final[dict[str, str]] = {
    "FencedInstanceIdError": "another process uses the same kafka.group_instance_id; give each instance its own",
    "GroupAuthorizationFailedError": "not allowed: Read on group {named}; `anomalyd topics rights` prints what grants it",
    "TopicAuthorizationFailedError": "not allowed: {operation} on topic {named}; `anomalyd topics rights` prints what grants it",
    "ClusterAuthorizationFailedError": (
        "not allowed: IdempotentWrite on the cluster, which brokers before 3.0 want besides Write on the topics, or another operation on it"
    ),
    "TransactionalIdAuthorizationFailed": (
        "not allowed: Write on transactional id {named}; `anomalyd topics rights` prints what grants it, or set delivery: at-least-once"
    ),
    "InvalidTransactionTimeout": "the brokers refuse transactions of 60 s; raise their transaction.max.timeout.ms to that at least",
    "InconsistentGroupProtocolError": (
        "the group {group_id} has members that assign partitions another way; stop them all if they are of an older release, "
        "or use another kafka.group_id"
    ),
    "InvalidSessionTimeoutError": (
        "kafka.session_timeout_ms is outside of what the brokers allow (group.min.session.timeout.ms to group.max.session.timeout.ms)"
    ),
    "InvalidGroupIdError": "the brokers refuse kafka.group_id {group_id}",
    "UnsupportedCodecError": "records are compressed in a way that this installation cannot read; install aiokafka[lz4,snappy,zstd]",
    "IncompatibleBrokerVersion": "the brokers are too old; Apache Kafka 2.1 or later is needed",
}


class _HandshakeError(KafkaConnectionError):  # type: ignore[misc]  # the client ships no types
    """A connection that came to nothing, in the operator's words; the client tries again."""

    def __init__(self, told: str, *, refused: bool) -> None:
        super().__init__(told)
        self.refused = refused
        """Whether somebody answered, and did not want us; not: whether it was a broker is not known."""

    def __str__(self) -> str:
        return str(self.args[0])


_WRONG_PROTOCOL: Final = "(is kafka.security_protocol right?)"
_WRONG_PROTOCOL_OR_CERTIFICATE: Final = "(are kafka.security_protocol and kafka.ssl_certfile right?)"


def _handshake(error: Exception, protocol: str, mechanism: str | None) -> _HandshakeError | None:
    """What an error while a connection is made says about the configuration; None where it says nothing.

    Args:
        error: of TCP, TLS, SASL or the first request.
        protocol: as in `kafka.security_protocol`.
        mechanism: of SASL.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        named = error.verify_code in _OTHER_HOST
        keys = (
            "does not name this host (kafka.ssl_check_hostname)" if named else "is not of an authority that is trusted (kafka.ssl_cafile)"
        )
        return _HandshakeError(f"its certificate {keys}: {error.verify_message}", refused=True)
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return _HandshakeError(f"kafka.sasl_mechanism {mechanism} is none of those that it takes", refused=True)
    if isinstance(error, kafka_errors.SaslAuthenticationFailed):
        keys = "kafka.sasl_oauth_*" if mechanism == "OAUTHBEARER" else "kafka.sasl_username, kafka.sasl_password_file"
        return _HandshakeError(f"it does not take these credentials ({keys}): {_first_line(error)}", refused=True)
    # Who speaks something else hangs up, or answers what is no TLS. So does who wants a certificate: its alert comes too late to be told.
    hung_up = isinstance(error, KafkaConnectionError) and "Connection at" in str(error)
    if hung_up or isinstance(error, ssl.SSLError | ConnectionResetError | ConnectionAbortedError | kafka_errors.IllegalSaslStateError):
        hint = _WRONG_PROTOCOL_OR_CERTIFICATE if protocol.endswith("SSL") else _WRONG_PROTOCOL
        return _HandshakeError(f"{_first_line(error)} {hint}", refused=False)
    return None


async def _connection(*where: Any, sasl_plain_password: Any = None, **more: Any) -> AIOKafkaConnection:  # noqa: ANN401  the client's own
    """A connection of a client, with the password as it is now: the client itself would go on with the one that it was made with."""
    if callable(sasl_plain_password):
        try:
            sasl_plain_password = sasl_plain_password()
        except ConfigError as error:  # the client tries again after an error of its own kind, and dies of any other
            raise KafkaConnectionError(str(error)) from error
    try:
        return await create_conn(*where, sasl_plain_password=sasl_plain_password, **more)
    except (KafkaError, OSError) as error:
        if told := _handshake(error, more.get("security_protocol", ""), more.get("sasl_mechanism")):
            raise told from error
        raise


aiokafka.client.create_conn = _connection


def options(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments that every client takes. Certificates, keys, passwords and tokens are read with each connection that it makes.

    Raises:
        ConfigError: a certificate, key, password or token file cannot be used; only for the first client of these settings.
    """
    shared: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "request_timeout_ms": settings.request_timeout_ms,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "security_protocol": settings.security_protocol,
        "ssl_context": settings.ssl_context,
    }
    if settings.uses_sasl:
        shared |= {"sasl_mechanism": settings.sasl_mechanism, "sasl_plain_username": settings.credentials}
        if settings.sasl_mechanism == "OAUTHBEARER":
            shared["sasl_oauth_token_provider"] = oauth.provider(settings)
        else:
            shared["sasl_plain_password"] = settings.read_sasl_password
    return shared


def groupless(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments of a consumer that reads one partition by itself: what was committed, from where it is told, for no group.

    Raises:
        ConfigError: a certificate, key or password file cannot be used.
    """
    return options(settings) | {
        "group_id": None,
        "enable_auto_commit": False,
        # Anything else jumps silently over what is missing.
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
    }


def refusal(error: BaseException, settings: KafkaSettings, operation: str = "Read") -> KafkaRefusedError | None:
    """What to tell the operator when trying again cannot help; None for errors that may pass.

    Args:
        error: of the client.
        settings: how it was reached.
        operation: what was to be done with topics, if the error is that this is not allowed.
    """
    # Errors out of the client's background tasks come wrapped, with the first one's name in the text only.
    text = f"{type(error).__name__} {error}"
    for name, advice in _REFUSED.items():
        if name in text:
            told = advice.format(group_id=settings.group_id, operation=operation, named=_named(error, name, settings))
            return KafkaRefusedError(f"Kafka: {told} ({_first_line(error)})")
    return None


def _named(error: BaseException, name: str, settings: KafkaSettings) -> str:
    """The resources that an error is about."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == name and cause.args and cause.args[0]:
            named = cause.args[0]
            return named if isinstance(named, str) else ", ".join(sorted(map(str, named)))
        cause = cause.__cause__
    return settings.group_id if name.startswith("Group") else "(the client does not say which)"


def unavailable(error: Exception, settings: KafkaSettings) -> AnomalydError:
    """The error for commands that do not wait for brokers."""
    refused = _is_of_bootstrap(error) and ClientLog.installed.refused
    return refusal(error, settings) or KafkaUnavailableError(
        f"Kafka: {'refused by' if refused else 'no answer from'} {settings.bootstrap_servers}: {reason(error)}"
    )


def reason(error: Exception) -> str:
    """Why an attempt failed, in one line. The client logs causes such as a refused password and raises only "unable to bootstrap"."""
    cause = ClientLog.installed.last
    return cause if _is_of_bootstrap(error) and cause else _first_line(error)


def _is_of_bootstrap(error: Exception) -> bool:
    return "bootstrap" in str(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].strip() else type(error).__name__


class ClientLog(logging.Handler):
    """Takes over the client's own log: it repeats itself ten times a second during an outage, with tracebacks.

    Its lines go on at level debug; the latest cause of a failed connection is kept for our one line.
    """

    installed: ClassVar["ClientLog"]

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self.refused = False
        """Whether that was a broker's word."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the first line; never writes a traceback."""
        text = record.getMessage().splitlines()[0] if record.getMessage() else ""
        if "connect" in text or "Unable" in text:
            arguments = record.args if isinstance(record.args, tuple) else ()
            self.refused = any(isinstance(argument, _HandshakeError) and argument.refused for argument in arguments)
            # The first request after the handshake: a listener with SASL hangs up on those who come without.
            self.last = f"{text} {_WRONG_PROTOCOL}" if "request metadata from" in text and text.endswith("closed") else text
        _log.debug("kafka_client", message=text, level_of_client=record.levelname.lower())


ClientLog.installed = ClientLog()
_client_logger = logging.getLogger("aiokafka")
_client_logger.addHandler(ClientLog.installed)
_client_logger.setLevel(logging.WARNING)
_client_logger.propagate = False


class Backoff:
    """Waiting times between attempts: doubling up to a limit, with jitter so that instances do not knock in step."""

    def __init__(self, first_s: float = 0.25, most_s: float = 10.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self.attempts = 0

    def next_s(self) -> float:
        """Counts an attempt and says how long to wait before the next."""
        limit = min(self._most_s, self._first_s * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return limit * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """After a success."""
        self.attempts = 0


async def pause(error: KafkaUnavailableError, backoff: Backoff, stop: asyncio.Event) -> None:
    """Says that brokers do not answer, and waits until it is time for the next attempt, or for the process to end."""
    delay_s = backoff.next_s()
    _log.warning("kafka_unreachable", reason=str(error), attempt=backoff.attempts, wait_s=round(delay_s, 2))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), delay_s)


async def wait_for_brokers(error: Exception, backoff: Backoff, settings: KafkaSettings) -> None:
    """After a failed attempt to connect: says so and waits.

    Raises:
        KafkaRefusedError: waiting would not help.
    """
    if refused := refusal(error, settings):
        raise refused from error
    delay_s = backoff.next_s()
    _log.warning(
        "kafka_unreachable", servers=settings.bootstrap_servers, reason=reason(error), attempt=backoff.attempts, wait_s=round(delay_s, 2)
    )
    await asyncio.sleep(delay_s)


class _Stoppable(Protocol):
    async def stop(self) -> None: ...


async def close(client: _Stoppable) -> None:
    """Stops a client within a deadline: with brokers away its goodbye would wait for answers.

    It is stopped even if the caller is cancelled meanwhile; half a stop would leave connections and tasks behind for good.
    """
    stopping = asyncio.create_task(_stop(client))
    _stopping.add(stopping)
    stopping.add_done_callback(_stopping.discard)
    await asyncio.shield(stopping)


_stopping: Final[set[asyncio.Task[None]]] = set()


async def _stop(client: _Stoppable) -> None:
    try:
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await client.stop()
    except asyncio.CancelledError as error:
        # Asked for by nobody, it is the client's own: it awaits what it cancels, and lets the answer out before its connections are closed.
        await _abandon(client)
        if unasked(error) is None:
            raise
    except (KafkaError, OSError) as error:  # a deadline is an OSError, too
        if await _abandon(client):
            _log.info(
                "client_abandoned", kind=type(client).__name__, reason=reason(error) if str(error) else "its goodbye was not answered"
            )


async def _abandon(client: Any) -> bool:  # noqa: ANN401  the client ships no types
    """What stop() did not come to: ends the tasks of a consumer and its connections. Returns whether it was one."""
    network = getattr(client, "_client", None)
    if network is None:
        return False  # a producer, of which `watch.discard` ends the rest, or one that only asks
    fetcher, coordinator = getattr(client, "_fetcher", None), getattr(client, "_coordinator", None)
    tasks: set[asyncio.Task[Any]] = set(getattr(fetcher, "_pending_tasks", ()))
    tasks.update(filter(None, (getattr(part, name, None) for part in (fetcher, coordinator) for name in _TASKS)))
    for task in tasks:
        task.cancel()
    for connection in getattr(network, "_conns", {}).values():  # a close() would first send what its buffer holds
        with contextlib.suppress(AttributeError):
            connection._writer.transport.abort()  # noqa: SLF001  there is no public way
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(CLOSE_DEADLINE_S / 2):
            await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(CLOSE_DEADLINE_S / 2):
            await network.close()
    return True
