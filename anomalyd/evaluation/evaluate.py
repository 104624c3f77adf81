"""`anomalyd evaluate`: a labelled set through the production engine, strictly online, and what the measures say."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Artifact, Detector
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.ablations import VARIANTS, VariantDetector, prepared
from anomalyd.evaluation.backtest import Bar, Engine, Writer, settings_for, stream_for, write_text
from anomalyd.evaluation.baselines import BASELINES, BaselineDetector
from anomalyd.evaluation.coldstart import ColdStart, cold_starts, ratio
from anomalyd.evaluation.models import Models
from anomalyd.evaluation.readers import InputFile, Table
from anomalyd.evaluation.replay import Replay, ranking
from anomalyd.evaluation.results import Result, Run, against
from anomalyd.evaluation.saying import as_ablations, as_json, as_text
from anomalyd.evaluation.scorecard import Card, card, nab, totals, usual_step_ms
from anomalyd.evaluation.sets import Half, Labelled, LabelledSet
from anomalyd.evaluation.verdictpage import Page
from anomalyd.settings import Settings, StreamSettings
from anomalyd.warmup import tell_of_compiling

OURS: Final = "anomalyd"


def run(
    name: str,
    data: Path,
    settings: Settings | None,
    *,
    detector: str = OURS,
    compare: Sequence[str] = (),
    out: Path | None = None,
    report: Path | None = None,
    json_output: bool = False,
    no_fit: bool = False,
    shared: bool = False,
    seeds: Sequence[int] = (0,),
    half: Half | None = None,
    cold_start: bool = False,
    model: Path | None = None,
    ablations: bool = False,
    models: Path | None = None,
) -> int:
    """Measures detectors on a set and prints what came out; returns the exit code.

    Args:
        name: of the set.
        data: where it lies.
        settings: a configuration, for its alert policy and device; None: the defaults.
        detector: which one; `anomalyd`, or one of `BASELINES` or `VARIANTS`.
        compare: others, on the same streams; `all` for all of `BASELINES`.
        out: folder for scores and alerts; those of other detectors, and of further seeds, in folders below.
        report: HTML file, with pictures of the first detector and seed.
        json_output: one JSON object instead of tables.
        no_fit: fit nothing on train.
        shared: one joint model for the set instead of one for each file.
        seeds: of what is trained or drawn, at least one; that is done once for each.
        half: of the streams; None: all.
        cold_start: measure that too.
        model: folder of the artifact that scores all streams; nothing is fitted then. Variants are of the shipped one.
        ablations: compare with all of `VARIANTS`, in a table of what each of them lacks.
        models: folder that keeps what is trained and calibrated for variants.

    Raises:
        ArtifactError: the model cannot be used, or a variant not be calibrated.
        ConfigError: no such set, folder or detector, or something cannot be written.
        InputFileError: the set cannot be used.
    """
    labelled_set = LabelledSet(name, data)
    tell_of_compiling()
    if half is not None:
        labelled_set.keep(half)
    if not labelled_set.files:
        raise InputFileError(f"{labelled_set.folder}: this half has no stream")
    stream = stream_for(settings, None)
    settings = settings or settings_for(stream)
    budget = settings.policy(stream).budget
    names = _names(detector, (*VARIANTS, *compare) if ablations else compare)
    weights = _weights(labelled_set, names, seeds, models)
    page = Page(f"anomalyd evaluate {name}") if report is not None else None
    results = []
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(len(labelled_set.files) * len(names) * len(seeds)))
        for number, who in enumerate(names):
            trials = [
                Trial(
                    who,
                    settings,
                    stream,
                    Models(labelled_set.files, fit=not no_fit, shared=shared, seed=seed, folder=model),
                    seed,
                    weights[seed],
                )
                for seed in seeds
            ]
            writers = Writers(stack, None if out is None else out if number == 0 else out / who)
            for file in labelled_set.files:
                bar.start(file, who)
                labelled = labelled_set.read(file)
                replay = None
                for turn, trial in enumerate(trials):
                    if replay is None or trial.draws(labelled.table):
                        replay = trial.stream(labelled, bar)
                        writers.write(turn, trial.seed, file, replay, trial.cards[-1].ranking)
                        if page is not None and number == turn == 0:
                            page.take(labelled, replay, trial.cards[-1])
                    else:
                        trial.repeat(trials[0])
                    if cold_start:
                        trial.start_cold(labelled, bar)
                    bar.finish(replay if turn == 0 else None)
            results.append(_result(who, trials, budget, of_nab=name == "nab", cold_start=cold_start))
    differences = {other.detector: against(results[0], other) for other in results[1:]}
    said = as_ablations(results, differences) if ablations else as_text(results, differences)
    print(*([json.dumps(as_json(name, results, differences))] if json_output else said), sep="\n")  # noqa: T201  the command's result
    # Behind the results: who gave a path that cannot be written has them at least.
    if page is not None and report is not None:
        write_text(report, page.render([(one.detector, one.measures) for one in results], results[0].runs[0].cards))
    return 0


class Trial:
    """A detector with one seed: made for each stream, cards kept.

    Args:
        name: of the detector.
        settings: for policy, room and device.
        stream: whose policy counts.
        models: the weights for each file.
        seed: of what is trained or drawn.
        weights: of the variants, by name.
    """

    detector: Detector
    """Of the newest stream; there is none in front of the first."""

    def __init__(
        self, name: str, settings: Settings, stream: StreamSettings, models: Models, seed: int, weights: Mapping[str, Artifact]
    ) -> None:
        self.seed = seed
        self.engine = Engine(settings, stream, models)
        self.cards: list[Card] = []
        self.cold: list[ColdStart] = []
        self._name = name
        self._models = models
        self._variant = VariantDetector(VARIANTS[name], weights[name], self.engine.options) if name in VARIANTS else None

    def draws(self, table: Table) -> bool:
        """Whether another seed would make another detector for this stream."""
        if self._name == OURS:
            return self._models.fits(table)
        return (VARIANTS if self._variant is not None else BASELINES)[self._name].seeded

    def stream(self, labelled: Labelled, bar: Bar) -> Replay:
        """The whole stream from a fresh start."""
        self.detector = self._made(labelled)
        if self._name == OURS:
            self.engine.warm_up(labelled.file, labelled.table, self.detector)
        replay = self.engine.replay(labelled.file, labelled.table, bar, self.detector)
        self.cards.append(card(labelled, replay, self._ranking(replay)))
        return replay

    def repeat(self, other: "Trial") -> None:
        """Takes over what another trial found in this stream, where the seed makes no difference."""
        self.detector = other.detector
        self.cards.append(other.cards[-1])

    def start_cold(self, labelled: Labelled, bar: Bar) -> None:
        """Begins in front of each labelled segment of the newest stream, with its model and fresh state."""

        def fresh(part: Table) -> NDArray[np.float64]:
            return self._ranking(self.engine.replay(labelled.file, part, bar, self.detector))

        self.cold += cold_starts(labelled, self.cards[-1].ranking, self.seed, fresh)

    def _ranking(self, replay: Replay) -> NDArray[np.float64]:
        """How anomalous each row is, shape (n,).

        Of a baseline it is what its idea says by itself. Calibrated, as it is where it raises alerts, it ranks worse (docs/detection.md).
        """
        trace = replay.trace
        return trace.verdicts.evidence if self._name in BASELINES else ranking(trace, self.detector)

    def _made(self, labelled: Labelled) -> Detector:
        table = labelled.table
        if self._name == OURS:
            return self.engine.detector(labelled.file, table)
        if self._variant is not None:
            return self._variant
        return BaselineDetector(
            BASELINES[self._name],
            table.value.shape[1],
            train=table.train if self._models.fit else None,
            step_ms=int(usual_step_ms(table.time_ms)),
            seed=self.seed,
            options=self.engine.options,
        )


class Writers:
    """Writes scores and alerts: of the first seed into the folder itself, of others into one below it that is made when it is needed.

    Args:
        stack: closes what is opened.
        folder: None: nothing is written.
    """

    def __init__(self, stack: ExitStack, folder: Path | None) -> None:
        self._stack = stack
        self._folder = folder
        self._opened: dict[int, Writer] = {}

    def write(self, turn: int, seed: int, file: InputFile, replay: Replay, evidence: NDArray[np.float64]) -> None:
        """Adds one input's outputs, with what ranks its samples, shape (n,). Raises ConfigError."""
        if self._folder is None:
            return
        if turn not in self._opened:
            self._opened[turn] = self._stack.enter_context(Writer(self._folder if turn == 0 else self._folder / f"seed-{seed}"))
        self._opened[turn].write(file, replay, evidence)


def _names(detector: str, compare: Sequence[str]) -> list[str]:
    """Those to measure, ours or the one asked for first."""
    known = (OURS, *BASELINES, *VARIANTS)
    asked = [name for one in compare for name in ((OURS, *BASELINES) if one == "all" else (one,))]
    names = list(dict.fromkeys((detector, *asked)))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--detector, --compare: got {unknown[0]!r}, valid are {', '.join(known)}")
    return names


def _weights(labelled_set: LabelledSet, names: Sequence[str], seeds: Sequence[int], models: Path | None) -> dict[int, dict[str, Artifact]]:
    """For each seed the artifacts of those that are variants; one that does not depend on the seed is made once.

    Raises InputFileError where a stream has several values, before anything is trained.
    """
    variants = [VARIANTS[who] for who in names if who in VARIANTS]
    for file in labelled_set.files if variants else ():
        if (features := labelled_set.read(file).table.value.shape[1]) > 1:
            raise InputFileError(f"{file.path}: has {features} values; {variants[0].name} is for single metrics")
    found: dict[int, dict[str, Artifact]] = {}
    for turn, seed in enumerate(seeds):
        needed = [variant for variant in variants if turn == 0 or variant.seeded]
        found[seed] = found.get(seeds[0], {}) | (prepared(needed, seed, models) if needed else {})
    return found


def _result(name: str, trials: Sequence[Trial], budget: float, *, of_nab: bool, cold_start: bool) -> Result:
    runs = []
    for trial in trials:
        measures = totals(trial.cards, budget)
        if of_nab:
            measures = nab(trial.cards) | measures
        if cold_start:
            measures["cold_start"] = ratio(trial.cold)
        runs.append(Run(trial.seed, tuple(trial.cards), measures))
    streamed, busy_s = sum(trial.engine.streamed for trial in trials), sum(trial.engine.busy_s for trial in trials)
    samples = sum(len(one.ranking) for one in trials[0].cards)
    return Result(name, tuple(runs), samples, round(streamed / max(busy_s, 1e-9)))
