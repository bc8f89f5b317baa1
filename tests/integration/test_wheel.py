"""The built wheel in an environment of its own: what people get who do not have this repository."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from harness.cluster import StartCluster
from harness.served import Served

pytestmark = [pytest.mark.integration, pytest.mark.clients]

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("replication", "cluster", "node")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files behind that a later one would pick up."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-deps", "--no-build-isolation", "-w", made, ".", cwd=source)
    return next(made.glob("*.whl"))


def versions(directory: Path) -> Path:
    """The lock file's versions without hashes, which pip would ask of the wheel as well."""
    lines = (REPOSITORY / "requirements.lock").read_text("utf-8").splitlines()
    path = directory / "constraints.txt"
    path.write_text("\n".join(line.rstrip("\\ ") for line in lines if "==" in line), "utf-8")
    return path


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = (path for room in ROOMS for kind in ("*.py", "py.typed") for path in (REPOSITORY / room).rglob(kind))

    assert names == {f"rollcall/{path.relative_to(REPOSITORY)}" for path in sources}


def test_the_node_and_the_commands_run_from_the_wheel(wheel: Path, tmp_path: Path):
    """With the extra [node] alone: nothing of the development tools may be needed."""
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    pip = (bin / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "-c", versions(tmp_path), f"{wheel}[node]", cwd=tmp_path)

    assert "--write-timeout-s" in run(bin / "rollcall-node", "--help", cwd=tmp_path)
    assert "rollcall-node 0." in run(bin / "rollcall-node", "--version", cwd=tmp_path)
    assert "instances" in run(bin / "rollcall", "--help", cwd=tmp_path)
    assert "rollcall, version 0." in run(bin / "rollcall", "--version", cwd=tmp_path)


def test_the_sdk_works_from_the_wheel_alone_and_brings_no_server(
    wheel: Path, tmp_path: Path, start_cluster: StartCluster
):
    """What a service's Dockerfile does: no extra. The README's example runs there, against a cluster elsewhere."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "-c", versions(tmp_path), wheel, cwd=tmp_path)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    example = readme.partition("<!-- services -->")[2].partition("<!-- /services -->")[0]
    cluster, users = start_cluster(3), Served("users")
    try:
        given = f"nodes, port = {','.join(cluster.urls)!r}, {users.port}\n"
        (tmp_path / "example.py").write_text(given + re.sub(r"^```.*$", "", example, flags=re.MULTILINE))
        assert run(python, "example.py", cwd=tmp_path) == "users GET /42\nTrue\nhttp://10.0.0.9:80\n"
    finally:
        users.close()
    cluster.wait_same()  # what was taken out at another node has come to this one
    assert cluster.ids(0, "users") == set()

    servers = ("dns", "flask", "prometheus_client", "pysyncobj", "waitress")
    look = f"import importlib.util as u; print([name for name in {servers} if u.find_spec(name)])"
    assert run(python, "-c", look, cwd=tmp_path) == "[]\n"
    assert "instances" in run(python.parent / "rollcall", "--help", cwd=tmp_path)
    refused = subprocess.run([python.parent / "rollcall", "gateway"], cwd=tmp_path, capture_output=True, check=False)
    assert refused.returncode != 0
    assert b"pip install 'rollcall-registry[gateway]'" in refused.stderr
