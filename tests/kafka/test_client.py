"""What consumer, producer and topics share."""

import asyncio
import logging

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError, NodeNotReadyError, for_code
from structlog.testing import capture_logs

from anomalyd.errors import KafkaUnavailableError
from anomalyd.kafka import client
from anomalyd.settings import KafkaSettings

SETTINGS = KafkaSettings(bootstrap_servers="127.0.0.1:9092", group_id="mine")


def test_what_waiting_cannot_mend_is_said_with_what_to_do() -> None:
    refused = client.refusal(GroupAuthorizationFailedError("mine"), SETTINGS)

    assert "allow Read on group mine" in str(refused)


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
