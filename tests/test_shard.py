"""One partition's engine: records in, alerts and dead letters out."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Episodes, Policy
from anomalyd.alerts.messages import Message, MessageBuilder
from anomalyd.alerts.mutes import Mute
from anomalyd.batch import SampleBatch, Source, Verdicts
from anomalyd.detector import Detector
from anomalyd.formats import Decoded, Decoder, make_decoder
from anomalyd.series import Selection, SeriesIndex
from anomalyd.series.index import Released
from anomalyd.shard import INTERNAL_ERROR, Outcome, Shard, StreamPlan

START_S = 1_760_000_000
STEP_S = 10


class Record(NamedTuple):
    value: bytes | None
    offset: int
    timestamp: int = 1_760_000_000_000
    key: bytes | None = None


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(device="cpu")


def shard(detector: Detector, capacity: int = 100, decoder: Decoder | None = None, **plan: Any) -> Shard:  # noqa: ANN401  a plan's fields
    chosen = decoder or make_decoder("plain-json")
    return Shard(StreamPlan("hosts", **plan), Source("metrics", 3), detector, chosen, capacity, now_ms=lambda: 1_760_000_000_500)


def sample(name: str, i: int, value: float) -> bytes:
    return json.dumps({"name": name, "ts": START_S + STEP_S * i, "value": value}).encode()


def records(values: Sequence[bytes | None], first: int = 0) -> list[Record]:
    return [Record(value, first + i) for i, value in enumerate(values)]


def incident(samples: int = 600, spike: Callable[[int], bool] = lambda i: 500 <= i < 506) -> list[bytes]:
    """A noisy series that leaves its range once."""
    noise = np.random.default_rng(1).standard_normal(samples)
    return [sample("load", i, 100 + noise[i] + (60 if spike(i) else 0)) for i in range(samples)]


def values_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(alert.message.value) for alert in outcome.alerts]


def test_an_incident_fires_and_resolves_with_its_source(detector: Detector) -> None:
    outcome = shard(detector, labels={"team": "storage"}).process(records(incident(), first=1000))

    firing, *_, resolved = values_of(outcome)
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert firing["source"] == {"topic": "metrics", "partition": 3, "offset": 1500}
    assert firing["alert_id"] == resolved["alert_id"] == outcome.alerts[0].message.key.decode()
    assert firing["labels"] == {"team": "storage"}
    assert firing["model"]["hash"] == detector.model.hash
    assert outcome.alerts[0].produced_ms == 1_760_000_000_000
    assert (outcome.records, outcome.samples, outcome.next_offset) == (600, 600, 1600)
    assert outcome.dead_letters == []


def test_the_policy_of_the_stream_holds_alerts_back_and_counts_them(detector: Detector) -> None:
    """Two spikes within the hour, the second one higher: both are told of, the first only, or none, since they are not far enough away."""
    noise = np.random.default_rng(1).standard_normal(600)
    spikes = {500: 60, 501: 60, 560: 900, 561: 900}
    twice = records([sample("load", i, 100 + noise[i] + spikes.get(i, 0)) for i in range(600)])

    def told(**policy: Any) -> tuple[int, int]:  # noqa: ANN401  a policy's fields
        outcome = shard(detector, policy=Policy(**policy)).process(twice)
        return sum(alert["status"] == "firing" for alert in values_of(outcome)), outcome.flapping

    assert told() == (2, 0)
    assert told(reopen_after_ms=3_600_000) == (1, 1)
    assert told(min_deviation=2_000.0) == (0, 0)
    assert told(min_deviation=10.0, min_deviation_ratio=0.1) == (2, 0)


def test_a_muted_incident_is_learned_and_counted_and_not_told(detector: Detector) -> None:
    """The incident of one series lies in the window, that of the other does not match the selector."""
    start_ms = 1000 * (START_S + STEP_S * 500)
    window = Mute(("load",), start_ms=start_ms, end_ms=start_ms + 3_600_000)
    both = [value for record in incident() for value in (record, record.replace(b"load", b"other"))]
    plain, muted = shard(detector), shard(detector, policy=Policy(mutes=(window,)))

    told, outcome = values_of(plain.process(records(both))), muted.process(records(both))

    assert {alert["series"]["key"] for alert in told} == {"load", "other"}
    assert values_of(outcome) == [alert for alert in told if alert["series"]["key"] == "other"]
    assert outcome.muted == 1
    assert (muted.pages.field("mean") == plain.pages.field("mean")).all()


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 599), max_size=8))
def test_how_records_are_cut_into_batches_changes_nothing(detector: Detector, cuts: list[int]) -> None:
    whole, cut = shard(detector), shard(detector)
    all_records = records(incident())

    together = whole.process(all_records)
    apart: list[dict[str, Any]] = []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 600], strict=True):
        if begin < end:
            apart += values_of(cut.process(all_records[begin:end]))

    assert apart == values_of(together)
    assert bytes(cut.pages.buffer[:1]) == bytes(whole.pages.buffer[:1])


def test_bad_records_become_dead_letters_and_the_others_are_scored(detector: Detector) -> None:
    good = sample("load", 1, 1.0)

    outcome = shard(detector).process(records([good, b"{", None, b'{"name":5}', good]))

    assert [(letter.record.offset, letter.reason) for letter in outcome.dead_letters] == [(1, "malformed"), (2, "empty"), (3, "no-name")]
    assert outcome.rejected == {"malformed": 1, "empty": 1, "no-name": 1}
    assert (outcome.records, outcome.samples, outcome.repeated) == (5, 2, 1)


def test_the_selection_of_the_stream_holds(detector: Detector) -> None:
    chosen = shard(detector, select=Selection(include=["cpu.*"]))

    outcome = chosen.process(records([sample("cpu.user", 0, 1.0), sample("disk", 0, 1.0)]))

    assert (outcome.samples, chosen.index.keys) == (1, ["cpu.user"])


def test_a_full_shard_forgets_the_longest_idle_and_goes_on(detector: Detector) -> None:
    full = shard(detector, capacity=4)

    first = full.process(records([sample(name, 0, 1.0) for name in "abcd"]))
    outcome = full.process(records([sample("a", 1, 1.0), sample("e", 0, 1.0)], first=4))

    assert (first.evicted, outcome.evicted, outcome.samples) == (0, 1, 2)
    assert sorted(key for key in full.index.keys if key) == ["a", "c", "d", "e"]


def test_a_row_given_to_another_series_starts_empty(detector: Detector) -> None:
    """The next owner of a state row must not inherit what the last one learned."""
    reused, fresh = shard(detector, capacity=1), shard(detector, capacity=1)
    newcomer = records([sample("new", i, 50.0 + i % 3) for i in range(100)], first=503)

    reused.process(records(incident()[:503]))
    assert reused.open_episodes == 1
    reused.process(newcomer)
    fresh.process(newcomer)

    assert reused.open_episodes == 0
    assert bytes(reused.pages.buffer) == bytes(fresh.pages.buffer)


def test_series_that_come_and_go_by_the_thousand_cost_linear_time(detector: Detector) -> None:
    """Each eviction makes little room; decoding the rest of the batch anew for each would take minutes."""
    calls: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self.decoder = make_decoder("plain-json")

        def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
            calls.append(len(values))
            return self.decoder.decode(values, timestamp_ms, index)

    churning = shard(detector, capacity=256, decoder=Counting())

    outcome = churning.process(records([sample(f"s{i}", 0, 1.0) for i in range(5_000)]))

    assert outcome.samples == 5_000
    assert outcome.evicted == 5_000 - 256
    assert sum(calls) < 100 * 5_000


class Crashing:
    """Fails where it comes to the record b"crash"."""

    def __init__(self) -> None:
        self._decoder = make_decoder("plain-json")

    def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
        good = values[: values.index(b"crash")] if b"crash" in values else values
        decoded = self._decoder.decode(good, timestamp_ms, index)
        if decoded.consumed == len(good) < len(values):
            raise ZeroDivisionError
        return decoded


def test_a_record_that_crashes_our_own_code_ends_alone_as_a_dead_letter(detector: Detector) -> None:
    outcome = shard(detector, decoder=Crashing()).process(records([sample("a", 0, 1.0), b"crash", sample("b", 0, 1.0)], first=7))

    assert [(letter.record.offset, letter.reason) for letter in outcome.dead_letters] == [(8, INTERNAL_ERROR)]
    assert (outcome.records, outcome.samples, outcome.next_offset) == (3, 2, 10)


def test_a_record_that_crashes_our_own_code_takes_no_row(detector: Detector) -> None:
    """Whether it came alone or with others: room is made where it is needed, and nowhere else."""

    class CrashingBehind:
        def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
            decoded = make_decoder("plain-json").decode(values, timestamp_ms, index)
            if sample("crash", 0, 1.0) in values:
                raise ZeroDivisionError
            return decoded

    small = shard(detector, capacity=2, decoder=CrashingBehind())
    outcome = small.process(records([sample(name, 0, 1.0) for name in ("a", "crash", "b")]))

    assert outcome.rejected == {INTERNAL_ERROR: 1}
    assert (small.series, outcome.evicted, sorted(filter(None, small.index.keys))) == (2, 0, ["a", "b"])


def test_a_record_that_crashes_our_own_code_costs_no_alert_of_others(detector: Detector) -> None:
    """However far the batch had come: nothing that was learned may be learned, or judged, a second time."""
    values: list[bytes | None] = [*incident()]
    values[503:503] = [sample("c", 0, 1.0), b"crash"]  # the shard is full by then: what is in front is judged before this is decoded
    values[:0] = [sample("a", 0, 1.0), sample("b", 0, 1.0)]

    outcome = shard(detector, capacity=3, decoder=Crashing()).process(records(values))

    undisturbed = shard(detector).process(records(incident()))
    assert [(told["alert_id"], told["status"]) for told in values_of(outcome)] == [
        (told["alert_id"], told["status"]) for told in values_of(undisturbed)
    ]
    assert (outcome.samples, outcome.repeated, outcome.late) == (603, 0, 0)
    assert outcome.evicted == 1
    assert outcome.rejected == {INTERNAL_ERROR: 1}


def test_an_alert_that_cannot_be_written_leaves_the_others_and_its_record(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    build, built = MessageBuilder.build, list[int]()

    def failing_first(*args: Any, **named: Any) -> Message:  # noqa: ANN401  those of build
        built.append(named["offset"])
        if len(built) == 1:
            raise ZeroDivisionError
        return build(*args, **named)

    monkeypatch.setattr(MessageBuilder, "build", failing_first)
    outcome = shard(detector).process(records(incident(), first=1000))
    monkeypatch.undo()

    told = values_of(shard(detector).process(records(incident(), first=1000)))
    assert len(told) > 1
    assert values_of(outcome) == told[1:]
    assert [(letter.record.offset, letter.reason) for letter in outcome.dead_letters] == [(1500, INTERNAL_ERROR)]
    assert (outcome.records, outcome.samples, outcome.next_offset) == (600, 600, 1600)


def test_a_crash_after_the_state_moved_is_told_and_not_tried_again(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples once more would be taken for repeated ones, and what they had to tell would be lost without a word."""
    calls: list[int] = []

    def crash(_: Episodes, batch: SampleBatch, *__: object) -> None:
        calls.append(len(batch))
        raise ZeroDivisionError

    monkeypatch.setattr(Episodes, "advance", crash)

    with pytest.raises(ZeroDivisionError):
        shard(detector).process(records(incident()))
    assert len(calls) == 1


def test_observers_see_scores_and_alerts(detector: Detector) -> None:
    scores: list[NDArray[np.float64]] = []
    alerts: list[dict[str, Any]] = []

    def look(_: Shard, batch: SampleBatch, verdicts: Verdicts, told: list[dict[str, Any]]) -> None:
        assert len(batch) == len(verdicts)
        scores.append(verdicts.score)
        alerts.extend(told)

    observed = Shard(
        StreamPlan("hosts", Policy(resolve_after_samples=3)), Source("m", 0), detector, make_decoder("plain-json"), 10, observer=look
    )
    outcome = observed.process(records(incident()))

    assert sum(map(len, scores)) == 600
    assert alerts == values_of(outcome)


def test_stream_time_is_the_newest_event_time(detector: Detector) -> None:
    clock = shard(detector)

    assert clock.stream_time_ms is None
    clock.process(records([sample("a", 5, 1.0), sample("a", 2, 1.0)]))
    assert clock.stream_time_ms == (START_S + 5 * STEP_S) * 1000


def test_a_record_of_many_new_series_finds_room_in_few_attempts(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding it again for each 256th of the room took seconds."""

    def fields(first: int) -> bytes:
        return f"m {','.join(f'f{first + i}=1' for i in range(512))} {START_S}000000000".encode()

    full = shard(detector, capacity=512, decoder=make_decoder("influx"))
    full.process(records([fields(0)]))
    attempts = list[int]()
    evict = full.index.evict

    def counted(times: int = 1) -> Released:
        attempts.append(times)
        return evict(times)

    monkeypatch.setattr(full.index, "evict", counted)
    outcome = full.process(records([fields(10_000)], first=1))

    assert (outcome.samples, full.series) == (512, 512)
    assert len(attempts) <= 10
