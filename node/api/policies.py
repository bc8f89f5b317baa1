"""Routing policies: ``/api/v1/policies``. Which share of a service's calls goes where, and who said so."""

import math
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, g, request

from ...replication.api import policy_shown
from ...replication.commands import SetPolicy, check_new
from ...replication.errors import NotFound
from ...replication.policies import Policy, PolicyRecord, policy_of
from ...replication.records import build
from ...replication.registry.registry import Registry
from .body import json_object
from .context import Context, Freshness, json_answer
from .large import pieces_answer
from .pages import Item, Paging, encode_json, list_body
from .query import Query, checked_name

ROUTES = (
    ("GET", "", "every"),
    ("GET", "/changes", "changes"),
    ("GET", "/<segment:name>", "one"),
    ("PUT", "/<segment:name>", "put"),
    ("DELETE", "/<segment:name>", "delete"),
)


class Policies:
    """The views of ``/api/v1/policies``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._registry = context.service.registry

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("policies", __name__, url_prefix="/api/v1/policies")
        for method, rule, name in ROUTES:
            blueprint.add_url_rule(rule, name, getattr(self, name), methods=[method])
        return blueprint

    def every(self) -> Response:
        query = Query.of_request()
        service, asked = query.one("service"), Paging.from_query(query, tuple[str])
        self._freshen(query)
        g.index = self._registry.applied_index
        begin = asked.after or ("",)
        found = (
            ((record.name,), encode_json(policy_shown(record)))
            for record in self._registry.policies
            if (record.name,) > begin and service in (None, record.policy.service)
        )
        return self._made(("policies", service, asked, g.index), found, asked, len(self._registry.policies))

    def changes(self) -> Response:
        query = Query.of_request()
        name, asked = query.one("name"), Paging.from_query(query, tuple[int])
        self._freshen(query)
        g.index = self._registry.applied_index
        (begin,) = asked.after or (math.inf,)
        found = (
            ((change.index,), encode_json(change))
            for change in reversed(self._registry.policy_changes)
            if change.index < begin and name in (None, change.name)
        )
        return self._made(("changes", name, asked, g.index), found, asked, len(self._registry.policy_changes))

    def _made(self, key: tuple[Any, ...], found: Iterable[Item], asked: Paging, count: int) -> Response:
        """A list that is called as ``key`` begins."""
        made = self._context.large.made(key, asked.work(count), lambda: [list_body({}, key[0], found, asked)])
        return pieces_answer(made)

    def one(self, name: str) -> Response:
        self._freshen(Query.of_request())
        g.index = self._registry.applied_index
        return json_answer(policy_shown(self._record(name)))

    def put(self, name: str) -> Response:
        Query.of_request().done()
        checked_name(name, "name")
        sent = json_object(self._context.settings.body_bytes_max)
        words = build(Words, {field: sent.pop(field) for field in ("author", "reason") if field in sent})
        policy = policy_of(sent)
        command = SetPolicy(name, policy, words.author or _caller(), words.reason)
        check_new(command)
        self._context.submit(command)
        return json_answer({**policy_shown(self._record(name)), **_warned(warnings(self._registry, name, policy))})

    def delete(self, name: str) -> Response:
        query = Query.of_request()
        words = build(
            Words, {field: value for field in ("author", "reason") if (value := query.one(field)) is not None}
        )
        query.done()
        checked_name(name, "name")
        self._context.submit(SetPolicy(name, None, words.author or _caller(), words.reason))
        return json_answer({"name": name})

    def _freshen(self, query: Query) -> None:
        freshness = Freshness.from_query(query, self._context.settings)
        query.done()
        self._context.freshen(freshness)

    def _record(self, name: str) -> PolicyRecord:
        for record in self._registry.policies:
            if record.name == name:
                return record
        raise NotFound(f"no policy is called {name!r}")


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who changes a policy, and why."""

    author: Annotated[str, msgspec.Meta(max_length=256)] = ""
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


def warnings(registry: Registry, name: str, policy: Policy) -> list[str]:
    """What whoever puts ``policy`` in force under ``name`` may not have meant, as this node's copy has it."""
    view = registry.service(policy.env, policy.service)
    instances = () if view is None else view.instances
    found: list[str] = []
    if not instances:
        found.append(f"no instance of service {policy.service!r} is registered in env {policy.env!r}")
    elif not any(map(policy.matches, instances)):
        found.append(f"no instance of service {policy.service!r} matches: its share goes to all others meanwhile")
    others = (r.policy for r in registry.policies if r.name != name)
    shares = [p.percent for p in (*others, policy) if _key(p) == _key(policy) and not p.header]
    if not policy.header and sum(shares) > 100:
        found.append(f"the policies of service {policy.service!r} ask for {sum(shares):g} % of its calls in all")
    return found


def _key(policy: Policy) -> tuple[str, str]:
    return policy.env, policy.service


def _warned(found: list[str]) -> dict[str, list[str]]:
    return {"warnings": found} if found else {}


def _caller() -> str:
    """Who asks, where they do not say: all that is known of them is where they are."""
    return request.remote_addr or ""
