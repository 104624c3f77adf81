"""The HTTP server: /metrics for Prometheus, /healthz and /readyz for whoever restarts or routes."""

import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from anomalyd.errors import ConfigError
from anomalyd.settings import HttpSettings

Check = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether all is well, and details for people; must not block."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_UNSTORED: Final = {"Cache-Control": "no-store"}


_log = structlog.get_logger(__name__)


class HttpServer:
    """Serves on the running event loop, so that /healthz answers exactly as long as the loop turns.

    With `http.token_file`, /metrics is for who has a token. Probes have none: kubelets would need it in the pod's manifest. They learn the
    status, and who has a token the reasons, too.
    """

    def __init__(self, settings: HttpSettings, registry: CollectorRegistry, *, health: Check, ready: Check, where: str = "http") -> None:
        """`where`: the section of the configuration that `settings` are."""
        self._settings = settings
        self._where = where
        self._app = web.Application()
        self._app.router.add_get("/metrics", self._guarded(make_aiohttp_handler(registry)))
        self._app.router.add_get("/healthz", self._answer(health))
        self._app.router.add_get("/readyz", self._answer(ready))
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listens and returns the port, which the system chose if 0 was asked for.

        Raises:
            ConfigError: the address is taken, not ours or not allowed; a certificate, key or token file cannot be used.
        """
        host, port = self._settings.host, self._settings.port
        context = self._settings.ssl_context()
        self._settings.read_tokens()
        # Probes and scrapes are no news; one still answering may hold up the end of the process for a second.
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            # asyncio wraps the system's words into its own; name resolution has negative numbers and good words.
            number = getattr(error, "errno", None) or 0
            reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
            raise ConfigError(f"{self._where}.host, {self._where}.port: cannot listen on {host}:{port}: {reason}") from None
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops listening; harmless if never started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            return await handler(request) if self._knows(request) else _unauthorised()

        return guarded

    def _answer(self, check: Check) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            ok, detail = check()
            body = json.dumps({"ok": ok, **(detail if self._knows(request) else {})}, default=str) + "\n"
            return web.Response(text=body, status=200 if ok else 503, content_type="application/json", headers=_UNSTORED)

        return handler

    def _knows(self, request: web.Request) -> bool:
        """Whether the request has one of the tokens, or none is asked for."""
        try:
            tokens = self._settings.read_tokens()
        except ConfigError as error:
            _log.warning("http_tokens_unusable", reason=str(error))
            return False
        if tokens is None:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # All are compared, and in constant time: how long it takes says nothing about any of them.
        matches = [hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode()) for token in tokens]
        return scheme.lower() == "bearer" and any(matches)


def _unauthorised() -> web.Response:
    return web.Response(status=401, text="a bearer token is needed\n", headers={**_UNSTORED, "WWW-Authenticate": 'Bearer realm="anomalyd"'})
