"""A node without a network: the whole HTTP face over one log in memory.

``FakeService`` is the node's verbs as the faces use them, with switches for
what a test wants to happen.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from rollcall.node.api.fast import Fast
from rollcall.node.budget import KINDS, Budget
from rollcall.node.leader.eviction import ProtectionView
from rollcall.node.leader.renewals import LeaseView, Renewal, Renewed
from rollcall.node.position import Position, reach
from rollcall.replication.api import CheckView, MemberView
from rollcall.replication.checks import State
from rollcall.replication.commands import Submittable
from rollcall.replication.errors import Draining, NoLeader, Overloaded
from rollcall.replication.local_log import LocalLog
from rollcall.replication.log import LogStatus
from rollcall.replication.records import Instance, Key
from rollcall.replication.registry.changes import Changes
from rollcall.replication.registry.registry import Outcome, Registry
from werkzeug.test import Client, TestResponse

from harness.fakes import response


class FakeService:
    """One node over a ``LocalLog``. The attributes after ``log`` are switches."""

    def __init__(self, *, budget: int = 16, feed: int = 1000) -> None:
        self.log = LocalLog("n1", changes=Changes(feed))
        self.node_id = "n1"
        self.cluster_id = "c0ffee"
        self.registry: Registry = self.log.registry
        self.changes: Changes = self.log.changes
        self.budget = Budget(budget)
        self.draining = False
        self.has_leader = True
        self.leader_ahead = 0
        """How many entries the leader has that this node does not have yet."""
        self.leader_asked = 0
        self.is_complete = True
        self.not_ready = ""
        self.clock_error = ""
        self.clock_ahead_s: float | None = None
        self.submit_error: Exception | None = None
        self.submit_gate: threading.Event | None = None
        self.renewals: list[Renewal] = []

    def submit(self, command: Submittable, *, request_id: str = "") -> Outcome:
        if self.draining:
            raise Draining("this node is shutting down")
        if self.submit_gate is not None:
            assert self.submit_gate.wait(10)
        if self.submit_error is not None:
            raise self.submit_error
        proposal = self.log.propose(command, time_ns=time.time_ns(), request_id=request_id)
        return proposal.result_by(time.monotonic() + 5)

    def report(self, key: Key, check: str, state: State, note: str = "") -> Outcome:
        raise NotImplementedError("nobody keeps checks here")

    def checks(self, instance: Instance) -> list[CheckView]:
        raise NotImplementedError("nobody keeps checks here")

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed]:
        self.renewals.extend(renewals)
        return [self._renewed(renewal) for renewal in renewals]

    def _renewed(self, renewal: Renewal) -> Renewed:
        instance = self.registry.instance(renewal.key)
        if instance is None:
            return Renewed("unknown")
        if renewal.dirty_timestamp is not None and renewal.dirty_timestamp > instance.dirty_timestamp:
            return Renewed("ahead")
        if renewal.dirty_timestamp is not None and renewal.dirty_timestamp < instance.dirty_timestamp:
            return Renewed("behind")
        if instance.ttl_s is None:
            return Renewed("ok")
        return Renewed("ok", instance.ttl_s, int(instance.ttl_s * 1000 / 3))

    def hand_over(self, to: str = "") -> str:
        if not self.has_leader:
            raise NoLeader("there is no leader")
        return to or "n2"

    def catch_up(self, position: Position, deadline: float, left: Callable[[], bool]) -> None:
        reach(position, self.log, self._leader_index, deadline, lambda: self.draining or left())

    def _leader_index(self, deadline: float) -> int | None:
        self.leader_asked += 1
        return self.registry.applied_index + self.leader_ahead if self.has_leader else None

    def linearize(self) -> bool:
        return self.has_leader

    def lease(self, key: Key) -> LeaseView | None:
        instance = self.registry.instance(key)
        if instance is None or instance.ttl_s is None:
            return None
        return LeaseView(instance.ttl_s, 1500, False)

    def status(self) -> LogStatus:
        index = self.registry.applied_index
        return LogStatus(
            node="n1",
            leader="n1" if self.has_leader else None,
            role="leader" if self.has_leader else "follower",
            term=3,
            commit_index=index,
            applied_index=index,
            leader_contact_s=0.012 if self.has_leader else None,
            serving_term=self.has_leader,
            caught_up=True,
            peers=(),
            clock_error=self.clock_error,
            clock_ahead_s=self.clock_ahead_s,
        )

    def members(self) -> tuple[MemberView, ...]:
        return (
            MemberView(id="n1", http="http://127.0.0.1:8500", raft="127.0.0.1:9500", role="leader", reachable=True),
            MemberView(id="n2", http="http://127.0.0.1:8501", raft="127.0.0.1:9501", role="follower", reachable=False),
        )

    def protection(self) -> ProtectionView:
        return ProtectionView(active=False, leased=0, late=0, allowed_late=0, reason="nobody is late")

    def complete(self) -> bool:
        return self.is_complete

    def ready(self, write: bool) -> tuple[bool, str]:
        if write and not self.has_leader:
            return False, "there is no leader"
        return not self.not_ready, self.not_ready


def fill(budget: Budget) -> None:
    """Takes every place that there is, of every kind."""
    for kind in KINDS:
        with contextlib.suppress(Overloaded):
            while True:
                budget.take(kind)


class Told(TestResponse):
    """An answer whose JSON is looked into without asking first whether there is any: if not, the test fails."""

    @property
    def json(self) -> Any:
        return super().json


def _told(answer: TestResponse) -> Told:
    assert isinstance(answer, Told)
    return answer


class Api:
    """A client of one app. Paths are given as they stand in a request line."""

    def __init__(self, app: Fast) -> None:
        self.client = Client(app, Told)
        self.inner = Client(app.inner, Told)

    def get(self, path: str, **options: Any) -> Told:
        return _told(self.client.get(path, **options))

    def post(self, path: str, json: Any = None, **options: Any) -> Told:
        return _told(self.client.post(path, **_body(json, options)))

    def put(self, path: str, json: Any = None, **options: Any) -> Told:
        return _told(self.client.put(path, **_body(json, options)))

    def delete(self, path: str, **options: Any) -> Told:
        return _told(self.client.delete(path, **options))

    def register(self, service: str = "orders", id: str = "o1", query: str = "", **fields: Any) -> Told:
        """Registers one instance that must be accepted."""
        answer = self.put(f"/api/v1/services/{service}/instances/{id}{query}", fields)
        assert answer.status_code in (200, 201), answer.text
        return answer

    def ids(self, path: str) -> list[str]:
        """The ids of the instances that a list names, in its order."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return [instance["id"] for instance in answer.json["instances"]]


def _body(json: Any, options: dict[str, Any]) -> dict[str, Any]:
    return options if json is None else {"json": json, **options}


def problem(answer: TestResponse, status: int, code: str | None = None, **members: Any) -> dict[str, Any]:
    """The members of a problem, after checking that it is a whole one, of that status."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    told: Any = answer.json
    assert {"type", "title", "status", "detail"} <= told.keys()
    assert told["status"] == status
    assert told["detail"] and "Traceback" not in answer.text
    assert answer.headers["X-Request-Id"] and answer.headers["X-Rollcall-Index"]
    if code is not None:
        assert told["code"] == code
        assert told["type"] == f"urn:rollcall:problem:{code}"
    for name, value in members.items():
        assert told.get(name) == value, told
    return told


class Clock:
    """A clock that stands until a test turns it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class InProcess:
    """A session of the SDK whose nodes are apps in this process. ``before`` is called before each request, with its
    URL and parameters."""

    def __init__(self, apps: dict[str, Fast]) -> None:
        self._nodes = {url: Client(app) for url, app in apps.items()}
        self.before: Callable[[str, dict[str, Any]], None] = lambda url, params: None
        self.asked: list[dict[str, Any]] = []
        """The parameters of each request."""

    def close(self) -> None:
        pass

    def request(self, method: str, url: str, **options: Any) -> Any:
        params = dict(options.get("params") or {})
        self.asked.append(params)
        self.before(url, params)
        node = next(node for node in self._nodes if url.startswith(node))
        answer = self._nodes[node].open(
            url.removeprefix(node),
            method=method,
            query_string=urlencode(params, doseq=True),
            data=options.get("data"),
            headers=options.get("headers"),
        )
        return response(answer.status_code, answer.data, content_type=answer.content_type or "", **answer.headers)
