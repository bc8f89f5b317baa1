"""What a client's request line and ``Host`` say, before anything is done with them. Pure.

A target is a path with its query (RFC 9112, 3.2.1: origin-form), or a whole URL of
which the host stands in for ``Host`` (3.2.2: absolute-form), or ``*`` for OPTIONS.
Whatever else a client sends would mean something else to whoever puts a URL
together from it: ``@host/``, ``:80``, ``host:443`` are refused.
"""

import re
from collections.abc import Mapping

from msgspec import Struct


class Malformed(Exception):
    """A request that must not be passed on as it is: 400."""


class Target(Struct, frozen=True):
    """``path`` begins with "/", or is "*". ``query`` has its "?", where there is one. ``host``: of the whole URL."""

    path: str
    query: str = ""
    host: str = ""


def target_of(method: str, text: str) -> Target:
    """What the request line asks for. ``text`` is its second word, each byte one letter (latin-1).

    Raises ``Malformed``."""
    if method == "CONNECT":
        raise Malformed("CONNECT is not served here")
    if text == "*" and method == "OPTIONS":
        return Target("*")
    host = ""
    if not text.startswith("/"):
        url = _ABSOLUTE.fullmatch(text)
        if url is None:
            raise Malformed("the request's target must begin with / or with http:// and a host")
        host = url[1]
        text = url[2] if url[2].startswith("/") else f"/{url[2]}"
    if _NEVER.search(text):
        raise Malformed("the request's target holds a control character, a space, # or what is not ASCII")
    path, mark, query = text.partition("?")
    return Target(path, mark + query, host)


_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#]+)((?s:.*))")
_NEVER = re.compile(r"[^!-~]|#")


def host_of(text: str) -> str:
    """The host that a ``Host`` or an authority names, without its port. Raises ``Malformed``."""
    host = _HOST.fullmatch(text)
    if host is None or ".." in text or text.startswith("."):
        raise Malformed(f"Host {text[:100]!r} is not a host and a port")
    return host[1]


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]{0,5})?")


def services_of(host: str, routes: Mapping[str, str]) -> tuple[str, ...]:
    """The services that a host may stand for, the likeliest first; none for an address or a bare name.

    Host names have no case, names of services have: as it is written first, then in small letters. ``routes`` has
    its keys in small letters."""
    if "." not in host or host.startswith("[") or host.replace(".", "").isdigit():
        return ()
    label = host.partition(".")[0]
    for known in (host.removesuffix(".").lower(), label.lower()):
        if known in routes:
            return (routes[known],)
    return tuple(dict.fromkeys((label, label.lower())))
