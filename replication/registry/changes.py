"""The change feed: what changed after an index, and waiting for more.

The newest events are kept, up to a number and a sum of bytes; ``floor`` is the index from which
one can still resume. Reading is by pages that never split an index. Whoever
waits is woken only by events that match its interest: five hundred parked
polls cost nothing to a write that none of them asked about.

``publish`` runs on the log's own thread. It holds the lock for a few
dictionary look-ups, and nobody else holds it for longer than a copy of a
slice of pointers: the events themselves are searched outside of it.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from ..errors import Fatal, Gone
from ..records import Event, Instance

CAPACITY = 100_000
BYTES_MAX = 128 * 1024 * 1024
"""What the events kept may take, about. 100 000 of ordinary instances (a few tags, 1 KB) fit; of the largest that
can be registered there are hundreds, where the number alone would let 25 GB pile up on every node."""

_PART_BYTES = 64
"""A short text or a small record of its own takes this much memory beside what it is encoded as."""

PAGE_EVENTS = 1_000
"""A page ends with the index that brings it to this many events."""

_SLICE = 4_096
_CUT = 1_024
_ABANDONED_CHECK_S = 1.0

_Topic = tuple[str | None, str | None]
"""Env and service; None stands for all of them."""


class Interest(Struct, frozen=True):
    """What a watcher wants to see. None means all; ``services`` are of ``env``, or of any env."""

    env: str | None = None
    services: frozenset[str] | None = None
    id: str | None = None
    """One instance of them only."""

    def wants(self, env: str, service: str) -> bool:
        return (self.env is None or self.env == env) and (self.services is None or service in self.services)

    def topics(self) -> tuple[_Topic, ...]:
        if self.services is None:
            return ((self.env, None),)
        return tuple((self.env, service) for service in self.services)


EVERYTHING = Interest()


class Page(Struct, frozen=True, gc=False):
    """Events in order, those of one index together.

    ``examined`` is the last index that was looked at: watch on from there,
    also when nothing of interest was found.
    """

    events_by_index: tuple[tuple[int, tuple[Event, ...]], ...]
    examined: int


class _Group(Struct, frozen=True, gc=False):
    """The events of one index, and the services they are about."""

    index: int
    events: tuple[Event, ...]
    names: tuple[tuple[str, str], ...]
    bytes: int


class _Waiter:
    """A parked watcher. ``bell`` is a lock that is held until the feed releases it:
    the lightest thing that one thread can wait for and another can give.

    ``rung_at`` is the first index of interest since the watcher last looked;
    all before it is known to be of none, whatever the feed has dropped since.
    """

    __slots__ = ("bell", "rung_at")

    def __init__(self) -> None:
        self.bell = threading.Lock()
        self.bell.acquire()
        self.rung_at: int | None = None

    def ring(self, index: int) -> None:
        if self.rung_at is None:
            self.rung_at = index
        # Only the feed releases, under its own lock; the watcher only acquires.
        if self.bell.locked():
            self.bell.release()


class Changes:
    """The newest changes of the registry.

    ``floor`` is the lowest index after which nothing is missing; ``last`` the
    last index that was published.
    """

    def __init__(self, capacity: int = CAPACITY, bytes_max: int = BYTES_MAX) -> None:
        self.capacity: int = capacity
        self.bytes_max: int = bytes_max
        self.floor: int = 0
        self.last: int = 0
        self._lock = threading.Lock()
        # Two lists side by side, the second for searching. What lies before
        # ``_start`` is dropped already, and cut off a thousand at a time.
        self._groups: list[_Group] = []
        self._indexes: list[int] = []
        self._start = 0
        self._events = 0
        self._bytes = 0
        self._waiters: dict[_Topic, set[_Waiter]] = {}
        self._closed = False

    def publish(self, index: int, events: tuple[Event, ...]) -> None:
        """Adds the events of ``index`` and wakes those who wait for them.

        An index without events is published too: watchers move on past it.
        """
        if not events:
            with self._lock:
                self._move_to(index)
            return
        names = tuple({(event.instance.env, event.instance.service): None for event in events})
        size = sum(_held_bytes(event.instance) for event in events)
        with self._lock:
            self._move_to(index)
            self._groups.append(_Group(index, events, names, size))
            self._indexes.append(index)
            self._events += len(events)
            self._bytes += size
            if self._full():
                self._drop()
            if self._waiters:
                self._wake(index, names)

    def reset(self, index: int) -> list[_Group]:
        """What led to ``index`` is unknown (a snapshot replaced the registry), or means nothing any
        more (its history got another name): who waits from before is ``Gone``.

        Answers what was held, for the caller to let go of: freeing many events takes long.
        """
        with self._lock:
            unseen = self.last + 1
            former, self._groups, self._indexes = self._groups, [], []
            self._start = self._events = self._bytes = 0
            self.floor = self.last = index
            self._wake_all(unseen)
        return former

    def close(self) -> None:
        """Sends every waiter home; from now on nobody waits."""
        with self._lock:
            self._closed = True
            self._wake_all(self.last + 1)

    def since(self, index: int, interest: Interest = EVERYTHING) -> Page:
        """What is of ``interest`` after ``index``, a page of it. Raises ``Gone`` below ``floor``."""
        found: list[tuple[int, tuple[Event, ...]]] = []
        count = 0
        while True:
            with self._lock:
                if index < self.floor:
                    if found:
                        # The rest was dropped while we were reading; that is for the next call to say.
                        return Page(tuple(found), index)
                    raise self._gone(index)
                begin = bisect_right(self._indexes, index)
                groups = self._groups[begin : begin + _SLICE]
                at_end = begin + _SLICE >= len(self._groups)
                last = self.last
            for group in groups:
                events = _of_interest(group, interest)
                index = group.index
                if events:
                    found.append((index, events))
                    count += len(events)
                    if count >= PAGE_EVENTS:
                        return Page(tuple(found), index)
            if at_end:
                return Page(tuple(found), max(index, last))

    def wait(
        self,
        index: int,
        interest: Interest,
        deadline: float,
        abandoned: Callable[[], bool] | None = None,
    ) -> Page:
        """Like ``since``, but waits until there is something, at most until ``deadline``
        (of ``time.monotonic()``), ``close``, or ``abandoned()``, which is asked once a second.

        An index ahead of this node waits for what comes after it.
        """
        with self._parked(interest) as waiter:
            while True:
                page = self.since(index, interest)
                left_s = deadline - time.monotonic()
                if page.events_by_index or left_s <= 0 or self._closed:
                    return page
                if abandoned is not None:
                    if abandoned():
                        return page
                    left_s = min(left_s, _ABANDONED_CHECK_S)
                waiter.bell.acquire(timeout=min(left_s, threading.TIMEOUT_MAX))
                with self._lock:
                    seen = self.last if waiter.rung_at is None else waiter.rung_at - 1
                    waiter.rung_at = None
                index = max(page.examined, seen)

    def _move_to(self, index: int) -> None:
        if index <= self.last:
            raise Fatal(f"index {index} was published after {self.last}")
        self.last = index

    def _full(self) -> bool:
        return self._events > self.capacity or self._bytes > self.bytes_max

    def _drop(self) -> None:
        # The newest index stays, however many events it has.
        while self._full() and self._start < len(self._groups) - 1:
            group = self._groups[self._start]
            self._start += 1
            self._events -= len(group.events)
            self._bytes -= group.bytes
            self._groups[self._start - 1] = _Group(group.index, (), (), 0)  # what it held goes now
            self.floor = group.index
        if self._start >= _CUT:
            del self._groups[: self._start]
            del self._indexes[: self._start]
            self._start = 0

    def _gone(self, index: int) -> Gone:
        return Gone(
            f"index {index} is older than the change feed, which begins after {self.floor}: "
            "read everything again and watch from the index of that answer",
            floor=self.floor,
        )

    @contextmanager
    def _parked(self, interest: Interest) -> Iterator[_Waiter]:
        # Parked before it looks, so that nothing can happen between looking and waiting.
        waiter = _Waiter()
        topics = interest.topics()
        with self._lock:
            for topic in topics:
                self._waiters.setdefault(topic, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                for topic in topics:
                    waiters = self._waiters[topic]
                    waiters.discard(waiter)
                    if not waiters:
                        del self._waiters[topic]

    def _wake(self, index: int, names: tuple[tuple[str, str], ...]) -> None:
        for env, service in names:
            for topic in ((env, service), (env, None), (None, service), (None, None)):
                for waiter in self._waiters.get(topic, ()):
                    waiter.ring(index)

    def _wake_all(self, index: int) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.ring(index)


def _of_interest(group: _Group, interest: Interest) -> tuple[Event, ...]:
    if interest == EVERYTHING:
        return group.events
    if not any(interest.wants(env, service) for env, service in group.names):
        return ()
    return tuple(
        e
        for e in group.events
        if interest.wants(e.instance.env, e.instance.service) and interest.id in (None, e.instance.id)
    )


def _held_bytes(instance: Instance) -> int:
    parts = len(instance.addrs) + len(instance.tags) + 2 * len(instance.meta) + 8 * len(instance.checks)
    return len(msgspec.msgpack.encode(instance)) + _PART_BYTES * parts
