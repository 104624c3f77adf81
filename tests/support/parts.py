"""Real parts that tests run beside Kafka, such as Prometheus: where they are, and what becomes of a test where they are not.

    promtool = part("promtool")

A part is the program that ANOMALYD_TEST_<NAME> names, else the first of its names on PATH. Where there is none the test that asks is
skipped, and the last line of the run says so loudly; with CI=true it fails.
"""

import os
import shutil
from typing import Final

import pytest

_ALSO: Final[dict[str, tuple[str, ...]]] = {
    "alertmanager": ("prometheus-alertmanager",),  # Debian's
    "chromium": ("chromium-browser", "google-chrome"),
}
"""Further names on PATH."""

LACKING: Final[dict[str, int]] = {}
"""By part that is not there, how many tests asked for it in this run."""


def part(name: str) -> str:
    """The path of a part's program; skips the test where there is none, or fails it where CI=true."""
    variable = f"ANOMALYD_TEST_{name.upper().replace('-', '_')}"
    if given := os.environ.get(variable):
        if (path := shutil.which(given)) is None:
            pytest.fail(f"{variable}={given} is no program", pytrace=False)
        return path
    if (path := next(filter(None, map(shutil.which, (name, *_ALSO.get(name, ())))), None)) is not None:
        return path
    lacking = f"{name} is not there: install it, or say where it is in {variable}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(lacking, pytrace=False)
    LACKING[name] = LACKING.get(name, 0) + 1
    pytest.skip(lacking)
