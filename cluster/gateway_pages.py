"""What a gateway says itself: its own pages below ``/-/``, and what went wrong, as a problem document."""

import io
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import msgspec

from ..replication.front.pages import ANSWER_BYTES_MAX, PAGE_BYTES
from .discovery import Discovery
from .forwarding import Failed
from .pool import Pool

StartResponse = Callable[..., Any]


def services_known(discovery: Discovery, query: str) -> dict[str, Any]:
    """The services by name; with ``after`` a page of them, as nodes have pages (``next`` is the name of a service).

    Raises ``Failed`` where all of them are too much for one answer."""
    begin = _parameter(query, "after")
    paged, last, size = begin is not None, begin or "", 0
    found: list[msgspec.Raw] = []
    pools = (pool for pool in discovery.pools() if pool.service > last)
    for pool in sorted(pools, key=lambda pool: pool.service):
        shown = msgspec.json.encode(_shown(discovery, pool))
        size += len(shown) + 1
        if not paged and size > ANSWER_BYTES_MAX:
            words = f"the list is larger than {ANSWER_BYTES_MAX} bytes: ask for pages with after=, then after=NEXT"
            raise Failed(413, words, arrived=False)
        if paged and found and size > PAGE_BYTES:
            return {"services": found, "next": last}
        found.append(msgspec.Raw(shown))
        last = pool.service
    return {"services": found, "next": None} if paged else {"services": found}


def _shown(discovery: Discovery, pool: Pool) -> dict[str, Any]:
    now = time.monotonic()
    return {
        "service": pool.service,
        "age_s": discovery.age_s(pool.service),
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


def _parameter(query: str, name: str) -> str | None:
    """One parameter of a query string; None: it is not there."""
    found = [part.partition("=")[2] for part in query.split("&") if part.partition("=")[0] == name]
    return unquote(found[-1]) if found else None


def json_answer(
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


def problem(start_response: StartResponse, status: int, detail: str, request_id: str) -> Iterable[bytes]:
    value = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    shown = {**value, "request_id": request_id}
    return json_answer(start_response, status, shown, request_id, "application/problem+json")
