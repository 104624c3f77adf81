"""The daemon on a broker that wants to know who comes, and lets nobody do more than he must."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient

from anomalyd.app import App
from anomalyd.errors import KafkaRefusedError
from anomalyd.kafka import client, models, topics
from anomalyd.kafka.access import Right, rights
from anomalyd.kafka.intake import Intake
from anomalyd.kafka.registry import Decision, Packed
from anomalyd.settings import KafkaSettings, Settings
from tests.integration.daemon import incident
from tests.support.certificates import Authority
from tests.support.poll import until
from tests.support.secured import PLAIN_PASSWORD, PLAIN_USER, SecuredKafka, unsigned_token
from tests.support.topics import create_topic, produce, read_until, unique

pytestmark = pytest.mark.timeout(240)


class Site:
    """A configuration of its own names, with topics made by somebody who may do just that."""

    def __init__(self, secured: SecuredKafka, kafka: dict[str, Any], principal: str, *, make: bool = True, **more: object) -> None:
        self.secured, self.principal = secured, principal
        self.source = create_topic(secured.bootstrap, partitions=1)
        self.group = unique("group")
        self._more = more
        self.settings = self._as(kafka)
        if make:
            creator = unique("creator")
            secured.grant(creator, *rights(self.settings, "create"))
            assert topics.create(self._as(secured.scram(creator, "creator's"))) == 0

    def _as(self, kafka: dict[str, Any]) -> Settings:
        return Settings.model_validate(
            {
                "kafka": {"group_id": self.group, "session_timeout_ms": 6_000, "request_timeout_ms": 10_000, **kafka},
                "streams": [{"name": "hosts", "topics": [self.source], "format": "plain-json", "start_from": "earliest"}],
                "alerts": {"topic": f"{self.group}.alerts"},
                "checkpoint": {"interval_s": 0.2},
                "http": {"host": "127.0.0.1", "port": 0},
                **self._more,
            }
        )

    def grant(self) -> None:
        """Everything that is documented, and no more."""
        self.secured.grant(self.principal, *rights(self.settings))

    async def produce(self, host: str) -> None:
        """An incident in a series of its own."""
        await asyncio.to_thread(produce, self.secured.bootstrap, self.source, incident(host))

    async def alerted(self, *hosts: str) -> None:
        """Waits until exactly the incidents of these hosts were told, from beginning to end."""
        bootstrap, topic = self.secured.bootstrap, self.settings.alerts.topic
        found = await asyncio.to_thread(read_until, bootstrap, topic, lambda found: len(found) >= 2 * len(hosts), f"alerts of {hosts}", 60)
        alerts = [json.loads(record.value or b"") for record in found]
        assert sorted((alert["series"]["labels"]["host"], alert["status"]) for alert in alerts) == sorted(
            (host, status) for host in hosts for status in ("firing", "resolved")
        )


@asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[None]:
    """The daemon, ready; what it refuses is raised."""
    async with App(settings) as app:
        await app.until_ready(120)  # it may have to compile
        yield


# --- ways in --------------------------------------------------------------------------------------------------------

Way = Callable[[SecuredKafka, Path], tuple[dict[str, Any], str]]


def _tls(secured: SecuredKafka, _: Path) -> tuple[dict[str, Any], str]:
    return secured.tls(), "ANONYMOUS"


def _mtls(secured: SecuredKafka, _: Path) -> tuple[dict[str, Any], str]:
    name = unique("client")
    return secured.mtls(secured.authority.issue(name)), name


def _scram(secured: SecuredKafka, _: Path) -> tuple[dict[str, Any], str]:
    name = unique("user")
    return secured.scram(name, "scram's"), name


def _plain(secured: SecuredKafka, _: Path) -> tuple[dict[str, Any], str]:
    return secured.sasl("PLAIN", sasl_username=PLAIN_USER, sasl_password=PLAIN_PASSWORD), PLAIN_USER


def _token_file(secured: SecuredKafka, folder: Path) -> tuple[dict[str, Any], str]:
    name, file = unique("subject"), folder / "token"
    file.write_text(unsigned_token(name) + "\n")
    return secured.sasl("OAUTHBEARER", sasl_oauth_token_file=str(file)), name


@pytest.mark.parametrize("way", [_tls, _mtls, _scram, _plain, _token_file], ids=["tls", "mtls", "scram", "plain", "oauth-file"])
async def test_incidents_are_told_whatever_way_the_daemon_comes_in(secured_kafka: SecuredKafka, way: Way, tmp_path: Path) -> None:
    """From topics to alerts, with exactly the documented rights of `create` and `run`."""
    kafka, principal = way(secured_kafka, tmp_path)
    site = await asyncio.to_thread(Site, secured_kafka, kafka, principal)
    await asyncio.to_thread(site.grant)
    await site.produce("web-1")

    async with at_work(site.settings):
        await site.alerted("web-1")


@asynccontextmanager
async def token_endpoint(subject: str, asked: list[dict[str, str]], life_s: float) -> AsyncIterator[str]:
    """Gives tokens to whoever comes, and notes what it was asked."""

    async def answer(request: web.Request) -> web.Response:
        credentials = unquote_plus(base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode())
        asked.append({"credentials": credentials, **{key: str(value) for key, value in (await request.post()).items()}})
        return web.json_response({"access_token": unsigned_token(subject, life_s), "token_type": "Bearer", "expires_in": life_s})

    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


async def test_tokens_come_from_an_endpoint_and_their_end_is_outlived(secured_kafka: SecuredKafka) -> None:
    """Brokers hang up when a token is over; the daemon comes back with a new one, and nothing is lost or told twice."""
    subject, asked = unique("subject"), list[dict[str, str]]()
    async with token_endpoint(subject, asked, life_s=3.0) as url:
        oauth = {
            "sasl_oauth_token_url": url,
            "sasl_oauth_client_id": "id",
            "sasl_oauth_client_secret": "s%:crét",
            "sasl_oauth_scope": "kafka",
        }
        site = await asyncio.to_thread(Site, secured_kafka, secured_kafka.sasl("OAUTHBEARER", "BRIEF", **oauth), subject)
        await asyncio.to_thread(site.grant)
        await site.produce("web-1")

        async with at_work(site.settings):
            await site.alerted("web-1")
            before = len(asked)
            await until(lambda: len(asked) >= before + 2, "new tokens")
            await site.produce("web-2")
            await site.alerted("web-1", "web-2")

    assert all(one == {"credentials": "id:s%:crét", "grant_type": "client_credentials", "scope": "kafka"} for one in asked)


# --- what is replaced while it runs ---------------------------------------------------------------------------------


async def test_a_new_authority_and_a_new_password_need_no_restart(secured_kafka: SecuredKafka, tmp_path: Path) -> None:
    """The broker ends each connection after two seconds, so all that follow are made with what lies in the files then."""
    user, password, trusted = unique("user"), tmp_path / "password", tmp_path / "ca.crt"
    password.write_text("first")
    trusted.write_text(secured_kafka.authority.certificate.read_text())
    secured_kafka.set_password(user, "first")
    files = {"sasl_password_file": str(password), "ssl_cafile": str(trusted)}
    kafka = secured_kafka.sasl("SCRAM-SHA-512", "BRIEF", sasl_username=user, **files)
    site = await asyncio.to_thread(Site, secured_kafka, kafka, user)
    await asyncio.to_thread(site.grant)
    await site.produce("web-1")

    async with at_work(site.settings):
        await site.alerted("web-1")
        other = await asyncio.to_thread(Authority, tmp_path / "other", "other")
        await asyncio.to_thread(secured_kafka.use_authority, other)
        await asyncio.to_thread(secured_kafka.set_password, user, "second")
        trusted.write_text(other.certificate.read_text())
        password.write_text("second")
        await site.produce("web-2")
        await site.alerted("web-1", "web-2")


async def test_a_client_certificate_that_is_replaced_is_shown_with_the_next_connection(secured_kafka: SecuredKafka, tmp_path: Path) -> None:
    first, second, topic = unique("client"), unique("client"), await asyncio.to_thread(create_topic, secured_kafka.bootstrap)
    await asyncio.to_thread(secured_kafka.grant, second, Right("topic", topic, "Describe"))
    mine = await asyncio.to_thread(secured_kafka.authority.issue, first)
    theirs = await asyncio.to_thread(secured_kafka.authority.issue, second)
    options = client.options(KafkaSettings(**secured_kafka.mtls(mine)))

    async def sees() -> bool:
        admin = AIOKafkaAdminClient(**options)
        try:
            await admin.start()
            return topic in {found["topic"] for found in await admin.describe_topics()}
        finally:
            await admin.close()

    assert not await sees()
    mine.key.write_bytes(theirs.key.read_bytes())
    assert not await sees()  # a key without its certificate: the pair of before
    mine.certificate.write_bytes(theirs.certificate.read_bytes())
    seen: bool = await until(sees, "the rights of the second")
    assert seen


# --- rights ---------------------------------------------------------------------------------------------------------


async def test_a_start_names_every_right_that_is_lacking(secured_kafka: SecuredKafka) -> None:
    user = unique("user")
    site = await asyncio.to_thread(Site, secured_kafka, secured_kafka.scram(user, "scram's"), user)
    needed = [right for right in rights(site.settings) if right.needed]

    async def lacking(*expected: Right) -> bool:
        try:
            await topics.verify(site.settings)
        except KafkaRefusedError as error:
            told = str(error).splitlines()
            assert all(line.strip().startswith("kafka-acls.sh --bootstrap-server ") for line in told[1:])
            return told[0].removeprefix("Kafka: not allowed: ").partition(";")[0] == ", ".join(map(str, expected))
        return not expected

    assert await lacking(*needed)
    await asyncio.to_thread(secured_kafka.grant, user, *needed)
    enough: bool = await until(lacking, "the rights that were granted")
    assert enough
    for right in needed:
        await asyncio.to_thread(secured_kafka.revoke, user, right)
        missed: bool = await until(partial(lacking, right), f"{right} to be missed")
        assert missed
        await asyncio.to_thread(secured_kafka.grant, user, right)


@pytest.mark.parametrize(
    "chosen",
    [
        lambda site: Right("topic", site.source, "Read"),
        lambda site: Right("group", site.group, "Read"),
        lambda site: Right("topic", site.settings.alerts.topic, "Write"),
        lambda site: Right("topic", site.settings.changelog_topic(site.source), "Write"),
        lambda site: Right("transactional-id", site.settings.transactional_prefix(site.source), "Write", prefixed=True),
    ],
    ids=["input", "group", "alerts", "changelog", "transactional-id"],
)
async def test_a_right_that_is_taken_away_ends_the_daemon_with_its_name(
    secured_kafka: SecuredKafka, chosen: Callable[[Site], Right]
) -> None:
    user = unique("user")
    site = await asyncio.to_thread(Site, secured_kafka, secured_kafka.scram(user, "scram's"), user)
    await asyncio.to_thread(site.grant)
    right = chosen(site)

    app = App(site.settings)
    running = asyncio.create_task(app.run())
    await until(lambda: running.done() or app._ready()[0], "readiness", 60)  # noqa: SLF001  until_ready() is for those that enter it
    await asyncio.to_thread(secured_kafka.revoke, user, right)
    await site.produce("web-1")
    with pytest.raises(KafkaRefusedError) as refused:
        await asyncio.wait_for(running, 60)

    named = right.name if not right.prefixed else f"{right.name}0"
    assert f"not allowed: {right.operation} on {right.kind.replace('-', ' ')} {named}" in str(refused.value)


async def test_what_the_retrainer_does_to_topics_needs_just_its_rights(secured_kafka: SecuredKafka) -> None:
    """Reading inputs with positions, reading alerts, publishing a model."""
    user = unique("user")
    site = await asyncio.to_thread(Site, secured_kafka, secured_kafka.scram(user, "scram's"), user)
    await asyncio.to_thread(secured_kafka.grant, user, *rights(site.settings, "retrain"))
    await site.produce("web-1")
    inputs = Intake(site.settings.kafka, [site.source], site.settings.retrain_group, 0)
    alerts = Intake(site.settings.kafka, [site.settings.alerts.topic], None)
    try:
        taken = 0
        while taken < 600:
            taken += sum(len(batch.records) for batch in await inputs.poll())
        await inputs.commit()
        assert await alerts.poll() == []
    finally:
        await inputs.close()
        await alerts.close()
    await models.publish(site.settings, Packed("ab" * 32, b"weights"), "hosts", Decision("promoted", "test"))

    assert (await models.read(site.settings)).champions["hosts"].model == "ab" * 32


async def test_the_topics_of_at_least_once_need_no_right_to_transactions(secured_kafka: SecuredKafka) -> None:
    user = unique("user")
    site = await asyncio.to_thread(Site, secured_kafka, secured_kafka.scram(user, "scram's"), user, delivery="at-least-once")
    assert not any(right.kind == "transactional-id" for right in rights(site.settings))
    await asyncio.to_thread(site.grant)
    await site.produce("web-1")

    async with at_work(site.settings):
        await site.alerted("web-1")
