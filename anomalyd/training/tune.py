"""`anomalyd tune`: a small search over the settings of `train`, judged on the latest part of each series, which no trial is trained on.

Bayesian search by a tree of Parzen estimators (Bergstra et al.: Algorithms for hyper-parameter optimization, NeurIPS 2011), where a trial
ends early that does worse than the median of those before at the same step. The first trial has the settings that `train` has, so the
outcome is no worse by this measure. Trials run in torch: the compiled step would have to be compiled for each shape.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from anomalyd.detector.network import Autoencoder
from anomalyd.errors import ArtifactError, ConfigError
from anomalyd.training.bar import calibration_bar, training_bar
from anomalyd.training.course import Prepared, learn, prepared
from anomalyd.training.data import Data
from anomalyd.training.design import Design, Wanted, designed
from anomalyd.training.folder import made
from anomalyd.training.later import errors
from anomalyd.training.outcome import finished, written
from anomalyd.training.page import page
from anomalyd.training.sources import FromFiles, FromTopic, read
from anomalyd.training.train import REPORT
from anomalyd.warmup import tell_of_compiling

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STEPS: Final = 200
"""Of a trial."""
HELD_BACK: Final = 0.2
STUDY: Final = "study.json"
JOURNAL: Final = "study.journal"
"""What was tried, as the library writes it; with it a search goes on where it was."""
MEASURE: Final = (
    "mean negative log-likelihood of forecast errors on held-back later data, Laplace, of each series' own scale before; lower is better"
)

Value = int | float
Space = dict[str, tuple[str, Sequence[Value]]]
"""By setting: how to draw (choice, range, log) and from what."""
SINGLE_SPACE: Final[Space] = {
    "units": ("choice", (16, 24, 32, 50, 64)),
    "layers": ("choice", (1, 2)),
    "latent": ("choice", (2, 3, 4, 6, 8)),
    "window": ("choice", (4, 8, 16, 32)),
    "learning_rate": ("log", (5e-4, 1e-2)),
    "weight_decay": ("log", (1e-6, 1e-2)),
    "dropout": ("range", (0.0, 0.3)),
    "input_noise": ("range", (0.0, 0.3)),
    "masking": ("range", (0.0, 0.2)),
}
JOINT_SPACE: Final[Space] = SINGLE_SPACE | {
    "units": ("choice", (32, 48, 64, 96)),
    "latent": ("choice", (4, 8, 12, 16)),
    "window": ("choice", (1, 2, 4)),
    "input_noise": ("range", (0.0, 0.5)),
}
_ENDED: Final = ("COMPLETE", "PRUNED")
_SHAPE: Final = ("units", "layers", "latent")


def run(
    source: FromFiles | FromTopic,
    out: Path,
    *,
    trials: int = 20,
    minutes: float | None = None,
    steps: int = STEPS,
    seed: int = 0,
    refit: bool = False,
    wanted: Wanted | None = None,
    report: Path | None = None,
    json_output: bool = False,
) -> int:
    """Searches, trains the best in full, calibrates and saves it; prints the trials. Returns the exit code.

    Args:
        source: what to train on.
        out: folder of the artifact and of the study, which goes on where it was when it is there already.
        trials: in all, with those of an earlier run.
        minutes: begin no trial after so long.
        steps: of a trial; the best is trained as `train` would.
        seed: of the search and of each training.
        refit: train the best on all data at last, for as long as was best with the latest part held back.
        wanted: what is not searched for; its plan holds for all trials.
        report: HTML file; None: `report.html` beside the artifact.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: the library is not installed, `out` cannot be written or holds a study on other data, or settings do not fit.
        AnomalydError: as for `train`.
    """
    began = time.monotonic()
    optuna = _library()
    wanted = wanted or Wanted()
    tell_of_compiling()
    with made(out):
        data = read(source)
        if wanted.held_back == 0.0:
            raise ConfigError("--holdout: got 0, trials are judged on what is held back")
        usual = designed(data, replace(wanted, held_back=wanted.held_back or HELD_BACK))
        # What networks are fed does not depend on their shape.
        on = prepared(data, usual.shape, usual.regime, seed)
        space = SINGLE_SPACE if data.features == 1 else JOINT_SPACE
        study = _study(out, data, usual, steps, seed, space)

        def objective(trial: "Trial") -> float:
            design = _with(usual, {name: _drawn(trial, name, *how) for name, how in space.items()}, steps)

            def look(network: Autoencoder, done: int) -> None:
                if on.later is not None:
                    trial.report(errors(network, on.later).surprise, done)
                if trial.should_prune():
                    raise optuna.TrialPruned

            try:
                learned = learn(on, design.shape, design.regime, seed, look=look)
            except ArtifactError:  # went astray: no settings to take
                raise optuna.TrialPruned from None
            if learned.errors is None or not math.isfinite(learned.errors.surprise):
                raise optuna.TrialPruned
            for name, value in (("forecast", learned.errors.forecast), ("steps", learned.best_step)):
                trial.set_user_attr(name, value)
            return learned.errors.surprise

        left = trials - _done(study)
        with _bar(study, trials) as told:
            if left > 0:
                study.optimize(objective, n_trials=left, timeout=None if minutes is None else 60.0 * minutes, callbacks=[told])
        if not any(trial.value is not None and trial.state.name == "COMPLETE" for trial in study.trials):
            raise ConfigError("no trial was finished: give it more --minutes")
        best = _with(usual, study.best_params, usual.regime.plan.steps)
        artifact, html = _trained(data, best, on, seed, study, began, refit=refit)
        saved = written(artifact, out)
    summary = _summary(study, data, seed) | {"artifact": saved.hash}
    report = report or out / REPORT
    try:
        (out / STUDY).write_text(json.dumps(summary, indent=2) + "\n")
        report.write_text(html, "utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    about = f"{out}: {saved.name} {saved.version} {saved.hash}"
    lines = [json.dumps(summary)] if json_output else [*table(study), "", about, f"study: {out / STUDY}", f"report: {report}"]
    print(*lines, sep="\n")  # noqa: T201  the command's result
    return 0


def _library() -> Any:  # noqa: ANN401  a module
    try:
        import optuna  # noqa: PLC0415  an extra: only the search needs it
    except ImportError:
        raise ConfigError("tune: optuna is not installed; install it with: pip install 'anomalyd[tuning]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(out: Path, data: Data, usual: Design, steps: int, seed: int, space: Space) -> "Study":
    """The study in a folder, or a new one. Raises ConfigError: it is about something else."""
    optuna = _library()
    backend = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    study: Study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="anomalyd",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=steps // 4),
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    about = {"data": data.described()["sha256"], "steps": steps, "held_back": usual.regime.held_back, "seed": seed}
    for name, value in about.items():
        known = study.user_attrs.get(name)
        if known is not None and known != value:
            raise ConfigError(f"--out {out}: holds a study with {name} {known}, not {value}; go on with that, or take another folder")
        study.set_user_attr(name, value)
    if not any(trial.state.name in (*_ENDED, "WAITING") for trial in study.trials):
        first = {name: getattr(usual.shape if name in _SHAPE else usual.regime.plan, name) for name in space}
        # What is outside of the search is brought to its nearest edge or choice.
        study.enqueue_trial({name: _nearest(value, *space[name]) for name, value in first.items()})
    return study


def _done(study: "Study") -> int:
    """How many trials have come to their end; one that was interrupted has not, and is tried again."""
    return sum(trial.state.name in _ENDED for trial in study.trials)


def _nearest(value: float, how: str, among: Sequence[Value]) -> Value:
    return min(among, key=lambda other: abs(other - value)) if how == "choice" else min(max(value, among[0]), among[-1])


def _drawn(trial: "Trial", name: str, how: str, among: Sequence[Value]) -> Value:
    if how == "choice":
        chosen: Value = trial.suggest_categorical(name, among)
        return chosen
    return trial.suggest_float(name, float(among[0]), float(among[-1]), log=how == "log")


def _with(usual: Design, found: dict[str, Any], steps: int) -> Design:
    """A design with the settings of a trial."""
    plan = replace(usual.regime.plan, steps=steps, **{name: value for name, value in found.items() if name not in _SHAPE})
    shape = replace(usual.shape, units=int(found["units"]), layers=int(found["layers"]), latent=int(found["latent"]))
    return Design(shape, replace(usual.regime, plan=plan), usual.begin)


def _trained(data: Data, best: Design, on: Prepared, seed: int, study: "Study", began: float, *, refit: bool) -> tuple[Any, str]:
    """The artifact of the best settings, not saved yet, and its report."""
    with training_bar(best.regime.plan.steps) as progress:
        learned = learn(on, best.shape, best.regime, seed, progress)
    if refit:
        plan = replace(best.regime.plan, steps=learned.best_step)
        best = replace(best, regime=replace(best.regime, plan=plan, held_back=0.0))
        on = prepared(data, best.shape, best.regime, seed)
        with training_bar(plan.steps) as progress:
            learned = learn(on, best.shape, best.regime, seed, progress)
    with calibration_bar() as calibrating:
        artifact = finished(data, best, on, learned, seed, calibrating)
    tuning = {"trials": len(study.trials), "measure": MEASURE, "value": round(study.best_value, 4), "refit": refit}
    artifact = replace(artifact, training={**artifact.training, "tuning": tuning})
    return artifact, page(artifact, on, learned, time.monotonic() - began)


# --- what is told -------------------------------------------------------------------------------------------------


def table(study: "Study") -> list[str]:
    """The trials, the best first, then those that were cut short."""
    names = list(study.best_params)
    rows = [["trial", "measure", "forecast", *names]]
    for trial in sorted(study.trials, key=_rank):
        if trial.state.is_finished():
            measure = f"{trial.value:.4f}" if trial.state.name == "COMPLETE" and trial.value is not None else trial.state.name.lower()
            forecast = f"{trial.user_attrs['forecast']:.4f}" if "forecast" in trial.user_attrs else "-"
            rows.append([str(trial.number), measure, forecast, *(_short(trial.params.get(name)) for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _rank(trial: "FrozenTrial") -> tuple[bool, float, int]:
    done = trial.state.name == "COMPLETE" and trial.value is not None
    return not done, trial.value if done and trial.value is not None else 0.0, trial.number


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else "-" if value is None else str(value)


def _summary(study: "Study", data: Data, seed: int) -> dict[str, Any]:
    return {
        "measure": MEASURE,
        "data": data.described(),
        "seed": seed,
        "steps": study.user_attrs["steps"],
        "best": {"trial": study.best_trial.number, "value": study.best_value, "settings": study.best_params},
        "trials": [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "settings": trial.params,
                **trial.user_attrs,
                "took_s": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            }
            for trial in study.trials
        ],
    }


@contextmanager
def _bar(study: "Study", trials: int) -> Iterator[Any]:
    """Trials on a terminal, with the best so far; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("trials"), BarColumn(), TextColumn("{task.completed}/{task.total}  {task.fields[best]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=trials, completed=_done(study), best="")

        def told(study: "Study", _: "FrozenTrial") -> None:
            finished_ones = [trial.value for trial in study.trials if trial.state.name == "COMPLETE" and trial.value is not None]
            bars.update(task, advance=1, best=f"best {min(finished_ones):.4f}" if finished_ones else "")

        try:
            yield told
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after {_done(study):,} of {trials:,} trials") from None
