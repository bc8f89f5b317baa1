"""Instances with a health check, and whom their checks ask: servers of the run's own process.

Most of them are well all the time. The others fall ill and get well again (``Moods``), which goes
into the book. Nobody renews any of them, so that their checks alone speak for them.
"""

import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from harness import traffic
from harness.served import Served

from chaos.desk import CHECKED, Place
from chaos.ledger import Checked, Ledger, Turned
from chaos.nodes import NetworkKind

STEADY, MOODY = 8, 4
OUT_AFTER_S = 10.0
"""A steady one that was critical for so long would be taken out."""
MOOD_S = (12.0, 25.0)
"""How long a moody one is well, or ill."""


class Target(NamedTuple):
    """An instance, and who answers for it."""

    place: Place
    served: Served


class Targets:
    """All that is asked; a context manager closes the servers. ``why_not``: why there is nothing to ask."""

    def __init__(self, network: NetworkKind) -> None:
        away = network == "namespaces"
        self.why_not: str = "nodes in namespaces do not reach the 127.0.0.1 of this process" if away else ""
        steady, moody = (0, 0) if away else (STEADY, MOODY)
        self._steady: Served = Served("steady")
        self.steady: list[Target] = [_target(f"steady-{n}", self._steady, OUT_AFTER_S) for n in range(steady)]
        self.moody: list[Target] = [_target(f"moody-{n}", Served("moody")) for n in range(moody)]

    def __enter__(self) -> "Targets":
        return self

    def __exit__(self, *_: object) -> None:
        for served in (self._steady, *(target.served for target in self.moody)):
            served.close()

    @property
    def places(self) -> list[Place]:
        """What is to be registered."""
        return [target.place for target in (*self.steady, *self.moody)]

    def introduce(self, ledger: Ledger) -> None:
        """Notes who is there, all of them well."""
        for targets, steady in ((self.steady, True), (self.moody, False)):
            for target in targets:
                ledger.note(Checked(key=target.place.key, steady=steady, at=time.monotonic()))


def _target(id: str, served: Served, out_after_s: float | None = None) -> Target:
    return Target(Place(CHECKED, id, None, f"http://127.0.0.1:{served.port}/{id}", out_after_s), served)


class Moods(traffic.Client):
    """Lets targets fall ill and get well, each at times of its own."""

    rest_s = 0.1

    def __init__(self, moody: Sequence[Target], ledger: Ledger, *, seed: int) -> None:
        super().__init__("moods")
        self._chance = random.Random(f"{seed}/{self.name}")
        self._ledger = ledger
        self._due = [(time.monotonic() + self._chance.uniform(*MOOD_S), target) for target in moody]

    def turn(self) -> None:
        now = time.monotonic()
        self._due = [(self._turned(target, now) if now >= at else at, target) for at, target in self._due]

    def _turned(self, target: Target, now: float) -> float:
        """Until when it is otherwise now."""
        well = target.served.status != 200
        target.served.status = 200 if well else 500
        self._ledger.note(Turned(key=target.place.key, well=well, at=time.monotonic()))
        return now + self._chance.uniform(*MOOD_S)
