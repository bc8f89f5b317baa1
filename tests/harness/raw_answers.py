"""A service that answers byte by byte what a test says, and a list of services that needs no registry."""

import contextlib
import random
import socket
import socketserver
import threading
import time
from collections.abc import Sequence

from rollcall.cluster.balancer import RoundRobin
from rollcall.cluster.names import service_name
from rollcall.cluster.pool import Pool
from rollcall.replication.records import Instance

Piece = bytes | float


class RawAnswers:
    """Asked for ``/odd``, it plays ``odd``: bytes, and pauses in seconds; afterwards it goes on with the connection.

    Asked for anything else, it says the path. ``paths`` are those that it was asked for,
    ``head`` is all of the last request.
    """

    def __init__(self) -> None:
        self.odd: Sequence[Piece] = ()
        self.hangs_up: bool = False
        self._over = threading.Event()
        self.paths: list[str] = []
        self.head: bytes = b""
        served = self

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while served._asked(self):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def _asked(self, line: socketserver.StreamRequestHandler) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            read = line.rfile.readline()
            if not read:
                return False
            head += read
        path = head.split(b" ", 2)[1].decode("latin-1")
        self.paths.append(path)
        self.head = head
        if path != "/odd":
            line.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path.encode()))
            return True
        for piece in self.odd:
            if isinstance(piece, bytes):
                line.wfile.write(piece)
            elif self._over.wait(piece):
                return False
        return not self.hangs_up

    def break_off(self) -> None:
        """Ends the connections on which it pauses, now and from now on."""
        self._over.set()

    def close(self) -> None:
        self.break_off()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Listed:
    """A ``Discovery`` of services that a test names, each at some ports of this machine."""

    def __init__(self, **ports: Sequence[int] | str) -> None:
        self.asked: list[str] = []
        self._pools: dict[str, Pool] = {}
        for service, at in ports.items():
            addrs = (at,) if isinstance(at, str) else tuple(f"http://127.0.0.1:{port}" for port in at)
            pool = self._pools[service] = Pool(service, RoundRobin, chance=random.Random(1))
            pool.update([_instance(service, number, addr) for number, addr in enumerate(addrs)], time.monotonic())

    def pool(self, service: str) -> Pool:
        self.asked.append(service_name(service))
        return self._pools.get(service) or Pool(service, RoundRobin)

    def at_hand(self, service: str) -> Pool | None:
        return self.pool(service)

    def pools(self) -> tuple[Pool, ...]:
        return tuple(self._pools.values())

    def age_s(self, service: str) -> float | None:
        return 0.0

    def failures(self, service: str) -> int:
        return sum(endpoint.failures for endpoint in self._pools[service].endpoints)


def _instance(service: str, number: int, addr: str) -> Instance:
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 0)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 0)
    return Instance(env="default", service=service, id=f"{service}-{number}", addrs=(addr,), **stamps, **indexes)


def exchanged(port: int, request: bytes, *, timeout_s: float = 10.0) -> bytes:
    """What a server answers to these bytes on a connection of their own, until it closes that."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as line:
        line.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(65536):
                received += part
    return received
