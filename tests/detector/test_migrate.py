"""Rows of another release and of another model: what they had learned goes on, and nobody is alarmed by the change."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.batch import ARMED
from anomalyd.detector import Detector, Pages, Shape
from anomalyd.detector.migrate import described, migrated
from anomalyd.errors import StateError
from anomalyd.training import generate
from anomalyd.training.calibrate import openings
from tests.detector.population import MINUTE_MS, START_MS, Floats, batch_of, mixed, untrained

Rows = NDArray[np.uint8]
Layout = tuple[tuple[str, str, int, int], ...]
Columns = dict[str, NDArray[Any]]

SERIES, SAMPLES = 39, 300


def columns(rows: Rows, layout: Layout) -> Columns:
    return {
        name: np.ascontiguousarray(rows[:, offset : offset + np.dtype(code).itemsize * count]).view(code)
        for name, code, offset, count in layout
    }


def written(fields: Mapping[str, NDArray[np.generic]]) -> tuple[Rows, Layout]:
    """Rows with these fields one behind the other."""
    layout, parts, offset = [], [], 0
    for name, column in fields.items():
        layout.append((name, column.dtype.str[1:], offset, column.shape[1]))
        parts.append(np.ascontiguousarray(column).view(np.uint8))
        offset += parts[-1].shape[1]
    return np.concatenate(parts, axis=1), tuple(layout)


def learned(detector: Detector, samples: int = SAMPLES, series: int = SERIES) -> Pages:
    """State after a stretch of series of all kinds."""
    pages = detector.new_pages(series)
    times, values = mixed(series, SAMPLES, seed=3)
    for t in range(samples):
        detector.step(pages, batch_of(np.arange(series), times[t], values[t]))
    return pages


@pytest.fixture(scope="module")
def old(detector: Detector) -> Rows:
    return learned(detector).buffer.copy()


@pytest.fixture(scope="module")
def other(detector: Detector) -> Detector:
    """Another network that computes the same: its units in another order, its code in a basis of its own.

    So whatever it does differently after a swap is the fault of the swap.
    """
    artifact, rng = detector.artifact, np.random.default_rng(9)
    units, latent = artifact.shape.units, artifact.shape.latent
    tensors = dict(artifact.tensors)
    basis = np.linalg.qr(rng.standard_normal((latent, latent)))[0]
    for part in ("encoder", "decoder"):
        order = rng.permutation(units)
        gates = np.concatenate([order + units * gate for gate in range(4)])
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            tensors[f"{part}.{name}"] = tensors[f"{part}.{name}"][gates]
        tensors[f"{part}.weight_hh_l0"] = tensors[f"{part}.weight_hh_l0"][:, order]
        for head in ("code",) if part == "encoder" else ("newest", "next"):
            tensors[f"{head}.weight"] = tensors[f"{head}.weight"][:, order]
    tensors["code.weight"], tensors["code.bias"] = basis @ tensors["code.weight"], basis @ tensors["code.bias"]
    tensors["decoder.weight_ih_l0"] = tensors["decoder.weight_ih_l0"] @ basis.T
    return Detector(replace(artifact, tensors={name: t.astype(np.float32) for name, t in tensors.items()}), "cpu")


# --- another layout -----------------------------------------------------------------------------------------------------


def test_the_same_model_and_layout_is_a_plain_copy(detector: Detector, old: Rows) -> None:
    new = migrated(detector, old, described(detector.layout), same_model=True)

    assert new.tobytes() == old.tobytes()
    assert not np.shares_memory(new, old)


def test_fields_in_other_places_come_back_to_theirs(detector: Detector, old: Rows) -> None:
    fields = columns(old, described(detector.layout))
    rows, layout = written(dict(reversed(fields.items())))

    assert migrated(detector, rows, layout, same_model=True).tobytes() == old.tobytes()


def test_a_field_more_and_a_field_less(detector: Detector, old: Rows) -> None:
    fields = columns(old, described(detector.layout))
    unchanged = fields.pop("unchanged")
    assert unchanged.any()
    rows, layout = written({"flavour": np.ones((len(old), 5), np.float32)} | fields)

    new = columns(migrated(detector, rows, layout, same_model=True), described(detector.layout))

    assert not new.pop("unchanged").any()
    assert all(new[name].tobytes() == fields[name].tobytes() for name in fields)


def test_a_longer_memory_begins_with_what_the_shorter_one_knows(detector: Detector, old: Rows) -> None:
    """Rows of before it existed: from zero, every series would be far from what is usual for it."""
    layout = tuple(field for field in described(detector.layout) if not field[0].startswith("long_"))

    found = columns(migrated(detector, old, layout, same_model=True), described(detector.layout))

    assert (found["long_mean"] == found["mean"]).all()
    assert (found["long_variance"] == found["variance"]).all()


def test_other_widths_are_converted(detector: Detector, old: Rows) -> None:
    """Wider and narrower; what is too large for ours becomes the largest."""
    fields = columns(old, described(detector.layout))
    histogram = fields["histogram"].astype(np.int32)
    histogram[0, 0] = 1 << 20
    high = fields["high"].astype(np.float32)
    rows, layout = written(fields | {"histogram": histogram, "high": high, "age": fields["age"].astype(np.int64)})

    new = columns(migrated(detector, rows, layout, same_model=True), described(detector.layout))

    assert new["histogram"][0, 0] == np.iinfo(np.int16).max
    np.testing.assert_array_equal(new["histogram"].ravel()[1:], fields["histogram"].ravel()[1:])
    np.testing.assert_array_equal(new["high"], high)
    np.testing.assert_array_equal(new["age"], fields["age"])


@pytest.mark.parametrize("length", [8, 32])
@pytest.mark.parametrize("samples", [5, 50])
def test_a_ring_of_another_length_is_wound_anew(detector: Detector, length: int, samples: int) -> None:
    rows = learned(detector, samples).buffer
    fields = columns(rows, described(detector.layout))
    ring, age = fields["recent"].reshape(len(rows), 16, 2), fields["age"][:, 0].astype(int)
    theirs = np.zeros((len(rows), length, 2), np.int16)
    for i in range(len(rows)):
        for back in range(1, min(age[i], length, 16) + 1):
            theirs[i, (age[i] - back) % length] = ring[i, (age[i] - back) % 16]
    old, layout = written(fields | {"recent": theirs.reshape(len(rows), -1)})

    new = columns(migrated(detector, old, layout, same_model=True), described(detector.layout))

    got = new["recent"].reshape(ring.shape)
    for i in range(len(rows)):
        slots = [(age[i] - back) % 16 for back in range(1, min(age[i], length, 16) + 1)]
        np.testing.assert_array_equal(got[i, slots], ring[i, slots])
    np.testing.assert_array_equal(new["encoder_h"], fields["encoder_h"])


def test_a_memory_that_does_not_fit_is_learned_anew(detector: Detector, old: Rows) -> None:
    """A release with fewer prototypes: the memory begins with the kept inputs, the network's state stays."""
    fields = columns(old, described(detector.layout))
    rows, layout = written(fields | {"b_centre": fields["b_centre"][:, :48], "b_weight": fields["b_weight"][:, :16]})

    new = columns(migrated(detector, rows, layout, same_model=True), described(detector.layout))

    kept = np.minimum(fields["age"][:, 0].astype(int), 16)
    np.testing.assert_array_equal(new["b_weight"].astype(int).sum(axis=1), 8 * kept)
    assert (new["b_variance"] >= 0).all()
    assert all(new[name].tobytes() == fields[name].tobytes() for name in ("encoder_h", "decoder_c", "a_centre", "forecast", "recent"))


def test_rows_for_another_number_of_features_bring_their_episode_only(detector: Detector, old: Rows) -> None:
    three = Detector(detector.artifact.for_features(3), "cpu")
    old = old.copy()
    episode = detector.layout["episode"]
    old[:, episode.offset : episode.offset + episode.count] = 7

    new = columns(migrated(three, old, described(detector.layout), same_model=True), described(three.layout))

    assert (new.pop("episode") == 7).all()
    assert not any(column.any() for column in new.values())


@pytest.mark.parametrize(
    "field",
    [("age", "i4", -4, 1), ("age", "i4", 1 << 20, 1), ("age", "O", 0, 1), ("age", "i4", 0, 0), ("age", "i3", 0, 1), ("age", "V8", 0, 1)],
)
def test_a_layout_that_cannot_be_is_refused(detector: Detector, old: Rows, field: tuple[str, str, int, int]) -> None:
    with pytest.raises(StateError, match="age"):
        migrated(detector, old, [field], same_model=True)


# --- another model ------------------------------------------------------------------------------------------------------


def assert_close(got: Columns, wanted: Columns, names: Sequence[str]) -> None:
    for name in names:
        np.testing.assert_allclose(got[name].astype(float), wanted[name].astype(float), rtol=2e-3, atol=5e-3, err_msg=name)


@pytest.mark.parametrize("samples", [1, 7, 16])
@pytest.mark.parametrize("shape", [Shape(1, 32, 1, 4, joint=False), Shape(1, 5, 2, 3, joint=False)], ids=str)
def test_a_young_series_is_where_the_new_model_would_have_brought_it(detector: Detector, shape: Shape, samples: int) -> None:
    """Up to the rounding of the kept inputs; whatever the shape of the new network."""
    new = Detector(untrained(shape, seed=4), "cpu")
    was, wanted = learned(detector, samples), learned(new, samples)

    got = columns(migrated(new, was.buffer, described(detector.layout), same_model=False), described(new.layout))

    itself = columns(wanted.buffer, described(new.layout))
    assert_close(got, itself, ["encoder_h", "encoder_c", "decoder_h", "decoder_c", "forecast", "a_mean", "a_variance"])
    np.testing.assert_array_equal(got["a_weight"], itself["a_weight"])
    np.testing.assert_allclose(got["a_centre"], itself["a_centre"], atol=16)
    assert all(got[name].tobytes() == itself[name].tobytes() for name in ("mean", "variance", "age", "b_centre", "recent", "time"))


@pytest.mark.parametrize("shape", [Shape(3, 7, 1, 2, joint=True), Shape(2, 32, 1, 4, joint=False)], ids=str)
def test_several_features_are_where_the_new_model_would_have_brought_them(shape: Shape) -> None:
    old, new = (Detector(untrained(shape, seed), "cpu") for seed in (1, 2))
    values = np.random.default_rng(0).standard_normal((12, 5, shape.features))
    was, wanted = old.new_pages(5), new.new_pages(5)
    for t in range(12):
        batch = batch_of(np.arange(5), START_MS + MINUTE_MS * t, values[t])
        old.step(was, batch)
        new.step(wanted, batch)

    got = columns(migrated(new, was.buffer, described(old.layout), same_model=False), described(new.layout))

    assert_close(got, columns(wanted.buffer, described(new.layout)), ["encoder_h", "encoder_c", "decoder_h", "decoder_c", "forecast"])


def test_a_joint_model_reads_the_levels_that_networks_for_each_feature_have_read() -> None:
    """And networks for each feature begin from nothing behind a joint one, which has not kept the steps that they read."""
    shape = Shape(2, 32, 1, 4, joint=False)
    each, joint = Detector(untrained(shape), "cpu"), Detector(untrained(Shape(2, 7, 1, 2, joint=True)), "cpu")
    was = each.new_pages(5)
    for t in range(12):
        each.step(was, batch_of(np.arange(5), START_MS + MINUTE_MS * t, np.random.default_rng(t).standard_normal((5, 2))))
    fields = columns(was.buffer, described(each.layout))
    levels = np.ascontiguousarray(fields["recent"].reshape(5, 16, 2, 2)[..., 0]).reshape(5, -1)
    as_joint, layout = written(fields | {"recent": levels})

    got = migrated(joint, was.buffer, described(each.layout), same_model=False)
    back = columns(migrated(each, got, described(joint.layout), same_model=False), described(each.layout))

    assert got.tobytes() == migrated(joint, as_joint, layout, same_model=False).tobytes()
    assert columns(got, described(joint.layout))["encoder_h"].any()
    assert not back["encoder_h"].any()
    assert back["mean"].tobytes() == fields["mean"].tobytes()


def test_an_old_series_is_soon_where_the_new_model_would_have_brought_it(detector: Detector, other: Detector) -> None:
    """Sixteen inputs are not a life: forecasts come close, and closer with the samples."""
    times, values = mixed(SERIES, SAMPLES + 50, seed=3)
    was, wanted, got = detector.new_pages(SERIES), other.new_pages(SERIES), other.new_pages(SERIES)
    apart = []
    for t in range(SAMPLES + 50):
        batch = batch_of(np.arange(SERIES), times[t], values[t])
        other.step(wanted, batch)
        if t < SAMPLES:
            detector.step(was, batch)
            continue
        if t == SAMPLES:
            got.buffer[:] = migrated(other, was.buffer, described(detector.layout), same_model=False)
        other.step(got, batch)
        apart.append(np.abs(columns(got.buffer, described(other.layout))["forecast"] - wanted.field("forecast")).mean())
    spread = np.abs(columns(wanted.buffer, described(other.layout))["forecast"]).mean()

    assert apart[0] < 0.2 * spread
    assert apart[-1] < 0.02 * spread


def test_what_does_not_belong_to_the_model_is_carried_over(detector: Detector, other: Detector, old: Rows) -> None:
    was = columns(old, described(detector.layout))
    now = columns(migrated(other, old, described(detector.layout), same_model=False), described(other.layout))

    changed = {name for name in was if was[name].tobytes() != now[name].tobytes()}
    assert changed == {
        *("encoder_h", "encoder_c", "decoder_h", "decoder_c", "forecast"),
        *("a_mean", "a_variance", "a_centre", "a_weight"),
    }


@pytest.fixture(scope="module")
def many(detector: Detector) -> tuple[Rows, Rows]:
    """Rows for more than two tiles, and what becomes of them together."""
    rows = learned(detector, 40, series=600).buffer
    return rows, migrated(detector, rows, described(detector.layout), same_model=False)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 599), min_size=1, max_size=300))
def test_a_row_becomes_the_same_whatever_is_beside_it(detector: Detector, many: tuple[Rows, Rows], which: list[int]) -> None:
    rows, whole = many

    part = migrated(detector, rows[which], described(detector.layout), same_model=False)

    assert part.tobytes() == whole[which].tobytes()


def test_no_rows_are_no_trouble(detector: Detector, other: Detector, old: Rows) -> None:
    assert migrated(other, old[:0], described(detector.layout), same_model=False).shape == (0, other.layout.row_bytes)


def scores(detector: Detector, pages: Pages, times: NDArray[np.int64], values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    rows, score, armed = np.arange(values.shape[1]), np.empty(values.shape), np.empty(values.shape, bool)
    for t in range(len(values)):
        verdicts = detector.step(pages, batch_of(rows, times[t], values[t]))
        score[t], armed[t] = verdicts.score, verdicts.flags & ARMED > 0
    return score, armed


def test_a_swap_is_no_burst_of_alerts(detector: Detector, other: Detector) -> None:
    """Episodes that open within 200 samples after it, among 300 generated series, against those without a swap."""
    series, before, after = 300, 800, 200
    values, step_s = generate.series(series, before + after, seed=77, calm=True)
    times = START_MS + (np.arange(before + after)[:, None] * step_s * 1000).astype(np.int64)
    x = np.ascontiguousarray(values.T)
    pages = detector.new_pages(series)
    past = scores(detector, pages, times[:before], x[:before])
    swapped = other.new_pages(series)
    swapped.buffer[:] = migrated(other, pages.buffer, described(detector.layout), same_model=False)

    opened = {}
    for name, one, its in (("kept", detector, pages), ("swapped", other, swapped)):
        now = scores(one, its, times[before:], x[before:])
        score, armed = (np.vstack(pair) for pair in zip(past, now, strict=True))
        opened[name] = openings(score, armed, 1.0)[before:]

    assert opened["swapped"].sum() <= 1.3 * opened["kept"].sum() + 5
    assert (opened["swapped"] & opened["kept"]).sum() >= 0.7 * opened["kept"].sum()  # and it is not blind


def test_a_swap_there_and_back_leaves_a_working_row(detector: Detector, other: Detector, old: Rows) -> None:
    there = migrated(other, old, described(detector.layout), same_model=False)
    back = migrated(detector, there, described(other.layout), same_model=False)

    times, values = mixed(SERIES, SAMPLES + 20, seed=3)
    pages = detector.new_pages(SERIES)
    pages.buffer[:] = back
    score, _ = scores(detector, pages, times[SAMPLES:], values[SAMPLES:])
    assert np.isfinite(score).all()


def test_the_artifact_of_these_tests_computes_the_same(detector: Detector, other: Detector) -> None:
    times, values = mixed(13, 200, seed=1)
    a, b = (scores(one, one.new_pages(13), times, values)[0] for one in (detector, other))
    assert np.median(np.abs(a - b)[150:]) < 0.05
