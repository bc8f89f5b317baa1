"""Names of hosts and the addresses that they have, for questions that must not wait for each other.

A look-up waits for a resolver that may be silent, in a thread, and threads are few: one
service's slow names may hold no more of them than ``Shares`` gives it, and no name is
looked up twice at a time for one service. What was found is kept for a moment, failures
too. A resolver that is silent or in trouble takes nothing away: the addresses that a
name had go on being used for a while (RFC 8767). Nobody waits longer than ``WAIT_S``.
"""

import asyncio
import errno
import logging
import queue
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from msgspec import Struct

from .shares import Shares

logger = logging.getLogger(__name__)

THREADS_MAX = 64
"""Names looked up at a time."""

FRESH_S = 10.0
"""What was found is good for this long, and so is what was not."""

STALE_S = 600.0
"""Past that, addresses are used for this long if the resolver does not answer."""

WAIT_S = 2.0
TURN_S = 60.0
KEPT_MAX = 10_000
ADDRESSES_MAX = 8
"""Of one name."""

NOT_THERE = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
"""The resolver answered, and the answer is that there is no such name, or no address of it."""

OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL})
"""This node has no file, memory, process or port to ask with: that says nothing of whom it would have asked."""


class NotAsked(Exception):
    """This node could not ask, for reasons of its own."""


class NotFound(Exception):
    """A name has no address."""


class _Known(Struct):
    """What is known of a name. ``fault``: why the last look-up found nothing; empty if it did."""

    addresses: tuple[str, ...]
    found_at: float
    looked_at: float
    fault: str


class Names:
    """What names stand for. Of one event loop at a time; ``close`` ends its threads as their look-ups end."""

    def __init__(self, resolve: Callable[[str], Sequence[str]] | None = None, *, threads: int = THREADS_MAX) -> None:
        self._resolve: Callable[[str], Sequence[str]] = resolve or addresses_of
        self._shares: Shares = Shares(threads)
        self._threads: _Threads = _Threads(threads)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._under_way: dict[tuple[str, Hashable], asyncio.Task[None]] = {}

    async def addresses(self, host: str, who: Hashable) -> tuple[str, ...]:
        """All addresses of ``host``, of which ``who`` wants to know. Raises ``NotFound`` or ``NotAsked``."""
        known = self._known.get(host)
        if known is None or time.monotonic() - known.looked_at > FRESH_S:
            looking = self._under_way.get((host, who)) or self._begin(host, who)
            await asyncio.wait({looking}, timeout=WAIT_S)
            known = self._known.get(host)
        now = time.monotonic()
        if known is not None and known.addresses and now - known.found_at <= STALE_S:
            return known.addresses
        if known is not None and now - known.looked_at <= FRESH_S:
            raise NotFound(known.fault)
        raise NotAsked(f"the address of {host} is still being looked up")

    def close(self) -> None:
        self._threads.close()

    def _begin(self, host: str, who: Hashable) -> "asyncio.Task[None]":
        looking = asyncio.get_running_loop().create_task(self._look_up(host, who))
        # Each under its own name: nobody waits in a queue that another one fills.
        self._under_way[host, who] = looking
        looking.add_done_callback(lambda _: self._under_way.pop((host, who), None))
        return looking

    async def _look_up(self, host: str, who: Hashable) -> None:
        try:
            async with self._shares.place(who, within_s=TURN_S):
                found, fault = await self._threads.run(self._answer, host)
        except TimeoutError:
            return
        except NotAsked as error:
            logger.warning("%s could not be looked up: %s", host, error)
            return
        now, before = time.monotonic(), self._known.get(host)
        if found:
            self._keep(host, _Known(found, now, now, ""))
        elif fault is not None:
            self._keep(host, _Known((), now, now, fault))
        else:
            # The resolver is in trouble: what it said before still holds, for a while.
            addresses, found_at = (before.addresses, before.found_at) if before else ((), now)
            self._keep(host, _Known(addresses, found_at, now, "the resolver does not answer"))

    def _answer(self, host: str) -> tuple[tuple[str, ...], str | None]:
        """In a thread: addresses; or none, and the fault if the resolver says that there is none."""
        try:
            return tuple(dict.fromkeys(self._resolve(host)))[:ADDRESSES_MAX], "it has no address"
        except socket.gaierror as error:
            if error.errno in NOT_THERE:
                return (), str(error.strerror)
            _look_at_files(error)
            return (), None
        except UnicodeError:
            return (), "no host can have that name"
        except OSError as error:
            raise NotAsked(str(error)) from error

    def _keep(self, host: str, known: _Known) -> None:
        self._known[host] = known
        self._known.move_to_end(host)
        while len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)


def addresses_of(host: str) -> list[str]:
    """What this machine's resolver says. Raises ``OSError``; waits as long as it waits."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def _look_at_files(error: socket.gaierror) -> None:
    """Raises ``NotAsked`` if the resolver was not asked because this process has no file left to ask with."""
    if error.errno in (socket.EAI_SYSTEM, socket.EAI_MEMORY):
        raise NotAsked(str(error.strerror)) from error
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as own:
        if own.errno in OWN_TROUBLE:
            raise NotAsked(str(own)) from error


class _Threads:
    """Runs what may hang, in at most ``threads`` threads. Nobody can break off a look-up, so nobody
    waits for its thread: ``close`` ends those that are idle, the others end with the process at the latest."""

    def __init__(self, most: int) -> None:
        self._most: int = most
        self._started: int = 0
        self._busy: int = 0
        self._queue: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Any, Any] | None] = (
            queue.SimpleQueue()
        )

    async def run(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """What ``action`` returns or raises. Called by no more at a time than there are threads."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._busy += 1
        if self._started < min(self._busy, self._most):
            self._started += 1
            threading.Thread(target=self._work, name="checks-names", daemon=True).start()
        self._queue.put((action, arguments, loop, future))
        return await future

    def close(self) -> None:
        for _ in range(self._started):
            self._queue.put(None)

    def _work(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            action, arguments, loop, future = work
            result, failure = None, None
            try:
                result = action(*arguments)
            except Exception as error:  # noqa: BLE001
                failure = error
            try:
                loop.call_soon_threadsafe(self._settle, future, result, failure)
            except RuntimeError:
                logger.debug("nobody waits for a name any more")  # its event loop has ended

    def _settle(self, future: "asyncio.Future[Any]", result: Any, failure: Exception | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)
