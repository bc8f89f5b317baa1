"""Virtual time: one true clock, and what each node takes for it.

A node's monotonic clock may run a little fast or slow, and its wall clock may be
anywhere and jump. One node acts at a time; the world says which (``select``).
"""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pysyncobj.syncobj
from rollcall.node import writes
from rollcall.node.checks import checker
from rollcall.node.leader import duties, evictions, judging
from rollcall.node.leader.check_clocks import Condition
from rollcall.replication.commands import Condemned, Result
from rollcall.replication.raft import engine
from rollcall.replication.records import Event, Instance, Key

EPOCH_NS = 1_700_000_000 * 10**9
LOOK_S = 1e-6
"""What one look at the clock costs, so that a loop that is bounded by time ends."""


class Clock:
    """The true time is ``now``; calling the clock gives the selected node's monotonic time."""

    def __init__(self) -> None:
        self.now: float = 0.0
        self._rates: dict[str, float] = {}
        self._walls: dict[str, int] = {}
        self._rate: float = 1.0
        self._wall: int = 0
        self._stamps: int = 0
        self.selected: str = ""

    def add(self, node: str, rate: float, wall_ns: int) -> None:
        self._rates[node], self._walls[node] = rate, wall_ns

    def wall_ns(self, node: str) -> int:
        """How far the node's wall clock is ahead of the true time."""
        return self._walls[node]

    def rate(self, node: str) -> float:
        return self._rates[node]

    def select(self, node: str) -> None:
        self.selected = node
        self._rate, self._wall = self._rates[node], self._walls[node]

    def jump(self, node: str, wall_ns: int) -> None:
        """The node's wall clock is set elsewhere."""
        self._walls[node] += wall_ns
        self.select(self.selected or node)

    def __call__(self) -> float:
        self.now += LOOK_S
        # As after a boot long ago, so that no time is near zero.
        return 1000.0 + self.now * self._rate

    def time_ns(self) -> int:
        # No two stamps are equal, so that a stamp tells a proposal from every other.
        self._stamps += 1
        return EPOCH_NS + int(self.now * 1e9) + self._wall + self._stamps

    def install(self) -> None:
        """Becomes the clock of everything that a node runs, for good: the process plays one schedule."""
        shown = SimpleNamespace(monotonic=self, time_ns=self.time_ns, time=lambda: self.time_ns() / 1e9)
        parts: tuple[Any, ...] = (engine, duties, evictions, judging, checker, writes)
        for part in parts:
            part.time = shown
        pysyncobj.syncobj.monotonicTime = self  # pyright: ignore[reportAttributeAccessIssue]


HASTE = 8.0
"""How much faster the leader's clocks of checks are: no schedule lasts as long as the shortest time for which an
instance may stay registered while it is critical."""


class Hasty(Condition):
    """The leader's clocks of checks, in a hurry."""

    def __init__(self, instances: Iterable[Instance], now: float) -> None:
        super().__init__(instances, now * HASTE)

    def applied(self, events: Sequence[Event], now: float) -> None:
        super().applied(events, now * HASTE)

    def heard(self, key: Key, check: str, now: float, note: str = "") -> None:
        super().heard(key, check, now * HASTE, note)

    def disturbed(self, now: float) -> None:
        super().disturbed(now * HASTE)

    def silent(self, now: float) -> list[Result]:
        return super().silent(now * HASTE)

    def overdue(self, now: float) -> list[Condemned]:
        return super().overdue(now * HASTE)
