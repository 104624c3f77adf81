"""The detector, in both backends, under the contract that every detector has to keep."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector import Detector
from tests.detector.contract import CHECKS, SERIES, Subject
from tests.detector.population import Step, in_torch


class Rows:
    """The detector with pages of its own."""

    def __init__(self, step: Step, saved: bytes = b"") -> None:
        self._step, self._pages = step, shipped().new_pages(SERIES)
        if saved:
            self._pages.buffer[:] = np.frombuffer(saved, np.uint8).reshape(self._pages.buffer.shape)

    def step(self, batch: SampleBatch) -> Verdicts:
        return self._step(self._pages, batch)

    def saved(self) -> bytes:
        return self._pages.buffer.tobytes()


@cache
def shipped() -> Detector:
    return Detector.load(device="cpu")


def compiled() -> Step:
    return Detector.load(device="cpu").step


def torch() -> Step:
    return in_torch(shipped())


@pytest.mark.parametrize(
    "backend",
    [
        compiled,
        pytest.param(torch, marks=pytest.mark.slow),  # pays for a whole tile even when a batch has one sample
    ],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Subject], None], backend: Callable[[], Step]) -> None:
    check(Subject(make=lambda: Rows(backend()), restored=lambda saved: Rows(backend(), saved)))
