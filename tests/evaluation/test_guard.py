"""The measures of a small evaluation do not fall. What they are is in guard/floors.json, with the command that measures them again."""

from pathlib import Path

import pytest

from tests.evaluation.guard.measured import FLOORS, held, limits, measure


@pytest.mark.slow
def test_measures_do_not_fall(tmp_path: Path) -> None:
    kept, table = held(measure(tmp_path), limits())

    assert kept, f"worse than {FLOORS.name} allows:\n{table}"


def test_a_measure_that_fell_is_shown_beside_its_limit() -> None:
    recorded = {"single": {"auc_pr": {"measured": 0.5, "least": 0.48}, "false_episodes_to_budget": {"measured": 1.0, "most": 1.3}}}

    assert held({"single": {"auc_pr": 0.48, "false_episodes_to_budget": 1.3}}, recorded)[0]
    kept, table = held({"single": {"auc_pr": 0.47, "false_episodes_to_budget": 1.4}}, recorded)
    assert not kept
    assert table.splitlines()[0].endswith("0.4700, at least 0.4800 (recorded 0.5000)  BROKEN")
    assert table.splitlines()[1].endswith("1.4000, at most 1.3000 (recorded 1.0000)  BROKEN")
