"""The table of an ablation: what each variant measures, and how far that is from the whole detector, stream by stream."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from anomalyd.evaluation.measures import Paired

Measures = Mapping[str, float | None]

_RANKINGS: Final = {"vus_pr": "VUS-PR", "auc_pr": "AUC-PR", "best_f1": "best F1"}
_OTHERS: Final = {"nab_standard": "NAB", "event_recall": "told", "false_episodes_to_budget": "false ÷ budget"}


def table(whole: tuple[str, Measures], variants: Sequence[tuple[str, Measures, Mapping[str, Paired]]]) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        whole: name and measures of the detector.
        variants: name, measures, and the detector against it, for each.
    """
    names = {name: title for name, title in (_RANKINGS | _OTHERS).items() if name in whole[1]}
    rows = [["", *names.values()], [whole[0], *(_number(whole[1][name], name) for name in names)]]
    for variant, measures, against in variants:
        rows.append([variant, *(_number(measures[name], name) + _difference(against.get(name)) for name in names)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        yield "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    match name:
        case "nab_standard":
            return f"{value:.1f}"
        case "event_recall":
            return f"{value:.0%}"
        case "false_episodes_to_budget":
            return f"{value:.2f}"
        case _:
            return _short(value)


def _difference(pair: Paired | None) -> str:
    """What the variant has more, where `pair` says what the detector has more."""
    if pair is None:
        return ""
    difference = pair.difference
    return f" ({_short(-difference.value, '+')} [{_short(-difference.high, '+')}, {_short(-difference.low, '+')}])"


def _short(value: float, sign: str = "") -> str:
    """Three decimals, without the zero in front."""
    text = f"{value + 0.0:{sign}.3f}".replace("0.", ".", 1)
    return "0" if text.strip("+-") == ".000" and sign else text
