"""The three ways to call a service by name from Python, with one face: ``requests``, httpx, httpx with asyncio."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import httpx
import requests
from rollcall.cluster import AsyncServiceTransport, ServiceSession, ServiceTransport


class Said(NamedTuple):
    status: int
    text: str


class CannotCall(Exception):
    """The caller is told that there is no answer. What it is told is the message."""


class Caller(Protocol):
    """Raises ``CannotCall``. ``url`` begins with ``service://``."""

    def ask(self, method: str, url: str, **options: Any) -> Said: ...
    def close(self) -> None: ...


class ByRequests:
    def __init__(self, discovery: Any, tries: int = 3) -> None:
        self._session = ServiceSession(discovery, tries=tries)

    def ask(self, method: str, url: str, **options: Any) -> Said:
        try:
            answer = self._session.request(method, url, **{"timeout": 5, **options})
            return Said(answer.status_code, answer.text)
        except requests.RequestException as error:
            raise CannotCall(f"{error}") from error

    def close(self) -> None:
        for adapter in self._session.adapters.values():
            adapter.close()


class ByHttpx:
    def __init__(self, discovery: Any, tries: int = 3) -> None:
        self._client = httpx.Client(
            transport=ServiceTransport(discovery, tries=tries), timeout=5, follow_redirects=True
        )

    def ask(self, method: str, url: str, **options: Any) -> Said:
        try:
            answer = self._client.request(method, url, **_in_its_words(options))
            return Said(answer.status_code, answer.text)
        except httpx.HTTPError as error:
            raise CannotCall(f"{error}") from error

    def close(self) -> None:
        self._client.close()


class ByAsyncHttpx:
    def __init__(self, discovery: Any, tries: int = 3) -> None:
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(
            transport=AsyncServiceTransport(discovery, tries=tries), timeout=5, follow_redirects=True
        )

    def ask(self, method: str, url: str, **options: Any) -> Said:
        if not isinstance(options.get("data", b""), bytes):
            options["data"] = _async_parts(options["data"])
        try:
            answer = self._runner.run(self._client.request(method, url, **_in_its_words(options)))
            return Said(answer.status_code, answer.text)
        except httpx.HTTPError as error:
            raise CannotCall(f"{error}") from error

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


CALLERS: dict[str, Callable[..., Caller]] = {"requests": ByRequests, "httpx": ByHttpx, "httpx-async": ByAsyncHttpx}


async def _async_parts(parts: Any):
    for part in parts:
        yield part


def _in_its_words(options: dict[str, Any]) -> dict[str, Any]:
    return {"content" if name == "data" else name: value for name, value in options.items()}
