"""Server-side discovery: an HTTP proxy that knows where services are.

A request names its service by the header ``X-Service``, by its path
(``/api/{service}/rest``), or by the first label of ``Host``. The gateway picks an
instance, passes the request on and streams the answer back. Nothing is held in memory
whole; waitress has read the request's body, to a file where it is large, before this is
called, so it can be sent again.

What goes wrong is said as RFC 9110 means it: 404 no service is named, 503 nobody is
there to ask, 502 the instance's answer cannot be used, 504 it did not come in time. A
request is tried again at another instance if it certainly did not arrive, or if its
method may be repeated (RFC 9110, 9.2.2) and its answer had not begun.
"""

import io
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import urllib3
from msgspec import Struct
from urllib3 import exceptions as lower

from ..replication.errors import Invalid
from . import forks
from .balancer import Endpoint
from .discovery import Discovery
from .pool import NO_HEADERS, NoInstances, Pool

logger = logging.getLogger(__name__)

Environ = Mapping[str, Any]
StartResponse = Callable[..., Any]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
"""Of one connection only (RFC 9110, 7.6.1); those that ``Connection`` names come on top."""

ELSEWHERE = frozenset({502, 503, 504})
"""Answers of an instance that cannot, while another might."""

CHUNK_BYTES = 64 * 1024
STOP_S = 5.0
OWN = "/-/"
"""Paths below are the gateway's own: ``/-/healthz``, ``/-/services``."""


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """``routes``: what a name in a path or a host stands for, where it is not the service itself.

    ``tries``: of those that took time or may have arrived, so that a request which kills who gets it does not kill
    everybody; but three instances may die within one request. Who refuses at once does not count.
    ``try_s`` bounds each wait for an instance, ``total_s`` all of them together. ``connect_s`` is more than the
    second after which a first packet that was lost is sent again.
    """

    routes: dict[str, str] = {}
    prefix: str = "/api/"
    tries: int = 5
    connect_s: float = 1.5
    try_s: float = 10.0
    total_s: float = 30.0


class _Wanted(Struct, frozen=True):
    """Which service a request is for, and what is asked of it."""

    service: str
    target: str
    prefix: str


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
        request_id = environ.get("HTTP_X_REQUEST_ID") or secrets.token_hex(8)
        path = _path(environ)
        if path.startswith(OWN):
            return self._own(path, start_response)
        wanted = self._wanted(environ, path)
        if wanted is None:
            return _problem(start_response, 404, "no service is named: use /api/SERVICE/… or X-Service", request_id)
        try:
            pool = self._discovery.pool(wanted.service)
            endpoint, answer, first = self._first_that_answers(pool, environ, wanted, request_id)
        except NoInstances as error:
            logger.info("503 %s: %s", wanted.service, error)
            return _problem(start_response, 503, f"Service not available: {error}", request_id)
        except _Failed as error:
            logger.warning("%d %s: %s", error.status, wanted.service, error)
            return _problem(start_response, error.status, str(error), request_id)
        headers = [(name, value) for name, value in answer.headers.items() if _passes(name, answer.headers)]
        headers += [("X-Request-Id", request_id), ("Via", "1.1 rollcall")]
        start_response(f"{answer.status} {answer.reason or 'Unknown'}", headers)
        return _Body(pool, endpoint, answer, first)

    # -- whom it is for ------------------------------------------------------------

    def _wanted(self, environ: Environ, path: str) -> _Wanted | None:
        query = environ.get("QUERY_STRING", "")
        suffix = f"?{query}" if query else ""
        name = environ.get("HTTP_X_SERVICE", "")
        if name:
            return _Wanted(self._service(name), path + suffix, "")
        prefix = self._settings.prefix
        if path.startswith(prefix):
            name, _, rest = path[len(prefix) :].partition("/")
            return _Wanted(self._service(name), f"/{rest}{suffix}", prefix + name) if name else None
        host = environ.get("HTTP_HOST", "").partition(":")[0]
        name = host if host in self._settings.routes else host.partition(".")[0]
        if "." not in host or host.replace(".", "").isdigit():
            return None
        return _Wanted(self._service(name), path + suffix, "")

    def _service(self, name: str) -> str:
        return self._settings.routes.get(name, name)

    # -- tries ---------------------------------------------------------------------

    def _first_that_answers(
        self, pool: Pool, environ: Environ, wanted: _Wanted, request_id: str
    ) -> tuple[Endpoint, urllib3.BaseHTTPResponse, bytes]:
        method = environ["REQUEST_METHOD"]
        headers = _forwarded(environ, wanted, request_id)
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
            answer = self._http.urlopen(
                method,
                endpoint.url.rstrip("/") + target,
                body=_rewound(body, length),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(self._settings.connect_s, left_s), read=left_s),
                preload_content=False,
                decode_content=False,
                redirect=False,
                assert_same_host=False,
            )
            first = _next(answer)
        except lower.HTTPError as error:
            pool.failed(endpoint, time.monotonic())
            raise _failed(endpoint, error) from error
        except BaseException:
            pool.abandoned(endpoint)
            raise
        endpoint.took(time.monotonic() - began, time.monotonic())
        return answer, first

    # -- its own pages -------------------------------------------------------------

    def _own(self, path: str, start_response: StartResponse) -> Iterable[bytes]:
        if path == "/-/healthz":
            return _json(start_response, 200, {"status": "alive"})
        if path == "/-/services":
            return _json(start_response, 200, {"services": [self._shown(pool) for pool in self._discovery.pools()]})
        return _json(start_response, 404, {"title": "Not Found", "status": 404})

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
    return urllib3.PoolManager(num_pools=512, maxsize=64, retries=False, block=False)


def _next(answer: urllib3.BaseHTTPResponse) -> bytes:
    """As it comes: a slow answer is passed on in the pieces in which it was sent. Empty: the end."""
    return answer.read1(CHUNK_BYTES, decode_content=False)  # pyright: ignore[reportAttributeAccessIssue]


def _failed(endpoint: Endpoint, error: lower.HTTPError) -> _Failed:
    who = endpoint.instance.id
    if isinstance(error, (lower.NewConnectionError, lower.ConnectTimeoutError)):
        refused = isinstance(error, lower.NewConnectionError)
        return _Failed(502, f"{who} cannot be reached", arrived=False, counts=not refused)
    if isinstance(error, lower.TimeoutError):
        return _Failed(504, f"{who} did not answer in time", arrived=True)
    return _Failed(502, f"{who} gave no answer that can be used", arrived=True)


def _rewound(body: Any, length: int) -> Any:
    if length == 0:
        return None
    body.seek(0)
    return body


def _path(environ: Environ) -> str:
    """The path as it stood in the request line; encoded anew where the server does not tell that."""
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if raw:
        return urlsplit(raw).path if "://" in raw else str(raw).partition("?")[0]
    return quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe=_PATH_SAFE)


_PATH_SAFE = "/!$&'()*+,;=:@~"


def _forwarded(environ: Environ, wanted: _Wanted, request_id: str) -> dict[str, str]:
    """The request's headers as the instance gets them."""
    named = {
        name[5:].replace("_", "-").title(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }  # fmt: skip
    headers = {name: value for name, value in named.items() if _passes(name, named)}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
    peer = environ.get("REMOTE_ADDR", "")
    headers["X-Forwarded-For"] = ", ".join(filter(None, (headers.get("X-Forwarded-For"), peer)))
    headers.setdefault("X-Forwarded-Proto", environ.get("wsgi.url_scheme", "http"))
    headers.setdefault("X-Forwarded-Host", environ.get("HTTP_HOST", ""))
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


def _json(start_response: StartResponse, status: int, value: Any, kind: str = "application/json") -> Iterable[bytes]:
    body = msgspec.json.encode(value) + b"\n"
    reason = {200: "OK", 404: "Not Found", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(f"{status} {reason.get(status, 'Unknown')}", headers)
    return io.BytesIO(body)


def _problem(start_response: StartResponse, status: int, detail: str, request_id: str) -> Iterable[bytes]:
    titles = {404: "No service is named", 502: "Bad gateway", 503: "Service not available", 504: "Gateway timeout"}
    value = {"type": "about:blank", "title": titles[status], "status": status, "detail": detail}
    return _json(start_response, status, {**value, "request_id": request_id}, "application/problem+json")


def serve(
    app: Gateway, host: str, port: int, *, threads: int, body_bytes_max: int, ready: Callable[[int], None]
) -> None:
    """Serves until SIGTERM or SIGINT; then what is under way ends, for some seconds. ``ready`` is told the port."""
    try:
        from waitress.server import create_server
    except ImportError:
        raise Invalid("the gateway needs waitress: pip install 'rollcall-registry[gateway]'", field="gateway") from None
    server: Any = create_server(
        app,
        host=host,
        port=port,
        threads=threads,
        ident=None,
        clear_untrusted_proxy_headers=False,
        max_request_body_size=body_bytes_max,
        connection_limit=4 * threads,
        asyncore_use_poll=True,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loop = threading.Thread(target=server.run, name="gateway", daemon=True)
    loop.start()
    ready(int(server.effective_port))
    while loop.is_alive() and not stop.wait(0.5):
        pass
    server.task_dispatcher.shutdown(cancel_pending=True, timeout=STOP_S)
    server.close()
    app.close()
