"""The artifacts of variants: weights trained as the shipped ones are, and a threshold laid for each by the same procedure."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from anomalyd.detector import Artifact, Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError, ConfigError
from anomalyd.evaluation.ablations.variants import Variant, VariantDetector

_CODE: Final = ("detector", "training", "evaluation/ablations")
"""Packages whose code decides what an artifact holds."""


def prepared(variants: Sequence[Variant], seed: int, folder: Path | None) -> dict[str, Artifact]:
    """An artifact for each variant, by its name; progress on stderr.

    Args:
        variants: which.
        seed: of training; that of the shipped artifact is 0. Calibration is on the series that the shipped artifact was calibrated on.
        folder: where they are kept, so that another run of the same code is quick; None: nowhere.

    Raises:
        ArtifactError: a variant cannot be calibrated.
        ConfigError: the folder cannot be written.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    found = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        whole = bar.add_task("preparing variants", total=len(variants))
        for variant in variants:
            bar.update(whole, description=f"preparing {variant.name}")
            path = None if folder is None else folder / f"{variant.name}-{_stamp(variant, seed)}"
            found[variant.name] = _kept(variant, path) or _saved(_made(variant, seed, bar), path)
            bar.advance(whole)
    return found


def _kept(variant: Variant, path: Path | None) -> Artifact | None:
    if path is None or not path.is_dir():
        return None
    artifact = artifacts.load(path)
    return artifact if artifact.name == variant.name else None


def _saved(artifact: Artifact, path: Path | None) -> Artifact:
    if path is None:
        return artifacts.sealed(artifact)
    try:
        return artifacts.save(artifact, path)
    except OSError as error:
        raise ConfigError(f"--models {path.parent}: {error.strerror or error}") from None


def _made(variant: Variant, seed: int, bar: Progress) -> Artifact:
    from anomalyd.training.pretrain import single_line  # noqa: PLC0415  torch takes seconds to import, and kept artifacts need none

    def detector(artifact: Artifact) -> Detector:
        return VariantDetector(variant, artifact)

    own = artifacts.load(shipped())
    weights = own if variant.cell == "lstm" else _trained(variant, seed, bar)
    try:
        line = single_line(weights, int(own.training["seed"]), detector)
    except ArtifactError as error:
        raise ArtifactError(f"{variant.name}: {error}") from error
    return replace(weights, name=variant.name, calibration=line, several=None)


def _trained(variant: Variant, seed: int, bar: Progress) -> Artifact:
    from anomalyd.evaluation.ablations import networks  # noqa: PLC0415  as above
    from anomalyd.training import pretrain  # noqa: PLC0415  as above
    from anomalyd.training.trainer import Plan  # noqa: PLC0415  as above

    if variant.cell == "untrained":
        plan, loss = Plan(steps=0), 0.0
        network = networks.untrained(pretrain.SHAPE, seed)
    else:
        plan = Plan()
        task = bar.add_task(f"training {variant.name}", total=plan.steps)
        make = networks.GruAutoencoder if variant.cell == "gru" else networks.RnnAutoencoder
        network, loss = pretrain.trained(seed, plan, lambda done, *_: bar.update(task, completed=done), make)
        bar.remove_task(task)
    artifact = pretrain.described(variant.name, networks.tensors(network), seed, plan, loss)
    return replace(artifact, training={**artifact.training, "parameters": networks.parameters(network)})


def _stamp(variant: Variant, seed: int) -> str:
    """Of all that decides what the artifact holds."""
    drawn = seed if variant.seeded else None
    root = Path(__file__).parents[2]
    digest = hashlib.sha256(f"{variant.name} {drawn} {version('torch')} {version('numpy')}".encode())
    for file in sorted(file for package in _CODE for file in (root / package).rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update((shipped() / artifacts.MANIFEST_FILE).read_bytes())
    return digest.hexdigest()[:12]
