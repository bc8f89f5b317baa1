"""One exchange with one node: a request, an answer, or the error that it means.

The line that matters is drawn here: a connection that was refused means that
nothing happened (``NotDone``); an answer that did not come after the request
had left means that nobody knows (``Unknown``). So does an answer that is another
request's: each request has an id, which nodes repeat, and an answer with another one
shows that the connection is out of step. It is closed, and the answer thrown away.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import requests
from msgspec import Struct
from requests import exceptions
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import exceptions as lower

from ..replication.api import HISTORY, INDEX, REQUEST_ID
from ..replication.errors import (
    BY_CODE,
    Conflict,
    Gone,
    Invalid,
    KeyReused,
    NotDone,
    NotFound,
    RollcallError,
    TooLarge,
    Unknown,
)
from . import forks

CONNECT_S_MAX = 1.0
ANSWER_BYTES_MAX = 256 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_HISTORY = re.compile(r"[0-9a-f]{16}")

_OURS = "sdk-"
"""Begins the ids that are made here. One that begins otherwise was put in their place by a proxy, and tells nothing."""


class Answer(Struct, frozen=True):
    """What a node answered with a status below 400."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def index(self) -> int:
        """``X-Rollcall-Index``: of the write, or of the copy that was read; 0 if absent."""
        text = self.headers.get(INDEX, "")
        return int(text) if text.isdecimal() else 0

    @property
    def history(self) -> str:
        """``X-Rollcall-History``: the name of the history that ``index`` is of; empty if absent."""
        return history_of(self.headers.get(HISTORY))


def history_of(told: object) -> str:
    """The name of a history, as a node told it; empty if it is none."""
    return told if isinstance(told, str) and _HISTORY.fullmatch(told) else ""


class Session(Protocol):
    """What is needed of ``requests.Session``: its ``request(method, url, **options)``, and ``close``, after
    which it can be used as before."""

    def request(self, *args: Any, **options: Any) -> requests.Response: ...
    def close(self) -> None: ...


def exchange(
    session: Session,
    method: str,
    url: str,
    *,
    timeout_s: float,
    params: Mapping[str, Any] | None = None,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    fits: Callable[[Any], bool] | None = None,
) -> Answer:
    """The node's answer within ``timeout_s``, or an error of ``replication.errors``.

    ``params`` with None are left out; sequences are repeated. A body is sent as JSON.
    ``fits``: whether the body of an answer is about what was asked; ``Unknown`` where it is not.
    """
    deadline = time.monotonic() + timeout_s
    request_id = _OURS + secrets.token_hex(8)
    sent = {"Accept": "application/json", REQUEST_ID: request_id, **(headers or {})}
    if body is not None:
        sent["Content-Type"] = "application/json"
    options = {
        "params": {name: value for name, value in (params or {}).items() if value is not None},
        "data": None if body is None else msgspec.json.encode(body),
        "headers": sent,
        "timeout": (min(CONNECT_S_MAX, timeout_s), timeout_s),
    }
    try:
        with session.request(method, url, **options, allow_redirects=False, stream=True) as response:
            echo = response.headers.get(REQUEST_ID, request_id)
            if echo != request_id and echo.startswith(_OURS):
                # Unread, so that the end of the ``with`` closes the connection.
                raise Unknown(f"{url}: the answer was another request's ({echo}); was this connection used by two?")
            content = _read(response, deadline)
    except exceptions.RequestException as error:
        raise from_requests(error, url) from error
    if response.status_code >= 400:
        raise from_problem(response.status_code, content, url)
    if not 200 <= response.status_code < 300 and response.status_code != 304:
        raise Unknown(
            f"{url} answered {response.status_code}, which no Rollcall node does; is there a proxy in between?"
        )
    if not content or not response.headers.get("Content-Type", "").startswith("application/json"):
        return Answer(response.status_code, response.headers, None)
    answer = Answer(response.status_code, response.headers, _decoded(content, response, url))
    if fits is not None and not fits(answer.body):
        session.close()  # the connection is among those that are kept; which one it is nobody knows
        raise Unknown(f"{url}: the answer is about something else than was asked")
    return answer


def _decoded(content: bytes, response: requests.Response, url: str) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        raise Unknown(f"{url} answered {response.status_code} with what is not JSON; is it a Rollcall node?") from None


def _read(response: requests.Response, deadline: float) -> bytes:
    """The whole body. ``timeout`` of requests bounds each wait, this bounds their sum."""
    parts: list[bytes] = []
    size = 0
    for part in response.iter_content(_CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise exceptions.ContentDecodingError(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > deadline:
            raise exceptions.ReadTimeout("the answer did not end in time")
    return b"".join(parts)


# Errors of the connection

NOT_SENT: tuple[type[Exception], ...] = (
    exceptions.ConnectTimeout,
    exceptions.ProxyError,
    exceptions.SSLError,
)
"""The request had not left: nothing happened."""

PERHAPS_SENT: tuple[type[Exception], ...] = (
    exceptions.ChunkedEncodingError,
    exceptions.ConnectionError,
    exceptions.ContentDecodingError,
    exceptions.HTTPError,
    exceptions.JSONDecodeError,
    exceptions.ReadTimeout,
    exceptions.RequestException,
    exceptions.RetryError,
    exceptions.StreamConsumedError,
    exceptions.Timeout,
    exceptions.TooManyRedirects,
)
"""The request may have arrived: nobody knows."""

WRONG: tuple[type[Exception], ...] = (
    exceptions.InvalidHeader,
    exceptions.InvalidJSONError,
    exceptions.InvalidProxyURL,
    exceptions.InvalidSchema,
    exceptions.InvalidURL,
    exceptions.MissingSchema,
    exceptions.URLRequired,
    exceptions.UnrewindableBodyError,
)
"""The request cannot be sent at all, to nobody."""


def from_requests(error: exceptions.RequestException, url: str) -> RollcallError:
    """The error that an exception of requests means. Every class of theirs stands in one of the tables."""
    known = {
        **dict.fromkeys(PERHAPS_SENT, Unknown),
        **dict.fromkeys(NOT_SENT, NotDone),
        **dict.fromkeys(WRONG, Invalid),
    }
    kind = next(known[base] for base in type(error).__mro__ if base in known)
    if kind is Unknown and was_refused(error):
        kind = NotDone
    return kind(f"{url}: {_first_cause(error)}")


def was_refused(error: BaseException) -> bool:
    """Whether no connection came about; requests says ``ConnectionError`` for that and for later breaks."""
    reason = error.args[0] if error.args else None
    if isinstance(reason, lower.MaxRetryError):
        reason = reason.reason
    return isinstance(reason, (lower.NewConnectionError, lower.ConnectTimeoutError, lower.NameResolutionError))


def _first_cause(error: BaseException) -> str:
    """The plain sentence at the bottom of a pile of exceptions ("Connection refused")."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# Errors that the node answered

BY_STATUS: dict[int, type[RollcallError]] = {
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    422: KeyReused,
}
"""For an answer that is no problem document of ours (a proxy's, say). What is
not listed: the request is wrong below 500, and above nobody knows what a proxy
had already passed on."""

_OF_A_PROBLEM = frozenset({"type", "title", "status", "detail", "instance", "code", "outcome", "message"})


def from_problem(status: int, content: bytes, url: str) -> RollcallError:
    """The error that a node's answer means. ``facts`` holds the document's other members."""
    try:
        problem = msgspec.json.decode(content)
    except msgspec.DecodeError:
        problem = None
    if not isinstance(problem, dict):
        text = content[:200].decode("utf-8", "replace").strip()
        return _by_status(status)(f"{url} answered {status}: {text or 'no details'}")
    outcome = problem.get("outcome")
    kind = BY_CODE.get(str(problem.get("code"))) or _by_status(status)
    if outcome != kind.outcome:
        # The outcome is what a caller acts on: it wins over the name.
        kind = {"not_done": NotDone, "unknown": Unknown}.get(str(outcome), kind)
    facts = {str(name): value for name, value in problem.items() if name not in _OF_A_PROBLEM}
    return kind(str(problem.get("detail") or problem.get("title") or status), **facts)


def _by_status(status: int) -> type[RollcallError]:
    return BY_STATUS.get(status) or (Invalid if status < 500 else Unknown)


def session_over(adapter: Callable[[], BaseAdapter]) -> requests.Session:
    """A session over such adapters that takes nothing from the environment: no proxy and no .netrc. What is asked is a
    neighbour, and looking them up costs more than the call."""
    session = requests.Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter())
    return session


def left_by_session(session: requests.Session) -> None:
    """Lets go of the connections that a parent's session keeps (``forks``)."""
    for adapter in session.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            forks.leave(adapter)
