"""Where peers are called, and where they call.

Of each pair one node dials. The other only probes (connects and hangs up) while
the peer is away, to learn whether its host refuses, which tells a process that is
gone from a network that is silent. Host names are looked up in a thread of their
own, so that no tick waits for DNS.
"""

import errno
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Callable

from msgspec import Struct
from pysyncobj.poller import Poller

from .connection import READ, Connection, Surroundings
from .limited_log import LimitedLog

RETRY_S = 0.25
PROBE_S = 0.5
ACCEPTS_PER_TICK = 16
ACCEPT_PAUSE_S = 1.0
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted; a peer stands in that queue too."""

_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class Endpoint(Struct, frozen=True):
    """Where a node listens for its peers."""

    host: str
    port: int


class Resolver:
    """A thread that looks up host names. It starts with the first."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Dialing | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def look_up(self, dialing: "Dialing") -> None:
        """Has its addresses renewed, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()
        self._waiting.put(dialing)

    def close(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while (dialing := self._waiting.get()) is not None:
            dialing.look_up()


class Dialing:
    """The calls to one peer: where it lives, when the next is due, and what its host said to the last."""

    def __init__(self, peer: str, endpoint: Endpoint, *, dials: bool, resolver: Resolver, log: LimitedLog) -> None:
        self.endpoint: Endpoint = endpoint
        self.dials: bool = dials
        """Whether it is this node that dials; otherwise it only probes."""
        self.next_at: float = 0.0
        self.down: bool = False
        """Whether its host says that nothing listens there."""
        self._peer: str = peer
        self._resolver: Resolver = resolver
        self._log: LimitedLog = log
        self._addresses: list[tuple[int, tuple[str, int]]] | None = None
        self._looking_up: bool = False

    def dial(self, around: Surroundings) -> Connection | None:
        """Calls the peer. None: there is nowhere to call, nothing to call with, or nobody answered."""
        now = around.clock()
        self.next_at = now + (RETRY_S if self.dials else PROBE_S)
        addresses = self._found()
        if not addresses:
            return None
        family, address = addresses[0]
        self._addresses = addresses[1:] + addresses[:1]
        try:
            sock = prepared(socket.socket(family, socket.SOCK_STREAM))
            code = sock.connect_ex(address)
        except OSError as error:
            self._log.say(self._peer, f"could not dial {self._peer}: {error.strerror}")
            return None
        if code and code not in _IN_PROGRESS:
            sock.close()
            self._failed(code)
            return None
        return Connection(sock, around, host=str(address[0]), dialed=self._peer, probe=not self.dials)

    def answered(self, connection: Connection) -> bool:
        """A call came to its end: whether there is a connection now."""
        code = connection.connect_error()
        if code:
            self._failed(code)
        elif connection.probe:
            self.down = False
        else:
            return True
        return False

    def lost(self, opened_at: float) -> None:
        """Its connection of then is gone: dials at once, but not again and again where nobody is let in for long."""
        self.next_at = opened_at + RETRY_S

    def _failed(self, code: int) -> None:
        self.down = code == errno.ECONNREFUSED

    def lives_at(self, host: str) -> bool:
        """Whether ``host`` is where this peer lives, as far as is known. Proves nothing."""
        return host == self.endpoint.host or any(host == at[0] for _, at in self._addresses or ())

    def look_up(self) -> None:
        """Asks DNS for its addresses. In the resolver's thread."""
        try:
            found = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
            self._addresses = [(family, (str(at[0]), int(at[1]))) for family, _, _, _, at in found]
        except (OSError, UnicodeError) as error:
            self._log.say(self._peer, f"could not look up {self.endpoint.host}: {error}")
        finally:
            self._looking_up = False

    def _found(self) -> list[tuple[int, tuple[str, int]]]:
        """Where to dial; for a host name what is known by now."""
        host, port = self.endpoint.host, self.endpoint.port
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            if not self._looking_up:
                self._looking_up = True
                self._resolver.look_up(self)
            return self._addresses or []
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]


class Listener:
    """The port at which peers call. A failed accept pauses it and never closes it (D16).

    It is bound in the constructor: ``OSError`` says so at once when the port is taken.
    """

    def __init__(self, listen: Endpoint, log: LimitedLog, clock: Callable[[], float]) -> None:
        self._log: LimitedLog = log
        self._clock: Callable[[], float] = clock
        self._poller: Poller | None = None
        self._on_call: Callable[[socket.socket, str], None] = lambda sock, host: None
        self._accepting: bool = False
        self._accept_after: float = 0.0
        self._socket: socket.socket = _listening_socket(listen)

    @property
    def address(self) -> Endpoint:
        host, port = self._socket.getsockname()[:2]
        return Endpoint(host, port)

    def start(self, poller: Poller, on_call: Callable[[socket.socket, str], None]) -> None:
        """Hands each caller's socket and address to ``on_call`` from now on."""
        self._poller = poller
        self._on_call = on_call
        self._resume()

    def tick(self, now: float) -> None:
        """Goes on after a pause."""
        if not self._accepting and now >= self._accept_after:
            self._resume()

    def close(self) -> None:
        self._stop()
        self._socket.close()

    def _resume(self) -> None:
        if self._poller is not None:
            self._poller.subscribe(self._socket.fileno(), self._on_event, READ)
            self._accepting = True

    def _stop(self) -> None:
        if self._poller is not None and self._accepting:
            self._poller.unsubscribe(self._socket.fileno())
        self._accepting = False

    def _on_event(self, descriptor: int, events: int) -> None:
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._log.say("accept", f"could not accept a connection: {error.strerror}; trying again in a second")
                self._stop()
                self._accept_after = self._clock() + ACCEPT_PAUSE_S
                return
            try:
                prepared(sock)
            except OSError:
                # It broke while it waited to be accepted.
                sock.close()
                continue
            # On "::", callers from IPv4 have such a prefix.
            self._on_call(sock, str(address[0]).removeprefix("::ffff:"))


def prepared(sock: socket.socket) -> socket.socket:
    """``sock`` as every connection between nodes has it: it never waits, nor holds small frames back."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _listening_socket(listen: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"cannot listen for peers on {listen.host}:{listen.port}: {why}") from None
    return sock
