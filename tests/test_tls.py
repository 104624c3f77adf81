"""Certificates that are replaced under a running server."""

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from anomalyd.errors import ConfigError
from anomalyd.settings import HttpSettings
from anomalyd.telemetry.metrics import Metrics
from anomalyd.telemetry.server import HttpServer
from tests.support.certificates import Authority


async def trusted(authority: Authority, port: int) -> bool:
    """Whether somebody who trusts this authority alone gets an answer."""
    context = ssl.create_default_context(cafile=authority.certificate)
    try:
        async with aiohttp.ClientSession() as client, client.get(f"https://localhost:{port}/healthz", ssl=context) as answer:
            return answer.status == 200
    except aiohttp.ClientConnectorCertificateError:
        return False


async def test_each_connection_shows_the_certificate_that_is_there_then(tmp_path: Path) -> None:
    first, second = (Authority(tmp_path, name) for name in ("first", "second"))
    certificate, key = first.issue("anomalyd")
    other_certificate, other_key = second.issue("anomalyd")
    settings = HttpSettings(host="127.0.0.1", port=0, tls_certfile=certificate, tls_keyfile=key)
    server = HttpServer(settings, Metrics().registry, health=lambda: (True, {}), ready=lambda: (True, {}))
    port = await server.start()
    try:
        assert [await trusted(first, port), await trusted(second, port)] == [True, False]
        with capture_logs() as lines:
            certificate.write_bytes(other_certificate.read_bytes())
            assert await trusted(first, port)  # its key is not there yet
            key.write_bytes(other_key.read_bytes())
            assert [await trusted(first, port), await trusted(second, port)] == [False, True]
        assert [line["event"] for line in lines] == ["tls_files_unusable", "tls_files_read"]
    finally:
        await server.stop()


async def test_a_certificate_that_does_not_do_is_said_at_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, _ = authority.issue("anomalyd")
    _, key = authority.issue("another")
    server = HttpServer(
        HttpSettings(host="127.0.0.1", port=0, tls_certfile=certificate, tls_keyfile=key),
        Metrics().registry,
        health=lambda: (True, {}),
        ready=lambda: (True, {}),
    )

    with pytest.raises(ConfigError, match=r"http\.tls_certfile, http\.tls_keyfile: "):
        await server.start()


async def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path, "authority").issue("anomalyd", password="hunter2")

    with pytest.raises(ConfigError):
        await asyncio.to_thread(HttpSettings(tls_certfile=certificate, tls_keyfile=key).ssl_context)
