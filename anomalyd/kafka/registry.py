"""The life of models as records of one partition of a compacted topic, and what all of them together say. Knows no client.

By key:

    model|<hash>            an artifact, manifest and weights; what does not fit in one record goes on in model|<hash>|1, |2 …
    champion|<stream>       which model scores a stream, which one did before, since when, by whose doing and why
    decision|<stream>|<hash>  what was decided about a model for a stream, and by which figures; also about those that were turned down

A part of an artifact is `magic, version, part, parts, xxh3 of key and all behind it, bytes`; the others are JSON objects with `version` and
`check`, the xxh3 of key and canonical JSON without it. A tombstone has no value. A record that is damaged, foreign or of a newer release is
told of and changes nothing: what was known before it goes on to hold.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import xxhash

from anomalyd.batch import Entry
from anomalyd.errors import ArtifactError

VERSION: Final = 1
"""Of every record. Higher: this release passes it over. Fields may be added without it."""

PART_BYTES: Final = 900_000
"""Of an artifact in one record: with its key below the 1 MiB that any topic takes."""

KEPT_MODELS: Final = 8
"""Newest artifacts of a stream that stay in the topic, besides those that are a champion or were the one before."""
KEPT_DECISIONS: Final = 50
"""Newest decisions about a stream's models that stay, besides those about artifacts that do."""

SHORTEST_PREFIX: Final = 8
"""Characters of a hash that name a model."""

_MAGIC: Final = b"\xa5m"
_HEAD: Final = struct.Struct("<2sBHHQ")

T = TypeVar("T", "Champion", "Decision")


class Publishable(Protocol):
    """An artifact as the topic sees it."""

    @property
    def hash(self) -> str:
        """The model id."""

    def to_bytes(self) -> bytes:
        """All of it."""


class Packed(NamedTuple):
    """An artifact that lies in bytes already."""

    hash: str
    content: bytes

    def to_bytes(self) -> bytes:
        """All of it."""
        return self.content


class Champion(msgspec.Struct, frozen=True):
    """Which model scores a stream."""

    model: str
    """Its hash."""
    previous: str | None
    """That of the one before, which a rollback goes back to."""
    since: str
    """When it was made champion, ISO 8601."""
    by: str
    """Whose doing: promote, rollback (commands), retrain, rule."""
    reason: str = ""
    """For people."""


class Decision(msgspec.Struct, frozen=True):
    """What was decided about a model for a stream."""

    verdict: str
    """promoted, published, better (passed, unpublished), rejected, rolled-back; base: it scored before there was a champion."""
    reason: str = ""
    """For people."""
    figures: dict[str, Any] = {}
    """By which it was decided; what is not finite becomes null."""
    parent: str | None = None
    """Hash of the champion that it was judged against."""
    when: str = ""
    """ISO 8601; empty: when it is published."""


def now() -> str:
    """This moment as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- writing --------------------------------------------------------------------------------------------------------


def model_entries(artifact: Publishable) -> list[Entry]:
    """The records of an artifact."""
    content = artifact.to_bytes()
    parts = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
    return [_part(_model_key(artifact.hash, number), number, len(parts), part) for number, part in enumerate(parts)]


def champion_entry(stream: str, champion: Champion) -> Entry:
    """The record that makes a model the champion of a stream."""
    return _json_entry(b"champion|" + stream.encode(), champion)


def decision_entry(stream: str, model: str, decision: Decision) -> Entry:
    """The record of a decision."""
    return _json_entry(f"decision|{stream}|{model}".encode(), decision)


def _part(key: bytes, number: int, count: int, payload: bytes) -> Entry:
    return Entry(key, _HEAD.pack(_MAGIC, VERSION, number, count, _checksum(key, number, count, payload)) + payload)


def _model_key(model: str, part: int) -> bytes:
    return f"model|{model}|{part}".encode() if part else f"model|{model}".encode()


def _json_entry(key: bytes, record: Champion | Decision) -> Entry:
    fields = _finite(msgspec.to_builtins(record)) | {"version": VERSION}
    return Entry(key, _canonical(fields | {"check": _check(key, fields)}))


def _finite(value: Any) -> Any:  # noqa: ANN401  whatever figures hold
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _check(key: bytes, fields: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(key + b"\0" + _canonical(fields))


def _checksum(key: bytes, number: int, count: int, payload: bytes) -> int:
    return xxhash.xxh3_64_intdigest(b"%d|%d|%d|%b\0" % (VERSION, number, count, key) + payload)


# --- reading --------------------------------------------------------------------------------------------------------


class Registry:
    """What the records so far say."""

    def __init__(self) -> None:
        self.champions: dict[str, Champion] = {}
        """By stream."""
        self.decisions: dict[tuple[str, str], Decision] = {}
        """By stream and model, the newest last."""
        self._parts: dict[str, dict[int, tuple[int, bytes]]] = {}  # by model and number, with how many there are

    def take(self, key: bytes, value: bytes | None) -> str | None:
        """Takes a record in.

        Args:
            key: its key.
            value: its value; None takes back what was known under the key.

        Returns:
            What is wrong with it, where it changes nothing for that reason.
        """
        try:
            kind, *names = key.decode().split("|")
            if kind == "model" and len(names) in (1, 2):
                self._take_part(key, value, names[0], int(names[1]) if len(names) == 2 else 0)
            elif kind == "champion" and len(names) == 1:
                self._take_champion(key, value, names[0])
            elif kind == "decision" and len(names) == 2:
                self._take_decision(key, value, names[0], names[1])
            else:
                raise ArtifactError("is not anomalyd's: does something else write to this topic?")
        except (ArtifactError, ValueError, RecursionError) as error:
            return f"record {key.decode(errors='backslashreplace')[:80]} {error}"
        return None

    def _take_part(self, key: bytes, value: bytes | None, model: str, number: int) -> None:
        if value is None:
            parts = self._parts.get(model, {})
            parts.pop(number, None)
            if not parts:
                self._parts.pop(model, None)
            return
        if len(value) < _HEAD.size or value[:2] != _MAGIC:
            raise ArtifactError("is not anomalyd's: does something else write to this topic?")
        _, version, found, count, checksum = _HEAD.unpack_from(value)
        _refuse_newer(version)
        payload = value[_HEAD.size :]
        if found != number or number >= count or checksum != _checksum(key, found, count, payload):
            raise ArtifactError("is damaged: its checksum does not match")
        self._parts.setdefault(model, {})[number] = (count, payload)

    def _take_champion(self, key: bytes, value: bytes | None, stream: str) -> None:
        if value is None:
            self.champions.pop(stream, None)
        else:
            self.champions[stream] = _understood(key, value, Champion)

    def _take_decision(self, key: bytes, value: bytes | None, stream: str, model: str) -> None:
        found = None if value is None else _understood(key, value, Decision)
        self.decisions.pop((stream, model), None)
        if found is not None:
            self.decisions[stream, model] = found

    def models(self) -> list[str]:
        """Hashes of the artifacts that are there, whole or not."""
        return list(self._parts)

    def content(self, model: str) -> bytes:
        """An artifact's bytes; whoever unpacks them checks their hash.

        Raises:
            ArtifactError: it is not there, or not all of it.
        """
        parts = self._parts.get(model)
        if not parts:
            raise ArtifactError(f"the model {model[:12]} is not in the topic")
        count = max(count for count, _ in parts.values())
        if sorted(parts) != list(range(count)):
            raise ArtifactError(f"of the model {model[:12]} {len(parts)} of {count} parts are in the topic")
        return b"".join(parts[number][1] for number in range(count))

    def obsolete(self) -> Iterator[Entry]:
        """Tombstones for what nobody needs any more.

        That is artifacts that are no champion, were not the one before and are not among the newest of a stream, and old decisions.
        """
        needed = {model for champion in self.champions.values() for model in (champion.model, champion.previous)}
        streams: dict[str, list[str]] = {}
        for stream, model in self.decisions:
            streams.setdefault(stream, []).append(model)
        for models in streams.values():
            needed.update([model for model in models if model in self._parts][-KEPT_MODELS:])
        for model, parts in self._parts.items():
            if model not in needed:
                yield from (Entry(_model_key(model, number), None) for number in sorted(parts, reverse=True))
        for stream, models in streams.items():
            for model in models[:-KEPT_DECISIONS]:
                if model not in needed:
                    yield Entry(f"decision|{stream}|{model}".encode(), None)


def _understood(key: bytes, value: bytes, kind: type[T]) -> T:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"is damaged: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("version"), int):
        raise ArtifactError("is not anomalyd's: does something else write to this topic?")
    _refuse_newer(fields["version"])
    check = fields.pop("check", None)
    if check != _check(key, fields):
        raise ArtifactError("is damaged: its checksum does not match")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"can't be understood: {error}") from error


def _refuse_newer(version: int) -> None:
    if version > VERSION:
        raise ArtifactError(f"has version {version}, this release reads up to {VERSION}: it is of a newer release")
