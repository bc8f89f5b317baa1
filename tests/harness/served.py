"""A small HTTP service of the test's own process, well-behaved or not."""

import contextlib
import http.server
import socket
import threading
import time
from typing import NamedTuple


class Got(NamedTuple):
    headers: dict[str, str]
    body: bytes


class Served:
    """Says its name, the method and the path. ``drip_s``: its answer comes in three pieces, so far apart;
    ``breaks_off``: it ends in the middle of its answer; ``silent``: it never answers; ``status``: of its answers."""

    def __init__(
        self, name: str, *, status: int = 200, drip_s: float = 0.0, breaks_off: bool = False, silent: bool = False
    ) -> None:
        self.name: str = name
        self.status: int = status
        self.calls: int = 0
        self.closed: bool = False
        self.last: Got = Got({}, b"")
        self._over = threading.Event()
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                if served.closed:
                    self._hang_up()
                    return
                served.calls += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                served.last = Got(dict(self.headers.items()), body)
                if silent:
                    served._over.wait(30)
                    self._hang_up()
                    return
                said = f"{served.name} {self.command} {self.path}".encode()
                self.send_response(served.status)
                if drip_s or breaks_off:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for part in (b"one ", b"two ", b"three "):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                        self.wfile.flush()
                        if breaks_off:
                            self._hang_up()
                            return
                        time.sleep(drip_s)
                    self.wfile.write(b"0\r\n\r\n")
                    return
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # who asked may have gone
                    super().finish()

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
