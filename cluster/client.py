"""Every call of the API, through whichever node answers.

>>> with Client(nodes) as client:
...     [instance.id for instance in client.instances("cart").instances]
['cart-1']

``Client`` stays with one node while it answers and goes to the next when it does not (``nodes``). Its own writes are
visible to it on every node, and history never runs backwards (``own_writes``). A list that a node calls too large for
one answer is read in pages (``lists``).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Literal, TypeVar, Unpack
from urllib.parse import quote

import msgspec
from msgspec import structs

from ..replication.api import (
    COMPLETE,
    CheckView,
    ClusterView,
    Listing,
    OverrideView,
    Renewal,
    ServiceSummary,
    Word,
    policy_read,
)
from ..replication.errors import Gone
from ..replication.policies import Policy, PolicyChange, PolicyRecord
from ..replication.records import (
    DEFAULT_ENV,
    Event,
    Instance,
    Key,
    Registration,
    RegistrationFields,
    Status,
    build,
    check_names,
)
from .answers import about, instance_at, instance_of, part, path_of, path_of_service, read_as, read_by
from .http import Session
from .lists import Lists, Wanted
from .members import DEFAULT_NODES
from .nodes import READ_ATTEMPT_S, Nodes
from .own_writes import WRITE_ATTEMPT_S, OwnWrites
from .removing import registered_by, remove
from .watching import POLL_S, Changes, Snapshot, service_names, watch

T = TypeVar("T")


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
        self._nodes: Nodes = Nodes(nodes, timeout_s=timeout_s, session=session)
        self._calls: OwnWrites = OwnWrites(self._nodes)
        self._lists: Lists = Lists()

    def close(self) -> None:
        self._nodes.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def over(self, session: Session) -> "Client":
        """This client over connections of another session. What either learns, of the nodes and of
        where the registry is, is known to both."""
        other = copy.copy(self)
        other._nodes = self._nodes.over(session)
        other._calls = self._calls.over(other._nodes)
        return other

    @property
    def history(self) -> str:
        """The name of the registry's history, as far as this client knows; empty while none was told."""
        return self._calls.history

    def saw(self, index: int, history: str = "") -> None:
        """Reads are of copies not older than ``index`` of ``history`` from here on."""
        self._calls.saw(index, history)

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
        registration: ``deregister`` takes it. ``idempotency_key``: for a caller that may have to find out
        later whether this was done (``registered_by``).
        """
        fields: dict[str, Any] = {"address": address, "port": port, **more}
        if ttl_s != "default":
            fields["ttl_s"] = ttl_s
        named = {"service": service, "id": id or f"{service}-{address}:{port}", "env": env or self.env}
        registration = build(Registration, {**fields, **named})
        answer = self._calls.write(
            "PUT",
            path_of(registration.key),
            params={"env": registration.env, "if_absent": "true" if if_absent else None},
            body=fields,
            timeout_s=timeout_s,
            key=idempotency_key,
            fits=about(registration.key),
        )
        made = instance_of(answer)
        # A write that had to be asked about again is answered with the record of now, which may be another's.
        return structs.replace(made, reg_index=answer.index) if 0 < answer.index < made.reg_index else made

    def deregister(
        self, service: str, id: str, *, registration: int = 0, env: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Removes an instance. ``NotFound`` if there is none.

        ``registration``: the ``reg_index`` of the one that is meant; ``Superseded`` if it was registered
        again since, and nothing changed. Left out: whatever is registered.
        """
        remove(self._calls, Key(env or self.env, service, id), registration, timeout_s)

    def registered_by(
        self, service: str, id: str, idempotency_key: str, *, env: str | None = None, timeout_s: float | None = None
    ) -> int:
        """The ``reg_index`` that was made with this key; 0: nothing was registered with it, and will not be."""
        return registered_by(self._calls, Key(env or self.env, service, id), idempotency_key, timeout_s)

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
        path = path_of(key) + "/status"
        if status is None:
            answer = self._calls.write("DELETE", path, params={"env": key.env})
        else:
            body: dict[str, Any] = {"status": status, "reason": reason}
            body |= {"for_s": for_s} if for_s is not None else {}
            body |= {"unregistered": True} if unregistered else {}
            answer = self._calls.write("PUT", path, params={"env": key.env}, body=body)
        return instance_of(answer) if "reg_index" in answer.body else None

    def overrides(self, *, env: str | None = None, timeout_s: float | None = None) -> tuple[OverrideView, ...]:
        """What operators say of instances of an env, those that are not registered included; ``env="*"`` of all."""
        naming = attrgetter("env", "service", "id")
        return self._list("/overrides", OverrideView, naming, {"env": env or self.env}, timeout_s)

    def heartbeat(self, service: str, id: str, *, env: str | None = None, timeout_s: float | None = None) -> Renewal:
        """Renews a lease. ``NotFound`` means: register again."""
        key = Key(env or self.env, service, id)
        answer = self._calls.call(
            "PUT",
            path_of(key) + "/heartbeat",
            params={"env": key.env},
            attempt_s=WRITE_ATTEMPT_S,
            timeout_s=timeout_s,
        )
        return read_as({**(answer.body or {}), "index": answer.index}, Renewal)

    def report(
        self, service: str, id: str, check: str, status: Word, *, note: str = "", env: str | None = None
    ) -> None:
        """A service's own word on its check with ``ttl_s``; to be repeated within that time."""
        key = Key(env or self.env, service, id)
        check_names(check=check)
        path = f"{path_of(key)}/checks/{quote(check, safe='')}"
        self._calls.write("PUT", path, params={"env": key.env}, body={"status": status, "note": note})

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
        others = {"tag": list(tags) or None, "near": near, "limit": limit, "env": env or self.env}
        wanted = Wanted(
            path=path_of_service(service),
            name="instances",
            kind=Instance,
            naming=attrgetter("id"),
            params={**filters, **tagged, **others},
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
            pages_timeout_s=pages_timeout_s,
            fits=about(Key(env or self.env, service, "")),
        )
        answer, found = self._lists.whole(self._calls.read, wanted)
        beside = {"complete": answer.headers.get(COMPLETE) == "true", "history": answer.history}
        return structs.replace(read_as({**answer.body, **beside, "instances": ()}, Listing), instances=found)

    def instance(self, service: str, id: str, *, env: str | None = None) -> Instance:
        """One instance, or ``NotFound``."""
        return instance_at(self._calls.read_now, Key(env or self.env, service, id))

    def checks(self, service: str, id: str, *, env: str | None = None) -> tuple[CheckView, ...]:
        """How an instance's health checks stand, and what they were answered last."""
        key = Key(env or self.env, service, id)
        answer = self._calls.read_now(path_of(key) + "/checks", {"env": key.env})
        return part(answer, "checks", tuple[CheckView, ...])

    def services(self, *, env: str | None = None, timeout_s: float | None = None) -> tuple[ServiceSummary, ...]:
        """The services of an env, by name; ``env="*"`` for those of all."""
        naming = attrgetter("env", "name")
        return self._list("/services", ServiceSummary, naming, {"env": env or self.env}, timeout_s)

    def cluster(self, *, timeout_s: float | None = None) -> ClusterView:
        """The nodes, the leader, and whether evictions are held. What it says is remembered for later calls."""
        answer = self._calls.call("GET", "/cluster", attempt_s=READ_ATTEMPT_S, timeout_s=timeout_s)
        view = read_as(answer.body, ClusterView)
        leader = next((member.http for member in view.members if member.id == view.leader), None)
        self._nodes.learned((member.http for member in view.members), leader)
        return view

    def policies(self, *, service: str | None = None, timeout_s: float | None = None) -> tuple[PolicyRecord, ...]:
        """The routing policies in force, by name."""
        found = self._list("/policies", dict[str, Any], itemgetter("name"), {"service": service}, timeout_s)
        return tuple(read_by(policy_read, each) for each in found)

    def policy_changes(self, *, timeout_s: float | None = None) -> tuple[PolicyChange, ...]:
        """Who changed the policies, and why; the last change first."""
        return self._list("/policies/changes", PolicyChange, attrgetter("index"), {}, timeout_s)

    def set_policy(self, name: str, policy: Policy | None, *, author: str = "", reason: str = "") -> dict[str, Any]:
        """Puts a policy in force under a name, or removes it (None; ``NotFound`` if there is none).

        The answer: the policy as it is in force, and in ``warnings``, if there are any, what the node finds odd in it
        (nobody matches, shares of more than 100 %), each in a sentence.
        """
        words = {"author": author or None, "reason": reason or None}
        path = f"/policies/{quote(name, safe='')}"
        if policy is None:
            answer = self._calls.write("DELETE", path, params=words, gone_is_done=True)
        else:
            said = {name: word for name, word in words.items() if word}
            answer = self._calls.write("PUT", path, params={}, body={**msgspec.to_builtins(policy), **said})
        return answer.body if isinstance(answer.body, dict) else {}

    def transfer(self, to: str = "", *, timeout_s: float | None = None) -> str:
        """Has leadership handed to the node ``to``, or to the one that is most caught up. The new leader's id."""
        answer = self._calls.call(
            "POST", "/cluster/transfer", params={"to": to or None}, attempt_s=WRITE_ATTEMPT_S, timeout_s=timeout_s
        )
        return part(answer, "leader", str)

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
        named = env or self.env
        names = partial(service_names, self._lists, self._calls, named, patience_s)
        return watch(self, services, named, names, index, history, wait_s, patience_s)

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
            answer = self._calls.call(
                "GET",
                "/watch",
                params={**named, "service": list(services) or None, "env": env or self.env},
                attempt_s=wait_s + READ_ATTEMPT_S,
                timeout_s=wait_s + patience_s,
                wait_s=wait_s,
            )
        except Gone as error:
            if "floor" not in error.facts:
                self._calls.refused(history, index, error)
            raise
        events = read_as((answer.body or {}).get("events", ()), tuple[Event, ...])
        return Changes(index=max(index, answer.index), events=events, history=answer.history)

    def own_changes(self, service: str, id: str, *, index: int, wait_s: float, env: str | None = None) -> Changes:
        """What happened to one instance after ``index``, for that instance itself: it has its heartbeats to
        fall back on, so one node is asked, once, and may send it home early. Raises whatever went wrong."""
        # A node that hangs must not hold up the next heartbeat: the wait there is shorter than the one here.
        named = {"service": service, "id": id, "env": env or self.env}
        answer = self._calls.call(
            "GET",
            "/watch",
            params={"index": index, "wait": f"{round(wait_s * 900)}ms", **named},
            attempt_s=wait_s,
            timeout_s=wait_s,
            once=True,
        )
        events = read_as((answer.body or {}).get("events", ()), tuple[Event, ...])
        return Changes(index=max(index, answer.index), events=events)

    def _list(
        self,
        path: str,
        kind: type[T],
        naming: Callable[[T], Any],
        params: Mapping[str, Any],
        timeout_s: float | None,
    ) -> tuple[T, ...]:
        """All of a list that is called as its path ends."""
        wanted = Wanted(
            path=path,
            name=path.rpartition("/")[2],
            kind=kind,
            naming=naming,
            params=params,
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
        )
        return self._lists.whole(self._calls.read, wanted)[1]
