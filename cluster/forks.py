"""What a forked child does not share with its parent: kept connections, and locks that a thread may have held.
And whether threads run at all, which servers that fork decide as well.

Two processes that read from one connection read each other's answers, and a lock that a
thread of the parent held at the fork is never given back in the child, where that thread
does not exist. So whatever in this package keeps either is known here (weakly) and begins
anew in the child: at the fork, or when it is next used, because a server written in C may
fork without telling Python (uWSGI does).

The parent's connections are closed in the child without a word on them: neither a
``shutdown`` nor a TLS close is the child's to say.
"""

import contextlib
import os
import queue
import sys
import threading
import weakref
from typing import Any, Protocol

import urllib3
from requests.adapters import HTTPAdapter


class Begins(Protocol):
    """What has something to make anew."""

    def begin_in_child(self) -> None:
        """Called in a forked child, before anything there uses this. Takes no lock of the parent's."""
        ...


_living: "weakref.WeakSet[Any]" = weakref.WeakSet()
_here: int = os.getpid()
_noticing = threading.Lock()


def begins_anew(thing: Begins) -> None:
    """``thing`` is told in every child of this process, for as long as it lives."""
    _living.add(thing)


def notice() -> None:
    """To be called before anything of the parent's could be used: most often there was no fork, and this is cheap."""
    if os.getpid() == _here:
        return
    with _noticing:
        if os.getpid() != _here:
            _begin()


def leave(connections: HTTPAdapter | urllib3.PoolManager) -> None:
    """Lets go of the parent's connections. What kept them must not be used any more."""
    adapter = isinstance(connections, HTTPAdapter)
    managers = [connections.poolmanager, *connections.proxy_manager.values()] if adapter else [connections]
    # Past the locks of urllib3, which a thread of the parent may have held.
    for pool in [pool for manager in managers for pool in manager.pools._container.values()]:
        kept = pool.pool
        if kept is not None:
            parents = list(kept.queue)
            queue.LifoQueue.__init__(kept, kept.maxsize)  # for its finalizer, which takes the lock
            for connection in parents:
                if connection is not None:
                    with contextlib.suppress(OSError):  # closed already, by what made a daemon of this process
                        connection.close()


def threads_run() -> bool:
    """Whether threads of Python run in this process: uWSGI's do only where it was told so."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return True
    options = getattr(uwsgi, "opt", {})
    return any(name in options for name in ("enable-threads", b"enable-threads", "threads", b"threads"))


class Lock:
    """A lock for ``with`` that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self.begin_in_child()
        begins_anew(self)

    def begin_in_child(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _begin() -> None:
    global _here
    # Held until all are done: what one lets go of must not be freed before it was told itself.
    living = list(_living)
    for thing in living:
        thing.begin_in_child()
    _here = os.getpid()


def _forked() -> None:
    global _noticing
    _noticing = threading.Lock()
    _begin()


os.register_at_fork(after_in_child=_forked)
