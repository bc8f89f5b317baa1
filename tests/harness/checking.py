"""Several nodes' health checks in one process, over one registry that all of them apply at once."""

import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rollcall.node.checks.checker import Checker
from rollcall.node.checks.names import Names
from rollcall.node.checks.probes import Found, Prober, Whom
from rollcall.node.checks.reach import Reach
from rollcall.node.peers import serve_checks
from rollcall.replication.checks import Check
from rollcall.replication.commands import KEEP_LEVEL, Assign, Deregister, Register, Report
from rollcall.replication.errors import NotDone
from rollcall.replication.local_log import LocalLog
from rollcall.replication.log import Handler, Leadership, LogStatus
from rollcall.replication.proposal import Proposal
from rollcall.replication.records import Instance, Key, Registration
from rollcall.replication.registry.state import State


class NodeLog(LocalLog):
    """One node's log: all nodes share what the first one, which leads, holds."""

    def __init__(self, node_id: str, leader: "NodeLog | None" = None) -> None:
        super().__init__(node_id)
        self.leader: NodeLog = leader or self
        self.nodes: dict[str, NodeLog] = leader.nodes if leader else {}
        self.nodes[node_id] = self
        self.handlers: dict[str, Handler] = {}
        self.cut_off: bool = False
        self.asked: list[str] = []
        self.reports: list[Report] = []
        if leader is not None:
            self.registry = leader.registry

    def listen(self, listener: Any) -> None:
        self.leader._listeners.append(listener)

    def serve(self, kind: str, handler: Handler) -> None:
        self.handlers[kind] = handler

    def status(self) -> LogStatus:
        leads = self.leader is self
        return LogStatus(
            node=self.node_id, leader=self.leader.node_id, role="leader" if leads else "follower", term=1,
            commit_index=0, applied_index=0, leader_contact_s=0.0, serving_term=leads, caught_up=True, peers=(),
        )  # fmt: skip

    @property
    def leadership(self) -> Leadership:
        return Leadership(1, None if self.cut_off else self.leader.node_id, self.leader is self)

    def propose(self, command: Any, *, time_ns: int, request_id: str = "") -> Proposal:
        if isinstance(command, Report):
            self.reports.append(command)
        return super().propose(command, time_ns=time_ns, request_id=request_id)

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        self.asked.append(kind)
        other = self.nodes[peer]
        if self.cut_off or other.cut_off:
            raise NotDone(f"{peer} cannot be reached")
        answered = threading.Event()
        answer: list[bytes] = []

        def reply(data: bytes) -> None:
            answer.append(data)
            answered.set()

        other.handlers[kind](self.node_id, payload, reply)
        if not answered.wait(max(0.0, deadline - time.monotonic())):
            raise NotDone("no answer")
        return answer[0]


class Answers:
    """Asks nobody: every answer is what a function makes of the check."""

    def __init__(self, answer: Callable[[Check], Awaitable[Found]]) -> None:
        self._answer: Callable[[Check], Awaitable[Found]] = answer

    async def ask(self, check: Check, whom: Whom) -> Found:
        return await self._answer(check)

    def close(self) -> None:
        pass


class Checkers:
    """The nodes n1 (which leads), n2, …, each with its share of the checks, at that feature level.

    ``answer`` takes the place of questions, ``resolve`` of the resolver that names are looked up with.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        level: int = KEEP_LEVEL,
        answer: Callable[[Check], Awaitable[Found]] | None = None,
        resolve: Callable[[str], Sequence[str]] | None = None,
        places: int = 2_000,
    ) -> None:
        leader = NodeLog("n1")
        self.logs: list[NodeLog] = [leader, *(NodeLog(f"n{number}", leader) for number in range(2, nodes + 1))]
        self.leader: NodeLog = leader
        leader.registry.replace(State.empty(level=level, history="0" * 16))

        def asker() -> Answers | Prober:
            if answer is not None:
                return Answers(answer)
            return Prober(Reach(), names=Names(resolve), places=places)

        self.checkers: list[Checker] = [Checker(log, log, asker()) for log in self.logs]
        for log, checker in zip(self.logs, self.checkers, strict=True):
            serve_checks(log, checker)
        self.assign(*(log.node_id for log in self.logs))
        for checker in self.checkers:
            checker.start()

    def assign(self, *nodes: str) -> None:
        self.leader.propose(Assign(nodes, 1), time_ns=time.time_ns())

    def register(self, id: str, *checks: Check, port: int = 80, service: str = "web") -> None:
        registration = Registration(service=service, id=id, address="127.0.0.1", port=port, checks=checks)
        self.leader.propose(Register(registration), time_ns=time.time_ns())

    def deregister(self, id: str) -> None:
        self.leader.propose(Deregister(Key("default", "web", id)), time_ns=time.time_ns())

    def instance(self, id: str, service: str = "web") -> Instance:
        found = self.leader.registry.instance(Key("default", service, id))
        assert found is not None
        return found

    def health(self, id: str, service: str = "web") -> str:
        return self.instance(id, service).health

    def asked_by(self) -> list[int]:
        """How many checks each node asks."""
        return [len(checker) for checker in self.checkers]

    def close(self) -> None:
        for checker in self.checkers:
            checker.stop()
