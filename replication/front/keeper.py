"""Keeps a crowd from holding a server: who is let in, which connections are closed, and whose bytes have no room.

What is decided is pure and stands in ``crowd`` (connections and threads) and ``holding``
(what lies in memory for whoever is slow); here it is done, in waitress' loop. The loop
asks at every turn (``accept``), about once a second (``look``), and when requests find
no room (``make_room``).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from waitress.utilities import Error

from .crowd import Held, Limits, in_the_way
from .holding import Bytes, Reader, too_slow
from .networks import Network, client_of, within

logger = logging.getLogger(__name__)

ACCEPTED_MAX = 100
CROWDED_S = 0.2
"""Between two looks at who is in the way, where it is crowded."""
LOOK_S = 0.05
"""Between two looks at what is not taken, or at which bodies hang, however many come."""


class TooMany(Error):
    """waitress' error for what there is no room for."""

    code = 503
    reason = "Service Unavailable"


class Kept(Protocol):
    """What the keeper asks of a connection (``channel.Channel``), in the loop."""

    request: Any
    requests: Any
    total_outbufs_len: int

    def held(self, now: float, key: int) -> Held: ...
    def reader(self, key: int) -> Reader: ...
    def hangs(self, now: float) -> bool: ...
    def mark(self, now: float) -> None: ...
    def drop(self) -> None: ...


class Keeper:
    """Watches over the connections of one server of waitress'.

    ``requests`` bounds all requests under way, ``unsent_bytes_max`` all answers that
    are not taken. ``body_limit`` is the app's own limit for a method and a path. Who
    connects from a network in ``exempt`` stands for many, and has no share. Once ``stopping``
    is set, a connection closes with its answer.
    """

    def __init__(
        self,
        limits: Limits,
        requests: Bytes,
        *,
        unsent_bytes_max: int,
        body_limit: Callable[[str, str], int] | None,
        exempt: tuple[Network, ...],
        stopping: threading.Event,
    ) -> None:
        self.requests: Bytes = requests
        self.body_limit: Callable[[str, str], int] | None = body_limit
        self.stopping: threading.Event = stopping
        self.connections_of: Counter[str] = Counter()
        """How many connections each client has; those of the exempt ones together, under an empty name."""
        self._limits: Limits = limits
        self._unsent_bytes_max: int = unsent_bytes_max
        self._exempt: tuple[Network, ...] = exempt
        self._look_again_at: float = 0.0
        self._look_again_at_unsent: float = 0.0

    def watch(self, server: Any) -> None:
        """Takes its places in ``server``, before that runs."""
        self._server: Any = server
        server.keeper = self
        server.maintenance = self.look
        server.handle_accept = self.accept

    def channels(self) -> list[Any]:
        """All connections, each a ``Kept``."""
        return list(self._server.active_channels.values())

    def client_of(self, address: str) -> str:
        """Whom a share is counted for; empty: who connects from there stands for many, and has none."""
        return "" if within(address, self._exempt) else client_of(address)

    def accept(self) -> None:
        """Takes those who wait for a connection: many at a time, since each turn of the loop looks at all that are
        there. Who has their share already is sent away at once where it is crowded."""
        server, limits = self._server, self._limits
        for _ in range(ACCEPTED_MAX):
            count = len(server.active_channels)
            if count >= limits.connections:
                return
            try:
                accepted = server.accept()
                if accepted is None:
                    return
                connection, address = accepted
                client = self.client_of(address[0])
                crowded = count >= limits.connections - limits.room
                if client and crowded and self.connections_of[client] >= limits.most:
                    connection.close()
                    continue
                server.set_socket_options(connection)
            except OSError:
                return  # it has gone already, or there are no files left
            server.channel_class(server, connection, address, server.adj, map=server._map)
            self.connections_of[client] += 1

    def left(self, client: str) -> None:
        """One of that client's connections is gone."""
        self.connections_of[client] -= 1
        if self.connections_of[client] <= 0:
            del self.connections_of[client]

    def look(self, now: float) -> None:
        """Closes the connections that are in the way."""
        channels: dict[int, Kept] = {id(channel): channel for channel in self.channels()}
        held = [channel.held(now, key) for key, channel in channels.items()]
        for key in in_the_way(held, now, self._limits):
            channels[key].drop()
        if len(held) >= self._limits.connections - self._limits.room:
            self._server.next_channel_cleanup = now + CROWDED_S
        if any(channel.total_outbufs_len for channel in channels.values()):
            self._drop_those_too_slow()
        for channel in channels.values():
            channel.mark(now)

    def make_room(self) -> None:
        """Called in the loop, where requests have no room: whose have been coming for longest make some."""
        now = time.time()
        if now < self._look_again_at:
            return
        self._look_again_at = now + LOOK_S
        hanging: list[Any] = [channel.request for channel in self.channels() if channel.hangs(now)]
        for request in sorted(hanging, key=lambda each: each.since):
            if self.requests.taken < self.requests.total // 2:
                break
            request.refuse(TooMany("it was too long on its way, and others need the room; send it again"))

    def not_taken(self) -> None:
        """Called by any thread, after it left something unsent."""
        if time.monotonic() >= self._look_again_at_unsent:
            self._look_again_at_unsent = time.monotonic() + LOOK_S
            self._server.trigger.pull_trigger(self._drop_those_too_slow)

    def _drop_those_too_slow(self) -> None:
        now = time.time()
        channels: dict[int, Kept] = {id(channel): channel for channel in self.channels() if channel.total_outbufs_len}
        readers = [channel.reader(key) for key, channel in channels.items()]
        dropped = too_slow(readers, now, self._unsent_bytes_max)
        for key in dropped:
            channels[key].drop()
        if dropped:
            logger.warning("answers that are not taken fill the memory for them", extra={"dropped": len(dropped)})
