"""Who is told."""

import asyncio
from typing import Any

import pytest

from anomalyd.notifier import main
from anomalyd.notifier.main import Notifier
from anomalyd.settings import Settings


def notifier(*urls: str) -> Notifier:
    return Notifier(
        Settings.model_validate(
            {
                "kafka": {"bootstrap_servers": "127.0.0.1:1"},
                "streams": [{"name": "hosts", "topics": ["metrics"], "format": "plain-json"}],
                "alertmanager": {"urls": urls, "discover": True},
            }
        )
    )


async def members(of: Notifier) -> Any:  # noqa: ANN401  what /readyz says
    await of._round()  # noqa: SLF001  a round would come each minute
    return list(of._ready()[1]["alertmanagers"])  # noqa: SLF001  likewise


async def ended(of: Notifier) -> None:
    tasks = [task for _, task in of._members.values()]  # noqa: SLF001  nobody runs it whole
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_members_come_and_go_with_their_addresses_and_a_name_server_that_fails_takes_none_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [["10.0.0.1", "10.0.0.2"], OSError("no answer"), UnicodeError("label too long"), [], ["10.0.0.2", "10.0.0.3"]]

    async def look_up(*_: object, **__: object) -> list[Any]:
        answer = answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return [(None, None, None, "", (ip, 9093)) for ip in answer]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    monkeypatch.setattr(main, "_LOOK_UP_S", 0.01)
    of = notifier("http://alertmanager:9093")
    try:
        first = [f"http://alertmanager:9093 ({ip})" for ip in ("10.0.0.1", "10.0.0.2")]
        for _ in range(4):
            assert await members(of) == first
        assert await members(of) == [first[1], "http://alertmanager:9093 (10.0.0.3)"]
        answers.append(None)
        assert len(await members(of)) == 2
    finally:
        await ended(of)


async def test_what_is_no_name_is_as_one_that_is_unknown() -> None:
    of = notifier(f"http://{'a' * 70}:9093", "http://a:port")
    assert await members(of) == []
