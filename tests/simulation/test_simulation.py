"""Crashes, zombies, rebalances and an unreliable Kafka change nothing in what comes out. `make simulate` runs more of it."""

import os

import pytest

from tests.simulation.campaign import Campaign, base_seed
from tests.simulation.faults import CLASSES
from tests.simulation.world import LEAST_FAULTS

SEEDS = int(os.environ.get("ANOMALYD_SIMULATION_SEEDS", "500"))
HITS_OF_A_CLASS = 100


@pytest.mark.slow
@pytest.mark.timeout(3_600)  # all processors, and whatever else CI has them do
def test_what_comes_out_is_what_an_uninterrupted_run_would_have_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # of the processes that run them, so that a seed that fails does so again
    campaign = Campaign(base_seed(), SEEDS)

    campaign.run()

    assert not campaign.failures, "\n\n".join(told.failure for told in campaign.failures)
    assert len(campaign.done) == SEEDS
    assert min(told.hits.total() for told in campaign.done) >= LEAST_FAULTS
    if SEEDS >= 500:
        rare = {kind: campaign.hits[kind] for kind in CLASSES if campaign.hits[kind] < HITS_OF_A_CLASS}
        assert not rare, f"faults that happened too seldom to say anything: {rare}"


def test_a_seed_is_the_same_run_again() -> None:
    first, second = Campaign.one(5), Campaign.one(5)

    assert (first.trace, first.steps, first.figures) == (second.trace, second.steps, second.figures)
    assert first.hits.total() >= LEAST_FAULTS
