"""One call to a service: whom to try, whether once more, and what is counted. Pure: ``now`` is given in.

The adapter for requests, the transports for httpx and the gateway ask this, so that all keep the same line. What
certainly did not arrive is tried at another instance, and what may have arrived only if its method may be
repeated (RFC 9110, 9.2.2); in both cases only if there is still a body to send.
"""

import math
from collections.abc import Mapping

from .balancer import Endpoint
from .pool import NO_HEADERS, NoInstances, Pool

TRIES = 3
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
ELSEWHERE = frozenset({502, 503, 504})
"""Answers that say that this instance cannot, and another might."""


class Call:
    """``begin`` the first try, send the request there, and say how that ended: the answer is whom to try then.
    What the last try came to is the caller's, be it an error or an answer.

    ``resendable``: whether the body can be sent a second time. ``key`` and ``headers``: what the balancer and policies
    go by. ``tries`` counts the first one too, but none that was refused at once; after ``until`` there is none.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        method: str,
        resendable: bool,
        key: str,
        headers: Mapping[str, str],
        tries: int,
        until: float = math.inf,
    ) -> None:
        self._pool: Pool = pool
        self._resendable: bool = resendable
        self._again: bool = resendable and method in IDEMPOTENT
        self._key: str = key
        self._headers: Mapping[str, str] = (
            {name.lower(): value for name, value in headers.items()} if pool.policies else NO_HEADERS
        )
        self._tries: int = tries
        self._until: float = until
        self._tried: list[Endpoint] = []
        self._counted: int = 0
        self._began: float = 0.0

    def begin(self, now: float) -> Endpoint:
        """Whom to try. ``NoInstances``: there is nobody."""
        endpoint = self._pool.pick(now, self._key, self._tried, self._headers)
        self._tried.append(endpoint)
        self._began = now
        self._pool.begun(endpoint, now)
        return endpoint

    def failed(self, now: float, *, refused: bool, counts: bool = True) -> Endpoint | None:
        """The try came to nothing. Whom to try then; None: that stands. ``refused``: the request certainly did not
        arrive. ``counts``: it took its time."""
        self._pool.failed(self._tried[-1], now)
        self._counted += counts
        may_go_on = (self._again or (refused and self._resendable)) and self._counted < self._tries
        return self._following(now) if may_go_on and now < self._until else None

    def answered(self, status: int, now: float) -> Endpoint | None:
        """There was an answer. Who may have a better one; None: it is for the caller."""
        if self.may_be_better(status):
            return self.failed(now, refused=False)
        endpoint = self._tried[-1]
        if status in ELSEWHERE:
            self._pool.failed(endpoint, now)
        else:
            self._pool.succeeded(endpoint, now - self._began, now)
        return None

    def may_be_better(self, status: int) -> bool:
        """Whether an answer of this ``status`` is not yet the caller's, since another instance may have a better one:
        then this try ``failed``."""
        return status in ELSEWHERE and self._again and self._counted + 1 < self._tries and self._others()

    def abandoned(self) -> None:
        """The try ended for a reason that says nothing of the instance."""
        self._pool.abandoned(self._tried[-1])

    def _following(self, now: float) -> Endpoint | None:
        try:
            return self.begin(now)
        except NoInstances:
            return None  # nobody is there any more

    def _others(self) -> bool:
        return any(endpoint not in self._tried for endpoint in self._pool.endpoints)
