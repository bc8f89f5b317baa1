"""Which fault comes when: a plan that follows from a seed, made before anything runs.

A plan is a row of episodes. An episode is one fault, or a few that overlap; at
its end all is healed, and a calm stretch follows, long enough for the cluster to
show that it recovers. Each fault carries a seed of its own for what can only be
chosen when it strikes (which node leads then), so that leaving one fault out
changes nothing about the others.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Kind(NamedTuple):
    """What a plan must know of a kind of fault.

    ``alone``: it strikes so many nodes that no other fault should come on top.
    """

    duration_s: tuple[float, float]
    alone: bool = False
    nodes_min: int = 3


KINDS: Mapping[str, Kind] = {
    "kill": Kind((0.0, 8.0)),
    "kill-most": Kind((0.5, 5.0), alone=True),
    "kill-all": Kind((0.0, 4.0), alone=True),
    "late": Kind((18.0, 30.0)),
    "term": Kind((0.0, 5.0)),
    "rolling": Kind((8.0, 12.0), alone=True),
    "stop": Kind((0.2, 10.0)),
    "stop-all": Kind((0.2, 6.0), alone=True),
    "partition": Kind((1.0, 10.0)),
    "one-way": Kind((1.0, 8.0)),
    "bridge": Kind((1.0, 8.0)),
    "ring": Kind((1.0, 8.0), nodes_min=5),
    "islands": Kind((1.0, 5.0), alone=True),
    "flap": Kind((2.0, 8.0)),
    "slow": Kind((2.0, 8.0)),
    "throttle": Kind((2.0, 8.0)),
    "reset": Kind((1.0, 5.0)),
    "half-open": Kind((1.0, 6.0)),
    "loss": Kind((2.0, 8.0)),
    "unplug": Kind((1.0, 8.0)),
    "strangers": Kind((2.0, 8.0)),
    "power": Kind((0.0, 6.0)),
    "power-all": Kind((0.0, 3.0), alone=True),
    "slow-disk": Kind((2.0, 8.0)),
    "sync-error": Kind((0.5, 5.0)),
    "full-disk": Kind((4.0, 10.0)),
    "clock": Kind((2.0, 8.0)),
    "damage": Kind((1.0, 6.0)),
    "wipe": Kind((1.0, 6.0), alone=True),
}

WARM_S = 5.0
"""Before the first fault."""
CALM_S_MIN, CALM_S_MAX = 6.5, 9.0
"""A write must succeed again within a second once there was no fault for five (I10); and some reserve."""
AT_ONCE = (1, 1, 2, 2, 3)
"""Faults in one episode."""


class Planned(NamedTuple):
    """One fault to come: seconds from the start, its name in the catalogue, how long, and its own seed."""

    at_s: float
    kind: str
    duration_s: float
    sub_seed: int

    @property
    def until_s(self) -> float:
        return self.at_s + self.duration_s


def plan(seed: int, minutes: float, nodes: int, kinds: Collection[str]) -> list[Planned]:
    """The faults of a run, in the order of their beginning; the same arguments give the same plan.

    ``kinds`` are names of ``KINDS``; each comes up before any comes twice. The
    last calm stretch reaches to the end of the run.
    """
    unknown = sorted(set(kinds) - KINDS.keys())
    if unknown:
        raise ValueError(f"no kind of fault is called {unknown[0]!r}: choose from {', '.join(KINDS)}")
    chance = random.Random(seed)
    usable = [kind for kind in KINDS if kind in kinds and KINDS[kind].nodes_min <= nodes]
    turns = _Turns(usable, chance)
    planned: list[Planned] = []
    at_s = WARM_S
    while usable:
        episode = _episode(at_s, turns, chance)
        until_s = max(fault.until_s for fault in episode)
        if until_s + CALM_S_MIN > minutes * 60:
            break
        planned += episode
        at_s = until_s + chance.uniform(CALM_S_MIN, CALM_S_MAX)
    return planned


class _Turns:
    """All kinds in some order, again and again; one that does not fit keeps its place in front."""

    def __init__(self, kinds: Sequence[str], chance: random.Random) -> None:
        self._kinds = kinds
        self._chance = chance
        self._left: list[str] = []

    def next(self, *, alone: bool) -> str | None:
        """The next kind, if ``alone`` is False the next that goes with others; None if this round has no such left."""
        if not self._left:
            self._left = self._chance.sample(self._kinds, len(self._kinds))
        name = next((name for name in self._left if alone or not KINDS[name].alone), None)
        if name is not None:
            self._left.remove(name)
        return name


def _episode(at_s: float, turns: _Turns, chance: random.Random) -> list[Planned]:
    name = turns.next(alone=True)
    assert name is not None
    first = _fault(at_s, name, chance)
    episode = [first]
    more = 0 if KINDS[name].alone else chance.choice(AT_ONCE) - 1
    for _ in range(more):
        name = turns.next(alone=False)
        if name is not None:
            episode.append(_fault(at_s + chance.uniform(0.0, first.duration_s), name, chance))
    return sorted(episode)


def _fault(at_s: float, kind: str, chance: random.Random) -> Planned:
    duration_s = chance.uniform(*KINDS[kind].duration_s)
    return Planned(round(at_s, 3), kind, round(duration_s, 3), chance.getrandbits(32))


def calm(planned: Sequence[Planned], minutes: float) -> list[tuple[float, float]]:
    """The stretches without any fault: (from, until) in seconds from the start."""
    stretches: list[tuple[float, float]] = []
    since_s = 0.0
    for fault in sorted(planned):
        if fault.at_s > since_s:
            stretches.append((since_s, fault.at_s))
        since_s = max(since_s, fault.until_s)
    if since_s < minutes * 60:
        stretches.append((since_s, minutes * 60))
    return stretches
