"""The S0 dialect: six POST calls that answer HTTP 200 and a code.

Bodies are JSON or a form, names in either case, and what is not known is not
looked at, as the clients of that API are used to. What its server got wrong is
not copied: ``latest_timestamp`` and ``dirty_timestamp`` count in JSON too, and
a renewal that finds a conflict says so, and so does a ``cancel`` whose
``dirty_timestamp`` is older than the record's: it means an earlier registration. Reads are linearizable; without a
leader they are this node's copy, marked ``X-Rollcall-Stale``.

The nodes of the cluster are the instances of ``Kavin.discovery``: listed from
the members, never registered.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Annotated, Any
from urllib.parse import parse_qs
from zlib import crc32

import msgspec
from flask import Blueprint, Response, g
from msgspec import Meta, Struct

from ...replication.api import MemberView
from ...replication.commands import Deregister, Register
from ...replication.errors import Conflict, Invalid, KeyReused, NotFound, TooLarge
from ...replication.front.pieces import Pieces
from ...replication.places import Place, address_fault, first_of
from ...replication.records import Instance, Key, Registration, TimeNs, build, invalid_from
from ...replication.registry.registry import ServiceView
from ..leader.renewals import Renewal
from .body import parsed, read
from .context import Context, json_answer
from .large import LARGE_MIN, array, joined, pieces_answer, work_of, work_of_service
from .pages import encode_json
from .problem import Problem, problem_of
from .query import checked_key
from .seed_fields import S0_NOT_RECEIVE, S0_RECEIVE, S0_STATUS, in_s0_words, s0_env, s0_status, to_s0

NODES_APP = "Kavin.discovery"

SUCCESS = 200
NOT_MODIFIED = 304
PARAM_ERROR = 400
NOT_FOUND = 404
CONFLICT = 409
SERVER_ERROR = 500

TEXT = {
    NOT_MODIFIED: "app not modified",
    PARAM_ERROR: "request param error",
    NOT_FOUND: "not found",
    CONFLICT: "conflict",
    SERVER_ERROR: "service internal error",
}


RENEWED_FRESH_S = 10.0
"""A ``renew_timestamp`` may be so old, in what is being sent to somebody else already."""

APPS_TOGETHER = 1000
_Apps = list[tuple[str, tuple[ServiceView, ...]]]

_BEGIN = encode_json({"code": SUCCESS, "message": ""})[:-1] + b',"data":'


class _App(Struct, frozen=True, kw_only=True):
    """What every call may name; each call looks at what it needs."""

    env: str = ""
    appid: str = ""
    hostname: str = ""
    addrs: tuple[str, ...] = ()
    status: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    version: str = ""
    latest_timestamp: TimeNs = 0
    dirty_timestamp: TimeNs = 0

    def key(self) -> Key:
        """The instance that the call is about."""
        for name, value in (("appid", self.appid), ("hostname", self.hostname)):
            if not value:
                raise Invalid(f"field {name!r} is required", field=name)
        try:
            return checked_key(s0_env(self.env), self.appid, self.hostname)
        except Invalid as error:
            raise in_s0_words(error) from None


_NAMES = {name.replace("_", ""): name for name in _App.__struct_fields__}


class S0:
    """The six calls of the S0 dialect."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._service = context.service

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("discovery", __name__, url_prefix="/api")
        for name in ("register", "renew", "cancel", "fetch", "fetchall", "nodes"):
            blueprint.add_url_rule(f"/{name}", name, self._call(getattr(self, name)), methods=["POST"])
        blueprint.register_error_handler(Exception, answer_error)
        return blueprint

    def _call(self, view: Callable[[_App], Response]) -> Callable[[], Response]:
        def call() -> Response:
            return view(app_of(read(self._context.settings.body_bytes_max)))

        return call

    def register(self, app: _App) -> Response:
        self._context.submit(Register(registration(app, ttl_s=self._context.settings.lease_ttl_s)))
        return answer("")

    def renew(self, app: _App) -> Response:
        key = app.key()
        answered = self._context.renew([Renewal(key, app.dirty_timestamp or None)])[0]
        if answered.status == "behind":
            # The newer record, so that the client can take it over.
            newer = self._service.registry.instance(key)
            return answer("" if newer is None else self._shown(newer), CONFLICT)
        # ``ahead`` is not found as well: the client then registers what it knows better.
        return answer("", SUCCESS if answered.status == "ok" else NOT_FOUND)

    def cancel(self, app: _App) -> Response:
        key = app.key()
        meant = 0
        if app.dirty_timestamp:
            # The client says which registration it means, in this dialect's way: not a newer one.
            self._context.freshen_if_possible()
            stored = self._service.registry.instance(key)
            if stored is not None and stored.dirty_timestamp > app.dirty_timestamp:
                return answer(self._shown(stored), CONFLICT)
            meant = stored.reg_index if stored is not None else 0
        outcome = self._context.submit(Deregister(key, meant))
        removed = outcome.instances[0] if outcome.instances else None
        # Beside ``data``, which the clients of this call have only ever seen empty.
        return answer("", instance=None if removed is None else self._shown(removed))

    def fetch(self, app: _App) -> Response:
        if not app.appid:
            raise Invalid("field 'appid' is required", field="appid")
        if app.appid == NODES_APP:
            return self._fetched(self._nodes(s0_env(app.env)), app.status, time.time_ns())
        self._context.freshen_if_possible()
        registry, env, wanted = self._service.registry, s0_env(app.env), app.status & (S0_RECEIVE | S0_NOT_RECEIVE)
        g.index = registry.applied_index
        outline = registry.outline(env, app.appid)
        if not outline.instances:
            return answer("", NOT_FOUND)
        if app.latest_timestamp >= outline.latest_timestamp:
            return answer("", NOT_MODIFIED)
        key = ("fetch", env, app.appid, wanted, outline.modify_index)
        work = work_of_service(registry, env, app.appid)
        found = self._context.large.made(key, work, lambda: self._some(env, app.appid, wanted), fresh_s=RENEWED_FRESH_S)
        return pieces_answer(found) if len(found) else answer("", NOT_FOUND)

    def _some(self, env: str, appid: str, status: int) -> Iterator[bytes]:
        view = self._service.registry.service(env, appid)
        wanted = [instance for instance in (view.instances if view else ()) if s0_status(instance) & status]
        if view is not None and wanted:
            yield _BEGIN + b'{"instances":'
            yield from array(map(self._shown, wanted))
            yield b',"latest_timestamp":%d}}\n' % view.latest_timestamp

    def fetchall(self, app: _App) -> Response:
        self._context.freshen_if_possible()
        registry = self._service.registry
        g.index = registry.applied_index
        work = len(registry)
        if work < LARGE_MIN:
            work = work_of(_instances(registry.services()))
        found = self._context.large.made(("fetchall", g.index), work, self._all, fresh_s=RENEWED_FRESH_S)
        # The nodes come first, as the caller's env has them; all else is the same for everybody.
        nodes = encode_json({NODES_APP: self._nodes(s0_env(app.env))})
        return pieces_answer(found, _BEGIN + nodes.removesuffix(b"]}"))

    def _all(self) -> Iterator[bytes | Pieces]:
        """Everything after the nodes, in parts that are the same in each answer for as long as nothing in them
        changes. What several envs have stands where the first of them has it."""
        apps: dict[str, tuple[ServiceView, ...]] = {NODES_APP: ()}
        for view in self._service.registry.services():
            apps[view.name] = (*apps.get(view.name, ()), view)
        for instance in _instances(apps.pop(NODES_APP)):
            yield b"," + encode_json(self._shown(instance))
        for group in _groups(apps.items()):
            key = tuple((view.env, view.name, view.modify_index) for _, views in group for view in views)
            yield self._context.large.part(key, partial(self._apps, group), RENEWED_FRESH_S)
        yield b"]}}\n"

    def _apps(self, apps: _Apps) -> Iterator[bytes]:
        for name, views in apps:
            yield b'],"%b":[' % name.encode()
            yield from joined(map(self._shown, _instances(views)))

    def nodes(self, app: _App) -> Response:
        return self._fetched(self._nodes(s0_env(app.env)), S0_RECEIVE, time.time_ns())

    def _fetched(self, instances: Iterable[dict[str, Any]], status: int, latest_timestamp: int) -> Response:
        wanted = [instance for instance in instances if instance["status"] & status]
        if not wanted:
            return answer("", NOT_FOUND)
        return answer({"instances": wanted, "latest_timestamp": latest_timestamp})

    def _nodes(self, env: str) -> list[dict[str, Any]]:
        return [_node(member, env) for member in self._service.members()]

    def _shown(self, instance: Instance) -> dict[str, Any]:
        lease = self._service.lease(instance.key)
        renewed_ms_ago = None if lease is None else lease.renewed_ms_ago
        if renewed_ms_ago is None:
            return to_s0(instance, renew_timestamp=instance.reg_timestamp)
        # Registering is a renewal as well, and may be newer than what another node passed on.
        renewed = max(instance.reg_timestamp, time.time_ns() - renewed_ms_ago * 1_000_000)
        return to_s0(instance, renew_timestamp=renewed)


def _instances(views: Iterable[ServiceView]) -> Iterator[Instance]:
    return chain.from_iterable(view.instances for view in views)


def _groups(apps: Iterable[tuple[str, tuple[ServiceView, ...]]]) -> Iterator[_Apps]:
    """``apps`` in their order, about ``APPS_TOGETHER`` at a time. Their names say where a group ends, so that one that
    comes or goes moves no other group; what is large stands alone."""
    group: _Apps = []
    for name, views in apps:
        alone = sum(len(view.instances) for view in views) >= LARGE_MIN
        if group and (alone or crc32(name.encode()) % APPS_TOGETHER == 0):
            yield group
            group = []
        group.append((name, views))
        if alone:
            yield group
            group = []
    if group:
        yield group


def app_of(body: bytes) -> _App:
    """What a call named, from JSON or from a form; an empty body names nothing."""
    stripped = body.strip()
    if stripped in (b"", b"null"):
        return _App()
    # Not by content type: curl calls everything a form.
    sent = parsed(body) if stripped[:1] in (b"{", b"[") else _form(body)
    # Clients in Go write AppId or appid, latestTimestamp or latest_timestamp, and null for nothing.
    named = {_name(name): value for name, value in sent.items() if value is not None}
    try:
        return msgspec.convert(named, _App, strict=False)
    except msgspec.ValidationError as error:
        raise invalid_from(error) from None


def registration(app: _App, *, ttl_s: float) -> Registration:
    """The registration of an S0 body: ``hostname`` is the id, ``addrs`` give address and port.

    An id need not be the name of a host; it is taken for one where it may be."""
    key = app.key()
    status = S0_STATUS.get(app.status)
    if status is None:
        raise Invalid(
            f"status: Expected {S0_RECEIVE} (receive) or {S0_NOT_RECEIVE} (do not), got {app.status}", field="status"
        )
    if app.appid == NODES_APP:
        raise Invalid(f"appid: {NODES_APP} lists the registry's own nodes; nothing registers there", field="appid")
    place = first_of(app.addrs) or Place("", 0)
    data = {
        "env": key.env,
        "service": key.service,
        "id": key.id,
        "hostname": "" if address_fault(key.id) else key.id,
        "addrs": app.addrs,
        "address": place.host,
        "port": place.port,
        "version": app.version,
        "status": status,
        "ttl_s": ttl_s,
        "dirty_timestamp": app.dirty_timestamp or None,
    }
    try:
        return build(Registration, data)
    except Invalid as error:
        raise in_s0_words(error) from None


def answer(data: Any, code: int = SUCCESS, **beside: Any) -> Response:
    """HTTP 200 and the code, in the dialect's envelope."""
    message = "" if code == SUCCESS else f"code: {code}, error info: {TEXT[code]}"
    return json_answer({"code": code, "message": message, "data": data, **beside})


def answer_error(error: Exception) -> Response:
    """Any error as a code; what a problem would say stands beside it."""
    problem = problem_of(error, submitting=g.get("submitting", False))
    told = answer("", code_of(error), **_beside(problem))
    told.headers.update(problem.headers)
    return told


def code_of(error: Exception) -> int:
    """The dialect's code for an error."""
    match error:
        case Invalid() | TooLarge() | KeyReused():
            return PARAM_ERROR
        case NotFound():
            return NOT_FOUND
        case Conflict():
            return CONFLICT
        case _:
            return SERVER_ERROR


def _beside(problem: Problem) -> dict[str, Any]:
    return {name: problem.members[name] for name in ("detail", "field", "limit", "outcome") if name in problem.members}


def _form(body: bytes) -> dict[str, Any]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=256)
    except ValueError as error:
        raise Invalid(f"body: Expected JSON or a form; {error}", field="body") from None
    return {
        name: values if _name(name) == "addrs" else values[-1]
        for name, values in fields.items()
        if _name(name) == "addrs" or values[-1]
    }


def _name(sent: str) -> str:
    bare = sent.lower().replace("_", "").removesuffix("[]")
    return _NAMES.get(bare, bare)


def _node(member: MemberView, env: str) -> dict[str, Any]:
    """A member as an instance. The cluster keeps no timestamps of its members."""
    times = ("reg_timestamp", "up_timestamp", "renew_timestamp", "dirty_timestamp", "latest_timestamp")
    return {
        "env": env,
        "appid": NODES_APP,
        "hostname": member.id,
        "addrs": [member.http],
        "version": "",
        "status": S0_RECEIVE if member.reachable else S0_NOT_RECEIVE,
        **dict.fromkeys(times, 0),
    }
