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

import io
import logging
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import urllib3
from msgspec import Struct
from urllib3 import exceptions as lower
from urllib3.util import parse_url

from ..replication.errors import Invalid
from ..replication.front.networks import LOOPBACK, networks, within
from ..replication.front.pages import ANSWER_BYTES_MAX, PAGE_BYTES
from . import forks
from .balancer import Endpoint
from .calls import ELSEWHERE, IDEMPOTENT
from .discovery import Discovery
from .framing import POOLS, BadAnswer
from .names import service_name
from .origin import origin_of
from .pool import NO_HEADERS, NoInstances, Pool
from .targets import Malformed, host_of, services_of, target_of

logger = logging.getLogger(__name__)

Environ = Mapping[str, Any]
StartResponse = Callable[..., Any]

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
"""Of one connection only (RFC 9110, 7.6.1); those that ``Connection`` names come on top."""

CHUNK_BYTES = 64 * 1024
BODY_MEMORY_BYTES = 64 * 1024
CONNECTIONS_MAX = 2048
SHARE = 0.25
"""Of connections and threads, for one client, when they are all taken."""
STOP_S = 5.0
OWN = "/-/"
"""Paths below are the gateway's own: ``/-/healthz``, ``/-/services``."""


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """``routes``: what a name in a path or a host stands for, where it is not the service itself.

    ``tries``: of those that took time or may have arrived, so that a request which kills who gets it does not kill
    everybody; but three instances may die within one request. Who refuses at once does not count.
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


class _Failed(Exception):
    """One try came to nothing. ``status`` is what the client is told if no other succeeds."""

    def __init__(self, status: int, why: str, *, arrived: bool, counts: bool = True) -> None:
        super().__init__(why)
        self.status: int = status
        self.arrived: bool = arrived
        self.counts: bool = counts


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
            return _problem(start_response, 400, str(error), request_id)
        except NoInstances as error:
            logger.info("503 %s", error)
            return _problem(start_response, 503, f"Service not available: {error}", request_id)
        except _Failed as error:
            if error.status >= 500:
                logger.warning("%d: %s", error.status, error)
            return _problem(start_response, error.status, str(error), request_id)
        except Exception:
            logger.exception("a request failed by a fault of this program, id %s", request_id)
            return _problem(start_response, 500, "the gateway failed; its log has the details", request_id)

    def _answered(self, environ: Environ, start_response: StartResponse, request_id: str) -> Iterable[bytes]:
        wanted = self._wanted(environ)
        if "websocket" in environ.get("HTTP_UPGRADE", "").lower():
            # Passed on as a plain request it would get an answer that says nothing of the reason.
            raise _Failed(501, "the gateway passes no WebSocket on: ask an instance directly", arrived=False)
        if wanted.target.startswith((OWN, "*")):
            return self._own(wanted.target, environ.get("QUERY_STRING", ""), start_response, request_id)
        if not wanted.services:
            raise _Failed(404, "no service is named: use /api/SERVICE/… or X-Service", arrived=False)
        pool = self._pool(wanted.services)
        endpoint, answer, first = self._first_that_answers(pool, environ, wanted, request_id)
        body = _Body(pool, endpoint, answer, first)
        try:
            headers = [(name, value) for name, value in answer.headers.items() if _passes(name, answer.headers)]
            headers += [("X-Request-Id", request_id), ("Via", "1.1 rollcall")]
            start_response(f"{answer.status} {answer.reason or 'Unknown'}", headers)
        except BaseException:
            body.close()
            raise
        return body

    # -- whom it is for ------------------------------------------------------------

    def _wanted(self, environ: Environ) -> _Wanted:
        """Raises ``Malformed``, or ``_Failed`` where no service can be called so."""
        target = target_of(environ["REQUEST_METHOD"], _target(environ))
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
        method = environ["REQUEST_METHOD"]
        headers = _forwarded(environ, wanted, request_id, trusted=self._trusts(environ.get("REMOTE_ADDR", "")))
        asked = {name.lower(): value for name, value in headers.items()} if pool.policies else NO_HEADERS
        body, length = environ["wsgi.input"], int(environ.get("CONTENT_LENGTH") or 0)
        until = time.monotonic() + self._settings.total_s
        tried: list[Endpoint] = []
        counted = 0
        failure: _Failed | None = None
        while counted < self._settings.tries and (failure is None or time.monotonic() < until):
            try:
                endpoint = pool.pick(time.monotonic(), wanted.target, tried, asked)
            except NoInstances:
                if failure is None:
                    raise
                break
            tried.append(endpoint)
            last = counted + 1 == self._settings.tries or len(pool.endpoints) <= len(tried)
            try:
                answer, first = self._try(pool, endpoint, method, wanted.target, headers, body, length, until)
            except _Failed as error:
                failure = error
                if error.arrived and method not in IDEMPOTENT:
                    raise
                counted += error.counts
                continue
            if answer.status in ELSEWHERE and method in IDEMPOTENT and not last:
                failure = _Failed(answer.status, f"{endpoint.instance.id} answered {answer.status}", arrived=True)
                answer.close()
                pool.failed(endpoint, time.monotonic())
                counted += 1
                continue
            return endpoint, answer, first
        assert failure is not None
        raise failure

    def _try(
        self,
        pool: Pool,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Any,
        length: int,
        until: float,
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """The answer and the first piece of its body: until that is here, nothing was passed on to the client."""
        left_s = max(0.001, min(self._settings.try_s, until - time.monotonic()))
        began = time.monotonic()
        pool.begun(endpoint, began)
        try:
            origin = origin_of(endpoint.url)
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            answer = self._http.connection_from_host(host, origin.port, scheme=origin.scheme).urlopen(
                method,
                origin.base + target,
                body=_rewound(body, length),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(self._settings.connect_s, left_s), read=left_s),
                preload_content=False,
                decode_content=False,
                retries=False,
                redirect=False,
            )
            first = _next(answer)
        except Invalid as error:
            pool.failed(endpoint, time.monotonic())
            raise _Failed(502, f"{endpoint.instance.id}: {error.message}", arrived=False, counts=False) from error
        except lower.HTTPError as error:
            if isinstance(error, lower.LocationParseError) and not _is_read(target):
                pool.abandoned(endpoint)  # by urllib3 before 2.8, and by no fault of the instance's
                raise Malformed("the request's target cannot be read") from error
            pool.failed(endpoint, time.monotonic())
            raise _failed(endpoint, error) from error
        except BaseException:
            pool.abandoned(endpoint)
            raise
        endpoint.took(time.monotonic() - began, time.monotonic())
        return answer, first

    def _trusts(self, peer: str) -> bool:
        """Whether what this peer says of whom it speaks for is believed."""
        return bool(self.trusted) and within(peer, self.trusted)

    # -- its own pages -------------------------------------------------------------

    def _own(self, path: str, query: str, start_response: StartResponse, request_id: str) -> Iterable[bytes]:
        if path == "*":  # what the server as a whole can do (RFC 9110, 9.3.7): no instance is meant
            start_response("200 OK", [("Content-Length", "0"), ("X-Request-Id", request_id)])
            return []
        if path == "/-/healthz":
            return _json(start_response, 200, {"status": "alive"}, request_id)
        if path == "/-/services":
            return _json(start_response, 200, self._known(query), request_id)
        return _problem(start_response, 404, "the gateway has /-/healthz and /-/services", request_id)

    def _known(self, query: str) -> dict[str, Any]:
        """The services by name; with ``after`` a page of them, as nodes have pages (``next`` is the name of a service).

        Raises ``_Failed`` where all of them are too much for one answer."""
        begin = _parameter(query, "after")
        paged, last, size = begin is not None, begin or "", 0
        found: list[msgspec.Raw] = []
        pools = (pool for pool in self._discovery.pools() if pool.service > last)
        for pool in sorted(pools, key=lambda pool: pool.service):
            shown = msgspec.json.encode(self._shown(pool))
            size += len(shown) + 1
            if not paged and size > ANSWER_BYTES_MAX:
                words = f"the list is larger than {ANSWER_BYTES_MAX} bytes: ask for pages with after=, then after=NEXT"
                raise _Failed(413, words, arrived=False)
            if paged and found and size > PAGE_BYTES:
                return {"services": found, "next": last}
            found.append(msgspec.Raw(shown))
            last = pool.service
        return {"services": found, "next": None} if paged else {"services": found}

    def _shown(self, pool: Pool) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "service": pool.service,
            "age_s": self._discovery.age_s(pool.service),
            "instances": [
                {
                    "id": endpoint.instance.id,
                    "url": endpoint.url,
                    "active": endpoint.active,
                    "latency_s": round(endpoint.latency_s, 6),
                    "failures": endpoint.failures,
                    "shunned_s": max(0.0, round(endpoint.shunned_until - now, 3)) if endpoint.failures else 0.0,
                }
                for endpoint in pool.endpoints
            ],
        }


class _Body:
    """An instance's answer on its way to the client."""

    def __init__(self, pool: Pool, endpoint: Endpoint, answer: urllib3.BaseHTTPResponse, first: bytes) -> None:
        self._pool: Pool = pool
        self._endpoint: Endpoint = endpoint
        self._answer: urllib3.BaseHTTPResponse = answer
        self._first: bytes = first
        self._over: bool = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            data = self._first
            while data:
                yield data
                data = _next(self._answer)
        except lower.HTTPError as error:
            logger.warning("the answer of %s broke off: %s", self._endpoint.instance.id, error)
            self._end(failed=True)
            # The client must not take what it has for the whole.
            raise ConnectionAbortedError(f"the answer of {self._endpoint.instance.id} broke off") from error
        self._end(failed=self._answer.status in ELSEWHERE)

    def close(self) -> None:
        """WSGI: called in any case, also if the client has gone."""
        if not self._over:
            self._answer.close()
            self._over = True
            self._pool.abandoned(self._endpoint)

    def _end(self, *, failed: bool) -> None:
        self._over = True
        if failed:
            self._answer.close()
            self._pool.failed(self._endpoint, time.monotonic())
        else:
            self._answer.release_conn()
            self._pool.succeeded(self._endpoint, self._endpoint.latency_s, time.monotonic())


def _connections() -> urllib3.PoolManager:
    made = urllib3.PoolManager(num_pools=512, maxsize=64, retries=False, block=False)
    made.pool_classes_by_scheme = POOLS
    return made


def _next(answer: urllib3.BaseHTTPResponse) -> bytes:
    """As it comes: a slow answer is passed on in the pieces in which it was sent. Empty: the end."""
    return answer.read1(CHUNK_BYTES, decode_content=False)  # pyright: ignore[reportAttributeAccessIssue]


def _failed(endpoint: Endpoint, error: lower.HTTPError) -> _Failed:
    who = endpoint.instance.id
    if isinstance(error, lower.LocationValueError):
        return _Failed(502, f"{who} has an address that is none: {error}", arrived=False, counts=False)
    if isinstance(error, (lower.NewConnectionError, lower.ConnectTimeoutError)):
        refused = isinstance(error, lower.NewConnectionError)
        return _Failed(502, f"{who} cannot be reached", arrived=False, counts=not refused)
    if isinstance(error, lower.TimeoutError):
        return _Failed(504, f"{who} did not answer in time", arrived=True)
    why = next((f": {cause}" for cause in error.args if isinstance(cause, BadAnswer)), "")
    return _Failed(502, f"{who} gave no answer that can be used{why}", arrived=True)


def _is_read(target: str) -> bool:
    try:
        parse_url(target)
    except lower.LocationParseError:
        return False
    return True


def _rewound(body: Any, length: int) -> Any:
    if length == 0:
        return None
    body.seek(0)
    return body


def _target(environ: Environ) -> str:
    """The second word of the request line; put together anew where the server does not tell that."""
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if raw:
        return str(raw)
    path = quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe=_PATH_SAFE)
    query = environ.get("QUERY_STRING", "")
    return f"{path}?{query}" if query else path


_PATH_SAFE = "/!$&'()*+,;=:@~"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


def _named(service: str, status: int) -> str:
    try:
        return service_name(service)
    except Invalid as error:
        raise _Failed(status, error.message, arrived=False) from None


def _forwarded(environ: Environ, wanted: _Wanted, request_id: str, *, trusted: bool) -> dict[str, str]:
    """The request's headers as the instance gets them.

    Whom the request is from, and how it came here, is this gateway's word: it adds to ``X-Forwarded-For``, and what a
    client claims in the others is not passed on, unless the client is a proxy that is trusted.
    """
    named = {
        name[5:].replace("_", "-").title(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }  # fmt: skip
    headers = {name: value for name, value in named.items() if _passes(name, named)}
    before = headers.pop("X-Forwarded-For", "")
    if not trusted:
        headers = {n: v for n, v in headers.items() if n != "Forwarded" and not n.startswith("X-Forwarded-")}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
    if wanted.host:
        headers["Host"] = wanted.host  # which is that of the target, where it was a whole URL
        headers.setdefault("X-Forwarded-Host", wanted.host)
    headers["X-Forwarded-For"] = ", ".join(filter(None, (before, environ.get("REMOTE_ADDR", ""))))
    headers.setdefault("X-Forwarded-Proto", environ.get("wsgi.url_scheme", "http"))
    if wanted.prefix:
        headers["X-Forwarded-Prefix"] = wanted.prefix
    headers["X-Request-Id"] = request_id
    return headers


def _passes(name: str, headers: Mapping[str, str]) -> bool:
    lowered = name.lower()
    if lowered in HOP_BY_HOP:
        return False
    named = headers.get("Connection", "")
    return lowered not in {part.strip().lower() for part in named.split(",")} if named else True


def _parameter(query: str, name: str) -> str | None:
    """One parameter of a query string; None: it is not there."""
    found = [part.partition("=")[2] for part in query.split("&") if part.partition("=")[0] == name]
    return unquote(found[-1]) if found else None


def _json(
    start_response: StartResponse, status: int, value: Any, request_id: str, kind: str = "application/json"
) -> Iterable[bytes]:
    body = msgspec.json.encode(value) + b"\n"
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("X-Request-Id", request_id)]
    start_response(f"{status} {_REASONS[status]}", headers, sys.exc_info() if status == 500 else None)
    return io.BytesIO(body)


_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_TITLES = {
    400: "Bad request", 404: "No service is named", 413: "Too large", 500: "Internal error",
    501: "Not implemented", 502: "Bad gateway",
    503: "Service not available", 504: "Gateway timeout",
}  # fmt: skip


def _problem(start_response: StartResponse, status: int, detail: str, request_id: str) -> Iterable[bytes]:
    value = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return _json(start_response, status, {**value, "request_id": request_id}, request_id, "application/problem+json")


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
