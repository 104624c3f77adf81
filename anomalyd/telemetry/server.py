"""The HTTP server: /metrics for Prometheus, /healthz and /readyz for whoever restarts or routes."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from anomalyd.errors import ConfigError
from anomalyd.settings import HttpSettings

Check = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether all is well, and details for people; must not block."""


class HttpServer:
    """Serves on the running event loop, so that /healthz answers exactly as long as the loop turns."""

    def __init__(self, settings: HttpSettings, registry: CollectorRegistry, *, health: Check, ready: Check) -> None:
        self._settings = settings
        self._app = web.Application()
        self._app.router.add_get("/metrics", make_aiohttp_handler(registry))
        self._app.router.add_get("/healthz", _answer(health))
        self._app.router.add_get("/readyz", _answer(ready))
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listens and returns the port, which the system chose if 0 was asked for.

        Raises:
            ConfigError: the address is taken, not ours or not allowed.
        """
        host, port = self._settings.host, self._settings.port
        # Probes and scrapes are no news; one still answering may hold up the end of the process for a second.
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            # asyncio wraps the system's words into its own; name resolution has negative numbers and good words.
            number = getattr(error, "errno", None) or 0
            reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
            raise ConfigError(f"http.host, http.port: cannot listen on {host}:{port}: {reason}") from None
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops listening; harmless if never started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def _answer(check: Check) -> Callable[[web.Request], Any]:
    async def handler(_: web.Request) -> web.Response:
        ok, detail = check()
        body = json.dumps({"ok": ok, **detail}, default=str) + "\n"
        return web.Response(text=body, status=200 if ok else 503, content_type="application/json", headers={"Cache-Control": "no-store"})

    return handler
