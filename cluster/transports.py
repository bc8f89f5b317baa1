"""httpx that calls services by name, for asyncio and for threads.

>>> async with httpx.AsyncClient(transport=AsyncServiceTransport(discovery)) as client:
...     (await client.get("service://users/42", params={"full": "yes"})).status_code
200

``AsyncServiceTransport`` and ``ServiceTransport`` do what ``ServiceAdapter`` does for requests:
they try another instance, count how calls went for the balancer, and leave alone an instance that fails. The
instance that answered is in ``response.extensions["instance"]``; whatever is not ``service://``
goes where it says. An answer of a length that is known, up to ``WHOLE_BYTES_MAX``, is read before it
is handed on, so that one that breaks off is asked for elsewhere. Larger ones and those in chunks
come as they come: when their first byte was handed on, no other instance is asked.

httpx writes host names in small letters. A service whose name has capitals is named by
``extensions={"service": "Cart"}``.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from ..replication.errors import Invalid
from . import forks
from .async_discovery import AsyncDiscovery
from .balancer import Endpoint
from .calls import TRIES, Call
from .discovery import Discovery
from .names import service_name
from .origin import origin_of
from .pool import NoInstances, Pool

SCHEMES = frozenset({"service", "http+service"})
WHOLE_BYTES_MAX = 1024 * 1024
SWITCHING_PROTOCOLS = 101

OURS: tuple[type[Exception], ...] = (httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Says nothing of the instance: the caller's own connections are all taken, or nobody can be sent such a request."""

REFUSED: tuple[type[Exception], ...] = (httpx.ConnectError, httpx.ConnectTimeout)
"""The request had not left."""


class ServiceTransport(httpx.BaseTransport):
    """For ``httpx.Client(transport=...)``. ``tries`` counts the first one too, but none that was refused at once;
    ``within`` makes what requests are sent with. ``close`` leaves the discovery open."""

    def __init__(
        self,
        discovery: Discovery,
        *,
        tries: int = TRIES,
        within: Callable[[], httpx.BaseTransport] = httpx.HTTPTransport,
    ) -> None:
        self._discovery: Discovery = discovery
        self._tries: int = tries
        self._make: Callable[[], httpx.BaseTransport] = within
        self._within: httpx.BaseTransport = within()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: instances do not say whose answer they give, so a child has connections of its own."""
        self._within = self._make()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises what httpx raises; ``ConnectError`` where the service has no instance."""
        forks.notice()
        if request.url.scheme not in SCHEMES:
            return self._within.handle_request(request)
        call = _call(self._discovery.pool(_service(request)), request, self._tries)
        endpoint = _begun(call, request)
        while True:
            try:
                response = self._within.handle_request(_sent(request, endpoint))
                if _switched(response, request):
                    response.close()
                    raise httpx.RemoteProtocolError("it switches to another protocol, which was not asked for")
                if _is_short(response):
                    response = _whole(response, b"".join(_CertainStream(response)))
            except httpx.TransportError as error:
                following = _following(call, error)
                if following is None:
                    raise
                endpoint = following
                continue
            except BaseException:
                call.abandoned()
                raise
            following = call.answered(response.status_code, time.monotonic())
            if following is None:
                return _handed_on(response, endpoint, request, _CertainStream)
            response.close()
            endpoint = following

    def close(self) -> None:
        self._within.close()


class AsyncServiceTransport(httpx.AsyncBaseTransport):
    """For ``httpx.AsyncClient(transport=...)``; otherwise as ``ServiceTransport``. Only the first question about a
    service leaves the event loop."""

    def __init__(
        self,
        discovery: Discovery,
        *,
        tries: int = TRIES,
        within: Callable[[], httpx.AsyncBaseTransport] = httpx.AsyncHTTPTransport,
    ) -> None:
        self._discovery: AsyncDiscovery = AsyncDiscovery(discovery)
        self._tries: int = tries
        self._make: Callable[[], httpx.AsyncBaseTransport] = within
        self._within: httpx.AsyncBaseTransport = within()
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """As ``ServiceTransport`` does. The parent's connections are the parent's event loop's to close."""
        self._within = self._make()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As ``ServiceTransport.handle_request``."""
        forks.notice()
        if request.url.scheme not in SCHEMES:
            return await self._within.handle_async_request(request)
        call = _call(await self._discovery.pool(_service(request)), request, self._tries)
        endpoint = _begun(call, request)
        while True:
            try:
                response = await self._within.handle_async_request(_sent(request, endpoint))
                if _switched(response, request):
                    await response.aclose()
                    raise httpx.RemoteProtocolError("it switches to another protocol, which was not asked for")
                if _is_short(response):
                    response = _whole(response, b"".join([part async for part in _CertainAsyncStream(response)]))
            except httpx.TransportError as error:
                following = _following(call, error)
                if following is None:
                    raise
                endpoint = following
                continue
            except BaseException:
                call.abandoned()
                raise
            following = call.answered(response.status_code, time.monotonic())
            if following is None:
                return _handed_on(response, endpoint, request, _CertainAsyncStream)
            await response.aclose()
            endpoint = following

    async def aclose(self) -> None:
        await self._within.aclose()


def _service(request: httpx.Request) -> str:
    name = request.extensions.get("service") or request.url.netloc.decode("ascii")
    try:
        return service_name(name)
    except Invalid as error:
        raise httpx.UnsupportedProtocol(f"expected service://NAME/PATH; {error.message}", request=request) from None


def _call(pool: Pool, request: httpx.Request, tries: int) -> Call:
    return Call(
        pool,
        method=request.method,
        resendable=isinstance(request.stream, httpx.ByteStream),
        key=request.url.raw_path.decode("ascii"),
        headers=request.headers,
        tries=tries,
    )


def _begun(call: Call, request: httpx.Request) -> Endpoint:
    try:
        return call.begin(time.monotonic())
    except NoInstances as error:
        raise httpx.ConnectError(str(error), request=request) from error


def _following(call: Call, error: httpx.TransportError) -> Endpoint | None:
    """Whom to try after that. None: it is the caller's."""
    if isinstance(error, OURS):
        call.abandoned()
        return None
    refused = isinstance(error, REFUSED)
    return call.failed(time.monotonic(), refused=refused, counts=not isinstance(error, httpx.ConnectError))


def _sent(request: httpx.Request, endpoint: Endpoint) -> httpx.Request:
    try:
        origin = origin_of(endpoint.url)
    except Invalid as error:
        # It is nowhere that a request could have arrived: the next one is asked.
        raise httpx.ConnectError(f"{endpoint.instance.id}: {error.message}", request=request) from error
    base = httpx.URL(scheme=origin.scheme, host=origin.host, port=origin.port, path="/")
    url = base.copy_with(raw_path=origin.base.encode("ascii") + request.url.raw_path)
    headers = request.headers.copy()
    if headers.get("Host", "") == request.url.netloc.decode("ascii"):
        headers["Host"] = url.netloc.decode("ascii")  # unless the caller said another one
    return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)


def _switched(response: httpx.Response, request: httpx.Request) -> bool:
    return response.status_code == SWITCHING_PROTOCOLS and "Upgrade" not in request.headers


def _is_short(response: httpx.Response) -> bool:
    length = response.headers.get("Content-Length", "")
    return length.isdecimal() and int(length) <= WHOLE_BYTES_MAX


def _whole(response: httpx.Response, content: bytes) -> httpx.Response:
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(content),
        extensions=response.extensions,
    )


def _handed_on(
    response: httpx.Response, endpoint: Endpoint, request: httpx.Request, certain: Callable[[httpx.Response], Any]
) -> httpx.Response:
    """What the caller gets. An instance that redirects to itself means the service: whoever is well may answer that."""
    if not isinstance(response.stream, httpx.ByteStream):
        response.stream = certain(response)
    response.extensions = {**response.extensions, "instance": endpoint.instance}
    location, here = response.headers.get("Location", ""), f"{origin_of(endpoint.url).url}/"
    if location.lower().startswith(here.lower()):
        place = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        response.headers["Location"] = f"{place}{location[len(here) - 1 :]}"
    return response


# Bodies after which a connection is used again only if nothing is left on it: h11 keeps what came after an answer, and
# httpcore would take it for the answer to the next request.


class _CertainStream(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response: httpx.Response = response
        self._within: Any = response.stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._within
        finally:
            self.close()

    def close(self) -> None:
        if _has_leftover(self._within):
            self._response.extensions["network_stream"].close()
        self._within.close()


class _CertainAsyncStream(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response: httpx.Response = response
        self._within: Any = response.stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._within:
                yield part
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        if _has_leftover(self._within):
            await self._response.extensions["network_stream"].aclose()
        await self._within.aclose()


def _has_leftover(stream: Any) -> bool:
    """No public name leads there; a test of answers that are too long fails where these change."""
    within = getattr(getattr(stream, "_httpcore_stream", None), "_stream", None)
    state = getattr(getattr(within, "_connection", None), "_h11_state", None)
    return state is not None and not getattr(within, "_closed", False) and bool(state.trailing_data[0])
