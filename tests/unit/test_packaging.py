"""What people forget: packages that are not listed, imports that point outwards, names that are not there."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("replication", "cluster", "node")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

MAY_IMPORT = {"replication": set[str](), "cluster": {"replication"}, "node": {"replication", "cluster"}}
VOCABULARY = {"errors", "records", "checks", "policies", "commands"}
"""What ``cluster`` may know of ``replication``: a service that installs the SDK gets no server code paths."""


def sources(room: str) -> list[Path]:
    return sorted(path for path in (REPOSITORY / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that ``path`` imports, ours as its path from the repository ("replication.records")."""
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, node.module or ""]).rstrip("."), node


def test_the_packages_listed_are_those_on_disk():
    folders = {path.parent.relative_to(REPOSITORY).parts for room in ROOMS for path in sources(room)}
    on_disk = {".".join(("rollcall", *parts)) for parts in folders}

    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_every_package_has_an_init_file():
    folders = {path.parent for room in ROOMS for path in sources(room)}

    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_room_says_that_it_is_typed():
    data = PYPROJECT["tool"]["setuptools"]["package-data"]

    assert data == {f"rollcall.{room}": ["py.typed"] for room in ROOMS}
    assert all((REPOSITORY / room / "py.typed").exists() for room in ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_inwards(room: str):
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} imports {name}"
        for path in sources(room)
        for name, node in imports(path)
        if (top := name.split(".")[0]) in ROOMS and top != room and top not in MAY_IMPORT[room]
    ]

    assert wrong == []


def test_the_cluster_knows_only_the_vocabulary_of_replication():
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} imports {name}"
        for path in sources("cluster")
        for name, node in imports(path)
        if name.split(".")[0] == "replication" and name.split(".")[1:2] not in [[word] for word in VOCABULARY]
    ]

    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_each_other_by_relative_imports_only(room: str):
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} imports {name}"
        for path in sources(room)
        for name, node in imports(path)
        if name.split(".")[0] == "rollcall" or (name.split(".")[0] in ROOMS and not getattr(node, "level", 0))
    ]

    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist(room: str):
    module = importlib.import_module(f"rollcall.{room}")

    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("module", ["rollcall.replication", "rollcall.cluster", "rollcall.cluster.cli"])
def test_the_sdk_brings_no_server(module: str):
    """In a process of its own: here, other tests have imported all of it."""
    server = ("pysyncobj", "flask", "waitress", "prometheus_client", "rollcall.node", "rollcall.replication.log")
    program = f"import sys, {module}; print(*[name for name in {server!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)

    assert shown.stdout.split() == []


def test_a_room_cannot_be_imported_under_its_bare_name():
    """That would make a second copy of every class in it."""
    command = [sys.executable, "-c", "import node.settings"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)

    assert "ImportError: attempted relative import beyond top-level package" in shown.stderr


def test_the_lock_file_pins_every_dependency_and_names_no_host():
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {wish.split(">")[0].split("=")[0].strip().lower() for wish in wanted}
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}

    assert names - pinned == set()
    assert [line for line in pins if "==" not in line] == []
    assert "://" not in text
    assert "pysyncobj==0.3.17" in pins
