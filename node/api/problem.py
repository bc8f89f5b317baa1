"""Errors as clients see them: problem details in JSON (RFC 9457), one table for all.

An error of ours knows its status and what became of the write. An error of
HTTP routing keeps its own. Anything else is a fault of this program: it is
logged once, and the client learns that it happened and nothing more.
"""

import logging
from typing import Any

import msgspec
from msgspec import Struct
from werkzeug.exceptions import HTTPException

from ...replication.errors import RollcallError

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"


class Problem(Struct, frozen=True):
    """A status, the members of the body, and the headers that go with them."""

    status: int
    members: dict[str, Any]
    headers: dict[str, str]

    def body(self) -> bytes:
        return msgspec.json.encode(self.members, enc_hook=str) + b"\n"


def problem_of(error: Exception, *, submitting: bool = False) -> Problem:
    """What to tell a client of ``error``. ``submitting``: a write had been handed on before."""
    if isinstance(error, RollcallError) and error.status != 500:
        return _ours(error)
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        return _routing(error)
    logger.error("a request failed by a fault of this program", exc_info=error)
    members: dict[str, Any] = {
        "type": "urn:rollcall:problem:InternalError",
        "title": "Internal error",
        "status": 500,
        "detail": "the node failed to answer; its log has the details under this request's id",
        "code": "InternalError",
    }
    if submitting:
        members["outcome"] = "unknown"
    return Problem(500, members, {})


def _ours(error: RollcallError) -> Problem:
    members: dict[str, Any] = {
        "type": f"urn:rollcall:problem:{error.code()}",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "code": error.code(),
    }
    if error.outcome is not None:
        members["outcome"] = error.outcome
    for name, fact in error.facts.items():
        if name not in members and fact not in ("", None):
            members[name] = fact
    retry_after_s = error.facts.get("retry_after_s", error.retry_after_s)
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Problem(error.status, members, headers)


def _routing(error: HTTPException) -> Problem:
    assert error.code is not None
    # Werkzeug's own content headers describe the HTML page that is not sent.
    headers = {name: value for name, value in error.get_headers() if name.lower() not in _OF_ITS_PAGE}
    detail = _DETAILS.get(error.code) or error.description or error.name
    members = {"type": "about:blank", "title": error.name, "status": error.code, "detail": detail}
    return Problem(error.code, members, headers)


_DETAILS = {
    404: "nothing is served at this path",
    405: "this path does not take that method; Allow names those it takes",
}
_OF_ITS_PAGE = frozenset({"content-type", "content-length"})
