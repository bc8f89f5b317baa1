"""What every view is given: the node's verbs, and how to wait, to write and to answer.

Whatever waits goes through here, so that each of them holds a place of the
budget while it does, and every answer gets the headers that say how fresh it
is and who gave it.
"""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from flask import Response, g, request
from msgspec import Struct

from ...replication.api import COMPLETE, HISTORY, INDEX, REQUEST_ID
from ...replication.commands import REQUEST_ID_MAX, Submittable
from ...replication.errors import Invalid, NoLeader
from ...replication.front.networks import client_of, within
from ...replication.registry.registry import Outcome
from ..budget import Kind
from ..leader.renewals import Renewal, Renewed
from ..metrics import Metrics
from ..position import Position
from .callers import Callers
from .large import Large, nobody_left
from .listings import Listings
from .query import Query
from .summaries import Services
from .verbs import ApiSettings, Verbs

MIN_INDEX_WAIT_S_MAX = 10.0
"""A node that does not come to an index within this time is not about to; another one may be there."""

STANDING_KEPT_S = 0.02
"""How long the node's standing is good for the headers; it is aged in between."""

Environ = Mapping[str, Any]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_IDEMPOTENCY_KEY = re.compile(rf"[\x20-\x7e]{{1,{REQUEST_ID_MAX}}}")

_json = msgspec.json.Encoder()


class Freshness(Struct, frozen=True):
    """How new a read wants its copy to be."""

    position: Position
    wait_s: float
    linearizable: bool

    @classmethod
    def from_query(cls, query: Query, settings: ApiSettings) -> "Freshness":
        wait_s = query.seconds("wait", default=settings.min_index_wait_s_default, most=settings.watch_wait_s_max)
        return cls(
            position=Position(query.number("min_index") or 0, query.history()),
            wait_s=min(wait_s, MIN_INDEX_WAIT_S_MAX),
            linearizable=query.choice("consistency", ("local", "linearizable")) == "linearizable",
        )


class _Standing(Struct, frozen=True):
    """Where the node stood when it was last asked."""

    read_at: float
    leader_contact_s: float | None
    complete: bool


class Context:
    """The node's verbs as the views use them."""

    def __init__(
        self,
        service: Verbs,
        settings: ApiSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service: Verbs = service
        self.settings: ApiSettings = settings
        self.metrics: Metrics = metrics
        self.listings: Listings = Listings(service.registry)
        self.services: Services = Services(service.registry)
        self.large: Large = Large(settings.write_timeout_s, lambda: self.slot("read"), self.client, client_left)
        self.clock: Callable[[], float] = clock
        self.callers: Callers = Callers(settings.members, settings.hosts, settings.dns_domain)
        self._standing: _Standing | None = None
        self._id_prefix = secrets.token_hex(4)
        self._id_numbers = itertools.count(1)

    # -- waiting

    def freshen(self, freshness: Freshness) -> None:
        """Returns when this node's copy is as new as asked for, or raises saying why it is not."""
        if freshness.linearizable and not self._linearize():
            raise NoLeader(
                "no leader could be asked for the newest state; "
                "read with consistency=local for this node's copy, or again later"
            )
        if freshness.position != Position():
            self._catch_up(freshness.position, freshness.wait_s)

    def freshen_if_possible(self) -> None:
        """For clients that know no index: the newest state, or else this copy, marked stale."""
        g.stale = not self._linearize()

    def submit(self, command: Submittable) -> Outcome:
        """Makes the change; the answer's index is that of the write."""
        key = request.headers.get("Idempotency-Key")
        if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
            raise Invalid(
                f"Idempotency-Key: Expected 1 to {REQUEST_ID_MAX} printable ASCII characters",
                field="Idempotency-Key",
                limit=REQUEST_ID_MAX,
            )
        g.submitting = True
        outcome = self.write(command, key or "")
        g.index = outcome.index
        return outcome

    def slot(self, kind: Kind, environ: Environ | None = None) -> AbstractContextManager[None]:
        """A place of the budget for the client of a request: of ``environ``, else of the one that Flask answers."""
        return self.service.budget.slot(kind, self.client(environ))

    def client(self, environ: Environ | None = None) -> str:
        """Whom a share is counted for; empty: this client stands for many, and has none."""
        address = (request.environ if environ is None else environ).get("REMOTE_ADDR") or ""
        return "" if within(address, self.settings.trusted) else client_of(address)

    def write(self, command: Submittable, idempotency_key: str = "", environ: Environ | None = None) -> Outcome:
        """Makes the change, holding a place of the budget meanwhile."""
        with self.slot("write", environ):
            return self.service.submit(command, request_id=idempotency_key)

    def renew(self, renewals: Sequence[Renewal], environ: Environ | None = None) -> list[Renewed]:
        """The leader's word on each heartbeat."""
        with self.slot("renewal", environ):
            answers = self.service.renew(renewals)
        self.metrics.renewed(sum(answer.status == "ok" for answer in answers))
        return answers

    def _linearize(self) -> bool:
        with self.slot("read"):
            return self.service.linearize()

    def _catch_up(self, position: Position, wait_s: float) -> None:
        if position.reached(self.service.registry):
            return  # as nearly always: without a place of the budget
        with self.slot("read"):
            self.service.catch_up(position, time.monotonic() + wait_s, client_left())

    # -- answering

    def request_id(self, offered: str | None) -> str:
        """The client's own id of the request where it is a sane one, else a new one."""
        if offered is not None and _REQUEST_ID.fullmatch(offered):
            return offered
        return f"{self._id_prefix}-{next(self._id_numbers):x}"

    def headers(
        self, *, index: int, request_id: str, listed: bool = False, stale: bool = False
    ) -> list[tuple[str, str]]:
        """The headers of every answer. ``listed``: it is a list, so say whether it is all there is."""
        service, now, standing = self.service, self.clock(), self._standing
        # Asking the log where it stands takes longer than all the rest of a plain read.
        if standing is None or now - standing.read_at > STANDING_KEPT_S:
            contact_s = service.status().leader_contact_s
            standing = self._standing = _Standing(now, contact_s, service.complete())
        headers = [
            (INDEX, str(index)),
            ("X-Rollcall-Node", service.node_id),
            ("X-Rollcall-Cluster", service.cluster_id),
        ]
        if service.registry.history:
            headers.append((HISTORY, service.registry.history))
        if standing.leader_contact_s is not None:
            contact_s = standing.leader_contact_s + now - standing.read_at
            headers.append(("X-Rollcall-Leader-Contact-Ms", str(int(contact_s * 1000))))
        if listed and standing.complete:
            headers.append((COMPLETE, "true"))
        if stale:
            headers.append(("X-Rollcall-Stale", "true"))
        headers.append((REQUEST_ID, request_id))
        return headers


def json_answer(value: Any, status: int = 200) -> Response:
    """``value`` as a JSON answer, a line break at its end for people with curl."""
    return as_json(_json.encode(value) + b"\n", status)


def as_json(body: bytes, status: int = 200) -> Response:
    """The answer whose JSON is ``body``."""
    return Response(body, status=status, content_type="application/json")


def client_left() -> Callable[[], bool]:
    """Tells whether the client of this request has hung up, where the server can tell."""
    return request.environ.get("waitress.client_disconnected", nobody_left)
