"""The topics that anomalyd writes: which are needed, what is there, making what is missing. Nothing that exists is ever altered."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from anomalyd.errors import TopicError
from anomalyd.kafka import client
from anomalyd.settings import Settings

DAY_MS: Final = 86_400_000
MOST_COPIES: Final = 3

_DEADLINE_S: Final = 60.0
_VISIBLE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Need:
    """A topic that anomalyd writes."""

    name: str
    role: Literal["alerts", "dead letters"]
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Existing:
    """A topic as the brokers describe it."""

    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the plan."""

    topic: str
    role: str
    status: Literal["ok", "missing", "created", "mismatch", "error"]
    text: str

    def __str__(self) -> str:
        return f"{self.status:<9}{self.topic}  ({self.role}): {self.text}"


def needs(settings: Settings, inputs: Mapping[str, Existing], brokers: int) -> list[Need]:
    """The topics to write to. They have as many partitions as the widest input, so that each input partition finds one of its own.

    Args:
        settings: the configuration.
        inputs: the input topics that exist; at least one.
        brokers: how many there are.
    """
    partitions = max(topic.partitions for topic in inputs.values())
    copies = settings.topics.replication_factor or min(MOST_COPIES, brokers)
    shared = {"cleanup.policy": "delete", "min.insync.replicas": str(max(1, copies - 1))}
    return [
        Need(settings.alerts.topic, "alerts", partitions, copies, shared | {"retention.ms": str(7 * DAY_MS)}),
        Need(settings.dead_letter_topic, "dead letters", partitions, copies, shared | {"retention.ms": str(14 * DAY_MS)}),
    ]


def compare(need: Need, existing: Existing) -> list[str]:
    """What about a topic does not do. Its retention, its number of copies and more partitions than needed are the operator's choice."""
    problems = []
    if existing.partitions < need.partitions:
        problems.append(f"has {existing.partitions} partitions, needs at least {need.partitions}")
    policy = existing.config.get("cleanup.policy", "delete")
    if policy != "delete":
        problems.append(f"has cleanup.policy {policy}, needs delete: compaction would drop messages of an alert that nobody has read yet")
    in_sync = int(existing.config.get("min.insync.replicas", "1"))
    if in_sync > existing.replication_factor:
        problems.append(f"has min.insync.replicas {in_sync} but {existing.replication_factor} copies: no write can succeed")
    return problems


def plan(settings: Settings) -> int:
    """Prints what is needed, what is there and what differs. Returns the exit code: 1 where something differs."""
    return _print(asyncio.run(_with_admin(settings, lambda admin: survey(admin, settings))))


def create(settings: Settings) -> int:
    """Creates what is missing and prints what was done. Returns the exit code: 1 on any error or mismatch."""
    return _print(asyncio.run(_with_admin(settings, lambda admin: make(admin, settings))))


async def verify(settings: Settings) -> None:
    """For the daemon, before it reads anything: is there somewhere to write?

    Raises:
        TopicError: the alerts or the dead-letter topic is missing.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    wanted = [settings.alerts.topic, settings.dead_letter_topic]
    there = await _with_admin(settings, lambda admin: describe(admin, wanted))
    missing = [name for name in wanted if name not in there]
    if missing:
        raise TopicError(
            f"topic{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing; make with: anomalyd topics create -c CONFIG"
        )


async def _with_admin(settings: Settings, work: Callable[[AIOKafkaAdminClient], Awaitable[Any]]) -> Any:  # noqa: ANN401  what `work` returns
    admin = AIOKafkaAdminClient(**client.options(settings.kafka))
    try:
        async with asyncio.timeout(_DEADLINE_S):
            await admin.start()
            return await work(admin)
    except (KafkaError, OSError) as error:
        raise client.unavailable(error, settings.kafka) from error
    finally:
        await client.close(_Closing(admin))


class _Closing:
    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        self._admin = admin

    async def stop(self) -> None:
        await self._admin.close()


async def describe(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, Existing]:
    """The topics among `names` that exist and that we may see.

    Raises:
        KafkaError: no answer.
    """
    # All topics, and no names: a broker with auto.create.topics.enable makes whatever it is asked for.
    return {
        topic["topic"]: Existing(len(topic["partitions"]), max(len(partition["replicas"]) for partition in topic["partitions"]))
        for topic in await admin.describe_topics()
        if topic["topic"] in names and topic["partitions"]
    }


async def survey(admin: AIOKafkaAdminClient, settings: Settings) -> list[Line]:
    """The plan: a line for each topic. Changes nothing."""
    lines, _ = await _survey(admin, settings)
    return lines


async def make(admin: AIOKafkaAdminClient, settings: Settings) -> list[Line]:
    """Creates what is missing; a line for each topic."""
    lines, missing = await _survey(admin, settings)
    if not missing or any(line.role == "input" and line.status == "mismatch" for line in lines):
        return lines
    request = [NewTopic(need.name, need.partitions, need.replication_factor, topic_configs=dict(need.config)) for need in missing]
    # Errors of single topics come in the answer; nothing is raised.
    answer = await admin.create_topics(request)
    errors = {topic: (code, text) for topic, code, text, *_ in answer.topic_errors}
    done: dict[str, Line] = {}
    for need in missing:
        code, text = errors.get(need.name, (0, None))
        if code in (0, TopicAlreadyExistsError.errno):  # a colleague may have been faster
            done[need.name] = Line(need.name, need.role, "created" if code == 0 else "ok", _describe(need))
        else:
            done[need.name] = Line(need.name, need.role, "error", f"not created: {text or for_code(code).description}")
    await _wait_until_visible(admin, [name for name, line in done.items() if line.status != "error"])
    return [done.get(line.topic, line) for line in lines]


async def _wait_until_visible(admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
    """A created topic takes a moment to reach every broker, and who comes at once would not find it."""
    if not names:
        return
    try:
        async with asyncio.timeout(_VISIBLE_S):
            while len(await describe(admin, names)) < len(names):  # noqa: ASYNC110  the brokers know, and have no event for us
                await asyncio.sleep(0.1)
    except TimeoutError:
        return


async def _survey(admin: AIOKafkaAdminClient, settings: Settings) -> tuple[list[Line], list[Need]]:
    inputs = [topic for stream in settings.streams for topic in stream.topics]
    there = await describe(admin, [*inputs, settings.alerts.topic, settings.dead_letter_topic])
    lines = [
        Line(topic, "input", "ok", f"{there[topic].partitions} partitions")
        if topic in there
        else Line(topic, "input", "mismatch", "missing, or not to be seen by this user; its producers own it, anomalyd does not create it")
        for topic in inputs
    ]
    known = {topic: there[topic] for topic in inputs if topic in there}
    if not known:
        text = "how many partitions it needs is not known while no input topic exists"
        return lines + [
            Line(name, role, "mismatch", text)
            for name, role in ((settings.alerts.topic, "alerts"), (settings.dead_letter_topic, "dead letters"))
        ], []
    brokers = len((await admin.describe_cluster())["brokers"])
    wanted = needs(settings, known, brokers)
    configs = await _configs(admin, [need.name for need in wanted if need.name in there])
    missing = []
    for need in wanted:
        if need.name not in there:
            missing.append(need)
            lines.append(Line(need.name, need.role, "missing", _describe(need)))
            continue
        existing = Existing(there[need.name].partitions, there[need.name].replication_factor, configs[need.name])
        problems = compare(need, existing)
        ok = f"{existing.partitions} partitions, {existing.replication_factor} copies"
        lines.append(Line(need.name, need.role, "mismatch" if problems else "ok", "; ".join(problems) or ok))
    return lines, missing


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    found: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, text, _, name, entries in answer.resources:
            if code:
                raise for_code(code)(f"{name}: {text}")
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _describe(need: Need) -> str:
    days = int(need.config["retention.ms"]) // DAY_MS
    return (
        f"{need.partitions} partitions, {need.replication_factor} copies, min.insync.replicas {need.config['min.insync.replicas']}, "
        f"kept {days} days"
    )


def _print(lines: Sequence[Line]) -> int:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return int(any(line.status in {"mismatch", "error"} for line in lines))
