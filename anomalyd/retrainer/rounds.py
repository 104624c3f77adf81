"""One round: a challenger out of the champion and what was kept, and the verdict on it. Of the clock it takes a stamp, and nothing else."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from anomalyd import __version__
from anomalyd.detector import Artifact, Detector, Options, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.errors import ArtifactError
from anomalyd.retrainer.gate import MEASURES, Verdict, compare
from anomalyd.retrainer.material import LEAST_SERIES, Material
from anomalyd.training import joint
from anomalyd.training.course import JOINT, SINGLE, SINGLE_TUNED_RATE, Regime, learn, prepared
from anomalyd.training.data import Data, History
from anomalyd.training.design import Design
from anomalyd.training.outcome import finished


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round."""

    challenger: Artifact | None
    """None where there was nothing to train on, or no artifact could be made of it."""
    verdict: Verdict


def hold(
    champion: Artifact,
    material: Material,
    options: Options,
    seed: int,
    *,
    names: tuple[str, ...] | None = None,
    steps: int | None = None,
    device: str = "cpu",
) -> Round:
    """Trains a challenger, beginning with the champion's weights where their shape allows it, and holds it against the champion.

    A network for single values is trained on generated series besides, a quarter of what it sees, so that it stays able to judge
    what it has never seen. Of entities a joint network is trained.

    Args:
        champion: what scores the stream now.
        material: of the stream.
        options: budget and kind of the stream, for both detectors.
        seed: equal seeds, equal weights, on the same machine with the same number of threads.
        names: of the features of an entity.
        steps: of the training; None: as many as `anomalyd train` takes.
        device: of torch, where to train. Both are judged on the CPU.
    """
    figures = {"pieces": len(material.pieces), "judged": len(material.judged), "left_out": material.left_out, "broken": material.broken}
    if not material.enough:
        reason = f"too little to learn from: {len(material.pieces)} pieces, {len(material.judged)} of {LEAST_SERIES} series to judge by"
        return Round(None, Verdict(passed=False, reason=reason, figures=figures))
    features = material.pieces[0].value.shape[1]
    design = _design(champion, features, steps)
    histories = tuple(History(f"piece {number}", piece.time_ms, piece.value) for number, piece in enumerate(material.pieces))
    data = Data(histories, names, timed=True)
    on = prepared(data, design.shape, design.regime, seed)
    try:
        learned = learn(on, design.shape, design.regime, seed, begin=design.begin, device=device)
        artifact = finished(data, design, on, learned, seed)
        now = datetime.now(UTC)
        version = f"{__version__}+{now:%Y%m%dT%H%M%SZ}"
        challenger = replace(
            artifact,
            name="retrained",
            version=version,
            parent=champion.hash,
            created_at=now.isoformat(),
            data=artifact.training["data"],
            libraries=artifact.training["versions"],
            hash="",
        )
        verdict = compare(Detector(champion, "cpu", options), Detector(challenger, "cpu", options), material.judged, seed)
        challenger = artifacts.sealed(replace(challenger, metrics={name: verdict.figures[name]["challenger"] for name in MEASURES}))
    except ArtifactError as error:  # such as a network that alarms all the time: no threshold can be laid
        return Round(None, Verdict(passed=False, reason=f"no model could be made of it: {error}", figures=figures))
    return Round(challenger, replace(verdict, figures=figures | verdict.figures))


def _design(champion: Artifact, features: int, steps: int | None) -> Design:
    regime: Regime = SINGLE if features == 1 else JOINT
    begin = champion if champion.shape.joint == (features > 1) else None
    shape = begin.shape if begin is not None else Shape(features, joint.UNITS, 1, joint.LATENT, joint=True)
    plan = replace(regime.plan, learning_rate=SINGLE_TUNED_RATE) if features == 1 else regime.plan
    return Design(shape, replace(regime, plan=plan if steps is None else replace(plan, steps=steps)), begin)
