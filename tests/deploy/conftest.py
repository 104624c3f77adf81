"""The chart under helm, or a loud skip."""

import os

import pytest

from tests.support.helm import NEWEST, OLDEST, Chart, FetchError, helm


def _chart(version: str) -> Chart:
    try:
        return Chart(helm(version))
    except FetchError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"no helm {version}: {error}", pytrace=False)
        pytest.skip(f"needs helm {version}: {error}")


@pytest.fixture(scope="session")
def chart() -> Chart:
    """Under the newest helm that is tested."""
    return _chart(NEWEST)


@pytest.fixture(scope="session")
def chart_of_old() -> Chart:
    """Under the oldest helm that is promised."""
    return _chart(OLDEST)
