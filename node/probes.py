"""Asking one instance how it is: HTTP, TCP, gRPC or a script. What it finds is an answer, never an exception.

Runs on an event loop of its own, so that a thousand slow targets wait side by side and
delay nobody. An answer is a state, a text of at most 4 KiB for people, and how long it
took. Where a question may go is the operator's to say (``Reach``): every address that a
name stands for is looked at, and the one that was looked at is the one that is asked.
"""

import asyncio
import contextlib
import errno
import ipaddress
import ssl
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from ..replication.checks import Check, State
from ..replication.errors import Invalid

OUTPUT_BYTES_MAX = 4 * 1024
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024
"""Of a body in which a text is looked for; without one, only what is shown is read."""

REFUSED = ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/128", "fe80::/10", "fd00:ec2::254/128", "ff00::/8")
"""Link-local addresses, those of the clouds' metadata services among them, and what is no host's address."""

OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL})
"""This node has no file, memory, process or port to ask with: that says nothing of whom it would have asked."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Found(Struct, frozen=True):
    """What one question found."""

    state: State
    output: str
    latency_s: float


LATE_S = 0.25
"""A timeout that is noticed so late means that this process stood still, not that there was no answer."""


class NotAsked(Exception):
    """This node could not ask, for reasons of its own."""


class _Failed(Exception):
    """It is not well, and this says why."""


class Reach(Struct, frozen=True):
    """Which addresses may be asked: those of ``networks``, or all if there are none; never those of ``REFUSED``
    unless a network names them. ``scripts``: whether command lines may be run on this node."""

    networks: tuple[str, ...] = ()
    scripts: bool = False

    def allows(self, address: str) -> bool:
        return _allows(self.networks, address)


@lru_cache(maxsize=65_536)
def _allows(networks: tuple[str, ...], address: str) -> bool:
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if networks:
        return any(ip in network for network in _networks(networks) if network.version == ip.version)
    return not any(ip in network for network in _networks(REFUSED) if network.version == ip.version)


@lru_cache(maxsize=64)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise Invalid(f"checks_networks: {error}", field="checks_networks") from None


def networks_from(text: str) -> tuple[str, ...]:
    """The networks that ``text`` names, with commas between them, or ``Invalid``."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    _networks(found)
    return found


async def ask(check: Check, reach: Reach) -> Found:
    """Asks once, for at most ``check.timeout_s``. Raises ``NotAsked``."""
    began = time.monotonic()
    state: State = "critical"
    try:
        async with asyncio.timeout(check.timeout_s):
            match check.kind:
                case "http":
                    output = await _http(check, reach)
                    state = "passing"
                case "tcp":
                    output = await _tcp(check.tcp, reach)
                    state = "passing"
                case "grpc":
                    output = await _grpc(check, reach)
                    state = "passing"
                case "script":
                    state, output = await _script(check, reach)
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


async def _address(host: str, port: int, reach: Reach) -> str:
    """One address of ``host`` that may be asked."""
    try:
        found = [str(ipaddress.ip_address(host.strip("[]")))]
    except ValueError:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
        except OSError as error:
            raise _Failed(f"{host} cannot be found: {error.strerror}") from None
        found = [str(info[4][0]) for info in infos]
    for address in found:
        if reach.allows(address):
            return address
    raise _Failed(
        f"checks may not be made of {found[0] if found else host}: the nodes' checks_networks do not allow it"
    )


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


# -- kinds


async def _tcp(place: str, reach: Reach) -> str:
    host, port = _place(place)
    address = await _address(host, port, reach)
    _, writer = await asyncio.open_connection(address, port)
    await _close(writer)
    return f"{place} takes connections"


async def _http(check: Check, reach: Reach) -> str:
    parts = urlsplit(check.http)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = await _address(host, port, reach)
    context = _tls(check.tls_verify) if secure else None
    reader, writer = await asyncio.open_connection(
        address, port, limit=HEAD_BYTES_MAX, ssl=context, server_hostname=host if secure else None
    )
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(_request(check, target, parts.netloc.rpartition("@")[2]))
        await writer.drain()
        status, headers = await _head(reader)
        wanted = BODY_BYTES_MAX if check.expect_body else OUTPUT_BYTES_MAX
        body = b"" if check.method == "HEAD" else await _body(reader, headers, wanted)
    finally:
        await _close(writer)
    text = body.decode("utf-8", "replace")
    said = f"HTTP {status}: {text[:1000]}" if text else f"HTTP {status}"
    if not (status in check.expect_status if check.expect_status else 200 <= status <= 299):
        raise _Failed(said)
    if check.expect_body and check.expect_body not in text:
        raise _Failed(f"HTTP {status}, but the answer does not hold {check.expect_body[:100]!r}")
    return said


def _request(check: Check, target: str, host: str) -> bytes:
    given = {name.lower() for name in check.headers}
    headers = {"Host": host, "User-Agent": "rollcall-check", "Accept": "*/*"}
    headers = {name: value for name, value in headers.items() if name.lower() not in given} | check.headers
    lines = [f"{check.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if check.method in ("POST", "PUT"):
        lines.append("Content-Length: 0")
    if any("\r" in line or "\n" in line for line in lines):
        raise _Failed("a header of this check holds a line break")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1", "replace")


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.split(b" ", 2)[1].startswith(b"1"):
            head = await reader.readuntil(b"\r\n\r\n")  # 100 Continue and the like come before the answer
        first, *lines = head.decode("latin-1").split("\r\n")
        return int(first.split(" ", 2)[1]), {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
    except (IndexError, ValueError, asyncio.LimitOverrunError):
        raise _Failed("the answer is not HTTP") from None
    except asyncio.IncompleteReadError:
        raise _Failed("the connection was closed without an answer") from None


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], wanted: int) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _chunks(reader, wanted)
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        wanted = min(wanted, int(length))
    return await _up_to(reader, wanted)


async def _chunks(reader: asyncio.StreamReader, wanted: int) -> bytes:
    parts: list[bytes] = []
    while wanted > 0:
        size = int((await reader.readline()).partition(b";")[0].strip() or b"0", 16)
        if size == 0:
            break
        part = await _up_to(reader, min(size, wanted))
        parts.append(part)
        wanted -= len(part)
        if len(part) == size:
            await reader.readline()
    return b"".join(parts)


async def _up_to(reader: asyncio.StreamReader, wanted: int) -> bytes:
    try:
        return await reader.readexactly(wanted)
    except asyncio.IncompleteReadError as error:
        return error.partial


async def _grpc(check: Check, reach: Reach) -> str:
    """The health protocol of gRPC: ``grpc.health.v1.Health/Check``, whose two messages are a name and a number."""
    try:
        import grpc  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        import grpc.aio  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError:
        raise _Failed("this node cannot speak gRPC: pip install 'rollcall-registry[grpc]' there") from None
    place, _, service = check.grpc.partition("/")
    host, port = _place(place)
    address = await _address(host, port, reach)
    request = _grpc_text(service.encode()) if service else b""
    shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    async with grpc.aio.insecure_channel(shown, options=_GRPC_OPTIONS) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = bytes(await call(request, timeout=check.timeout_s))
        except grpc.RpcError as error:
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
