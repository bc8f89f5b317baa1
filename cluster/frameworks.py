"""A lease for web frameworks: the instance is registered while a process serves the app (WSGI, ASGI)."""

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from . import forks
from .lease import Lease

LISTENING_S_MIN = 0.05
LISTENING_S = 60.0
"""How long a process that imported an app is looked at, whether it listens."""

DRAIN_S = 1.0
"""From the removal to telling the server: callers that follow changes have gone elsewhere by then."""


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
        lease.begin()
        return app(environ, start_response)

    if lease.at_sigterm and threading.current_thread() is threading.main_thread():
        lease.take_sigterm()  # it begins in another thread, where Python does not allow this
    if not _starts_if_serving(lease) and forks.threads_run():
        threading.Thread(target=_start_when_serving, args=(lease,), name=f"listening {lease.id}", daemon=True).start()
    return registered


def _starts_if_serving(lease: Lease) -> bool:
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not uwsgi.worker_id():
        return False  # its master, which forks without telling Python and serves nothing itself
    if not listens(lease.port):
        return False
    lease.begin()
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
