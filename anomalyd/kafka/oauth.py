"""Tokens for SASL OAUTHBEARER: out of a file that somebody keeps fresh, or from a token endpoint.

The client asks for a token with each connection. It does not authenticate again on a connection that is open (KIP-368), so brokers with
`connections.max.reauth.ms` hang up on it when that, or the token, is over, and the next connection brings a new one.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote_plus
from weakref import WeakKeyDictionary

import aiohttp
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from anomalyd.errors import ConfigError
from anomalyd.settings import KafkaSettings
from anomalyd.tls import unreached

_DEADLINE_S: Final = 10.0
_RENEW_AT: Final = 0.8
"""Part of its life after which a token is renewed."""

_UNKNOWN_LIFE_S: Final = 60.0
"""How long a token is kept whose endpoint does not say how long it lives; the RFC only recommends that it does."""

_MOST_ANSWER_BYTES: Final = 1 << 20


class _TokenError(KafkaConnectionError):  # type: ignore[misc]  # the client ships no types
    """No token, so no connection: the one kind of error that the client takes for a broker that cannot be reached, and tries again."""


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]  # the client ships no types
    """The token that is in the file when a connection is made."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    async def token(self) -> str:
        """Reads the file.

        Raises:
            KafkaConnectionError: it cannot be read, or is empty.
        """
        try:
            return self._settings.read_oauth_token()
        except ConfigError as error:
            raise _TokenError(str(error)) from error

    def extensions(self) -> dict[str, str]:
        """What goes along with the token."""
        return self._settings.sasl_oauth_extensions


class EndpointTokens(AbstractTokenProvider):  # type: ignore[misc]  # the client ships no types
    """Tokens by the client credentials grant (RFC 6749, section 4.4), one at a time for all connections.

    One that is still good goes on being used where the endpoint does not answer.

    Args:
        settings: where and as whom to ask.
        clock: seconds, from wherever.

    Raises:
        ConfigError: a certificate for the endpoint cannot be used.
    """

    def __init__(self, settings: KafkaSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._context = settings.oauth_ssl_context
        self._lock = asyncio.Lock()
        self._token = ""
        self._renew_s = self._ends_s = -math.inf

    async def token(self) -> str:
        """The token that is kept, or a new one.

        Raises:
            KafkaConnectionError: the endpoint gives none, and there is none that is still good.
        """
        async with self._lock:
            if self._clock() >= self._renew_s:
                try:
                    await self._renew()
                except _TokenError:
                    if self._clock() >= self._ends_s:
                        raise
            return self._token

    def extensions(self) -> dict[str, str]:
        """What goes along with the token."""
        return self._settings.sasl_oauth_extensions

    async def _renew(self) -> None:
        asked_s = self._clock()
        answer = await self._ask()
        token, life = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(token, str) or not token:
            raise self._error("the answer has no access_token")
        try:  # some send a text
            life_s = _UNKNOWN_LIFE_S if life is None else float(life)
        except (TypeError, ValueError):
            life_s = _UNKNOWN_LIFE_S
        self._token = token
        self._renew_s, self._ends_s = asked_s + _RENEW_AT * life_s, asked_s + life_s

    async def _ask(self) -> dict[str, Any]:
        settings = self._settings
        form = {"grant_type": "client_credentials"} | ({"scope": settings.sasl_oauth_scope} if settings.sasl_oauth_scope else {})
        try:
            secret = settings.read_oauth_client_secret()
            # Section 2.3.1: both are encoded like a form before they are joined.
            pair = f"{quote_plus(settings.sasl_oauth_client_id or '')}:{quote_plus(secret)}"
            headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}", "Accept": "application/json"}
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DEADLINE_S)) as session,
                # Whoever answers with another address would get the secret.
                session.post(
                    str(settings.sasl_oauth_token_url), data=form, headers=headers, ssl=self._context or True, allow_redirects=False
                ) as answer,
            ):
                body = await answer.content.read(_MOST_ANSWER_BYTES)
                return self._read(answer.status, body)
        except ConfigError as error:
            raise _TokenError(str(error)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a deadline is an OSError, too
            raise self._error(unreached(error)) from error

    def _read(self, status: int, body: bytes) -> dict[str, Any]:
        """The fields of an answer. Of its text only the error code is told: what else is in it may be secret."""
        try:
            fields = json.loads(body)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise self._error(f"status {status}, and the answer is no JSON object")
        if status != 200:
            code = fields.get("error")
            raise self._error(
                f"status {status}" + (f", {code}" if isinstance(code, str) and code.isprintable() and len(code) < 100 else "")
            )
        return fields

    def _error(self, why: str) -> _TokenError:
        return _TokenError(f"kafka.sasl_oauth_token_url: {self._settings.sasl_oauth_token_url}: {why}")


def provider(settings: KafkaSettings) -> AbstractTokenProvider:
    """What gives the tokens. All clients of an event loop share the one of a token endpoint, which is not asked for each of them.

    Raises:
        ConfigError: a certificate for the token endpoint cannot be used.
    """
    if settings.sasl_oauth_token_url is None:
        return FileTokens(settings)
    known = _providers.setdefault(asyncio.get_running_loop(), {})
    key = (settings.sasl_oauth_token_url, settings.sasl_oauth_client_id or "", settings.sasl_oauth_scope or "")
    if key not in known:
        known[key] = EndpointTokens(settings)
    return known[key]


_providers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], EndpointTokens]]] = WeakKeyDictionary()
