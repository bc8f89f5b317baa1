"""The three calls that a registry hears all day, answered in front of Flask.

``GET /api/v1/services/{service}/instances`` with no more than ``?env=``, where its
answer is short and stands rendered (``views.Listings``); ``PUT`` of an instance; ``PUT`` of
its heartbeat. For these, routing, request objects and response objects would be
most of the work. All else goes on to Flask, these paths too as soon as anything
about them is special; both give the same headers and bytes.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from ...replication.commands import Register
from ...replication.errors import RollcallError
from ...replication.records import DEFAULT_ENV, Key
from .. import logs
from .body import parsed
from .context import Context
from .native import registered, renewed
from .pages import encode_json
from .problem import CONTENT_TYPE, problem_of
from .registering import registration

logger = logging.getLogger(__name__)

LIST = "/api/v1/services/{service}/instances"
INSTANCE = "/api/v1/services/{service}/instances/{id}"
HEARTBEAT = "/api/v1/services/{service}/instances/{id}/heartbeat"
PATHS_MAX = 10_000

METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})
"""Metered by their names: any other is the client's word, and a meter for each would be without bound."""

_PATH = re.compile(r"/api/v1/services/(?P<service>[A-Za-z0-9._-]{1,128})/instances")
_QUERY = re.compile(r"(env=(?P<env>[A-Za-z0-9._-]{1,128}))?")
_INSTANCE = re.compile(_PATH.pattern + r"/(?P<id>[A-Za-z0-9._:~@-]{1,512})(?P<heartbeat>/heartbeat)?")

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[[str, Headers], Any]

_STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}


class Fast:
    """A WSGI app: the plain calls itself, all other requests through ``inner``."""

    def __init__(self, inner: Callable[[Environ, Any], Iterable[bytes]], context: Context) -> None:
        self.inner: Callable[[Environ, Any], Iterable[bytes]] = inner
        self._context = context
        self._callers = context.callers
        self._meters = {method: context.metrics.meter(LIST, method, 200) for method in ("GET", "HEAD")}
        # (path, query) -> (env, service), so that a known address is taken apart once.
        self._known: dict[tuple[str, str], tuple[str, str]] = {}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if not self._callers.ordinary(environ):
            try:
                self._callers.check(environ)
            except RollcallError as error:
                return self._refused(error, method, environ, start_response)
        # An encoded slash would look like a path of more segments here; Flask's side tells them apart.
        if "%" in (environ.get("REQUEST_URI") or ""):
            return self.inner(environ, start_response)
        if method in self._meters:
            address = (environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
            names = self._known.get(address) or self._names(address)
            # What has to be made is for Flask's side, where that is done once for all who ask, and sent in pieces.
            ready = None if names is None else self._context.listings.ready(*names)
            if ready is not None:
                return self._list(method, ready, environ, start_response)
        elif method == "PUT" and environ.get("REQUEST_URI") and not environ.get("QUERY_STRING"):
            match = _INSTANCE.fullmatch(environ["PATH_INFO"])
            if match is not None and self._is_plain(environ):
                return self._put(match, environ, start_response)
        return self.inner(environ, start_response)

    def _list(
        self, method: str, ready: tuple[int, bytes], environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        began = time.perf_counter()
        context, (index, body) = self._context, ready
        request_id = context.request_id(environ.get("HTTP_X_REQUEST_ID"))
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        headers += context.headers(index=index, request_id=request_id, listed=True)
        start_response("200 OK", headers)
        seconds = time.perf_counter() - began
        self._meters[method].answered(seconds)
        _log(request_id, method, environ["PATH_INFO"], 200, seconds)
        return [body] if method == "GET" else []

    def _put(self, match: re.Match[str], environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        context = self._context
        request_id = context.request_id(environ.get("HTTP_X_REQUEST_ID"))
        logs.request_id.set(request_id)
        service, id = match["service"], match["id"]
        status, headers, content_type = 200, [], "application/json"
        index: int | None = None
        writing = False
        try:
            if match["heartbeat"]:
                shown = renewed(context, Key(DEFAULT_ENV, service, id), environ)
            else:
                sent = parsed(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                wanted = registration(sent, ttl_s=context.settings.lease_ttl_s, service=service, id=id)
                writing = True
                outcome = context.write(Register(wanted), environ=environ)
                index = outcome.index
                status, headers, shown = registered(context, wanted, outcome)
            body = encode_json(shown) + b"\n"
        except Exception as error:  # noqa: BLE001
            # The table of problems logs what it does not know.
            problem = problem_of(error, submitting=writing)
            status, headers, content_type = problem.status, list(problem.headers.items()), CONTENT_TYPE
            body = problem.body()
        head = [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers]
        if index is None:
            index = context.service.registry.applied_index
        head += context.headers(index=index, request_id=request_id)
        start_response(_STATUS_LINES[status], head)
        seconds = time.perf_counter() - began
        route = HEARTBEAT if match["heartbeat"] else INSTANCE
        context.metrics.meter(route, "PUT", status).answered(seconds)
        _log(request_id, "PUT", environ["PATH_INFO"], status, seconds)
        logs.request_id.set("")
        return [body]

    def _refused(
        self, error: RollcallError, method: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """What no dialect has other words for, since no face was asked."""
        began = time.perf_counter()
        context, problem = self._context, problem_of(error)
        request_id = context.request_id(environ.get("HTTP_X_REQUEST_ID"))
        body = problem.body()
        headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body))), *problem.headers.items()]
        headers += context.headers(index=context.service.registry.applied_index, request_id=request_id)
        start_response(_STATUS_LINES[problem.status], headers)
        seconds = time.perf_counter() - began
        method = method if method in METHODS else "other"
        context.metrics.meter("none", method, problem.status).answered(seconds)
        _log(request_id, method, environ["PATH_INFO"], problem.status, seconds)
        return [body] if method != "HEAD" else []

    def _is_plain(self, environ: Environ) -> bool:
        """A body of known length within the limit, and no key that makes the write idempotent."""
        if "HTTP_IDEMPOTENCY_KEY" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            return False
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isascii() or not length.isdigit():
            return False
        environ["CONTENT_LENGTH"] = length
        return int(length) <= self._context.settings.body_bytes_max

    def _names(self, address: tuple[str, str]) -> tuple[str, str] | None:
        path, query = _PATH.fullmatch(address[0]), _QUERY.fullmatch(address[1])
        if path is None or query is None:
            return None
        if len(self._known) >= PATHS_MAX:
            self._known.clear()
        names = (query["env"] or DEFAULT_ENV, path["service"])
        self._known[address] = names
        return names


def _log(request_id: str, method: str, path: str, status: int, seconds: float) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        facts = {"request_id": request_id, "method": method, "path": path, "status": status}
        logger.debug("request", extra={**facts, "ms": round(seconds * 1000, 3)})
