"""Where tokens come from, and what is said when none does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiokafka.errors import KafkaConnectionError

from anomalyd.kafka import oauth
from anomalyd.settings import KafkaSettings

SECRET = "hunter2"


class Endpoint:
    """Answers as told."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Callable[[], web.Response] = lambda: web.json_response({"access_token": f"token-{self.asked}", "expires_in": 3600})
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        return self.answer()

    def settings(self) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers="a:1",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="OAUTHBEARER",
            sasl_oauth_token_url=self.url,
            sasl_oauth_client_id="me",
            sasl_oauth_client_secret=SECRET,
            sasl_oauth_extensions={"logicalCluster": "lkc-1"},
        )


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    endpoint, app = Endpoint(), web.Application()
    app.router.add_post("/token", endpoint.handle)
    app.router.add_post("/elsewhere", endpoint.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    yield endpoint
    await runner.cleanup()


async def refusal(token: Awaitable[str]) -> str:
    with pytest.raises(KafkaConnectionError) as refused:
        await token
    assert SECRET not in str(refused.value)
    return str(refused.value)


async def test_connections_share_a_token(endpoint: Endpoint) -> None:
    settings = endpoint.settings()

    tokens = await asyncio.gather(*(oauth.provider(settings).token() for _ in range(5)))

    assert tokens == ["token-1"] * 5
    assert endpoint.asked == 1
    assert oauth.provider(settings).extensions() == {"logicalCluster": "lkc-1"}


async def test_a_token_is_renewed_before_its_end_and_lasts_till_then_if_it_cannot_be(endpoint: Endpoint) -> None:
    clock = [1000.0]
    tokens = oauth.EndpointTokens(endpoint.settings(), clock=lambda: clock[0])
    assert await tokens.token() == "token-1"

    clock[0] += 0.7 * 3600
    assert await tokens.token() == "token-1"
    clock[0] += 0.2 * 3600
    endpoint.answer = lambda: web.Response(status=500, text="{}")
    assert await tokens.token() == "token-1"
    clock[0] += 0.2 * 3600
    assert "status 500" in await refusal(tokens.token())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            lambda: web.json_response({"error": "invalid_client", "error_description": "hunter2 is wrong"}, status=401),
            "status 401, invalid_client",
        ),
        (lambda: web.Response(text="<html>hunter2</html>"), "status 200, and the answer is no JSON object"),
        (lambda: web.json_response(["hunter2"]), "no JSON object"),
        (lambda: web.json_response({"expires_in": 5}), "has no access_token"),
        (lambda: web.json_response({"access_token": ""}), "has no access_token"),
        (lambda: web.json_response({"error": "hunter2\n" * 100}, status=400), "status 400"),
        (lambda: web.Response(status=307, headers={"Location": "/elsewhere"}), "status 307"),
    ],
)
async def test_an_endpoint_that_gives_none_is_told_of_without_what_it_said(
    endpoint: Endpoint, answer: Callable[[], web.Response], told: str
) -> None:
    endpoint.answer = answer

    assert told in await refusal(oauth.EndpointTokens(endpoint.settings()).token())

    assert endpoint.asked == 1


async def test_an_endpoint_that_is_away_is_a_connection_that_failed() -> None:
    endpoint = Endpoint()
    endpoint.url = "http://127.0.0.1:1/token"

    assert "127.0.0.1:1" in await refusal(oauth.EndpointTokens(endpoint.settings()).token())


@pytest.mark.parametrize("life", ["3600", None, "soon"])
async def test_a_life_that_is_odd_or_not_told_is_no_obstacle(endpoint: Endpoint, life: object) -> None:
    endpoint.answer = lambda: web.json_response({"access_token": "t", "expires_in": life})
    tokens = oauth.EndpointTokens(endpoint.settings())

    assert [await tokens.token(), await tokens.token()] == ["t", "t"]
    assert endpoint.asked == 1


async def test_a_file_is_read_with_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    tokens = oauth.provider(
        KafkaSettings(bootstrap_servers="a:1", security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=file)
    )

    assert await tokens.token() == "first"
    file.write_text("second")
    assert await tokens.token() == "second"
    file.write_text(" \n")
    assert "is empty" in await refusal(tokens.token())
    file.unlink()
    assert "No such file" in await refusal(tokens.token())
