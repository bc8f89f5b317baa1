"""Whether an index is on its way to this node, or was never this registry's."""

import threading
import time
from collections.abc import Callable

import pytest
from harness.waiting import wait_for
from rollcall.node.position import Position, reach
from rollcall.replication.commands import Begin, Command, Register
from rollcall.replication.errors import Gone, NotCaughtUp
from rollcall.replication.local_log import LocalLog
from rollcall.replication.log import Leadership
from rollcall.replication.records import Registration
from rollcall.replication.registry.registry import Registry

FORMER, OURS = "f" * 16, "0" * 16


class Copy(LocalLog):
    """A node's log, and what its leader says when it is asked. ``leader`` None: there is none."""

    def __init__(self, *, leader: int | None, at: int = 0) -> None:
        super().__init__()
        self.leader: int | None = leader
        self.asked: int = 0
        self.moved = threading.Event()
        for _ in range(at):
            self.write()

    def write(self, command: Command | None = None) -> None:
        made = command or Register(Registration(service="cart", id="c1", ttl_s=None))
        self.propose(made, time_ns=time.time_ns())

    def elect(self, index: int) -> None:
        self.leader = index
        self.moved.set()

    def leader_index(self, deadline: float) -> int | None:
        self.asked += 1
        return self.leader

    @property
    def leadership(self) -> Leadership:
        return Leadership(1, None if self.leader is None else "leader", False)

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        if seen.leader is None:
            self.moved.wait(max(0.0, deadline - time.monotonic()))
        return self.leadership

    def reach(self, position: Position, wait_s: float = 0.0, given_up: Callable[[], bool] = lambda: False) -> None:
        reach(position, self, self.leader_index, time.monotonic() + wait_s, given_up)


class Waiting:
    """``reach`` in a thread of its own; ``end`` gives how it ended."""

    def __init__(self, copy: Copy, position: Position, given_up: Callable[[], bool] = lambda: False) -> None:
        self._ended: list[Exception | None] = []
        self._thread = threading.Thread(target=self._run, args=(copy, position, given_up))
        self._thread.start()

    def _run(self, copy: Copy, position: Position, given_up: Callable[[], bool]) -> None:
        try:
            copy.reach(position, 20.0, given_up)
            self._ended.append(None)
        except (Gone, NotCaughtUp) as error:
            self._ended.append(error)

    @property
    def ended(self) -> bool:
        return bool(self._ended)

    def end(self) -> Exception | None:
        self._thread.join(10)
        assert self._ended, "it waits on"
        return self._ended[0]


@pytest.mark.parametrize("position", [Position(), Position(2), Position(3, OURS), Position(0, OURS)])
def test_what_is_here_already_is_asked_of_nobody(position: Position) -> None:
    copy = Copy(leader=None, at=3)

    copy.reach(position)

    assert copy.asked == 0


def test_an_index_that_the_leader_does_not_have_either_is_gone_at_once() -> None:
    copy = Copy(leader=5, at=3)

    with pytest.raises(Gone, match="index 900 was never reached by this registry, which is at 5") as caught:
        copy.reach(Position(900, OURS), wait_s=60.0)

    assert caught.value.facts == {"history": OURS, "applied_index": 5}
    assert copy.asked == 1


def test_an_index_that_the_leader_has_is_waited_for_and_asked_about_once() -> None:
    copy = Copy(leader=5, at=3)
    waiting = Waiting(copy, Position(5))
    wait_for(lambda: copy.asked, "the leader to be asked")
    copy.write()
    assert not waiting.ended
    copy.write()

    assert waiting.end() is None
    assert copy.asked == 1


def test_an_index_that_does_not_come_in_time_is_not_caught_up() -> None:
    copy = Copy(leader=5, at=3)

    with pytest.raises(NotCaughtUp, match="applied index 3, not yet 5") as caught:
        copy.reach(Position(5), wait_s=0.05)

    assert caught.value.facts == {"applied_index": 3}


def test_without_a_leader_nobody_is_told_that_it_is_gone() -> None:
    with pytest.raises(NotCaughtUp):
        Copy(leader=None, at=3).reach(Position(900), wait_s=0.05)


@pytest.mark.parametrize(("has", "expected"), [(5, Gone), (900, None)])
def test_a_leader_that_appears_meanwhile_is_asked(has: int, expected: type[Exception] | None) -> None:
    copy = Copy(leader=None, at=3)
    waiting = Waiting(copy, Position(900 if expected else 4))
    wait_for(lambda: copy.asked, "a leader to be looked for")
    copy.elect(has)
    if expected is None:
        copy.write()

    assert type(waiting.end()) is (expected or type(None))


def test_an_index_of_another_history_is_gone_however_low_it_is() -> None:
    with pytest.raises(Gone, match=f"history {FORMER} is not this registry's, which is called {OURS}") as caught:
        Copy(leader=3, at=3).reach(Position(1, FORMER), wait_s=60.0)

    assert caught.value.facts["history"] == OURS


def test_a_copy_that_has_not_heard_of_the_newer_history_does_not_call_it_gone() -> None:
    """The one who asks knows more than this node does: the leader tells where the copy must be to say."""
    copy = Copy(leader=4, at=3)
    waiting = Waiting(copy, Position(4, FORMER))
    wait_for(lambda: copy.asked, "the leader to be asked")
    copy.write(Begin(FORMER))

    assert waiting.end() is None


def test_without_a_leader_it_is_not_known_which_history_is_the_newer_one() -> None:
    with pytest.raises(NotCaughtUp, match="no leader could be asked"):
        Copy(leader=None, at=3).reach(Position(1, FORMER), wait_s=0.05)


def test_a_history_that_ends_while_somebody_waits_is_gone() -> None:
    copy = Copy(leader=5, at=3)
    waiting = Waiting(copy, Position(5, OURS))
    wait_for(lambda: copy.asked, "the leader to be asked")
    copy.write(Begin(FORMER))
    copy.write()

    assert isinstance(waiting.end(), Gone)


def test_a_registry_whose_history_has_no_name_yet_compares_none() -> None:
    copy = Copy(leader=3, at=3)
    copy.registry = Registry()
    copy.registry.skip(1, 1)

    copy.reach(Position(1, FORMER))
    with pytest.raises(Gone):
        copy.reach(Position(900, FORMER))


def test_who_has_left_is_waited_for_no_longer() -> None:
    left = threading.Event()
    waiting = Waiting(Copy(leader=5, at=3), Position(5), left.is_set)
    left.set()

    assert isinstance(waiting.end(), NotCaughtUp)
