"""The files of ``compose/``, as far as they can be checked without a container engine."""

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rollcall.node.settings import TABLE, load, sample

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
FILES = {"compose.yaml": 3, "compose-5.yaml": 5}
NAMES = {setting.env for setting in TABLE}


def composed(file: str) -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / file).read_text(encoding="utf-8"))


def image_settings() -> dict[str, str]:
    """The variables that the image sets."""
    words = (COMPOSE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").split()
    return dict(word.split("=", 1) for word in words if word.startswith("ROLLCALL_") and "=" in word)


@pytest.mark.parametrize(("file", "nodes"), FILES.items())
def test_a_compose_file_has_so_many_nodes(file: str, nodes: int):
    assert list(composed(file)["services"]) == [f"n{i}" for i in range(1, nodes + 1)]


@pytest.mark.parametrize("file", FILES)
def test_every_variable_is_a_setting(file: str):
    used = {name for service in composed(file)["services"].values() for name in service["environment"]}

    assert used - NAMES == set()
    assert set(image_settings()) - NAMES == set()


@pytest.mark.parametrize(("file", "nodes"), FILES.items())
def test_every_node_would_start_and_all_would_agree(file: str, nodes: int):
    services = composed(file)["services"]
    settings = {name: load([], {**image_settings(), **service["environment"]}) for name, service in services.items()}

    assert [s.node_id for s in settings.values()] == list(services)
    assert all(len(s.members) == nodes for s in settings.values())
    assert all(s.agreement() == settings["n1"].agreement() for s in settings.values())


@pytest.mark.parametrize("file", FILES)
def test_nodes_are_reached_at_their_names_and_at_ports_of_this_machine_alone(file: str):
    services = composed(file)["services"]
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
    data = composed(file)
    volumes = [service["volumes"][0].split(":") for service in data["services"].values()]

    assert [name for name, _ in volumes] == list(data["volumes"])
    assert all(image_settings()["ROLLCALL_DATA_DIR"].startswith(target) for _, target in volumes)


def test_the_image_runs_as_nobody_in_particular_and_is_watched():
    text = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")

    assert "\nUSER rollcall\n" in text
    assert "/healthz" in text
    assert 'ENTRYPOINT ["rollcall-node"]' in text
    for copied in ("requirements.lock", "pyproject.toml", "README.md", "LICENSE", "replication", "cluster", "node"):
        assert (COMPOSE.parent / copied).exists(), copied
        assert f"!{copied}" in (COMPOSE.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()


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
    assert float(service["TimeoutStopSec"]) > load(["--config", str(COMPOSE / "node.toml")], {}).drain_timeout_s
