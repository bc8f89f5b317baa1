"""docs/api.md names what there is: every route with its parameters, every field, every error."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from flask import request
from harness.api import Api, FakeService
from rollcall.node.api import ApiSettings
from rollcall.node.api.app import _flask
from rollcall.node.api.context import Context
from rollcall.node.api.native import HEARTBEATS_MAX
from rollcall.node.api.overrides import Said
from rollcall.node.api.policies import Words
from rollcall.node.api.query import Query
from rollcall.node.metrics import Metrics
from rollcall.replication import errors
from rollcall.replication.checks import Check
from rollcall.replication.commands import BATCH_MAX
from rollcall.replication.errors import Fatal, RollcallError
from rollcall.replication.policies import Policy
from rollcall.replication.records import Instance, Registration

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
TEXT = DOCUMENT.read_text("utf-8")


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def rows(first: str) -> list[list[str]]:
    """The cells of the rows of every table whose first column is called so."""
    found = re.findall(rf"^\| {first} \|.*\n\| ---.*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in found for line in table.splitlines()]


READ = {name for row in rows("parameter") for name in words(row[0])}
FILTERS = {name for row in rows("filter") for name in words(row[0])}


def named() -> dict[str, set[str]]:
    """``METHOD PATH`` -> its parameters, as the page has them."""
    found: dict[str, set[str]] = {}
    for route, parameters, *_ in rows("method and path"):
        (method,) = words(route)
        assert method not in found, method
        found[method] = words(parameters) - {"*"}
        found[method] |= READ if "read parameters" in parameters else set()
        found[method] |= FILTERS if "filters below" in parameters else set()
    return found


def test_every_route_is_named_with_its_parameters(
    service: FakeService, settings: ApiSettings, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
):
    """What a view asks its query for is what the page must name."""
    app = _flask(Context(service, settings, metrics))
    asked: dict[str, set[str]] = defaultdict(set)
    every, prefixed = Query.every, Query.prefixed

    def note(name: str) -> None:
        rule = request.url_rule
        assert rule is not None
        asked[f"{request.method} {shown(rule.rule)}"].add(name)

    def noted_every(self: Query, name: str) -> tuple[str, ...]:
        note(name)
        return every(self, name)

    def noted_prefixed(self: Query, prefix: str) -> tuple[tuple[str, str], ...]:
        note(f"{prefix}KEY")
        return prefixed(self, prefix)

    monkeypatch.setattr(Query, "every", noted_every)
    monkeypatch.setattr(Query, "prefixed", noted_prefixed)
    client, routes = app.test_client(), set[str]()
    client.put("/api/v1/services/x/instances/x", json={"checks": [{"name": "x", "ttl_s": 60}]})
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            routes.add(f"{method} {shown(rule.rule)}")
            path = re.sub(r"<segment:\w+>", "x", rule.rule)
            query = "?wait=0" if rule.rule.endswith("/watch") else ""
            client.open(path + query, method=method, json={})

    assert set(named()) == routes
    assert {route: sorted(known) for route, known in named().items()} == {
        route: sorted(asked[route]) for route in routes
    }


def shown(rule: str) -> str:
    return re.sub(r"<segment:(\w+)>", r"{\1}", rule)


def fields_after(heading: str) -> set[str]:
    """The fields of the first table of fields after some text."""
    table = re.search(r"^\| field \|.*\n\| ---.*\n((?:\|.*\n)+)", TEXT[TEXT.index(heading) :], re.MULTILINE)
    assert table is not None
    return {name for line in table[1].splitlines() for name in words(line.split("|")[1])}


def test_every_field_is_named():
    assert fields_after("**Fields of a registration**") == set(Registration.__struct_fields__)
    assert fields_after("## Health checks") == set(Check.__struct_fields__)
    assert fields_after("## Routing policies") == {*Policy.__struct_fields__, *Words.__struct_fields__}
    record = TEXT[TEXT.index("**A record**") : TEXT.index("## Heartbeats")]
    assert words(record) == set(Instance.__struct_fields__) - set(Registration.__struct_fields__)
    overrides = TEXT[TEXT.index("## Status overrides") : TEXT.index("## Many at once")]
    assert set(Said.__struct_fields__) <= set(re.findall(r"\w+", overrides))


def test_every_error_is_named_with_its_status():
    told = {(code, int(row[0])) for row in rows("status") for code in words(row[1])}
    made_here = {("NotReady", 503), ("InternalError", 500)}

    assert told == made_here | {
        (kind.code(), kind.status)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, RollcallError) and not issubclass(kind, Fatal)
        if kind is not RollcallError
    }


def test_what_the_cluster_says_is_named_and_the_limits_are_those_that_hold(api: Api):
    section = TEXT[TEXT.index("## The cluster") : TEXT.index("## Probes")]
    assert set(api.get("/api/v1/cluster").get_json()) <= words(section)
    assert f"1 to {BATCH_MAX} |" in TEXT
    assert f"{HEARTBEATS_MAX:,} at most" in TEXT
