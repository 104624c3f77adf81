"""The commands that look at state, on changelogs that real writers have written."""

import asyncio
import json
import re

import pytest

from anomalyd import state_commands
from anomalyd.alerts.budget import Control
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.timeline import written
from anomalyd.batch import Entry
from anomalyd.errors import ConfigError, KafkaUnavailableError, TopicError
from anomalyd.state import codec
from anomalyd.state.codec import Fence
from anomalyd.state.digest import digest
from tests.support.changelog import FENCE, FIRING, ROW_BYTES, Rig, page, position, row
from tests.support.topics import produce, unique


@pytest.fixture
def rig(kafka: str, capsys: pytest.CaptureFixture[str]) -> Rig:
    made = Rig(kafka)
    capsys.readouterr()
    return made


def test_inspect_tells_what_a_restart_would_find(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = {"a": row(1.0, **FIRING), "b": row(2.0)}, {"c": row(3.0)}
    policies = ((0, written(Policy())), (120, written(Policy(min_deviation=2.5, mutes=(Mute(to_min=60),)))))
    control = Control()
    control.begin((0, 0, 0, 0, 0, 0, *[300] * 9), ((120, 250),), 150)
    last = position(
        1, 150, 100, replay_from=110, policies=policies, control=(9, 9, 9, 256, *control.state), corrections=((20, 100), (120, 250))
    )
    pages = [page(0, 100, first), position(0, 100, -1, replay_from=80)], [page(1, 140, second), last]
    asyncio.run(rig.write([FENCE], *pages, [FENCE], cut=True))

    assert state_commands.inspect(rig.settings, topic=None, partition=None, json_output=True) == 0
    one, two = json.loads(capsys.readouterr().out.splitlines()[-1])["partitions"]
    assert {name: one[name] for name in ("topic", "partition", "position", "sequence", "replay_records", "oldest_page_behind")} == {
        "topic": rig.source,
        "partition": 0,
        "position": 150,
        "sequence": 1,
        "replay_records": 40,
        "oldest_page_behind": 50,
    }
    assert (one["pages"], one["series"], one["open_episodes"], one["claims"], one["claimed_by"]) == (2, 3, 1, 1, "host-a")
    assert one["timeline"] == [{"from": 0, "model": "m" * 32}]
    assert [(entry["from"], entry["policy"]["min_deviation"]) for entry in one["policies"]] == [(0, 0.0), (120, 2.5)]
    assert one["budget"] == {
        "corrections": [{"from": 20, "powers_of_ten": 0.1}, {"from": 120, "powers_of_ten": 0.25}],
        "days": 9,
        "measured_to_expected": 1.995,
    }
    assert one["log_end"] > one["log_start"] == 0
    assert one["restore_bytes"] > one["page_bytes"] > 3 * ROW_BYTES
    assert (two["partition"], two["position"], two["pages"]) == (1, None, 0)

    assert state_commands.inspect(rig.settings, topic=rig.source, partition=0, json_output=False) == 0
    told = capsys.readouterr().out
    assert re.search(r"position +150 \(number 1\), event time 2025-10-09T08:54:20.000Z", told)
    assert "replays 40 records at most, from 110" in told
    assert "in 9 days the level was crossed 1.995 times as often as expected; calibration corrected by 10^+0.25 from 120" in told
    assert "1 process has claimed it since the position last moved, the last of them host-a" in told
    assert re.search(r"policy +the defaults from 0\n +policy +min_deviation 2.5, 1 mutes from 120\n", told)
    assert f"{rig.source}/1" not in told

    assert state_commands.inspect(rig.settings, topic=rig.source, partition=1, json_output=False) == 0
    told = capsys.readouterr().out
    assert "none: nothing learned yet" in told
    assert "0 series" not in told


def test_inspect_tells_of_owners_that_die_one_after_the_other(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    key = codec.FENCE_KEY
    deaths = [[Entry(key, codec.encode(key, Fence(bytes((number,)) * 16, f"host-{number}")))] for number in range(4)]
    asyncio.run(rig.write([FENCE], [page(0, 100, {"a": row()}), position(0, 100, -1)], *deaths))

    assert state_commands.inspect(rig.settings, topic=None, partition=0, json_output=False) == 0
    told = capsys.readouterr().out
    assert "4 processes have claimed it since the position last moved, the last of them host-3" in told
    assert "tried a few at a time" in told


def test_verify_finds_nothing_in_what_writers_write(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a": row(1.0), "b": row(2.0)}
    asyncio.run(rig.write([FENCE], [page(0, 100, rows), position(0, 100, -1)], [position(1, 150, 100)], cut=True))

    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=True) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, two = found["partitions"]
    known = digest((key, (99).to_bytes(8, "little") + data) for key, data in rows.items())
    assert (found["findings"], one["findings"], two["findings"]) == (0, [], [])
    assert (one["records"], one["series"], one["digest"], one["settled"]) == (4, 2, known, True)
    assert (two["records"], two["digest"]) == (0, "0" * 32)


def test_verify_says_where_a_log_is_wrong_and_what_to_do(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(rig.write([FENCE], [page(0, 100, {"a": row()}), position(0, 100, -1)], [position(1, 150, 99)], partition=1))
    produce(rig.settings.kafka.bootstrap_servers, rig.settings.changelog_topic(rig.source), [b"hello"], partition=1, key=b"S|4|0")

    assert state_commands.verify(rig.settings, topic=None, partition=None, json_output=False) == 1
    told = capsys.readouterr().out
    assert f"{rig.source}/0  sound" in told
    assert f"{rig.source}/1  2 findings" in told
    assert "at 5: position 1 goes on from input offset 99, the one before ended at 100" in told
    assert "is not anomalyd's" in told
    assert "anomalyd state restart" in told


def test_what_does_not_exist_is_named(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="--partition: got 2, valid are 0 to 1"):
        state_commands.inspect(rig.settings, topic=None, partition=2, json_output=False)
    with pytest.raises(ConfigError, match=f'--topic: got "what", valid are the input topics {rig.source}'):
        state_commands.verify(rig.settings, topic="what", partition=None, json_output=False)
    elsewhere = rig.settings.model_copy(update={"state": rig.settings.state.model_copy(update={"prefix": unique("none")})})
    with pytest.raises(TopicError, match="anomalyd topics create"):
        state_commands.inspect(elsewhere, topic=None, partition=None, json_output=False)


def test_without_brokers_there_is_one_clear_line(rig: Rig) -> None:
    away = rig.settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1", "request_timeout_ms": 3_000})
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1"):
        state_commands.inspect(rig.settings.model_copy(update={"kafka": away}), topic=None, partition=None, json_output=False)
