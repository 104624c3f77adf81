"""The Helm chart in a real control plane: `make test-kubernetes`. Not a part of `make test`, which could not build one each time.

API server, controllers and scheduler are real, and enforce what they enforce anywhere; nodes are pretended, so no container runs and
no probe is asked (deploy/kubernetes/control-plane.sh).
"""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.helm import CHART, ROOT, Chart, Object, pod_template, scenarios, values_of
from tests.support.poll import poll_until

SCRIPT = ROOT / "deploy/kubernetes/control-plane.sh"
HOME = Path(os.environ.get("CONTROL_PLANE_HOME") or Path.home() / ".cache/control-plane")
RELEASE = "test"

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Plane:
    """The control plane, by its tools."""

    def run(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a tool, whatever comes of it."""
        environment = {**os.environ, "KUBECONFIG": str(HOME / "pki/admin.kubeconfig"), "HELM_CACHE_HOME": str(HOME / "helm")}
        return subprocess.run(
            [HOME / "bin" / command[0], *command[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=environment,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl says; it has to succeed."""
        done = self.run("kubectl", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *arguments: str) -> Any:  # noqa: ANN401  whatever Kubernetes has
        """An object or a list of them."""
        found = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *objects: Object) -> None:
        """Makes objects, or changes them."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def everything(self, namespace: str) -> set[str]:
        """Names of all objects in a namespace but events and what Kubernetes put there."""
        kinds = self.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        wanted = ",".join(sorted(set(kinds) - {"events", "events.events.k8s.io"}))
        names = self.kubectl("get", wanted, "--namespace", namespace, "--output=name", "--ignore-not-found").split()
        return set(names) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    """A control plane of this session, empty but for nodes and definitions."""
    started = subprocess.run([SCRIPT, "up"], capture_output=True, text=True, check=False, timeout=300)
    if started.returncode:
        pytest.fail(started.stderr, pytrace=False)
    try:
        plane = Plane()
        plane.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"})
        plane.kubectl("label", "node", "--all", "example.com/gpu=true")
        yield plane
    finally:
        subprocess.run([SCRIPT, "down"], check=True, timeout=120)


@pytest.fixture
def namespace(plane: Plane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that admits restricted pods only, with what the values suppose to be there."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))[:60].strip("-").lower()
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    plane.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        *(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": name}, "stringData": {key: "-"}}
            for secret, key in ((f"{RELEASE}-kafka", "password"), ("cluster-ca", "ca.crt"), ("registry", "any"))
        ),
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "static",
                "hostPath": {"path": "/none"},
            },
        },
    )
    poll_until(lambda: plane.run("kubectl", "get", "serviceaccount", "default", "-n", name).returncode == 0, f"{name} to be usable")
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false")
    plane.kubectl("delete", "persistentvolume", name, "--wait=false")


@dataclass(frozen=True)
class Release:
    """A release of the chart with the values of a scenario."""

    plane: Plane
    namespace: str
    scenario: str

    def _helm(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.plane.run("helm", verb, RELEASE, *arguments, "--namespace", self.namespace, "--wait", "--timeout=120s")

    def bring(self, verb: str, *settings: str) -> subprocess.CompletedProcess[str]:
        """`helm install` or `helm upgrade`."""
        chosen = [f"--set-json={setting}" for setting in settings]
        return self._helm(verb, str(CHART), "--values", str(values_of(self.scenario)), *chosen)

    def must(self, verb: str, *settings: str) -> None:
        """The same, and it has to succeed."""
        done = self.bring(verb, *settings)
        assert done.returncode == 0, done.stderr
        assert "would violate" not in done.stderr

    def roll_back(self, revision: int) -> None:
        """To an earlier revision."""
        done = self._helm("rollback", str(revision))
        assert done.returncode == 0, done.stderr

    def uninstall(self) -> None:
        """The end of it."""
        done = self._helm("uninstall")
        assert done.returncode == 0, done.stderr

    def pods(self) -> list[Object]:
        """Those that are not on their way out."""
        found: list[Object] = self.plane.get("pods", "-n", self.namespace, "-l", f"app.kubernetes.io/instance={RELEASE}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def checksums(self) -> set[tuple[str, str]]:
        """Which component runs with which configuration."""
        return {
            (pod["metadata"]["labels"]["app.kubernetes.io/component"], pod["metadata"]["annotations"]["checksum/config"])
            for pod in self.pods()
        }


def _ready(pods: Sequence[Object]) -> bool:
    return all(
        {"type": "Ready", "status": "True"}.items() <= condition.items()
        for pod in pods
        for condition in pod["status"]["conditions"]
        if condition["type"] == "Ready"
    )


@pytest.mark.parametrize("scenario", scenarios())
def test_a_release_comes_changes_goes_back_and_leaves_nothing(plane: Plane, namespace: str, scenario: str) -> None:
    before = plane.everything(namespace)
    release = Release(plane, namespace, scenario)

    release.must("install")
    pods, first = release.pods(), release.checksums()
    assert pods
    assert _ready(pods)
    assert {component for component, _ in first} >= {"daemon"}
    # The job and what it needed are gone with its success.
    assert [name for name in plane.everything(namespace) - before if "-topics" in name] == []

    release.must("upgrade", "config.max_series=54321")
    second = release.checksums()
    assert {component for component, _ in second} == {component for component, _ in first}
    assert first & second == set()
    assert _ready(release.pods())

    release.roll_back(1)
    poll_until(lambda: release.checksums() == first, "pods of the first revision")

    release.uninstall()
    poll_until(
        lambda: plane.everything(namespace) == before, f"nothing left behind, but for {plane.everything(namespace) - before}", timeout_s=60
    )


@pytest.mark.parametrize("scenario", ["full", "edge"])
def test_no_account_of_the_release_may_do_anything(plane: Plane, namespace: str, scenario: str) -> None:
    release = Release(plane, namespace, scenario)
    release.must("install")
    accounts = {pod["spec"]["serviceAccountName"] for pod in release.pods()}
    everybody = set(_rights(plane, namespace, "system:serviceaccount:default:nobody-knows-it"))

    for account in accounts:
        user = f"system:serviceaccount:{namespace}:{account}"
        for what in ("get secrets", "list pods", "create pods", "get configmaps", "patch statefulsets.apps", "create pods/exec", "* *"):
            answer = plane.run("kubectl", "auth", "can-i", *what.split(), "--as", user, "--namespace", namespace)
            assert answer.stdout.strip() == "no", what
        assert set(_rights(plane, namespace, user)) == everybody
    assert plane.kubectl("get", "roles,rolebindings", "--namespace", namespace, "--output=name") == ""
    bound = plane.get("clusterrolebindings")
    assert [binding for binding in bound if any(subject.get("namespace") == namespace for subject in binding.get("subjects", ()))] == []
    for pod in release.pods():
        assert [volume for volume in pod["spec"]["volumes"] if "projected" in volume] == [], "a token was mounted"


def _rights(plane: Plane, namespace: str, user: str) -> list[str]:
    groups = ["--as-group=system:serviceaccounts", "--as-group=system:authenticated"]
    return plane.kubectl("auth", "can-i", "--list", "--no-headers", "--as", user, *groups, "--namespace", namespace).splitlines()


def test_restricted_pod_security_admits_every_pod_and_refuses_a_laxer_one(plane: Plane, namespace: str) -> None:
    """The control: the namespace does enforce it."""
    chart = Chart(HOME / "bin/helm")
    templates = [template for scenario in scenarios() for item in chart.render(scenario) if (template := pod_template(item))]
    assert len(templates) > 10

    def admitted(template: Object) -> subprocess.CompletedProcess[str]:
        spec = template["spec"] | {"serviceAccountName": "default"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "pod", "namespace": namespace}, "spec": spec}
        return plane.run("kubectl", "create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(pod))

    for template in templates:
        answer = admitted(template)
        assert answer.returncode == 0, answer.stderr
    lax = json.loads(json.dumps(templates[0]))
    lax["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = admitted(lax)
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_the_api_server_takes_every_object_strictly_and_a_misspelt_field_not(plane: Plane, namespace: str) -> None:
    """Custom resources by their definitions; what `helm install` lets pass unseen is refused here."""
    chart = Chart(HOME / "bin/helm")

    def taken(scenario: str, *settings: str) -> subprocess.CompletedProcess[str]:
        rendered = chart.template(scenario, settings, "--namespace", namespace).stdout
        return plane.run(
            "kubectl", "apply", "--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename=-", stdin=rendered
        )

    kinds: set[str] = set()
    for scenario in scenarios():
        answer = taken(scenario)
        assert answer.returncode == 0, answer.stderr
        kinds |= {line.partition("/")[0] for line in answer.stdout.splitlines()}
    assert kinds >= {
        "servicemonitor.monitoring.coreos.com",
        "podmonitor.monitoring.coreos.com",
        "prometheusrule.monitoring.coreos.com",
        "scaledobject.keda.sh",
        "networkpolicy.networking.k8s.io",
        "poddisruptionbudget.policy",
        "horizontalpodautoscaler.autoscaling",
    }
    refused = taken("full", 'metrics.endpoint.intervall="15s"')
    assert refused.returncode != 0
    assert "intervall" in refused.stderr


@pytest.mark.parametrize("scenario", scenarios())
def test_kubeconform_has_no_objection(scenario: str) -> None:
    """Custom resources included: a kind without a schema is an error."""
    checked = _kubeconform(Chart(HOME / "bin/helm").template(scenario).stdout)

    assert checked.returncode == 0, checked.stdout
    summary = json.loads(checked.stdout)["summary"]
    assert summary["valid"] >= 3
    assert (summary["invalid"], summary["errors"], summary["skipped"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "setting", ['metrics.endpoint.intervall="15s"', "daemon.pod.securityContext.runAsUsr=1", "metrics.endpoint.interval=15"]
)
def test_kubeconform_objects_to_a_misspelt_field_and_a_wrong_type(setting: str) -> None:
    """The control."""
    checked = _kubeconform(Chart(HOME / "bin/helm").template("full", [setting]).stdout)

    assert json.loads(checked.stdout)["summary"]["invalid"] >= 1


def _kubeconform(manifests: str) -> subprocess.CompletedProcess[str]:
    template = "{{.NormalizedKubernetesVersion}}-standalone{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json"
    (version,) = [folder.name.removesuffix("-standalone-strict")[1:] for folder in (HOME / "schemas").glob("v*-standalone-strict")]
    command = ["-strict", "-summary", "-output=json", "-kubernetes-version", version, "-schema-location", f"{HOME}/schemas/{template}"]
    return subprocess.run([HOME / "bin/kubeconform", *command], input=manifests, capture_output=True, text=True, check=False, timeout=60)


def test_a_topics_job_that_fails_stops_the_release_and_can_be_asked_why(plane: Plane, namespace: str) -> None:
    before = plane.everything(namespace)
    release = Release(plane, namespace, "minimal")
    stuck = ("topics.activeDeadlineSeconds=2", 'topics.pod.nodeSelector={"no": "such"}')

    failed = release.bring("install", *stuck)
    assert failed.returncode != 0
    conditions = plane.get("job", f"{RELEASE}-anomalyd-topics", "-n", namespace)["status"]["conditions"]
    assert "DeadlineExceeded" in [condition.get("reason") for condition in conditions if condition["type"] == "Failed"]
    assert [pod for pod in release.pods() if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "topics"] == []

    # What stood in the way is gone: the same release is installed over it.
    done = plane.run(
        "helm",
        "upgrade",
        "--install",
        RELEASE,
        str(CHART),
        "--values",
        str(values_of("minimal")),
        "-n",
        namespace,
        "--wait",
        "--timeout=120s",
    )
    assert done.returncode == 0, done.stderr
    release.uninstall()
    poll_until(lambda: plane.everything(namespace) == before, "nothing left behind", timeout_s=60)


def test_what_a_failed_job_left_goes_with_its_release(plane: Plane, namespace: str) -> None:
    before = plane.everything(namespace)
    release = Release(plane, namespace, "minimal")
    assert release.bring("install", "topics.activeDeadlineSeconds=2", 'topics.pod.nodeSelector={"no": "such"}').returncode != 0

    release.uninstall()

    left = plane.everything(namespace) - before
    assert {name for name in left if not name.startswith(("job.batch/", "pod/"))} == set()
    assert plane.get("job", f"{RELEASE}-anomalyd-topics", "-n", namespace)["spec"]["ttlSecondsAfterFinished"] == 3600


def test_an_upgrade_leaves_what_an_autoscaler_has_done(plane: Plane, namespace: str) -> None:
    release = Release(plane, namespace, "hpa")
    release.must("install")
    plane.kubectl("scale", f"statefulset/{RELEASE}-anomalyd", "--replicas=4", "--namespace", namespace)

    release.must("upgrade", "config.max_series=54321")

    assert plane.get("statefulset", f"{RELEASE}-anomalyd", "-n", namespace)["spec"]["replicas"] == 4


def test_pods_go_where_their_values_send_them(plane: Plane, namespace: str) -> None:
    """GPUs are taken from the node; replicas are spread over zones; the claim is bound."""
    Release(plane, namespace, "gpu").must("install")
    pods = Release(plane, namespace, "gpu").pods()
    nodes = {pod["spec"]["nodeName"] for pod in pods}

    assert len(nodes) == len(pods) == 2
    assert all(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1" for pod in pods)
