import pytest

from anomalyd.detector import Detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The shipped detector on the CPU."""
    return Detector.load(device="cpu")
