"""The examples of the README, of docs/services.md and of docs/api.md, run in their order against a cluster of three."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.cluster import Cluster
from harness.served import Served
from rollcall.cluster import Discovery

README = Path(__file__).parents[2] / "README.md"
SERVICES = README.parent / "docs" / "services.md"
API = README.parent / "docs" / "api.md"
ANY = "..."


def examples(path: Path) -> list[tuple[str, int, Any]]:
    """(command, status, body) of each example; ``...`` in a body stands for whatever is there."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- examples -->(.*?)<!-- /examples -->", text, re.DOTALL)
    found = re.findall(r"^\$ (curl .+)\n(\d{3}) (.+)$", "".join(blocks), re.MULTILINE)
    return [(command, int(status), _pattern(body)) for command, status, body in found]


def _pattern(text: str) -> Any:
    text = re.sub(r"(?<=[{,] )\.\.\.(?=})", f'"{ANY}": 0', text)
    text = re.sub(r"{\.\.\.}", f'{{"{ANY}": 0}}', text)
    text = re.sub(r"(?<=[:,\[ ])\.\.\.(?=[,\]}])", f'"{ANY}"', text)
    return json.loads(text)


def matches(pattern: Any, found: Any) -> bool:
    """Whether ``found`` is what the example shows."""
    if pattern == ANY:
        return True
    if isinstance(pattern, dict) and isinstance(found, dict):
        if ANY not in pattern and pattern.keys() != found.keys():
            return False
        return all(key in found and matches(value, found[key]) for key, value in pattern.items() if key != ANY)
    if isinstance(pattern, list) and isinstance(found, list):
        if pattern[-1:] == [ANY]:
            pattern, found = pattern[:-1], found[: len(pattern) - 1]
        return len(pattern) == len(found) and all(map(matches, pattern, found))
    return pattern == found


def test_the_patterns_tell_right_from_wrong() -> None:
    pattern = _pattern('{"a": 1, "b": ..., "c": [{"d": 2, ...}, ...], ...}')

    assert matches(pattern, {"a": 1, "b": None, "c": [{"d": 2, "e": 3}, 4], "f": 5})
    assert not matches(pattern, {"a": 2, "b": None, "c": [{"d": 2}]})
    assert not matches(pattern, {"a": 1, "c": [{"d": 2}]})
    assert not matches(pattern, {"a": 1, "b": 0, "c": [{"d": 3}]})
    assert not matches(_pattern('{"a": 1}'), {"a": 1, "b": 2})


@pytest.mark.integration
@pytest.mark.parametrize("path", [README, SERVICES, API], ids=lambda path: path.stem)
def test_every_example_does_what_it_shows(start_cluster: Callable[..., Cluster], path: Path) -> None:
    three, shown = start_cluster(3), examples(path)
    assert len(shown) >= 11
    target = Served("cart")
    try:
        _run(shown, {"$NODE": three.url(0), "$OTHER": three.url(1), "$TARGET": f"127.0.0.1:{target.port}"})
    finally:
        target.close()


def _run(shown: list[tuple[str, int, Any]], places: dict[str, str]) -> None:
    for command, status, pattern in shown:
        words = shlex.split(command)[1:]
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        body = words[words.index("-d") + 1] if "-d" in words else None
        url = next(word for word in words if word.startswith("$"))
        for name, place in places.items():
            url, body = url.replace(name, place), body and body.replace(name, place)
        answer = requests.request(method, url, data=body, timeout=10)

        assert answer.status_code == status, f"{command}\n{answer.text}"
        assert matches(pattern, answer.json()), f"{command}\n{answer.text}"


@pytest.mark.integration
def test_the_python_example_runs_as_it_stands(
    start_cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8").partition("<!-- python -->")[2].partition("<!-- /python -->")[0]
    code = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    cluster = start_cluster(3)

    exec(compile(code, "README.md", "exec"), {"nodes": ",".join(cluster.url(i) for i in range(3))})

    assert capsys.readouterr().out == "cart-1 10.0.0.1 8080\n"
    cluster.wait_same()  # what was taken out at another node has come to this one
    assert cluster.ids(0, "cart") == set()


@pytest.mark.integration
def test_the_example_of_two_services_runs_as_it_stands(
    start_cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8").partition("<!-- services -->")[2].partition("<!-- /services -->")[0]
    code = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    cluster = start_cluster(3)
    users = Served("users")
    try:
        exec(compile(code, "README.md", "exec"), {"nodes": ",".join(cluster.urls), "port": users.port})
    finally:
        users.close()

    assert capsys.readouterr().out == "users GET /42\nTrue\nhttp://10.0.0.9:80\n"
    cluster.wait_same()  # what was taken out at another node has come to this one
    assert cluster.ids(0, "users") == set()

    # The one with httpx finds the same service.
    users = Served("users")
    code = README.read_text(encoding="utf-8").partition("<!-- httpx -->")[2].partition("<!-- /httpx -->")[0]
    code = re.sub(r"^```.*$", "", code, flags=re.MULTILINE)
    index = cluster.register(0, "users", "u", address="127.0.0.1", port=users.port)
    cluster.wait_everywhere(lambda i: cluster.view(i)["applied_index"] >= index, "the service")
    try:
        exec(compile(code, "README.md", "exec"), {"nodes": ",".join(cluster.urls)})
    finally:
        users.close()
    assert capsys.readouterr().out == "users GET /42?full=yes\nusers GET /43\n"


@pytest.mark.integration
def test_the_example_of_calling_by_other_means_runs_as_it_stands(
    start_cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (README.parent / "docs" / "sdk.md").read_text(encoding="utf-8")
    code = re.sub(r"^```.*$", "", text.partition("<!-- pool -->")[2].partition("<!-- /pool -->")[0], flags=re.MULTILINE)
    cluster = start_cluster(1)
    users = Served("users")
    cluster.register(0, "users", "u", address="127.0.0.1", port=users.port)
    try:
        with Discovery(cluster.urls) as discovery:
            exec(compile(code, "sdk.md", "exec"), {"discovery": discovery})
            (endpoint,) = discovery.pool("users").endpoints
    finally:
        users.close()

    assert capsys.readouterr().out == "users GET /42\n"
    assert endpoint.active == 0
    assert endpoint.latency_s > 0
