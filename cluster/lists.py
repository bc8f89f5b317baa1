"""Whole lists, whichever way a node gives them: in one answer, or in pages where it calls them too large for one.

Which lists are too large is remembered, so that from then on pages are asked for at once.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct, structs

from ..replication.errors import Invalid, TooLarge
from ..replication.front.pages import Pages
from . import forks
from .answers import part
from .http import Answer
from .own_writes import Read

T = TypeVar("T")

LARGE_MAX = 1_000
"""As many lists are remembered as too large for one answer."""

TURNS_MAX = 4
"""A list is asked for whole, then in pages, and then again: nodes of two releases may answer in turn."""


class Wanted(Struct, Generic[T], frozen=True, kw_only=True):
    """One list: its items are a ``kind`` each, stand under ``name`` in the answers, and are called by ``naming``.

    ``timeout_s`` is for all of it; where it comes in pages and ``pages_timeout_s`` says so, that is for all of them
    and ``timeout_s`` for each. ``fits``: whether an answer is about what was asked.
    """

    path: str
    name: str
    kind: type[T]
    naming: Callable[[T], Any]
    params: Mapping[str, Any]
    timeout_s: float
    pages_timeout_s: float | None = None
    fits: Callable[[Any], bool] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """What is remembered of it: its path and env."""
        return self.path, str(self.params.get("env", ""))

    def items(self, answer: Answer) -> tuple[T, ...]:
        return part(answer, self.name, tuple[self.kind, ...])


class Lists:
    """Lists by ``read``, and which of them are too large for one answer. May be shared by threads."""

    def __init__(self) -> None:
        self._lock = forks.Lock()
        self._large: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        """How many are remembered as too large."""
        return len(self._large)

    def whole(self, read: Callable[[Read], Answer], wanted: Wanted[T]) -> tuple[Answer, tuple[T, ...]]:
        """All of a list; and the answer that it came in, of pages the first: from its index a watch misses nothing."""
        at_once = Read(wanted.path, wanted.params, time.monotonic() + wanted.timeout_s, wanted.fits)
        for left in reversed(range(TURNS_MAX)):
            paged = wanted.place in self._large
            try:
                if paged:
                    return self._in_pages(read, at_once, wanted)
                answer = read(at_once)
                return answer, wanted.items(answer)
            except TooLarge:
                if paged or not left:
                    raise
                self._note(wanted.place, is_large=True)
            except Invalid as error:
                if not paged or not left or error.field not in ("after", "limit"):
                    raise
                self._note(wanted.place, is_large=False)  # a node of a release without pages: it answers whole
        raise AssertionError("the last turn answers or raises")

    def _in_pages(
        self, read: Callable[[Read], Answer], at_once: Read, wanted: Wanted[T]
    ) -> tuple[Answer, tuple[T, ...]]:
        pages: Pages[T] = Pages(wanted.naming, wanted.params.get("limit"))
        apart_s = wanted.pages_timeout_s
        until = at_once.deadline if apart_s is None else time.monotonic() + apart_s
        head = Answer(0, {}, None)
        while pages.after is not None:
            page = structs.replace(
                at_once,
                params={"after": pages.after, **wanted.params, "limit": pages.limit},
                deadline=until if apart_s is None else min(until, time.monotonic() + wanted.timeout_s),
            )
            answer = read(page)
            if pages.take(wanted.items(answer), answer.body.get("next"), answer.history):
                head = answer
        if pages.count == 1:
            self._note(wanted.place, is_large=False)
        return head, pages.items

    def _note(self, place: tuple[str, str], *, is_large: bool) -> None:
        with self._lock:
            self._large.discard(place)
            if is_large:
                if len(self._large) >= LARGE_MAX:
                    self._large.clear()
                self._large.add(place)
