"""A session whose requests can be broken off by another thread.

A poll waits for half a minute. Where it has to ask for something else, or to end, its socket is shut down; so every
connection is known that this session makes.
"""

import contextlib
import socket
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3 import exceptions as lower
from urllib3.connection import HTTPConnection, HTTPSConnection

from . import forks
from .http import left_by_session, session_over


class Interrupted(Exception):
    """Another thread wants this one to do something else. What became of the request is unknown."""


class Interruptible:
    """A session for one thread, whose waiting another may end (``interrupt``): its request raises ``Interrupted``."""

    def __init__(self) -> None:
        self._begin()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        left_by_session(self._session)
        self._begin()

    def _begin(self) -> None:
        self._live: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._wanted = threading.Event()
        connected = partial(_note, self._live, self._wanted)
        self._session = session_over(lambda: _Adapter(connected))

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """As ``requests.Session.request``."""
        self._check()
        try:
            return self._session.request(*args, **options)
        except exceptions.RequestException:
            self._check()
            raise

    def interrupt(self) -> None:
        """Ends the request under way, or the next one."""
        self._wanted.set()
        for connection in list(self._live):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._session.close()

    def _check(self) -> None:
        if self._wanted.is_set():
            self._wanted.clear()
            raise Interrupted


# What requests and urllib3 make their connections by: ``connected`` is told each of them.


class _Adapter(HTTPAdapter):
    def __init__(self, connected: Callable[[HTTPConnection], None]) -> None:
        self._pools: dict[str, Any] = {
            "http": partial(_pool, HTTPConnectionPool, partial(_Plain, connected)),
            "https": partial(_pool, HTTPSConnectionPool, partial(_Secure, connected)),
        }
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools


def _pool(kind: type[HTTPConnectionPool], connection: Any, *args: Any, **options: Any) -> HTTPConnectionPool:
    pool = kind(*args, **options)
    pool.ConnectionCls = connection
    return pool


class _Plain(HTTPConnection):
    def __init__(self, connected: Callable[[HTTPConnection], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connected = connected

    def connect(self) -> None:
        super().connect()
        self._connected(self)


class _Secure(HTTPSConnection):
    def __init__(self, connected: Callable[[HTTPConnection], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connected = connected

    def connect(self) -> None:
        super().connect()
        self._connected(self)


def _note(live: "weakref.WeakSet[HTTPConnection]", wanted: threading.Event, connection: HTTPConnection) -> None:
    live.add(connection)
    if wanted.is_set():  # by somebody who did not see this connection yet
        connection.close()
        raise lower.NewConnectionError(connection, "interrupted")
