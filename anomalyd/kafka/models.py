"""The models topic: reading it to its end and on, publishing, going back.

Publishing is repeatable: what is there already is not written again, the champion's record comes last and alone, when everything that it
names is acknowledged, and what a crash leaves behind is harmless. There is no transaction, so that it works with any `delivery`. Of two who
publish for one stream at the same time the later one wins.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
import structlog

from anomalyd.batch import Entry, LogRecord
from anomalyd.errors import AnomalydError, ArtifactError, TopicError
from anomalyd.kafka import topics
from anomalyd.kafka.committed import CommittedLog
from anomalyd.kafka.past import missing
from anomalyd.kafka.registry import Champion, Decision, Publishable, Registry, champion_entry, decision_entry, model_entries, now
from anomalyd.kafka.transactions import PlainWriter
from anomalyd.settings import Settings

PARTITION: Final = 0
"""Everything is in one, so that there is one order of events."""

_log = structlog.get_logger(__name__)


class ModelsLog:
    """Reads the models topic; belongs to no group.

    Args:
        settings: the configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._log = CommittedLog(settings.kafka, settings.models_topic, PARTITION)
        self._position = 0
        self._started = False

    async def news(self) -> list[LogRecord]:
        """What has been written since the last call; at the first call all that there is.

        After an error the next call goes on behind what was returned. A topic that was made anew is read from its beginning.

        Raises:
            KafkaUnavailableError: no answer.
            KafkaRefusedError: not allowed.
            StateError: it holds a batch that cannot be read.
        """
        try:
            first, end = await self._log.bounds()
            if not self._started or end < self._position:
                self._position, self._started = first, True
            found: list[LogRecord] = []
            async for records in self._log.read(max(first, self._position), end):
                found += records
        except AnomalydError:
            await self._log.close()  # the next one begins with a new client
            raise
        self._position = end
        return found

    async def close(self) -> None:
        """Lets go of the connection."""
        await self._log.close()


async def read(settings: Settings) -> Registry:
    """What the topic says now; records that can't be used are told of.

    Raises:
        TopicError: it does not exist.
        KafkaUnavailableError: no answer.
        KafkaRefusedError: not allowed.
        StateError: it cannot be read.
    """
    topic = settings.models_topic
    if not await topics.existing(settings, [topic]):
        raise TopicError(missing(f"{topic} (models)"))
    log, registry = ModelsLog(settings), Registry()
    try:
        take(registry, await log.news(), topic)
    finally:
        await log.close()
    return registry


def take(registry: Registry, records: Iterable[LogRecord], topic: str) -> None:
    """Takes records in, and says of how many something is wrong, and what with the first of them."""
    wrong = [(record.offset, why) for record in records if (why := registry.take(record.key, record.value)) is not None]
    if wrong:
        _log.error("model_records_unusable", topic=topic, records=len(wrong), offset=wrong[0][0], reason=wrong[0][1])


async def publish(
    settings: Settings, artifact: Publishable, stream: str, decision: Decision, *, base: Publishable | None = None, by: str = "retrain"
) -> Champion:
    """Makes an artifact the champion of a stream: decision, artifact and champion in one go. Then removes what nobody needs any more.

    Args:
        settings: the configuration.
        artifact: the model; what is in the topic already is not written again.
        stream: its name.
        decision: why; `when` may be left empty.
        base: what scores the stream while it has no champion; it is published, too, so that a rollback finds it.
        by: whose doing it is, see `Champion`.

    Returns:
        The champion, which is the one that was there where it is the same model.

    Raises:
        TopicError: the topic does not exist.
        DeliveryError: it is not known whether it was written; to repeat it does no harm.
        KafkaUnavailableError: no answer.
        KafkaRefusedError: not allowed.
    """
    registry = await read(settings)
    present = registry.champions.get(stream)
    entries: list[Entry] = []
    previous = None if present is None else present.model
    if present is None and base is not None and base.hash != artifact.hash:
        previous = base.hash
        if (stream, base.hash) not in registry.decisions:
            entries.append(decision_entry(stream, base.hash, Decision("base", "scored before there was a champion", when=now())))
        entries += _unless_there(registry, base)
    # A decision first: what one of the newest is about is removed by nobody.
    entries.append(decision_entry(stream, artifact.hash, decision if decision.when else msgspec.structs.replace(decision, when=now())))
    entries += _unless_there(registry, artifact)
    if present is not None and present.model == artifact.hash:
        champion = present
    else:
        champion = Champion(artifact.hash, previous, now(), by, decision.reason)
        entries.append(champion_entry(stream, champion))
    await _write(settings, registry, entries)
    return champion


async def decide(settings: Settings, model: str, stream: str, decision: Decision, artifact: Publishable | None = None) -> None:
    """Writes down what was decided about a model that does not become champion.

    Args:
        settings: the configuration.
        model: its hash.
        stream: for which.
        decision: what and why.
        artifact: the model itself, for those who may want it.

    Raises: as `publish`.
    """
    registry = await read(settings)
    found = decision if decision.when else msgspec.structs.replace(decision, when=now())
    await _write(
        settings, registry, [decision_entry(stream, model, found), *([] if artifact is None else _unless_there(registry, artifact))]
    )


async def roll_back(settings: Settings, stream: str, reason: str = "", *, by: str = "rollback", of: str | None = None) -> Champion:
    """Makes the champion before the present one champion again; once more, and it is undone.

    Args:
        settings: the configuration.
        stream: its name.
        reason: for people.
        by: whose doing it is, see `Champion`.
        of: hash of the champion that has to go; where it has gone already nothing is done. None: whichever it is.

    Raises:
        ArtifactError: there is no champion, or none before it, or that one is not in the topic.
        TopicError, DeliveryError, KafkaUnavailableError, KafkaRefusedError: as `publish`.
    """
    registry = await read(settings)
    present = registry.champions.get(stream)
    if present is None:
        raise ArtifactError(
            f"the stream {stream} has no champion in {settings.models_topic}: it is scored by the model of its configuration"
        )
    if of is not None and present.model != of:
        return present
    if present.previous is None:
        raise ArtifactError(f"the champion {present.model[:12]} of the stream {stream} has none before it to go back to")
    registry.content(present.previous)
    champion = Champion(present.previous, present.model, now(), by, reason)
    before = registry.decisions.get((stream, present.model), Decision(""))
    told = Decision("rolled-back", reason or before.reason, before.figures, before.parent, now())
    await _write(settings, registry, [decision_entry(stream, present.model, told), champion_entry(stream, champion)])
    return champion


def _unless_there(registry: Registry, artifact: Publishable) -> list[Entry]:
    """The records of an artifact, of which the last is written when the others are; none where all of it is there."""
    try:
        registry.content(artifact.hash)
    except ArtifactError:
        return model_entries(artifact)
    return []


async def _write(settings: Settings, registry: Registry, entries: list[Entry]) -> None:
    """Writes entries in their order, the last one alone when the others are acknowledged, and then the tombstones that follow from them."""
    writer = PlainWriter(settings.kafka, settings.models_topic, PARTITION, _Uncounted())
    await writer.open()
    try:
        await writer.commit([], entries)
        for entry in entries:
            registry.take(entry.key, entry.value)
        if tombstones := list(registry.obsolete()):
            await writer.commit([], tombstones)
    finally:
        await writer.close()


class _Uncounted:
    """No message is sent that could be dropped."""

    def dropped(self, kind: str) -> None:
        """Never called."""
