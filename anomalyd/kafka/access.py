"""Which rights on a cluster with an authorizer each part of anomalyd needs, and asking the brokers whether we have them.

`rights` is the one list: `anomalyd topics rights` prints it as commands, and the tests run everything with exactly these.
"""

import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    NoError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol.admin import DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from anomalyd.settings import KafkaSettings, Settings

Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]
Part = Literal["run", "retrain", "notify", "create"]
"""`run`, `retrain`, `notify`: those commands; `create`: `topics plan` and `topics create`."""

_BITS: Final[dict[Operation, int]] = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
"""Numbers of the operations in the brokers' answers (KIP-430)."""

UNKNOWN: Final = "User:NAME"
"""Stands for a principal that only brokers know."""

_UNTOLD: Final = -(1 << 31)
"""The answer of brokers that do not say which operations are allowed."""


class Right(NamedTuple):
    """An operation on a resource. Read and Write each include Describe."""

    kind: Literal["topic", "group", "transactional-id"]
    name: str
    operation: Operation
    prefixed: bool = False
    """Whether it is on all resources whose name begins so."""
    needed: bool = True
    """False: without it something is less well known or done, and nothing fails."""

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind.replace('-', ' ')} {self.name}{'*' if self.prefixed else ''}"


def rights(settings: Settings, part: Part = "run") -> list[Right]:
    """The rights that a part of anomalyd needs, and no others, for brokers from 3.0 on.

    Args:
        settings: the configuration.
        part: of anomalyd.
    """
    inputs = [topic for stream in settings.streams for topic in stream.topics]
    changelogs = [settings.changelog_topic(topic) for topic in inputs]
    outputs = [settings.alerts.topic, settings.dead_letter_topic, *([settings.scores.topic] if settings.scores.topic else [])]
    ours = [*outputs, *changelogs, settings.models_topic]
    transacting = inputs if settings.transactional else []
    if part == "notify":
        return [Right("topic", settings.alerts.topic, "Read")]
    if part == "create":
        operations: tuple[Operation, ...] = ("Create", "Describe", "DescribeConfigs")
        return [
            *(Right("topic", topic, "Describe") for topic in inputs),
            *(Right("topic", topic, operation) for topic in ours for operation in operations),
        ]
    reading = [Right("topic", topic, "Read") for topic in inputs]
    if part == "retrain":
        return [
            *reading,
            Right("group", settings.retrain_group, "Read"),
            Right("topic", settings.alerts.topic, "Read"),
            Right("topic", settings.models_topic, "Read"),
            Right("topic", settings.models_topic, "Write"),
        ]
    return [
        *reading,
        Right("group", settings.kafka.group_id, "Read"),
        *(Right("topic", topic, "Write") for topic in outputs),
        *(Right("topic", topic, operation) for topic in changelogs for operation in ("Read", "Write")),
        *(Right("transactional-id", settings.transactional_prefix(topic), "Write", prefixed=True) for topic in transacting),
        Right("topic", settings.models_topic, "Read"),
        # Going back by rule from a model that does not suit.
        *([Right("topic", settings.models_topic, "Write")] if settings.models.most_alerts else []),
        *(Right("topic", topic, "DescribeConfigs", needed=False) for topic in ours),
    ]


def commands(wanted: Iterable[Right], servers: str, principal: str) -> list[str]:
    """What grants rights: a command of Apache Kafka for each resource.

    Args:
        wanted: the rights.
        servers: brokers.
        principal: who gets them, such as `User:anomalyd`.
    """
    operations: dict[tuple[str, str, bool], list[str]] = {}
    for right in wanted:
        operations.setdefault((right.kind, right.name, right.prefixed), []).append(right.operation)
    return [
        " ".join(
            [
                f"kafka-acls.sh --bootstrap-server {servers} --add --allow-principal {shlex.quote(principal)}",
                *(f"--operation {operation}" for operation in allowed),
                f"--{kind} {name}",
                *(["--resource-pattern-type prefixed"] if prefixed else []),
            ]
        )
        for (kind, name, prefixed), allowed in operations.items()
    ]


def principal(kafka: KafkaSettings) -> str:
    """Who we are to brokers; `UNKNOWN` where they make a name of a token, or of a certificate by rules of their own."""
    if kafka.uses_sasl:
        return f"User:{kafka.sasl_username}" if kafka.sasl_username else UNKNOWN
    return UNKNOWN if kafka.ssl_certfile is not None else "User:ANONYMOUS"


def refused(lacking: Sequence[Right], settings: Settings) -> str:
    """What to tell the operator about rights that are lacking, with the commands that grant them."""
    grants = commands(lacking, settings.kafka.bootstrap_servers, principal(settings.kafka))
    return "\n  ".join([f"Kafka: not allowed: {', '.join(map(str, lacking))}; an administrator of the cluster grants it with", *grants])


async def lacking(admin: AIOKafkaAdminClient, wanted: Collection[Right]) -> list[Right]:
    """Those of the rights that the brokers say we lack. Brokers that say nothing (before 2.3) lack none; what they refuse shows later.

    Of transactional ids they say only whether we may see them.

    Args:
        admin: a client that is connected.
        wanted: rights.

    Raises:
        KafkaError: no answer.
    """
    topics = {right.name for right in wanted if right.kind == "topic"}
    groups = {right.name for right in wanted if right.kind == "group"}
    try:
        allowed: dict[tuple[str, str], int] = {
            **{("topic", name): bits for name, bits in (await _topics(admin, topics)).items()},
            **{("group", name): await _group(admin, name) for name in groups},
        }
    except IncompatibleBrokerVersion:
        return []
    found = []
    for right in wanted:
        if right.kind == "transactional-id":
            if not await _seen(admin, f"{right.name}0"):
                found.append(right)
        elif not allowed.get((right.kind, right.name), ~0) >> _BITS[right.operation] & 1:
            found.append(right)
    return found


async def _topics(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, int]:
    """Operations that are allowed on topics, as bits; of topics that do not exist, and that we may see, all."""
    answer = await _ask(admin, _Metadata(sorted(names)))
    found = {}
    for topic in answer.to_object()["topics"]:
        code, bits = topic["error_code"], topic["topic_authorized_operations"]
        if code == TopicAuthorizationFailedError.errno:
            bits = 0
        elif code != NoError.errno or bits == _UNTOLD:
            bits = ~0
        found[topic["topic"]] = bits
    return found


async def _group(admin: AIOKafkaAdminClient, group: str) -> int:
    """Operations that are allowed on a group, as bits; all, where brokers do not say."""
    try:
        node = await admin._client.coordinator_lookup(CoordinationType.GROUP, group)  # noqa: SLF001  there is no public way
        answer = await _ask(admin, _DescribeGroups([group]), node)
    except GroupAuthorizationFailedError:
        return 0
    except KafkaError as error:
        if not error.retriable:
            raise
        return ~0  # the first group of a cluster; who joins it will know
    (told,) = answer.to_object()["groups"]
    if told["error_code"] == GroupAuthorizationFailedError.errno:
        return 0
    bits: int = told["authorized_operations"]
    return ~0 if told["error_code"] or bits == _UNTOLD else bits


async def _seen(admin: AIOKafkaAdminClient, transactional_id: str) -> bool:
    try:
        await admin._client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)  # noqa: SLF001  there is no public way
    except TransactionalIdAuthorizationFailed:
        return False
    except KafkaError as error:
        if not error.retriable:
            raise
    return True


async def _ask(admin: AIOKafkaAdminClient, request: Request, node: int | None = None) -> Any:  # noqa: ANN401  the client ships no types
    network = admin._client  # noqa: SLF001  there is no public way
    return await network.send(network.get_random_node() if node is None else node, request)


# --- requests that the client does not have -------------------------------------------------------------------------


class _MetadataResponse(Response):  # type: ignore[misc]  # the client ships no types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8")))),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("topic_authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Metadata(Request[_MetadataStruct]):  # type: ignore[misc]  # likewise
    """Topics by name, which are not made, with the operations that are allowed on them."""

    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, struct: type[_MetadataStruct]) -> _MetadataStruct:
        return struct(self._topics, False, False, True)  # noqa: FBT003  as on the wire


class _DescribeGroupsStruct(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3  # the client takes the one of version 2 for this, and loses the end of the answer
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _DescribeGroups(Request[_DescribeGroupsStruct]):  # type: ignore[misc]  # likewise
    """Groups with the operations that are allowed on them."""

    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, struct: type[_DescribeGroupsStruct]) -> _DescribeGroupsStruct:
        return struct(self._groups, True)  # noqa: FBT003  as on the wire
