"""Two nodes in one process, without a network: a leader and a follower that asks it.

Both see one registry, as if the follower applied everything at once. What goes
wrong on the way between them is a switch.
"""

import threading
import time
from collections.abc import Callable, Iterable

from rollcall.node.budget import Budget
from rollcall.node.leader.duties import Duties, DutySettings
from rollcall.node.peers import serve_peers
from rollcall.node.service import Service, ServiceSettings
from rollcall.replication.api import MemberView
from rollcall.replication.commands import Command
from rollcall.replication.errors import NotDone, NotLeader, RollcallError
from rollcall.replication.local_log import LocalLog, NoPeers
from rollcall.replication.log import Handler, Leadership, LogStatus
from rollcall.replication.proposal import Pending, Proposal


class LeaderLog(NoPeers, LocalLog):
    """A log of one node whose leadership can be taken away and given back."""

    def __init__(self) -> None:
        super().__init__("leader")
        self.handlers: dict[str, Handler] = {}
        self.leads = True
        self.leader: str | None = "leader"
        self.contact_s = 0.0
        self.clock_error = ""
        self.hold: list[Proposal] | None = None
        """Where proposals are kept unsettled, when that is what a test wants."""
        self.on_hand_over: Callable[[str], None] = lambda leader: None

    def serve(self, kind: str, handler: Handler) -> None:
        self.handlers[kind] = handler

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        if not self.leads:
            proposal = Proposal(b"")
            proposal.resolve(None, NotLeader("leader does not lead"))
            return proposal
        if self.hold is not None:
            proposal = Proposal(b"")
            proposal.take()
            self.hold.append(proposal)
            return proposal
        return super().propose(command, time_ns=time_ns, request_id=request_id)

    def status(self) -> LogStatus:
        index = self.registry.applied_index
        return LogStatus(
            node=self.node_id,
            leader=self.leader,
            role="leader" if self.leads else "follower",
            term=self.term,
            commit_index=index,
            applied_index=index,
            leader_contact_s=self.contact_s,
            serving_term=self.leads,
            caught_up=True,
            peers=(),
            clock_error=self.clock_error,
        )

    def hand_over(self, to: str = "") -> Pending[int]:
        begun: Pending[int] = Pending()
        if not self.leads:
            begun.resolve(None, NotLeader("leader does not lead"))
        elif to == "dead":
            begun.resolve(None, NotDone("dead cannot take over now"))
        else:
            begun.resolve(self.registry.applied_index)
            if to != "slow":
                self.leads, self.leader = False, to or "follower"
                self.on_hand_over(self.leader)
        return begun

    @property
    def leadership(self) -> Leadership:
        return Leadership(self.term, self.leader, self.leads)

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        return _wait_leadership(self, seen, deadline)


def _wait_leadership(log: LocalLog, seen: Leadership, deadline: float) -> Leadership:
    # Never for long, so that a caller with a faster clock of its own comes round as well.
    until = min(deadline, time.monotonic() + 0.01)
    while True:
        leadership = log.leadership
        if leadership != seen or time.monotonic() >= until:
            return leadership
        time.sleep(0.001)


class FastClock:
    """``time`` for a module under test, where every second lasts a quarter of one."""

    SPEED = 4

    def __init__(self) -> None:
        self._began = time.monotonic()

    def monotonic(self) -> float:
        return self._began + (time.monotonic() - self._began) * self.SPEED

    time_ns = staticmethod(time.time_ns)


class FollowerLog(NoPeers, LocalLog):
    """A log that follows ``leader``: the same registry, and requests by calling its handlers."""

    def __init__(self, leader: LeaderLog) -> None:
        super().__init__("follower", changes=leader.changes)
        self.registry = leader.registry
        self._leader = leader
        self.leader: str | None = "leader"
        self.asked: list[str] = []
        self.fault: Callable[[str], RollcallError | None] = lambda kind: None
        leader.on_hand_over = lambda id: setattr(self, "leader", id)

    def status(self) -> LogStatus:
        index = self.registry.applied_index
        return LogStatus(
            node=self.node_id,
            leader=self.leader,
            role="follower",
            term=1,
            commit_index=index,
            applied_index=index,
            leader_contact_s=0.0,
            serving_term=False,
            caught_up=True,
            peers=(),
        )

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        raise AssertionError("a follower proposes nothing")

    @property
    def leadership(self) -> Leadership:
        return Leadership(1, self.leader, False)

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        return _wait_leadership(self, seen, deadline)

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        self.asked.append(kind)
        error = self.fault(kind)
        if error is not None:
            raise error
        answered = threading.Event()
        answer: list[bytes] = []

        def reply(data: bytes) -> None:
            answer.append(data)
            answered.set()

        self._leader.handlers[kind](self.node_id, payload, reply)
        if not answered.wait(max(0.0, deadline - time.monotonic())):
            raise NotDone("no answer")
        return answer[0]


class Pair:
    """The services of both, with the leader's duties running."""

    def __init__(self, *, write_timeout_s: float = 1.0, members: Iterable[str] = ()) -> None:
        self.leader_log = LeaderLog()
        self.follower_log = FollowerLog(self.leader_log)
        self.duties = Duties(self.leader_log, self.leader_log, DutySettings(sweep_s_max=0.2))
        self.follower_duties = Duties(self.follower_log, self.follower_log, DutySettings())
        shown = tuple(MemberView(id=id, http="", raft="", role="unknown", reachable=False) for id in members)
        settings = ServiceSettings(cluster_id="pair", write_timeout_s=write_timeout_s, members=shown)
        self.leader = Service(self.leader_log, self.leader_log, self.duties, Budget(64), settings)
        self.follower = Service(self.follower_log, self.follower_log, self.follower_duties, Budget(64), settings)
        serve_peers(
            self.leader_log,
            self.leader_log,
            self.duties,
            propose=self.leader.propose,
            read_index=self.leader.read_index,
        )
        self.duties.start()

    def close(self) -> None:
        self.duties.stop()
