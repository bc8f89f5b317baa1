"""Asking one instance how it is: HTTP, TCP, gRPC or a script. What it finds is an answer, never an exception.

Runs on an event loop of its own, so that a thousand slow targets wait side by side and
delay nobody. An answer is a state, a text of at most 4 KiB for people, and how long it
took. Where a question may go is the operator's to say (``reach``): every address that a
name stands for is looked at, and those that were looked at are the ones that are asked, in turn.

The time of a question begins when its addresses are known (``names``) and there is a
place for it (``shares``). A wait for either is this node's, and says nothing of whom it
would have asked: ``NotAsked``. HTTP is read by h11, which knows where an answer ends.
"""

import asyncio
import base64
import contextlib
import ipaddress
import ssl
import time
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import h11
from msgspec import Struct

from ...replication.checks import Check, State
from ...replication.targets import Url, of_place, of_url
from .names import OWN_TROUBLE, Names, NotAsked, NotFound
from .reach import Reach
from .shares import Shares

OUTPUT_BYTES_MAX = 4 * 1024
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024
"""Of a body in which a text is looked for; without one, only what is shown is read."""

ANSWER_BYTES_MAX = 4 * (HEAD_BYTES_MAX + BODY_BYTES_MAX)
"""Of all that is read, the pieces that a body comes in and what comes before the answer included."""

ASKED_MAX = 2_000
"""Questions under way at a time: each is a connection, or a process."""

PLACE_S = 60.0
"""A question waits no longer than that for its place, and no longer than its interval."""


class Found(Struct, frozen=True):
    """What one question found."""

    state: State
    output: str
    latency_s: float


class Whom(Struct, frozen=True, array_like=True):
    """Of whom a check is: its service, with whose other checks it shares places, and the hosts at which the instance
    says that it is. None: an older release asks, which does not say; what the check names counts as its own."""

    service: tuple[str, str]
    hosts: tuple[str, ...] | None = None


LATE_S = 0.25
"""A timeout that is noticed so late means that this process stood still, not that there was no answer."""


class _Failed(Exception):
    """It is not well, and this says why."""


class _Target(Struct, frozen=True):
    """Who is to be asked. ``place``: what it has in common with other questions to the same."""

    place: Hashable
    addresses: tuple[str, ...] = ()
    port: int = 0
    url: Url | None = None


class Prober:
    """Asks, as far as ``reach`` allows. Of one event loop at a time; ``close`` ends its threads."""

    def __init__(self, reach: Reach, *, names: Names | None = None, places: int = ASKED_MAX) -> None:
        self._reach: Reach = reach
        self._names: Names = names or Names()
        self._places: Shares = Shares(places)

    async def ask(self, check: Check, whom: Whom) -> Found:
        """Asks once, for at most ``check.timeout_s``. Raises ``NotAsked``."""
        try:
            target = await self._target(check, whom)
        except _Failed as error:
            return Found("critical", _shown(str(error)), 0.0)
        try:
            async with self._places.place(whom.service, target.place, within_s=min(check.interval_s, PLACE_S)):
                return await self._question(check, target)
        except TimeoutError:
            raise NotAsked("too many questions to that service or place are under way") from None

    def close(self) -> None:
        self._names.close()

    async def _question(self, check: Check, target: _Target) -> Found:
        began = time.monotonic()
        state: State = "critical"
        try:
            async with asyncio.timeout(check.timeout_s):
                match check.kind:
                    case "http":
                        output = await _http(check, target)
                        state = "passing"
                    case "tcp":
                        output = await _tcp(check, target)
                        state = "passing"
                    case "grpc":
                        output = await _grpc(check, target)
                        state = "passing"
                    case "script":
                        state, output = await _script(check, self._reach)
                    case "ttl":
                        raise _Failed("nobody asks this one: the service says how it is")
        except TimeoutError:
            if time.monotonic() - began > check.timeout_s + LATE_S:
                raise NotAsked("this node stood still, and does not know whether there was an answer") from None
            output = f"no answer within {check.timeout_s:g} s"
        except _Failed as error:
            output = str(error)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in OWN_TROUBLE:
                raise NotAsked(str(error)) from error
            output = _first_line(error)
        return Found(state, _shown(output), time.monotonic() - began)

    # -- where it goes

    async def _target(self, check: Check, whom: Whom) -> _Target:
        url: Url | None = None
        try:
            match check.kind:
                case "http":
                    url = of_url(check.http)
                    host, port = url.host, url.port
                case "tcp":
                    host, port = of_place(check.tcp)
                case "grpc":
                    host, port = of_place(check.grpc.partition("/")[0])
                case _:
                    return _Target(check.kind)
        except ValueError as error:
            raise _Failed(f"this check cannot be asked: {error}") from None
        addresses = await self._addresses(host, whom)
        return _Target((addresses[0], port), addresses, port, url)

    async def _addresses(self, host: str, whom: Whom) -> tuple[str, ...]:
        """Those addresses of ``host`` that may be asked, of which there is at least one."""
        try:
            found = await self._look_up(host, whom)
        except NotFound as error:
            raise _Failed(f"{host} cannot be found: {error}") from None
        own: tuple[str, ...] = ()
        if whom.hosts is None or host.lower() in whom.hosts:
            own = found
        elif self._reach.own and not any(map(self._reach.allows, found)):
            own = await self._own(whom)
        allowed = tuple(address for address in found if self._reach.allows(address, own))
        if not allowed:
            raise _Failed(
                f"checks may not be made of {found[0]}: it is not the instance's own address, or none that the nodes' "
                "checks_networks name"
            )
        return allowed

    async def _own(self, whom: Whom) -> tuple[str, ...]:
        """The addresses of the instance itself, as far as they are known."""
        found: list[str] = []
        for host in whom.hosts or ():
            with contextlib.suppress(NotFound):
                found += await self._look_up(host, whom)
        return tuple(found)

    async def _look_up(self, host: str, whom: Whom) -> tuple[str, ...]:
        try:
            return (str(ipaddress.ip_address(host)),)
        except ValueError:
            return await self._names.addresses(host, whom.service)


async def _connect(target: _Target, timeout_s: float, **tls: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the addresses that takes one, each in its share of the time that is left."""
    until = time.monotonic() + timeout_s
    *others, last = target.addresses
    for number, address in enumerate(others):
        try:
            async with asyncio.timeout((until - time.monotonic()) / (len(target.addresses) - number)):
                return await asyncio.open_connection(address, target.port, **tls)
        except OSError as error:
            if error.errno in OWN_TROUBLE:
                raise
    return await asyncio.open_connection(last, target.port, **tls)


# -- kinds


async def _tcp(check: Check, target: _Target) -> str:
    _, writer = await _connect(target, check.timeout_s)
    await _close(writer)
    return f"{check.tcp} takes connections"


async def _http(check: Check, target: _Target) -> str:
    assert target.url is not None
    tls = {"ssl": _tls(check.tls_verify), "server_hostname": target.url.host} if target.url.secure else {}
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    request = _request(check, target.url, connection)
    reader, writer = await _connect(target, check.timeout_s, limit=HEAD_BYTES_MAX, **tls)
    try:
        writer.write(request)
        await writer.drain()
        status, body = await _answer(connection, reader, BODY_BYTES_MAX if check.expect_body else OUTPUT_BYTES_MAX)
    finally:
        await _close(writer)
    text = body.decode("utf-8", "replace")
    said = f"HTTP {status}: {text[:1000]}" if text else f"HTTP {status}"
    if not (status in check.expect_status if check.expect_status else 200 <= status <= 299):
        raise _Failed(said)
    if check.expect_body and check.expect_body not in text:
        raise _Failed(f"HTTP {status}, but the answer does not hold {check.expect_body[:100]!r}")
    return said


def _request(check: Check, url: Url, connection: h11.Connection) -> bytes:
    headers = {"Host": url.authority, "User-Agent": "rollcall-check", "Accept": "*/*"}
    if url.login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(url.login.encode()).decode()
    given = {name.lower() for name in check.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in given} | check.headers
    if check.method in ("POST", "PUT"):
        headers["Content-Length"] = "0"
    headers["Connection"] = "close"
    try:
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        request = h11.Request(method=check.method, target=url.path, headers=lines)
        return (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    except (h11.LocalProtocolError, UnicodeEncodeError):
        # Its words would quote the header, which may be a secret.
        raise _Failed("a header of this check cannot be sent: it holds a line break, or is no header") from None


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader, wanted: int) -> tuple[int, bytes]:
    """The status of the answer, and the first ``wanted`` bytes of its body, as far as they came."""
    status, body, left = 0, bytearray(), ANSWER_BYTES_MAX
    try:
        while len(body) < wanted:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(min(HEAD_BYTES_MAX, left))
                left -= len(data)
                if not data and not status:
                    raise _Failed("the connection was closed without an answer" if left else "the answer is too long")
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        if not status:
            raise _Failed("the answer is not HTTP") from None
        # It broke off in its body: its status counts, and what came of the body is what there is.
    if not status:
        raise _Failed("the answer is not HTTP")
    return status, bytes(body[:wanted])


async def _grpc(check: Check, target: _Target) -> str:
    """The health protocol of gRPC: ``grpc.health.v1.Health/Check``, whose two messages are a name and a number."""
    try:
        import grpc  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        import grpc.aio  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError:
        raise _Failed("this node cannot speak gRPC: pip install 'rollcall-registry[grpc]' there") from None
    service = check.grpc.partition("/")[2]
    request = _grpc_text(service.encode()) if service else b""
    until = time.monotonic() + check.timeout_s
    answer = b""
    for number, address in enumerate(target.addresses, 1):
        turn_s = (until - time.monotonic()) / (len(target.addresses) - number + 1)
        shown = f"[{address}]:{target.port}" if ":" in address else f"{address}:{target.port}"
        async with grpc.aio.insecure_channel(shown, options=_GRPC_OPTIONS) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                answer = bytes(await call(request, timeout=turn_s))
                break
            except grpc.RpcError as error:
                unreached = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not unreached or number == len(target.addresses):
                    raise _Failed(f"gRPC {error.code().name}: {error.details()}") from None
    if answer[:2] == b"\x08\x01":
        return "SERVING"
    raise _Failed(f"not SERVING (status {answer[1] if len(answer) > 1 else 0})")


_GRPC_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
"""Straight there, and by a connection of its own: one that was open before says nothing of now."""


def _grpc_text(value: bytes) -> bytes:
    """A message of one text, as protocol buffers write it: field 1, its length in groups of seven bits, itself."""
    length = len(value)
    return b"\x0a" + (bytes([length & 0x7F | 0x80, length >> 7]) if length > 0x7F else bytes([length])) + value


async def _script(check: Check, reach: Reach) -> tuple[State, str]:
    if not reach.scripts:
        raise _Failed("scripts are not run on this node: its setting checks_scripts is off")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *check.script, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        output = await _up_to(process.stdout, OUTPUT_BYTES_MAX)
        while await process.stdout.read(HEAD_BYTES_MAX):
            pass  # what is over is not kept, but must not stop the script either
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    said = output.decode("utf-8", "replace").strip() or f"exit code {code}"
    if code == 0:
        return "passing", said
    return ("warning" if code == 1 else "critical"), said


# -- small things


async def _up_to(reader: asyncio.StreamReader, wanted: int) -> bytes:
    try:
        return await reader.readexactly(wanted)
    except asyncio.IncompleteReadError as error:
        return error.partial


@lru_cache(maxsize=2)
def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).partition("\n")[0]


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace")[:OUTPUT_BYTES_MAX].decode("utf-8", "ignore")
