"""What is told about a changelog: sound ones stay sound under compaction, and each kind of damage is found."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.batch import Entry, LogRecord
from anomalyd.state import codec
from anomalyd.state.codec import Episode, Fence, Forgotten, Page, Position
from anomalyd.state.digest import digest
from anomalyd.state.inspect import Contents, committed, whole
from tests.support import changelog

ROW = 8
LAYOUT = (("time", "i4", 0, 1), ("episode", "u1", 4, 4))
ME, OTHER = b"m" * 16, b"o" * 16


def page(number: int, position: int, rows: dict[str, bytes], **changed: Any) -> Entry:  # noqa: ANN401  any field
    """A page of rows of eight bytes."""
    return changelog.page(number, position, rows, **{"layout": LAYOUT, "row_bytes": ROW, "model": "model"} | changed)


def episode(series: str, position: int, state: bytes = b"\2tol") -> Entry:
    key = codec.episode_key(series)
    return Entry(key, codec.encode(key, Episode(position, state)))


def forgotten(offset: int, *series: str) -> Entry:
    key = codec.forgotten_key(offset, 0)
    return Entry(key, codec.encode(key, Forgotten(offset, list(series))))


def fence(owner: bytes = ME) -> Entry:
    return Entry(codec.FENCE_KEY, codec.encode(codec.FENCE_KEY, Fence(owner, "host")))


def place(sequence: int, position: int, previous: int, **changed: Any) -> Entry:  # noqa: ANN401  any field
    found = Position(sequence, previous, position, replay_from=position, restore_from=0, partitions=3, owner=ME, timeline=((0, "model"),))
    return Entry(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, msgspec.structs.replace(found, **changed)))


@dataclasses.dataclass
class Log:
    """A log in memory; every transaction takes an offset more for its end."""

    records: list[LogRecord] = dataclasses.field(default_factory=list)
    end: int = 0
    first: int = 0
    asked: list[int] = dataclasses.field(default_factory=list)

    def write(self, *entries: Entry) -> "Log":
        for entry in entries:
            self.records.append(LogRecord(self.end, entry.key, entry.value))
            self.end += 1
        self.end += 1
        return self

    async def bounds(self) -> tuple[int, int]:
        return self.first, self.end

    async def read(self, start: int, end: int) -> AsyncIterator[list[LogRecord]]:
        self.asked.append(start)
        for record in self.records:
            if start <= record.offset < end:
                yield [record]

    def whole(self, *, transactional: bool = True) -> Contents:
        return asyncio.run(whole(self, transactional=transactional, progress=lambda *_: None))[0]


def sound() -> Log:
    """A claim, some commits, a second claim by somebody else."""
    log = Log().write(fence())
    log.write(page(0, 10, {"a": b"a" * ROW, "b": b"b" * ROW}), episode("c", 10), place(0, 10, -1))
    log.write(page(1, 15, {"c": b"c" * ROW}), place(1, 20, 10))
    log.write(fence(OTHER))
    log.write(page(0, 30, {"a": b"A" * ROW, "b": b"B" * ROW}), place(2, 30, 20, owner=OTHER))
    log.write(forgotten(32, "b"), episode("a", 35), Entry(codec.episode_key("c"), None), place(3, 35, 30, owner=OTHER))
    return log.write(fence(OTHER))


def test_a_sound_log_has_no_findings_and_its_state_is_what_a_restore_takes() -> None:
    found = sound().whole()

    assert found.findings == []
    assert found.position is not None
    assert (found.position.sequence, found.position.position, len(found.owners)) == (3, 35, 1)
    assert (found.count(Page), found.count(Episode), found.count(Forgotten)) == (2, 1, 1)
    assert (found.oldest_page, found.newest_page) == (15, 30)
    rows = {row.key: row.data for row in found.rows()}
    assert rows == {"a": b"AAAA\2tol", "c": b"c" * ROW}  # what was told since wins; b was forgotten behind its page
    used = {row.key: row.last_use for row in found.rows()}
    assert used == {"a": 29, "c": 14}
    assert found.digest().hex == digest((key, used[key].to_bytes(8, "little") + data) for key, data in rows.items())
    assert {series: state for series, state, _ in found.episodes()} == {"a": b"\2tol", "c": b"cccc"}


def test_a_series_that_came_back_after_it_was_forgotten_is_there() -> None:
    log = sound().write(page(0, 40, {"a": b"A" * ROW, "b": b"2" * ROW}), place(4, 40, 35, owner=OTHER))
    assert {row.key: row.data for row in log.whole().rows()}["b"] == b"2" * ROW


def test_of_two_pages_with_a_series_the_newer_one_counts() -> None:
    log = sound().write(page(1, 40, {"a": b"1" * ROW}), place(4, 40, 35, owner=OTHER))
    found = log.whole()

    assert found.findings == []
    assert [row.data for row in found.rows() if row.key == "a"] == [b"1" * ROW]


@given(st.data())
def test_compaction_changes_nothing_that_matters(data: st.DataObject) -> None:
    """It takes any record of which a newer one with the same key exists, in front of some offset."""
    log = sound()
    before = log.whole()
    cleaned = data.draw(st.integers(0, log.end))
    newest = {record.key: record.offset for record in log.records if record.offset < cleaned}
    log.records = [record for record in log.records if record.offset >= newest.get(record.key, record.offset) or record.offset >= cleaned]
    after = log.whole()

    assert after.findings == []
    assert after.digest().hex == before.digest().hex
    assert after.position == before.position


def damaged(entry: Entry) -> Entry:
    value = entry.value or b""
    return entry._replace(value=value[:-1] + bytes((value[-1] ^ 1,)))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([damaged(page(0, 36, {"a": b"a" * ROW})), place(4, 40, 35, owner=OTHER)], "its checksum does not match"),
        ([Entry(b"S|4|0", b"hello"), place(4, 40, 35, owner=OTHER)], "is not anomalyd's"),
        ([Entry(b"P", None)], "was deleted"),
        ([Entry(b"what", None)], "was deleted"),
        ([place(3, 40, 35, owner=OTHER)], "position 3 follows position 3: the chain has forked"),
        ([place(4, 40, 33, owner=OTHER)], "goes on from input offset 33, the one before ended at 35"),
        ([place(6, 40, 38, owner=OTHER)], "no room for the 2 in between"),
        ([place(4, 34, 35, owner=OTHER)], "goes back from input offset 35 to 34"),
        ([place(4, 40, 35)], f"by owner {ME.hex()[:8]}, fenced by {OTHER.hex()[:8]}"),
        ([place(4, 40, 35, owner=OTHER, replay_from=41)], "replays from input offset 41, ahead of 40"),
        ([place(4, 40, 35, owner=OTHER, restore_from=99)], "restores from 99, behind itself"),
        ([place(4, 40, 35, owner=OTHER, timeline=((5, "a"), (1, "b")))], "timeline that goes back"),
        ([place(4, 40, 35, owner=OTHER, policies=((5, "{}"), (1, "{}")))], "timeline of alert policies that goes back"),
        ([place(4, 40, 35, owner=OTHER, corrections=((5, 100), (1, 200)))], "timeline of corrections that goes back"),
        ([place(4, 40, 35, owner=OTHER, restore_from=12)], "lies in front of 12, from where on a restore reads"),
        (
            [page(0, 41, {"a": b"a" * ROW}), place(4, 40, 35, owner=OTHER)],
            "record S|4|0 knows of input offset 41, ahead of its position 40",
        ),
        ([episode("a", 41), place(4, 40, 35, owner=OTHER)], "record A|a knows of input offset 41"),
        ([page(0, 36, {"a": b"a" * ROW})], "has no position behind it"),
        ([page(0, 36, {"a": b"a" * ROW}, page_rows=5), place(4, 40, 35, owner=OTHER)], "holds page 0 of 5 rows"),
        ([page(0, 36, {"a": b"a" * ROW}, keys=["a", "a"]), place(4, 40, 35, owner=OTHER)], "names a series twice"),
        ([page(0, 36, {"a": b"a" * ROW}, keys=["a", "b"]), place(4, 40, 35, owner=OTHER)], "has columns of"),
        ([page(0, 36, {"a": b"a" * ROW}, slots=memoryview(b"\7")), place(4, 40, 35, owner=OTHER)], "or one outside of the page"),
        (
            [page(0, 36, {"a": b"a" * ROW}, last_use=np.array([36]).data), place(4, 40, 35, owner=OTHER)],
            "used behind input offset 36",
        ),
        ([page(0, 36, {"a": b"a" * ROW}, layout=(("h", "f8", 4, 1),)), place(4, 40, 35, owner=OTHER)], "fields that its rows"),
        ([page(2, 30, {"a": b"a" * ROW}), place(4, 40, 35, owner=OTHER)], "series a is on pages S|4|0 and S|4|2, both of input offset 30"),
    ],
)
def test_damage_is_found_with_its_place_and_what_to_do(entries: Sequence[Entry], text: str) -> None:
    log = sound()
    start = log.end
    found = log.write(*entries).whole().findings

    assert any(text in finding.text for finding in found), found
    finding = next(finding for finding in found if text in finding.text)
    assert ("state.on_gap" if "restores from" in text else "anomalyd state restart") in finding.action
    assert 0 <= finding.offset < log.end
    if "lies in front" not in text and "both of" not in text:
        assert finding.offset >= start


def test_a_forgotten_record_under_a_foreign_key_is_found() -> None:
    wrong = codec.encode(b"G|7|0", Forgotten(8, ["a"]))
    log = sound().write(Entry(b"G|7|0", wrong), place(4, 40, 35, owner=OTHER))
    assert ["is about input offset 8" in finding.text for finding in log.whole().findings] == [True]


def test_state_without_any_position_is_found() -> None:
    found = Log().write(fence(), page(0, 10, {"a": b"a" * ROW})).whole()
    assert "no position that vouches" in found.findings[-1].text


def test_a_log_whose_records_were_deleted_is_found() -> None:
    log = sound()
    log.records = []
    log.first = log.end
    (found,) = log.write(fence()).whole().findings
    assert "holds no position" in found.text
    assert "state.on_gap" in found.action


def test_without_transactions_pages_may_be_ahead_and_owners_overlap() -> None:
    log = sound().write(page(0, 50, {"a": b"a" * ROW}), place(4, 40, 35)).write(place(4, 41, 35, owner=OTHER)).write(episode("a", 42))
    assert log.whole(transactional=False).findings == []
    assert log.whole().findings != []


def test_what_was_written_without_transactions_is_no_fault_where_they_are_used_now() -> None:
    log = sound().write(page(0, 50, {"a": b"a" * ROW}), place(4, 40, 35, plain=True)).write(place(4, 38, 35, owner=OTHER, plain=True))
    log.write(fence()).write(page(1, 52, {"d": b"d" * ROW}))
    assert log.whole().findings == []
    log.write(fence(OTHER)).write(place(5, 45, 38, owner=OTHER, plain=True)).write(place(6, 55, 45, owner=OTHER))
    assert log.whole().findings == []
    assert log.write(page(1, 62, {"d": b"d" * ROW}), place(6, 60, 55, owner=OTHER)).whole().findings != []


def test_nothing_is_a_sound_log() -> None:
    found = Log().whole()
    assert (found.findings, found.position, list(found.rows())) == ([], None, [])


@pytest.mark.parametrize("fences", [0, 63, 64, 70, 3_000])
def test_only_what_a_restart_needs_is_read(fences: int) -> None:
    """However many claims lie behind the last position."""
    log = sound()
    needed = log.end
    log.write(page(0, 40, {"a": b"n" * ROW}), place(4, 40, 35, owner=OTHER, restore_from=needed))
    for number in range(fences):
        log.write(fence(number.to_bytes(8, "big") + ME[:8]))
    contents, bounds = asyncio.run(committed(log, transactional=True))

    assert bounds == (0, log.end)
    assert log.asked[-1] == needed
    assert contents.position is not None
    assert (contents.position.sequence, len(contents.owners)) == (4, fences)
    assert contents.fence is not None
    assert [row.key for row in contents.rows()] == ["a"]


def test_an_empty_changelog_has_nothing_to_restore() -> None:
    contents, _ = asyncio.run(committed(Log(), transactional=True))
    assert contents.position is None


def anew(sequence: int, position: int, previous: int, begin: int) -> Entry:
    return place(sequence, position, previous, owner=OTHER, restore_from=begin, anew=True)


def ended(log: Log) -> list[Entry]:
    """Tombstones for everything but positions and fences."""
    return [Entry(key, None) for key in sorted({record.key for record in log.records} - {codec.POSITION_KEY, codec.FENCE_KEY})]


def test_who_begins_anew_may_go_back_and_delete_whatever_is_there() -> None:
    log = sound()
    log.write(*ended(log), Entry(b"hello", None), anew(4, 5, 35, log.end))
    log.write(page(0, 8, {"a": b"a" * ROW}), place(5, 8, 5, owner=OTHER, restore_from=log.end))

    found = log.whole()

    assert (found.findings, found.repaired) == ([], [])
    assert [row.key for row in found.rows()] == ["a"]


@pytest.mark.parametrize("again", [False, True])
def test_what_was_wrong_before_a_partition_began_anew_does_not_count(again: bool) -> None:
    log = sound().write(Entry(b"hello", b"there"), damaged(page(0, 36, {"a": b"a" * ROW})), place(9, 40, 31, owner=OTHER))
    assert len(log.whole().findings) == 3
    log.write(*ended(log), anew(10, 40, 40, log.end))
    if again:  # a good page under the key of the damaged one, and later positions that do not begin anew
        log.write(page(0, 50, {"a": b"a" * ROW}), place(11, 50, 40, owner=OTHER, restore_from=log.end))

    found = log.whole()

    assert found.findings == []
    assert ["is not anomalyd's" in finding.text for finding in found.repaired].count(True) == 1
    assert len(found.repaired) == 3


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(b"hello", b"there"), place(4, 40, 35, owner=OTHER, restore_from=99)],  # nobody has deleted it
        [Entry(b"hello", None), place(4, 40, 35, owner=OTHER)],  # deleted by somebody else
        [place(6, 40, 31, owner=OTHER, restore_from=0), place(7, 41, 40, owner=OTHER)],  # the chain has a hole that nobody has looked at
    ],
)
def test_what_nobody_has_repaired_still_counts(entries: Sequence[Entry]) -> None:
    found = sound().write(*entries).whole()
    assert found.findings
    assert found.repaired == []


def test_what_is_damaged_since_a_partition_began_anew_counts() -> None:
    log = sound()
    log.write(*ended(log), anew(4, 35, 35, log.end)).write(Entry(b"hello", b"there"), place(5, 40, 30, owner=OTHER))
    assert len(log.whole().findings) == 2


@pytest.mark.parametrize(
    ("behind", "claims"),
    [
        ([], 1),
        ([fence(b"1" * 8 + b"a" * 8), fence(b"1" * 8 + b"b" * 8)], 2),  # one process that has claimed twice is one
        ([fence(b"1" * 16), place(4, 35, 35, owner=b"1" * 16), fence(b"2" * 16)], 3),  # a position that says the same is no progress
        ([fence(b"1" * 16), place(4, 36, 35, owner=b"1" * 16), fence(b"2" * 16)], 1),
        ([fence(b"1" * 16), place(4, 35, 35, owner=b"1" * 16, clean=True)], 0),
        ([fence(b"1" * 16), place(4, 5, 35, owner=b"1" * 16, anew=True)], 0),
    ],
)
def test_owners_are_counted_that_ended_without_getting_anywhere(behind: Sequence[Entry], claims: int) -> None:
    log = sound()
    for entry in behind:
        log.write(entry)

    assert len(log.whole().owners) == claims
    assert len(asyncio.run(committed(log, transactional=True))[0].owners) == claims


def test_claims_in_front_of_what_a_restore_reads_count_too() -> None:
    log = sound().write(fence(b"1" * 16))
    log.write(place(4, 35, 35, owner=b"1" * 16, restore_from=log.end))
    assert len(asyncio.run(committed(log, transactional=True))[0].owners) == 2
