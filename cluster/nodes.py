"""The nodes as one: a call is answered by whichever of them answers, one after the other being asked.

What is sent again, and what not:

    certainly not done (``NotDone``)   always, to the next node, until the deadline
    perhaps done (``Unknown``)         to the next node too: the caller sends only what may be repeated
    anything else                      never: the answer would be the same
"""

import copy
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import requests
from msgspec import Struct
from requests.adapters import HTTPAdapter

from ..replication.errors import NotCaughtUp, NotDone, NotFound, Overloaded, RollcallError, Unknown
from . import forks
from .http import Answer, Session, exchange, left_by_session, session_over
from .members import Members, nodes_from

READ_ATTEMPT_S = 2.0
"""One try of a read: short, because another node can answer it just as well."""

SHARE_S = 1.0
"""This much of a call's time is kept for each node that may still have to be asked, as far as there is as much."""

WAIT_SHARE = 0.6
"""Of one try a node may wait this share at most; the rest is for the way there and back."""

PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 1.0
CONNECTIONS_MAX = 32


class _Asked(Struct, frozen=True):
    """One call, whichever node answers it."""

    method: str
    path: str
    params: Mapping[str, Any]
    body: Any
    headers: Mapping[str, str] | None
    fits: Callable[[Any], bool] | None
    attempt_s: float
    wait_s: float | None
    gone_is_done: bool
    once: bool

    @property
    def catching_up(self) -> bool:
        """Whether nodes may answer that they are behind."""
        return "min_index" in self.params


class _SoFar:
    """What the tries of one call came to."""

    def __init__(self, method: str, path: str) -> None:
        self._failure: NotDone | Unknown = NotDone(f"{method} {path}: no node was asked before the deadline")
        self._perhaps_done: Unknown | None = None

    @property
    def perhaps_done(self) -> bool:
        return self._perhaps_done is not None

    def failed(self, error: NotDone | Unknown) -> None:
        self._failure = error
        if isinstance(error, Unknown):
            self._perhaps_done = error

    def at_the_deadline(self, turn: Sequence[str]) -> RollcallError:
        """What to raise: the last failure, but once something was perhaps done, that."""
        failure = self._perhaps_done or self._failure
        return type(failure)(f"{failure.message} (asked in turn: {', '.join(turn)})", **failure.facts)


class Nodes:
    """The nodes of a cluster, of which a call asks one after the other. May be shared by threads; ``close`` gives its
    connections back."""

    def __init__(self, nodes: str | Iterable[str], *, timeout_s: float, session: Session | None = None) -> None:
        self.timeout_s: float = timeout_s
        urls = nodes_from(nodes)
        # In any order: else all clients of one configuration would go to the same node.
        self._members = Members(random.sample(urls, len(urls)))
        self._lock = forks.Lock()
        self._owned = _session() if session is None else None
        self.session: Session = session if session is not None else self._owned or _session()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: a child has connections of its own. A session that was given is its owner's to renew."""
        if self._owned is not None:
            left_by_session(self._owned)
            self.session = self._owned = _session()

    def over(self, session: Session) -> "Nodes":
        """The same nodes over connections of another session. What either learns of them is known to both."""
        other = copy.copy(self)
        other._owned, other.session = None, session
        return other

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()

    def learned(self, urls: Iterable[str], leader: str | None) -> None:
        """Who the nodes are, and who leads, as one of them said."""
        with self._lock:
            self._members.learned(urls, leader)

    def call(
        self,
        method: str,
        path: str,
        *,
        attempt_s: float,
        timeout_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        fits: Callable[[Any], bool] | None = None,
        gone_is_done: bool = False,
        wait_s: float | None = None,
        once: bool = False,
    ) -> Answer:
        """The first answer that settles the matter, asking one node after the other until the deadline.

        ``fits``: whether an answer's body is about what was asked; one that is not is as good as none.
        Each node gets ``attempt_s``, or less where the others would be left with too little to be
        asked; ``wait_s`` is how long it may wait itself, within that. ``NotCaughtUp`` as soon as all were
        asked for a ``min_index`` and the best that any could say is that it is behind.
        ``gone_is_done``: a ``NotFound`` after an attempt that perhaps
        succeeded is that attempt's success. ``once``: one node is asked, and that is that.
        """
        forks.notice()
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        asked = _Asked(method, path, params or {}, body, headers, fits, attempt_s, wait_s, gone_is_done, once)
        so_far = _SoFar(method, path)
        pause_s = PAUSE_S_MIN
        while True:
            answer = self._each_once(asked, deadline, so_far)
            if answer is not None:
                return answer
            # Everybody was asked: let an election or a restart go on before the next round.
            time.sleep(max(0.0, min(random.uniform(pause_s / 2, pause_s), deadline - time.monotonic())))
            pause_s = min(PAUSE_S_MAX, pause_s * 2)

    def _each_once(self, asked: _Asked, deadline: float, so_far: _SoFar) -> Answer | None:
        """The answer of the first node that has one; None if all were asked in vain."""
        with self._lock:
            turn = self._members.order(time.monotonic())
        turn = turn[:1] if asked.once else turn
        behind: NotCaughtUp | None = None
        for place, url in enumerate(turn):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise so_far.at_the_deadline(turn)
            # Where all are behind, there must be time for the read that tells why.
            try_s = min(asked.attempt_s, _share_s(left_s, len(turn) - place + asked.catching_up))
            try:
                answer = self._tried(asked, url, try_s)
            except (NotDone, Unknown) as error:
                if asked.once and isinstance(error, Overloaded):
                    raise  # it has no place for this, but does all else
                so_far.failed(error)
                if asked.catching_up and isinstance(error, NotCaughtUp):
                    behind = error
                with self._lock:
                    self._members.failed(url, time.monotonic())
                if asked.once:
                    raise
            except RollcallError as error:
                with self._lock:
                    self._members.answered(url)
                if asked.gone_is_done and so_far.perhaps_done and isinstance(error, NotFound):
                    return Answer(200, {}, None)
                raise
            else:
                with self._lock:
                    self._members.answered(url)
                return answer
        if behind is not None:
            raise behind
        return None

    def _tried(self, asked: _Asked, url: str, try_s: float) -> Answer:
        waits = {} if asked.wait_s is None else {"wait": f"{round(min(asked.wait_s, _waiting_s(try_s)), 3):g}s"}
        return exchange(
            self.session,
            asked.method,
            f"{url}/api/v1{asked.path}",
            timeout_s=try_s,
            params={**asked.params, **waits},
            body=asked.body,
            headers=asked.headers,
            fits=asked.fits,
        )


def _share_s(left_s: float, nodes: int) -> float:
    """Of the time that is left, for the next of that many nodes that may have to be asked."""
    return max(left_s / nodes, left_s - SHARE_S * (nodes - 1))


def _waiting_s(try_s: float) -> float:
    """How long a node may wait within one try and still be heard."""
    return max(try_s - READ_ATTEMPT_S, try_s * WAIT_SHARE)


def _session() -> requests.Session:
    return session_over(lambda: HTTPAdapter(pool_maxsize=CONNECTIONS_MAX, max_retries=0))
