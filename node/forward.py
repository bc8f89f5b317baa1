"""One way to the leader: here if this node leads, else one hop; again while it is certainly not done and time is left.

The way is written as steps. A step names what is to be waited for and is handed the answer, or
raised the error: nothing here waits, and the time is told. ``Service`` takes the steps on threads
(``taken``), the simulation takes the same ones by its own clock, so that what decides between
``not_done`` and ``unknown`` is played as it runs.
"""

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from ..replication.errors import DiskUnavailable, NoLeader, NotDone, Overloaded, RollcallError, Unknown
from ..replication.log import Leadership, Log
from ..replication.proposal import Pending
from ..replication.registry.registry import Outcome
from .leader.renewals import Renewal, Renewed
from .peers import BARRIER, HAND_OVER, RENEW, Kind

Q = TypeVar("Q")
A = TypeVar("A")

ASK_AGAIN_S = 0.02
NO_LEADER = "there is no leader; an election takes about a second while a quorum is up"


class Settled(NamedTuple):
    """Until what this node's log was asked for is settled: its outcome."""

    pending: Pending[Any]
    deadline: float


class Asked(NamedTuple):
    """Until another node has answered: its answer."""

    node: str
    kind: Kind[Any, Any]
    question: Any
    deadline: float


class Applied(NamedTuple):
    """Until this node has applied an index, or until the deadline."""

    upto: int
    deadline: float


class Moved(NamedTuple):
    """Until somebody else leads than was ``seen``, or until the deadline: who leads then."""

    seen: Leadership
    deadline: float


class Joined(NamedTuple):
    """Until the round that takes these heartbeats along has returned: the leader's word on each."""

    renewals: Sequence[Renewal]
    deadline: float


class Indexed(NamedTuple):
    """Until the leader has named an index not older than any write that has finished: that index."""

    deadline: float


Wait = Settled | Asked | Applied | Moved | Joined | Indexed
Steps = Generator[Wait, Any, A]


def taken(steps: Steps[A], wait: Callable[[Wait], Any]) -> A:
    """Takes the steps to their end, and gives what they give; ``wait`` waits, for one step at a time."""
    try:
        step = next(steps)
        while True:
            try:
                found = wait(step)
            except RollcallError as error:
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as end:
        return end.value


def is_tried_again(error: RollcallError, deadline: float, now: float, within_s: float) -> bool:
    """Whether a request that ended so may be made again: what is certainly not done, and may be done in a moment.

    ``within_s`` is the time that it had at first.
    """
    if not isinstance(error, NotDone) or isinstance(error, Overloaded):
        return False
    if isinstance(error, DiskUnavailable) and error.facts.get("nearly_full"):
        return False  # there is nobody with room to hand over to: that takes an operator, or removals
    if "needs_level" in error.facts and now > deadline - within_s / 2:
        return False  # this cluster is not new: its level rises when the last member is upgraded
    return now + ASK_AGAIN_S < deadline


class Way:
    """The ways of one node's requests, by the clock of ``now``."""

    def __init__(self, log: Log, within_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._log: Log = log
        self._within_s: float = within_s
        self._now: Callable[[], float] = now

    def leader(self, missing: str = "there is no leader") -> str:
        leader = self._log.leadership.leader
        if leader is None:
            raise NoLeader(missing)
        return leader

    def ask(
        self,
        kind: Kind[Q, A],
        question: Q,
        here: Callable[[], A | Pending[A]],
        deadline: float,
        missing: str = "there is no leader",
    ) -> Steps[A]:
        """The leader's answer: of ``here`` if that is this node. Asked once."""
        leader = self.leader(missing)
        if leader != self._log.node_id:
            return (yield Asked(leader, kind, question, deadline))
        answer = here()
        if isinstance(answer, Pending):
            return (yield Settled(answer, deadline))
        return answer

    def change(
        self, kind: Kind[Q, Outcome], question: Q, here: Callable[[], Outcome | Pending[Outcome]], deadline: float
    ) -> Steps[Outcome]:
        """The outcome of a change, which is tried again as long as it is certainly not done."""
        while True:
            try:
                outcome = yield from self.ask(kind, question, here, deadline, NO_LEADER)
            except RollcallError as error:
                yield from self._again(error, deadline)
            else:
                # The client may read here next. If this node lags, the write is done all the same.
                yield Applied(outcome.index, deadline)
                return outcome

    def _again(self, error: RollcallError, deadline: float) -> Steps[None]:
        """Waits for another leader, or a little; raises ``error`` where it is not tried again."""
        now = self._now()
        if not is_tried_again(error, deadline, now, self._within_s):
            raise error
        yield Moved(self._log.leadership, min(deadline, now + ASK_AGAIN_S * 5))

    def renew(self, renewals: Sequence[Renewal], deadline: float) -> Steps[list[Renewed]]:
        """The leader's word on each heartbeat, in their order."""
        renewed: list[Renewed | None] = [None] * len(renewals)
        open_places = list(range(len(renewals)))
        while True:
            try:
                answers = yield Joined(tuple(renewals[place] for place in open_places), deadline)
                for place, answer in zip(open_places, answers, strict=True):
                    renewed[place] = answer
                open_places = [place for place in open_places if renewed[place] is None]
                if not open_places:
                    return [answer for answer in renewed if answer is not None]
                raise NotDone("an eviction of this instance is under way")
            except Unknown as error:
                # A heartbeat may be said twice.
                yield from self._again(NotDone(error.message), deadline)
            except NotDone as error:
                yield from self._again(error, deadline)

    def renewal_round(
        self,
        renewals: Sequence[Renewal],
        here: Callable[[], Sequence[Renewed | None]],
        deadline: float,
        passed_on: Callable[[Sequence[Renewed | None]], None] = lambda answers: None,
    ) -> Steps[Sequence[Renewed | None]]:
        """The leader's word on each heartbeat of one round; None: ask again shortly. ``passed_on`` hears the answers
        of another node."""
        leader = self.leader()
        if leader == self._log.node_id:
            answers = here()
        else:
            answers = yield Asked(leader, RENEW, renewals, deadline)
            passed_on(answers)
        if len(answers) != len(renewals):
            raise NotDone(f"{leader} answered {len(answers)} of {len(renewals)} heartbeats")
        return answers

    def read_index(self, here: Callable[[], Pending[Any]], deadline: float) -> Steps[int]:
        """An index not older than any write that has finished."""
        index = yield from self.ask(BARRIER, None, here, deadline)
        return index.index if isinstance(index, Outcome) else index

    def linearize(self, deadline: float) -> Steps[bool]:
        """Whether this node's copy became as new as every write that had finished; False without a leader."""
        try:
            index = yield Indexed(deadline)
        except (NotDone, Unknown):
            return False
        return (yield Applied(index, deadline))

    def hand_over(self, to: str, deadline: float) -> Steps[str]:
        """Has leadership handed to the member ``to``, or to the one that the leader chooses. The new leader's id."""
        before = self._log.leadership
        if before.leader is None:
            raise NoLeader("there is no leader that could hand over")
        if before.leader == to:
            return to
        yield from self.ask(HAND_OVER, to, lambda: self._log.hand_over(to), deadline)
        seen = before
        while self._now() < deadline:
            seen = yield Moved(seen, deadline)
            if seen.leader not in (None, before.leader):
                return seen.leader or ""
        raise NotDone(f"{to or 'nobody'} did not take over within {self._within_s:g} s")
