"""One bounded count of requests that wait.

Whatever waits (polls, streams, writes in flight, renewals, reads at an index)
holds a place of the budget while it does, and is refused at once when none is
free. The server has more threads than the budget has places, so plain reads
always find a thread.

Watchers wait longest and there are most of them. They may not take the last
eighth: a node full of parked polls still renews leases and takes writes.

Instances that watch themselves (a ``Lease`` that wants to hear if it is removed) have
their heartbeats to fall back on. So they are lent an eighth of the places, while less
than half of all are taken; nobody else is refused for them, and they are sent home within
a second when three quarters are taken.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

from ..replication.errors import Overloaded

Kind = Literal["watch", "own", "write", "renewal", "read"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Budget:
    """``total`` places for requests that wait, of which watchers take ``watch_max`` at most."""

    def __init__(self, total: int, *, watch_max: int | None = None) -> None:
        if total < 1:
            raise ValueError(f"a budget needs at least 1 place, got {total}")
        self.total: int = total
        self.watch_max: int = max(1, total - total // 8) if watch_max is None else min(watch_max, total)
        self.own_max: int = max(1, total // 8)
        self._lock = threading.Lock()
        self._held: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    @property
    def in_use(self) -> int:
        """Places taken now."""
        return sum(self.by_kind().values())

    @property
    def scarce(self) -> bool:
        """Whether instances that watch themselves should go home."""
        return self.in_use > self.total * 3 // 4

    def by_kind(self) -> Mapping[Kind, int]:
        """Places taken now, by what they wait for."""
        with self._lock:
            return dict(self._held)

    def take(self, kind: Kind) -> None:
        """Takes a place, to be given back by ``give``. Raises ``Overloaded`` if none is free."""
        with self._lock:
            in_use, own = sum(self._held.values()), self._held["own"]
            if kind == "own":
                if own >= self.own_max or in_use >= max(1, self.total // 2):
                    raise _overloaded("instances that watch themselves", self.own_max)
            elif in_use - own >= self.total:
                raise _overloaded("requests that wait", self.total)
            if kind == "watch" and self._held[kind] >= self.watch_max:
                raise _overloaded("watchers", self.watch_max)
            self._held[kind] += 1

    def give(self, kind: Kind) -> None:
        """Gives a taken place back."""
        with self._lock:
            assert self._held[kind] > 0, f"a place for {kind} was given back twice"
            self._held[kind] -= 1

    @contextmanager
    def slot(self, kind: Kind = "write") -> Iterator[None]:
        """Holds a place for the length of a ``with`` block."""
        self.take(kind)
        try:
            yield
        finally:
            self.give(kind)


def _overloaded(who: str, limit: int) -> Overloaded:
    return Overloaded(f"all {limit} places for {who} are taken; ask another node, or again later", limit=limit)
