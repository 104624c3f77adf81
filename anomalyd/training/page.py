"""The report of a training: how losses fell, and what the network makes of series, in pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from anomalyd.alerts.text import number
from anomalyd.detector import Artifact
from anomalyd.evaluation.report import Figure, Report, Section, Table, render
from anomalyd.evaluation.sketch import Line, Sketch, curves
from anomalyd.training.course import Learned, Prepared
from anomalyd.training.trainer import guesses

EXAMPLES: Final = 6
_DRAWN: Final = 160
_POINTS: Final = 150
"""A curve of losses has at most so many points, each the mean of some steps."""


def page(artifact: Artifact, on: Prepared, learned: Learned, took_s: float) -> str:
    """The page, as HTML.

    Args:
        artifact: what came out.
        on: what it was trained on.
        learned: how it went.
        took_s: seconds, all together.
    """
    about = artifact.training
    data = about["data"]
    figures = [
        Figure("series", f"{data['series']:,}"),
        Figure("samples", f"{data['samples']:,}"),
        Figure("steps", f"{len(learned.losses):,}"),
        Figure("parameters", f"{sum(tensor.size for tensor in artifact.tensors.values()):,}"),
        Figure("loss", f"{learned.loss:.3f}"),
        Figure("took", f"{took_s:,.0f} s"),
    ]
    sections = [
        Section("Losses", sketches=[loss_curve(learned)], text=_chosen(learned)),
        Section("Errors", table=Table(("data", "network", "forecast", "reconstruction"), _errors(about)), text=_ERRORS),
        Section("Reconstructions", sketches=_examples(on, learned, artifact.shape.features), text=_EXAMPLES),
        Section("How it was trained", table=Table(("what", "value"), [(name, _text(value)) for name, value in _flat(about)])),
    ]
    return render(Report(f"Training of {artifact.name}", figures, sections, f"{artifact.version}, {artifact.hash}"))


_ERRORS: Final = (
    "Mean absolute errors in units of the scaled value (asinh of standard deviations). "
    "The threshold is laid on other series, which are calm."
)
_EXAMPLES: Final = (
    "Scaled values with what the network makes of them: the reconstruction of each value when it was the newest, and the forecast that was "
    "made one step before."
)


def loss_curve(learned: Learned) -> Sketch:
    """Losses over steps, of training and of what was held back."""
    losses = np.array(learned.losses)
    edges = np.linspace(0, len(losses), min(_POINTS, len(losses)) + 1).astype(int)
    means = [float(losses[a:b].mean()) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    lines: list[tuple[Line, Sequence[float]]] = [(Line("training", "value", means), edges[1:].tolist())]
    mark = None
    if learned.later:
        lines.append((Line("held back", "expected", [loss for _, loss in learned.later]), [step for step, _ in learned.later]))
        mark = ("best on what was held back", float(learned.best_step))
    return curves("Loss by training step", lines, mark)


def _chosen(learned: Learned) -> str:
    if not learned.later:
        return "Nothing was held back; the last weights are taken."
    return f"The weights after {learned.best_step:,} steps are taken, which were best on what was held back."


def _errors(about: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = about.get("errors") or {}
    return [("held back", name, *(f"{row[key]:.4f}" for key in ("forecast", "reconstruction"))) for name, row in rows.items()]


def _examples(on: Prepared, learned: Learned, features: int) -> list[Sketch]:
    pieces = on.later or on.pieces
    chosen = np.unique(np.linspace(0, len(pieces.inputs) - 1, EXAMPLES).round().astype(int))
    newest, following = guesses(learned.network, pieces.inputs[chosen])
    sketches = []
    for i, piece in enumerate(chosen.tolist()):
        judged = np.flatnonzero(pieces.counts[piece])
        last = int(judged[-1]) + 1
        first = max(1, int(judged[0]) if on.later else last - _DRAWN, last - _DRAWN)
        # Of several features the one that moves most.
        k = int(pieces.targets[piece, first:last].std(axis=0).argmax())
        steps = list(range(last - first))
        value, rebuilt, foreseen = (
            column[first - shift : last - shift, k].tolist()
            for column, shift in ((pieces.targets[piece], 0), (newest[i], 0), (following[i], 1))
        )
        what = f"feature {k}" if features > 1 else "value"
        where = f"held back of series {piece + 1}" if on.later else f"piece {piece + 1}"
        lines = [
            (Line(what, "value", value), steps),
            (Line("reconstruction", "expected", rebuilt), steps),
            (Line("forecast", "threshold", foreseen), steps),
        ]
        sketches.append(curves(f"{where}, {len(steps)} steps", lines))
    return sketches


def _flat(about: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in about.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def _text(value: object) -> str:
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)
