"""Which nodes there are, and whom to ask next.

Pure: no clock, no sockets; ``now`` is in seconds of a clock that never goes
back. The policy: stay with the node that answered last, so that a client reads
its own writes; when it fails, try the leader if it is known, then the others
in turn; leave a node that failed alone for a while, twice as long each time,
but never refuse to try at all.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from ..replication.errors import Invalid

DEFAULT_NODES = "http://127.0.0.1:8500,8501,8502"
"""Where ``scripts/up`` puts three nodes."""

BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 5.0


def urls_from(text: str) -> tuple[str, ...]:
    """The nodes that ``http://HOST:PORT,HOST:PORT,PORT`` names; a bare port is one more on the host before it."""
    urls: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if part.isdecimal() and urls:
            part = f"{urls[-1].rpartition(':')[0]}:{part}"
        url = part.rstrip("/") if "://" in part else f"http://{part}"
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.path
        except ValueError:
            fits = False
        if not fits or part.isdecimal():
            raise Invalid(f"nodes: expected URLs such as {DEFAULT_NODES}, got {text!r}", field="nodes")
        urls.append(url)
    return tuple(dict.fromkeys(urls))


def nodes_from(nodes: str | Iterable[str]) -> tuple[str, ...]:
    """The nodes of a text, or of several, each with one or more: ``["HOST:PORT", "http://HOST:PORT"]``."""
    return urls_from(nodes if isinstance(nodes, str) else ",".join(nodes))


class Members:
    """The nodes that a client knows. Not for several threads at once."""

    def __init__(self, urls: Iterable[str]) -> None:
        self.urls: tuple[str, ...] = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
        if not self.urls:
            raise ValueError("at least one node is needed")
        self.current: str = self.urls[0]
        self.leader: str | None = None
        self._failures: dict[str, tuple[int, float]] = {}

    def order(self, now: float) -> list[str]:
        """All nodes, in the order to try them: those that are left alone come last, the soonest due first."""
        start = self.urls.index(self.current)
        turn = [*self.urls[start:], *self.urls[:start]]
        if self.leader in turn[1:]:
            turn.remove(self.leader)
            turn.insert(1, self.leader)
        waiting = {url: due for url in turn if (due := self._due(url)) > now}
        return [url for url in turn if url not in waiting] + sorted(waiting, key=waiting.__getitem__)

    def answered(self, url: str) -> None:
        """``url`` works: it is the one to stay with."""
        self._failures.pop(url, None)
        if url in self.urls:
            self.current = url

    def failed(self, url: str, now: float) -> None:
        """``url`` did not answer, or could not do what was asked."""
        count = self._failures.get(url, (0, 0.0))[0] + 1
        pause_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** (count - 1))
        self._failures[url] = (count, now + pause_s)
        if url == self.leader:
            self.leader = None

    def learned(self, urls: Iterable[str], leader: str | None) -> None:
        """The cluster's own word on who belongs to it and who leads.

        Nodes that were configured stay known: the cluster may name addresses
        that cannot be reached from here (containers, tunnels).
        """
        self.urls = tuple(dict.fromkeys([*self.urls, *(url.rstrip("/") for url in urls)]))
        self.leader = leader.rstrip("/") if leader else None

    def _due(self, url: str) -> float:
        return self._failures.get(url, (0, 0.0))[1]
