"""The outcome of an evaluation as one JSON object, and as text for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anomalyd.evaluation.measures import Paired
from anomalyd.evaluation.results import Result, seeds_of
from anomalyd.evaluation.scorecard import SHOWN, text_of

Differences = Mapping[str, Mapping[str, Paired]]
"""Of the first detector to others: by the other's name and the measure."""


def as_json(name: str, results: Sequence[Result], against: Differences) -> dict[str, Any]:
    """The object that `--json` prints.

    Args:
        name: of the set.
        results: one a detector, the first the one that was asked for.
        against: the first against the others.
    """
    first = results[0]
    found: dict[str, Any] = {
        "set": name,
        "detector": first.detector,
        "streams": len(first.runs[0].cards),
        "samples": first.samples,
        "samples_per_s": first.samples_per_s,
        **({"seeds": seeds_of(results)} if len(first.runs) > 1 else {}),
        **_figures(first),
    }
    if against:
        found["compared"] = {
            other.detector: {
                **_figures(other),
                "difference": {measure: _difference(pair) for measure, pair in against[other.detector].items()},
            }
            for other in results[1:]
        }
    return found


def as_text(results: Sequence[Result], against: Differences) -> Iterator[str]:
    """The same for people, line by line."""
    first = results[0]
    streams = first.streams
    width = max(6, *(len(one["stream"]) for one in streams))
    yield f"{'stream':<{width}}" + "".join(f"  {name:>14}" for name in SHOWN)
    for one in streams:
        yield f"{one['stream']:<{width}}" + "".join(f"  {text_of(one[name]):>14}" for name in SHOWN)
    yield ""
    yield from _measures(results)
    if len(first.runs) > 1:
        for result in results:
            yield ""
            yield from _seeds(result)
    for other, pairs in against.items():
        yield ""
        yield f"{first.detector} against {other}, stream by stream"
        for name, pair in pairs.items():
            interval = f"[{pair.difference.low:+.3f}, {pair.difference.high:+.3f}]"
            yield f"  {name:<10} {pair.difference.value:+.3f} {interval}, better on {pair.won:.0%} of {pair.streams}"
    yield f"{first.samples_per_s:,} samples/s"


def _measures(results: Sequence[Result]) -> Iterator[str]:
    """A row a measure, a column a detector."""
    names = list(results[0].measures)
    several = len(results[0].runs) > 1
    wide = max(len(name) for name in names)
    if several:
        yield f"means over the seeds {', '.join(map(str, seeds_of(results)))} ± their standard deviation"
    yield f"{'measure':<{wide}}" + "".join(f"  {result.detector:>18}" for result in results)
    columns = [(result.measures, result.spread) for result in results]
    for name in names:
        cells = (
            text_of(measures.get(name)) + (f" ± {text_of(spread[name].sd)}" if several and name in spread else "")
            for measures, spread in columns
        )
        yield f"{name:<{wide}}" + "".join(f"  {cell:>18}" for cell in cells)


def _seeds(result: Result) -> Iterator[str]:
    """A row a measure, a column a seed."""
    spread = result.spread
    wide = max(len(result.detector), *(len(name) for name in spread))
    yield f"{result.detector:<{wide}}" + "".join(f"  {f'seed {run.seed}':>10}" for run in result.runs)
    for name, of in spread.items():
        yield f"{name:<{wide}}" + "".join(f"  {text_of(value):>10}" for value in of.values)


def _figures(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {"measures": _rounded(result.measures)}
    if len(result.runs) > 1:
        found["spread"] = {
            name: {"sd": _round(of.sd), "values": [_round(value) for value in of.values]} for name, of in result.spread.items()
        }
    found["per_stream"] = [_rounded(one) for one in result.streams]
    return found


def _difference(pair: Paired) -> dict[str, float | int]:
    return {
        "mean": round(pair.difference.value, 4),
        "low": round(pair.difference.low, 4),
        "high": round(pair.difference.high, 4),
        "won": round(pair.won, 4),
        "streams": pair.streams,
    }


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _round(value) for name, value in figures.items()}


def _round(value: Any) -> Any:  # noqa: ANN401  texts, counts and None stay what they are
    return round(value, 4) if isinstance(value, float) else value
