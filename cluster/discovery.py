"""Answers "whom do I call?" from memory: one watch for all services that a program asks about.

>>> with Discovery(nodes) as discovery:
...     discovery.pick("cart").url
'http://10.0.0.7:8080'

The first question about a service asks the registry. From then on a thread follows
its changes, with one connection for all services, and reads everything again every
30 to 35 s, and at once when the registry began anew. Lists are swapped whole. What is
known stays in use when no node answers; ``age_s`` says how old it is. A program that knows
nothing yet takes what was kept on disk. Where nobody serves, the fallback is used; without
one, ``NoInstances`` is raised. An empty list is believed only if the node that gave it
was up to date.

Of many names (``following``) the whole env is watched, and lists are read again a few at a
time, so that changes are followed meanwhile. A name that nobody asks for is forgotten.
"""

import contextlib
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from ..replication.api import Listing
from ..replication.errors import Gone, Invalid, NotCaughtUp, NotDone, RollcallError, Unknown
from ..replication.records import DEFAULT_ENV, Instance
from . import forks
from .balancer import Balancer, Endpoint, RoundRobin
from .client import Client
from .following import Known
from .interruptible import Interrupted, Interruptible
from .kept_file import KeptFile
from .members import DEFAULT_NODES, nodes_from
from .names import service_name
from .pool import CAUTION, Caution, NoInstances, Policy, Pool
from .service_lists import ServiceLists

logger = logging.getLogger(__name__)

REFRESH_S = 30.0
REFRESH_S_SPREAD = 5.0
"""Everything is read again after 30 s and up to 5 s more, so that a thousand clients do not come at once."""

FIRST_S = 2.0
"""How long the first question about a service may take."""

PAGES_S = 30.0
"""How long the thread may read a list that comes in pages, each of which may take ``FIRST_S``."""

POLL_S = 30.0
PATIENCE_S = 1.0
"""With nodes that do not answer a poll; then the loop looks what else is to be done."""

POLICIES_S = 5.0
"""Between two looks at the registry's policies."""

SILENT_MAX = 2
"""Questions in a row that no node answers; then the registry is down, and not one service in trouble."""

RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0

SLICE_S = 0.2
"""How long lists are read again before changes are looked at in between."""

SWEEP_S = 10.0
"""Between two looks at which names nobody asks for."""


class Discovery:
    """The instances of services, in lists that one watch keeps up to date; ``pick`` chooses one to call.

    May be shared by threads; a forked child begins anew by itself. ``balancer`` makes a balancer for each service.
    ``fallback`` names ``HOST:PORT`` or URLs for services that must be found even if the registry never answered.
    ``follow_policies``: routing policies of the registry are in force here too, after ``policies``. ``keep``: a file in
    which lists are kept, for a program that starts while the registry is down. ``close``
    ends the thread; so does the end of a ``with``.
    """

    def __init__(
        self,
        nodes: str | Iterable[str] = DEFAULT_NODES,
        *,
        env: str = DEFAULT_ENV,
        balancer: Callable[[], Balancer] = RoundRobin,
        policies: Iterable[Policy] = (),
        caution: Caution = CAUTION,
        fallback: Mapping[str, Iterable[str]] | None = None,
        keep: str | os.PathLike[str] | None = None,
        refresh_s: float = REFRESH_S,
        follow_policies: bool = False,
    ) -> None:
        self._urls: tuple[str, ...] = nodes_from(nodes)
        self.env: str = env
        self._balancer: Callable[[], Balancer] = balancer
        self._policies: tuple[Policy, ...] = tuple(policies)
        self._follow_policies: bool = follow_policies
        self._caution: Caution = caution
        self._fallback: dict[str, tuple[Instance, ...]] = {
            service: tuple(_fallback(env, service, place) for place in places)
            for service, places in (fallback or {}).items()
        }
        self._file: KeptFile = KeptFile(keep, env)
        self._refresh_s: float = refresh_s
        self._begin()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: the thread stayed with the parent, and its connections must not be used by two."""
        self._begin()

    def _begin(self) -> None:
        """With nothing known: at first, and again in a forked child."""
        self._lists: ServiceLists = ServiceLists(
            fallback=self._fallback, kept=self._file.load(), keeps=bool(self._file)
        )
        self._round: list[str] = []
        """What is still to be read again in the round under way; ``_round_failure`` is what went wrong in it."""
        self._round_failure: RollcallError | None = None
        self._sweep_at: float = time.monotonic() + SWEEP_S
        self._unheard: bool = False
        """Whether no node answered last."""
        self._in_force: tuple[Policy, ...] = self._policies
        self._policies_at: float = 0.0
        self._refresh_at: float = time.monotonic() + self._pause_s()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._client = Client(self._urls, env=self.env, timeout_s=FIRST_S)
        self._line = Interruptible()
        self._watcher = self._client.over(self._line)
        self._reading_line = Interruptible()
        self._reader = self._client.over(self._reading_line)
        """The thread's, for lists: one of many pages is broken off only by ``close``."""

    # -- asking --------------------------------------------------------------------

    def pick(self, service: str, key: str = "", *, without: Collection[Endpoint] = ()) -> Endpoint:
        """One instance to call, chosen by the balancer. ``key``: for those that go by one; ``without``:
        those that were tried already. Raises ``NoInstances``, or ``Invalid`` where no service can be called so."""
        forks.notice()
        pool = self._lists.pools.get(service) or self._follow(service)
        return pool.pick(time.monotonic(), key, without)

    def instances(self, service: str) -> tuple[Instance, ...]:
        """All that should get traffic. Raises ``NoInstances`` if there are none."""
        found = tuple(endpoint.instance for endpoint in self.pool(service).endpoints)
        if not found:
            raise NoInstances(service, self.why_nobody(service))
        return found

    def pool(self, service: str) -> Pool:
        """The instances of a service with how calls to them went, for callers by other means. To be asked for
        before each call: one that is not used for long is not followed any more."""
        forks.notice()
        pool = self._lists.pools.get(service) or self._follow(service)
        pool.used = True
        return pool

    def at_hand(self, service: str) -> Pool | None:
        """As ``pool``, if that has to wait for nothing; else None."""
        forks.notice()
        pool = self._lists.pools.get(service)
        if pool is not None:
            pool.used = True
        return pool

    def pools(self) -> tuple[Pool, ...]:
        """Those of all services that are followed."""
        return tuple(known.pool for known in list(self._lists.known.values()))

    def age_s(self, service: str) -> float | None:
        """How long ago the registry last confirmed what is known of a service; None: never."""
        known = self._lists.known.get(service)
        return None if known is None or known.confirmed_at == -math.inf else time.monotonic() - known.confirmed_at

    def close(self) -> None:
        forks.notice()
        self._stop.set()
        self._line.interrupt()
        self._reading_line.interrupt()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(FIRST_S + 1.0)
        self._client.close()
        self._line.close()
        self._reading_line.close()

    def __enter__(self) -> "Discovery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- a service that is asked about for the first time --------------------------

    def _follow(self, service: str) -> Pool:
        service_name(service)
        known, is_new = self._lists.added(service, lambda: self._pool(service), time.monotonic())
        self._start()
        if is_new:
            try:
                self._ask(service, known)
            finally:
                known.asked.set()
        else:
            # Meanwhile others wait for that answer; asking again is the thread's, so that no call waits for it.
            known.asked.wait(FIRST_S)
        self._lists.put_in_place(known)
        return known.pool

    def _pool(self, service: str) -> Pool:
        return Pool(service, self._balancer, policies=self._in_force, caution=self._caution, why_nobody=self.why_nobody)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            if not forks.threads_run():
                logger.warning(
                    "lists of services change only while this process answers a request, and are old after a quiet "
                    "time: threads do not run in it. Start uWSGI with enable-threads"
                )
            self._thread = threading.Thread(target=self._run, name="rollcall discovery", daemon=True)
            self._thread.start()

    def _sweep(self) -> None:
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._lists.sweep(now, unheard=self._unheard)

    def why_nobody(self, service: str) -> str:
        """Why a service has nobody to call, in a sentence."""
        known = self._lists.known.get(service)
        if known is not None and known.index < 0:
            return "no node of the registry answered, and none is known otherwise"
        if self._unheard:
            return "it had no instance that served when a node of the registry answered last"
        return "it has no instance that serves"

    def _ask(self, service: str, known: Known) -> None:
        until = time.monotonic() + FIRST_S
        try:
            self._take(known, self._client.instances(service, health="any", timeout_s=FIRST_S))
            if not self._lists.is_watched(known):
                self._line.interrupt()  # the watch goes on with one service more, from where that was read
        except Invalid:
            self._lists.forget(known)
            raise
        except RollcallError as error:
            instead = self._lists.take_instead(known, time.monotonic())
            logger.warning("the registry does not answer for %s, %d are known otherwise: %s", service, instead, error)
        try:
            self._take_policies(timeout_s=max(0.0, until - time.monotonic()))
        except RollcallError as error:
            logger.warning("the registry does not say its policies: %s", error)

    # -- following -----------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_S_MIN
        self._learn()
        while not self._stop.is_set():
            try:
                self._save()
                self._sweep()
                self._take_policies()
                if self._round or time.monotonic() >= self._refresh_at or self._has_stale():
                    self._refresh()
                until = min(self._refresh_at, self._policies_at) if self._follow_policies else self._refresh_at
                self._watch(0.0 if self._round else until)
                retry_s = RETRY_S_MIN
            except Interrupted:
                pass  # another service, or the end
            except RollcallError as error:
                self._unheard = isinstance(error, (NotDone, Unknown)) and not isinstance(error, NotCaughtUp)
                if not self._stop.is_set():
                    logger.info("the watch was broken off and goes on: %s", error)
                    self._stop.wait(random.uniform(retry_s / 2, retry_s))
                    retry_s = min(RETRY_S_MAX, retry_s * 2)
            except Exception:
                logger.exception("the watch met a failure that it does not know")
                self._stop.wait(RETRY_S_MAX)
        self._save()

    def _pause_s(self) -> float:
        return self._refresh_s + random.uniform(0, REFRESH_S_SPREAD)

    def _watch(self, until: float) -> None:
        """Follows all services until ``until``, at least for a look, or until there is one more."""
        indexes = self._lists.watched_from()
        index = min(indexes.values(), default=0)
        if not indexes or self._has_stale():
            # Nothing yet; or one that was asked about for the first time was the first to hear of another history.
            self._stop.wait(RETRY_S_MIN)
            return
        names: tuple[str, ...] = () if self._lists.whole else tuple(indexes)
        history = self._client.history
        while not self._stop.is_set():
            wait_s = max(1.0, min(POLL_S, until - time.monotonic()))
            try:
                page = self._watcher.changes(*names, index=index, history=history, wait_s=wait_s, patience_s=PATIENCE_S)
            except Gone as error:
                logger.info("everything is read again: %s", error)
                self._read_again()
                return
            self._unheard = False
            self._lists.follow_up(names, index, page, time.monotonic())
            index, history = page.index, history or page.history
            self._client.saw(index, page.history)
            self._save()
            self._sweep()
            if time.monotonic() >= until:
                return

    def _learn(self) -> None:
        """Who the nodes are, for when those that were named are gone."""
        with contextlib.suppress(RollcallError):
            self._client.cluster(timeout_s=FIRST_S)

    def _refresh(self) -> None:
        """Reads services again, and who the nodes are: for a while, or all of them where the watch cannot go on."""
        if not self._round or self._has_stale():
            self._learn()
            self._round, self._round_failure = self._lists.asked(), None
        until = math.inf if self._has_stale() else time.monotonic() + SLICE_S
        silent = 0
        while self._round and time.monotonic() < until and not self._stop.is_set():
            service = self._round.pop()
            known = self._lists.known.get(service)
            if known is None or not known.asked.is_set():
                continue  # forgotten meanwhile, and perhaps asked about anew
            try:
                listing = self._reader.instances(service, health="any", timeout_s=FIRST_S, pages_timeout_s=PAGES_S)
                self._take(known, listing)
            except RollcallError as error:
                # One service's trouble is not that of the others. Where no node answers, the round is over soon.
                self._round_failure, known.troubled = error, True
                silent = silent + 1 if isinstance(error, (NotDone, Unknown)) else 0
                if silent == SILENT_MAX or self._stop.is_set():
                    self._round = []
                    raise
                logger.info("%s could not be read again, the others are followed: %s", service, error)
                continue
            silent, known.troubled = 0, False
            self._lists.put_in_place(known)
        if self._round:
            return
        if self._has_stale():
            # An empty list is not believed of a node that has just begun: it is asked again soon.
            raise NotCaughtUp("not every list was there to be read in the registry's history as it is now")
        failure = self._round_failure
        if failure is not None and not self._lists.followed():
            raise failure
        self._refresh_at = time.monotonic() + (RETRY_S_MAX if failure is not None else self._pause_s())

    def _read_again(self) -> None:
        """Has everything read again before the watch goes on."""
        self._refresh_at = self._policies_at = -math.inf

    def _has_stale(self) -> bool:
        """Whether there is something that the registry was not asked about, or only in a former history."""
        return self._lists.has_stale(self._client.history)

    def _take_policies(self, timeout_s: float = FIRST_S) -> None:
        if not self._follow_policies or time.monotonic() < self._policies_at:
            return
        self._policies_at = time.monotonic() + POLICIES_S
        records = self._client.policies(timeout_s=timeout_s)
        found = tuple(record.policy for record in records if record.policy.env == self.env)
        self._in_force = (*self._policies, *found)
        self._lists.route(self._in_force, time.monotonic())

    def _take(self, known: Known, listing: Listing) -> None:
        self._unheard = False
        self._lists.take(known, listing, time.monotonic(), kept_s=self._refresh_s)

    def _save(self) -> None:
        if self._file and self._lists.unsaved:
            self._file.save(self._lists.to_save())


def _fallback(env: str, service: str, place: str) -> Instance:
    """An instance of which nothing is known but where it is."""
    host, _, port = place.rpartition(":")
    if "://" not in place and (not host or not port.isdecimal()):
        raise Invalid(f"fallback: expected HOST:PORT or a URL, got {place!r}", field="fallback")
    where = {"addrs": (place,)} if "://" in place else {"address": host.strip("[]"), "port": int(port)}
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 0)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 0)
    return msgspec.convert({"env": env, "service": service, "id": place, **where, **stamps, **indexes}, Instance)
