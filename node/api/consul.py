"""``GET /v1/catalog/service/{name}``: the one call of Consul's that simple clients look services up with.

In Consul's shape. The rest of its API is not here. All instances are listed whatever their
health, as there; ``?tag=`` may be repeated. Reads are linearizable; without a leader
they are this node's copy, marked ``X-Rollcall-Stale``.

``?index=N&wait=30s`` blocks as there: until the service's index (``X-Consul-Index``) is above N, or
for ``wait`` (5 m unless said), and then answers what is there.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, request

from ...replication.errors import Draining, Gone, Invalid
from ...replication.places import Place, place_of
from ...replication.records import DEFAULT_ENV, Instance
from ...replication.registry.changes import Interest
from .context import Context, client_left
from .large import array, pieces_answer, work_of_service
from .query import Query, checked_name

DATACENTER = "dc1"


class Consul:
    """The catalog of Consul's API, as far as it is here."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("catalog", __name__)
        blueprint.add_url_rule("/v1/catalog/service/<segment:service>", "service", self.service, methods=["GET"])
        return blueprint

    def service(self, service: str) -> Response:
        # Parameters that are not known here are passed over: clients of Consul send many.
        query = Query.of_request()
        tags, after = frozenset(query.every("tag")), query.number("index") or 0
        wait_s = min(go_duration_s(query.one("wait") or "", "wait"), self._context.settings.watch_wait_s_max)
        checked_name(service, "service")
        self._context.freshen_if_possible()
        if after and request.method == "GET":
            self._wait(service, after, wait_s)
        registry, status = self._context.service.registry, self._context.service.status()
        index = g.index = registry.applied_index
        outline = registry.outline(DEFAULT_ENV, service)
        key = ("catalog", service, tags, outline.modify_index)
        work = work_of_service(registry, DEFAULT_ENV, service)
        rows = self._context.large.made(key, work, lambda: self._rows(service, tags))
        answer = pieces_answer(rows)
        # What never was has no index of its own; a client that is told 0 takes the answer for broken.
        answer.headers["X-Consul-Index"] = str(max(1, outline.modify_index or index))
        answer.headers["X-Consul-KnownLeader"] = "true" if status.leader is not None else "false"
        answer.headers["X-Consul-LastContact"] = str(int((status.leader_contact_s or 0.0) * 1000))
        return answer

    def _rows(self, service: str, tags: frozenset[str]) -> Iterator[bytes]:
        view, node = self._context.service.registry.service(DEFAULT_ENV, service), self._node()
        found = (instance for instance in (view.instances if view else ()) if tags.issubset(instance.tags))
        yield from array({**node, **_row(instance)} for instance in found)
        yield b"\n"

    def _wait(self, service: str, after: int, wait_s: float) -> None:
        """Returns when the service's index is above ``after``, or ``wait_s`` is over."""
        if self._context.service.draining:
            raise Draining("this node is shutting down; ask another")
        registry, changes = self._context.service.registry, self._context.service.changes
        interest = Interest(DEFAULT_ENV, frozenset({service}))
        deadline, left = time.monotonic() + wait_s, client_left()
        with self._context.slot("watch"), contextlib.suppress(Gone):
            # In this order: a change after the index was read ends the wait, one before is seen in the service.
            seen = registry.applied_index
            changed_at = registry.outline(DEFAULT_ENV, service).modify_index
            if not changed_at:
                changes.wait(after, interest, deadline, left)  # what went since has no other trace than the feed
            elif changed_at <= after:
                changes.wait(max(after, seen), interest, deadline, left)

    def _node(self) -> dict[str, Any]:
        """This node, as it stands in every row."""
        service = self._context.service
        member = next((each for each in service.members() if each.id == service.node_id), None)
        address = (urlsplit(member.http).hostname if member is not None else None) or "127.0.0.1"
        return {
            "ID": service.node_id,
            "Node": service.node_id,
            "Address": address,
            "Datacenter": DATACENTER,
            "TaggedAddresses": {"lan": address, "wan": address},
            "NodeMeta": {},
        }


def _row(instance: Instance) -> dict[str, Any]:
    place = place_of(instance) or Place("", 0)
    tagged = {"lan": {"Address": place.host, "Port": place.port}} if place.host else {}
    return {
        "ServiceKind": "",
        "ServiceID": instance.id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": place.host,
        "ServicePort": place.port,
        "ServiceMeta": instance.meta,
        "ServiceWeights": {"Passing": max(1, instance.weight), "Warning": 1},
        "ServiceTaggedAddresses": tagged,
        "ServiceEnableTagOverride": False,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    }


def go_duration_s(text: str, name: str) -> float:
    """A duration as Consul's clients say it (``30s``, ``1m30s``, ``500ms``); none is five minutes."""
    if not text:
        return WAIT_S
    if not _DURATION.fullmatch(text):
        raise Invalid(f"{name}: Expected a duration such as 30s, 1m30s or 500ms; got {text[:40]!r}", field=name)
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


WAIT_S = 300.0
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern}){{1,7}}")
