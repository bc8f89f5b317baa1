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

import asyncio
import atexit
import contextlib
import logging
import math
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Unpack
from urllib.parse import urlsplit

from msgspec import Struct

from ..replication.api import Renewal, Word
from ..replication.errors import Gone, Invalid, NotFound, Overloaded, RollcallError, Superseded, Unknown
from ..replication.records import DEFAULT_ENV, Registration, RegistrationFields, build
from . import forks
from .client import Client
from .http import Interrupted, Interruptible
from .members import DEFAULT_NODES, nodes_from
from .sharing import Share

logger = logging.getLogger(__name__)

State = Literal["new", "registered", "unreachable", "closed"]
"""``unreachable``: no node took the last registration or heartbeat; it is tried on."""

START_S = 3.0
"""So long ``start`` waits for the first registration; then the background goes on with it."""

CLOSE_S = 2.0
"""So long the end waits for the registry to take the instance out. Without that its lease runs out."""

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0

CALM_S = 60.0
"""Who is removed twice within so long waits before it registers again."""

WATCH_S_MIN = 0.1
NO_PLACE_S = 300.0
"""So long a node that has no place for a lease's watch, or knows none, is not asked for one."""

LISTENING_S_MIN = 0.05
LISTENING_S = 60.0
"""So long a process that imported an app is looked at, whether it listens."""

DRAIN_S = 1.0
"""From the removal to telling the server: callers that follow changes have gone elsewhere by then."""

UNPACED_S = 30.0
"""Between heartbeats where the registry sets no pace: the instance has no lease, but may be gone all the same."""


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
        self._fields: dict[str, Any] = {"address": address, "port": port, "ttl_s": ttl_s, **more}
        if check is not None:
            self._fields["checks"] = [*more.get("checks", ()), check_from(check)]
        named = {name: value for name, value in self._fields.items() if value != "default"}
        build(Registration, {**named, "service": service, "id": self.id, "env": env})
        self._client: Client = client or Client(urls, env=env)
        self._start_s: float = start_s
        self._on_change: Callable[[State], None] | None = on_change
        self._at_sigterm: bool = at_sigterm
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
        self._ensure()
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

    def _ensure(self) -> None:
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
        if self._at_sigterm:
            self._take_sigterm()

    def _take_sigterm(self) -> None:
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
                wait_s = _pace_s(renewal)
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
        """Waits so long, or until the instance was removed; whether this is the end."""
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


class Watched(Struct):
    """How far a lease has followed its own instance (0: not known), and when to try again after a refusal."""

    index: int = 0
    again_at: float = 0.0


class Returns:
    """How long to wait before an instance that was removed is registered again: not at all, but longer each
    time where somebody removes it again and again."""

    def __init__(self) -> None:
        self._last: float = -math.inf
        self._pause_s: float = 0.0

    def pause_s(self, now: float) -> float:
        fought = now - self._last < CALM_S
        self._last = now
        self._pause_s = min(RETRY_S_MAX, max(RETRY_S_MIN, self._pause_s * 2)) if fought else 0.0
        return random.uniform(self._pause_s / 2, self._pause_s)


def _pace_s(renewal: Renewal) -> float:
    """Seconds until the next heartbeat."""
    next_ms = renewal.next_heartbeat_ms
    return UNPACED_S * random.uniform(0.9, 1.1) if next_ms is None else next_ms / 1000


# -- for web frameworks ------------------------------------------------------------------


def wsgi(app: Callable[..., Any], lease: Lease) -> Callable[..., Any]:
    """``app``, registered while a process serves it: from when that listens on the lease's port, or its first
    request, until it ends.

    For Flask ``app.wsgi_app = wsgi(app.wsgi_app, lease)``, for Django
    ``application = wsgi(get_wsgi_application(), lease)``. A program that imports the app and
    serves nothing (``flask routes``, a migration) does not register. No request waits for the
    registry. Where the port is another program's (a proxy on this host), and callers come through
    the registry only, there is no first request: have the server start the lease (docs/servers.md).
    """

    def registered(environ: Any, start_response: Any) -> Any:
        lease._ensure()
        return app(environ, start_response)

    if lease._at_sigterm and threading.current_thread() is threading.main_thread():
        lease._take_sigterm()  # it begins in another thread, where Python does not allow this
    if not _starts_if_serving(lease) and forks.threads_run():
        threading.Thread(target=_start_when_serving, args=(lease,), name=f"listening {lease.id}", daemon=True).start()
    return registered


def _starts_if_serving(lease: Lease) -> bool:
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not uwsgi.worker_id():
        return False  # its master, which forks without telling Python and serves nothing itself
    if not listens(int(lease._fields["port"])):
        return False
    lease._ensure()
    return True


def _start_when_serving(lease: Lease) -> None:
    """Servers listen soon after they have imported the app, or never: then the first request tells."""
    pause_s = LISTENING_S_MIN
    until = time.monotonic() + LISTENING_S
    while time.monotonic() < until and lease.state == "new" and not _starts_if_serving(lease):
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)


def listens(port: int) -> bool:
    """Whether this process has a socket that listens on that port, of its own or of its parent's."""
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # LISTEN
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return False
    with contextlib.suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) in inodes:
                    return True
    return False


def lifespan(
    lease: Lease, *, drain_s: float = DRAIN_S
) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    """For ASGI frameworks: ``FastAPI(lifespan=lifespan(lease))``, or Starlette's. Registered while the app runs.

    A server tells the app of a shutdown after it has stopped listening. So SIGTERM is handled first where the
    server handles it in Python (uvicorn): the instance is deregistered, callers have ``drain_s`` to
    notice, and then the server gets the signal. Elsewhere it is deregistered when the app is told.
    """

    @contextlib.asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        with _before_the_server(lease, drain_s):
            await asyncio.to_thread(lease.start)
            try:
                yield
            finally:
                await asyncio.to_thread(lease.close)

    return running


@contextlib.contextmanager
def _before_the_server(lease: Lease, drain_s: float) -> Iterator[None]:
    server = signal.getsignal(signal.SIGTERM)
    at_main = threading.current_thread() is threading.main_thread()
    if not at_main or not callable(server) or server is getattr(asyncio.unix_events, "_sighandler_noop", None):
        yield
        return
    told = threading.Event()

    def leave() -> None:
        lease.close()
        told.wait(drain_s)
        server(signal.SIGTERM, None)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            server(number, frame)
            return
        # Not here, where the event loop would stand still; a second SIGTERM does not wait for the callers.
        if leaving.ident is None:
            leaving.start()
        else:
            told.set()

    leaving = threading.Thread(target=leave, name="lease drain", daemon=True)
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is on_sigterm:
            signal.signal(signal.SIGTERM, server)


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
