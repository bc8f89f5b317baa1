"""What people forget: packages that are not listed, imports that point outwards, names that are not there."""

import ast
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("replication", "cluster", "node")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

MAY_IMPORT = {"replication": set[str](), "cluster": {"replication"}, "node": {"replication"}}
VOCABULARY = {"api", "errors", "places", "records", "checks", "policies", "commands", "front"}
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


@pytest.mark.parametrize("module", ["rollcall.replication", "rollcall.cluster", "rollcall.cluster.commands.cli"])
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


LOCKS = {
    "requirements.lock": tuple(PYPROJECT["project"]["optional-dependencies"]),
    "requirements-node.lock": ("node", "tls", "grpc"),
    "requirements-up.lock": ("node",),
}


def pins(file: str) -> dict[str, str]:
    """The packages of a lock file, and the lines that say which version and files of each may be installed."""
    lines = (REPOSITORY / file).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return {canonical(line): line for line in lines if not line.startswith("#")}


def canonical(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def needed(requirements: Iterable[str]) -> set[str]:
    """What these name, and what that needs in turn, as it is installed here."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        wish = left.pop()
        name = canonical(wish.name)
        if name in found or (wish.marker is not None and not wish.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        left += [Requirement(text) for text in metadata.requires(wish.name) or () if "extra ==" not in text]
    return found


@pytest.mark.parametrize(("file", "extras"), LOCKS.items())
def test_a_lock_file_pins_everything_that_is_needed_by_version_and_hash_and_names_no_host(
    file: str, extras: tuple[str, ...]
):
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(wish for extra in extras for wish in project["optional-dependencies"][extra])]
    found = pins(file)

    assert needed(wanted) - found.keys() == set(), "make it anew with ./scripts/lock"
    assert [line for line in found.values() if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []
    assert "://" not in (REPOSITORY / file).read_text(encoding="utf-8")
    for wish in map(Requirement, wanted):
        version = found[canonical(wish.name)].partition("==")[2].split()[0]
        assert wish.specifier.contains(version), f"{file} has {version}, and pyproject.toml wants {wish}"


@pytest.mark.parametrize("file", ["requirements-node.lock", "requirements-up.lock"])
def test_nodes_get_what_is_tested(file: str):
    everything = pins("requirements.lock")

    assert {name: line for name, line in pins(file).items() if everything[name] != line} == {}


def test_a_node_is_set_up_with_little():
    assert len(pins("requirements-up.lock")) <= 24, "pip and the builder come beside them"


def test_what_builds_the_wheel_is_pinned():
    (builder,) = PYPROJECT["build-system"]["requires"]

    assert pins("requirements.lock")["setuptools"].startswith(f"{builder} ")


def set_up_with_pip(script: str, directory: Path) -> "subprocess.Popen[bytes]":
    """The setting up, in a copy of what it needs, with a pip that does what ``script`` says."""
    for name in ("scripts/_setup.py", "pyproject.toml", "requirements.lock", "requirements-up.lock"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, directory / name)
    python = directory / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    # Where the tests run in the background, a shell has them, and what they start, ignore Ctrl-C.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "import _setup; _setup.make_venv = lambda: None; _setup.main('all')"
    return subprocess.Popen([sys.executable, "-c", program], cwd=directory / "scripts", stderr=subprocess.PIPE)


def test_without_a_package_index_the_setting_up_says_what_to_do_in_a_sentence(tmp_path: Path):
    said = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'"
    with set_up_with_pip(f'echo "{said}"; exit 1', tmp_path) as process:
        assert process.stderr is not None
        assert process.wait(20.0) == 1
        last = process.stderr.read().decode().splitlines()[-1]

    assert last.startswith("[setup] no package index can be reached: ")
    assert (tmp_path / ".venv.log").read_text() == f"{said}\n"


def test_the_type_checker_is_shown_the_rooms_under_their_name_whenever_it_is_set_up(tmp_path: Path):
    """Also where all was installed before there were such links, and in place of one that is wrong."""
    types = tmp_path / ".venv" / "types" / "rollcall"
    with set_up_with_pip("exit 0", tmp_path) as process:
        assert process.wait(20.0) == 0
    assert {link.name: link.resolve() for link in types.iterdir()} == {room: tmp_path / room for room in ROOMS}
    (types / "node").unlink()
    (types / "cluster").unlink()
    (types / "cluster").symlink_to("elsewhere")

    program = [sys.executable, "-c", "import _setup; _setup.main('all')"]
    again = subprocess.run(program, cwd=tmp_path / "scripts", capture_output=True, text=True, check=True, timeout=20)
    assert again.stderr == "", "it is current"
    links = {link.name: link.readlink() for link in types.iterdir()}
    assert links == {room: Path("../../..") / room for room in ROOMS}, "which hold wherever the checkout is moved to"


def test_ctrl_c_ends_the_setting_up_at_once(tmp_path: Path):
    """With a pip that does not come to an end."""
    script = f"echo $$ > {tmp_path}/pid\necho Collecting everything\nexec sleep 60"
    with set_up_with_pip(script, tmp_path) as process:
        assert process.stderr is not None
        while b"everything" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20.0) == 130
        finally:
            process.kill()
        assert b"Traceback" not in process.stderr.read()

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
