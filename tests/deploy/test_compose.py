"""The compose stack, as far as it can be proved without a container engine.

Its parts read their configurations, where they are here; what it mounts, waits for and addresses exists. No test starts the containers.
"""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalyd.settings import load
from tests.support.kafka import jars, missing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
STACK: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]


def mounts() -> list[tuple[str, str]]:
    """Service and source of everything that is mounted."""
    return [(name, volume.partition(":")[0]) for name, service in SERVICES.items() for volume in service.get("volumes", ())]


@pytest.mark.parametrize(("service", "source"), mounts())
def test_what_is_mounted_exists(service: str, source: str) -> None:
    if source.startswith("."):
        assert (FOLDER / source).exists(), f"{service} mounts it"
    else:
        assert source in STACK["volumes"], f"{service} uses it"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_are_of_this_host_alone(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert tag != "latest"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_waited_for_can_come(name: str) -> None:
    waits = SERVICES[name].get("depends_on", {})
    for other, how in waits.items() if isinstance(waits, dict) else [(other, {}) for other in waits]:
        assert how.get("condition") != "service_healthy" or "healthcheck" in SERVICES[other]
        assert how.get("condition") != "service_completed_successfully" or "restart" not in SERVICES[other]


def test_every_address_is_a_service_that_listens_there() -> None:
    telegraf = tomllib.loads((FOLDER / "telegraf.conf").read_text())["outputs"]["kafka"][0]
    settings = load(FOLDER / "anomalyd.yaml")
    listeners = re.findall(r"INSIDE://(\w+:\d+)", SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"])
    assert telegraf["brokers"] == [settings.kafka.bootstrap_servers] == listeners

    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    assert {target.partition(":")[0] for target in targets} <= {*SERVICES, "localhost"}
    assert {f"anomalyd:{settings.http.port}", f"notify:{settings.alertmanager.http.port}"} <= targets
    assert {url.removeprefix("http://") for url in settings.alertmanager.urls} == {"alertmanager:9093"}


def test_the_input_that_is_made_is_the_one_that_is_written_and_read() -> None:
    telegraf = tomllib.loads((FOLDER / "telegraf.conf").read_text())["outputs"]["kafka"][0]
    made = SERVICES["input"]["command"][SERVICES["input"]["command"].index("--topic") + 1]
    (stream,) = load(FOLDER / "anomalyd.yaml").streams

    assert (made,) == stream.topics == (telegraf["topic"],)
    assert (telegraf["data_format"], stream.format) == ("json", "telegraf-json")


@pytest.mark.parametrize(
    ("tool", "arguments", "file"),
    [("promtool", ["check", "config", "--syntax-only"], "prometheus.yml"), ("amtool", ["check-config"], "alertmanager.yml")],
)
def test_parts_read_their_configuration(tool: str, arguments: list[str], file: str) -> None:
    if (found := shutil.which(tool)) is None:
        pytest.skip(f"no {tool}")
    subprocess.run([found, *arguments, str(FOLDER / file)], check=True, capture_output=True, timeout=60)


@pytest.mark.real_kafka
def test_kafka_takes_its_environment(tmp_path: Path) -> None:
    """The image makes properties of KAFKA_ variables; a real one formats its storage by them, which reads them all."""
    if lacking := missing():
        pytest.fail(f"no real Kafka: install {lacking}", pytrace=False)
    environment = SERVICES["kafka"]["environment"] | {"KAFKA_LOG_DIRS": tmp_path / "data"}
    properties = tmp_path / "server.properties"
    properties.write_text(
        "".join(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}\n" for name, value in environment.items())
    )
    command = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*", "kafka.tools.StorageTool", "format"]
    subprocess.run([*command, "-t", "abcdefghijklmnopqrstuv", "-c", str(properties)], check=True, capture_output=True, timeout=60)

    assert (tmp_path / "data" / "meta.properties").exists()
