"""The state of the network between nodes: what each direction of each link does to what is sent over it.

Pure values. ``proxy`` and ``spaces`` are the two networks that put them into force.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

Pair = tuple[str, str]
"""A direction: (from, to)."""


class Condition(NamedTuple):
    """What one direction of a link does.

    ``held`` keeps everything back, as TCP does over a cable that is cut: it
    arrives when the cable is mended. Loss shows as delay for the same reason,
    and exists by itself only where real packets are sent (``spaces``).
    """

    held: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0

    def joined(self, other: "Condition") -> "Condition":
        """Both at once: the worse of each."""
        rates = [rate for rate in (self.bytes_per_s, other.bytes_per_s) if rate is not None]
        return Condition(
            held=self.held or other.held,
            delay_s=max(self.delay_s, other.delay_s),
            jitter_s=max(self.jitter_s, other.jitter_s),
            bytes_per_s=min(rates, default=None),
            loss=max(self.loss, other.loss),
        )


FINE = Condition()
HELD = Condition(held=True)

Conditions = Mapping[Pair, Condition]
"""Directions that are not as they should be; all others are fine."""


class Network(Protocol):
    """What carries the bytes between the nodes. Methods are for one thread at a time, and return when in force."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def apply(self, conditions: Conditions, down: Collection[str]) -> None:
        """From now on the links are in these conditions; the nodes that are ``down`` refuse connections."""
        ...


def joined(layers: Iterable[Conditions]) -> dict[Pair, Condition]:
    """Several states in force at once."""
    result: dict[Pair, Condition] = {}
    for layer in layers:
        for pair, condition in layer.items():
            result[pair] = result.get(pair, FINE).joined(condition)
    return result


def all_pairs(names: Iterable[str]) -> list[Pair]:
    return list(itertools.permutations(names, 2))


def between(one: Collection[str], other: Collection[str]) -> list[Pair]:
    """Both directions of every link from one group to another."""
    return [pair for a in one for b in other if a != b for pair in ((a, b), (b, a))]


def towards(sources: Collection[str], targets: Collection[str]) -> list[Pair]:
    """One direction of every link from one group to another."""
    return [(a, b) for a in sources for b in targets if a != b]
