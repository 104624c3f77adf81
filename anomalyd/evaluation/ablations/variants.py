"""Variants of the detector for a single feature: one thing left out or exchanged, everything else the same."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Artifact, Detector, Options
from anomalyd.detector.step_cpu import GUARDS, JUMP, LENGTH, SUSTAIN, VALUE, A, B, CpuBackend, Parts
from anomalyd.evaluation.ablations.kernels import WEIGHTS, build_gru, by_sample, normal_evidence, re_encoded, weighted

Cell = Literal["lstm", "gru", "rnn", "untrained"]


@dataclass(frozen=True)
class Variant:
    """What differs from the detector."""

    name: str
    about: str
    """One line for people."""
    left_out: tuple[int, ...] = ()
    """Parts of the score (`step_cpu.A` to `LENGTH`) that are learned as ever and not counted."""
    cell: Cell = "lstm"
    """Of the network: the shipped one, another that is trained alike, or the shipped one as training begins with it."""
    parts: Parts = Parts(counted=weighted)  # noqa: RUF009 - a constant

    @property
    def seeded(self) -> bool:
        """Whether another seed would make another artifact: the network is trained, or begins to be."""
        return self.cell != "lstm"


_GRU: Final = Parts(build_cell=build_gru, counted=weighted)

VARIANTS: Final[dict[str, Variant]] = {
    variant.name: variant
    for variant in (
        Variant("no-lstm", "without channel A, so without the network: companions and guards", (A,)),
        Variant("no-value", "without channel value", (VALUE,)),
        Variant("no-jump", "without channel jump", (JUMP,)),
        Variant("no-b", "without channel B", (B,)),
        Variant("a-alone", "channel A without companions and guards", (VALUE, JUMP, B, GUARDS)),
        Variant("a-alone-momentary", "the same without step 6", (VALUE, JUMP, B, GUARDS, SUSTAIN)),
        Variant("no-guards", "without the guards", (GUARDS,)),
        Variant("no-sustain", "without step 6", (SUSTAIN,)),
        Variant("no-length", "without the term for the length of the history", (LENGTH,)),
        Variant("no-clusters", "each sample of an incident is learned", parts=Parts(evidence=by_sample, counted=weighted)),
        Variant("z-calibrator", "z of the log error in place of the histogram", parts=Parts(evidence=normal_evidence, counted=weighted)),
        Variant("re-encoded", "network from zero state over the last 16 inputs", parts=Parts(course=re_encoded, counted=weighted)),
        Variant("gru", "GRU cells in place of LSTM cells", cell="gru", parts=_GRU),
        # Its weights make the GRU's gates stand still: see networks.
        Variant("rnn", "plain recurrent cells in place of LSTM cells", cell="rnn", parts=_GRU),
        Variant("untrained", "LSTM cells with the weights that training begins with", cell="untrained"),
    )
}
"""By name, as `evaluate --detector` takes it."""


class VariantDetector(Detector):
    """A detector with the step of a variant; its artifact has the variant's weights and its own calibration. For a single feature, on CPU.

    Args:
        variant: which.
        artifact: see `models.prepared`.
        options: the alert budget.
    """

    def __init__(self, variant: Variant, artifact: Artifact, options: Options | None = None) -> None:
        self._weights = np.ones(WEIGHTS)
        self._weights[list(variant.left_out)] = 0.0
        super().__init__(artifact, "cpu", options)
        self._backend = CpuBackend(self.layout, artifact, self.fixed_kind, variant.parts)

    def threshold_at(self, budget_per_day: float, correction: float = 0.0) -> NDArray[np.float64]:
        """See Detector; with the weights of the parts behind it, (FIRST_WEIGHT + WEIGHTS,)."""
        return np.concatenate([super().threshold_at(budget_per_day, correction), self._weights])
