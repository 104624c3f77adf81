"""The commands about state: what changelogs hold, whether they are sound, and beginning anew."""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from anomalyd.alerts.budget import MILLI
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.machine import EPISODE, OPEN
from anomalyd.alerts.messages import iso
from anomalyd.alerts.timeline import written
from anomalyd.batch import Source
from anomalyd.errors import ConfigError, StateError, TopicError
from anomalyd.kafka import topics
from anomalyd.kafka.committed import CommittedLog
from anomalyd.settings import Settings
from anomalyd.shard_budget import days_of
from anomalyd.state import codec
from anomalyd.state.inspect import Contents, Finding, committed, whole
from anomalyd.state.trial import CLAIMS_BEFORE_TRIAL

_STATE_OFFSET: Final = EPISODE.fields["state"][1] if EPISODE.fields else 0
_SILENT_OFFSET: Final = EPISODE.fields["silent"][1] if EPISODE.fields else 0

Facts = dict[str, Any]


class Place(NamedTuple):
    """A partition of an input and where its state lies."""

    source: Source
    changelog: str


# --- inspect --------------------------------------------------------------------------------------------------------


def inspect(settings: Settings, *, topic: str | None, partition: int | None, json_output: bool) -> int:
    """Prints what a restart of each partition would find. Returns the exit code.

    Args:
        settings: the configuration.
        topic: this input only.
        partition: this one only.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: there is no such topic or partition.
        TopicError: a changelog is missing.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    found = asyncio.run(_inspect(settings, topic, partition))
    if json_output:
        write(json.dumps({"partitions": found}))
    else:
        for facts in found:
            write("\n".join(_told(facts)))
    return 0


async def _inspect(settings: Settings, topic: str | None, partition: int | None) -> list[Facts]:
    found = []
    for place in await places(settings, topic, partition):
        log = CommittedLog(settings.kafka, place.changelog, place.source.partition)
        try:
            contents, bounds = await committed(log, transactional=settings.transactional)
        finally:
            await log.close()
        found.append(_facts(place, contents, bounds))
    return found


def _facts(place: Place, contents: Contents, bounds: tuple[int, int]) -> Facts:
    """What is told about a partition, as plain data."""
    position = contents.position
    facts: Facts = {
        "topic": place.source.topic,
        "partition": place.source.partition,
        "changelog": place.changelog,
        "log_start": bounds[0],
        "log_end": bounds[1],
        "position": None,
        "pages": contents.count(codec.Page),
        "page_bytes": contents.page_bytes,
        "series": sum(1 for _ in contents.rows()),
        "open_episodes": sum(1 for _ in open_episodes(contents)),
        "silent_series": sum(1 for _ in silent_series(contents)),
        "episode_records": contents.count(codec.Episode),
        "forgotten_records": contents.count(codec.Forgotten),
        "claims": len(contents.owners),
        "claimed_by": contents.fence.name if contents.fence is not None else None,
        "unreadable": len(contents.findings),
    }
    if position is not None:
        oldest = contents.oldest_page
        facts |= {
            "position": position.position,
            "sequence": position.sequence,
            "event_time": iso(position.stream_time_ms) if position.stream_time_ms is not None else None,
            "owner": position.owner.hex(),
            "partitions": position.partitions,
            "replay_from": position.replay_from,
            "replay_records": position.position - position.replay_from,
            "restore_from": position.restore_from,
            "restore_bytes": contents.size,
            "oldest_page": oldest,
            "oldest_page_behind": position.position - oldest if oldest is not None else None,
            "timeline": [{"from": offset, "model": model} for offset, model in position.timeline],
            "policies": [{"from": offset, "policy": json.loads(policy)} for offset, policy in position.policies],
            "budget": _budget(position),
            "trial": None if position.trial is None else {"size": position.trial.size, "tries": position.trial.tries},
        }
    return facts


def _budget(position: codec.Position) -> Facts:
    """How the alert budget of a partition is held."""
    days = days_of(position.control)
    return {
        "corrections": [{"from": offset, "powers_of_ten": powers / MILLI} for offset, powers in position.corrections],
        "days": len(days),
        "measured_to_expected": round(10 ** (sorted(days)[(len(days) - 1) // 2] / MILLI), 3) if days else None,
    }


def open_episodes(contents: Contents) -> Iterator[tuple[str, bytes, int]]:
    """Series whose alert is firing: canonical key, the episode part of its state row, input offset up to which it is known."""
    for series, state, position in contents.episodes():
        if len(state) == EPISODE.itemsize and state[_STATE_OFFSET] == OPEN:
            yield series, state, position


def silent_series(contents: Contents) -> Iterator[tuple[str, bytes]]:
    """Series that have fallen silent: canonical key, the episode part of the state row."""
    for series, state, _ in contents.episodes():
        if len(state) == EPISODE.itemsize and state[_SILENT_OFFSET]:
            yield series, state


def _told(facts: Facts) -> Iterator[str]:
    """The same for people."""
    yield f"{facts['topic']}/{facts['partition']}  in {facts['changelog']}, offsets {facts['log_start']:,} to {facts['log_end']:,}"
    if facts["position"] is None:
        yield f"  position   none: {'records were deleted' if facts['log_start'] else 'nothing was ever committed'}"
    else:
        when = f", event time {facts['event_time']}" if facts["event_time"] else ""
        yield f"  position   {facts['position']:,} (number {facts['sequence']:,}){when}, owner {facts['owner'][:8]}"
        replay = f"replays {facts['replay_records']:,} records at most, from {facts['replay_from']:,}"
        yield f"  restart    {replay}; reads {_size(facts['restore_bytes'])} of state, from {facts['restore_from']:,}"
    oldest = facts.get("oldest_page_behind")
    age = "" if oldest is None else f"; the oldest is {oldest:,} records behind the position"
    pages = f"{facts['pages']:,} with {facts['series']:,} series, {_size(facts['page_bytes'])}{age}"
    yield f"  pages      {pages if facts['pages'] else 'none: nothing learned yet'}"
    records = f"{facts['episode_records']:,} records of episodes, {facts['forgotten_records']:,} of forgotten series"
    if facts["pages"] or facts["open_episodes"] or facts["episode_records"] or facts["forgotten_records"]:
        yield f"  episodes   {facts['open_episodes']:,} open, {facts['silent_series']:,} of silent series; {records}"
    yield f"  claims     {_claims(facts)}"
    for entry in facts.get("timeline", []):
        yield f"  model      {entry['model'][:12]} from {entry['from']:,}"
    for entry in facts.get("policies", []):
        yield f"  policy     {_differing(entry['policy'])} from {entry['from']:,}"
    if (budget := facts.get("budget")) and (budget["days"] or budget["corrections"]):
        yield f"  budget     {_held(budget)}"
    if trial := facts.get("trial"):
        yield f"  trial      the next {trial['size']:,} records may have ended the process; tries of a single one: {trial['tries']}"
    if facts["unreadable"]:
        yield f"  damage     {facts['unreadable']} records can't be used: anomalyd state verify says which"


def _held(budget: Facts) -> str:
    """How the alert budget is held, in a few words."""
    measured = f"in {budget['days']} days the level was crossed {budget['measured_to_expected']:g} times as often as expected"
    parts = [measured] if budget["days"] else []
    if budget["corrections"]:
        newest = budget["corrections"][-1]
        parts.append(f"calibration corrected by 10^{newest['powers_of_ten']:+g} from {newest['from']:,}")
    return "; ".join(parts)


def _differing(policy: dict[str, Any]) -> str:
    """What of a policy is not the default, in a few words."""
    plain = json.loads(written(Policy()))
    parts = [f"{len(value)} {name}" if name == "mutes" else f"{name} {value}" for name, value in policy.items() if value != plain.get(name)]
    return ", ".join(parts) or "the defaults"


def _claims(facts: Facts) -> str:
    """Who took the partition over and has not got anywhere since."""
    count = facts["claims"]
    if not count:
        return "none since the position last moved, or since the owner was stopped in order"
    which = "1 process has" if count == 1 else f"{count} processes have"
    text = f"{which} claimed it since the position last moved, the last of them {facts['claimed_by']}"
    if count > CLAIMS_BEFORE_TRIAL:
        text += "; they died, or are held up, in front of the same records, which are tried a few at a time now"
    return text


# --- verify ---------------------------------------------------------------------------------------------------------


def verify(settings: Settings, *, topic: str | None, partition: int | None, json_output: bool) -> int:
    """Reads everything in the changelogs and prints what is wrong with it. Returns the exit code: 1 where something is.

    What was wrong and is behind us, because a partition was begun anew since, is shown and does not count.

    Args:
        settings: the configuration.
        topic: this input only.
        partition: this one only.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: there is no such topic or partition.
        TopicError: a changelog is missing.
        StateError: a log cannot be read at all.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    found: list[Facts] = []

    async def look() -> None:
        for place in await places(settings, topic, partition):
            facts = await _verify(settings, place)
            found.append(facts)
            if not json_output:
                write("\n".join(_judged(facts)))

    asyncio.run(look())
    wrong = sum(len(facts["findings"]) for facts in found)
    if json_output:
        write(json.dumps({"partitions": found, "findings": wrong}))
    return int(wrong > 0)


async def _verify(settings: Settings, place: Place) -> Facts:
    log = CommittedLog(settings.kafka, place.changelog, place.source.partition)
    shown = Progress(place)
    try:
        contents, bounds = await whole(log, transactional=settings.transactional, progress=shown)
        findings = list(contents.findings)
    except StateError as error:
        contents, bounds = Contents(), (0, 0)
        findings = [Finding(-1, str(error), "begin the partition anew: anomalyd state restart --help", b"")]
    finally:
        shown.clear()
        await log.close()
    digest, position = contents.digest(), contents.position
    ages = {page for page in (contents.oldest_page, contents.newest_page) if page is not None}
    return {
        "topic": place.source.topic,
        "partition": place.source.partition,
        "changelog": place.changelog,
        "records": contents.records,
        "log_start": bounds[0],
        "log_end": bounds[1],
        "position": position.position if position is not None else None,
        "sequence": position.sequence if position is not None else None,
        "series": digest.count,
        "digest": digest.hex,
        # Only then does the fingerprint say what an instance would have in memory.
        "settled": position is not None and position.replay_from == position.position,
        "ages": sorted(ages),
        "findings": [{"offset": finding.offset, "text": finding.text, "action": finding.action} for finding in findings],
        # Not counted: nothing reads them any more.
        "repaired": [{"offset": finding.offset, "text": finding.text} for finding in contents.repaired],
    }


def _judged(facts: Facts) -> Iterator[str]:
    verdict = f"{len(facts['findings'])} findings" if facts["findings"] else "sound"
    at = "nothing committed" if facts["position"] is None else f"position {facts['position']:,} (number {facts['sequence']:,})"
    yield f"{facts['topic']}/{facts['partition']}  {verdict}: {facts['records']:,} records in {facts['changelog']}, {at}"
    note = "" if facts["settled"] else "  (pages are of different ages; comparable after instances were stopped in order)"
    yield f"  state {facts['digest']}, {facts['series']:,} series{note}"
    for finding in facts["findings"]:
        yield f"  at {finding['offset']:,}: {finding['text']}"
        yield f"    do: {finding['action']}"
    for finding in facts["repaired"]:
        yield f"  at {finding['offset']:,}, repaired, gone with compaction: {finding['text']}"


class Progress:
    """How far a long read is, on a terminal only."""

    def __init__(self, place: Place) -> None:
        self._name = f"{place.source.topic}/{place.source.partition}"
        self._shown = ""

    def __call__(self, first: int, reached: int, end: int) -> None:
        """Told by who reads: where the log begins, the offset reached, where it ends."""
        if sys.stderr.isatty():
            text = f"{self._name}: {100 * (reached + 1 - first) / max(1, end - first):.0f} %"
            if text != self._shown:
                self._shown = text
                sys.stderr.write(f"\r{text}\x1b[K")
                sys.stderr.flush()

    def clear(self) -> None:
        """Leaves nothing behind."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# --- places ---------------------------------------------------------------------------------------------------------


async def places(settings: Settings, topic: str | None, partition: int | None) -> list[Place]:
    """The changelog partitions that are asked for.

    Raises:
        ConfigError: there is no such topic or partition.
        TopicError: no changelog exists.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    inputs = inputs_of(settings, topic)
    there = await topics.existing(settings, [settings.changelog_topic(name) for name in inputs])
    found = [
        Place(Source(name, number), changelog)
        for name in inputs
        if (changelog := settings.changelog_topic(name)) in there
        for number in range(there[changelog].partitions)
    ]
    if not found:
        names = ", ".join(settings.changelog_topic(name) for name in inputs)
        raise TopicError(f"{names}: missing, or not to be seen by this user; anomalyd topics create -c CONFIG makes them")
    if partition is None:
        return found
    chosen = [place for place in found if place.source.partition == partition]
    if not chosen:
        most = max(place.source.partition for place in found)
        raise ConfigError(f"--partition: got {partition}, valid are 0 to {most}")
    return chosen


def inputs_of(settings: Settings, topic: str | None) -> Sequence[str]:
    """The input topics, or the one that is asked for. Raises ConfigError."""
    inputs = [name for stream in settings.streams for name in stream.topics]
    if topic is None:
        return inputs
    if topic not in inputs:
        raise ConfigError(f'--topic: got "{topic}", valid are the input topics {", ".join(inputs)}')
    return [topic]


def _size(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.4g} {units[0]}"


def write(text: str) -> None:
    """Prints a result."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
