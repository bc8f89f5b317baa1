"""A request's body: read up to its limit, and parsed as one JSON object.

The content type is not looked at: what is sent here is JSON or it is refused.
Of a key given twice the last one counts, as in most JSON readers.
"""

from typing import Any

import msgspec
from flask import request

from ...replication.errors import Invalid, TooLarge
from .verbs import ApiSettings

BATCHES = frozenset({"/api/v1/batch", "/api/v1/heartbeats"})
"""Where much is sent at a time."""


def limit_of(settings: ApiSettings, method: str, path: str) -> int:
    """How long a body may be there, so that a server need not keep what is longer. ``path`` is decoded."""
    return settings.batch_body_bytes_max if path in BATCHES else settings.body_bytes_max


def read(limit: int) -> bytes:
    """The body, or ``TooLarge`` (without reading it, where its length was announced)."""
    announced = request.content_length
    if announced is not None and announced > limit:
        raise _too_large(limit)
    body = request.stream.read(limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def parsed(body: bytes) -> dict[str, Any]:
    """``body`` as a JSON object, or ``Invalid``."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"body: Expected JSON in UTF-8; {error}", field="body") from None
    except RecursionError:
        raise Invalid("body: Expected JSON that is not nested this deeply", field="body") from None
    if not isinstance(value, dict):
        raise Invalid(f"body: Expected a JSON object, got {_kind(value)}", field="body")
    return value


def json_object(limit: int) -> dict[str, Any]:
    """The request's JSON object of at most ``limit`` bytes."""
    return parsed(read(limit))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes; send less at a time", limit=limit)


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
