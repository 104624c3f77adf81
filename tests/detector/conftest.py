"""Torch on one thread: the tensors here are so small that handing them to a second one costs more than it brings."""

from collections.abc import Iterator

import pytest
import torch

from anomalyd.detector import Detector


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The shipped detector on the CPU; tests bring their own pages."""
    return Detector.load(device="cpu")
