"""The chart under helm, or a loud skip."""

from pathlib import Path

import pytest

from tests.support.helm import NEWEST, OLDEST, Chart, FetchError, helm
from tests.support.parts import part


def _chart(version: str, name: str) -> Chart:
    try:
        return Chart(helm(version))
    except FetchError:
        return Chart(Path(part(name)))


@pytest.fixture(scope="session")
def chart() -> Chart:
    """Under the newest helm that is tested."""
    return _chart(NEWEST, "helm")


@pytest.fixture(scope="session")
def chart_of_old() -> Chart:
    """Under the oldest helm that is promised."""
    return _chart(OLDEST, "helm3")
