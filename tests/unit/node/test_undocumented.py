"""waitress' inner names: the installed version is one that was read, and the table of names is true and complete."""

import ast
import importlib
import importlib.metadata
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollcall.replication import front
from rollcall.replication.front.undocumented import NAMES, VERSIONS

FRONT = Path(front.__file__).parent
MODULES = ("adjustments", "buffers", "channel", "parser", "receiver", "server", "task", "trigger", "utilities")
OURS = frozenset({"_close", "listen", "port", "start"})
"""Names of sockets and threads, and our own, that some class of waitress has as well."""


def class_of(name: str) -> type:
    module, _, found = name.rpartition(".")
    return getattr(importlib.import_module(f"waitress.{module}"), found)


def names_of(made: ast.ClassDef) -> Iterator[str]:
    """What a class defines: its methods, and the attributes of itself and of its instances."""
    for node in made.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    for node in ast.walk(made):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if isinstance(node.ctx, ast.Store) and node.value.id == "self":
            yield node.attr


def defined_by(module: str) -> dict[str, set[str]]:
    tree = ast.parse(inspect.getsource(importlib.import_module(f"waitress.{module}")))
    return {node.name: set(names_of(node)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def used_in(file: Path) -> set[str]:
    """Every attribute that a file reads, sets or defines."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        if isinstance(node, ast.ClassDef):
            used |= set(names_of(node))
            stated = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
            used |= {target.id for target in stated if isinstance(target, ast.Name)}
    return used


def test_the_installed_version_was_read():
    assert importlib.metadata.version("waitress") in VERSIONS


def test_the_project_asks_for_the_versions_that_were_read():
    project = tomllib.loads((FRONT.parents[1] / "pyproject.toml").read_text())["project"]
    asked = [wanted for group in project["optional-dependencies"].values() for wanted in group if "waitress" in wanted]

    assert {wanted.partition(",")[0] for wanted in asked} == {f"waitress>={VERSIONS[0]}"}


@pytest.mark.parametrize("name", NAMES)
def test_waitress_has_every_name_of_the_table(name: str):
    found = class_of(name)
    own = {each for parent in found.__mro__ for each in vars(parent)}
    for parent in found.__mro__[:-1]:
        own |= defined_by(parent.__module__.removeprefix("waitress.")).get(parent.__name__, set())

    assert set(NAMES[name]) - own == set()


def test_every_name_of_waitress_that_is_used_is_in_the_table():
    listed = {name for names in NAMES.values() for name in names} | OURS
    theirs = {name for module in MODULES for names in defined_by(module).values() for name in names}
    importing = [file for file in FRONT.glob("*.py") if "waitress" in file.read_text()]
    missing = {
        f"{file.name}: {name}"
        for file in importing
        for name in used_in(file)
        if name in theirs - listed and not name.startswith("__")
    }

    assert missing == set()
