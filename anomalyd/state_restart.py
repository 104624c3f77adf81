"""Beginning anew: what was learned is given up, alerts that are open are resolved, positions stay.

For an input topic whose number of partitions has changed, since its series have moved to other partitions then, and for a changelog that
is damaged. Each partition is done in one transaction, so the command may be interrupted and repeated.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from anomalyd.alerts.episodes import Episodes, Policy
from anomalyd.alerts.machine import EPISODE
from anomalyd.alerts.messages import MessageBuilder, Model
from anomalyd.alerts.rarity import Rarity
from anomalyd.alerts.silence import Silence, SilencePolicy
from anomalyd.batch import Entry
from anomalyd.detector import artifact
from anomalyd.detector.detector import shipped
from anomalyd.detector.layout import COUNTER_KIND
from anomalyd.errors import StateError, TooLargeError
from anomalyd.kafka import topics
from anomalyd.kafka.committed import CommittedLog
from anomalyd.kafka.message import Message
from anomalyd.kafka.transactions import writer_of
from anomalyd.series.key import parse_key
from anomalyd.settings import Settings, StreamSettings
from anomalyd.shard_silence import Pulse
from anomalyd.state import codec
from anomalyd.state.chain import PROBE_RECORDS
from anomalyd.state.codec import Fence, Position
from anomalyd.state.inspect import Contents, Row, whole
from anomalyd.state_commands import Place, Progress, inputs_of, open_episodes, places, silent_series, write

NAME: Final = "anomalyd state restart"
"""Of the owner, in fences."""


def restart(settings: Settings, *, topic: str | None, yes: bool) -> int:
    """Begins partitions anew, or says what that would mean. Returns the exit code: 1 where something is left for the operator to do.

    Args:
        settings: the configuration.
        topic: this input only.
        yes: do it.

    Raises:
        ConfigError: there is no such topic.
        TopicError: a changelog is missing.
        StateError: instances are running, or there is no position to go on from.
        DeliveryError: it is not known whether the last partition was done; repeat the command.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    return asyncio.run(_restart(settings, topic, yes=yes))


async def _restart(settings: Settings, topic: str | None, *, yes: bool) -> int:
    if count := await topics.members(settings):
        raise StateError(
            f"{count} instances are in group {settings.kafka.group_id}: stop them first "
            "(one with kafka.group_instance_id stays for kafka.session_timeout_ms)"
        )
    streams = {name: stream for stream in settings.streams for name in stream.topics}
    changelogs = {name: settings.changelog_topic(name) for name in inputs_of(settings, topic)}
    there = await topics.existing(settings, [*changelogs, *changelogs.values()])
    left = []
    for name, changelog in changelogs.items():
        if name in there and changelog in there:
            had, wanted = there[changelog].partitions, there[name].partitions
            await _topic(settings, streams[name], name, had, wanted, yes=yes)
            if wanted < had:
                remove = topics.remove_command(changelog, settings.kafka.bootstrap_servers)
                left.append(f"{changelog} has {had} partitions and {name} has {wanted}: {remove}, then anomalyd topics create -c CONFIG")
        elif name in there:
            left.append(f"{name} was left alone, because {changelog} does not exist: anomalyd topics create -c CONFIG")
        else:
            left.append(f"{name} was left alone, because it does not exist")
    if not yes:
        write("nothing was done; with --yes it will be")
    for task in left:
        write(f"left to do: {task}")
    if yes:
        write("done; start the instances" if not left else "done but for that; then start the instances")
    return int(bool(left))


async def _topic(settings: Settings, stream: StreamSettings, name: str, had: int, wanted: int, *, yes: bool) -> None:
    """One input topic; its changelog had so many partitions and wants as many as the input has."""
    if wanted > had:
        changelog = settings.changelog_topic(name)
        if yes:
            await topics.widen(settings, changelog, wanted)
        write(f"{changelog}: {'got' if yes else 'would get'} {wanted} partitions, as {name} has; {had} before")
    for place in await places(settings, name, None):
        if place.source.partition < had:
            await _partition(settings, stream, place, wanted, yes=yes)
    where = "end" if stream.start_from == "latest" else "beginning"
    for number in range(had, wanted):
        write(f"{name}/{number}: new; begins at its {where} when an instance claims it")


async def _partition(settings: Settings, stream: StreamSettings, place: Place, partitions: int, *, yes: bool) -> None:
    """One partition: fences whoever may still write for it, reads what is there, and ends it."""
    where = f"{place.source.topic}/{place.source.partition}"
    log = CommittedLog(settings.kafka, place.changelog, place.source.partition)
    writer = writer_of(settings, place.source, _Uncounted())
    shown = Progress(place)
    owner, fence = secrets.token_bytes(16), Entry(codec.FENCE_KEY, b"")
    begin = 0
    try:
        if yes:
            fence = Entry(codec.FENCE_KEY, codec.encode(codec.FENCE_KEY, Fence(owner, NAME)))
            await writer.open()
            begin = (await writer.commit([], [fence]))[0] + 1
        contents, _ = await whole(log, transactional=settings.transactional, progress=shown)
        shown.clear()
        last, firing = contents.position, [*open_episodes(contents), *silent_series(contents)]
        if last is None:
            if contents.live or contents.damaged:
                remove = topics.remove_command(place.changelog, settings.kafka.bootstrap_servers)
                raise StateError(f"{where}: no position is left to go on from; {remove}, then anomalyd topics create -c CONFIG")
            write(f"{where}: nothing was ever committed, so there is nothing to forget")
            return
        series = sum(1 for _ in contents.rows())
        if yes:
            messages: Sequence[Message] = list(_resolved(settings, stream, place, contents, last))
            entries, singly = list(_anew(contents, last, fence, begin, owner, partitions)), 0
            while True:
                try:
                    await writer.commit(messages, entries, singly=singly)
                    break
                except TooLargeError as error:  # nothing was written, and what the topic takes is known now
                    messages, singly = error.smaller(messages)
                    await writer.close()
                    writer = writer_of(settings, place.source, _Uncounted())
                    await writer.open()
        forget, resolve, go_on = ("forgot", "resolved", "goes on") if yes else ("would forget", "resolve", "go on")
        write(f"{where}: {forget} {series:,} series, {resolve} {len(firing):,} alerts, {go_on} at input offset {last.position:,}")
        if codec.POSITION_KEY in contents.damaged:
            write(f"{where}: newer positions are damaged; alerts behind that offset will come twice")
    finally:
        shown.clear()
        await writer.close()
        await log.close()


def _anew(contents: Contents, last: Position, fence: Entry, begin: int, owner: bytes, partitions: int) -> Iterator[Entry]:
    """What ends a partition's state and lets it go on at the same position."""
    for key in sorted({*contents.live, *contents.damaged}):
        if key and key not in (codec.POSITION_KEY, codec.FENCE_KEY):
            yield Entry(key, None)
    if contents.findings:
        # Whoever claims the partition looks so far back for the position, and stops where one does not fit the one before.
        yield from [fence] * PROBE_RECORDS
    found = Position(
        sequence=last.sequence + 1,
        previous=last.position,
        position=last.position,
        replay_from=last.position,
        restore_from=begin,
        partitions=partitions,
        owner=owner,
        stream_time_ms=last.stream_time_ms,
        timeline=tuple((last.position, model) for _, model in last.timeline[-1:]),
        clean=True,  # the fences in front of it are no deaths
        anew=True,
    )
    yield Entry(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, found))


def _resolved(settings: Settings, stream: StreamSettings, place: Place, contents: Contents, last: Position) -> Iterator[Message]:
    """A message for each alert that is open, as if its series were forgotten."""
    policy, shipped_model = settings.policy(stream), artifact.load(shipped())
    builder = MessageBuilder(
        stream=stream.name,
        topic=place.source.topic,
        partition=place.source.partition,
        model=Model(shipped_model.name, shipped_model.version, shipped_model.hash),
        labels=policy.labels,
        annotations=policy.annotations,
        feature_names=() if stream.features is None else stream.features.names,
        rarity=Rarity(policy.budget, shipped_model.calibration.slope, shipped_model.calibration.lowest),
    )
    rows = {row.key: row for row in contents.rows()}
    now_ms = time.time_ns() // 1_000_000
    only = np.zeros(1, np.int32)
    for series, state, _ in sorted(open_episodes(contents)):
        episodes = Episodes(Policy(), np.frombuffer(bytearray(state), np.uint8).reshape(1, EPISODE.itemsize))
        episodes.restored(only)
        observed, counter = _newest(rows.get(series))
        ended = episodes.close(only, observed.reshape(1, -1), np.array([counter]))
        name, labels = parse_key(series)
        message = builder.build(ended, 0, key=series, name=name, labels=labels, offset=max(0, last.position - 1), detected_at_ms=now_ms)
        yield Message(settings.alerts.topic, place.source.partition, message.key, message.value)
    for series, state in sorted(silent_series(contents)):
        silence, (name, labels) = _ended(np.frombuffer(state, EPISODE)[0], rows.get(series), stream, last), parse_key(series)
        message = builder.build_silence(
            silence, key=series, name=name, labels=labels, offset=max(0, last.position - 1), detected_at_ms=now_ms
        )
        yield Message(settings.alerts.topic, place.source.partition, message.key, message.value)


def _ended(episode: np.void, row: Row | None, stream: StreamSettings, last: Position) -> Silence:
    """The end of a silence of which nothing more will be known."""
    starts_ms = int(episode["silent_ms"])
    ends_ms = max(starts_ms, Pulse(last.pulse).time_ms)
    step_ms = np.frombuffer(row.field("step_ms"), np.float32) if row is not None else np.zeros(0, np.float32)
    observed, counter = _newest(row)
    policy = SilencePolicy(stream.silence.enabled, stream.silence.after_steps, round(stream.silence.after_s * 1000))
    step = float(step_ms[0]) if len(step_ms) else 0.0
    return Silence(
        status="resolved",
        forgotten=True,
        starts_ms=starts_ms,
        ends_ms=ends_ms,
        event_ms=ends_ms,
        step_ms=step,
        patience_ms=policy.patience_ms(step),
        value=float(observed[0]),
        rate=counter,
        several=stream.features is not None,
    )


def _newest(row: Row | None) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], bool]:
    """The newest value of a series, as it was judged, and whether it is a rate. Zero where no page of it was ever written."""
    seen = np.frombuffer(row.field("seen"), np.float64) if row is not None else np.zeros(0)
    kind = np.frombuffer(row.field("kind"), np.int32) if row is not None else np.zeros(0, np.int32)
    return (seen if len(seen) else np.zeros(1)), bool(len(kind) and kind[0] == COUNTER_KIND)


class _Uncounted:
    """What a topic refuses for its size is in the log; nobody scrapes a command."""

    def dropped(self, kind: str) -> None:
        """Nothing."""
