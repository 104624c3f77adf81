"""The records of a changelog, as bytes: versioned, checksummed, without pickle.

A changelog is a compacted topic with the partitions of the input topic that it belongs to. By key:

    P               the position up to which alerts are committed, and what a restore needs to know
    F               a fence: who took the partition over, and proof that everything in front of it was read
    S|rows|page     a page of state rows, as they were at one position
    A|series key    a series' episode as it was at one position: what was told about it must not be told again
    G|offset|part   series that were forgotten in front of an offset

A value is `magic, version, kind, xxh3 of key and all behind it, payload`; the payload is MessagePack, its fields by place. A tombstone has
no value and says that a restore no longer needs the record.
"""

import struct
from typing import Final

import msgspec
import xxhash

from anomalyd.errors import StateError
from anomalyd.state.trial import Trial

VERSION: Final = 1
"""Written into every record. Higher: an older anomalyd must not read it. What changes it: another meaning of a field, or one less."""

POSITION_KEY: Final = b"P"
FENCE_KEY: Final = b"F"

FORGOTTEN_PER_RECORD: Final = 2_000
"""Series keys in one record: at 4 KiB for the longest key it stays below what a topic takes."""

_MAGIC: Final = b"\xa5n"
_HEAD: Final = struct.Struct("<2sBcQ")


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The last thing in every transaction."""

    sequence: int
    """One more than that of the position before."""
    previous: int
    """The position before; -1 for the first."""
    position: int
    """Input offset up to which alerts are committed: P."""
    replay_from: int
    """Input offset from which on records have to be replayed into the pages; at most `position`."""
    restore_from: int
    """Changelog offset from which on everything has to be read that a restore needs."""
    partitions: int
    """Of the input topic."""
    owner: bytes
    """Nonce of the claim that wrote it."""
    stream_time_ms: int | None = None
    """Newest event time seen."""
    timeline: tuple[tuple[int, str], ...] = ()
    """Which model scores from which input offset on, by its hash, oldest first."""
    trial: Trial | None = None
    clean: bool = False
    """The owner let go of the partition alive; if it goes on, the next position says so."""
    anew: bool = False
    """Nothing from before counts: the input topic was made anew, or an operator decided so. The position may go back."""
    policies: tuple[tuple[int, str], ...] = ()
    """Which alert policy is in force from which input offset on, oldest first; the policy itself, as JSON."""
    plain: bool = False
    """Written without transactions, or while records that were know more than the position: the chain may fork, pages may be ahead."""
    pulse: tuple[int, ...] = ()
    """The partition's progress in event time, by which series are silent: `shard_silence.Pulse`."""
    control: tuple[int, ...] = ()
    """What was counted to check the alert budget: `shard_budget.BudgetWatch`."""
    corrections: tuple[tuple[int, int], ...] = ()
    """By how much the threshold gives from which input offset on, in thousandths of a power of ten, oldest first."""


class Fence(msgspec.Struct, frozen=True, array_like=True):
    """Somebody took the partition over, or made sure that nobody else has."""

    owner: bytes
    """Nonce of a claim: random bytes. Several fences of one claim have the same."""
    name: str
    """Of the instance, for people."""
    group: str = ""
    """The consumer group that gave it the partition; empty where it was an operator."""


class Page(msgspec.Struct, frozen=True, array_like=True):
    """State rows of one partition, self-describing, so that another release or another model can read them."""

    position: int
    """Input offset up to which the rows have learned: S."""
    number: int
    page_rows: int
    """Rows of a full page; row number = number * page_rows + slot."""
    model: str
    """Hash of the artifact whose memory this is."""
    layout: tuple[tuple[str, str, int, int], ...]
    """Fields of a row: name, numpy type code, offset in bytes, count."""
    row_bytes: int
    reading: str
    """Fingerprint of format and selection, on which `spellings` depend."""
    keys: list[str]
    """Canonical series keys, n of them."""
    slots: memoryview
    """Place of each row in the page, uint8 (n,)."""
    last_use: memoryview
    """Offset of the record that held each series' last sample, int64 (n,)."""
    spellings: memoryview
    """Hash of a raw spelling of each series, zeros if unknown, uint64 (n, 2); of an entity those of its features, (n, F, 2)."""
    rows: memoryview
    """The rows, uint8 (n, row_bytes)."""
    features: str = ""
    """Fingerprint of what the features of entities are: the rows mean nothing where they are others. Empty without entities."""


class Episode(msgspec.Struct, frozen=True, array_like=True):
    """What was told about a series."""

    position: int
    """Input offset up to which the episode has advanced."""
    state: bytes
    """The episode part of the state row."""


class Forgotten(msgspec.Struct, frozen=True, array_like=True):
    """Series that were evicted or expired."""

    offset: int
    """Of the record in front of which they were forgotten; samples from this one on begin them anew."""
    keys: list[str]


Value = Position | Fence | Page | Episode | Forgotten

_KIND: Final[dict[type, bytes]] = {Position: b"P", Fence: b"F", Page: b"S", Episode: b"A", Forgotten: b"G"}
_encoder: Final = msgspec.msgpack.Encoder()
_DECODER: Final[dict[bytes, msgspec.msgpack.Decoder[Value]]] = {kind: msgspec.msgpack.Decoder(type_) for type_, kind in _KIND.items()}


def page_key(page_rows: int, number: int) -> bytes:
    """The key of a page's record. Pages of another size are other pages: a release that changes it finds both, and the newer row wins."""
    return b"S|%d|%d" % (page_rows, number)


def episode_key(series: str) -> bytes:
    """The key of a series' episode record."""
    return b"A|" + series.encode()


def forgotten_key(offset: int, part: int) -> bytes:
    """The key of a record of forgotten series."""
    return b"G|%d|%d" % (offset, part)


def forgotten_at(key: bytes) -> int:
    """The offset in a key of forgotten series."""
    return int(key.split(b"|")[1])


def series_of(key: bytes) -> str:
    """The series that an episode record is about."""
    return key[2:].decode()


def encode(key: bytes, value: Value) -> bytes:
    """The bytes of a record's value."""
    return _framed(key, _KIND[type(value)], _encoder.encode(value))


def _framed(key: bytes, kind: bytes, payload: bytes) -> bytes:
    return b"".join((_HEAD.pack(_MAGIC, VERSION, kind, _checksum(VERSION, kind, key, payload)), payload))


def decode(key: bytes, value: bytes) -> Value:
    """The record behind the bytes; large parts are views into them.

    Raises:
        StateError: damaged, not ours, or written by a newer release. The message says which and what to do.
    """
    if len(value) < _HEAD.size or value[:2] != _MAGIC:
        raise StateError(f"record {_show(key)} is not anomalyd's: does something else write to this topic?")
    _, version, kind, checksum = _HEAD.unpack_from(value)
    if version > VERSION:
        raise StateError(f"record {_show(key)} has version {version}, this release reads up to {VERSION}: go back to the newer release")
    payload = memoryview(value)[_HEAD.size :]
    if kind != key[:1] or kind not in _DECODER or checksum != _checksum(version, kind, key, payload):
        raise StateError(f"record {_show(key)} is damaged: its checksum does not match")
    try:
        return _DECODER[kind].decode(payload)
    except msgspec.DecodeError as error:
        raise StateError(f"record {_show(key)} can't be understood: {error}") from error


def _checksum(version: int, kind: bytes, key: bytes, payload: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(bytes((version,)) + kind + key)
    digest.update(payload)
    return digest.intdigest()


def _show(key: bytes) -> str:
    return key.decode(errors="backslashreplace")[:80]
