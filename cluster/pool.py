"""The instances of one service as one client uses them.

Pure, as the balancers are: ``now`` and chance are given in. A pool holds the
list, how calls to each instance went, whom to leave alone for a while
(``Caution``), and which calls go to which part of the list (``Policy``).

An instance that fails several times in a row is shunned, for longer each time.
A client that cannot reach most of the list is more likely to be at fault
itself than the list is: only a share of it is ever shunned.
"""

import math
import random
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from ..replication.errors import RollcallError
from ..replication.policies import Policy
from ..replication.records import Instance
from .balancer import Balancer, Endpoint, Pick


class NoInstances(RollcallError, LookupError):
    """There is nobody to call. ``service`` has no instance, or none that was not tried already."""

    status: ClassVar[int] = 503
    title: ClassVar[str] = "Service not available"

    def __init__(self, service: str, why: str = "it has no instance that serves") -> None:
        super().__init__(f"no instance of {service!r}: {why}", service=service)
        self.service: str = service


class Caution(Struct, frozen=True, kw_only=True):
    """Outlier ejection: after ``failures`` in a row an instance gets no calls for ``shun_s``, twice as long each
    further time, up to ``shun_s_max``; never more than ``share_max`` of the list."""

    failures: Annotated[int, Meta(ge=1)] = 3
    shun_s: float = 5.0
    shun_s_max: float = 120.0
    share_max: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5


CAUTION = Caution()


NO_HEADERS: Mapping[str, str] = {}


class Pool:
    """The instances of one service, how calls to them went, and which one to call next. May be shared by threads.

    ``balancer`` makes one for each part of the list; ``why_nobody`` says why the list is empty."""

    def __init__(
        self,
        service: str,
        balancer: Callable[[], Balancer],
        *,
        policies: Iterable[Policy] = (),
        caution: Caution = CAUTION,
        chance: random.Random | None = None,
        why_nobody: Callable[[str], str] | None = None,
    ) -> None:
        self.service: str = service
        self.used: bool = True
        """Set by each use, and taken back by whatever wants to know whether there are any (``following``)."""
        # Not a method: a pool that refers to itself would outlive its owner's last word on it until a collection.
        self._nobody: Pick = partial(_nobody, service, why_nobody)
        self.policies: tuple[Policy, ...] = ()
        self._make_balancer: Callable[[], Balancer] = balancer
        self._balancers: list[Balancer] = [balancer()]
        """Of the general pool, and then one for each policy."""
        self._by_header: list[tuple[Policy, Pick]] = []
        self._caution: Caution = caution
        self._chance: random.Random = chance or random.Random()
        self._lock = threading.Lock()
        self._endpoints: dict[str, Endpoint] = {}
        self._pick: Pick = self._nobody
        self._look_again_at: float = math.inf
        self.route(policies, 0.0)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All of them, also those that are shunned."""
        return tuple(self._endpoints.values())

    def update(self, instances: Iterable[Instance], now: float) -> None:
        """Another list. How calls to an instance went is kept while it stays where it is."""
        with self._lock:
            kept: dict[str, Endpoint] = {}
            for instance in instances:
                endpoint = self._endpoints.get(instance.id)
                if endpoint is None or _place(endpoint.instance) != _place(instance):
                    endpoint = Endpoint(instance)
                endpoint.instance = instance
                kept[instance.id] = endpoint
            self._endpoints = kept
            self._arrange(now)

    def route(self, policies: Iterable[Policy], now: float) -> None:
        """Other policies; those of other services do not matter."""
        wanted = tuple(policy for policy in policies if policy.service == self.service)
        with self._lock:
            if wanted == self.policies:
                return
            general, *others = self._balancers
            kept = list(zip(self.policies, others, strict=True))
            found = [next((b for before, b in kept if before == policy), None) for policy in wanted]
            self.policies = wanted
            self._balancers = [general, *(balancer or self._make_balancer() for balancer in found)]
            self._arrange(now)

    def pick(
        self, now: float, key: str = "", without: Collection[Endpoint] = (), headers: Mapping[str, str] = NO_HEADERS
    ) -> Endpoint:
        """One to call. ``without``: those that were tried already; ``headers`` (names in lower case): what policies
        that go by a header look at. Raises ``NoInstances``."""
        self.used = True
        if now >= self._look_again_at:
            with self._lock:
                self._arrange(now)
        chosen = self._chosen(now, key, headers)
        if not without or chosen not in without:
            return chosen
        left = [endpoint for endpoint in self.endpoints if endpoint not in without]
        if not left:
            raise NoInstances(self.service, "all of them were tried")
        # Of a second try something is known: some fail, and where calls pile up nobody answers.
        ranks = [(endpoint.failures, endpoint.active) for endpoint in left]
        least = min(ranks)
        return self._chance.choice([endpoint for endpoint, rank in zip(left, ranks, strict=True) if rank == least])

    def _chosen(self, now: float, key: str, headers: Mapping[str, str]) -> Endpoint:
        if headers:
            for policy, pick in self._by_header:
                if policy.asked_for(headers):
                    return pick(now, key)
        return self._pick(now, key)

    def begun(self, endpoint: Endpoint, now: float) -> None:
        """A call to it is under way. Say how it ended: ``succeeded``, ``failed`` or ``abandoned``."""
        with self._lock:
            endpoint.active += 1
            if endpoint.shuns and endpoint.shunned_until <= now and self._may_shun(now):
                # It is tried again, by this call alone: until that went well, the others stay away.
                self._shun(endpoint, now)

    def succeeded(self, endpoint: Endpoint, latency_s: float, now: float) -> None:
        with self._lock:
            endpoint.active -= 1
            endpoint.failures = endpoint.shuns = 0
            endpoint.took(latency_s, now)
            if endpoint.shunned_until > now:
                endpoint.shunned_until = -math.inf
                self._arrange(now)

    def failed(self, endpoint: Endpoint, now: float) -> None:
        with self._lock:
            endpoint.active -= 1
            if endpoint.shunned_until > now:
                return  # one death breaks off many calls: that is no second time
            endpoint.failures += 1
            if endpoint.failures >= self._caution.failures and self._may_shun(now):
                self._shun(endpoint, now)

    def abandoned(self, endpoint: Endpoint) -> None:
        """The caller lost interest: that says nothing of the instance."""
        with self._lock:
            endpoint.active -= 1

    def _shun(self, endpoint: Endpoint, now: float) -> None:
        pause_s = min(self._caution.shun_s_max, self._caution.shun_s * 2.0 ** min(endpoint.shuns, 30))
        endpoint.shuns += 1
        endpoint.shunned_until = now + pause_s
        self._arrange(now)

    def _may_shun(self, now: float) -> bool:
        shunned = sum(endpoint.shunned_until > now for endpoint in self._endpoints.values())
        return shunned + 1 <= int(self._caution.share_max * len(self._endpoints))

    def _arrange(self, now: float) -> None:
        every = tuple(self._endpoints.values())
        calm = [endpoint for endpoint in every if endpoint.shunned_until <= now]
        self._look_again_at = min((e.shunned_until for e in every if e.shunned_until > now), default=math.inf)
        self._by_header = []
        self._pick = self._routed(calm or every) if every else self._nobody

    def _routed(self, endpoints: Sequence[Endpoint]) -> Pick:
        """Picks among those that a drawn policy matches, or among those that none does."""
        if not self.policies:
            return self._balancers[0].arranged(endpoints)
        parts: list[list[Endpoint]] = [[] for _ in self._balancers]
        for endpoint in endpoints:
            matching = [n for n, policy in enumerate(self.policies, 1) if policy.matches(endpoint.instance)]
            for number in matching or [0]:
                parts[number].append(endpoint)
        general = parts[0] or endpoints
        picks = [b.arranged(part or general) for b, part in zip(self._balancers, parts, strict=True)]
        ends: list[tuple[float, Pick]] = []
        end = 0.0
        for policy, pick, part in zip(self.policies, picks[1:], parts[1:], strict=True):
            if policy.header:
                if part:
                    self._by_header.append((policy, pick))
                continue
            end += policy.percent / 100
            ends.append((end, pick))
        draw, others = self._chance.random, picks[0]

        def routed(now: float, key: str) -> Endpoint:
            drawn = draw()
            for end, pick in ends:
                if drawn < end:
                    return pick(now, key)
            return others(now, key)

        return routed


def _nobody(service: str, why: Callable[[str], str] | None, now: float, key: str) -> Endpoint:
    if why is None:
        raise NoInstances(service)
    raise NoInstances(service, why(service))


def _place(instance: Instance) -> tuple[str, str, int, tuple[str, ...]]:
    return instance.hostname, instance.address, instance.port, instance.addrs
