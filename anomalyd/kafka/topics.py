"""The topics that anomalyd writes: which are needed, what is there, making what is missing. Nothing that exists is ever altered."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from anomalyd.errors import KafkaRefusedError, TopicError
from anomalyd.kafka import access, client
from anomalyd.kafka.committed import CommittedLog
from anomalyd.settings import Settings

DAY_MS: Final = 86_400_000
MOST_COPIES: Final = 3

CHANGELOG_MESSAGE_BYTES: Final = 8 << 20
"""A page of state rows is one message; its rows take half a MiB, the keys of its series up to a MiB more."""

LEAST_CHANGELOG_MESSAGE_BYTES: Final = 6 << 20

CHANGELOG_CONFIG: Final[dict[str, str]] = {
    "cleanup.policy": "compact",
    # The segment that is written to is never compacted, and a restore reads it whole: a GiB, as brokers have it, would be minutes.
    "segment.bytes": str(64 << 20),
    "max.message.bytes": str(CHANGELOG_MESSAGE_BYTES),
    # So much of the log may be outdated before it is compacted. At the brokers' 0.5 a restore could find as much waste as state; at 0.2 it
    # is a quarter, and the cleaner copies four bytes for each one that is written.
    "min.cleanable.dirty.ratio": "0.2",
}
"""Settings of a changelog besides copies."""

MODELS_CONFIG: Final[dict[str, str]] = {"cleanup.policy": "compact", "segment.bytes": str(64 << 20)}
"""Settings of the models topic besides copies."""

LEAST_MODELS_MESSAGE_BYTES: Final = 1_000_000
"""Brokers take a little more unless they are told otherwise; models are cut into parts for it."""

_NOT_ALLOWED: Final = frozenset({TopicAuthorizationFailedError.errno, ClusterAuthorizationFailedError.errno})

_DEADLINE_S: Final = 60.0
_VISIBLE_S: Final = 15.0
_AGAIN_S: Final = 0.2

Role = Literal["alerts", "dead letters", "scores", "state", "models"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Need:
    """A topic that anomalyd writes."""

    name: str
    role: Role
    partitions: int
    replication_factor: int
    config: Mapping[str, str]
    source: str = ""
    """Of a changelog: its input."""


@dataclass(frozen=True, slots=True)
class Existing:
    """A topic as the brokers describe it."""

    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    """Every setting, also those that nobody has given a value; empty where we may not see them."""
    blank: bool = False
    """Known to hold nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the plan."""

    topic: str
    role: Role | Literal["input"]
    status: Literal["ok", "missing", "created", "waits", "mismatch", "error"]
    text: str

    def __str__(self) -> str:
        return f"{self.status:<9}{self.topic}  ({self.role}): {self.text}"


def needs(settings: Settings, inputs: Mapping[str, Existing], brokers: int) -> list[Need]:
    """The topics to write to.

    Alerts, dead letters and scores get as many partitions as the widest input, so that each input partition finds one of its own. A
    changelog has the partitions of its input: what was learned from a partition lies in the one with the same number. Models lie in one
    partition.

    Args:
        settings: the configuration.
        inputs: the input topics by name, at least one; 0 partitions: it does not exist.
        brokers: how many there are.
    """
    partitions = max(topic.partitions for topic in inputs.values())
    copies = settings.topics.replication_factor or min(MOST_COPIES, brokers)
    shared = {"min.insync.replicas": str(max(1, copies - 1))}
    messages = shared | {"cleanup.policy": "delete"}
    scores = [] if settings.scores.topic is None else [settings.scores.topic]
    return [
        Need(settings.alerts.topic, "alerts", partitions, copies, messages | {"retention.ms": str(7 * DAY_MS)}),
        Need(settings.dead_letter_topic, "dead letters", partitions, copies, messages | {"retention.ms": str(14 * DAY_MS)}),
        *(Need(name, "scores", partitions, copies, messages | {"retention.ms": str(2 * DAY_MS)}) for name in scores),
        *(
            Need(settings.changelog_topic(name), "state", topic.partitions, copies, shared | CHANGELOG_CONFIG, name)
            for name, topic in inputs.items()
        ),
        Need(settings.models_topic, "models", 1, copies, shared | MODELS_CONFIG),
    ]


def compare(need: Need, existing: Existing, servers: str = "BROKERS") -> list[str]:
    """What about a topic does not do, each with the command that repairs it.

    Retention, number of copies and, for messages, the number of partitions are the operator's choice: input partition p
    writes to partition p modulo their count.

    Args:
        need: what is needed.
        existing: what is there.
        servers: brokers, for the commands.
    """
    problems = []

    def set_(name: str, value: object) -> str:
        return (
            f"kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {need.name} "
            f"--add-config {name}={value}"
        )

    if need.role == "state" and existing.partitions != need.partitions:
        remake = f"{remove_command(need.name, servers)}, then anomalyd topics create -c CONFIG"
        count = f"has {existing.partitions} partitions, needs {need.partitions} as its input"
        if existing.blank:
            return [f"{count}; nothing is in it yet: {remake}"]
        # Partitions can be added and never taken away.
        remade = existing.partitions > need.partitions
        problems.append(
            f"{count}; series have moved, so what was learned has to be left behind: stop every instance, then anomalyd state restart "
            f"-c CONFIG --topic {need.source} --yes" + (f", then {remake}" if remade else "")
        )
        if remade:
            return problems  # whatever else does not do goes with the topic
    policy, wanted = existing.config.get("cleanup.policy"), need.config["cleanup.policy"]
    if policy is not None and policy != wanted:
        why = f"{need.role} would expire" if wanted == "compact" else "compaction would drop messages that nobody has read yet"
        problems.append(f"has cleanup.policy {policy}, needs {wanted}: {why}; {set_('cleanup.policy', wanted)}")
    size = existing.config.get("max.message.bytes")
    if need.role == "state" and size is not None and int(size) < LEAST_CHANGELOG_MESSAGE_BYTES:
        problems.append(
            f"has max.message.bytes {size}, needs at least {LEAST_CHANGELOG_MESSAGE_BYTES}: a page of state would be refused; "
            f"{set_('max.message.bytes', CHANGELOG_MESSAGE_BYTES)}"
        )
    if need.role == "models" and size is not None and int(size) < LEAST_MODELS_MESSAGE_BYTES:
        problems.append(
            f"has max.message.bytes {size}, needs at least {LEAST_MODELS_MESSAGE_BYTES}: a large model would be refused; "
            f"{set_('max.message.bytes', 1 << 20)}"
        )
    in_sync = int(existing.config.get("min.insync.replicas", "1"))
    if in_sync > existing.replication_factor:
        problems.append(
            f"has min.insync.replicas {in_sync} but {existing.replication_factor} copies, so no write can succeed; "
            f"{set_('min.insync.replicas', max(1, existing.replication_factor - 1))}"
        )
    return problems


def remove_command(topic: str, servers: str) -> str:
    """What removes a topic."""
    return f"kafka-topics.sh --bootstrap-server {servers} --delete --topic {topic}"


def plan(settings: Settings) -> int:
    """Prints what is needed, what is there and what differs. Returns the exit code: 1 where something differs."""
    return _print(asyncio.run(_with_admin(settings, lambda admin: survey(admin, settings))))


def create(settings: Settings) -> int:
    """Creates what is missing and prints what was done. Returns the exit code: 1 on any error or mismatch."""
    return _print(asyncio.run(_with_admin(settings, lambda admin: make(admin, settings))))


async def verify(settings: Settings) -> None:
    """For the daemon, before it reads anything: is there somewhere to write, and will it stay there?

    Changelogs are looked for where their input exists; an input that is missing may come later.

    Raises:
        TopicError: a topic is missing or does not do; the message names the command that repairs it.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed; the message names every right that is known to lack, and the commands that grant them.
    """
    needed = [right for right in access.rights(settings) if right.needed]

    async def look(admin: AIOKafkaAdminClient) -> _Survey:
        # First: a topic that may not be seen looks like one that is missing.
        if lacking := await access.lacking(admin, needed):
            raise KafkaRefusedError(access.refused(lacking, settings))
        return await _survey(admin, settings)

    survey: _Survey = await _with_admin(settings, look)
    if survey.hidden:
        _log.warning("topic_settings_hidden", topics=survey.hidden)
    lines = [line for line in survey.lines if line.role != "input"]
    wrong = [f"topic {line.topic} ({line.role}) {line.text}" for line in lines if line.status == "mismatch"]
    if missing := [line.topic for line in lines if line.status == "missing" or (line.status == "waits" and line.role != "state")]:
        wrong.insert(0, f"topic{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing; make with: anomalyd topics create -c CONFIG")
        # With nothing to read it would make none of them: it takes the number of partitions from there.
        wrong[:0] = [
            f"topic {line.topic} (input) missing, {line.text}; the others need it first"
            for line in survey.lines
            if line.role == "input" and line.status == "missing"
        ]
    if wrong:
        raise TopicError("\n".join(wrong))


async def existing(settings: Settings, names: Collection[str]) -> dict[str, Existing]:
    """The topics among `names` that exist and that we may see, without their settings.

    Raises:
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    found: dict[str, Existing] = await _with_admin(settings, lambda admin: describe(admin, names))
    return found


async def members(settings: Settings) -> int:
    """How many instances are in the consumer group.

    Raises:
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """

    async def ask(admin: AIOKafkaAdminClient) -> int:
        while True:
            try:
                (answer,) = await admin.describe_consumer_groups([settings.kafka.group_id])
                ((code, _, _, _, _, found, *_),) = answer.groups
                if code:
                    raise for_code(code)
                return len(found)
            except KafkaError as error:
                if not error.retriable:
                    raise
            # The coordinator moves, or there has never been a group on this cluster.
            await asyncio.sleep(_AGAIN_S)

    count: int = await _with_admin(settings, ask)
    return count


async def widen(settings: Settings, topic: str, partitions: int) -> None:
    """Adds partitions to a changelog, so that it has this many, and waits until they are there.

    Raises:
        KafkaUnavailableError: no broker answers, or they refuse.
        KafkaRefusedError: not allowed.
    """

    async def add(admin: AIOKafkaAdminClient) -> None:
        await admin.create_partitions({topic: NewPartitions(partitions)})
        async with asyncio.timeout(_VISIBLE_S):
            while (await describe(admin, [topic]))[topic].partitions < partitions:  # noqa: ASYNC110  the brokers know, and have no event
                await asyncio.sleep(0.1)

    await _with_admin(settings, add)


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
    return (await _survey(admin, settings)).lines


async def make(admin: AIOKafkaAdminClient, settings: Settings) -> list[Line]:
    """Creates what is missing; a line for each topic. What belongs to an input that does not exist waits for it, the rest does not."""
    survey = await _survey(admin, settings)
    lines, missing = survey.lines, survey.missing
    if not missing:
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
            why = f"not created: {text or for_code(code).description}"
            if code in _NOT_ALLOWED:
                why += "; `anomalyd topics rights --for create -c CONFIG` prints what grants it"
            done[need.name] = Line(need.name, need.role, "error", why)
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


_ABSENT: Final = Existing(0, 0)


@dataclass(slots=True)
class _Survey:
    """What was found."""

    lines: list[Line]
    missing: list[Need] = field(default_factory=list)
    """What can be made."""
    hidden: list[str] = field(default_factory=list)
    """Topics whose settings we may not see."""


async def _survey(admin: AIOKafkaAdminClient, settings: Settings) -> _Survey:
    inputs = [topic for stream in settings.streams for topic in stream.topics]
    changelogs = {settings.changelog_topic(topic): topic for topic in inputs}
    messages = [settings.alerts.topic, settings.dead_letter_topic, settings.scores.topic or settings.alerts.topic]
    there = await describe(admin, [*inputs, *changelogs, *messages, settings.models_topic])
    survey = _Survey(
        [
            Line(topic, "input", "ok", f"{there[topic].partitions} partitions")
            if topic in there
            else Line(topic, "input", "missing", "or not to be seen by this user; its producers own it, anomalyd does not create it")
            for topic in inputs
        ]
    )
    brokers = len((await admin.describe_cluster())["brokers"])
    wanted = needs(settings, {topic: there.get(topic, _ABSENT) for topic in inputs}, brokers)
    configs = await _configs(admin, [need.name for need in wanted if need.name in there])
    for need in wanted:
        if need.role == "state" and need.partitions and need.name in there and there[need.name].partitions != need.partitions:
            there[need.name] = replace(there[need.name], blank=await _is_blank(settings, need.name, there[need.name].partitions))
    survey.hidden = [name for name, config in configs.items() if config is None]
    for need in wanted:
        existing = there.get(need.name)
        if need.role == "state" and changelogs[need.name] not in there:
            text = f"has the partitions of {changelogs[need.name]}, which does not exist yet; run this again when it does"
            survey.lines.append(Line(need.name, need.role, "waits", text))
        elif existing is None and not need.partitions:
            text = "how many partitions it needs is not known while no input topic exists; run this again when one does"
            survey.lines.append(Line(need.name, need.role, "waits", text))
        else:
            survey.lines.append(_line(need, existing, configs.get(need.name), settings.kafka.bootstrap_servers))
            survey.missing += [need] if existing is None else []
    return survey


async def _is_blank(settings: Settings, topic: str, partitions: int) -> bool:
    """Whether nothing is in a changelog, as far as we may know."""
    try:
        for partition in range(partitions):
            log = CommittedLog(settings.kafka, topic, partition)
            try:
                first, end = await log.bounds()
            finally:
                await log.close()
            if end > first:
                return False
    except KafkaRefusedError:  # it may not be read
        return False
    return True


def _line(need: Need, existing: Existing | None, config: Mapping[str, str] | None, servers: str) -> Line:
    """What is to be said about one topic.

    Args:
        need: what is needed.
        existing: what is there, without its settings.
        config: its settings; None where we may not see them.
        servers: brokers, for commands.
    """
    if existing is None:
        return Line(need.name, need.role, "missing", _describe(need))
    existing = replace(existing, config=config or {})
    if problems := compare(need, existing, servers):
        return Line(need.name, need.role, "mismatch", "; ".join(problems))
    text = f"{existing.partitions} partitions, {existing.replication_factor} copies"
    if existing.partitions < need.partitions:
        text += f"; fewer than the widest input, so partition p of an input writes to p modulo {existing.partitions}"
    if config is None:
        text += "; its settings can't be seen by this user (DescribeConfigs)"
    return Line(need.name, need.role, "ok", text)


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str] | None]:
    """The settings of topics, by name; None where we are not allowed to see them, nothing where brokers have no word for them."""
    if not names:
        return {}
    found: dict[str, dict[str, str] | None] = {}
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    except IncompatibleBrokerVersion:  # the embedded broker, whose topics cannot be configured anyway
        return {}
    for answer in answers:
        for code, text, _, name, entries in answer.resources:
            if code and code != TopicAuthorizationFailedError.errno:
                raise for_code(code)(f"{name}: {text}")
            found[name] = None if code else {entry[0]: entry[1] for entry in entries}
    return found


def _describe(need: Need) -> str:
    days = int(need.config.get("retention.ms", "0")) // DAY_MS
    kept = f"kept {days} days" if days else "compacted"
    return (
        f"{need.partitions} partitions, {need.replication_factor} copies, min.insync.replicas {need.config['min.insync.replicas']}, {kept}"
    )


def _print(lines: Sequence[Line]) -> int:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return int(any(line.status in {"mismatch", "error", "waits"} or (line.status, line.role) == ("missing", "input") for line in lines))
