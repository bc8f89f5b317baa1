"""One bounded count of requests that wait.

Whatever waits (polls, streams, writes in flight, renewals, reads at an index)
holds a place of the budget while it does, and is refused at once when none is
free. The server has more threads than the budget has places, so plain reads
always find a thread.

Each kind of waiting has places that the others cannot take. Watchers wait longest and there are most of them:
of the last eighth, which they may not have, half is the renewals', and writes and reads share the rest; so a node
full of parked polls, of reads of an index that does not come, or of writes without a leader still renews leases.
An eighth is kept for watchers in turn. The rest is anybody's.

One client may hold as many places of a kind as are free for that kind: half, while it is the only one; and some are
always left for the next one (dynamic thresholds, as in ``shares``). A client that is trusted has no
name here and no share.

Instances that watch themselves (a ``Lease`` that wants to hear if it is removed) have
their heartbeats to fall back on. So they are lent an eighth of the places, while less
than half of all are taken; nobody else is refused for them, and they are sent home within
a second when three quarters are taken.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

from ..replication.errors import Overloaded

Kind = Literal["watch", "own", "write", "renewal", "read"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Budget:
    """``total`` places for requests that wait, of which watchers take ``watch_max`` at most."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a budget needs at least 1 place, got {total}")
        self.total: int = total
        kept = total // 8
        renewals = (kept + 1) // 2
        writes = (kept - renewals + 1) // 2
        self._kept: Mapping[Kind, int] = {
            "watch": kept,
            "renewal": renewals,
            "write": writes,
            "read": kept - renewals - writes,
            "own": 0,
        }
        self._common: int = total - sum(self._kept.values())
        self.watch_max: int = self.most("watch")
        self.own_max: int = max(1, total // 8)
        self._lock = threading.Lock()
        self._held: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._held_by: Counter[tuple[Kind, str]] = Counter()

    def most(self, kind: Kind) -> int:
        """How many places a kind has where all others have none."""
        return self._kept[kind] + self._common

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

    def take(self, kind: Kind, client: str = "") -> None:
        """Takes a place, to be given back by ``give``. Raises ``Overloaded`` if none is free for it.

        ``client`` is whom a share is counted for; empty: for nobody.
        """
        with self._lock:
            free = self._free(kind)
            if free <= 0:
                raise _overloaded(kind, self.own_max if kind == "own" else self.most(kind))
            mine = self._held_by.get((kind, client), 0)
            if client and mine >= free:
                raise Overloaded(
                    f"{mine} places for {_WHO[kind]} are taken by {client}, and no more than that are free: one client "
                    "may not have more than are left for others; ask another node, or again later",
                    limit=mine,
                )
            self._held[kind] += 1
            if client:
                self._held_by[kind, client] += 1

    def give(self, kind: Kind, client: str = "") -> None:
        """Gives a taken place back."""
        with self._lock:
            assert self._held[kind] > 0, f"a place for {kind} was given back twice"
            self._held[kind] -= 1
            if client:
                self._held_by[kind, client] -= 1
                if not self._held_by[kind, client]:
                    del self._held_by[kind, client]

    @contextmanager
    def slot(self, kind: Kind = "write", client: str = "") -> Iterator[None]:
        """Holds a place for the length of a ``with`` block."""
        self.take(kind, client)
        try:
            yield
        finally:
            self.give(kind, client)

    def _free(self, kind: Kind) -> int:
        if kind == "own":
            room = sum(self._held.values()) < max(1, self.total // 2)
            return self.own_max - self._held["own"] if room else 0
        beyond = sum(max(0, count - self._kept[each]) for each, count in self._held.items() if each != "own")
        return max(0, self._kept[kind] - self._held[kind]) + max(0, self._common - beyond)


_WHO: Mapping[Kind, str] = {
    "watch": "watchers",
    "own": "instances that watch themselves",
    "write": "writes",
    "renewal": "heartbeats",
    "read": "reads that wait",
}


def _overloaded(kind: Kind, limit: int) -> Overloaded:
    message = f"all places for {_WHO[kind]} are taken ({limit} at most); ask another node, or again later"
    return Overloaded(message, limit=limit)
