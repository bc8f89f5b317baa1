"""One client at the nodes' counters: each exchange over HTTP becomes a fact in the book.

What an answer means is decided here and nowhere else: done, refused, certainly
not done, unknown, or odd, which is what the API does not promise.
"""

import http.client
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from harness import history
from harness.cluster import Answer, Line
from harness.history import Change, Held, key_of
from msgspec import Struct

from chaos.ledger import Ledger, Odd

ENV = "default"
CHECKED = "checked"
"""The service whose instances have a health check."""
NO_ANSWER = (OSError, http.client.HTTPException)
AVOIDED_S = 0.5
"""How long a client leaves a node alone that refused its connection."""

_RESULTS: Mapping[str, tuple[history.WriteResult, ...]] = {
    "register": ("replaced", "created"),
    "register_if_absent": ("replaced", "created"),
    "deregister": ("removed", "removed"),
    "set_status": ("", ""),
}


class Place(Struct, frozen=True):
    """An instance that clients register: its name, its lease, and what a health check of it asks, if it has one;
    critical for ``out_after_s``, it is to be taken out."""

    service: str
    id: str
    ttl_s: float | None
    check: str = ""
    out_after_s: float | None = None

    @property
    def key(self) -> str:
        return key_of(ENV, self.service, self.id)

    @property
    def path(self) -> str:
        return f"/api/v1/services/{self.service}/instances/{quote(self.id, safe='')}"


class Shown(Struct):
    """What a client looks at in a record."""

    service: str
    id: str
    version: str
    modify_index: int = 0
    status_override: str | None = None
    health: str = ""

    @property
    def key(self) -> str:
        return key_of(ENV, self.service, self.id)

    @property
    def held(self) -> Held:
        return Held(self.version, self.status_override or "")


class Listed(Struct):
    instances: list[Shown]


_one = msgspec.json.Decoder(Shown)
_many = msgspec.json.Decoder(Listed)
_problem = msgspec.json.Decoder(dict[str, Any])


def body(place: Place, value: str) -> dict[str, Any]:
    """A registration that carries ``value``, by which it is known again."""
    said = {"address": "127.0.0.1", "port": 80, "version": value, "ttl_s": place.ttl_s}
    if not place.check:
        return said
    check = {"name": "alive", "http": place.check, "interval_s": 1, "timeout_s": 1}
    return {**said, "checks": [{**check, "deregister_critical_after_s": place.out_after_s}]}


class Desk:
    """One client's kept connections, one to each node; every exchange over them is noted in the book.

    For one thread. ``newest`` is the highest index that this client was shown.
    """

    def __init__(self, name: str, urls: Mapping[str, str], ledger: Ledger, timeout_s: float) -> None:
        self.name = name
        self.nodes: tuple[str, ...] = tuple(urls)
        self.newest = 0
        self._ledger = ledger
        self._lines = {node: Line(url, timeout_s) for node, url in urls.items()}
        self._avoided_until: dict[str, float] = {}

    def pick(self, chance: random.Random, *, but: str = "") -> str:
        """A node that did not just refuse a connection, if there is one."""
        now = time.monotonic()
        open_to = [n for n in self.nodes if n != but and self._avoided_until.get(n, 0.0) < now]
        return chance.choice(open_to or self.nodes)

    def write(
        self,
        node: str,
        method: str,
        path: str,
        sent: Any,
        changes: Sequence[Change],
        request: str = "",
    ) -> history.Write:
        """Sends a write, once."""
        headers = {"Idempotency-Key": request} if request else None
        called_at = time.monotonic()
        outcome: history.WriteOutcome
        results: tuple[history.WriteResult, ...] = ()
        index, returned_at = None, None
        try:
            answer = self._lines[node].ask(method, path, sent, headers)
        except ConnectionRefusedError:
            self._avoided_until[node] = time.monotonic() + AVOIDED_S
            outcome, returned_at = "not_done", time.monotonic()
        except NO_ANSWER:
            outcome = "unknown"
        else:
            returned_at = time.monotonic()
            outcome = self._outcome(node, answer)
            if outcome == "ok":
                index = answer.index
                self.newest = max(self.newest, index)
                results = _results(answer, changes)
            elif outcome == "refused":
                results = ("not_found" if answer.status == 404 else "already_registered",)
            elif outcome == "unknown":
                returned_at = None
        written = history.Write(
            client=self.name,
            node=node,
            called_at=called_at,
            returned_at=returned_at,
            changes=tuple(changes),
            outcome=outcome,
            results=results,
            index=index,
            request=request,
        )
        self._ledger.note(written)
        return written

    def read(
        self, node: str, place: Place | str, *, linearizable: bool = False, min_index: int | None = None
    ) -> history.Read:
        """Reads an instance, or all of a service."""
        query = ["consistency=linearizable"] if linearizable else []
        if min_index is not None:
            query.append(f"min_index={min_index}&wait=2s")
        if isinstance(place, Place):
            path, subject = place.path, place.key
        else:
            path, subject = f"/api/v1/services/{place}/instances", f"{ENV}/{place}"
            query.append("health=any")
        called_at = time.monotonic()
        answer = self._ask(node, "GET", f"{path}?{'&'.join(query)}")
        returned_at = None if answer is None else time.monotonic()
        found: dict[str, Held] | None = None
        index, age_s = None, None
        if answer is not None:
            shown = self._shown(node, answer, isinstance(place, Place))
            if shown is not None:
                found = {instance.key: instance.held for instance in shown}
                # The index is noted before the copy is looked at, so what was found may be a little newer.
                index = max([answer.index, *(instance.modify_index for instance in shown)])
                self.newest = max(self.newest, answer.index)
                age_ms = answer.headers.get("X-Rollcall-Leader-Contact-Ms")
                age_s = None if age_ms is None else int(age_ms) / 1000
        seen = history.Read(
            client=self.name,
            node=node,
            called_at=called_at,
            returned_at=returned_at,
            subject=subject,
            outcome="failed" if found is None else "ok",
            consistency="linearizable" if linearizable else "local",
            found=found or {},
            index=index,
            min_index=min_index,
            age_s=age_s,
        )
        self._ledger.note(seen)
        return seen

    def renew(self, node: str, wanted: Sequence[Place]) -> dict[str, str]:
        """Renews instances, in one request; what became of each, by key."""
        called_at = time.monotonic()
        if len(wanted) == 1:
            answer = self._ask(node, "PUT", f"{wanted[0].path}/heartbeat", {})
        else:
            named = [{"service": place.service, "id": place.id} for place in wanted]
            answer = self._ask(node, "POST", "/api/v1/heartbeats", {"instances": named})
        returned_at = None if answer is None else time.monotonic()
        outcomes: dict[str, str] = {}
        for place in wanted:
            outcome = self._renewed(node, place, answer)
            outcomes[place.key] = outcome
            self._ledger.note(
                history.Renewal(
                    client=self.name,
                    node=node,
                    called_at=called_at,
                    returned_at=returned_at,
                    key=place.key,
                    outcome=outcome,
                )
            )
        return outcomes

    def close(self) -> None:
        for line in self._lines.values():
            line.close()

    def _ask(self, node: str, method: str, path: str, sent: Any = None) -> Answer | None:
        try:
            return self._lines[node].ask(method, path, sent)
        except ConnectionRefusedError:
            self._avoided_until[node] = time.monotonic() + AVOIDED_S
        except NO_ANSWER:
            pass
        return None

    def _outcome(self, node: str, answer: Answer) -> history.WriteOutcome:
        if answer.status in (200, 201):
            return "ok"
        said = _said(answer)
        if answer.status == 404 or (answer.status == 409 and said.get("code") == "AlreadyRegistered"):
            return "refused"
        if answer.status == 503 and said.get("outcome") == "not_done" and "Retry-After" in answer.headers:
            return "not_done"
        if answer.status == 504 and said.get("outcome") == "unknown":
            return "unknown"
        self._odd(node, answer)
        return "unknown"

    def _shown(self, node: str, answer: Answer, one: bool) -> list[Shown] | None:
        """The instances in an answer to a read; None if it failed."""
        if answer.status == 404 and one:
            return []
        if answer.status == 200:
            return [_one.decode(answer.body)] if one else _many.decode(answer.body).instances
        if answer.status != 503:
            self._odd(node, answer)
        return None

    def _renewed(self, node: str, place: Place, answer: Answer | None) -> Any:
        if answer is None:
            return "failed"
        if answer.status == 200:
            unknown = answer.json.get("unknown", ())
            return "not_found" if any(i["id"] == place.id for i in unknown) else "ok"
        if answer.status == 404:
            return "not_found"
        if answer.status not in (503, 504):
            self._odd(node, answer)
        return "failed"

    def _odd(self, node: str, answer: Answer) -> None:
        text = f"{answer.status} {answer.body[:300].decode('utf-8', 'replace')}"
        self._ledger.note(Odd(client=self.name, node=node, at=time.monotonic(), text=text))


def _said(answer: Answer) -> dict[str, Any]:
    try:
        return _problem.decode(answer.body)
    except msgspec.MsgspecError:
        return {}


def _results(answer: Answer, changes: Sequence[Change]) -> tuple[history.WriteResult, ...]:
    if len(changes) > 1:
        return tuple(result["kind"] for result in answer.json["results"])
    return (_RESULTS[changes[0].kind][answer.status == 201],)
