"""Where a client stands: an index, and the name of the history that it counts in.

A client that names an index has it from this registry, or from another one that
stood at the same place: before all its disks were lost, or before it was put
back from a copy. An index of another history names nothing here, and one that
this node has not reached is either still on its way to it or was never reached
by the registry. This node's copy cannot tell these apart; the leader can.

    another history, and the copy is current           ``Gone``, read everything again
    this one, but ahead of what the leader has         ``Gone``
    this one, and the leader has it                    wait until this node has it as well
    no leader can be asked                             wait: one may appear, or the copy move on

and ``NotCaughtUp`` at the end of the wait. A registry whose history has no name
yet (it is being upgraded, or has just been born) compares none.
"""

import time
from collections.abc import Callable

from msgspec import Struct

from ..replication.errors import Gone, NotCaughtUp
from ..replication.log import Log
from ..replication.registry.registry import Registry

LOOK_S = 1.0
"""Between two looks whether anybody still waits, and two questions where no leader answered."""

ASK_S = 0.5
"""How long the leader is given for its answer, however short the wait is that the client asked for."""


class Position(Struct, frozen=True):
    """``history`` empty: whichever the registry has."""

    index: int = 0
    history: str = ""

    def reached(self, registry: Registry) -> bool:
        """Whether ``registry`` is there, or past it."""
        return registry.applied_index >= self.index and self.fits(registry.history)

    def fits(self, history: str) -> bool:
        """Whether it may count in ``history``: nothing speaks against it where either has no name."""
        return not self.history or history in ("", self.history)


def reach(
    position: Position,
    log: Log,
    leader_index: Callable[[float], int | None],
    deadline: float,
    given_up: Callable[[], bool],
) -> None:
    """Returns once this node's copy is at ``position`` or past it. Raises ``Gone`` or ``NotCaughtUp``.

    ``leader_index(deadline)`` asks the leader for an index not older than any write that has
    finished; None if there is none, or it does not answer. It is asked until it has answered
    once. ``given_up()``: nobody waits any more.
    """
    registry = log.registry
    leader_at: int | None = None
    while True:
        # The index first: what is read of the history then is not older.
        applied, history = registry.applied_index, registry.history
        ours = position.fits(history)
        if ours and applied >= position.index:
            return
        if leader_at is not None and (position.index > leader_at or (not ours and applied >= leader_at)):
            raise _gone(position, history, leader_at)
        now = time.monotonic()
        seen = log.leadership
        if leader_at is None:
            leader_at = leader_index(max(deadline, now + ASK_S))
            if leader_at is not None:
                continue
        now = time.monotonic()
        if now >= deadline or given_up():
            raise _behind(position, history, applied)
        until = min(deadline, now + LOOK_S)
        if ours and seen.leader is not None:
            log.wait_applied(position.index, until)
        elif leader_at is not None:
            log.wait_applied(leader_at, until)
        else:
            log.wait_leadership(seen, until)


def _gone(position: Position, history: str, leader_at: int) -> Gone:
    facts = {"history": history, "applied_index": leader_at}
    again = "read everything again, and go on from the index of that answer"
    if not position.fits(history):
        return Gone(f"history {position.history} is not this registry's, which is called {history}: {again}", **facts)
    return Gone(f"index {position.index} was never reached by this registry, which is at {leader_at}: {again}", **facts)


def _behind(position: Position, history: str, applied: int) -> NotCaughtUp:
    facts = {"applied_index": applied}
    if not position.fits(history):
        return NotCaughtUp(
            f"this node's copy is of history {history} and not {position.history}, and no leader could be asked "
            "which one is the registry's; try again later, or another node",
            **facts,
        )
    return NotCaughtUp(
        f"this node has applied index {applied}, not yet {position.index}; wait longer (?wait=) or ask another node",
        **facts,
    )
