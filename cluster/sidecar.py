"""Registers on behalf of a program that knows nothing of the registry.

The program is started here, or runs already. While its check passes it is
registered; it is taken out when the check fails several times in a row, when the
program ends, and at SIGTERM: there first, so that callers have gone elsewhere when
the program is told to end. Signals and the exit code are passed through.

The program may ask who else is there on a loopback port (``ROLLCALL_DISCOVERY``):
``/instances/SERVICE`` is a list of ``{"id", "url", "host", "port"}``, ``/pick/SERVICE`` one of it.
"""

import contextlib
import http.server
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import requests
from msgspec import Struct

from ..replication.errors import Invalid
from .balancer import Endpoint
from .discovery import Discovery
from .framing import CertainAdapter
from .http import session_over
from .lease import Lease
from .pool import NoInstances

logger = logging.getLogger(__name__)

PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
"""As they come. SIGTERM and SIGINT too, but after the instance was taken out."""

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

LOOK_S = 0.05
VARIABLE = "ROLLCALL_DISCOVERY"


class Check(Struct, frozen=True, kw_only=True):
    """``target``: an ``http(s)://`` URL that must answer 2xx, or ``tcp://HOST:PORT`` that must take a connection.
    ``failures`` in a row take the instance out; one success brings it back."""

    target: str
    interval_s: float = 5.0
    timeout_s: float = 2.0
    failures: int = 3

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        if (
            parts.scheme not in ("http", "https", "tcp")
            or not parts.hostname
            or (parts.scheme == "tcp" and not parts.port)
        ):
            raise Invalid(f"check: Expected http://…, https://… or tcp://HOST:PORT, got {self.target!r}", field="check")

    def passes(self) -> bool:
        """Asks once. Never raises."""
        parts = urlsplit(self.target)
        try:
            if parts.scheme == "tcp":
                with socket.create_connection((parts.hostname or "", parts.port or 0), self.timeout_s):
                    return True
            with _session() as session, session.get(self.target, timeout=self.timeout_s, **_AS_IT_IS) as answer:
                return 200 <= answer.status_code < 300
        except (OSError, requests.RequestException) as error:
            logger.debug("the check failed: %s", error)
            return False


@contextlib.contextmanager
def _terminal() -> Iterator[int | None]:
    """The terminal that this process was started from; None where there is none, or it has gone."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        with contextlib.suppress(OSError):
            yield terminal
    finally:
        os.close(terminal)


_AS_IT_IS: dict[str, Any] = {"allow_redirects": False, "stream": True}


def _session() -> requests.Session:
    """Asks the program itself: no proxy and no password of the environment has a part in that, only its CAs."""
    session = session_over(lambda: CertainAdapter(max_retries=0))
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    return session


class Sidecar:
    """``lease`` makes one registration; each time that the program is well again it is asked for another."""

    def __init__(
        self,
        lease: Callable[[], Lease],
        check: Check | None,
        *,
        command: Sequence[str] = (),
        drain_s: float = 1.0,
        stop_s: float = 10.0,
        discovery: Discovery | None = None,
        discovery_port: int = 0,
    ) -> None:
        self._make_lease: Callable[[], Lease] = lease
        self._check: Check | None = check
        self._command: tuple[str, ...] = tuple(command)
        self._drain_s: float = drain_s
        self._stop_s: float = stop_s
        self._discovery: Discovery | None = discovery
        self._discovery_port: int = discovery_port
        self._lease: Lease | None = None
        self._said: str = ""
        """The state of the lease that was said last."""
        self._asked_to_stop: int = 0
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Until the program ends, or SIGTERM; the program's exit code (128 and the signal, if one ended it)."""
        with self._told(), self._answering() as variables:
            if self._command:
                # A group of its own: Ctrl-C must not end the program before callers have gone elsewhere. One that
                # reads the terminal gets it, and is then told of Ctrl-C by the kernel, as ever.
                self._process = subprocess.Popen(self._command, process_group=0, env={**os.environ, **variables})
            watching = threading.Thread(target=self._watch, name="sidecar check", daemon=True)
            watching.start()
            try:
                while not self._asked_to_stop and (self._process is None or self._process.poll() is None):
                    self._give_terminal()
                    time.sleep(LOOK_S)
            finally:
                self._over.set()
                watching.join()
                was_registered = self._leave()
                code = self._end(was_registered)
                self._take_terminal()
        return code

    # -- the check -----------------------------------------------------------------

    def _watch(self) -> None:
        failures = 0
        while not self._over.is_set():
            began = time.monotonic()
            passed = self._check is None or self._check.passes()
            if passed:
                failures = 0
                if self._lease is None and not self._over.is_set():
                    self._lease = self._make_lease().start()
                self._say()
            else:
                failures += 1
                if self._check is not None and failures >= self._check.failures and self._lease is not None:
                    logger.warning("the check failed %d times: %s is taken out", failures, self._lease.id)
                    self._leave()
            # Until it is there for the first time nobody waits longer than needed.
            interval_s = self._check.interval_s if self._check is not None else 5.0
            wait_s = interval_s if self._lease is not None else min(interval_s, 0.2 if failures < 50 else 1.0)
            self._over.wait(max(0.0, wait_s - (time.monotonic() - began)))

    def _say(self) -> None:
        """Whether the registry has it, where that is news."""
        lease = self._lease
        if lease is None or lease.state == self._said:
            return
        self._said = lease.state
        if lease.registered:
            logger.info("the check passes: %s is registered", lease.id)
        else:
            logger.warning("the check passes, but no node of the registry takes %s: it is tried on", lease.id)

    def _leave(self) -> bool:
        lease, self._lease = self._lease, None
        self._said = ""
        if lease is not None:
            lease.close()
        return lease is not None

    # -- the program ---------------------------------------------------------------

    def _end(self, was_registered: bool) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            if was_registered:
                time.sleep(self._drain_s)  # callers that follow changes have gone elsewhere; their last calls end
            self._pass_on(self._asked_to_stop or signal.SIGTERM)
            try:
                process.wait(self._stop_s)
            except subprocess.TimeoutExpired:
                logger.warning("the program did not end within %g s: it is killed", self._stop_s)
                process.kill()
                process.wait()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _pass_on(self, number: int) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
                if number in ENDS:
                    os.killpg(process.pid, signal.SIGCONT)  # one that is stopped hears of nothing else

    def _give_terminal(self) -> None:
        """To a program that was stopped because it reads the terminal, if that is this command's to give."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG)
        if stopped is None or stopped.si_status not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP):
            return
        if stopped.si_status == signal.SIGTSTP:
            # Ctrl-Z: the shell waits for this command, and goes on when it is stopped as well.
            if self._take_terminal():
                os.kill(os.getpid(), signal.SIGSTOP)
                os.killpg(process.pid, signal.SIGCONT)
            return
        with _terminal() as terminal:
            if terminal is not None and os.tcgetpgrp(terminal) == os.getpgrp():
                os.tcsetpgrp(terminal, process.pid)
                os.killpg(process.pid, signal.SIGCONT)

    def _take_terminal(self) -> bool:
        """Back from the program; whether it had it."""
        with _terminal() as terminal:
            if terminal is None or self._process is None or os.tcgetpgrp(terminal) != self._process.pid:
                return False
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or this would stop a process that is not in front
            os.tcsetpgrp(terminal, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
            return True
        return False

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._asked_to_stop = number

        def pass_on(number: int, frame: object) -> None:
            self._pass_on(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before |= {number: signal.signal(number, pass_on) for number in PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- discovery for the program -------------------------------------------------

    @contextlib.contextmanager
    def _answering(self) -> Iterator[dict[str, str]]:
        """Serves discovery on loopback; the variables that tell the program where."""
        discovery = self._discovery
        if discovery is None:
            yield {}
            return
        server = http.server.ThreadingHTTPServer(("127.0.0.1", self._discovery_port), _handler(discovery))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="sidecar discovery", daemon=True)
        thread.start()
        try:
            yield {VARIABLE: f"http://127.0.0.1:{server.server_address[1]}"}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            discovery.close()


def _handler(discovery: Discovery) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            what, _, service = urlsplit(self.path).path.strip("/").partition("/")
            try:
                if what == "instances" and service:
                    endpoints = discovery.pool(unquote(service)).endpoints
                    self._say(200, [_shown(endpoint) for endpoint in endpoints])
                elif what == "pick" and service:
                    self._say(200, _shown(discovery.pick(unquote(service))))
                else:
                    self._say(404, {"error": "use /instances/SERVICE or /pick/SERVICE"})
            except NoInstances as error:
                self._say(503, {"error": str(error)})
            except Invalid as error:
                self._say(400, {"error": error.message})

        def _say(self, status: int, value: Any) -> None:
            body = msgspec.json.encode(value)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            logger.debug(format, *args)

    return Handler


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    return {"id": endpoint.instance.id, "url": endpoint.url, "host": endpoint.host, "port": endpoint.port}
