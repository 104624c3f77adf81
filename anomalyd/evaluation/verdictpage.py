"""The report of an evaluation: figures, and pictures of what was missed, of false alarms and of hits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from anomalyd.evaluation.chart import Chart, Episode
from anomalyd.evaluation.gallery import chart_of, episodes
from anomalyd.evaluation.replay import Replay
from anomalyd.evaluation.report import Figure, Report, Section, Table, render
from anomalyd.evaluation.scorecard import SHOWN, Card, text_of
from anomalyd.evaluation.sets import Labelled

PICTURES: Final = 24
"""Of each kind."""
_AROUND: Final = 120
"""Rows shown to each side, at least; as many as the event has, if those are more."""


class Page:
    """Collects pictures, streams taking turns so that one with many events does not fill the page.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._missed: list[list[Chart]] = []
        self._false: list[list[Chart]] = []
        self._hits: list[list[Chart]] = []

    def take(self, labelled: Labelled, replay: Replay, card: Card) -> None:
        """Takes in a stream."""
        told, picture = card.told, partial(_picture, labelled, replay, tuple(episodes(replay.alerts)))
        missed, hits = [], []
        for (first, last), row, delay_s in zip(told.events.tolist(), told.told_row.tolist(), told.delay_s.tolist(), strict=True):
            if row < 0:
                missed.append(picture(first, last, "missed"))
            else:
                hits.append(picture(first, last, f"told after {delay_s:,.0f} s"))
        false = [picture(first, last, "about nothing that is labelled") for first, last in card.fired[told.false].tolist()]
        for kind, found in ((self._missed, missed), (self._false, false), (self._hits, hits)):
            kind.append(found[:PICTURES])

    def render(self, detectors: Sequence[tuple[str, Mapping[str, float | None]]], cards: Sequence[Card]) -> str:
        """The page: measures by detector, the first one's pictures and streams."""
        names = list(detectors[0][1])
        rows = [[name, *("-" if of.get(name) is None else f"{of[name]:.3f}" for _, of in detectors)] for name in names]
        streams = [[card.stream, *(text_of(card.figures[name]) for name in SHOWN)] for card in cards]
        events, told = sum(len(card.told.events) for card in cards), sum(card.told.hits for card in cards)
        false = sum(card.told.false_episodes for card in cards)
        return render(
            Report(
                self._title,
                figures=[
                    Figure("streams", f"{len(cards):,}"),
                    Figure("samples", f"{sum(len(card.ranking) for card in cards):,}"),
                    Figure("events told", f"{told:,} of {events:,}"),
                    Figure("false alerts", f"{false:,}"),
                ],
                sections=[
                    Section("Measures", table=Table(["measure", *(name for name, _ in detectors)], rows)),
                    Section("Missed", _in_turns(self._missed)),
                    Section("False alerts", _in_turns(self._false)),
                    Section("Hits", _in_turns(self._hits)),
                    Section("Streams", table=Table(["stream", *SHOWN], streams)),
                ],
            )
        )


def _picture(labelled: Labelled, replay: Replay, found: tuple[Episode, ...], first: int, last: int, caption: str) -> Chart:
    around = max(_AROUND, last - first + 1)
    rows = np.arange(max(0, first - around), min(len(labelled.table), last + around + 1))
    return chart_of(replay.trace, rows, found, labelled.table, caption=f"{labelled.name}: {caption}")


def _in_turns(found: Sequence[Sequence[Chart]]) -> list[Chart]:
    most = max((len(charts) for charts in found), default=0)
    return [charts[turn] for turn in range(most) for charts in found if turn < len(charts)][:PICTURES]
