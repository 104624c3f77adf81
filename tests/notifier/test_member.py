"""The way to one Alertmanager, which a server of the test's stands for."""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from anomalyd.notifier.member import Address, Member
from anomalyd.notifier.wire import Labels, Post
from anomalyd.settings import AlertmanagerSettings
from anomalyd.telemetry.notifying import NotifyMetrics
from tests.notifier.alerts import post
from tests.support.certificates import Authority
from tests.support.poll import until

Answer = Callable[[list[dict[str, Any]]], int]


class Server:
    """Takes alerts, and answers as it is told to."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: 200
        self.requests: list[list[str]] = []
        self.taken: list[str] = []
        self.told: dict[str, dict[str, Any]] = {}
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        alerts = json.loads(await request.read())
        self.requests.append([told["labels"]["host"] for told in alerts])
        self.headers.append(request.headers)
        self.paths.append(request.path)
        await self.open.wait()
        status = self.answer(alerts)
        if status == 200:
            self.taken += [told["labels"]["host"] for told in alerts]
            self.told |= {told["labels"]["host"]: told for told in alerts}
        return web.Response(status=status, text="no")


@contextlib.asynccontextmanager
async def serving(ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server, app = Server(), web.Application()
    app.router.add_post("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.open.set()
        await runner.cleanup()


class Rig:
    """A member and its figures."""

    def __init__(
        self, server: Server, prefix: str = "", ip: str | None = None, host: str = "127.0.0.1", scheme: str = "http", **settings: object
    ) -> None:
        self.url = f"{scheme}://{host}:{server.port}{prefix}"
        own = AlertmanagerSettings.model_validate({"urls": (self.url,), **settings})
        self.metrics = NotifyMetrics()
        self.member = Member(Address(self.url, ip), own, own.ssl_context(), self.metrics)

    def value(self, name: str, **labels: str) -> float:
        sought = {"alertmanager": self.member.address.name, **labels}
        return self.metrics.registry.get_sample_value(f"anomalyd_notify_{name}", sought) or 0.0


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    task = asyncio.create_task(rig.member.run())
    try:
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_alerts_arrive_in_batches() -> None:
    async with serving() as server, running(Rig(server, batch=2)) as rig:
        rig.member.put([post("a"), post("b"), post("c")])
        await until(lambda: rig.member.idle, "all to be sent")

    assert server.requests == [["a", "b"], ["c"]]
    assert server.paths == ["/api/v2/alerts"] * 2
    assert rig.value("alerts_sent_total") == 3


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_that_is_refused_costs_no_other(status: int) -> None:
    """Of a batch that is answered with 422 nothing was taken."""
    async with serving() as server, running(Rig(server)) as rig:
        server.answer = lambda alerts: status if any(told["labels"]["host"] == "bad" for told in alerts) else 200
        rig.member.put([post(host) for host in ("a", "b", "bad", "c", "d")])
        await until(lambda: rig.member.idle, "all to be sent")
        rig.member.put([post("bad"), post("a")])
        await until(lambda: rig.member.idle, "the next round")
        rounds = len(server.requests)
        rig.member.put([post("bad", value=1.0)])
        await until(lambda: len(server.requests) > rounds, "what has changed to be tried")

    assert sorted(server.taken) == ["a", "a", "b", "c", "d"]
    assert server.requests[-2:] == [["a"], ["bad"]]
    assert rig.value("alerts_rejected_total") == 2


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "overloaded"), (503, "overloaded"), (429, "overloaded"), (401, "refused"), (302, "refused")]
)
async def test_what_fails_is_sent_again_with_the_newest_word(status: int, reason: str) -> None:
    async with serving() as server, running(Rig(server)) as rig:
        server.answer = lambda _: 200 if len(server.requests) > 1 else status
        rig.member.put([post("a"), post("b")])
        await until(lambda: rig.value("errors_total", reason=reason), "the failure")
        rig.member.put([post("b", "resolved")])
        await until(lambda: rig.member.idle, "another try")

    assert sorted(server.taken) == ["a", "b"]
    assert rig.value("errors_total", reason=reason) == 1


async def test_a_member_that_is_not_there_is_tried_until_it_is() -> None:
    async with serving() as gone:
        port = gone.port
    server = Server()
    server.port = port
    async with running(Rig(server)) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.value("errors_total", reason="unreachable"), "the failure")
        assert not rig.member.idle


async def test_a_slow_member_is_given_up_and_asked_again() -> None:
    async with serving() as server, running(Rig(server, timeout_s=0.2)) as rig:
        server.open.clear()
        rig.member.put([post("a")])
        await until(lambda: rig.value("errors_total", reason="timeout"), "the deadline")
        server.open.set()
        await until(lambda: rig.member.idle, "another try")

    assert "a" in server.taken


async def test_where_too_many_wait_the_oldest_go() -> None:
    async with serving() as server, running(Rig(server, queue=3, batch=1)) as rig:
        server.open.clear()
        rig.member.put([post("0")])
        await until(lambda: server.requests, "a request to be under way")
        rig.member.put([post(host) for host in "12345"])
        assert rig.value("alerts_dropped_total") == 2
        assert rig.value("queue_length") == 3
        server.open.set()
        await until(lambda: rig.member.idle, "the rest to be sent")

    assert server.taken == ["0", "3", "4", "5"]


def everything(*hosts: str) -> dict[Labels, Post]:
    return {told.labels: told for told in map(post, hosts)}


async def test_all_that_is_open_is_told_again_however_much_it_is() -> None:
    """Through the queue the same ones would be dropped in every round, and end while they are open."""
    async with serving() as server, running(Rig(server, queue=3, batch=2)) as rig:
        for _ in range(2):
            rig.member.tell_again(everything(*"abcdefg"))
            await until(lambda: rig.member.idle, "the round")

    assert server.taken == list("abcdefg" * 2)
    assert rig.value("alerts_dropped_total") == 0


async def test_news_go_first_and_nothing_older_is_told_behind_them() -> None:
    async with serving() as server, running(Rig(server, batch=1)) as rig:
        server.open.clear()
        rig.member.tell_again(everything(*"abcd"))
        await until(lambda: server.requests, "a request to be under way")
        rig.member.put([post("c", "resolved"), post("x")])
        server.open.set()
        await until(lambda: rig.member.idle, "all to be sent")

    assert server.taken == ["a", "c", "x", "b", "d"]
    assert server.told["c"]["endsAt"] == "2026-01-01T12:10:00.000Z"


async def test_what_a_round_does_not_come_to_goes_first_in_the_next() -> None:
    async with serving() as server, running(Rig(server, batch=2)) as rig:
        server.open.clear()
        rig.member.tell_again(everything(*"abcde"))
        await until(lambda: server.requests, "a request to be under way")
        rig.member.tell_again(everything(*"abcdf"))
        server.open.set()
        await until(lambda: rig.member.idle, "the round")

    assert server.requests[:4] == [["a", "b"], ["c", "d"], ["a", "b"], ["f"]]


async def test_a_failed_round_takes_the_place_of_no_news() -> None:
    async with serving() as server, running(Rig(server, queue=2)) as rig:
        server.answer = lambda _: 503 if len(server.requests) == 1 else 200
        rig.member.tell_again(everything(*"abcde"))
        await until(lambda: rig.value("errors_total", reason="overloaded"), "the failure")
        rig.member.put([post("x"), post("a", "resolved")])
        await until(lambda: rig.member.idle, "another try")

    assert server.taken == ["x", "a", "b", "c", "d", "e"]
    assert rig.value("alerts_dropped_total") == 0


async def test_what_was_refused_is_tried_again_after_some_rounds() -> None:
    """It may have been a port that speaks TLS, or a proxy: they answer 400 to whatever comes."""
    async with serving() as server, running(Rig(server)) as rig:
        server.answer = lambda _: 400
        rig.member.put([post("a"), post("b")])
        await until(lambda: rig.member.idle, "the refusal")
        server.answer = lambda _: 200
        rounds = 0
        while not server.taken:
            rig.member.tell_again(everything("a", "b"))
            await until(lambda: rig.member.idle, "the round")
            rounds += 1
            assert rounds <= 10

    assert (server.taken, rounds) == (["a", "b"], 5)
    assert rig.value("alerts_rejected_total") == 2


async def test_a_token_that_no_request_can_carry_is_a_failure_like_others(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("two\nlines")
    async with serving() as server, running(Rig(server, bearer_token_file=file)) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.value("errors_total", reason="refused"), "the failure")
        file.write_text("one")
        await until(lambda: rig.member.idle, "another try")

    assert server.taken == ["a"]


async def test_behind_a_prefix_and_with_a_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    async with (
        serving() as server,
        running(Rig(server, prefix="/alertmanager/", basic_auth_username="anomalyd", basic_auth_password_file=file)) as rig,
    ):
        rig.member.put([post("a")])
        await until(lambda: rig.member.idle, "the first")
        file.write_text("second")
        rig.member.put([post("b")])
        await until(lambda: rig.member.idle, "the second")

    assert server.paths == ["/alertmanager/api/v2/alerts"] * 2
    sent = [headers["Authorization"] for headers in server.headers]
    assert sent == [f"Basic {base64.b64encode(text).decode()}" for text in (b"anomalyd:first", b"anomalyd:second")]


async def test_with_a_bearer_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    async with serving() as server, running(Rig(server, bearer_token_file=tmp_path / "token")) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.member.idle, "it to be sent")

    assert server.headers[0]["Authorization"] == "Bearer abc"


async def test_a_token_that_cannot_be_read_any_more_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    async with serving() as server, running(Rig(server, bearer_token_file=tmp_path / "token")) as rig:
        (tmp_path / "token").unlink()
        rig.member.put([post("a")])
        await until(lambda: rig.value("errors_total", reason="refused"), "the failure")
        (tmp_path / "token").write_text("def")
        await until(lambda: rig.member.idle, "it to be sent")

    assert server.headers[0]["Authorization"] == "Bearer def"


async def test_one_address_of_a_name_is_asked_by_its_name() -> None:
    async with serving() as server, running(Rig(server, host="alertmanager.example", ip="127.0.0.1")) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.member.idle, "it to be sent")

    assert server.headers[0]["Host"] == f"alertmanager.example:{server.port}"
    assert rig.member.address.name == f"http://alertmanager.example:{server.port} (127.0.0.1)"


async def test_through_a_proxy() -> None:
    async with serving() as proxy, running(Rig(proxy, host="alertmanager.example", proxy_url=f"http://127.0.0.1:{proxy.port}")) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.member.idle, "it to be sent")

    assert proxy.headers[0]["Host"] == f"alertmanager.example:{proxy.port}"


async def test_with_a_certificate(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    own = authority.issue("anomalyd")
    async with serving(authority.asking(authority.issue("alertmanager"))) as server:
        for trusted in (authority, stranger):
            async with running(Rig(server, scheme="https", ssl_cafile=trusted.certificate)) as rig:
                rig.member.put([post("a")])
                await until(lambda rig=rig: rig.value("errors_total", reason="unreachable"), "the refusal")  # type: ignore[misc]  # bound at once
                assert "object at 0x" not in str(rig.member.trouble)
        proven = Rig(server, scheme="https", ssl_cafile=authority.certificate, ssl_certfile=own.certificate, ssl_keyfile=own.key)
        async with running(proven) as rig:
            rig.member.put([post("a")])
            await until(lambda: rig.member.idle, "it to be sent")

    assert server.taken == ["a"]


async def test_a_wrong_path_is_told_before_there_is_an_alert() -> None:
    async with serving() as server, running(Rig(server)) as rig:
        server.answer = lambda _: 404
        rig.member.tell_again({})
        await until(lambda: rig.member.trouble, "trouble")
        assert rig.member.trouble == "refused: status 404: no"
        server.answer = lambda _: 200
        await until(lambda: rig.member.trouble is None, "its end")

    assert server.requests[-1] == []


async def test_a_member_that_is_gone_leaves_no_figures() -> None:
    async with serving() as server, running(Rig(server)) as rig:
        rig.member.put([post("a")])
        await until(lambda: rig.member.idle, "it to be sent")
        rig.member.close()

    assert rig.metrics.registry.get_sample_value("anomalyd_notify_alerts_sent_total", {"alertmanager": rig.url}) is None
