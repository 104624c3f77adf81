"""The HTTP server as probes and Prometheus see it."""

import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from anomalyd.errors import ConfigError
from anomalyd.settings import HttpSettings
from anomalyd.telemetry.metrics import Metrics
from anomalyd.telemetry.server import HttpServer

LOCAL = HttpSettings(host="127.0.0.1", port=0)


class Daemon:
    """Answers as told."""

    def __init__(self) -> None:
        self.healthy = self.ready = True
        self.detail: Mapping[str, Any] = {}
        self.server = HttpServer(LOCAL, Metrics().registry, health=lambda: (self.healthy, {}), ready=lambda: (self.ready, self.detail))
        self.port = 0

    async def get(self, path: str) -> tuple[int, str, str]:
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.status, answer.content_type, await answer.text()


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    daemon = Daemon()
    daemon.port = await daemon.server.start()
    yield daemon
    await daemon.server.stop()


async def test_port_zero_takes_a_free_one_and_says_which(daemon: Daemon) -> None:
    assert daemon.port > 0


async def test_metrics_are_served_as_prometheus_reads_them(daemon: Daemon) -> None:
    status, kind, text = await daemon.get("/metrics")

    assert (status, kind) == (200, "text/plain")
    assert "anomalyd_records_consumed_total 0.0" in text


async def test_health_and_readiness_are_told_apart(daemon: Daemon) -> None:
    daemon.ready = False
    daemon.detail = {"partitions": 0}

    assert await daemon.get("/healthz") == (200, "application/json", '{"ok": true}\n')
    assert await daemon.get("/readyz") == (503, "application/json", '{"ok": false, "partitions": 0}\n')
    daemon.healthy, daemon.ready = False, True
    assert (await daemon.get("/healthz"))[0] == 503
    assert (await daemon.get("/readyz"))[0] == 200


async def test_other_paths_are_not_found(daemon: Daemon) -> None:
    assert (await daemon.get("/"))[0] == 404


async def test_port_in_use_is_the_operators_to_mend(daemon: Daemon) -> None:
    settings = HttpSettings(host="127.0.0.1", port=daemon.port)
    second = HttpServer(settings, Metrics().registry, health=lambda: (True, {}), ready=lambda: (True, {}))

    with pytest.raises(ConfigError) as caught:
        await second.start()
    assert str(caught.value) == f"http.host, http.port: cannot listen on 127.0.0.1:{daemon.port}: Address already in use"
    await second.stop()


async def test_host_that_is_not_ours_is_refused() -> None:
    server = HttpServer(HttpSettings(host="192.0.2.1", port=0), Metrics().registry, health=lambda: (True, {}), ready=lambda: (True, {}))

    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        await server.start()


async def test_port_is_free_again_after_stop() -> None:
    daemon = Daemon()
    port = await daemon.server.start()
    await daemon.server.stop()
    await daemon.server.stop()

    with socket.create_server(("127.0.0.1", port)):
        pass


class TestTokens:
    """/metrics for those who have a token; probes have none."""

    @pytest.fixture
    async def guarded(self, tmp_path: Path) -> AsyncIterator[Daemon]:
        daemon = Daemon()
        self.file = tmp_path / "tokens"
        self.file.write_text("old\nnew\n")
        daemon.detail = {"partitions": 3}
        settings = HttpSettings(host="127.0.0.1", port=0, token_file=self.file)
        daemon.server = HttpServer(settings, Metrics().registry, health=lambda: (True, {}), ready=lambda: (daemon.ready, daemon.detail))
        daemon.port = await daemon.server.start()
        yield daemon
        await daemon.server.stop()

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (None, 401),
            ("Bearer", 401),
            ("Bearer wrong", 401),
            ("Bearer \u00e9", 401),
            ("Basic bmV3", 401),
            ("Bearer old new", 401),
            ("Bearer old", 200),
            ("bearer new", 200),
        ],
    )
    async def test_metrics_ask_for_one(self, guarded: Daemon, header: str | None, status: int) -> None:
        headers = {"Authorization": header} if header else {}
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{guarded.port}/metrics", headers=headers) as answer:
            assert answer.status == status
            assert ("anomalyd_" in await answer.text()) == (status == 200)
            assert ("WWW-Authenticate" in answer.headers) == (status == 401)

    async def test_probes_learn_whether_and_not_why(self, guarded: Daemon) -> None:
        assert await guarded.get("/readyz") == (200, "application/json", '{"ok": true}\n')
        guarded.ready = False
        assert await guarded.get("/readyz") == (503, "application/json", '{"ok": false}\n')
        url, headers = f"http://127.0.0.1:{guarded.port}/readyz", {"Authorization": "Bearer old"}
        async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
            assert await answer.text() == '{"ok": false, "partitions": 3}\n'

    async def test_tokens_may_be_replaced_and_none_lets_nobody_in(self, guarded: Daemon) -> None:
        url, headers = f"http://127.0.0.1:{guarded.port}/metrics", {"Authorization": "Bearer next"}
        async with aiohttp.ClientSession(headers=headers) as client:
            for content, status in (("old", 401), ("next", 200), ("", 401)):
                self.file.write_text(content)
                async with client.get(url) as answer:
                    assert answer.status == status

    async def test_a_file_without_tokens_is_refused_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "empty").write_text("\n")
        settings = HttpSettings(host="127.0.0.1", port=0, token_file=tmp_path / "empty")
        server = HttpServer(settings, Metrics().registry, health=lambda: (True, {}), ready=lambda: (True, {}))

        with pytest.raises(ConfigError, match=r"http\.token_file: .* holds no token"):
            await server.start()
