"""A service's registration, kept alive: register once, forget about it.

>>> with Lease(nodes, service="cart", address="10.0.0.7", port=8080, tags=["v1"]) as lease:
...     lease.state
'registered'

A thread renews at the pace that the registry asks for. If the registry no longer
knows the instance (it was wiped, or the instance was away for longer than its
lease), the thread registers it again. If no node answers it goes on trying, and the
host program goes on too: nothing is ever raised into it from the background.
The end of the ``with``, of the interpreter, or SIGTERM where that is asked for,
takes the instance out of the registry.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Literal
from urllib.parse import urlsplit

from ..replication.errors import Invalid, NotFound, RollcallError, Superseded
from ..replication.records import DEFAULT_ENV, Registration, build
from .client import Client, Word
from .members import DEFAULT_NODES, urls_from

logger = logging.getLogger(__name__)

State = Literal["new", "registered", "unreachable", "closed"]
"""``unreachable``: no node took the last registration or heartbeat; it is tried on."""

START_S = 3.0
"""So long ``start`` waits for the first registration; then the background goes on with it."""

CLOSE_S = 2.0
"""So long the end waits for the registry to take the instance out. Without that its lease runs out."""

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0
UNPACED_S = 30.0
"""Between heartbeats where the registry sets no pace: the instance has no lease, but may be gone all the same."""


class Lease:
    """One instance in the registry for as long as this lasts. ``start`` and ``close``, or ``with``.

    ``id`` is ``{service}-{address}:{port}`` where none is given, ``address`` the one by which this
    host reaches the registry. ``ttl_s`` is the lease, left out: the cluster's default. ``check`` has
    the cluster ask the instance how it is: an ``http(s)://`` URL, ``tcp://HOST:PORT``,
    ``grpc://HOST:PORT/SERVICE``, or a check's fields; until it passes nobody is sent there. ``more``
    takes any other field of a registration. ``on_change`` is told each new ``state``, in a thread
    of this lease. ``at_sigterm``: SIGTERM first takes the instance out and then does what it did
    before; it must be asked for in the main thread. Raises ``Invalid`` for what no registry takes.

    After a fork the lease stays with the parent: the child neither renews nor ends it.
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
        **more: Any,
    ) -> None:
        urls = urls_from(nodes) if isinstance(nodes, str) else tuple(nodes)
        address = address or _address_towards(urls[0])
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
        self._state: State = "new"
        self._pid: int = os.getpid()
        self._stop = threading.Event()
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._before: Any = None
        self._reg_index: int = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def registered(self) -> bool:
        """Whether the registry holds this instance, as far as is known."""
        return self._state == "registered"

    def report(self, check: str, status: Word, note: str = "") -> None:
        """This instance's own word on its check of that name with ``ttl_s``. Raises as ``Client.report`` does."""
        self._client.report(self.service, self.id, check, status, note=note)

    def start(self) -> "Lease":
        """Registers and begins to renew. Returns when that is done, or after ``start_s`` all the same."""
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return self
            self._thread = threading.Thread(target=self._run, name=f"lease {self.id}", daemon=True)
            self._thread.start()
        atexit.register(self.close)
        if self._at_sigterm:
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._settled.wait(self._start_s)
        return self

    def close(self) -> None:
        """Takes the instance out of the registry and ends the renewals. May be called more than once."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
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

    # -- the thread ----------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_S_MIN
        wait_s = 0.0
        known = False
        while not self._stop.wait(wait_s):
            try:
                if not known:
                    self._register()
                    known = True
                    self._turn("registered")
                    self._learn()
                wait_s = self._renew()
                retry_s = RETRY_S_MIN
                self._turn("registered")
            except NotFound:
                logger.info("%s is not in the registry any more: registering it again", self.id)
                known, wait_s = False, random.uniform(0, retry_s)
                retry_s = min(RETRY_S_MAX, retry_s * 2)
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

    def _register(self) -> None:
        self._reg_index = self._client.register(self.service, id=self.id, **self._fields).reg_index

    def _learn(self) -> None:
        """Who the nodes are, for when those that were named are gone."""
        with contextlib.suppress(RollcallError):
            self._client.cluster(timeout_s=START_S)

    def _renew(self) -> float:
        """Seconds until the next heartbeat."""
        next_ms = self._client.heartbeat(self.service, self.id).next_heartbeat_ms
        return UNPACED_S * random.uniform(0.9, 1.1) if next_ms is None else next_ms / 1000

    def _leave(self) -> None:
        try:
            if self._reg_index:
                self._client.deregister(self.service, self.id, registration=self._reg_index, timeout_s=CLOSE_S)
        except NotFound:
            pass  # evicted already, or taken out by an operator
        except Superseded:
            logger.info("%s was registered again by somebody else: it stays", self.id)
        except RollcallError as error:
            logger.warning("%s could not be taken out of the registry, its lease will run out: %s", self.id, error)
        finally:
            self._client.close()
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


# -- for web frameworks ------------------------------------------------------------------


def wsgi(app: Callable[..., Any], lease: Lease) -> Callable[..., Any]:
    """``app``, registered from now until the interpreter ends.

    For Flask ``app.wsgi_app = wsgi(app.wsgi_app, lease)``, for Django
    ``application = wsgi(get_wsgi_application(), lease)``.
    """
    lease.start()
    return app


def lifespan(lease: Lease) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    """For ASGI frameworks: ``FastAPI(lifespan=lifespan(lease))``, or Starlette's. Registered while the app runs."""

    @contextlib.asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        await asyncio.to_thread(lease.start)
        try:
            yield
        finally:
            await asyncio.to_thread(lease.close)

    return running


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


def _address_towards(url: str) -> str:
    """This host's address on the way to ``url``. Nothing is sent: a datagram socket only looks up the route."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except (OSError, IndexError) as error:
        raise Invalid(f"address: give one, for this host's own was not found ({error})", field="address") from None
