"""Places for work that takes long, so that nobody's work takes all of them.

Whoever has work under one name (a service, an address) may hold as many places as are
free: the only one half of all, each of two a third, and so on. So some are always left
for the next one, and one that is alone is not held to a small share (dynamic thresholds:
Choudhury and Hahne, 1998). Who must wait waits behind its own kind alone; when a place
becomes free, kinds take turns.

Of one event loop; not for several threads.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

LOOKED_AT = 32
"""Kinds that are looked at when a place becomes free, so that thousands of them that wait cost little."""


class Shares:
    """``total`` places."""

    def __init__(self, total: int) -> None:
        if total < 2:
            raise ValueError(f"shares need at least 2 places, got {total}")
        self.total: int = total
        self.taken: int = 0
        self._held: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, dict[asyncio.Future[None], tuple[Hashable, ...]]] = OrderedDict()

    def held(self, name: Hashable) -> int:
        """How many places are held under ``name``."""
        return self._held[name]

    @asynccontextmanager
    async def place(self, *names: Hashable, within_s: float) -> AsyncIterator[None]:
        """Holds a place under all of ``names``, whose first one says behind whom to wait.

        Raises ``TimeoutError`` if none was free within ``within_s``.
        """
        if names[0] in self._waiting or not self._take(names):
            await self._wait(names, within_s)
        try:
            yield
        finally:
            self._give(names)

    def _take(self, names: tuple[Hashable, ...]) -> bool:
        free = self.total - self.taken
        if any(self._held[name] >= free for name in names):
            return False
        self.taken += 1
        self._held.update(names)
        return True

    def _give(self, names: tuple[Hashable, ...]) -> None:
        self.taken -= 1
        for name in names:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
        self._next()

    async def _wait(self, names: tuple[Hashable, ...], within_s: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(names[0], {})[future] = names
        try:
            async with asyncio.timeout(within_s):
                await future
        except BaseException:
            if future.done() and not future.cancelled():
                self._give(names)  # its turn came just as it gave up
            else:
                self._forget(names[0], future)
            raise

    def _forget(self, kind: Hashable, future: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(kind)
        if queue is not None:
            queue.pop(future, None)
            if not queue:
                del self._waiting[kind]

    def _next(self) -> None:
        """Gives what is free to those who wait, kind by kind."""
        failed = 0
        while self._waiting and failed < min(LOOKED_AT, len(self._waiting)):
            kind, queue = next(iter(self._waiting.items()))
            future, names = next(iter(queue.items()))
            self._waiting.move_to_end(kind)
            if not future.done() and not self._take(names):
                failed += 1
                continue
            self._forget(kind, future)
            if not future.done():
                future.set_result(None)
