"""A request as an instance gets it, and its answer as the client gets it: what of both a proxy passes on.

Headers of one connection only stay behind (RFC 9110, 7.6.1). Nothing is held whole: an answer goes on in the pieces in
which it came, and a body is read again from its begin for each try.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import urllib3
from urllib3 import exceptions as lower

from .balancer import Endpoint
from .calls import ELSEWHERE
from .framing import BadAnswer
from .pool import Pool

logger = logging.getLogger(__name__)

Environ = Mapping[str, Any]

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
"""Of one connection only (RFC 9110, 7.6.1); those that ``Connection`` names come on top."""

CHUNK_BYTES = 64 * 1024
_PATH_SAFE = "/!$&'()*+,;=:@~"


class Failed(Exception):
    """One try came to nothing. ``status`` is what the client is told if no other succeeds."""

    def __init__(self, status: int, why: str, *, arrived: bool, counts: bool = True) -> None:
        super().__init__(why)
        self.status: int = status
        self.arrived: bool = arrived
        self.counts: bool = counts


def body_of(environ: Environ) -> Any:
    """The body, from its begin; None: there is none."""
    if int(environ.get("CONTENT_LENGTH") or 0) == 0:
        return None
    environ["wsgi.input"].seek(0)
    return environ["wsgi.input"]


def target_line(environ: Environ) -> str:
    """The second word of the request line; put together anew where the server does not tell that."""
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if raw:
        return str(raw)
    path = quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe=_PATH_SAFE)
    query = environ.get("QUERY_STRING", "")
    return f"{path}?{query}" if query else path


def forwarded(environ: Environ, host: str, prefix: str, request_id: str, *, trusted: bool) -> dict[str, str]:
    """The request's headers as the instance gets them.

    Whom the request is from, and how it came here, is this gateway's word: it adds to ``X-Forwarded-For``, and what a
    client claims in the others is not passed on, unless the client is a proxy that is trusted.
    """
    named = {
        name[5:].replace("_", "-").title(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }  # fmt: skip
    headers = {name: value for name, value in named.items() if passes(name, named)}
    before = headers.pop("X-Forwarded-For", "")
    if not trusted:
        headers = {n: v for n, v in headers.items() if n != "Forwarded" and not n.startswith("X-Forwarded-")}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
    if host:
        headers["Host"] = host  # which is that of the target, where it was a whole URL
        headers.setdefault("X-Forwarded-Host", host)
    headers["X-Forwarded-For"] = ", ".join(filter(None, (before, environ.get("REMOTE_ADDR", ""))))
    headers.setdefault("X-Forwarded-Proto", environ.get("wsgi.url_scheme", "http"))
    if prefix:
        headers["X-Forwarded-Prefix"] = prefix
    headers["X-Request-Id"] = request_id
    return headers


def passes(name: str, headers: Mapping[str, str]) -> bool:
    """Whether a header is more than of one connection."""
    lowered = name.lower()
    if lowered in HOP_BY_HOP:
        return False
    named = headers.get("Connection", "")
    return lowered not in {part.strip().lower() for part in named.split(",")} if named else True


class Body:
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
                data = next_piece(self._answer)
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


def next_piece(answer: urllib3.BaseHTTPResponse) -> bytes:
    """As it comes: a slow answer is passed on in the pieces in which it was sent. Empty: the end."""
    return answer.read1(CHUNK_BYTES, decode_content=False)  # pyright: ignore[reportAttributeAccessIssue]


def failure_of(endpoint: Endpoint, error: lower.HTTPError) -> Failed:
    """What a try came to."""
    who = endpoint.instance.id
    if isinstance(error, lower.LocationValueError):
        return Failed(502, f"{who} has an address that is none: {error}", arrived=False, counts=False)
    if isinstance(error, (lower.NewConnectionError, lower.ConnectTimeoutError)):
        refused = isinstance(error, lower.NewConnectionError)
        return Failed(502, f"{who} cannot be reached", arrived=False, counts=not refused)
    if isinstance(error, lower.TimeoutError):
        return Failed(504, f"{who} did not answer in time", arrived=True)
    why = next((f": {cause}" for cause in error.args if isinstance(cause, BadAnswer)), "")
    return Failed(502, f"{who} gave no answer that can be used{why}", arrived=True)
