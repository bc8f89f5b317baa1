"""Virtual time: one true clock, and what each node takes for it.

A node's monotonic clock may run a little fast or slow, and its wall clock may be
anywhere and jump. One node acts at a time; the world says which (``select``).
"""

from types import SimpleNamespace
from typing import Any

import pysyncobj.syncobj
from rollcall.node import duties
from rollcall.replication import engine, transport

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
        shown = SimpleNamespace(monotonic=self, time_ns=self.time_ns)
        parts: tuple[Any, ...] = (engine, transport, duties)
        for part in parts:
            part.time = shown
        pysyncobj.syncobj.monotonicTime = self  # pyright: ignore[reportAttributeAccessIssue]
