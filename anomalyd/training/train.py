"""`anomalyd train`: a model from history. One feature: one network for all series; several: a joint one for entities that have them."""

import json
import time
from pathlib import Path
from typing import Any, Final

from anomalyd.detector import Artifact
from anomalyd.detector.detector import Device
from anomalyd.errors import ConfigError
from anomalyd.training.bar import calibration_bar, training_bar
from anomalyd.training.course import learn, prepared
from anomalyd.training.data import Data
from anomalyd.training.design import Wanted, designed
from anomalyd.training.folder import made
from anomalyd.training.history import LEAST_TRAIN
from anomalyd.training.outcome import finished, replaced, written
from anomalyd.training.page import page
from anomalyd.training.sources import FromFiles, FromTopic, read
from anomalyd.training.trainer import device_for
from anomalyd.warmup import tell_of_compiling

REPORT: Final = "report.html"


def run(
    source: FromFiles | FromTopic,
    out: Path,
    seed: int = 0,
    wanted: Wanted | None = None,
    *,
    report: Path | None = None,
    json_output: bool = False,
    device: Device = "cpu",
) -> int:
    """Trains, calibrates and saves; progress on stderr, the artifact's hash on stdout. Returns the exit code.

    Of files with `train` and `test` only train is read. Labels are not looked at: histories are taken as normal.

    Args:
        source: what to train on.
        out: folder of the artifact, made if need be.
        seed: equal seeds and data, equal weights.
        wanted: what is not as usual.
        report: HTML file; None: `report.html` beside the artifact.
        json_output: one JSON object instead of text.
        device: where to train; auto is the GPU where there is one. Only on the CPU do equal seeds give equal weights.

    Raises:
        ArtifactError: the model to begin with cannot be used, or no threshold can be laid.
        ConfigError: `out` or the report cannot be written, `out` holds other files, there is no such history, or settings do not fit each
            other or the data.
        InputFileError: a file cannot be read, has too few rows, or two have different columns.
        AnomalydError: the topic cannot be read.
    """
    wanted = wanted or Wanted()
    began = time.monotonic()
    torch_device = device_for(device)
    tell_of_compiling()
    with made(out):
        data = read(source)
        design = designed(data, wanted)
        on = prepared(data, design.shape, design.regime, seed)
        with training_bar(design.regime.plan.steps) as progress:
            learned = learn(on, design.shape, design.regime, seed, progress, design.begin, device=torch_device)
        with calibration_bar() as calibrating:
            artifact = finished(data, design, on, learned, seed, calibrating)
        before = replaced(out)
        saved = written(artifact, out)
    took_s = time.monotonic() - began
    report = report or out / REPORT
    try:
        report.write_text(page(saved, on, learned, took_s), "utf-8")
    except OSError as error:
        raise ConfigError(f"--report {report}: {error.strerror or error}") from None
    lines = [json.dumps(as_json(saved, out, report, took_s))] if json_output else [*told(saved, data, out, report, took_s), *before]
    print(*lines, sep="\n")  # noqa: T201  the command's result
    return 0


def as_json(saved: Artifact, out: Path, report: Path, took_s: float) -> dict[str, Any]:
    """What is told to programs."""
    return {
        "out": str(out),
        "report": str(report),
        "name": saved.name,
        "version": saved.version,
        "hash": saved.hash,
        "training": dict(saved.training),
        "took_s": round(took_s, 1),
    }


def told(saved: Artifact, data: Data, out: Path, report: Path, took_s: float) -> list[str]:
    """What is told to people."""
    about, features = saved.training, saved.shape.features
    many = len(data.histories) != 1
    what = (
        f"{len(data.histories):,} series"
        if features == 1
        else f"{len(data.histories):,} {'entities' if many else 'entity'} of {features} values"
    )
    samples = "samples" if features == 1 else "rows"
    lines = [
        f"{out}: {saved.name} {saved.version} {saved.hash}",
        f"{what}, {data.samples:,} {samples}, {about['steps']:,} steps, loss {about['loss']:.3f}, {took_s:.0f} s",
    ]
    if data.short:
        lines.append(f"{data.short:,} series left out: fewer than {LEAST_TRAIN} samples")
    if data.rejected:
        lines.append("records not used, wholly or in part: " + ", ".join(f"{reason} {n:,}" for reason, n in sorted(data.rejected.items())))
    if about["errors"]:
        missed = ", ".join(f"{name} {row['forecast']:.4f}" for name, row in about["errors"].items())
        found = about["held_back_alerts"]
        lines.append(
            f"held back: forecast error {missed}; {found['alerts']} alerts in {found['series_days']:,.1f} series-days "
            f"(budget {found['budget']:g} a series-day)"
        )
    return [*lines, f"report: {report}"]
