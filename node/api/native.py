"""The product's own API, ``/api/v1``: every verb, every fact.

Reads are of this node's copy and say at which index; ``?min_index`` waits for
one, ``?consistency=linearizable`` asks the leader first.
"""

import ipaddress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, request
from msgspec import structs

from ...replication.api import ClusterView, RenewalBody
from ...replication.commands import Deregister, Register, SetStatus
from ...replication.errors import Invalid, NotFound, StaleDirtyTimestamp
from ...replication.records import DEFAULT_ENV, Instance, Key, Registration, build
from ...replication.registry.registry import Outcome
from ..leader.renewals import Renewal
from .body import json_object
from .context import Context, Environ, Freshness, json_answer
from .large import pieces_answer
from .listings import Shown, Wanted, head_of
from .overrides import without_a_record
from .pages import Paging
from .paths import instance_path
from .query import Query, checked_key, checked_name
from .registering import STATES, Named, StatusOverride, Word, batch, listed, placed, registration
from .rendering import leased_record, record

HEARTBEATS_MAX = 10_000

LEASES_FRESH_S = 1.0
"""Leases in a list may be shown as they were this long ago, where it is being sent to somebody already."""

_SERVICE = "/services/<segment:service>/instances"
_INSTANCE = f"{_SERVICE}/<segment:id>"

ROUTES = (
    ("PUT", _INSTANCE, "put_instance"),
    ("POST", _SERVICE, "post_instance"),
    ("GET", _SERVICE, "list_instances"),
    ("GET", _INSTANCE, "get_instance"),
    ("DELETE", _INSTANCE, "delete_instance"),
    ("PUT", f"{_INSTANCE}/heartbeat", "heartbeat"),
    ("PUT", f"{_INSTANCE}/status", "put_status"),
    ("DELETE", f"{_INSTANCE}/status", "delete_status"),
    ("GET", f"{_INSTANCE}/checks", "get_checks"),
    ("PUT", f"{_INSTANCE}/checks/<segment:check>", "put_check"),
    ("POST", "/heartbeats", "heartbeats"),
    ("POST", "/batch", "post_batch"),
    ("GET", "/services", "list_services"),
    ("GET", "/cluster", "cluster"),
    ("GET", "/cluster/digest", "digest"),
    ("POST", "/cluster/transfer", "transfer"),
)


class Native:
    """The views of ``/api/v1`` but for the watch."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._service = context.service
        self._settings = context.settings

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("native", __name__, url_prefix="/api/v1")
        for method, rule, name in ROUTES:
            blueprint.add_url_rule(rule, name, getattr(self, name), methods=[method])
        return blueprint

    # -- writes

    def put_instance(self, service: str, id: str) -> Response:
        return self._register(service, id)

    def post_instance(self, service: str) -> Response:
        return self._register(service, None)

    def delete_instance(self, service: str, id: str) -> Response:
        query = Query.of_request()
        env, registration = query.env(), query.number("registration", least=1)
        query.done()
        key = checked_key(env, service, id)
        return self._changed(key, self._context.submit(Deregister(key, registration or 0)))

    def put_status(self, service: str, id: str) -> Response:
        key = _key(service, id)
        override = build(StatusOverride, json_object(self._settings.body_bytes_max))
        return self._set_status(override.command(key))

    def delete_status(self, service: str, id: str) -> Response:
        key = _key(service, id)
        return self._set_status(SetStatus(key.env, key.service, key.id, None))

    def post_batch(self) -> Response:
        query = Query.of_request()
        env = query.env() if query.every("env") else None
        query.done()
        sent = json_object(self._settings.batch_body_bytes_max)
        outcome = self._context.submit(batch(sent, ttl_s=self._settings.lease_ttl_s, env=env))
        return json_answer({"index": outcome.index, "results": [{"kind": kind} for kind in outcome.kinds]})

    def _register(self, service: str, id: str | None) -> Response:
        query = Query.of_request()
        env = query.env() if query.every("env") else None
        if_absent = query.flag("if_absent")
        query.done()
        sent = json_object(self._settings.body_bytes_max)
        wanted = registration(sent, ttl_s=self._settings.lease_ttl_s, service=service, id=id, env=env)
        outcome = self._context.submit(Register(wanted, if_absent))
        return self._registered(wanted, outcome)

    def _registered(self, wanted: Registration, outcome: Outcome) -> Response:
        status, headers, shown = registered(self._context, wanted, outcome)
        answer = json_answer(shown, status)
        answer.headers.extend(headers)
        return answer

    def _set_status(self, command: SetStatus) -> Response:
        outcome = self._context.submit(command)
        if not outcome.instances and self._service.registry.instance(command.key) is None:
            return json_answer(without_a_record(command.key, self._service.registry))
        return self._changed(command.key, outcome)

    def _changed(self, key: Key, outcome: Outcome) -> Response:
        return json_answer(changed(self._context, key, outcome))

    # -- health checks

    def get_checks(self, service: str, id: str) -> Response:
        instance = self._instance(service, id)
        with self._context.slot("read"):
            shown = self._service.checks(instance)
        return json_answer({"health": instance.health, "checks": shown})

    def put_check(self, service: str, id: str, check: str) -> Response:
        key = _key(service, id)
        sent = build(Word, json_object(self._settings.body_bytes_max))
        with self._context.slot("write"):
            outcome = self._service.report(key, check, STATES[sent.status], sent.note)
        g.index = outcome.index
        return json_answer({"check": check, "state": STATES[sent.status], "changed": "checked" in outcome.kinds})

    # -- heartbeats

    def heartbeat(self, service: str, id: str) -> Response:
        return json_answer(renewed(self._context, _key(service, id)))

    def heartbeats(self) -> Response:
        query = Query.of_request()
        env = query.env()
        query.done()
        sent = json_object(self._settings.batch_body_bytes_max)
        renewals = [Renewal(key) for key in _heartbeat_keys(sent, env)]
        answers = self._context.renew(renewals) if renewals else []
        unknown = [r.key for r, answer in zip(renewals, answers, strict=True) if answer.status != "ok"]
        return json_answer(
            {
                "renewed": len(answers) - len(unknown),
                "unknown": [{"service": key.service, "id": key.id, "env": key.env} for key in unknown],
                "next_heartbeat_ms": min(
                    (a.next_heartbeat_ms for a in answers if a.next_heartbeat_ms is not None), default=None
                ),
            }
        )

    # -- reads

    def list_instances(self, service: str) -> Response:
        query = Query.of_request()
        asked = Paging.from_query(query, Wanted.places(query))
        paged = asked.after is not None
        wanted = Wanted.from_query(query, limit=None if paged else asked.limit)
        env, freshness, secrets = query.env(), self._freshness(query), query.flag("secrets")
        query.done()
        checked_name(service, "service")
        if secrets:
            _check_is_here()
        self._context.freshen(freshness)
        g.listed = True
        shown = self._with_lease(secrets) if wanted.with_leases or secrets else record
        # In this order: a watch from an index read first repeats a change at worst, and misses none.
        index = g.index = self._service.registry.applied_index
        outline = self._service.registry.outline(env, service)
        key = ("list", env, service, wanted, asked, shown is record, secrets, outline.modify_index)
        listings, large = self._context.listings, self._context.large
        if shown is record and not paged:
            work = listings.work(env, service, wanted, asked, remembered=True)
            tail = large.made(key, work, lambda: [listings.tail(env, service, wanted)])
        else:
            remember = not paged and not secrets
            work = listings.work(env, service, wanted, asked, remembered=remember)
            make = partial(listings.tail_made_anew, env, service, wanted, asked, shown, remember=remember)
            tail = large.made(key, work, lambda: [make()], LEASES_FRESH_S)
        return pieces_answer(tail, head_of(env, service, index))

    def get_instance(self, service: str, id: str) -> Response:
        instance = self._instance(service, id)
        return json_answer(self._leased(instance))

    def list_services(self) -> Response:
        query = Query.of_request()
        env, asked, freshness = query.envs(), Paging.from_query(query, tuple[str, str]), self._freshness(query)
        query.done()
        self._context.freshen(freshness)
        g.listed = True
        registry, services = self._service.registry, self._context.services
        index = g.index = registry.applied_index
        key = ("services", env, asked, index)
        work = services.work(env, asked)
        return pieces_answer(self._context.large.made(key, work, lambda: [services.body(env, index, asked)]))

    def cluster(self) -> Response:
        Query.of_request().done()
        status, protection = self._service.status(), self._service.protection()
        g.index = status.applied_index
        return json_answer(
            ClusterView(
                node=status.node,
                cluster=self._service.cluster_id,
                role=status.role,
                leader=status.leader,
                term=status.term,
                history=self._service.registry.history,
                applied_index=status.applied_index,
                commit_index=status.commit_index,
                level=status.level,
                standing=status.standing,
                members=self._service.members(),
                protection=structs.asdict(protection),
                disk_error=status.disk_error,
                snapshot_error=status.snapshot_error,
                clock_error=status.clock_error,
                clock_ahead_s=status.clock_ahead_s,
            )
        )

    def digest(self) -> Response:
        Query.of_request().done()
        g.index, sha256 = self._service.registry.digest()
        return json_answer({"applied_index": g.index, "sha256": sha256})

    def transfer(self) -> Response:
        query = Query.of_request()
        to = query.one("to")
        query.done()
        with self._context.slot("write"):
            leader = self._service.hand_over(to or "")
        return json_answer({"leader": leader})

    def _instance(self, service: str, id: str) -> Instance:
        """The instance that a read is about, or ``NotFound``."""
        query = Query.of_request()
        key, freshness = checked_key(query.env(), service, id), self._freshness(query)
        query.done()
        self._context.freshen(freshness)
        g.index = self._service.registry.applied_index
        instance = self._service.registry.instance(key)
        if instance is None:
            raise _unknown(key)
        return instance

    def _with_lease(self, secrets: bool) -> Shown:
        return lambda instance: leased_record(instance, self._service.lease(instance.key), secrets=secrets)

    def _leased(self, instance: Instance) -> dict[str, Any]:
        return leased_record(instance, self._service.lease(instance.key))

    def _freshness(self, query: Query) -> Freshness:
        return Freshness.from_query(query, self._settings)


# What the fast layer in front of Flask says as well, so it knows nothing of Flask.


def registered(
    context: Context, wanted: Registration, outcome: Outcome
) -> tuple[int, list[tuple[str, str]], dict[str, Any]]:
    """Status, headers and body that answer a registration."""
    kind = outcome.kinds[0]
    if kind == "kept":
        raise StaleDirtyTimestamp(
            f"instance {wanted.id!r} is registered with a newer dirty_timestamp; nothing was replaced",
            field="dirty_timestamp",
        )
    shown = changed(context, wanted.key, outcome)
    if kind != "created":
        return 200, [], shown
    location = instance_path(wanted.env, wanted.service, wanted.id, default_env=DEFAULT_ENV)
    return 201, [("Location", location)], shown


def changed(context: Context, key: Key, outcome: Outcome) -> dict[str, Any]:
    """The record as the write left it (as it was, for a removal)."""
    if outcome.instances:
        return record(outcome.instances[0])
    # A repeated Idempotency-Key: the outcome is remembered, the record is not.
    found = None if outcome.kinds[0] == "removed" else context.service.registry.instance(key)
    return record(found) if found is not None else {"env": key.env, "service": key.service, "id": key.id}


def renewed(context: Context, key: Key, environ: Environ | None = None) -> RenewalBody:
    """The body that answers a heartbeat."""
    answer = context.renew([Renewal(key)], environ)[0]
    if answer.status != "ok":
        raise _unknown(key)
    return RenewalBody(ttl_s=answer.ttl_s, next_heartbeat_ms=answer.next_heartbeat_ms)


def _key(service: str, id: str) -> Key:
    """The instance that a call is about whose only parameter is ``env``."""
    query = Query.of_request()
    env = query.env()
    query.done()
    return checked_key(env, service, id)


def _heartbeat_keys(sent: dict[str, Any], env: str) -> list[Key]:
    keys: list[Key] = []
    for number, item in enumerate(listed(sent, "instances", HEARTBEATS_MAX)):
        data: Any = {"env": env, **item} if isinstance(item, dict) else item
        try:
            keys.append(build(Named, data).key)
        except Invalid as error:
            raise placed(error, f"instances[{number}]") from None
    return keys


def _check_is_here() -> None:
    """Secrets are shown on the node's own machine alone, where whoever may read its files has them anyway.

    A proxy on it is no reader here, and neither is a browser that was lured to the node's address.
    """
    host = urlsplit(f"//{request.host}").hostname or ""
    passed_on = {"X-Forwarded-For", "Forwarded", "Via", "Origin", "Sec-Fetch-Site"} & set(request.headers.keys())
    if passed_on or not (_is_loopback(request.remote_addr or "") and (host == "localhost" or _is_loopback(host))):
        raise Invalid(
            "secrets: Expected a call from the node's own machine to its loopback address, by no proxy and no browser",
            field="secrets",
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _unknown(key: Key) -> NotFound:
    return NotFound(f"no instance {key.id!r} of service {key.service!r} is registered in env {key.env!r}")
