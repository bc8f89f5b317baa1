"""Calls by name without a registry, by requests, httpx, and httpx with asyncio: all keep one line."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from harness.callers import CALLERS, Caller, CannotCall
from harness.raw_answers import Listed, RawAnswers
from rollcall.cluster import AsyncServiceTransport, ServiceTransport
from rollcall.cluster.local.ports import free_port

pytestmark = pytest.mark.integration

CANNOT = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
CANNOT_IN_CHUNKS = b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"
CUT_IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def one() -> Iterator[RawAnswers]:
    made = RawAnswers()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[RawAnswers]:
    made = RawAnswers()
    yield made
    made.close()


@pytest.fixture(params=CALLERS)
def calling(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    made: list[Caller] = []

    def make(listed: Listed, **options: int) -> Caller:
        made.append(CALLERS[request.param](listed, **options))
        return made[-1]

    yield make
    for caller in made:
        caller.close()


def odd(*served: RawAnswers, plays: bytes, hangs_up: bool = False) -> None:
    for each in served:
        each.odd, each.hangs_up = (plays,), hangs_up


def test_a_call_reaches_the_instance_by_name_with_path_parameters_and_body(calling, one: RawAnswers):
    caller = calling(Listed(cart=(one.port,)))

    assert caller.ask("GET", "service://cart/a%2Fb?x=1").text == "/a%2Fb?x=1"
    assert caller.ask("GET", "service://cart/a", params={"x": "1", "y": ["2", "3"]}).text == "/a?x=1&y=2&y=3"
    assert caller.ask("GET", "service://cart").text == "/"
    assert f"\r\nHost: 127.0.0.1:{one.port}\r\n".encode().lower() in one.head.lower()


def test_a_service_that_nobody_has_and_what_is_no_name_are_said_so(calling):
    caller = calling(Listed())

    with pytest.raises(CannotCall, match="no instance of 'cart'"):
        caller.ask("GET", "service://cart/")
    with pytest.raises(CannotCall, match=r"expected service://NAME/PATH"):
        caller.ask("GET", "service://a.b:80/")


def test_who_refuses_is_passed_by_even_for_what_must_not_be_repeated(calling, one: RawAnswers):
    dead = free_port(5)
    listed = Listed(cart=(*range(dead, dead + 5), one.port))
    caller = calling(listed)

    assert {caller.ask("POST", "service://cart/x", data=b"1").text for _ in range(6)} == {"/x"}
    assert len(one.paths) == 6
    assert listed.failures("cart") > 0


def test_a_body_that_is_gone_after_the_first_try_is_sent_once(calling, one: RawAnswers):
    caller = calling(Listed(cart=(free_port(), one.port)))
    told: list[str] = []
    for _ in range(2):
        try:
            told.append(caller.ask("POST", "service://cart/x", data=iter((b"1",))).text)
        except CannotCall:
            told.append("cannot")

    assert sorted(told)[-1] == "cannot"


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 503)])
def test_an_answer_that_another_might_better_is_asked_for_elsewhere_if_it_may_be_repeated(
    calling, one: RawAnswers, other: RawAnswers, method: str, status: int
):
    odd(one, plays=CANNOT)
    odd(other, plays=WHOLE)
    listed = Listed(cart=(one.port, other.port))
    caller = calling(listed)

    assert {caller.ask(method, "service://cart/odd").status for _ in range(2)} == {200, status}
    assert listed.failures("cart") == len(one.paths) == 1


def test_where_all_answer_that_they_cannot_the_last_word_stands(calling, one: RawAnswers, other: RawAnswers):
    odd(one, other, plays=CANNOT)
    caller = calling(Listed(cart=(one.port, other.port)))

    assert caller.ask("GET", "service://cart/odd") == (503, "busy")
    assert (len(one.paths), len(other.paths)) == (1, 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_stands_when_nobody_is_left_who_might_better_it(
    calling, one: RawAnswers, other: RawAnswers, monkeypatch: pytest.MonkeyPatch, streamed: bool
):
    """The list may empty at the very moment between two tries."""
    odd(one, other, plays=CANNOT_IN_CHUNKS if streamed else CANNOT)
    listed = Listed(cart=(one.port, other.port))
    (pool,), picks = listed.pools(), iter([lambda: None, lambda: pool.update([], time.monotonic())])
    pick = pool.pick
    monkeypatch.setattr(pool, "pick", lambda *asked: (next(picks)(), pick(*asked))[1])
    caller = calling(listed)

    assert caller.ask("GET", "service://cart/odd") == (503, "busy")
    assert len(one.paths) + len(other.paths) == 1
    assert next(picks, None) is None


def test_an_answer_that_breaks_off_is_asked_for_elsewhere_if_it_may_be_repeated(
    calling, one: RawAnswers, other: RawAnswers
):
    odd(one, plays=CUT, hangs_up=True)
    odd(other, plays=WHOLE)
    caller = calling(Listed(cart=(one.port, other.port)))

    assert {caller.ask("GET", "service://cart/odd").text for _ in range(2)} == {"hello"}
    told: list[str] = []
    for _ in range(2):
        try:
            told.append(caller.ask("POST", "service://cart/odd", data=b"x").text)
        except CannotCall:
            told.append("cannot")
    assert sorted(told) == ["cannot", "hello"]


def test_who_fails_three_times_in_a_row_is_left_alone(calling, one: RawAnswers, other: RawAnswers):
    odd(one, plays=CANNOT)
    odd(other, plays=WHOLE)
    listed = Listed(cart=(one.port, other.port))
    caller = calling(listed)
    for _ in range(20):
        assert caller.ask("GET", "service://cart/odd").text == "hello"

    assert len(one.paths) == 3
    assert len(other.paths) == 20


def test_tries_are_bounded(calling, one: RawAnswers, other: RawAnswers):
    odd(one, other, plays=CUT, hangs_up=True)
    caller = calling(Listed(cart=(one.port, other.port)), tries=1)

    with pytest.raises(CannotCall):
        caller.ask("GET", "service://cart/odd")
    assert len(one.paths) + len(other.paths) == 1


def test_an_instance_whose_address_is_none_is_passed_by(calling):
    caller = calling(Listed(cart="grpc://127.0.0.1:1"))

    with pytest.raises(CannotCall, match="is not http"):
        caller.ask("GET", "service://cart/")


def test_a_redirect_to_itself_means_the_service_and_another_place_is_another_place(
    calling, one: RawAnswers, other: RawAnswers
):
    at = f"http://127.0.0.1:{one.port}/moved"
    odd(one, plays=f"HTTP/1.1 302 Found\r\nLocation: {at}\r\nContent-Length: 0\r\n\r\n".encode())
    listed = Listed(cart=(one.port,))
    assert calling(listed).ask("GET", "service://cart/odd").text == "/moved"
    assert listed.asked == ["cart", "cart"]

    at = f"http://127.0.0.1:{other.port}/outside"
    odd(one, plays=f"HTTP/1.1 302 Found\r\nLocation: {at}\r\nContent-Length: 0\r\n\r\n".encode())
    assert calling(listed).ask("GET", "service://cart/odd").text == "/outside"
    assert other.paths == ["/outside"]


def test_httpx_says_who_answered_and_finds_names_with_capitals(one: RawAnswers):
    with httpx.Client(transport=ServiceTransport(Listed(Cart=(one.port,)))) as client:  # pyright: ignore
        answer = client.get("service://cart/x", extensions={"service": "Cart"})

    assert answer.extensions["instance"].port == 0
    assert answer.extensions["instance"].addrs == (f"http://127.0.0.1:{one.port}",)


def test_httpx_streams_an_answer_of_unknown_length_as_it_comes(one: RawAnswers):
    one.odd = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", 5.0, b"0\r\n\r\n")

    async def first_part() -> str:
        async with (
            httpx.AsyncClient(transport=AsyncServiceTransport(Listed(cart=(one.port,)))) as client,  # pyright: ignore
            client.stream("GET", "service://cart/odd") as answer,
        ):
            async for part in answer.aiter_text():
                return part
            return ""

    began = time.monotonic()
    assert asyncio.run(first_part()) == "one"
    assert time.monotonic() - began < 4.9


def test_a_cancelled_call_says_nothing_of_the_instance(one: RawAnswers):
    one.odd = (5.0, WHOLE)
    listed = Listed(cart=(one.port,))

    async def cancelled() -> None:
        async with httpx.AsyncClient(transport=AsyncServiceTransport(listed)) as client:  # pyright: ignore
            async with asyncio.timeout(0.3):
                await client.get("service://cart/odd")

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    (endpoint,) = listed.pool("cart").endpoints
    assert (endpoint.active, endpoint.failures) == (0, 0)
    one.break_off()


def test_without_httpx_its_extra_is_named():
    program = (
        "import sys; sys.modules['httpx'] = None\n"
        "from rollcall.cluster import *\n"
        "try:\n    from rollcall.cluster import AsyncServiceTransport\n"
        "except ImportError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert "pip install 'rollcall-registry[httpx]'" in said.stdout
