"""What every detector promises, written so that any detector can be passed in: ours, a baseline, one in another language.

A detector under contract is a `Subject`: how to make it, and how to save and restore all that it has learned. Each check is a
function of a subject; `CHECKS` lists them. A test module runs them with

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check): check(subject)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from tests.detector.population import assert_same_bits, batch_of, joined, mixed, taken

SERIES, SAMPLES = 8, 220


class Scorer(Protocol):
    """A detector with its state."""

    def step(self, batch: SampleBatch) -> Verdicts:
        """Scores, then learns."""

    def saved(self) -> bytes:
        """All that was learned."""


@dataclass(frozen=True)
class Subject:
    """A detector under contract."""

    make: Callable[[], Scorer]
    """A new one with room for SERIES rows; equal seeds, if it has any."""
    restored: Callable[[bytes], Scorer]
    """One that goes on where the saved one was."""


def stream() -> SampleBatch:
    """All samples of several series of all kinds, side by side, in one batch."""
    times, values = mixed(SERIES, SAMPLES, seed=21)
    return batch_of(np.tile(np.arange(SERIES), SAMPLES), times.ravel(), values.ravel())


def input_is_not_modified(subject: Subject) -> None:
    batch, untouched = stream(), stream()
    subject.make().step(batch)

    for name in ("row", "time_ms", "value", "record"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(untouched, name))


def equal_seeds_give_equal_scores(subject: Subject) -> None:
    one, other = subject.make(), subject.make()

    assert_same_bits(one.step(stream()), other.step(stream()))
    assert one.saved() == other.saved()


def learned_state_survives_saving(subject: Subject) -> None:
    batch, half = stream(), SERIES * SAMPLES // 2 + 3
    uninterrupted = subject.make()
    uninterrupted.step(taken(batch, slice(0, half)))
    restored = subject.restored(uninterrupted.saved())

    rest = taken(batch, slice(half, None))
    assert_same_bits(restored.step(rest), uninterrupted.step(rest))
    assert restored.saved() == uninterrupted.saved()


def saving_changes_nothing(subject: Subject) -> None:
    saved, unsaved = subject.make(), subject.make()
    halves = np.array_split(np.arange(SERIES * SAMPLES), 2)
    first = saved.step(taken(stream(), halves[0]))
    saved.saved()

    assert_same_bits(joined([first, saved.step(taken(stream(), halves[1]))]), joined(unsaved.step(taken(stream(), h)) for h in halves))


def composition_of_the_batch_does_not_matter(subject: Subject) -> None:
    batch = stream()
    together = subject.make().step(batch)
    one_series_after_the_other = np.argsort(batch.row, kind="stable")
    cut_anywhere = np.split(np.arange(len(batch)), [1, 4, 5, 300, 301, 1000])
    for parts in ([one_series_after_the_other], cut_anywhere, np.array_split(one_series_after_the_other, 3)):
        scorer = subject.make()
        got = joined(scorer.step(taken(batch, part)) for part in parts)
        original: NDArray[np.intp] = np.argsort(np.concatenate(parts))
        assert_same_bits(Verdicts(*(getattr(got, name)[original] for name in Verdicts.__slots__)), together)


def verdicts_are_finite_and_of_the_promised_shape(subject: Subject) -> None:
    batch = stream()
    verdicts = subject.make().step(batch)
    n, features = batch.value.shape

    for name in ("score", "evidence", "flags"):
        assert getattr(verdicts, name).shape == (n,)
    for name in ("observed", "expected", "low", "high", "share"):
        assert getattr(verdicts, name).shape == (n, features)
    assert all(np.isfinite(getattr(verdicts, name)).all() for name in Verdicts.__slots__)
    assert (verdicts.score >= 0).all()
    np.testing.assert_allclose(verdicts.share.sum(axis=1), 1.0, rtol=1e-5)


def score_comes_before_learning(subject: Subject) -> None:
    """A sample's verdict does not depend on samples after it, not even in the same batch."""
    batch = stream()
    whole = subject.make().step(batch)
    prefix = subject.make().step(taken(batch, slice(0, 1001)))

    assert_same_bits(Verdicts(*(getattr(whole, name)[:1001] for name in Verdicts.__slots__)), prefix)


CHECKS: Final = (
    input_is_not_modified,
    equal_seeds_give_equal_scores,
    learned_state_survives_saving,
    saving_changes_nothing,
    composition_of_the_batch_does_not_matter,
    verdicts_are_finite_and_of_the_promised_shape,
    score_comes_before_learning,
)
