"""Remote write is beside everything else: it waits for nobody's sake, drops the oldest, and gives up what is refused."""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from anomalyd.remote.series import Names
from anomalyd.remote.writer import RemoteWriter
from anomalyd.settings import RemoteWriteSettings
from tests.remote.test_protobuf import read
from tests.remote.test_series import points
from tests.support.certificates import Authority
from tests.support.poll import until


class Counted:
    def __init__(self) -> None:
        self.written = self.failed = self.queued = 0
        self.dropped = Counter[str]()

    def remote_written(self, samples: int, seconds: float) -> None:
        self.written += samples

    def remote_failed(self) -> None:
        self.failed += 1

    def remote_dropped(self, reason: str, samples: int) -> None:
        self.dropped[reason] += samples

    def remote_queued(self, samples: int) -> None:
        self.queued = samples


class Receiver:
    """Answers with `status`, and keeps what it took."""

    def __init__(self) -> None:
        self.status = 204
        self.times: list[int] = []
        self.headers: list[dict[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.headers.append(dict(request.headers))
        if self.status < 300:
            self.times += [at for labels, samples in read(body) if labels["__name__"] == "anomaly_score" for at, _ in samples]
        return web.Response(status=self.status, text="out of order sample")


Open = Callable[..., RemoteWriter]


@asynccontextmanager
async def receiving(served: ssl.SSLContext | None = None, **options: object) -> AsyncIterator[tuple[Receiver, RemoteWriter, Counted]]:
    receiver, counted = Receiver(), Counted()
    app = web.Application()
    app.router.add_post("/write", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=served).start()
    given: dict[str, object] = {
        "names": Names(),
        "labels": {},
        "headers": {},
        "token_file": None,
        "most_waiting": 100,
        "most_at_once": 10,
        "timeout_s": 5.0,
        "ssl_context": ssl.create_default_context(),
    }
    url = f"http{'s' if served else ''}://127.0.0.1:{runner.addresses[0][1]}/write"
    writer = RemoteWriter(url, **(given | options), metrics=counted)  # type: ignore[arg-type]  # options of this very constructor
    try:
        yield receiver, writer, counted
    finally:
        await writer.stop()
        await runner.cleanup()


async def test_everything_arrives_in_order_and_nothing_waits_afterwards(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with receiving(token_file=token, headers={"X-Scope-OrgID": "team"}) as (receiver, writer, counted):
        writer.start()
        writer.offer([points(list(range(25))), points([25, 26])])
        await until(lambda: counted.written == 27, "27 samples")

    assert receiver.times == list(range(27))
    assert (counted.queued, counted.dropped) == (0, {})
    for headers in receiver.headers:
        assert (headers["Authorization"], headers["X-Scope-OrgID"]) == ("Bearer secret", "team")
        assert (headers["Content-Encoding"], headers["X-Prometheus-Remote-Write-Version"]) == ("snappy", "0.1.0")


async def test_with_a_certificate(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    served, own = authority.asking(authority.issue("receiver")), authority.issue("anomalyd")
    theirs = RemoteWriteSettings(ssl_cafile=stranger.certificate, ssl_certfile=own.certificate, ssl_keyfile=own.key)
    ours = RemoteWriteSettings(ssl_cafile=authority.certificate, ssl_certfile=own.certificate, ssl_keyfile=own.key)

    async with receiving(served, ssl_context=theirs.ssl_context()) as (_, writer, counted):
        writer.start()
        writer.offer([points([1])])
        await until(lambda: counted.failed, "the refusal")
    async with receiving(served, ssl_context=ours.ssl_context()) as (receiver, writer, counted):
        writer.start()
        writer.offer([points([2])])
        await until(lambda: counted.written, "it to be taken")

    assert receiver.times == [2]


async def test_what_finds_no_room_goes_oldest_first() -> None:
    async with receiving(most_waiting=20) as (receiver, writer, counted):
        for start in range(0, 60, 10):
            writer.offer([points(list(range(start, start + 10)))])
        assert (counted.queued, counted.dropped) == (20, {"no-room": 40})
        writer.start()
        await until(lambda: counted.written == 20, "what was left")

    assert receiver.times == list(range(40, 60))


@pytest.mark.parametrize("status", [500, 429])
async def test_a_receiver_in_trouble_is_asked_again(status: int) -> None:
    async with receiving() as (receiver, writer, counted):
        receiver.status = status
        writer.start()
        writer.offer([points([1, 2, 3])])
        await until(lambda: counted.failed >= 2, "two failures")
        receiver.status = 204
        await until(lambda: counted.written == 3, "the samples")

    assert receiver.times == [1, 2, 3]
    assert counted.dropped == {}


async def test_what_is_refused_is_given_up_and_what_comes_behind_arrives() -> None:
    async with receiving() as (receiver, writer, counted):
        receiver.status = 400
        writer.start()
        writer.offer([points([1, 2, 3])])
        await until(lambda: counted.dropped, "a refusal")
        receiver.status = 204
        writer.offer([points([4])])
        await until(lambda: counted.written == 1, "the next one")

    assert receiver.times == [4]
    assert counted.dropped == {"refused": 3}


async def test_a_receiver_that_is_gone_does_not_keep_the_process() -> None:
    async with receiving() as (receiver, writer, counted):
        receiver.status = 503
        writer.start()
        writer.offer([points(list(range(50)))])
        await until(lambda: counted.failed, "a failure")

    assert receiver.times == []
