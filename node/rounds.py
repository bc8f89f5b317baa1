"""Rounds: what many threads ask of the leader at once goes in one message.

Whoever asks first sends at once; whoever asks meanwhile joins the next round, which leaves
as soon as the first returned. No timer, no thread of its own, one message on the way at a time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from ..replication.errors import NotDone, RollcallError, Unknown

ROUND_MAX = 1_000
"""Items in one round (heartbeats, where an item is some of them), unless it is one item alone; what is over
waits for the next. Either end is done with this many in a few milliseconds."""
ROUND_BYTES_MAX = 1024 * 1024
"""What they take, unless it is one alone."""

T = TypeVar("T")
R = TypeVar("R")


class _Asked(Generic[T, R]):
    __slots__ = ("answer", "answered", "deadline", "error", "item", "leads")

    def __init__(self, item: T, deadline: float) -> None:
        self.item: T = item
        self.deadline: float = deadline
        self.answered: threading.Event = threading.Event()
        self.answer: R | None = None
        self.error: RollcallError | None = None
        self.leads: bool = False


class Rounds(Generic[T, R]):
    """Gathers what threads ask and sends it in rounds.

    ``send(items, deadline)`` answers all items of a round, in their order, or
    raises a ``RollcallError`` that then reaches everybody in it. It runs on the
    thread of the one who has the most time, so that nobody who has more is told
    that it is up. ``size`` is what an item takes in a message, ``count`` for how many it counts.
    """

    def __init__(
        self,
        send: Callable[[list[T], float], Sequence[R]],
        size: Callable[[T], int] = lambda item: 0,
        count: Callable[[T], int] = lambda item: 1,
    ) -> None:
        self._send: Callable[[list[T], float], Sequence[R]] = send
        self._size: Callable[[T], int] = size
        self._count: Callable[[T], int] = count
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[T, R]] = deque()
        self._under_way: bool = False

    def ask(self, item: T, deadline: float) -> R:
        """The answer to ``item``, by ``deadline``; ``NotDone`` if no round left in time."""
        asked: _Asked[T, R] = _Asked(item, deadline)
        with self._lock:
            self._waiting.append(asked)
            if not self._under_way:
                self._under_way = True
                asked.leads = True
        if not asked.leads and not asked.answered.wait(max(0.0, deadline - time.monotonic())):
            with self._lock:
                if asked in self._waiting:
                    self._waiting.remove(asked)
        if asked.leads:
            self._lead(asked)
        if asked.error is not None:
            raise asked.error
        if asked.answer is None:
            raise NotDone("the leader was not reached in time")
        return asked.answer

    def _lead(self, own: _Asked[T, R]) -> None:
        with self._lock:
            if own in self._waiting:
                self._waiting.remove(own)
            group = self._that_fit([own, *self._waiting])
            for _ in group[1:]:
                self._waiting.popleft()
        error: RollcallError | None = Unknown("the question was not asked to its end")
        answers: Sequence[R | None] = [None] * len(group)
        try:
            answers = self._send([asked.item for asked in group], own.deadline)
            error = None
        except RollcallError as problem:
            error = problem
        finally:
            with self._lock:
                # Those that have waited longest, as many as one round takes: one of them sends it, so all get a turn.
                following = max(self._that_fit(self._waiting), key=lambda asked: asked.deadline, default=None)
                self._under_way = following is not None
                if following is not None:
                    following.leads = True
            for asked, answer in zip(group, answers, strict=True):
                asked.answer, asked.error = answer, error
                asked.answered.set()
            if following is not None:
                following.answered.set()

    def _that_fit(self, asked: Iterable[_Asked[T, R]]) -> list[_Asked[T, R]]:
        """The first of ``asked``, and those after it that fit in one round with it."""
        group: list[_Asked[T, R]] = []
        size = count = 0
        for each in asked:
            size += self._size(each.item)
            count += self._count(each.item)
            if group and (size > ROUND_BYTES_MAX or count > ROUND_MAX):
                break
            group.append(each)
        return group
