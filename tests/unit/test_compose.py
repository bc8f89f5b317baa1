"""The files of ``compose/``, as far as they can be checked without a container engine."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.certified import credentials_of
from rollcall.cluster.commands import serving
from rollcall.cluster.members import urls_from
from rollcall.node.settings import TABLE, load
from rollcall.node.settings.__main__ import sample

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
FILES = {"compose.yaml": 3, "compose-5.yaml": 5}
NAMES = {setting.env for setting in TABLE}
TLS = "/etc/rollcall/tls"


def composed(file: str) -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / file).read_text(encoding="utf-8"))


def nodes_of(file: str) -> dict[str, Any]:
    """The services that are nodes."""
    return {name: service for name, service in composed(file)["services"].items() if name[1:].isdigit()}


def image_settings() -> dict[str, str]:
    """The variables that the image sets."""
    words = (COMPOSE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").split()
    return dict(word.split("=", 1) for word in words if word.startswith("ROLLCALL_") and "=" in word)


@pytest.mark.parametrize(("file", "nodes"), FILES.items())
def test_a_compose_file_has_so_many_nodes(file: str, nodes: int):
    assert list(nodes_of(file)) == [f"n{i}" for i in range(1, nodes + 1)]


@pytest.mark.parametrize("file", FILES)
def test_every_variable_is_a_setting(file: str):
    used = {name for service in nodes_of(file).values() for name in service["environment"]}

    assert used - NAMES == set()
    assert set(image_settings()) - NAMES == set()


@pytest.mark.parametrize(("file", "nodes"), FILES.items())
def test_every_node_would_start_and_all_would_agree(file: str, nodes: int):
    services = nodes_of(file)
    settings = {name: load([], {**image_settings(), **service["environment"]}) for name, service in services.items()}

    assert [s.node_id for s in settings.values()] == list(services)
    assert all(len(s.members) == nodes for s in settings.values())
    assert all(s.agreement() == settings["n1"].agreement() for s in settings.values())


@pytest.mark.parametrize("file", FILES)
def test_nodes_are_reached_at_their_names_and_at_ports_of_this_machine_alone(file: str):
    services = nodes_of(file)
    published = [service["ports"][0].split(":") for service in services.values()]

    assert [host for host, _, _ in published] == ["127.0.0.1"] * len(services)
    assert [port for _, port, _ in published] == [str(8500 + i) for i in range(len(services))]
    for name, service in services.items():
        settings = load([], {**image_settings(), **service["environment"]})
        assert settings.http_advertise == f"http://{name}:{settings.http_port}"
        assert settings.raft_advertise == f"{name}:{settings.raft_port}"
        assert service["ports"][0].endswith(f":{settings.http_port}")


@pytest.mark.parametrize("file", FILES)
def test_every_node_keeps_its_data_in_a_volume_of_its_own(file: str):
    volumes = [service["volumes"][0].split(":") for service in nodes_of(file).values()]

    assert [name for name, _ in volumes] == list(nodes_of(file))
    assert all(image_settings()["ROLLCALL_DATA_DIR"].startswith(target) for _, target in volumes)
    assert list(composed(file)["volumes"]) == [*nodes_of(file), "tls", "ca"]


@pytest.mark.parametrize("file", FILES)
def test_the_nodes_speak_tls_with_certificates_that_a_service_makes_before_they_start(file: str, tmp_path: Path):
    """Its very command is run here, with another place for the files."""
    certs = composed(file)["services"]["certs"]
    command = [sys.executable, "-m", "rollcall.node", *(word.replace(TLS, str(tmp_path)) for word in certs["command"])]

    for _ in range(2):  # the second time it renews
        subprocess.run(command, check=True, timeout=30, stdout=subprocess.DEVNULL)

    for name, service in nodes_of(file).items():
        settings = load([], {**image_settings(), **service["environment"]})
        paths = [Path(path) for path in (settings.tls_cert, settings.tls_key, settings.tls_ca)]
        assert [path.name for path in paths] == ["cert.pem", "key.pem", "ca.pem"]
        credentials_of(tmp_path / paths[0].parent.relative_to(TLS), settings.cluster_id, name)
        assert service["depends_on"] == {"certs": {"condition": "service_completed_successfully"}}
        assert not settings.insecure


@pytest.mark.parametrize("file", FILES)
def test_no_node_sees_the_key_of_the_ca(file: str):
    certs = composed(file)["services"]["certs"]

    assert certs["volumes"] == [f"tls:{TLS}", f"ca:{TLS}/ca"]
    assert certs["restart"] == "no"
    for service in nodes_of(file).values():
        assert [volume for volume in service["volumes"] if "ca:" in volume] == []
        assert f"tls:{TLS}:ro" in service["volumes"]
    # A new volume takes its owner from the folder of the image that it is mounted on.
    assert f"install -d -o rollcall -m 0700 {TLS} {TLS}/ca" in (COMPOSE / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
def test_the_gateway_asks_every_node_and_is_reached_from_this_machine_alone(file: str):
    gateway = composed(file)["services"]["gateway"]
    given = serving.gateway.make_context("gateway", gateway["command"][1:]).params

    assert [*gateway["entrypoint"], gateway["command"][0]] == ["rollcall", "gateway"]
    assert urls_from(gateway["environment"]["ROLLCALL_NODES"]) == tuple(
        f"http://{name}:8500" for name in nodes_of(file)
    )
    assert gateway["ports"] == [f"127.0.0.1:8080:{given['port']}"]
    assert given["host"] == "0.0.0.0"
    assert f"127.0.0.1:{given['port']}/-/healthz" in " ".join(gateway["healthcheck"]["test"])


def test_the_image_runs_as_nobody_in_particular_and_is_watched():
    text = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")

    assert "\nUSER rollcall\n" in text
    assert "/healthz" in text
    assert 'ENTRYPOINT ["rollcall-node"]' in text
    for copied in (
        "requirements.lock",
        "requirements-node.lock",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "replication",
        "cluster",
        "node",
    ):
        assert (COMPOSE.parent / copied).exists(), copied
        assert f"!{copied}" in (COMPOSE.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_the_image_installs_nothing_that_is_not_pinned_by_its_hash():
    """All but the wheel of this project, which is made from what was copied; without a network afterwards."""
    commands = (COMPOSE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"pip (?:install|wheel) [^&\n]*", commands)

    assert len(calls) == 4
    for call in calls:
        assert ("--require-hashes" in call) != ("--no-deps" in call), call
    assert [call for call in calls if " wheel " in call and "--no-build-isolation" not in call] == []


def test_the_builders_lines_are_found_in_the_lock():
    """The Dockerfile's own command, since no container engine is at hand."""
    commands = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")
    script = re.search(r"sed -n '([^']+)' requirements.lock", commands)
    assert script is not None
    found = subprocess.run(
        ["sed", "-n", script[1], COMPOSE.parent / "requirements.lock"], capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert found[0].startswith("setuptools==")
    assert len(found) > 1
    assert all(line.startswith("    --hash=sha256:") for line in found[1:])


@pytest.mark.parametrize("file", FILES)
def test_no_container_can_take_all_memory_of_the_machine(file: str):
    for name, service in composed(file)["services"].items():
        assert service["mem_limit"] == "2g", name
        assert service["tmpfs"] == ["/tmp:size=1g"], name


def test_the_sample_file_is_the_one_made_of_the_table():
    shown = (COMPOSE / "node.toml").read_text(encoding="utf-8")

    assert shown == sample(), "renew it with: python -m rollcall.node.settings sample > compose/node.toml"


def test_the_service_unit_starts_the_node_with_the_sample_files_directory():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((COMPOSE / "rollcall-node.service").read_text(encoding="utf-8"))
    service = unit["Service"]

    assert service["ExecStart"] == "/opt/rollcall/bin/rollcall-node --config /etc/rollcall/node.toml"
    assert load(["--config", str(COMPOSE / "node.toml")], {}).data_dir == Path("/var/lib") / service["StateDirectory"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert TLS in (COMPOSE / "rollcall-node.service").read_text(encoding="utf-8")
    assert f'# tls_cert = "{TLS}/cert.pem"' in sample()
    assert float(service["TimeoutStopSec"]) > load(["--config", str(COMPOSE / "node.toml")], {}).drain_timeout_s


def test_the_service_unit_tries_for_ever_but_not_often_and_within_a_limit_of_memory():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((COMPOSE / "rollcall-node.service").read_text(encoding="utf-8"))

    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert 60 / float(unit["Service"]["RestartSec"]) <= 5
    assert unit["Service"]["MemoryMax"] == "2G"
