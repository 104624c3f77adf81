"""Real parts that tests run beside Kafka: on PATH, or where the variable ANOMALYD_TEST_<NAME> says."""

import os
import shutil

import pytest


def part(name: str) -> str:
    """The path of a program. Where it is missing the test is skipped, loudly; with CI=true it fails."""
    variable = f"ANOMALYD_TEST_{name.upper().replace('-', '_')}"
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        why = f"{name} is not there: install it, or say where it is in {variable}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found
