"""What consumer, producer and topics share."""

import asyncio
import logging
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)
from structlog.testing import capture_logs

from anomalyd.errors import KafkaUnavailableError
from anomalyd.kafka import client
from anomalyd.settings import KafkaSettings
from tests.support.certificates import Authority

SETTINGS = KafkaSettings(bootstrap_servers="127.0.0.1:9092", group_id="mine")


def test_what_waiting_cannot_mend_is_said_with_what_to_do() -> None:
    refused = client.refusal(GroupAuthorizationFailedError("mine"), SETTINGS)

    assert "not allowed: Read on group mine" in str(refused)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TopicAuthorizationFailedError("metrics"), "Write on topic metrics"),
        (TopicAuthorizationFailedError({"b", "a"}), "Write on topic a, b"),
        (TransactionalIdAuthorizationFailed("g-state-m.0"), "Write on transactional id g-state-m.0"),
        (KafkaError(f"Unexpected error {GroupAuthorizationFailedError()!r}"), "Read on group mine"),
        (ClusterAuthorizationFailedError(), "IdempotentWrite on the cluster"),
    ],
)
def test_a_right_that_lacks_is_named_with_its_resource(error: Exception, told: str) -> None:
    assert f"not allowed: {told}" in str(client.refusal(error, SETTINGS, "Write"))


def test_the_first_of_wrapped_errors_has_the_name() -> None:
    error = KafkaError("Unexpected error during batch delivery: TopicAuthorizationFailedError")
    error.__cause__ = TopicAuthorizationFailedError("out")

    assert "Read on topic out" in str(client.refusal(error, SETTINGS))


async def test_a_password_that_cannot_be_read_is_a_connection_that_failed(tmp_path: Path) -> None:
    """The client knows no other error that passes; it would end its tasks."""
    file = tmp_path / "password"
    file.write_text("secret")
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password_file": str(file)}
    admin = AIOKafkaAdminClient(**client.options(KafkaSettings(bootstrap_servers="127.0.0.1:1", **sasl)))
    file.unlink()

    with pytest.raises(KafkaConnectionError) as refused:
        await admin.start()
    await admin.close()

    assert "kafka.sasl_password_file: " in client.reason(refused.value)


def _tls(authority: Authority, **more: object) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "SSL", "ssl_cafile": authority.certificate, **more}
    )


async def _refused(settings: KafkaSettings, served: ssl.SSLContext | None = None, said: bytes = b"") -> str:
    """What is told of a server that says something to whoever comes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        here = settings.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})
        admin = AIOKafkaAdminClient(**client.options(here))
        with pytest.raises(KafkaConnectionError) as failed:
            await admin.start()
        await admin.close()
    told = client.unavailable(failed.value, here)
    assert isinstance(told, KafkaUnavailableError)  # it is waited for
    return str(told)


async def test_a_connection_that_fails_names_the_key_that_may_be_wrong(tmp_path: Path) -> None:
    own, stranger = Authority(tmp_path, "own"), Authority(tmp_path, "stranger")
    certificate, key = own.issue("broker")
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate, key)
    plain = KafkaSettings(bootstrap_servers="127.0.0.1:1")

    either = "(are kafka.security_protocol and kafka.ssl_certfile right?)"
    for hung_up, hint in (
        (await _refused(plain, served), "(is kafka.security_protocol right?)"),
        (await _refused(plain), "(is kafka.security_protocol right?)"),
        (await _refused(_tls(own)), either),
        (await _refused(_tls(own), said=b"what is no TLS"), either),
        (await _refused(_tls(own), own.asking(own.issue("broker"))), either),
    ):
        assert "no answer from" in hung_up
        assert hung_up.endswith(hint)
    untrusted = await _refused(_tls(stranger), served)
    assert "refused by 127.0.0.1" in untrusted
    assert "not of an authority that is trusted (kafka.ssl_cafile)" in untrusted


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (for_code(58)("wrong"), "(kafka.sasl_username, kafka.sasl_password_file): [Error 58] SaslAuthenticationFailed: wrong"),
        (for_code(33)(object()), "kafka.sasl_mechanism PLAIN is none of those that it takes"),
    ],
)
async def test_what_a_broker_refuses_is_no_silence(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(client, "create_conn", refuse)
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password": "x"}
    settings = KafkaSettings.model_validate({"bootstrap_servers": "127.0.0.1:1", **sasl})
    admin = AIOKafkaAdminClient(**client.options(settings))
    with pytest.raises(KafkaConnectionError) as failed:
        await admin.start()
    await admin.close()

    said = str(client.unavailable(failed.value, settings))
    assert said.startswith("Kafka: refused by 127.0.0.1:1: ")
    assert said.endswith(told)
    assert "object at 0x" not in said


def test_a_stolen_instance_id_is_recognised_although_the_client_wraps_it_and_does_not_know_it() -> None:
    error = for_code(82)()

    refused = client.refusal(KafkaError(f"Unexpected error during coordination {error!r}"), SETTINGS)

    assert "kafka.group_instance_id" in str(refused)


@pytest.mark.parametrize("error", [NodeNotReadyError("node 1"), KafkaConnectionError("refused"), OSError("unreachable")])
def test_what_may_pass_is_no_refusal(error: Exception) -> None:
    assert client.refusal(error, SETTINGS) is None
    assert isinstance(client.unavailable(error, SETTINGS), KafkaUnavailableError)


def test_waiting_grows_to_a_limit_and_differs_between_instances() -> None:
    backoff = client.Backoff(first_s=1.0, most_s=8.0)

    waits = [backoff.next_s() for _ in range(200)]

    assert 0.5 <= waits[0] <= 1.0
    assert all(4.0 <= wait <= 8.0 for wait in waits[5:])
    assert len(set(waits)) > 100
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_the_clients_own_log_stays_quiet_and_names_the_cause() -> None:
    with capture_logs() as lines:
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("aiokafka.conn").exception('Unable connect to "127.0.0.1:1": [Error 58] SASL authentication failed')

    assert [(line["log_level"], "exc_info" in line) for line in lines] == [("debug", False)]
    assert "SASL authentication failed" in client.reason(KafkaConnectionError("Unable to bootstrap from [...]"))


class Client:
    """Lets out what it has cancelled while it stops, as the real one does where a fetch was just under way."""

    def __init__(self) -> None:
        self.closed = 0
        self._client = self

    async def stop(self) -> None:
        fetch = asyncio.create_task(asyncio.sleep(3_600))
        fetch.cancel()
        await fetch

    async def close(self) -> None:
        self.closed += 1


async def test_a_client_that_stumbles_over_what_it_has_cancelled_itself_is_closed_and_nobody_else_is_cancelled() -> None:
    stumbling = Client()

    await client.close(stumbling)

    assert stumbling.closed == 1


class Network:
    """Connections."""

    def __init__(self) -> None:
        self.closed = 0
        self.hangs = False

    async def close(self) -> None:
        self.closed += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_client_whose_goodbye_nobody_answers_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """It would go on fetching, and as a member of the group, beside the one that replaces it."""
    monkeypatch.setattr(client, "CLOSE_DEADLINE_S", 0.05)
    loop = asyncio.get_running_loop()

    class Coordinator:
        async def close(self) -> None:
            await loop.create_future()  # the coordinator's answer

    left: Any = AIOKafkaConsumer.__new__(AIOKafkaConsumer)
    coordinator: Any = Coordinator()
    tasks = [asyncio.create_task(asyncio.sleep(3_600)) for _ in range(4)]
    coordinator._coordination_task, coordinator._heartbeat_task = tasks[:2]  # noqa: SLF001  what the real one has
    left._fetcher = SimpleNamespace(_fetch_task=tasks[2], _pending_tasks={tasks[3]})  # noqa: SLF001  likewise
    left._closed, left._coordinator, left._client, left._source_traceback = False, coordinator, Network(), None  # noqa: SLF001  likewise
    left._client.hangs = hangs  # noqa: SLF001  likewise

    with capture_logs() as lines:
        await asyncio.wait_for(client.close(left), 5)

    assert all(task.cancelled() for task in tasks)
    assert left._client.closed == 1  # noqa: SLF001  likewise
    assert [line["event"] for line in lines] == ["client_abandoned"]
