"""What must stay small stays small. A limit here may be lowered, and what is listed may go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("replication", "cluster", "node")

FILE_LINES_MAX = 400
LONGER = {"replication/raft/engine.py": 680, "node/checks/checker.py": 450}
"""Files that may be longer, and how long they may be: two at most."""
FUNCTION_LINES_MAX = 50
LIBRARY = "replication/raft/library.py"
"""The one file that touches private names of the Raft library."""


def modules() -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            yield str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")


def test_files_are_read_in_one_go():
    lengths = {name: text.count("\n") for name, text in modules()}

    assert {name: lines for name, lines in lengths.items() if lines > LONGER.get(name, FILE_LINES_MAX)} == {}
    assert [name for name in LONGER if lengths[name] <= FILE_LINES_MAX] == [], "take them off the list"
    assert len(LONGER) <= 2


def test_functions_fit_on_a_page():
    long = {
        f"{name}:{node.name}": lines
        for name, text in modules()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert long == {}


def test_private_names_of_the_raft_library_stand_in_one_file():
    assert [name for name, text in modules() if "_SyncObj__" in text] == [LIBRARY]


def imported(name: str, text: str) -> Iterator[str]:
    """The modules of ours that a module needs when it is imported, as files."""
    package = Path(name).parent
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue  # imported when it is called
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package
            for _ in range(node.level - 1):
                base = base.parent
            base = base / (node.module or "").replace(".", "/")
            if (REPOSITORY / base).with_suffix(".py").is_file():
                yield str(base.with_suffix(".py"))
                continue
            for each in node.names:  # of a package: modules of it, or what its __init__ names
                module = base / f"{each.name}.py"
                yield str(module if (REPOSITORY / module).is_file() else base / "__init__.py")
        waiting += ast.iter_child_nodes(node)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The ways that lead back to where they begin; one for each module at which one closes."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
            return
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            walk(other, [*way, module])
        done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_import_each_other_in_a_circle(room: str):
    graph = {
        name: {other for other in imported(name, text) if other != name and other.startswith(f"{room}/")}
        for name, text in modules()
        if name.startswith(f"{room}/")
    }

    assert circles(graph) == []
