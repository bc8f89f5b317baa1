"""``requests`` that calls services by name.

>>> session = ServiceSession(discovery)
>>> session.get("service://users/42").status_code
200

Each call goes to an instance that the discovery picks, and how it went is counted
for the balancer. One that certainly did not arrive, or one of a method that may be
repeated (RFC 9110, 9.2.2) and that failed before the caller had any of its answer, is
tried again at another instance. ``response.url`` says which one answered. An answer of
which nobody can say where it ends is a ``ConnectionError``; interim answers (1xx) are
skipped, and no connection is used again whose last answer did not end as it should.

``ServiceAdapter`` is the same for a session of your own. There ``params=`` need
``http+service://``: of a URL whose scheme does not begin with "http", requests leaves
parameters out without a word.
"""

import copy
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests import exceptions
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import exceptions as lower

from ..replication.errors import Invalid
from . import forks
from .balancer import Endpoint
from .calls import TRIES, Call
from .discovery import Discovery
from .framing import CertainAdapter
from .http import WRONG, was_refused
from .names import service_name
from .origin import origin_of
from .pool import NoInstances


class ServiceAdapter(BaseAdapter):
    """Mount it on ``service://``, and on ``http+service://`` for calls with ``params=``.

    ``tries`` counts the first one too, but none that was refused at once. ``close`` leaves the discovery open.
    """

    def __init__(self, discovery: Discovery, *, tries: int = TRIES, within: HTTPAdapter | None = None) -> None:
        super().__init__()
        self._discovery: Discovery = discovery
        self._tries: int = tries
        self._within: HTTPAdapter = within or CertainAdapter(max_retries=0)
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        """After a fork: instances do not say whose answer they give, so a child has connections of its own."""
        forks.leave(self._within)
        self._within.__setstate__(self._within.__getstate__())  # as an adapter begins that was sent to another process

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Raises what requests raises; ``ConnectionError`` where the service has no instance."""
        forks.notice()
        service, rest = _parts(request)
        options: dict[str, Any] = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert}
        call = Call(
            self._discovery.pool(service),
            method=request.method or "",
            resendable=_can_be_repeated(request),
            key=rest,
            headers={name: str(value) for name, value in request.headers.items()},
            tries=self._tries,
        )
        try:
            endpoint = call.begin(time.monotonic())
        except NoInstances as error:
            raise exceptions.ConnectionError(str(error), request=request) from error
        while True:
            try:
                response = self._sent(endpoint, request, rest, options)
            except WRONG:
                call.abandoned()
                raise  # the request cannot be sent to anybody
            except exceptions.RequestException as error:
                refused = was_refused(error)
                late = not refused or isinstance(error, exceptions.ConnectTimeout)
                following = call.failed(time.monotonic(), refused=refused, counts=late)
                if following is None:
                    raise
                endpoint = following
                continue
            except BaseException:
                call.abandoned()
                raise
            following = call.answered(response.status_code, time.monotonic())
            if following is None:
                return response
            response.close()
            endpoint = following

    def close(self) -> None:
        self._within.close()

    def _sent(
        self, endpoint: Endpoint, request: requests.PreparedRequest, rest: str, options: dict[str, Any]
    ) -> requests.Response:
        sent = request.copy()
        sent.url = _url(endpoint, request) + rest
        response = self._within.send(sent, **options)
        if not options["stream"]:
            _ = response.content  # the caller wants all of it: until it is here, another may be asked
        response.request = request
        _redirect_to_service(response, endpoint, request)
        return response


class ServiceSession(requests.Session):
    """A session of requests for ``service://``, with ``params=`` as for any other URL. ``close`` leaves the
    discovery open.

    Of a URL whose scheme does not begin with "http", a plain session leaves parameters out without a word, and
    an adapter never hears of them.
    """

    def __init__(self, discovery: Discovery, *, tries: int = TRIES) -> None:
        super().__init__()
        adapter = ServiceAdapter(discovery, tries=tries)
        for scheme in ("service://", "http+service://"):
            self.mount(scheme, adapter)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """As any session does."""
        url = str(request.url)
        if not url.lower().startswith("service://"):
            return super().prepare_request(request)
        asked = copy.copy(request)
        asked.url = "http+" + url
        prepared = super().prepare_request(asked)
        prepared.url = (prepared.url or "").removeprefix("http+")
        return prepared


def _url(endpoint: Endpoint, request: requests.PreparedRequest) -> str:
    try:
        return origin_of(endpoint.url).url
    except Invalid as error:
        # It is nowhere that a request could have arrived: the next one is asked.
        nowhere = lower.NewConnectionError(endpoint, error.message)  # pyright: ignore[reportArgumentType]
        raise exceptions.ConnectionError(nowhere, request=request) from error


def _parts(request: requests.PreparedRequest) -> tuple[str, str]:
    """The service, and what follows it."""
    url = request.url or ""
    parts = urlsplit(url)
    try:
        service = service_name(parts.netloc)
    except Invalid as error:
        raise exceptions.InvalidURL(f"{url}: expected service://NAME/PATH; {error.message}", request=request) from None
    path = parts.path or "/"
    return service, f"{path}?{parts.query}" if parts.query else path


def _redirect_to_service(response: requests.Response, endpoint: Endpoint, request: requests.PreparedRequest) -> None:
    """An instance that redirects to itself means the service: whoever is well may answer that."""
    location = response.headers.get("Location")
    here = origin_of(endpoint.url).url
    target = urljoin(response.url, location) if location else ""
    if target.lower().startswith(f"{here}/".lower()):
        asked = urlsplit(request.url or "")
        response.headers["Location"] = f"{asked.scheme}://{asked.netloc}{target[len(here) :]}"


def _can_be_repeated(request: requests.PreparedRequest) -> bool:
    """A body that is read from a stream is gone after the first try."""
    return request.body is None or isinstance(request.body, (bytes, str))
