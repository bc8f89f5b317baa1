"""Where an instance is, in parts: what a request is sent to is never put together from text of a client."""

import functools
from typing import NamedTuple
from urllib.parse import urlsplit

from ..replication.errors import Invalid


class Origin(NamedTuple):
    """``base``: the path that all paths of the instance begin with; mostly empty."""

    scheme: str
    host: str
    port: int | None
    base: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{f':{self.port}' if self.port is not None else ''}{self.base}"


@functools.lru_cache(maxsize=4096)
def origin_of(url: str) -> Origin:
    """The parts of an instance's URL. Raises ``Invalid`` if it is none that HTTP can be spoken to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Invalid(f"{url[:200]!r} is not a URL", field="addrs") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise Invalid(f"{url[:200]!r} is not http(s)://HOST[:PORT][/PATH]", field="addrs")
    return Origin(parts.scheme, host, port, parts.path.rstrip("/"))
