"""Several models over the same files, each through the production engine from a fresh start."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from anomalyd.detector import Artifact
from anomalyd.errors import InputFileError
from anomalyd.evaluation.backtest import Bar, Engine, settings_for, stream_for
from anomalyd.evaluation.measures import ratio_of_sums, segments
from anomalyd.evaluation.models import Models
from anomalyd.evaluation.readers import InputFile, Table, find, read_table
from anomalyd.evaluation.replay import Replay, ranking
from anomalyd.evaluation.scorecard import Card, card, totals
from anomalyd.evaluation.sets import Labelled
from anomalyd.settings import Settings

Figures = dict[str, float | None]

_MS_PER_DAY: Final = 86_400_000


def duel(models: Sequence[Artifact], paths: Sequence[Path], settings: Settings | None, wire_format: str | None) -> list[Figures]:
    """What each model makes of the files.

    Args:
        models: the models; each has to be for the values that the files hold.
        paths: files and directories, as `anomalyd backtest` takes them.
        settings: a configuration, of which the alert policy counts; None: the defaults.
        wire_format: of files that are neither CSV nor npz.

    Returns:
        For each model its figures by name: samples, series_days, episodes, episodes_per_series_day with the ends of its 95 % interval;
        where files have labels, the measures of `anomalyd evaluate` of these.

    Raises:
        ConfigError: there is no such format.
        InputFileError: a file cannot be used, by one of the models, or none has a sample.
    """
    stream = stream_for(settings, wire_format)
    files = find(paths, lines=wire_format is not None or settings is not None)
    settings = settings or settings_for(stream)
    budget = settings.policy(stream).budget
    results = []
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(len(files) * len(models)))
        for model in models:
            engine = Engine(settings, stream, Models(files, fit=True, shared=False, given=model))
            results.append(_figures(model, engine, files, bar, budget))
    return results


def _figures(model: Artifact, engine: Engine, files: Sequence[InputFile], bar: Bar, budget: float) -> Figures:
    days, episodes, cards = list[float](), list[int](), list[Card]()
    for file in files:
        bar.start(file, model.hash[:8])
        table = read_table(file) if file.kind != "lines" else None
        detector = engine.detector(file, table)
        replay = engine.replay(file, table, bar, detector)
        days.append(_series_days(replay))
        episodes.append(replay.episodes)
        if table is not None and table.label is not None:
            cards.append(card(_labelled(file, table), replay, ranking(replay.trace, detector)))
        bar.finish(replay)
    if not engine.streamed:
        raise InputFileError("no sample could be used: nothing was scored")
    rate = ratio_of_sums(episodes, days)
    found: Figures = {
        "samples": engine.streamed,
        "series_days": round(sum(days), 3),
        "episodes": sum(episodes),
        "episodes_per_series_day": None if rate is None else rate.value,
        "episodes_per_series_day_low": None if rate is None else rate.low,
        "episodes_per_series_day_high": None if rate is None else rate.high,
    }
    return found | (totals(cards, budget) if cards else {})


def _series_days(replay: Replay) -> float:
    """Event time from the first to the last sample of each series, together."""
    trace = replay.trace
    first, last = np.full(len(trace.keys), np.iinfo(np.int64).max), np.full(len(trace.keys), np.iinfo(np.int64).min)
    np.minimum.at(first, trace.series, trace.time_ms)
    np.maximum.at(last, trace.series, trace.time_ms)
    return float(np.clip(last - first, 0, None)[last >= first].sum()) / _MS_PER_DAY


def _labelled(file: InputFile, table: Table) -> Labelled:
    label: Any = table.label
    return Labelled(file, table, tuple((int(first), int(last)) for first, last in segments(label).tolist()), ())
