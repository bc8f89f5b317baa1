"""Server-side discovery: an HTTP proxy that knows where services are.

A request names its service by the header ``X-Service``, by its path
(``/api/{service}/rest``), or by the first label of ``Host``. The gateway picks an
instance, passes the request on and streams the answer back. Nothing is held in memory
whole; waitress has read the request's body, to a file where it is large, before this is
called, so it can be sent again.

What goes wrong is said as RFC 9110 means it: 400 the request must not be passed on, 404
no service is named, 501 a WebSocket is asked for, 503 nobody is there to ask, 502 the instance's answer cannot be
used, 504 it did not come in time. A request is tried again at another instance if it
certainly did not arrive, or if its method may be repeated (RFC 9110, 9.2.2) and its
answer had not begun.
"""

import logging
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import urllib3
from msgspec import Struct
from urllib3 import exceptions as lower
from urllib3.util import parse_url

from ..replication.errors import Invalid
from ..replication.front.networks import LOOPBACK, networks, within
from . import forks
from .balancer import Endpoint
from .calls import Call
from .discovery import Discovery
from .forwarding import Body, Environ, Failed, body_of, failure_of, forwarded, next_piece, passes, target_line
from .framing import POOLS
from .gateway_pages import StartResponse, json_answer, problem, services_known
from .names import service_name
from .origin import origin_of
from .pool import NoInstances, Pool
from .targets import Malformed, host_of, services_of, target_of

logger = logging.getLogger(__name__)

BODY_MEMORY_BYTES = 64 * 1024
CONNECTIONS_MAX = 2048
SHARE = 0.25
"""Of connections and threads, for one client, when they are all taken."""
STOP_S = 5.0
OWN = "/-/"
"""Paths below are the gateway's own: ``/-/healthz``, ``/-/services``."""


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """``routes``: what a name in a path or a host stands for, where it is not the service itself.

    ``tries``: of those that took time or may have arrived, so that a request which kills its receiver does not kill
    everybody; but three instances may die within one request. An instance that refuses at once does not count.
    ``try_s`` bounds each wait for an instance, ``total_s`` all of them together. ``connect_s`` is more than the
    second after which a first packet that was lost is sent again. ``trusted``: networks of proxies whose
    ``X-Forwarded-*`` headers are believed.
    """

    routes: dict[str, str] = {}
    prefix: str = "/api/"
    tries: int = 5
    connect_s: float = 1.5
    try_s: float = 10.0
    total_s: float = 30.0
    trusted: tuple[str, ...] = ()


class _Wanted(Struct, frozen=True):
    """Which service a request is for (the first of ``services`` that is there), and what is asked of it."""

    services: tuple[str, ...]
    target: str
    prefix: str
    host: str


class Gateway:
    """A WSGI application over a ``Discovery``."""

    def __init__(self, discovery: Discovery, settings: GatewaySettings = GatewaySettings()) -> None:  # noqa: B008
        self._discovery: Discovery = discovery
        self._settings: GatewaySettings = settings
        self._routes_by_host: dict[str, str] = {name.lower(): to for name, to in settings.routes.items()}
        self.trusted = networks(settings.trusted)
        self._http: urllib3.PoolManager = _connections()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork (a gateway may be served by any WSGI server): a child has connections of its own."""
        forks.leave(self._http)
        self._http = _connections()

    def close(self) -> None:
        self._http.clear()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        forks.notice()
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        try:
            return self._answered(environ, start_response, request_id)
        except Malformed as error:
            return problem(start_response, 400, str(error), request_id)
        except NoInstances as error:
            logger.info("503 %s", error)
            return problem(start_response, 503, f"Service not available: {error}", request_id)
        except Failed as error:
            if error.status >= 500:
                logger.warning("%d: %s", error.status, error)
            return problem(start_response, error.status, str(error), request_id)
        except Exception:
            logger.exception("a request failed by a fault of this program, id %s", request_id)
            return problem(start_response, 500, "the gateway failed; its log has the details", request_id)

    def _answered(self, environ: Environ, start_response: StartResponse, request_id: str) -> Iterable[bytes]:
        wanted = self._wanted(environ)
        if "websocket" in environ.get("HTTP_UPGRADE", "").lower():
            # Passed on as a plain request it would get an answer that says nothing of the reason.
            raise Failed(501, "the gateway passes no WebSocket on: ask an instance directly", arrived=False)
        if wanted.target.startswith((OWN, "*")):
            return self._own(wanted.target, environ.get("QUERY_STRING", ""), start_response, request_id)
        if not wanted.services:
            raise Failed(404, "no service is named: use /api/SERVICE/… or X-Service", arrived=False)
        pool = self._pool(wanted.services)
        endpoint, answer, first = self._first_that_answers(pool, environ, wanted, request_id)
        body = Body(pool, endpoint, answer, first)
        try:
            headers = [(name, value) for name, value in answer.headers.items() if passes(name, answer.headers)]
            headers += [("X-Request-Id", request_id), ("Via", "1.1 rollcall")]
            start_response(f"{answer.status} {answer.reason or 'Unknown'}", headers)
        except BaseException:
            body.close()
            raise
        return body

    # -- whom it is for ------------------------------------------------------------

    def _wanted(self, environ: Environ) -> _Wanted:
        """Raises ``Malformed``, or ``Failed`` where no service can be called so."""
        target = target_of(environ["REQUEST_METHOD"], target_line(environ))
        host = target.host or environ.get("HTTP_HOST", "")
        if not host and environ.get("SERVER_PROTOCOL") == "HTTP/1.1" and "HTTP_HOST" not in environ:
            raise Malformed("a request of HTTP/1.1 must name its Host")
        named = host_of(host)
        path, whole, prefix = target.path, target.path + target.query, self._settings.prefix
        header = environ.get("HTTP_X_SERVICE", "")
        if path.startswith(OWN) or path == "*":
            return _Wanted((), path, "", host)
        if header:
            return _Wanted((_named(self._service(header), 400),), whole, "", host)
        if path.startswith(prefix):
            name, _, rest = path[len(prefix) :].partition("/")
            services = (_named(self._service(unquote(name)), 404),) if name else ()
            return _Wanted(services, f"/{rest}{target.query}", prefix + name, host)
        services = tuple(_named(service, 404) for service in services_of(named, self._routes_by_host))
        return _Wanted(services, whole, "", host)

    def _service(self, name: str) -> str:
        return self._settings.routes.get(name, name)

    def _pool(self, services: tuple[str, ...]) -> Pool:
        *others, last = services
        for service in others:
            pool = self._discovery.pool(service)
            if pool.endpoints:
                return pool
        return self._discovery.pool(last)

    # -- tries ---------------------------------------------------------------------

    def _first_that_answers(
        self, pool: Pool, environ: Environ, wanted: _Wanted, request_id: str
    ) -> tuple[Endpoint, urllib3.BaseHTTPResponse, bytes]:
        """Who answered, with the answer and the first piece of its body: until that is here, nothing was passed on to
        the client."""
        method = environ["REQUEST_METHOD"]
        headers = forwarded(environ, wanted.host, wanted.prefix, request_id, trusted=self._trusts(environ))
        until = time.monotonic() + self._settings.total_s
        tries, target = self._settings.tries, wanted.target
        call = Call(pool, method=method, resendable=True, key=target, headers=headers, tries=tries, until=until)
        endpoint = call.begin(time.monotonic())
        while True:
            try:
                answer, first = self._sent(endpoint, method, target, headers, body_of(environ), until)
            except Failed as error:
                following = call.failed(time.monotonic(), refused=not error.arrived, counts=error.counts)
                if following is None:
                    raise
            except BaseException:
                call.abandoned()
                raise
            else:
                if not call.may_be_better(answer.status):
                    return endpoint, answer, first
                answer.close()
                following = call.failed(time.monotonic(), refused=False)
                if following is None:
                    why = f"{endpoint.instance.id} answered {answer.status}"
                    raise Failed(answer.status, why, arrived=True)
            endpoint = following

    def _sent(
        self, endpoint: Endpoint, method: str, target: str, headers: Mapping[str, str], body: Any, until: float
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        began = time.monotonic()
        left_s = max(0.001, min(self._settings.try_s, until - began))
        try:
            origin = origin_of(endpoint.url)
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            answer = self._http.connection_from_host(host, origin.port, scheme=origin.scheme).urlopen(
                method,
                origin.base + target,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(self._settings.connect_s, left_s), read=left_s),
                preload_content=False,
                decode_content=False,
                retries=False,
                redirect=False,
            )
            first = next_piece(answer)
        except Invalid as error:
            raise Failed(502, f"{endpoint.instance.id}: {error.message}", arrived=False, counts=False) from error
        except lower.HTTPError as error:
            if isinstance(error, lower.LocationParseError) and not _is_read(target):
                # By urllib3 before 2.8, and by no fault of the instance's.
                raise Malformed("the request's target cannot be read") from error
            raise failure_of(endpoint, error) from error
        endpoint.took(time.monotonic() - began, time.monotonic())
        return answer, first

    def _trusts(self, environ: Environ) -> bool:
        """Whether what the peer says of whom it speaks for is believed."""
        return bool(self.trusted) and within(environ.get("REMOTE_ADDR", ""), self.trusted)

    # -- its own pages -------------------------------------------------------------

    def _own(self, path: str, query: str, start_response: StartResponse, request_id: str) -> Iterable[bytes]:
        if path == "*":  # what the server as a whole can do (RFC 9110, 9.3.7): no instance is meant
            start_response("200 OK", [("Content-Length", "0"), ("X-Request-Id", request_id)])
            return []
        if path == "/-/healthz":
            return json_answer(start_response, 200, {"status": "alive"}, request_id)
        if path == "/-/services":
            return json_answer(start_response, 200, services_known(self._discovery, query), request_id)
        return problem(start_response, 404, "the gateway has /-/healthz and /-/services", request_id)


def _connections() -> urllib3.PoolManager:
    made = urllib3.PoolManager(num_pools=512, maxsize=64, retries=False, block=False)
    made.pool_classes_by_scheme = POOLS
    return made


def _is_read(target: str) -> bool:
    try:
        parse_url(target)
    except lower.LocationParseError:
        return False
    return True


_REQUEST_ID = re.compile(r"[!-~]{1,128}")


def _named(service: str, status: int) -> str:
    try:
        return service_name(service)
    except Invalid as error:
        raise Failed(status, error.message, arrived=False) from None


def serve(
    app: Gateway, host: str, port: int, *, threads: int, body_bytes_max: int, ready: Callable[[int], None]
) -> None:
    """Serves until SIGTERM or SIGINT; then what is under way ends, for some seconds. ``ready`` is told the port.

    Raises ``OSError`` if the address cannot be had, and what ended the serving if it ends unasked."""
    try:
        from ..replication.front.server import Server
    except ImportError:
        raise Invalid("the gateway needs waitress: pip install 'rollcall-registry[gateway]'", field="gateway") from None
    stop = threading.Event()
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        stop.set()

    server = Server(
        app,
        host,
        port,
        threads,
        body_bytes_max=body_bytes_max,
        body_memory_bytes=BODY_MEMORY_BYTES,
        connection_limit=CONNECTIONS_MAX,
        aside=OWN,
        share=SHARE,
        exempt=app.trusted + LOOPBACK,
        on_failure=failed,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    ready(server.port)
    stop.wait()
    server.stop(STOP_S)
    app.close()
    if failures:
        raise failures[0]
