"""A simulation that finds nothing proves nothing: each bug that is put into the code must be found within 200 seeds."""

import pytest

from tests.simulation.campaign import Campaign, base_seed
from tests.simulation.mutations import MUTATIONS

MOST_SEEDS = 200

# A run that fails keeps its world until the failure is looked at; what its clients complain about when they go is no finding.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_is_found(name: str) -> None:
    first = base_seed()

    assert any(Campaign.one(seed, exactly_once=True, mutation=MUTATIONS[name]).failure for seed in range(first, first + MOST_SEEDS))
