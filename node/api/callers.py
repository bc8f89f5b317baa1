"""Who may speak to a node through a browser: nobody else's web page.

A browser sits on the operator's machine, so loopback and firewalls are no protection from what it is told by a
page of somebody else. Two things tell such requests. A page of another origin cannot hide it: its writes bear
``Origin`` or ``Sec-Fetch-Site``. And a page whose own name was turned into this node's address (DNS rebinding)
names itself in ``Host``: so this node answers to addresses, to names without a dot, to the members' names and to
those that its operator lists.

Programs send none of these headers, and are not looked at further.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ...replication.errors import Forbidden, Invalid
from ...replication.targets import is_address

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
NATIVE = "/api/v1/"
KNOWN_MAX = 1000
HOST_LENGTH_MAX = 300

RESERVED = (".svc", ".cluster.local", ".internal", ".localhost")
"""Ends of names that nobody can register in public, so that no page of the web has one (RFC 6761, ICANN's .internal;
Kubernetes' own): what clusters and container hosts call themselves."""

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[^\s:@/\[\],]*)(:[0-9]{0,5})?")


class Callers:
    """``members``: the hosts of the cluster's own URLs. ``listed``: names that the operator gave this node beside
    them (those of a proxy in front of it, say), whose pages may write as well. ``domain``: of its own DNS, in
    which this node says of itself NODE.node.DOMAIN."""

    def __init__(self, members: Iterable[str] = (), listed: Iterable[str] = (), domain: str = "") -> None:
        self._listed: frozenset[str] = frozenset(map(_bare, listed))
        self._hosts: frozenset[str] = self._listed.union(map(_bare, members))
        self._reserved: tuple[str, ...] = (*RESERVED, f".{_bare(domain)}") if domain else RESERVED
        self._known: set[str] = set()
        """Values of ``Host`` that were taken before."""

    def ordinary(self, environ: Mapping[str, Any]) -> bool:
        """Whether there is nothing to ``check``, at the price of four look-ups."""
        return (
            environ.get("HTTP_HOST", "") in self._known
            and "HTTP_ORIGIN" not in environ
            and "HTTP_SEC_FETCH_SITE" not in environ
            and (environ.get("REQUEST_URI") or "/")[0] == "/"
        )

    def check(self, environ: Mapping[str, Any]) -> None:
        """Raises ``Forbidden`` (or ``Invalid``: of another content type than a browser must ask leave for)."""
        host = environ.get("HTTP_HOST", "")
        self._check_host(host)
        target = environ.get("REQUEST_URI") or "/"
        if target[0] != "/" and "://" in target:
            host = target.partition("://")[2].partition("/")[0].partition("?")[0]
            self._check_host(host)
        if environ["REQUEST_METHOD"] in SAFE:
            return
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_SEC_FETCH_SITE", "").lower() == "cross-site":
            raise Forbidden(f"a web page of another site ({_shown(origin or 'unnamed')}) writes nothing here")
        if origin is None:
            return
        if not self._is_ours(origin, host):
            raise Forbidden(
                f"a web page of {_shown(origin)} writes nothing here; pages of this node's own address may, and of "
                "the names that the setting hosts in [http] lists"
            )
        if environ["PATH_INFO"].startswith(NATIVE) and not _is_json(environ):
            message = "Content-Type: Expected application/json where a request bears Origin"
            raise Invalid(message, field="Content-Type")

    def _check_host(self, host: str) -> None:
        if host in self._known:
            return
        name = _name_of(host)
        if name is None or not (
            "." not in name or is_address(name) or name in self._hosts or name.endswith(self._reserved)
        ):
            raise Forbidden(
                f"this node does not answer to the name {_shown(host)}: use an address or a member's name, or list "
                "it in the setting hosts in [http]"
            )
        if len(host) <= HOST_LENGTH_MAX:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known.add(host)

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            named = _bare(parts.hostname or "")
        except ValueError:
            return False
        return parts.netloc.lower() == host.lower() != "" or named in self._listed


def _bare(name: str) -> str:
    return name.lower().rstrip(".")


def _name_of(host: str) -> str | None:
    """The host of ``host:port``, in small letters; None if it is no host."""
    match = _HOST.fullmatch(host)
    return None if match is None else _bare(match["host"].strip("[]"))


def _is_json(environ: Mapping[str, Any]) -> bool:
    """Whether the body is said to be JSON, or there is none."""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if not kind:
        return environ.get("CONTENT_LENGTH", "") in ("", "0")
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _shown(text: str) -> str:
    return repr(text[:100])
