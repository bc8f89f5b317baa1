"""Where an instance is: one answer for every face, made of what it said of itself. Pure.

An instance may say an ``address`` with a ``port``, ``addrs`` (URLs, or HOST:PORT) and a
``hostname``. A face that has one host and port to give (DNS, Consul's catalog, S4) asks
``place_of``; one that makes HTTP calls (SDK, gateway) asks ``url_of``. What an earlier release
let in and what cannot be read here is nowhere, and breaks nothing.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from .targets import is_host

HTTP = ("http", "https")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Said(Protocol):
    """What an instance says of where it is."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def addrs(self) -> tuple[str, ...]: ...
    @property
    def hostname(self) -> str: ...


class Place(Struct, frozen=True):
    """A host, an IPv6 address without brackets, and a port; 0: none was said, and ``scheme`` has none of its own."""

    host: str
    port: int
    scheme: str = ""


def place_of(said: Said) -> Place | None:
    """``address`` and ``port``; else the first of ``addrs`` that is HTTP, or the first of them; else ``hostname``
    and ``port``. None: nowhere."""
    if said.address and _is_host(said.address):
        return Place(said.address, said.port)
    found = first_of(said.addrs)
    if found is not None:
        return found
    return Place(said.hostname, said.port) if said.hostname and _is_host(said.hostname) else None


def url_of(said: Said) -> str:
    """Where HTTP calls go: the first of ``addrs`` that is HTTP, else ``http://`` and ``address`` and ``port``.

    An instance that speaks another protocol alone has the first of its ``addrs``; "" is nowhere.
    """
    first: tuple[str, Place] | None = None
    for addr in said.addrs:
        place = read(addr)
        if place is None:
            continue
        if place.scheme in HTTP:
            return addr
        if not place.scheme:
            return f"http://{authority(place.host, place.port)}"
        first = first or (addr, place)
    # An address that was taken from ``addrs`` is no place for another protocol than is said there.
    if first and (not said.address or (first[1].host, first[1].port) == (said.address, said.port)):
        return first[0]
    host = next((host for host in (said.address, said.hostname) if host and _is_host(host)), "")
    return f"http://{authority(host, said.port)}" if host else ""


def first_of(addrs: Iterable[str]) -> Place | None:
    """The first of ``addrs`` that is HTTP, else the first that can be read at all."""
    places = [place for addr in addrs if (place := read(addr)) is not None]
    return next((place for place in places if place.scheme in (*HTTP, "")), places[0] if places else None)


def authority(host: str, port: int) -> str:
    """Host and port as a URL has them; a port of 0 is left out."""
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


@lru_cache(maxsize=4096)
def read(addr: str) -> Place | None:
    """A URL, a HOST:PORT or a host as a place; None if it is none of them."""
    if not addr.isprintable() or " " in addr:
        return None
    if is_host(addr):
        return Place(addr, 0)
    try:
        parts = urlsplit(addr if "://" in addr else f"//{addr}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if not is_host(host) or port == 0:
        return None
    return Place(host, port or _DEFAULT_PORTS.get(parts.scheme, 0), parts.scheme)


def address_fault(text: str) -> str:
    """What is wrong with an address or a host name; empty if it is one.

    The words do not quote it: a URL may hold a password.
    """
    if is_host(text):
        return "Expected an address without a zone (%): it means something on one machine only" if "%" in text else ""
    hint = ""
    if "://" in text:
        hint = ": put a URL into addrs"
    elif text.startswith("["):
        hint = ": leave the brackets away"
    elif text.replace(".", "").isdigit():
        hint = ": digits and dots alone are no host name"
    elif read(text) is not None:
        hint = ": put the port into port"
    return f"Expected an IP address or a host name{hint}"


def addr_fault(text: str) -> str:
    """What is wrong with one of ``addrs``; empty if it can be read."""
    if read(text) is not None:
        return ""
    return "Expected HOST:PORT or a URL such as http://10.0.0.1:8080, its host an IP address or a host name"


def _is_host(text: str) -> bool:
    # Nearly all are of this form, and a service may have ten thousands of them.
    return bool(_IPV4.fullmatch(text)) or _is_other_host(text)


_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}")
_is_other_host = lru_cache(maxsize=4096)(is_host)
