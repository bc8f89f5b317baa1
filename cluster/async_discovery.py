"""``Discovery`` for asyncio programs."""

import asyncio
import time
from collections.abc import Collection

from ..replication.records import Instance
from .balancer import Endpoint
from .discovery import Discovery
from .pool import NoInstances, Pool


class AsyncDiscovery:
    """``Discovery`` for asyncio programs: only the first question about a service leaves the event loop.

    It says whom to call and does not hear how that went: it tries nobody again and leaves nobody alone. Calls of HTTP
    should go by ``AsyncServiceTransport``, which does; others can say so to a ``pool`` (``begun``, and how it ended).
    """

    def __init__(self, discovery: Discovery) -> None:
        self.discovery: Discovery = discovery

    async def pick(self, service: str, key: str = "", *, without: Collection[Endpoint] = ()) -> Endpoint:
        """As ``Discovery.pick``."""
        return (await self.pool(service)).pick(time.monotonic(), key, without)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """As ``Discovery.instances``."""
        found = tuple(endpoint.instance for endpoint in (await self.pool(service)).endpoints)
        if not found:
            raise NoInstances(service, self.discovery.why_nobody(service))
        return found

    async def pool(self, service: str) -> Pool:
        """As ``Discovery.pool``."""
        return self.discovery.at_hand(service) or await asyncio.to_thread(self.discovery.pool, service)

    def age_s(self, service: str) -> float | None:
        """As ``Discovery.age_s``."""
        return self.discovery.age_s(service)

    async def close(self) -> None:
        await asyncio.to_thread(self.discovery.close)

    async def __aenter__(self) -> "AsyncDiscovery":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
