"""Addresses, URLs and names as settings hold them: taken apart, and refused in words."""

import ipaddress
import re
from urllib.parse import urlsplit

from ...replication.errors import Invalid

ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}\Z"
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
"""Hosts that mean every address of the machine: good to bind to, not to connect to."""


def host_and_port(text: str, field: str) -> tuple[str, int]:
    """``HOST:PORT`` (``[HOST]:PORT`` for IPv6) in two, or ``Invalid`` naming ``field``."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port and not parts.path and not parts.username:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise Invalid(f"{field}: expected HOST:PORT, got {text!r}", field=field)


def check_url(text: str, field: str) -> None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path:
        raise Invalid(f"{field}: expected http://HOST:PORT, got {text!r}", field=field)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_name(text: str) -> bool:
    """Whether DNS can carry ``text`` as (part of) a name."""
    return all(re.fullmatch(r"[A-Za-z0-9_-]{1,63}", label) for label in text.split("."))
