"""Small stand-ins for what a test does not want to start."""

import io
from collections.abc import Callable
from typing import Any

import msgspec
import requests
from urllib3 import HTTPResponse

Answers = Callable[[str, str, dict[str, Any]], "requests.Response | Exception"]


def response(status: int, body: Any = None, *, content_type: str = "application/json", **headers: Any) -> Any:
    """An answer of a node, as requests hands it over. ``body`` is JSON, or bytes as they are."""
    made = requests.Response()
    made.status_code = status
    content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    made.headers.update({name.replace("_", "-"): str(value) for name, value in headers.items()})
    made.headers["Content-Type"] = content_type
    made.raw = HTTPResponse(io.BytesIO(content), preload_content=False)
    return made


def problem(error: Any, **headers: Any) -> Any:
    """The answer that a node gives for one of our errors."""
    document = {
        "title": error.title, "status": error.status, "detail": error.message, "code": error.code(), **error.facts,
    }  # fmt: skip
    if error.outcome:
        document["outcome"] = error.outcome
    return response(error.status, document, content_type="application/problem+json", **headers)


class FakeSession:
    """A ``requests.Session`` whose answers come from a function; remembers what was asked."""

    def __init__(self, answers: Answers) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self._answers = answers

    def close(self) -> None:
        pass

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        self.asked.append((method, url, options))
        answer = self._answers(method, url, options)
        if isinstance(answer, Exception):
            raise answer
        return answer
