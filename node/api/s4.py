"""The S4 dialect: simple REST for clients that know a name, a host and a port.

It lives in env ``default`` with the default lease. The ids it issues,
``{service}~{host}:{port}``, hold the service's name (``~`` occurs in none), so
a heartbeat or a farewell that brings the id alone finds the instance on any
node, and the same three facts get the same id again: an id names a place, so a
farewell takes out whoever registered there last. Other ids are unknown here.
Reads are linearizable; without a leader they are this node's copy, marked ``X-Rollcall-Stale``.
"""

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, g

from ...replication.commands import Deregister, Register
from ...replication.errors import Invalid, NotFound
from ...replication.places import address_fault
from ...replication.records import DEFAULT_ENV, Key, Registration, build
from ..leader.renewals import Renewal
from .body import json_object
from .context import Context, json_answer
from .large import array, pieces_answer, work_of_service
from .query import checked_key, checked_name
from .seed_fields import from_s4, in_s4_words, to_s4


class S4:
    """The four calls of the S4 dialect."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("simple", __name__)
        blueprint.add_url_rule("/register", "register", self.register, methods=["POST"])
        blueprint.add_url_rule("/heartbeat/<segment:id>", "heartbeat", self.heartbeat, methods=["PUT"])
        blueprint.add_url_rule("/deregister/<segment:id>", "deregister", self.deregister, methods=["DELETE"])
        blueprint.add_url_rule("/services/<segment:service>/instances", "instances", self.instances, methods=["GET"])
        return blueprint

    def register(self) -> Response:
        sent = json_object(self._context.settings.body_bytes_max)
        outcome = self._context.submit(Register(registration(sent, ttl_s=self._context.settings.lease_ttl_s)))
        return json_answer({"id": issued_id(sent)}, 201 if outcome.kinds[0] == "created" else 200)

    def heartbeat(self, id: str) -> Response:
        key = _key(id)
        answer = self._context.renew([Renewal(key)])[0]
        if answer.status != "ok":
            raise _unknown(id)
        return json_answer({"id": id, "ttl_s": answer.ttl_s, "next_heartbeat_ms": answer.next_heartbeat_ms})

    def deregister(self, id: str) -> Response:
        key = _key(id)
        try:
            self._context.submit(Deregister(key))
        except NotFound:
            raise _unknown(id) from None
        return json_answer({"id": id})

    def instances(self, service: str) -> Response:
        checked_name(service, "service")
        self._context.freshen_if_possible()
        registry = self._context.service.registry
        g.listed = True
        g.index = registry.applied_index
        outline = registry.outline(DEFAULT_ENV, service)
        key = ("instances", service, outline.modify_index)
        work = work_of_service(registry, DEFAULT_ENV, service)
        return pieces_answer(self._context.large.made(key, work, lambda: self._places(service)))

    def _places(self, service: str) -> Iterator[bytes]:
        view = self._context.service.registry.service(DEFAULT_ENV, service)
        serving = (instance for instance in (view.instances if view else ()) if instance.serving)
        yield from array(place for place in map(to_s4, serving) if place is not None)
        yield b"\n"


def registration(sent: dict[str, Any], *, ttl_s: float) -> Registration:
    """The registration of an S4 body, errors in its own words."""
    for name in ("serviceName", "host", "port"):
        if sent.get(name) in (None, ""):
            raise Invalid(f"field {name!r} is required", field=name)
    host, port = sent["host"], sent["port"]
    if isinstance(host, str) and (fault := address_fault(host)):
        raise Invalid(f"host: {fault}", field="host")
    if port == 0:
        raise Invalid("port: Expected 1 to 65535", field="port")
    try:
        return build(Registration, {**from_s4(sent), "id": issued_id(sent), "ttl_s": ttl_s})
    except Invalid as error:
        raise in_s4_words(error) from None


def issued_id(sent: dict[str, Any]) -> str:
    """The id that these three facts have on every node."""
    return f"{sent['serviceName']}~{sent['host']}:{sent['port']}"


def _key(id: str) -> Key:
    service, tilde, _ = id.partition("~")
    try:
        if tilde:
            return checked_key(DEFAULT_ENV, service, id)
    except Invalid:
        pass  # nothing of such a name was ever registered
    raise _unknown(id)


def _unknown(id: str) -> NotFound:
    return NotFound(f"no instance {id!r} is registered; register it again")
