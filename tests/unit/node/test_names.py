"""Looking up names: a silent resolver holds up nobody but who asks for its names, and that not for long."""

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rollcall.node.checks import names as names_module
from rollcall.node.checks.names import Names, NotAsked, NotFound

SOON_S = 10.0


class Resolver:
    """Knows some names, hangs for those of ``.slow`` until the end, and may be out of order."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {"cart.test": ["::1", "127.0.0.1"]}
        self.trouble: OSError | None = None
        self.over = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if host.endswith(".slow"):
            self.over.wait(60)
            return ["127.0.0.1"]
        if self.trouble is not None:
            raise self.trouble
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.known[host]


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    resolver = Resolver()
    yield resolver
    resolver.over.set()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is fresh for no time, and nobody waits long."""
    monkeypatch.setattr(names_module, "FRESH_S", 0.0)
    monkeypatch.setattr(names_module, "WAIT_S", 0.1)


def run(main: Callable[[Names], Any], resolver: Resolver, threads: int = 8) -> None:
    names = Names(resolver, threads=threads)
    try:
        asyncio.run(main(names))
    finally:
        names.close()


def test_all_addresses_are_found_and_kept_for_a_moment(resolver: Resolver):
    async def main(names: Names) -> None:
        for _ in range(3):
            assert await names.addresses("cart.test", "web") == ("::1", "127.0.0.1")
        for _ in range(3):
            with pytest.raises(NotFound, match="not known"):
                await names.addresses("gone.test", "web")

    run(main, resolver)
    assert resolver.asked == ["cart.test", "gone.test"]


def test_slow_names_of_one_service_leave_threads_for_all_others(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names_module, "WAIT_S", 0.3)

    async def main(names: Names) -> None:
        slow = [asyncio.create_task(names.addresses(f"{n}.slow", "slow")) for n in range(50)]
        await asyncio.sleep(0)
        for number in range(20):
            resolver.known[f"{number}.test"] = ["10.0.0.1"]
            monkeypatch.setattr(names_module, "WAIT_S", SOON_S)
            assert await names.addresses(f"{number}.test", "web") == ("10.0.0.1",)
        for each in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(each, NotAsked)

    run(main, resolver)
    assert sum(host.endswith(".slow") for host in resolver.asked) <= 4


def test_who_asks_for_anothers_name_does_not_make_it_wait_in_its_own_queue(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(names_module, "WAIT_S", 0.3)

    async def main(names: Names) -> None:
        asks = [asyncio.create_task(names.addresses(host, "slow")) for host in [*(f"{n}.slow" for n in range(9)),
                                                                                 "cart.test"]]  # fmt: skip
        await asyncio.sleep(0.05)
        monkeypatch.setattr(names_module, "WAIT_S", SOON_S)
        assert await names.addresses("cart.test", "web")
        await asyncio.gather(*asks, return_exceptions=True)

    run(main, resolver)


def test_a_resolver_in_trouble_takes_no_address_away(resolver: Resolver, hasty: None, monkeypatch: pytest.MonkeyPatch):
    async def main(names: Names) -> None:
        assert await names.addresses("cart.test", "web")
        resolver.trouble = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        for _ in range(3):
            assert await names.addresses("cart.test", "web") == ("::1", "127.0.0.1")
        monkeypatch.setattr(names_module, "FRESH_S", 60.0)
        monkeypatch.setattr(names_module, "STALE_S", -1.0)
        with pytest.raises(NotFound, match="does not answer"):
            await names.addresses("cart.test", "web")

    run(main, resolver)


def test_that_there_is_no_such_name_any_more_is_believed(resolver: Resolver):
    async def main(names: Names) -> None:
        assert await names.addresses("cart.test", "web")
        resolver.known.clear()
        names._known["cart.test"].looked_at = time.monotonic() - 61.0
        with pytest.raises(NotFound):
            await names.addresses("cart.test", "web")

    run(main, resolver)


@pytest.mark.parametrize(
    "trouble", [OSError(errno.EMFILE, "Too many open files"), socket.gaierror(socket.EAI_SYSTEM, "System error")]
)
def test_without_files_to_ask_with_nothing_is_known(resolver: Resolver, trouble: OSError):
    async def main(names: Names) -> None:
        resolver.trouble = trouble
        with pytest.raises(NotAsked):
            await names.addresses("cart.test", "web")
        resolver.trouble = None
        assert await names.addresses("cart.test", "web")

    run(main, resolver)


def test_what_is_kept_is_bounded(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names_module, "KEPT_MAX", 5)

    async def main(names: Names) -> None:
        for number in range(20):
            with pytest.raises(NotFound):
                await names.addresses(f"{number}.test", "web")
        assert len(names._known) == 5
        assert not names._under_way

    run(main, resolver)
