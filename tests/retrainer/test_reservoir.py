import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.errors import StateError
from anomalyd.formats import make_decoder
from anomalyd.retrainer.reservoir import Reservoir
from anomalyd.series import Entities

START_S = 1_760_000_000
SAMPLE_BYTES = 16


def record(name: str, i: int, value: float, **tags: str) -> bytes:
    return json.dumps({"name": name, "ts": START_S + 60 * i, "value": value, "tags": tags}).encode()


def fed(reservoir: Reservoir, values: list[bytes]) -> Reservoir:
    reservoir.take(make_decoder("plain-json"), values, lambda _: 0)
    return reservoir


def of(series: int, samples: int = 8, seed: int = 0) -> Reservoir:
    return Reservoir(series * samples * SAMPLE_BYTES, samples, seed)


def test_a_chatty_series_has_no_better_chance() -> None:
    chatty = [record("chatty", i, float(i)) for i in range(2_000)]
    first, last = ([record("quiet", i, 1.0, host=str(host)) for host in range(2_000)] for i in (0, 2_000))

    drawn = [len([h for h in fed(of(100, seed=seed), first + chatty + last).histories() if h.key == "chatty"]) for seed in range(40)]

    assert sum(drawn) <= 8  # expected: 40 * 100 / 2001


def test_memory_is_bounded_whatever_comes() -> None:
    reservoir = of(16, samples=32)

    for block in range(20):
        fed(reservoir, [record("m", i, float(i), host=str(host)) for host in range(block * 50, block * 50 + 200) for i in range(40)])

    kept = reservoir.kept()
    assert kept.series == 16
    assert kept.bytes <= 16 * 32 * SAMPLE_BYTES
    assert all(len(history.time_ms) <= 32 for history in reservoir.histories())


@given(st.permutations(range(60)), st.integers(1, 59), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_depends_on_neither_order_nor_batches(order: list[int], cut: int, seed: int) -> None:
    straight, shuffled = of(10, seed=seed), of(10, seed=seed)

    fed(straight, [record("m", 0, float(host), host=str(host)) for host in range(60)])
    values = [record("m", 0, float(host), host=str(host)) for host in order]
    fed(fed(shuffled, values[:cut]), values[cut:])

    assert [h.key for h in straight.histories()] == [h.key for h in shuffled.histories()]
    assert [h.value.tolist() for h in straight.histories()] == [h.value.tolist() for h in shuffled.histories()]


def test_the_newest_samples_are_kept_in_order_and_late_ones_are_not() -> None:
    reservoir = fed(of(2, samples=4), [record("m", i, float(i)) for i in (0, 1, 2, 3, 4, 5, 2, 5, 6)])

    (history,) = reservoir.histories()
    assert history.value[:, 0].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert np.diff(history.time_ms).tolist() == [60_000] * 3


def test_one_sample_from_the_future_does_not_end_a_series() -> None:
    reservoir = fed(of(2, samples=400), [record("m", i, float(i)) for i in (0, 1, 2, 10**6)])

    fed(reservoir, [record("m", i, float(i)) for i in range(3, 303)])

    (history,) = reservoir.histories()
    assert history.value[:3, 0].tolist() == [0.0, 1.0, 2.0]
    assert history.value[-1, 0] == 302.0
    assert len(history.value) >= 200
    assert (np.diff(history.time_ms) > 0).all()


def test_what_is_sent_again_ends_no_series() -> None:
    values = [record("m", i, float(i)) for i in range(300)]
    reservoir = fed(of(2, samples=400), values)

    fed(reservoir, values[:250])
    fed(reservoir, values[250:])

    (history,) = reservoir.histories()
    assert history.value[:, 0].tolist() == [float(i) for i in range(300)]


def test_a_record_with_more_series_than_there_is_room_for() -> None:
    """It fits into the rows, but not into those that are free."""
    few, many = (
        json.dumps(
            {"metrics": [{"name": name, "fields": {f"f{i}": 1.0 for i in range(fields)}, "tags": {}, "timestamp": START_S}]}
        ).encode()
        for name, fields in (("n", 16), ("m", 1030))
    )
    reservoir = of(16)

    reservoir.take(make_decoder("telegraf-json"), [few, many], lambda _: 0)

    assert 4 <= len(reservoir) <= 16


def test_a_wrong_clock_does_not_make_everybody_else_look_gone() -> None:
    reservoir = fed(of(10), [record("m", 0, 1.0, host=str(host)) for host in range(9)])
    fed(reservoir, [record("m", 10**6, 1.0, host="wrong")])

    assert reservoir.now_ms == START_S * 1000
    reservoir.forget(reservoir.now_ms, 8)

    assert len(reservoir) == 10


def test_series_that_are_gone_make_room() -> None:
    reservoir = fed(of(10), [record("old", 0, 1.0, host=str(host)) for host in range(1000)])
    fed(reservoir, [record("old", 5000, 1.0, host="0")])

    now_ms = (START_S + 60 * 5000) * 1000
    reservoir.forget(now_ms, 60 * 1000 * 1000)
    for _ in range(3):  # the draw widens again, at first only so far as there is room
        fed(reservoir, [record("new", 5000, 1.0, host=str(host)) for host in range(1000)])
        reservoir.forget(now_ms, now_ms)

    assert len(reservoir) == 10
    assert len([h for h in reservoir.histories() if h.key.startswith("new")]) >= 9


def test_names_that_come_and_go_by_the_thousand_leave_what_stays() -> None:
    reservoir = fed(of(16, samples=200), [record("stays", i, float(i), host=str(host)) for i in range(100) for host in range(16)])

    fed(reservoir, [record("job", 100, 1.0, id=str(number)) for number in range(20_000)])
    fed(reservoir, [record("stays", i, float(i), host=str(host)) for i in range(101, 110) for host in range(16)])

    lengths = [len(history.time_ms) for history in reservoir.histories() if history.key.startswith("stays")]
    assert lengths == [109] * 14  # an eighth of the room is for who is new
    assert len(reservoir) == 16
    reservoir.forget((START_S + 60 * 3000) * 1000, 8 * 86_400_000)
    assert len(reservoir) == 14  # and that is free again a day later


def test_values_of_an_entity_become_one_sample() -> None:
    reservoir = Reservoir(4 * 8 * 24, 8, 0, entities=Entities(["a", "b"], ["host"], "host"))
    fed(
        reservoir,
        [record("a", 0, 1.0, host="x"), record("b", 0, 2.0, host="x"), record("a", 1, 3.0, host="x"), record("c", 1, 9.0, host="x")],
    )

    (history,) = reservoir.histories()
    assert history.key == 'host{host="x"}'
    np.testing.assert_array_equal(history.value, [[1.0, 2.0], [3.0, np.nan]])


def test_a_restart_changes_nothing() -> None:
    values = [record("m", i, float(i * host), host=str(host)) for i in range(20) for host in range(30)]
    whole, before = fed(of(7), values), fed(of(7), values[:300])
    after = of(7)

    said = after.load(before.dump({"positions": 300}))
    fed(after, values[300:])

    assert said == {"positions": 300}
    assert after.dump({}) == whole.dump({})


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"rubbish", lambda data: data[:100] + b"\xff" * 50 + data[150:]])
def test_what_is_damaged_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = fed(of(7), [record("m", i, 1.0) for i in range(5)]).dump({})

    with pytest.raises(StateError):
        of(7).load(damage(data))


def test_another_number_of_features_is_refused() -> None:
    data = fed(of(7), [record("m", 0, 1.0)]).dump({})

    with pytest.raises(StateError, match="1 features, not 2 and 2"):
        Reservoir(1 << 20, 8, 0, entities=Entities(["a", "b"], ["host"], "host")).load(data)
