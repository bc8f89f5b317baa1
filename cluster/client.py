"""Every call of the API, through whichever node answers.

>>> with Client(nodes) as client:
...     [instance.id for instance in client.instances("cart").instances]
['cart-1']

``Client`` stays with one node while it answers and goes to the next when it
does not. What it sends again, and what not:

    certainly not done (``NotDone``)   always, to the next node, until the deadline
    perhaps done (``Unknown``)         reads, heartbeats, and writes: these carry an Idempotency-Key
                                       that is the same in every attempt, so a second one changes nothing
    anything else                      never: the answer would be the same

A read asks for a copy at least as new as anything this client has written or
seen before (``min_index``), so its own writes are visible to it on every node
and history never runs backwards. Only if the registry itself began anew (all its disks
were wiped, or it was put back from a copy) does a client begin anew with it, at once: nodes
name the history that their index is of (``seen``), and refuse one that never was.
The client says so in the log. Nodes of older releases name none: then a read that is
never stale tells.

A list that a node calls too large for one answer is read in pages (``pages``), from then on at once.
"""

import copy
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Literal, TypeVar, Unpack
from urllib.parse import quote

import msgspec
import requests
from msgspec import Struct, structs
from requests.adapters import HTTPAdapter

from ..replication.checks import State
from ..replication.errors import (
    Gone,
    Invalid,
    KeyReused,
    NotCaughtUp,
    NotDone,
    NotFound,
    Overloaded,
    RollcallError,
    Superseded,
    TooLarge,
    Unknown,
)
from ..replication.front.pages import Pages
from ..replication.policies import Policy, PolicyChange, PolicyRecord
from ..replication.records import (
    DEFAULT_ENV,
    STEPS,
    Event,
    Instance,
    Key,
    Registration,
    RegistrationFields,
    Status,
    build,
    check_names,
)
from . import forks
from .http import Answer, Session, exchange, history_of, left_by_session
from .members import DEFAULT_NODES, Members, nodes_from
from .seen import Seen

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_ATTEMPT_S = 2.0
"""One try of a read: short, because another node can answer it just as well."""

CATCH_UP_S = 1.0
"""How long a node may wait to become new enough for a read, before the next is asked."""

SHARE_S = 1.0
"""So much of a call's time is kept for each node that may still have to be asked, as far as there is so much."""

WAIT_SHARE = 0.6
"""Of one try a node may wait so much at most; the rest is for the way there and back."""

WRITE_ATTEMPT_S = 7.0
"""One try of a write: a node holds it up to its write_timeout (5 s) for an election to finish."""

POLL_S = 30.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 1.0
CONNECTIONS_MAX = 32

LARGE_MAX = 1_000
"""So many lists are remembered as too large for one answer."""

TURNS_MAX = 4
"""A list is asked for whole, then in pages, and then again: nodes of two releases may answer in turn."""

_NOBODYS = (1 << 53) - 1
"""A ``reg_index`` that no registration has: so far no log comes."""


Word = Literal["pass", "warn", "fail"]
"""What a service may say of itself."""


class Listing(Struct, frozen=True, kw_only=True):
    """The instances of one service, as one node knew them at ``index``.

    ``complete`` is the node's word that it was up to date: only then is an
    empty list really empty. ``history`` names what ``index`` counts in.
    """

    service: str
    env: str
    index: int
    instances: tuple[Instance, ...]
    complete: bool = False
    history: str = ""


class _Named(Struct, frozen=True):
    """What is looked at of a service whose instances are read next."""

    name: str


class ServiceSummary(Struct, frozen=True, kw_only=True):
    """One service in sums. ``serving`` is how many should get traffic."""

    name: str
    env: str
    instances: int
    serving: int
    health: dict[str, int]
    tags: tuple[str, ...]
    more_tags: bool = False
    """Whether there are more than ``tags`` names."""


class Renewal(Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat: the lease's length (None: no lease), when to send the next, and how far the
    node that answered was."""

    ttl_s: float | None = None
    next_heartbeat_ms: int | None = None
    index: int = 0


class CheckView(Struct, frozen=True, kw_only=True):
    """How one health check of an instance stands. ``since`` is the index that made it so; ``node`` asks it,
    and ``output``, ``latency_ms`` and ``asked_at`` (ns) are of its last answer, where that node can be asked."""

    name: str
    kind: str
    state: State
    since: int
    node: str = ""
    output: str = ""
    latency_ms: float | None = None
    asked_at: int | None = None


class OverrideView(Struct, frozen=True, kw_only=True):
    """What an operator says of an instance, ``registered`` or not. ``until`` (ns) None: until it is removed."""

    env: str
    service: str
    id: str
    status: Status
    reason: str = ""
    until: int | None = None
    set_at: int
    registered: bool
    index: int


class MemberView(Struct, frozen=True, kw_only=True):
    """One node, as the node that was asked sees it."""

    id: str
    http: str
    raft: str
    role: str
    reachable: bool


class ClusterView(Struct, frozen=True, kw_only=True):
    """The cluster, as the node that was asked sees it. ``leader`` is a member's id or None."""

    node: str
    cluster: str = ""
    leader: str | None
    term: int
    applied_index: int
    commit_index: int
    members: tuple[MemberView, ...]
    protection: dict[str, Any] = {}
    disk_error: str = ""
    snapshot_error: str = ""
    clock_error: str = ""
    """What is wrong with the wall clock of the node that was asked: it neither leads nor stamps writes."""
    clock_ahead_s: float | None = None
    """How far that clock is ahead of the other nodes'; None where that is not known."""
    history: str = ""


class Snapshot(Struct, frozen=True, kw_only=True):
    """Everything that a watcher watches, at the moment that its watch begins, or begins anew."""

    index: int
    instances: tuple[Instance, ...]
    history: str = ""


class Changes(Struct, frozen=True, kw_only=True):
    """What happened up to ``index`` of ``history``, in order."""

    index: int
    events: tuple[Event, ...]
    history: str = ""


class _SeenUpTo:
    """Up to where the lists were read that a watch goes on from. What came in pages may hold newer instances too."""

    def __init__(self, listings: Sequence[Listing] = ()) -> None:
        self._services: dict[str, int] = {each.service: each.index for each in listings}
        self._newer: dict[Key, int] = {
            instance.key: instance.modify_index
            for each in listings
            for instance in each.instances
            if instance.modify_index > each.index
        }

    def is_news(self, event: Event) -> bool:
        """Whether what the lists say may be from before it."""
        instance = event.instance
        return event.index > max(self._services.get(instance.service, 0), self._newer.get(instance.key, 0))


class _Read(Struct, frozen=True):
    """What is to be read by when, whichever node answers. ``fits``: whether an answer is about that."""

    path: str
    params: Mapping[str, Any]
    deadline: float
    fits: Callable[[Any], bool] | None


class Client:
    """Every call of the API, through whichever node answers. May be shared by threads; ``close`` gives its
    connections back."""

    def __init__(
        self,
        nodes: str | Iterable[str] = DEFAULT_NODES,
        *,
        env: str = DEFAULT_ENV,
        timeout_s: float = 10.0,
        session: Session | None = None,
    ) -> None:
        self.env: str = env
        self.timeout_s: float = timeout_s
        urls = nodes_from(nodes)
        # In any order: else all clients of one configuration would go to the same node.
        self._members = Members(random.sample(urls, len(urls)))
        self._lock = forks.Lock()
        self._seen = Seen()
        self._large: set[tuple[str, str]] = set()
        """Path and env of lists that are too large for one answer."""
        self._owned = _session() if session is None else None
        self._session: Session = session if session is not None else self._owned or _session()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: a child has connections of its own. A session that was given is its owner's to renew."""
        if self._owned is not None:
            left_by_session(self._owned)
            self._session = self._owned = _session()

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def over(self, session: Session) -> "Client":
        """This client over connections of another session. What either learns, of the nodes and of
        where the registry is, is known to both."""
        other = copy.copy(self)
        other._owned, other._session = None, session
        return other

    # Writes

    def register(
        self,
        service: str,
        *,
        id: str = "",
        env: str | None = None,
        address: str = "",
        port: int = 0,
        ttl_s: float | Literal["default"] | None = "default",
        if_absent: bool = False,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        **more: Unpack[RegistrationFields],
    ) -> Instance:
        """Registers an instance, or replaces it; ``more`` takes any other field of ``Registration``.

        The id is ``{service}-{address}:{port}`` where none is given. ``ttl_s``
        is the lease; None means that it never expires, left out that the
        cluster's default holds. With ``if_absent``, ``AlreadyRegistered`` is
        raised instead of replacing. The ``reg_index`` of what is returned names this
        registration: ``deregister`` takes it. ``idempotency_key``: for who may have to find out later
        whether this was done (``registered_by``).
        """
        fields: dict[str, Any] = {"address": address, "port": port, **more}
        if ttl_s != "default":
            fields["ttl_s"] = ttl_s
        named = {"service": service, "id": id or f"{service}-{address}:{port}", "env": env or self.env}
        registration = build(Registration, {**fields, **named})
        answer = self._write(
            "PUT",
            _instance_path(registration.key),
            params={"env": registration.env, "if_absent": "true" if if_absent else None},
            body=fields,
            timeout_s=timeout_s,
            key=idempotency_key,
            fits=_about(registration.key),
        )
        made = _instance(answer)
        # A write that had to be asked about again is answered with the record of now, which may be another's.
        return structs.replace(made, reg_index=answer.index) if 0 < answer.index < made.reg_index else made

    def deregister(
        self, service: str, id: str, *, registration: int = 0, env: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Removes an instance. ``NotFound`` if there is none.

        ``registration``: the ``reg_index`` of the one that is meant; ``Superseded`` if it was registered
        again since, and nothing changed. Left out: whatever is registered.
        """
        key = Key(env or self.env, service, id)
        if not _fits_a_path(key):
            self._remove_by_batch(key, registration, timeout_s)
            return
        named: dict[str, Any] = {"env": key.env, "registration": registration or None}
        try:
            self._write(
                "DELETE",
                _instance_path(key),
                params=named,
                timeout_s=timeout_s,
                fits=_about(key),
                gone_is_done=True,
            )
        except Invalid as error:
            if error.field != "registration":
                raise
            # A node of a release before. Between this look and the removal another may register, as ever there.
            found = self.instance(service, id, env=key.env)
            if found.reg_index != registration:
                raise Superseded(f"instance {id!r} was registered again since", reg_index=found.reg_index) from None
            self.deregister(service, id, env=key.env, timeout_s=timeout_s)

    def registered_by(
        self, service: str, id: str, idempotency_key: str, *, env: str | None = None, timeout_s: float | None = None
    ) -> int:
        """The ``reg_index`` of the registration that was asked for with this key; 0: it was not done, and will not be.

        The key is used for another write, one that removes nothing. It is refused if the first one was done; if not,
        it is this one that the key stands for from here on, so that nothing that is still under way can be done.
        """
        key = Key(env or self.env, service, id)
        try:
            self._write(
                "DELETE",
                _instance_path(key),
                params={"env": key.env, "registration": _NOBODYS},
                timeout_s=timeout_s,
                key=idempotency_key,
            )
        except KeyReused as error:
            index = error.facts.get("index")
            return index if isinstance(index, int) else 0
        except (NotFound, Superseded):
            pass
        return 0

    def _remove_by_batch(self, key: Key, registration: int, timeout_s: float | None) -> None:
        operation: dict[str, Any] = {"op": "deregister", "env": key.env, "service": key.service, "id": key.id}
        if registration:
            operation["registration"] = registration
        self._write(
            "POST", "/batch", params={}, body={"operations": [operation]}, timeout_s=timeout_s, gone_is_done=True
        )

    def set_status(
        self,
        service: str,
        id: str,
        status: Status | None,
        *,
        reason: str = "",
        for_s: float | None = None,
        unregistered: bool = False,
        env: str | None = None,
    ) -> Instance | None:
        """Sets the operator's override of an instance's status, or removes it (``status`` None).

        It holds for the id, whatever becomes of the registration: until it is removed, or for ``for_s`` seconds.
        The instance as it is then; None where it is not registered. ``NotFound`` where it has no override either,
        unless ``unregistered`` says that it is meant all the same.
        """
        key = Key(env or self.env, service, id)
        path = _instance_path(key) + "/status"
        if status is None:
            answer = self._write("DELETE", path, params={"env": key.env})
        else:
            body: dict[str, Any] = {"status": status, "reason": reason}
            body |= {"for_s": for_s} if for_s is not None else {}
            body |= {"unregistered": True} if unregistered else {}
            answer = self._write("PUT", path, params={"env": key.env}, body=body)
        return _instance(answer) if "reg_index" in answer.body else None

    def overrides(self, *, env: str | None = None, timeout_s: float | None = None) -> tuple[OverrideView, ...]:
        """What operators say of instances of an env, those that are not registered included; ``env="*"`` of all."""
        return self._list(
            "overrides",
            OverrideView,
            attrgetter("env", "service", "id"),
            "/overrides",
            params={"env": env or self.env},
            timeout_s=timeout_s,
        )[1]

    def heartbeat(self, service: str, id: str, *, env: str | None = None, timeout_s: float | None = None) -> Renewal:
        """Renews a lease. ``NotFound`` means: register again."""
        key = Key(env or self.env, service, id)
        answer = self._call(
            "PUT",
            _instance_path(key) + "/heartbeat",
            params={"env": key.env},
            attempt_s=WRITE_ATTEMPT_S,
            timeout_s=timeout_s,
        )
        return _read_as({**(answer.body or {}), "index": answer.index}, Renewal)

    def report(
        self, service: str, id: str, check: str, status: Word, *, note: str = "", env: str | None = None
    ) -> None:
        """A service's own word on its check with ``ttl_s``; to be repeated within that time."""
        key = Key(env or self.env, service, id)
        check_names(check=check)
        path = f"{_instance_path(key)}/checks/{quote(check, safe='')}"
        self._write("PUT", path, params={"env": key.env}, body={"status": status, "note": note})

    # Reads

    def instances(
        self,
        service: str,
        *,
        env: str | None = None,
        health: str | None = None,
        status: str | None = None,
        tags: Sequence[str] = (),
        version: str | None = None,
        zone: str | None = None,
        region: str | None = None,
        meta: Mapping[str, str] | None = None,
        near: str | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
        pages_timeout_s: float | None = None,
    ) -> Listing:
        """The instances that should get traffic, or those that the filters name (``health="any"``: all).

        ``pages_timeout_s``: where the list comes in pages, for all of them; ``timeout_s`` is then for each.
        """
        check_names(service=service)
        filters = {"health": health, "status": status, "version": version, "zone": zone, "region": region}
        tagged = {f"meta.{name}": value for name, value in (meta or {}).items()}
        answer, found = self._list(
            "instances",
            Instance,
            attrgetter("id"),
            f"/services/{quote(service, safe='')}/instances",
            params={
                **filters, **tagged, "tag": list(tags) or None, "near": near, "limit": limit, "env": env or self.env,
            },
            timeout_s=timeout_s,
            pages_timeout_s=pages_timeout_s,
            fits=_about(Key(env or self.env, service, "")),
        )  # fmt: skip
        beside = {"complete": answer.headers.get("X-Rollcall-Complete") == "true", "history": answer.history}
        return structs.replace(_read_as({**answer.body, **beside, "instances": ()}, Listing), instances=found)

    def instance(self, service: str, id: str, *, env: str | None = None) -> Instance:
        """One instance, or ``NotFound``."""
        key = Key(env or self.env, service, id)
        return _instance(self._read(_instance_path(key), params={"env": key.env}, fits=_about(key)))

    def checks(self, service: str, id: str, *, env: str | None = None) -> tuple[CheckView, ...]:
        """How an instance's health checks stand, and what they were answered last."""
        key = Key(env or self.env, service, id)
        answer = self._read(_instance_path(key) + "/checks", params={"env": key.env})
        return _part(answer, "checks", tuple[CheckView, ...])

    def services(self, *, env: str | None = None, timeout_s: float | None = None) -> tuple[ServiceSummary, ...]:
        """The services of an env, by name; ``env="*"`` for those of all."""
        return self._list(
            "services",
            ServiceSummary,
            attrgetter("env", "name"),
            "/services",
            params={"env": env or self.env},
            timeout_s=timeout_s,
        )[1]

    def cluster(self, *, timeout_s: float | None = None) -> ClusterView:
        """The nodes, the leader, and whether evictions are held. What it says is remembered for later calls."""
        answer = self._call("GET", "/cluster", attempt_s=READ_ATTEMPT_S, timeout_s=timeout_s)
        view = _read_as(answer.body, ClusterView)
        leader = next((member.http for member in view.members if member.id == view.leader), None)
        with self._lock:
            self._members.learned((member.http for member in view.members), leader)
        return view

    def policies(self, *, service: str | None = None, timeout_s: float | None = None) -> tuple[PolicyRecord, ...]:
        """The routing policies in force, by name."""
        found: tuple[dict[str, Any], ...] = self._list(
            "policies", dict, itemgetter("name"), "/policies", params={"service": service}, timeout_s=timeout_s
        )[1]
        return tuple(map(_policy_record, found))

    def policy_changes(self, *, timeout_s: float | None = None) -> tuple[PolicyChange, ...]:
        """Who changed the policies, and why; the last change first."""
        return self._list(
            "changes", PolicyChange, attrgetter("index"), "/policies/changes", params={}, timeout_s=timeout_s
        )[1]

    def set_policy(self, name: str, policy: Policy | None, *, author: str = "", reason: str = "") -> dict[str, Any]:
        """Puts a policy in force under a name, or removes it (None; ``NotFound`` if there is none).

        The answer: the policy as it is in force, and in ``warnings``, if there are any, what the node finds odd in it
        (nobody matches, shares of more than 100 %), each in a sentence.
        """
        words = {"author": author or None, "reason": reason or None}
        path = f"/policies/{quote(name, safe='')}"
        if policy is None:
            answer = self._write("DELETE", path, params=words, gone_is_done=True)
        else:
            said = {name: word for name, word in words.items() if word}
            answer = self._write("PUT", path, params={}, body={**msgspec.to_builtins(policy), **said})
        return answer.body if isinstance(answer.body, dict) else {}

    def transfer(self, to: str = "", *, timeout_s: float | None = None) -> str:
        """Has leadership handed to the node ``to``, or to the one that is most caught up. The new leader's id."""
        answer = self._call(
            "POST", "/cluster/transfer", params={"to": to or None}, attempt_s=WRITE_ATTEMPT_S, timeout_s=timeout_s
        )
        return _part(answer, "leader", str)

    def watch(
        self,
        *services: str,
        env: str | None = None,
        index: int | None = None,
        history: str = "",
        wait_s: float = POLL_S,
        patience_s: float = 60.0,
    ) -> Iterator[Snapshot | Event]:
        """Every change of ``services`` (none named: all of the env), in order, across the death of nodes.

        Without ``index`` (and the ``history`` that it is of), a ``Snapshot`` of what is there
        comes first. Another one comes when this client fell so far behind that changes were lost
        to it, or when the registry began anew, and is perhaps at a lower index than before: what
        it knew is then void. Raises ``NotDone`` when no node could be asked for ``patience_s``.
        """
        env = env or self.env
        seen = _SeenUpTo()
        while True:
            if index is None:
                snapshot, seen = self._snapshot(services, env, patience_s)
                index, history = snapshot.index, snapshot.history
                yield snapshot
            try:
                page = self.changes(
                    *services, env=env, index=index, history=history, wait_s=wait_s, patience_s=patience_s
                )
            except Gone:
                index = None
                continue
            for event in page.events:
                if seen.is_news(event):
                    yield event
            index, history = page.index, page.history or history

    def changes(
        self,
        *services: str,
        index: int,
        history: str = "",
        env: str | None = None,
        wait_s: float = POLL_S,
        patience_s: float = 60.0,
    ) -> Changes:
        """The next changes after ``index`` (of ``history``, where it is known), or none if ``wait_s`` passes without
        one.

        ``Gone``: the index is too old for the node that was asked, or of another history, or was never
        reached by the registry. Read everything again.
        """
        named = {"index": index, "history": history or None}
        try:
            answer = self._call(
                "GET",
                "/watch",
                params={**named, "service": list(services) or None, "env": env or self.env},
                attempt_s=wait_s + READ_ATTEMPT_S,
                timeout_s=wait_s + patience_s,
                wait_s=wait_s,
            )
        except Gone as error:
            if "floor" not in error.facts:
                self._refused(history, index, error)
            raise
        events = _read_as((answer.body or {}).get("events", ()), tuple[Event, ...])
        return Changes(index=max(index, answer.index), events=events, history=answer.history)

    def own_changes(self, service: str, id: str, *, index: int, wait_s: float, env: str | None = None) -> Changes:
        """What happened to one instance after ``index``, for that instance itself: it has its heartbeats to
        fall back on, so one node is asked, once, and may send it home early. Raises whatever went wrong."""
        # A node that hangs must not hold up the next heartbeat: the wait there is shorter than the one here.
        named = {"service": service, "id": id, "env": env or self.env}
        answer = self._call(
            "GET",
            "/watch",
            params={"index": index, "wait": f"{round(wait_s * 900)}ms", **named},
            attempt_s=wait_s,
            timeout_s=wait_s,
            once=True,
        )
        events = _read_as((answer.body or {}).get("events", ()), tuple[Event, ...])
        return Changes(index=max(index, answer.index), events=events)

    def _snapshot(self, services: Sequence[str], env: str, timeout_s: float) -> tuple[Snapshot, "_SeenUpTo"]:
        """What is there, and what need not be told of that any more."""
        names: Sequence[str] = services
        index = history = None
        if not names:
            answer, every = self._list(
                "services", _Named, attrgetter("name"), "/services", params={"env": env}, timeout_s=timeout_s
            )
            # Of releases that took such names; a path would lead elsewhere.
            names = [service.name for service in every if service.name not in STEPS]
            index, history = answer.index, answer.history
        listings = [self.instances(name, env=env, health="any", timeout_s=timeout_s) for name in names]
        found = tuple(instance for listing in listings for instance in listing.instances)
        # Read one after the other, so the first index is the one to watch from:
        # what changed in between is known from the later listings, and skipped.
        # (If the registry begins anew in between, the watch from there is told so.)
        index = listings[0].index if index is None else index
        history = listings[0].history if history is None else history
        return Snapshot(index=index, instances=found, history=history), _SeenUpTo(listings)

    # One call

    def _list(
        self,
        name: str,
        kind: type[T],
        naming: Callable[[T], Any],
        path: str,
        *,
        params: Mapping[str, Any],
        timeout_s: float | None = None,
        pages_timeout_s: float | None = None,
        fits: Callable[[Any], bool] | None = None,
    ) -> tuple[Answer, tuple[T, ...]]:
        """All of a list, whose items are under ``name`` and called by ``naming``; and the answer that it came in,
        of pages the first: from its index a watch misses nothing."""
        large, page_s = (path, str(params.get("env", ""))), self.timeout_s if timeout_s is None else timeout_s
        read = _Read(path, params, time.monotonic() + page_s, fits)
        for left in reversed(range(TURNS_MAX)):
            paged = large in self._large
            try:
                if paged:
                    return self._in_pages(read, name, kind, naming, large, page_s, pages_timeout_s)
                answer = self._read_by(read)
                return answer, _part(answer, name, tuple[kind, ...])
            except TooLarge:
                if paged or not left:
                    raise
                self._note(large, True)
            except Invalid as error:
                if not paged or not left or error.field not in ("after", "limit"):
                    raise
                self._note(large, False)  # a node of a release without pages: it answers whole
        raise AssertionError("the last turn answers or raises")

    def _in_pages(
        self,
        read: _Read,
        name: str,
        kind: type[T],
        naming: Callable[[T], Any],
        large: tuple[str, str],
        page_s: float,
        pages_timeout_s: float | None,
    ) -> tuple[Answer, tuple[T, ...]]:
        pages: Pages[T] = Pages(naming, read.params.get("limit"))
        until = read.deadline if pages_timeout_s is None else time.monotonic() + pages_timeout_s
        head = Answer(0, {}, None)
        while pages.after is not None:
            page = structs.replace(
                read,
                params={"after": pages.after, **read.params, "limit": pages.limit},
                deadline=until if pages_timeout_s is None else min(until, time.monotonic() + page_s),
            )
            answer = self._read_by(page)
            found = _part(answer, name, tuple[kind, ...])
            if pages.take(found, answer.body.get("next"), answer.history):
                head = answer
        if pages.count == 1:
            self._note(large, False)
        return head, pages.items

    def _note(self, large: tuple[str, str], is_large: bool) -> None:
        with self._lock:
            self._large.discard(large)
            if is_large:
                if len(self._large) >= LARGE_MAX:
                    self._large.clear()
                self._large.add(large)

    def _read(
        self,
        path: str,
        *,
        params: Mapping[str, Any],
        timeout_s: float | None = None,
        fits: Callable[[Any], bool] | None = None,
    ) -> Answer:
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return self._read_by(_Read(path, params, deadline, fits))

    def _read_by(self, read: _Read) -> Answer:
        try:
            answer = self._read_at(read)
        except Gone:
            # What this client had seen is of another registry, and it has forgotten that: there is nothing to wait for.
            answer = self._read_with(read)
        self.saw(answer.index, answer.history)
        return answer

    def _read_at(self, read: _Read) -> Answer:
        """Of a copy not older than what was seen. ``Gone``: that is of another registry, and is forgotten now."""
        with self._lock:
            history, index = self._seen.history, self._seen.index
        if not index:
            return self._read_with(read)
        try:
            return self._read_with(read, min_index=index, history=history or None)
        except Gone as error:
            self._refused(history, index, error)
            raise
        except NotCaughtUp:
            # Is everybody behind, or is it another registry than the one that this client knew? A read that is
            # never stale tells.
            answer = self._read_with(read, consistency="linearizable")
            if answer.index < index and answer.history in ("", history):
                self._forget(history, index, answer.history, f"it is at index {answer.index}")
            return answer

    def _read_with(self, read: _Read, **more: Any) -> Answer:
        return self._call(
            "GET",
            read.path,
            params={**read.params, **more},
            attempt_s=READ_ATTEMPT_S,
            timeout_s=max(0.0, read.deadline - time.monotonic()),
            wait_s=CATCH_UP_S if "min_index" in more else None,
            fits=read.fits,
        )

    def _refused(self, history: str, index: int, error: Gone) -> None:
        self._forget(history, index, history_of(error.facts.get("history")), error.message)

    def _forget(self, history: str, index: int, told: str, why: str) -> None:
        with self._lock:
            news = self._seen.refused(history, index, told)
        if news:
            logger.warning("the registry began anew: %s; this client had seen index %d", why, index)

    def _write(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any],
        body: Any = None,
        timeout_s: float | None = None,
        key: str = "",
        fits: Callable[[Any], bool] | None = None,
        gone_is_done: bool = False,
    ) -> Answer:
        answer = self._call(
            method,
            path,
            params=params,
            body=body,
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
            attempt_s=WRITE_ATTEMPT_S,
            timeout_s=timeout_s,
            fits=fits,
            gone_is_done=gone_is_done,
        )
        self.saw(answer.index, answer.history)
        return answer

    @property
    def history(self) -> str:
        """The name of the registry's history, as far as this client knows; empty while none was told."""
        with self._lock:
            return self._seen.history

    def saw(self, index: int, history: str = "") -> None:
        """Reads are of copies not older than ``index`` of ``history`` from here on."""
        with self._lock:
            before = self._seen.history
            anew = self._seen.took(history, index)
        if anew:
            logger.warning("the registry began anew: its history is called %s and was called %s", history, before)

    def _call(
        self,
        method: str,
        path: str,
        *,
        attempt_s: float,
        timeout_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        fits: Callable[[Any], bool] | None = None,
        gone_is_done: bool = False,
        wait_s: float | None = None,
        once: bool = False,
    ) -> Answer:
        """The first answer that settles the matter, asking one node after the other until the deadline.

        ``fits``: whether an answer's body is about what was asked; one that is not is as good as none.
        Each node gets ``attempt_s``, or less where the others would be left with too little to be
        asked; ``wait_s`` is how long it may wait itself, within that. ``NotCaughtUp`` as soon as all were
        asked for a ``min_index`` and the best that any could say is that it is behind.
        ``gone_is_done``: a ``NotFound`` after an attempt that perhaps
        succeeded is that attempt's success. ``once``: one node is asked, and that is that.
        """
        forks.notice()
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        perhaps_done: Unknown | None = None
        failure: NotDone | Unknown = NotDone(f"{method} {path}: no node was asked before the deadline")
        pause_s = PAUSE_S_MIN
        catching_up = params is not None and "min_index" in params
        while True:
            with self._lock:
                turn = self._members.order(time.monotonic())
            turn = turn[:1] if once else turn
            behind: NotCaughtUp | None = None
            for place, url in enumerate(turn):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    failure = perhaps_done or failure
                    raise type(failure)(f"{failure.message} (asked in turn: {', '.join(turn)})", **failure.facts)
                # Where all are behind, there must be time for the read that tells why.
                try_s = min(attempt_s, _share_s(left_s, len(turn) - place + catching_up))
                waits = {} if wait_s is None else {"wait": f"{round(min(wait_s, _waiting_s(try_s)), 3):g}s"}
                try:
                    answer = exchange(
                        self._session,
                        method,
                        f"{url}/api/v1{path}",
                        timeout_s=try_s,
                        params={**(params or {}), **waits},
                        body=body,
                        headers=headers,
                        fits=fits,
                    )
                except (NotDone, Unknown) as error:
                    if once and isinstance(error, Overloaded):
                        raise  # it has no place for this, but does all else
                    failure = error
                    if catching_up and isinstance(error, NotCaughtUp):
                        behind = error
                    perhaps_done = error if isinstance(error, Unknown) else perhaps_done
                    with self._lock:
                        self._members.failed(url, time.monotonic())
                    if once:
                        raise
                except RollcallError as error:
                    with self._lock:
                        self._members.answered(url)
                    if gone_is_done and perhaps_done is not None and isinstance(error, NotFound):
                        return Answer(200, {}, None)
                    raise
                else:
                    with self._lock:
                        self._members.answered(url)
                    self.saw(0, answer.history)
                    return answer
            if behind is not None:
                raise behind
            # Everybody was asked: let an election or a restart go on before the next round.
            time.sleep(max(0.0, min(random.uniform(pause_s / 2, pause_s), deadline - time.monotonic())))
            pause_s = min(PAUSE_S_MAX, pause_s * 2)


def _share_s(left_s: float, nodes: int) -> float:
    """Of the time that is left, for the next of so many nodes that may have to be asked."""
    return max(left_s / nodes, left_s - SHARE_S * (nodes - 1))


def _waiting_s(try_s: float) -> float:
    """How long a node may wait within one try and still be heard."""
    return max(try_s - READ_ATTEMPT_S, try_s * WAIT_SHARE)


def _read_as(value: Any, kind: type[T]) -> T:
    """What a node answered, as a ``kind``. A newer node may say what this release cannot read: ``Unknown``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Unknown(f"the answer cannot be read by this release: {error}") from None


def _part(answer: Answer, name: str, kind: type[T]) -> T:
    """One field of an answer's body, as a ``kind``; ``Unknown`` where that is not what was answered."""
    if not isinstance(answer.body, dict) or name not in answer.body:
        raise Unknown(f"the answer cannot be read by this release: it has no {name!r}")
    return _read_as(answer.body[name], kind)


def _instance(answer: Answer) -> Instance:
    """The record in an answer. A repeated write whose instance has gone since is answered without one."""
    if "reg_index" not in answer.body:
        raise NotFound(f"the write was done, but instance {answer.body.get('id')!r} has been removed since")
    return _read_as(answer.body, Instance)


def _about(key: Key) -> Callable[[Any], bool]:
    """Whether the body of an answer is about ``key`` (without an id: its service), as far as it says."""
    asked = {"env": key.env, "service": key.service, **({"id": key.id} if key.id else {})}

    def fits(body: Any) -> bool:
        return isinstance(body, dict) and all(body.get(name, value) == value for name, value in asked.items())

    return fits


def _policy_record(shown: dict[str, Any]) -> PolicyRecord:
    fields = {name: shown[name] for name in Policy.__struct_fields__ if name in shown}
    facts = {name: shown[name] for name in PolicyRecord.__struct_fields__ if name != "policy" and name in shown}
    return _read_as({**facts, "policy": fields}, PolicyRecord)


def _fits_a_path(key: Key) -> bool:
    return not STEPS & {key.service, key.id}


def _instance_path(key: Key) -> str:
    if not key.id:
        raise Invalid("id: Expected at least 1 character", field="id")
    check_names(service=key.service, id=key.id)
    return f"/services/{quote(key.service, safe='')}/instances/{quote(key.id, safe='')}"


def _session() -> requests.Session:
    session = requests.Session()
    # No proxy and no .netrc: the registry is a neighbour, and looking them up costs more than the call.
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS_MAX, max_retries=0))
    return session
