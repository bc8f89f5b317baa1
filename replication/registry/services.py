"""The services of the registry and how they are read while one thread changes them.

Any number of threads read, without a lock. That works because

- records are values, replaced whole;
- the reads of a dict used here (``get``, ``copy``, ``tuple(d.values())``) are
  single steps in CPython: no other thread runs in the middle of one;
- a service is changed between two counts of its ``version`` (odd: under way),
  so that a reader can tell that it saw half of a change, and look again.

A snapshot shares its services with the registry, so taking one costs next to
nothing: ``Registry.root`` begins a new era, and a service of an older era is
copied before it is changed.
"""

import time
from collections.abc import Callable, Collection, Iterable
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import Struct

from ..errors import Fatal
from ..records import Instance

SORT_MAX = 4_096
"""Names or records sorted at a time: no other thread runs in the middle of a sort."""

LOOKS_MAX = 10_000
LOOK_AGAIN_S = 0.0005

ServiceName = tuple[str, str]
"""Env and service."""

_by_id = attrgetter("id")


class ServiceView(Struct, frozen=True, gc=False):
    """One service at one moment; its instances are sorted by id.

    Two views of a service with the same ``modify_index`` are equal, so what is
    made of a view can be cached by it. ``latest_timestamp`` (ns) is when the
    service last changed; it strictly increases, also across its removal.
    """

    env: str
    name: str
    modify_index: int
    latest_timestamp: int
    instances: tuple[Instance, ...]


class ServiceOutline(NamedTuple):
    """What is known of a service without looking at its instances, however many they are."""

    modify_index: int = 0
    latest_timestamp: int = 0
    instances: int = 0


class ServiceState:
    """The instances of one service, and the last view that was made of them."""

    __slots__ = ("digest", "era", "instances", "latest_timestamp", "modify_index", "name", "version", "view")

    def __init__(self, name: ServiceName, era: object) -> None:
        self.name = name
        self.era = era
        self.instances: dict[str, Instance] = {}
        self.modify_index: int = 0
        self.latest_timestamp: int = 0
        self.digest: int = 0
        self.version: int = 0
        self.view: tuple[int, ServiceView] | None = None

    def copy(self, era: object) -> "ServiceState":
        """The same service for the registry to change, while a snapshot keeps this one."""
        copy = ServiceState(self.name, era)
        copy.instances = self.instances.copy()
        copy.modify_index = self.modify_index
        copy.latest_timestamp = self.latest_timestamp
        copy.digest = self.digest
        copy.version = self.version
        copy.view = self.view
        return copy

    def change(self, changed: dict[str, Instance | None], modify_index: int, latest_timestamp: int) -> None:
        """Takes over ``changed`` (None: removed), all of it at once for every reader."""
        self.version += 1
        for id, instance in changed.items():
            if instance is None:
                self.instances.pop(id, None)
            else:
                self.instances[id] = instance
        self.modify_index = modify_index
        self.latest_timestamp = latest_timestamp
        self.version += 1

    def look(self) -> ServiceView:
        """The service as it is now. For any thread."""
        # The applying thread is in the middle of a change for microseconds, and
        # for a few milliseconds when a batch changes thousands of instances.
        for _ in range(LOOKS_MAX):
            version = self.version
            cached = self.view
            if cached is not None and cached[0] == version:
                return cached[1]
            if version % 2 == 0:
                instances = tuple(self.instances.values())
                modify_index, latest_timestamp = self.modify_index, self.latest_timestamp
                if self.version == version:
                    env, name = self.name
                    in_order = tuple(ordered(instances, _by_id))
                    view = ServiceView(env, name, modify_index, latest_timestamp, in_order)
                    self.view = (version, view)
                    return view
            elif cached is not None and cached[0] == version - 1:
                # What was true until a change that is not finished is still an answer.
                return cached[1]
            time.sleep(LOOK_AGAIN_S)
        raise Fatal(f"a change of service {self.name} was begun and not finished")

    def outline(self) -> ServiceOutline:
        """What is known of it now; a later ``look`` shows that state or a newer one. For any thread."""
        for _ in range(LOOKS_MAX):
            version = self.version
            if version % 2 == 0:
                outline = ServiceOutline(self.modify_index, self.latest_timestamp, len(self.instances))
                if self.version == version:
                    return outline
            time.sleep(LOOK_AGAIN_S)
        raise Fatal(f"a change of service {self.name} was begun and not finished")

    def head(self) -> tuple[str, str, int, int]:
        """What a snapshot and the digest hold of the service besides its instances."""
        return (*self.name, self.modify_index, self.latest_timestamp)


def ordered(values: Collection[Any], key: Callable[[Any], Any] | None = None) -> Iterable[Any]:
    """``sorted``, but other threads run in between where there are many. ``values`` must not change meanwhile."""
    if len(values) <= SORT_MAX:
        return sorted(values, key=key)
    left = iter(values)
    return merge(*(sorted(islice(left, SORT_MAX), key=key) for _ in range(0, len(values), SORT_MAX)), key=key)
