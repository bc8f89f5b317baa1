"""A service's registration, kept alive: register once, forget about it.

>>> with Lease(nodes, service="cart", address="10.0.0.7", port=8080, tags=["v1"]) as lease:
...     lease.state
'registered'

A thread renews at the pace that the registry asks for. If the registry no longer
knows the instance (it was wiped, or the instance was away for longer than its
lease), the thread registers it again. If no node answers it goes on trying, and the
host program goes on too: nothing is ever raised into it from the background.
The end of the ``with``, of the interpreter, or SIGTERM where that is asked for,
deregisters the instance: the registration that this host's processes made,
never one that somebody else made since. Between heartbeats the lease watches its own
instance, so that it is registered again at once if somebody else removed it.
"""

import atexit
import logging
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Literal, Unpack
from urllib.parse import urlsplit

from ..replication.api import Renewal, Word
from ..replication.errors import Gone, Invalid, NotFound, Overloaded, RollcallError, Superseded, Unknown
from ..replication.records import DEFAULT_ENV, Registration, RegistrationFields, build
from . import forks
from .client import Client
from .interruptible import Interrupted, Interruptible
from .members import DEFAULT_NODES, nodes_from
from .pacing import RETRY_S_MAX, RETRY_S_MIN, Returns, Watched, pace_s
from .sharing import Share

logger = logging.getLogger(__name__)

State = Literal["new", "registered", "unreachable", "closed"]
"""``unreachable``: no node took the last registration or heartbeat; it is tried on."""

START_S = 3.0
"""How long ``start`` waits for the first registration; then the background goes on with it."""

CLOSE_S = 2.0
"""How long the end waits for the registry to take the instance out. Without that its lease runs out."""

WATCH_S_MIN = 0.1
NO_PLACE_S = 300.0
"""How long a node that has no place for a lease's watch, or knows none, is not asked for one."""


class Lease:
    """Keeps one instance registered, from ``start`` to ``close`` or for a ``with``.

    ``id`` is ``{service}-{address}:{port}`` where none is given, ``address`` the one by which this
    host reaches the registry. ``ttl_s`` is the lease, left out: the cluster's default. ``check`` is a
    health check that the nodes make: an ``http(s)://`` URL, ``tcp://HOST:PORT``,
    ``grpc://HOST:PORT/SERVICE``, or a check's fields; the instance gets no traffic before it passes. ``more``
    takes any other field of a registration. ``on_change`` is told each new ``state``, in a thread
    of this lease. ``at_sigterm``: SIGTERM first takes the instance out and then does what it did
    before; it must be asked for in the main thread. Raises ``Invalid`` for what no registry takes.

    Processes of one host that hold a lease of one instance share it: the last one to end deregisters it
    (``sharing``). After a fork a lease that was started stays with the parent: the child neither renews
    nor ends it, and may start it for itself.
    """

    def __init__(
        self,
        nodes: str | Iterable[str] = DEFAULT_NODES,
        *,
        service: str,
        port: int = 0,
        address: str = "",
        id: str = "",
        env: str = DEFAULT_ENV,
        ttl_s: float | Literal["default"] = "default",
        check: str | Mapping[str, Any] | None = None,
        on_change: Callable[[State], None] | None = None,
        at_sigterm: bool = False,
        start_s: float = START_S,
        client: Client | None = None,
        **more: Unpack[RegistrationFields],
    ) -> None:
        urls = nodes_from(nodes)
        address = address or _address_towards(urls)
        self.service: str = service
        self.id: str = id or f"{service}-{address}:{port}"
        self.env: str = env
        self.port: int = port
        self._fields: dict[str, Any] = {"address": address, "port": port, "ttl_s": ttl_s, **more}
        if check is not None:
            self._fields["checks"] = [*more.get("checks", ()), check_from(check)]
        named = {name: value for name, value in self._fields.items() if value != "default"}
        build(Registration, {**named, "service": service, "id": self.id, "env": env})
        self._client: Client = client or Client(urls, env=env)
        self._start_s: float = start_s
        self._on_change: Callable[[State], None] | None = on_change
        self.at_sigterm: bool = at_sigterm
        self._before: Any = None
        """What SIGTERM did before this lease took it; a child inherits both."""
        self._begin()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: what was started stays the parent's; a child may start one of its own."""
        atexit.unregister(self.close)
        self._begin()

    def _begin(self) -> None:
        self._state: State = "new"
        self._stop = threading.Event()
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._threadless: bool = False
        self._line: Interruptible | None = None
        self._share: Share | None = None
        self._cluster: str = ""
        self._unsure: str = ""
        """The Idempotency-Key of a registration of which nobody knows whether it was done."""

    @property
    def state(self) -> State:
        """In this process: ``new`` in a forked child, whatever became of the parent's."""
        return self._state

    @property
    def registered(self) -> bool:
        """Whether the registry holds this instance, as far as is known."""
        return self._state == "registered"

    def report(self, check: str, status: Word, note: str = "") -> None:
        """This instance's own word on its check of that name with ``ttl_s``. Raises as ``Client.report`` does."""
        self._client.report(self.service, self.id, check, status, note=note, env=self.env)

    def start(self) -> "Lease":
        """Registers and begins to renew. Returns when that is done, or after ``start_s`` all the same."""
        self.begin()
        if self._thread is not None:
            self._settled.wait(self._start_s)
        return self

    def close(self) -> None:
        """Ends the renewals, and takes the instance out of the registry if no other process of this host serves
        it. May be called more than once."""
        forks.notice()
        self._stop.set()
        if self._line is not None:
            self._line.interrupt()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S + 1.0)
        atexit.unregister(self.close)
        if self._before is not None and threading.current_thread() is threading.main_thread():
            before, self._before = self._before, None
            if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
                signal.signal(signal.SIGTERM, before)

    def __enter__(self) -> "Lease":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Begins in the background if this process has not begun yet. Waits for nothing."""
        forks.notice()
        if self._thread is not None or self._stop.is_set() or self._threadless:
            return
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            self._threadless = not forks.threads_run()
            if self._threadless:
                logger.error(
                    "%s is not registered: threads do not run in this process. Start uWSGI with enable-threads", self.id
                )
                return
            self._line = Interruptible()
            self._thread = threading.Thread(target=self._run, name=f"lease {self.id}", daemon=True)
            self._thread.start()
        atexit.register(self.close)
        if self.at_sigterm:
            self.take_sigterm()

    def take_sigterm(self) -> None:
        """Has SIGTERM take the instance out first. In the main thread only, where Python allows it."""
        if self._before is not None:
            return
        try:
            before = signal.signal(signal.SIGTERM, self._on_sigterm)
        except ValueError:
            logger.warning(
                "%s: at_sigterm has no effect here: Python allows it in the main thread only. Start the lease there "
                "(a hook of the server); without that it ends with the program",
                self.id,
            )
        else:
            self._before = before if before is not None else signal.SIG_DFL

    # -- the thread ----------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_S_MIN
        wait_s = 0.0
        known = False
        returns = Returns()
        watched = Watched()
        while not self._waited(wait_s, watched if known else None):
            try:
                if not known:
                    watched.index = self._register()
                    known = True
                    self._turn("registered")
                renewal = self._renew()
                watched.index = watched.index or renewal.index
                wait_s = pace_s(renewal)
                retry_s = RETRY_S_MIN
                self._turn("registered")
            except NotFound:
                logger.info("%s is not in the registry any more: registering it again", self.id)
                known, wait_s = False, returns.pause_s(time.monotonic())
            except RollcallError as error:
                if self._state != "unreachable":
                    logger.warning("%s could not be %s: %s", self.id, "renewed" if known else "registered", error)
                self._turn("unreachable")
                wait_s = random.uniform(retry_s / 2, retry_s)
                retry_s = min(RETRY_S_MAX, retry_s * 2)
            except Exception:
                # Of ours, then. The host program goes on, and so do the renewals.
                logger.exception("the lease of %s met a failure that it does not know", self.id)
                wait_s = RETRY_S_MAX
        self._leave()

    def _waited(self, wait_s: float, watched: "Watched | None") -> bool:
        """Waits for ``wait_s``, or until the instance was removed; whether this is the end."""
        until = time.monotonic() + wait_s
        while watched is not None and not self._stop.is_set():
            left_s = until - time.monotonic()
            if left_s < WATCH_S_MIN or not watched.index or time.monotonic() < watched.again_at:
                break
            try:
                page = self._watcher().own_changes(
                    self.service, self.id, index=watched.index, wait_s=left_s, env=self.env
                )
                watched.index = page.index
                if page.events and page.events[-1].kind in ("DEREGISTER", "EVICT"):
                    return self._stop.is_set()  # the heartbeat finds out, and whoever comes back is paced there
                if not page.events:
                    break
            except Interrupted:
                break
            except Gone:
                watched.index = 0
                return self._stop.is_set()  # nobody knows what was missed: a heartbeat tells
            except (Overloaded, Invalid) as error:
                # No place for this, or a release that does not know it. Heartbeats do without.
                logger.debug("%s hears of its removal with its heartbeats: %s", self.id, error)
                watched.again_at = time.monotonic() + NO_PLACE_S * random.uniform(0.5, 1.5)
            except RollcallError as error:
                logger.debug("%s: the watch was broken off: %s", self.id, error)
                break
        return self._stop.wait(max(0.0, until - time.monotonic()))

    def _watcher(self) -> Client:
        assert self._line is not None
        return self._client.over(self._line)

    def _register(self) -> int:
        """The index from which on to watch."""
        self._join()
        key = uuid.uuid4().hex
        try:
            made = self._client.register(self.service, id=self.id, env=self.env, idempotency_key=key, **self._fields)
        except Unknown:
            self._unsure = key
            raise
        assert self._share is not None
        self._share.registered(made.reg_index)
        self._unsure = ""
        return made.reg_index

    def _join(self) -> None:
        """Takes part in this instance, together with other processes of this host, before it is registered: so
        none of them takes it out in between. Learns who the nodes are, too, for when those that were named are gone."""
        try:
            view = self._client.cluster(timeout_s=START_S)
        except NotFound:
            cluster = self._cluster
        else:
            # An index means something in one history of one registry only.
            cluster = view.history or view.cluster
        if self._share is None or cluster != self._cluster:
            share = Share(cluster, self.env, self.service, self.id)
            share.join()
            if self._share is not None:
                self._share.leave()
            self._share, self._cluster = share, cluster

    def _renew(self) -> Renewal:
        return self._client.heartbeat(self.service, self.id, env=self.env)

    def _find_out(self) -> None:
        """Whether a registration was done after all, so that it can be taken out."""
        if not self._unsure or self._share is None:
            return
        try:
            self._share.registered(
                self._client.registered_by(self.service, self.id, self._unsure, env=self.env, timeout_s=CLOSE_S)
            )
        except RollcallError as error:
            logger.warning("%s may be registered, then its lease will run out: %s", self.id, error)

    def _leave(self) -> None:
        self._find_out()
        reg_index = 0 if self._share is None else self._share.leave()
        try:
            if reg_index:
                self._client.deregister(self.service, self.id, registration=reg_index, env=self.env, timeout_s=CLOSE_S)
        except NotFound:
            pass  # evicted already, or taken out by an operator
        except Superseded:
            logger.info("%s was registered again by somebody else: it stays", self.id)
        except RollcallError as error:
            logger.warning("%s could not be taken out of the registry, its lease will run out: %s", self.id, error)
        finally:
            self._client.close()
            if self._line is not None:
                self._line.close()
            self._turn("closed")

    def _turn(self, state: State) -> None:
        if state != self._state:
            self._state = state
            if self._on_change is not None:
                try:
                    self._on_change(state)
                except Exception:
                    logger.exception("the callback of the lease of %s failed at %r", self.id, state)
        if state != "unreachable":
            self._settled.set()

    # -- signals -------------------------------------------------------------------

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, wherever that happens to be: what takes locks is done by another."""
        before = self._before
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(CLOSE_S + 1.0)
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            os.kill(os.getpid(), number)


def check_from(check: str | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a check that a URL names, or those that are given."""
    if not isinstance(check, str):
        return {"name": "check", **check}
    scheme, _, place = check.partition("://")
    if scheme in ("http", "https"):
        return {"name": "http", "http": check}
    if scheme in ("tcp", "grpc"):
        return {"name": scheme, scheme: place}
    raise Invalid(
        f"check: Expected http://…, https://…, tcp://HOST:PORT or grpc://HOST:PORT, got {check!r}", field="check"
    )


def _address_towards(urls: Iterable[str]) -> str:
    """This host's address on the way to the first of ``urls`` to which there is one. Nothing is sent: a datagram
    socket only looks up the route."""
    failures: list[str] = []
    for url in urls:
        parts = urlsplit(url)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            failures.append(f"{url}: {error}")
            continue
        for family, kind, protocol, _, place in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(place)
                    return str(probe.getsockname()[0])
            except OSError as error:
                failures.append(f"{url}: {error}")
    raise Invalid(f"address: give one, for this host's own was not found ({'; '.join(failures)})", field="address")
