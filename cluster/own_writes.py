"""Calls whose reads show this client's own writes, on whichever node they land, and never run backwards.

A read asks for a copy at least as new as anything that was written or seen before (``min_index``). Only if the
registry itself began anew (all its disks were wiped, or it was put back from a copy) is it begun anew with, at once:
nodes name the history that their index is of (``seen``), and refuse one that never was. The log says so.
Nodes of older releases name none: then a read that is never stale tells.

Writes carry an ``Idempotency-Key`` that is the same in every try, so a second one changes nothing.

Reference: read your writes and monotonic reads, two of the session guarantees of Terry et al., 1994.
"""

import copy
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from ..replication.errors import Gone, NotCaughtUp
from . import forks
from .http import Answer, history_of
from .nodes import READ_ATTEMPT_S, Nodes
from .seen import Seen

logger = logging.getLogger(__name__)

CATCH_UP_S = 1.0
"""How long a node may wait to become new enough for a read, before the next is asked."""

WRITE_ATTEMPT_S = 7.0
"""One try of a write: a node holds it up to its write_timeout (5 s) for an election to finish."""


class Read(Struct, frozen=True):
    """What is to be read by when, whichever node answers. ``fits``: whether an answer is about that."""

    path: str
    params: Mapping[str, Any]
    deadline: float
    fits: Callable[[Any], bool] | None = None


class OwnWrites:
    """Calls to the nodes that remember the highest index seen, and the history that it is of. May be shared by
    threads."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes: Nodes = nodes
        self._lock = forks.Lock()
        self._seen = Seen()

    def over(self, nodes: Nodes) -> "OwnWrites":
        """The same by other ``nodes``; what either learns is known to both."""
        other = copy.copy(self)
        other._nodes = nodes
        return other

    @property
    def history(self) -> str:
        """The name of the registry's history, as far as this client knows; empty while none was told."""
        with self._lock:
            return self._seen.history

    def saw(self, index: int, history: str = "") -> None:
        """Reads are of copies not older than ``index`` of ``history`` from here on."""
        with self._lock:
            before = self._seen.history
            anew = self._seen.took(history, index)
        if anew:
            logger.warning("the registry began anew: its history is called %s and was called %s", history, before)

    def refused(self, history: str, index: int, error: Gone) -> None:
        """What was seen is of another registry than the one that says so, and is forgotten."""
        self._forget(history, index, history_of(error.facts.get("history")), error.message)

    def call(self, method: str, path: str, **options: Any) -> Answer:
        """As ``Nodes.call``."""
        answer = self._nodes.call(method, path, **options)
        self.saw(0, answer.history)
        return answer

    def write(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any],
        body: Any = None,
        timeout_s: float | None = None,
        key: str = "",
        fits: Callable[[Any], bool] | None = None,
        gone_is_done: bool = False,
    ) -> Answer:
        answer = self.call(
            method,
            path,
            params=params,
            body=body,
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
            attempt_s=WRITE_ATTEMPT_S,
            timeout_s=timeout_s,
            fits=fits,
            gone_is_done=gone_is_done,
        )
        self.saw(answer.index, answer.history)
        return answer

    def read(self, read: Read) -> Answer:
        try:
            answer = self._read_at(read)
        except Gone:
            # What this client had seen is of another registry, and it has forgotten that: there is nothing to wait for.
            answer = self._read_with(read)
        self.saw(answer.index, answer.history)
        return answer

    def read_now(self, path: str, params: Mapping[str, Any], fits: Callable[[Any], bool] | None = None) -> Answer:
        """As ``read``, within the time that any call has."""
        return self.read(Read(path, params, time.monotonic() + self._nodes.timeout_s, fits))

    def _read_at(self, read: Read) -> Answer:
        """Of a copy not older than what was seen. ``Gone``: that is of another registry, and is forgotten now."""
        with self._lock:
            history, index = self._seen.history, self._seen.index
        if not index:
            return self._read_with(read)
        try:
            return self._read_with(read, min_index=index, history=history or None)
        except Gone as error:
            self.refused(history, index, error)
            raise
        except NotCaughtUp:
            # Is everybody behind, or is it another registry than the one that this client knew? A read that is
            # never stale tells.
            answer = self._read_with(read, consistency="linearizable")
            if answer.index < index and answer.history in ("", history):
                self._forget(history, index, answer.history, f"it is at index {answer.index}")
            return answer

    def _read_with(self, read: Read, **more: Any) -> Answer:
        return self.call(
            "GET",
            read.path,
            params={**read.params, **more},
            attempt_s=READ_ATTEMPT_S,
            timeout_s=max(0.0, read.deadline - time.monotonic()),
            wait_s=CATCH_UP_S if "min_index" in more else None,
            fits=read.fits,
        )

    def _forget(self, history: str, index: int, told: str, why: str) -> None:
        with self._lock:
            news = self._seen.refused(history, index, told)
        if news:
            logger.warning("the registry began anew: %s; this client had seen index %d", why, index)
