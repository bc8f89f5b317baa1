"""Where a health check asks: a URL or a HOST:PORT, taken apart by the same rules at the door and when it is asked.

Pure values. What can never be asked is a ``ValueError`` whose words say what was
expected and never quote what was sent: that may hold a password.
"""

import ipaddress
import re
from urllib.parse import unquote, urlsplit

from msgspec import Struct

_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
"""Headers that say where a request ends, and what becomes of its connection: those are the asking node's."""


class Url(Struct, frozen=True):
    """A URL in its parts. ``authority`` is what a ``Host`` header says; ``login`` is USER:PASSWORD, if it holds one."""

    secure: bool
    host: str
    port: int
    authority: str
    path: str
    login: str | None


def of_url(text: str) -> Url:
    """The parts of a URL that a check may ask."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("Expected a URL of ASCII characters without blanks: percent-encode all others")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("Expected a URL with a host and a port of 1 to 65535") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("Expected an http:// or https:// URL")
    if not is_host(host):
        raise ValueError("Expected a URL with a host: an IP address or a host name")
    if port == 0:
        raise ValueError("Expected a URL with a port of 1 to 65535")
    secure = parts.scheme == "https"
    userinfo, at, authority = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    return Url(
        secure=secure,
        host=host,
        port=port or (443 if secure else 80),
        authority=authority,
        path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        login=f"{unquote(user)}:{unquote(password)}" if at else None,
    )


def of_place(text: str) -> tuple[str, int]:
    """Host and port of a HOST:PORT, an IPv6 address in brackets or not."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (is_host(host) and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise ValueError("Expected HOST:PORT")
    return host, int(port)


def is_host(text: str) -> bool:
    """Whether ``text`` is an IP address or may be the name of a host. Digits and dots alone are no name."""
    return is_address(text) or (bool(_NAME.fullmatch(text)) and not text.replace(".", "").isdigit())


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP address; one of IPv6 has no brackets, and may have a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def header_fault(name: str, value: str) -> str:
    """What is wrong with a header that a check is to send; empty if it can be sent."""
    if not _HEADER.fullmatch(name):
        return "Expected the name of a header: letters, digits and - without blanks"
    if name.lower() in FRAMING:
        return "Expected no header that says where the request ends: leave it to the node that asks"
    if any((ord(char) < 0x20 and char != "\t") or char == "\x7f" or ord(char) > 0xFF for char in value):
        return "Expected a value of Latin-1 characters without line breaks or other control characters"
    return ""
