"""The Helm chart as it renders: what comes out over combinations of values, and what is refused.

What only a cluster can say is in tests/deploy/kubernetes.py.
"""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from anomalyd import __version__
from anomalyd.cli import app
from anomalyd.settings import Settings, load
from tests.support.helm import CHART, ROOT, Chart, Object, one, pod_template, scenarios
from tests.support.parts import part

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

SWITCHES: dict[str, Sequence[object]] = {
    "retrainer.enabled": (True, False),
    "retrainer.persistence.enabled": (True, False),
    "notifier.enabled": (True, False),
    "networkPolicy.enabled": (True, False),
    "serviceAccount.create": (True, False),
    "topics.create": (True, False),
    "metrics.monitor": ("none", "ServiceMonitor", "PodMonitor"),
    "autoscaling.kind": ("none", "hpa", "keda"),
    "gpu.count": (0, 2),
}
ALL_CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject"}


def _combinations() -> list[tuple[str, ...]]:
    """Settings of the switches in which each pair of values of two switches occurs; found greedily, so a few more than needed."""
    open_pairs = {
        frozenset([(a, x), (b, y)]) for a, b in itertools.combinations(SWITCHES, 2) for x, y in itertools.product(SWITCHES[a], SWITCHES[b])
    }
    found = []
    everything = [list(zip(SWITCHES, choice, strict=True)) for choice in itertools.product(*SWITCHES.values())]
    while open_pairs:
        best = max(everything, key=lambda row: sum(frozenset(pair) in open_pairs for pair in itertools.combinations(row, 2)))
        open_pairs -= {frozenset(pair) for pair in itertools.combinations(best, 2)}
        found.append(tuple(f"{key}={json.dumps(value)}" for key, value in best))
    return found


@pytest.fixture(scope="module")
def renders(chart: Chart) -> list[list[Object]]:
    """Every scenario, and the switches over the one that sets most."""
    return [chart.render(scenario) for scenario in scenarios()] + [chart.render("full", *settings) for settings in _combinations()]


def _pods(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    for item in objects:
        if template := pod_template(item):
            yield item, template


def _container(template: Object) -> Object:
    (container,) = [container for container in template["spec"]["containers"] if container["name"] == "anomalyd"]
    found: Object = container
    return found


# --- generated files ------------------------------------------------------------------------------------------------


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_chart", ROOT / "deploy/helm/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schema_readme_and_copies_are_current() -> None:
    assert _generator().stale() == [], "run: python deploy/helm/generate.py"


def test_every_value_is_described_and_has_a_type() -> None:
    """Values without a word, and words of values that are no more."""

    def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, value in values.items():
            inner = (schema_at((*path, key)) or {}).get("properties")
            if inner and isinstance(value, dict):
                yield from leaves(value, (*path, key))
            else:
                yield (*path, key)

    def schema_at(path: tuple[str, ...]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = schema
        for key in path:
            found = (found or {}).get("properties", {}).get(key)
            while found and "$ref" in found and key == "config":
                found = schema["$defs"][found["$ref"].rsplit("/", 1)[-1]]
        return found

    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    text = (CHART / "values.yaml").read_text("utf-8")
    told = _generator().descriptions(text)
    there = set(leaves({key: value for key, value in yaml.safe_load(text).items() if key != "config"}))

    assert there - told.keys() == set()
    assert [path for path in there if schema_at(path) is None] == []
    assert {path for path in told if path[0] != "config"} - there == set()


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))

    assert about["appVersion"] == __version__


# --- what helm says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", scenarios())
def test_lint_has_no_objection(chart: Chart, scenario: str) -> None:
    linted = chart.run("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{scenario}-values.yaml"))

    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("scenario", scenarios())
def test_the_oldest_helm_renders_the_same(chart: Chart, chart_of_old: Chart, scenario: str) -> None:
    def sorted_(objects: list[Object]) -> list[str]:
        return sorted(json.dumps(item, sort_keys=True) for item in objects)

    assert sorted_(chart_of_old.render(scenario)) == sorted_(chart.render(scenario))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (['image.repository=""'], "/image/repository"),
        (['image.repository="registry.example.com/anomalyd:1.0"'], "/image/repository"),
        (['image.digest="sha256:beef"'], "/image/digest"),
        (["replicas=3"], "'replicas' not allowed"),
        (["daemon.replica=3"], "'replica' not allowed"),
        (["daemon.replicas=-1"], "/daemon/replicas"),
        (['daemon.replicas="three"'], "/daemon/replicas"),
        (['daemon.pod.nodeSelectors={"a": "b"}'], "'nodeSelectors' not allowed"),
        (['metrics.monitor="serviceMonitor"'], "/metrics/monitor"),
        (['metrics.interval="quarter"'], "/metrics/interval"),
        (['autoscaling.kind="vpa"'], "/autoscaling/kind"),
        (['autoscaling.kind="hpa"', "autoscaling.minReplicas=9"], "minReplicas (9) is more than maxReplicas (6)"),
        (["notifier.enabled=true", "config.alertmanager.urls=[]"], "config.alertmanager.urls names no Alertmanager"),
        (['fullnameOverride="Anomaly_d"'], "/fullnameOverride"),
        (['secrets.kafka="user"'], "/secrets/kafka"),
        (['secrets.kafka.name="user"'], "'secretName'"),
        (["config.kafka.bootstrap_servers=null"], "/config/kafka/bootstrap_servers"),
        (['config.kafka.group="g"'], "'group' not allowed"),
        (['config.kafka.sasl_password="hunter2"'], "'sasl_password' not allowed"),
        (['config.kafka.ssl_keyfile_password="hunter2"'], "'ssl_keyfile_password' not allowed"),
        (['config.kafka.sasl_oauth_client_secret="hunter2"'], "'sasl_oauth_client_secret' not allowed"),
        (["config.streams=[]"], "/config/streams"),
        (['config.streams=[{"name": "a", "topics": ["t"], "format": "csv"}]'], "/config/streams/0/format"),
        (["config.http.port=70000"], "/config/http/port"),
        (["config.http.port=0"], "/config/http/port"),
        (["config.retrain.http.port=0"], "/config/retrain/http/port"),
        (['config.alertmanager.http.host="127.0.0.1"'], "/config/alertmanager/http/host"),
        (['config.http.host="localhost"'], "/config/http/host"),
        (['config.alertmanager.urls=["http://u:hunter2@am:9093"]'], "/config/alertmanager/urls/0"),
        (['config.remote_write.url="https://u:hunter2@prometheus/api/v1/write"'], "/config/remote_write/url"),
        (["config.alert={}"], "'alert' not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_cannot_be_meant_are_refused_with_their_place(chart: Chart, settings: list[str], word: str) -> None:
    refused = chart.template("minimal", settings)

    assert refused.returncode != 0
    assert word in refused.stderr
    assert "hunter2" not in refused.stderr


def test_without_values_it_says_what_is_needed(chart: Chart) -> None:
    refused = chart.run("template", "test", str(CHART))

    assert refused.returncode != 0
    for word in ("/image/repository", "'bootstrap_servers'", "'streams'"):
        assert word in refused.stderr


def test_the_package_carries_what_it_needs_and_nothing_of_the_tests(chart: Chart, tmp_path: Path) -> None:
    assert chart.run("package", str(CHART), "--destination", str(tmp_path)).returncode == 0

    with tarfile.open(next(tmp_path.glob("*.tgz"))) as package:
        names = {name.removeprefix("anomalyd/") for name in package.getnames()}
    assert names >= {"Chart.yaml", "README.md", "files/rules.yaml", "templates/NOTES.txt", "values.schema.json", "values.yaml"}
    assert names >= {f"files/dashboards/{file.name}" for file in (CHART / "files/dashboards").glob("*.json")}
    assert not [name for name in names if name.startswith("ci/") or name.endswith(".template")]


# --- what is true of all that comes out -----------------------------------------------------------------------------


def test_objects_satisfy_the_schemas_of_kubernetes(renders: list[list[Object]]) -> None:
    """Strictly, so that a misspelt field is found. Custom resources are up to the definitions in the control plane."""
    seen = set()
    for item in itertools.chain.from_iterable(renders):
        text = json.dumps(item, sort_keys=True)
        if item["kind"] not in ALL_CUSTOM and text not in seen:
            seen.add(text)
            kubernetes_validate.validate(item, "1.37", strict=True)
    assert len(seen) > 40


def test_names_are_unique_namespaced_and_short(renders: list[list[Object]]) -> None:
    for objects in renders:
        names = [(item["kind"], item["metadata"]["name"]) for item in objects]
        assert len(set(names)) == len(names)
        for item in objects:
            assert len(item["metadata"]["name"]) <= 52
            if item["metadata"].get("labels"):
                assert item["metadata"]["namespace"] == "monitoring"


def test_long_names_keep_their_suffixes(chart: Chart) -> None:
    """A StatefulSet's revision, a hyphen and ten characters, is a label of its pods."""
    objects = chart.render("full", f"nameOverride={json.dumps('n' * 40)}", f"fullnameOverride={json.dumps('f' * 40)}")

    assert max(len(item["metadata"]["name"]) for item in objects) <= 52


def test_pods_satisfy_the_restricted_standard(renders: list[list[Object]]) -> None:
    for objects in renders:
        for _, template in _pods(objects):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
            assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} <= {
                "configMap",
                "emptyDir",
                "secret",
                "persistentVolumeClaim",
            }
            for container in (*spec["containers"], *spec.get("initContainers", ())):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["readOnlyRootFilesystem"] is True
                assert security["capabilities"] == {"drop": ["ALL"]}


def test_mounts_have_volumes_and_volumes_mounts(renders: list[list[Object]]) -> None:
    for objects in renders:
        claims = {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
        for _, template in _pods(objects):
            spec = template["spec"]
            volumes = [volume["name"] for volume in spec["volumes"]]
            containers = [*spec["containers"], *spec.get("initContainers", ())]
            mounts = [mount for container in containers for mount in container.get("volumeMounts", ())]
            assert len(set(volumes)) == len(volumes)
            assert {mount["name"] for mount in mounts} == set(volumes)
            paths = [mount["mountPath"] for mount in _container(template)["volumeMounts"]]
            assert len(set(paths)) == len(paths)
            assert not [(a, b) for a in paths for b in paths if a != b and b.startswith(f"{a}/")], (
                "no mount point can be made in a read-only one"
            )
            for volume in spec["volumes"]:
                if claim := volume.get("persistentVolumeClaim"):
                    assert claim["claimName"] in claims


def test_selectors_find_their_pods_and_no_others(renders: list[list[Object]]) -> None:
    def finds(selector: Mapping[str, str], template: Object) -> bool:
        labels: Mapping[str, str] = template["metadata"]["labels"]
        return selector.items() <= labels.items()

    for objects in renders:
        pods = {item["metadata"]["name"]: template for item, template in _pods(objects)}
        for item, template in _pods(objects):
            if item["kind"] != "Job":
                assert finds(item["spec"]["selector"]["matchLabels"], template)
        for item in objects:
            if item["kind"] == "Service":
                assert [name for name, template in pods.items() if finds(item["spec"]["selector"], template)] == [item["metadata"]["name"]]
            if item["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
                selector = item["spec"].get("selector") or item["spec"]["podSelector"]
                assert [name for name, template in pods.items() if finds(selector["matchLabels"], template)] == [item["metadata"]["name"]]


def test_every_process_has_its_monitor(renders: list[list[Object]]) -> None:
    found = 0
    for objects in renders:
        processes = {item["metadata"]["name"]: template for item, template in _pods(objects) if item["kind"] != "Job"}
        services = {item["metadata"]["name"]: item for item in objects if item["kind"] == "Service"}
        assert services.keys() == processes.keys()
        monitors = {item["metadata"]["name"]: item for item in objects if item["kind"] in {"ServiceMonitor", "PodMonitor"}}
        if monitors:
            found += 1
            assert monitors.keys() == processes.keys()
        for name, monitor in monitors.items():
            (endpoint,) = monitor["spec"]["endpoints" if monitor["kind"] == "ServiceMonitor" else "podMetricsEndpoints"]
            targets = services if monitor["kind"] == "ServiceMonitor" else processes
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            assert [other for other, target in targets.items() if wanted <= target["metadata"]["labels"].items()] == [name]
            assert services[name]["spec"]["ports"][0]["name"] == endpoint["port"]
            assert _container(processes[name])["ports"][0]["name"] == endpoint["port"]
    assert found > 5


def test_what_scales_the_daemon_owns_its_replicas(renders: list[list[Object]]) -> None:
    """An upgrade would undo the autoscaler's work otherwise."""
    for objects in renders:
        scalers = [item for item in objects if item["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}]
        daemon = one(objects, "StatefulSet")
        assert len(scalers) <= 1
        assert ("replicas" in daemon["spec"]) == (not scalers)
        for scaler in scalers:
            assert scaler["spec"]["scaleTargetRef"]["name"] == daemon["metadata"]["name"]


def test_hooks_need_nothing_that_comes_later(renders: list[list[Object]]) -> None:
    """The topics job runs before the release's objects are there."""
    found = 0
    for objects in renders:
        hooks = {
            (item["kind"], item["metadata"]["name"]): item
            for item in objects
            if "pre-install" in item["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        }
        created = {(item["kind"], item["metadata"]["name"]) for item in objects}
        for job in [item for item in hooks.values() if item["kind"] == "Job"]:
            found += 1
            spec = job["spec"]["template"]["spec"]
            needs = {("ConfigMap", volume["configMap"]["name"]) for volume in spec["volumes"] if "configMap" in volume}
            needs |= {("ConfigMap", source["configMapRef"]["name"]) for source in _container(job["spec"]["template"]).get("envFrom", ())}
            needs.add(("ServiceAccount", spec["serviceAccountName"]))
            weight = int(job["metadata"]["annotations"]["helm.sh/hook-weight"])
            for need in needs & created:
                assert int(hooks[need]["metadata"]["annotations"]["helm.sh/hook-weight"]) < weight
            policies = {item["metadata"]["name"] for item in objects if item["kind"] == "NetworkPolicy"}
            if policies:
                assert ("NetworkPolicy", job["metadata"]["name"]) in hooks
    assert found > 5


# --- the image and the process --------------------------------------------------------------------------------------


def _settings(objects: Sequence[Object], template: Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What anomalyd makes of a pod's configuration and environment, with a file for each that a Secret would bring."""
    spec, container = template["spec"], _container(template)
    (config,) = [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "config"]
    text = one(objects, "ConfigMap", config)["data"]["config.yaml"]
    for path in re.findall(r"/etc/anomalyd-secrets/\S+", text):
        mounted = [mount["mountPath"] for mount in container["volumeMounts"] if path.startswith(mount["mountPath"])]
        assert mounted, f"{path} is mounted nowhere"
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("secret")
    (tmp_path / "config.yaml").write_text(text.replace("/etc/anomalyd-secrets/", f"{tmp_path}/etc/anomalyd-secrets/"))
    for variable in container.get("env", ()):
        value = (
            variable.get("value")
            or {"metadata.name": f"{template['metadata']['labels']['app.kubernetes.io/instance']}-0"}[
                variable["valueFrom"]["fieldRef"]["fieldPath"]
            ]
        )
        if variable["name"].startswith("ANOMALYD_"):
            monkeypatch.setenv(variable["name"], value)
    return load(tmp_path / "config.yaml")


@pytest.mark.parametrize("scenario", scenarios())
def test_anomalyd_takes_the_configuration_that_pods_get(
    chart: Chart, scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, numbers included, which templates like to turn into 1e+06."""
    objects = chart.render(scenario)
    for item, template in _pods(objects):
        with monkeypatch.context() as environment:
            settings = _settings(objects, template, tmp_path, environment)
        given = yaml.safe_load((CHART / "ci" / f"{scenario}-values.yaml").read_text("utf-8"))["config"]
        assert settings.max_series == given.get("max_series", 1_000_000)
        assert [stream.name for stream in settings.streams] == [stream["name"] for stream in given["streams"]]
        static = settings.kafka.group_instance_id
        assert (static is not None) == (item["kind"] == "StatefulSet"), "only the daemon is a member of the group"
        if item["kind"] == "StatefulSet":
            assert settings.http.port == _container(template)["ports"][0]["containerPort"]
        if item["metadata"]["name"].endswith("-notifier"):
            assert settings.alertmanager.http.port == _container(template)["ports"][0]["containerPort"]
        if item["metadata"]["name"].endswith("-retrainer"):
            assert settings.retrain.http.port == _container(template)["ports"][0]["containerPort"]
            assert str(settings.retrain.folder) in [mount["mountPath"] for mount in _container(template)["volumeMounts"]]


@pytest.mark.parametrize(
    "component",
    [
        "daemon",
        "retrainer",
        "topics",
        "notifier",
    ],
)
def test_pods_run_commands_that_there_are(chart: Chart, component: str) -> None:
    (template,) = [
        template
        for _, template in _pods(chart.render("full"))
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    command: Any = typer.main.get_command(app)
    words = list(_container(template)["args"])

    assert 'ENTRYPOINT ["anomalyd"]' in DOCKERFILE
    assert "command" not in _container(template)
    assert words[-2:] == ["-c", "/etc/anomalyd/config.yaml"]
    for word in words[:-2]:
        command = command.commands[word]


def test_pods_run_as_the_image_does(chart: Chart) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    cache = re.search(r"NUMBA_CACHE_DIR=(\S+)", DOCKERFILE)
    port = re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert cache is not None
    assert port is not None
    template = one(chart.render("minimal"), "StatefulSet")["spec"]["template"]
    (copying,) = template["spec"]["initContainers"]
    environment = {variable["name"]: variable.get("value") for variable in _container(template)["env"]}

    security = template["spec"]["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert _container(template)["ports"][0]["containerPort"] == int(port[1])
    # A home that can be written would be taken for compiled code before the image's own, and every start would compile.
    assert not {"HOME", "XDG_CACHE_HOME"} & environment.keys()
    assert copying["command"][-2:] == [f"{cache[1]}/.", environment["NUMBA_CACHE_DIR"]]
    assert environment["NUMBA_CACHE_DIR"] in [mount["mountPath"] for mount in copying["volumeMounts"]]
    assert copying["image"] == _container(template)["image"]


# --- single values --------------------------------------------------------------------------------------------------


def _checksums(objects: Sequence[Object]) -> dict[str, str]:
    return {item["metadata"]["name"]: template["metadata"]["annotations"]["checksum/config"] for item, template in _pods(objects)}


def test_a_pod_restarts_for_that_of_the_configuration_which_it_acts_on(chart: Chart) -> None:
    before = _checksums(chart.render("full"))

    def restarted(setting: str) -> set[str]:
        after = _checksums(chart.render("full", setting))
        return {name for name in before if after[name] != before[name] and not name.endswith("-topics")}

    assert restarted("config.max_series=5000") == {"test-anomalyd", "test-anomalyd-retrainer", "test-anomalyd-notifier"}
    assert restarted("config.retrain.interval_s=3600") == {"test-anomalyd-retrainer"}
    assert restarted("daemon.replicas=5") == set()


def test_network_policies_open_the_ports_of_the_configuration(chart: Chart) -> None:
    def ports(objects: Sequence[Object], name: str) -> set[int]:
        policy = one(objects, "NetworkPolicy", name)
        return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}

    brokers = json.dumps("a.kafka:9092,[fd00::1]:9093,b.kafka:9092")
    assert ports(chart.render("hpa", f"config.kafka.bootstrap_servers={brokers}"), "test-anomalyd") == {53, 9092, 9093}
    full = chart.render("full", "networkPolicy.kafkaPorts=[9095]", "networkPolicy.extraEgress=[]")
    assert ports(full, "test-anomalyd-topics") == {53, 9095}
    assert ports(full, "test-anomalyd") == {53, 9095, 9090}
    assert ports(full, "test-anomalyd-notifier") == {53, 9095, 9093, 443}
    through = chart.render(
        "full",
        "networkPolicy.extraEgress=[]",
        'config.alertmanager.proxy_url="http://proxy.example.com:3129"',
        'config.kafka.sasl_oauth_token_url="https://login.example.com/token"',
    )
    assert ports(through, "test-anomalyd-notifier") == {53, 9093, 9094, 3129, 443}
    assert ports(through, "test-anomalyd-topics") == {53, 9093, 9094, 443}


def test_a_gpu_is_asked_for_and_insisted_on(chart: Chart) -> None:
    def daemon(*settings: str) -> Object:
        return _container(one(chart.render("gpu", *settings), "StatefulSet")["spec"]["template"])

    assert daemon()["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert {"name": "ANOMALYD_DEVICE", "value": "cuda"} in daemon()["env"]
    assert "ANOMALYD_DEVICE" not in [variable["name"] for variable in daemon('config.device="auto"')["env"]]


def test_lag_of_every_topic_scales(chart: Chart) -> None:
    triggers = one(chart.render("keda"), "ScaledObject")["spec"]["triggers"]

    assert [(trigger["metadata"]["topic"], trigger["metadata"]["consumerGroup"]) for trigger in triggers] == [
        ("tenant-a", "fleet"),
        ("tenant-b", "fleet"),
    ]
    assert {trigger["metadata"]["lagThreshold"] for trigger in triggers} == {"100000"}


def test_hatches_lead_into_every_pod_and_merge_with_a_components_own(chart: Chart) -> None:
    for item, template in _pods(chart.render("full")):
        names = [variable["name"] for variable in _container(template)["env"]]
        assert "ANOMALYD_KAFKA__CLIENT_ID" in names
        assert ("ANOMALYD_LOG__LEVEL" in names) == (item["kind"] == "StatefulSet")
        assert template["metadata"]["labels"]["example.com/tier"] == "monitoring"
        assert template["spec"]["initContainers"][0]["name"] == "before"
        assert {"name": "extra", "mountPath": "/extra"} in _container(template)["volumeMounts"]


def test_rules_and_dashboards_are_those_that_ship(chart: Chart) -> None:
    objects = chart.render("full")
    wanted = yaml.safe_load((CHART / "files/rules.yaml").read_text("utf-8").replace("docs/runbooks/", "https://wiki.example.com/anomalyd/"))
    dashboards = {file.name: file.read_text("utf-8") for file in (CHART / "files/dashboards").glob("*.json")}
    labelled = [item for item in objects if item["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]

    assert one(objects, "PrometheusRule")["spec"] == wanted
    assert {name: json.loads(text) for item in labelled for name, text in item["data"].items()} == {
        name: json.loads(text) for name, text in dashboards.items()
    }


def test_https_is_probed_and_scraped_where_the_process_serves_it(chart: Chart) -> None:
    settings = ('metrics.monitor="PodMonitor"', "retrainer.enabled=true", 'config.http={"tls_certfile": "/a", "tls_keyfile": "/b"}')
    objects = list(yaml.safe_load_all(chart.template("minimal", settings, "--skip-schema-validation").stdout))

    for kind, name, scheme in (("StatefulSet", "test-anomalyd", "https"), ("Deployment", "test-anomalyd-retrainer", "http")):
        container = _container(one(objects, kind, name)["spec"]["template"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["scheme"] == scheme.upper()
        assert one(objects, "PodMonitor", name)["spec"]["podMetricsEndpoints"][0]["scheme"] == scheme


def test_a_token_goes_to_who_asks_for_it_and_never_in_clear_to_the_others(chart: Chart) -> None:
    endpoint = 'metrics.endpoint={"authorization": {"type": "Bearer"}, "tlsConfig": {"serverName": "a"}}'

    def proofs(*settings: str) -> list[set[str]]:
        given = ('metrics.monitor="ServiceMonitor"', "retrainer.enabled=true", endpoint, *settings)
        objects = list(yaml.safe_load_all(chart.template("minimal", given, "--skip-schema-validation").stdout))
        names = ("test-anomalyd", "test-anomalyd-retrainer")
        monitors = [one(objects, "ServiceMonitor", name)["spec"]["endpoints"][0] for name in names]
        return [monitor.keys() & {"authorization", "tlsConfig"} for monitor in monitors]

    secured = 'config.http={"tls_certfile": "/a", "tls_keyfile": "/b", "token_file": "/c"}'
    assert proofs(secured) == [{"authorization", "tlsConfig"}, set()]
    assert proofs() == [{"authorization"}, {"authorization"}]  # of a proxy in front


def test_runbooks_are_found_with_and_without_a_slash(chart: Chart) -> None:
    objects = chart.render("full", 'metrics.rules.runbooks="https://wiki.example.com/anomalyd"')
    rules = [rule for group in one(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]

    assert "https://wiki.example.com/anomalyd/AnomalydDown.md" in [rule.get("annotations", {}).get("runbook_url") for rule in rules]


def test_notes_say_what_is_next(chart: Chart) -> None:
    def notes(scenario: str) -> str:
        told = chart.run(
            "install",
            "test",
            str(CHART),
            "--namespace",
            "monitoring",
            "--values",
            str(CHART / "ci" / f"{scenario}-values.yaml"),
            "--dry-run=client",
        )
        assert told.returncode == 0, told.stderr
        return told.stdout.partition("NOTES:")[2]

    assert "rollout status statefulset/test-anomalyd" in notes("minimal")
    assert "Alerts stay in Kafka" in notes("minimal")
    assert "Nobody is told when anomalyd itself fails" in notes("minimal")
    assert "Alerts stay in Kafka" not in notes("full")
    assert "anomalyd topics plan" in notes("edge")


# --- what a security team runs --------------------------------------------------------------------------------------

CHECKOV = "checkov==3.3.30"
EXEMPT = {
    "CKV_K8S_11": "no limit on processors: throttling would have heartbeats wait, and partitions would move",
}


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first time it is fetched
def test_checkov_has_no_objection(chart: Chart, tmp_path: Path) -> None:
    """With what a cluster's owner decides decided: a digest, a network policy. An environment of its own: it pins a hundred packages."""
    settings = (f'image.digest="sha256:{"0" * 64}"', "networkPolicy.enabled=true")
    for scenario in scenarios():
        (tmp_path / f"{scenario}.yaml").write_text(chart.template(scenario, settings).stdout)
    command = [
        str(Path(sys.executable).with_name("uv")),
        "tool",
        "run",
        "--quiet",
        "--python",
        sys.executable,
        "--from",
        CHECKOV,
        "checkov",
    ]
    checked = subprocess.run(
        [*command, "--directory", str(tmp_path), "--framework", "kubernetes", "--skip-download", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    if not checked.stdout.strip():
        part("checkov")  # skips loudly where there is no network, and fails in CI
        pytest.fail(f"uv could not fetch {CHECKOV}: {checked.stderr}")
    results = json.loads(checked.stdout)
    failed = {(failure["check_id"], failure["check_name"], failure["resource"]) for failure in results["results"]["failed_checks"]}

    assert results["summary"]["passed"] > 500
    assert {failure for failure in failed if failure[0] not in EXEMPT} == set()
    assert {failure[0] for failure in failed} == EXEMPT.keys(), "an exemption that nothing needs"
