"""Services whose answers are out of order: who asks next gets the answer to what it asked.

Played byte by byte to the gateway, to ``service://`` and to the sidecar's check. After each odd answer the same
service is asked for other things, over connections that would still be out of step.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from harness.callers import CALLERS, CannotCall
from harness.raw_answers import Listed, Piece, RawAnswers
from rollcall.cluster.gateway import Gateway, GatewaySettings
from rollcall.cluster.sidecar import Check
from rollcall.replication.front.server import Server

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"
WRONG = WHOLE.replace(b"hello", b"wrong")
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = "broken"
"""The caller is told that it has not got the whole: by a 502 or 503, an error, or a transfer that breaks off."""


class Odd(NamedTuple):
    """What is played, what the caller is told, and what the sidecar's check, which reads no body, makes of it."""

    pieces: tuple[Piece, ...]
    says: str
    well: bool = True
    hangs_up: bool = False


ODD: dict[str, Odd] = {
    "103, then the answer": Odd((b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n", 0.1, WHOLE), "hello"),
    "102 twice, then the answer": Odd((b"HTTP/1.1 102 Processing\r\n\r\n" * 2, 0.1, WHOLE), "hello"),
    "100 unasked, then the answer": Odd((b"HTTP/1.1 100 Continue\r\n\r\n", 0.1, WHOLE), "hello"),
    "an interim answer nobody knows": Odd((b"HTTP/1.1 150 Hm\r\n\r\n", 0.1, WHOLE), "hello"),
    "101 unasked": Odd((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 0.1, WHOLE), BROKEN, False),
    "a status below 100": Odd((b"HTTP/1.1 42 Odd\r\nContent-Length: 5\r\n\r\nhello",), BROKEN, False),
    "no end of interim answers": Odd((b"HTTP/1.1 103 Hints\r\n\r\n" * 200, WHOLE), BROKEN, False),
    "two lengths": Odd((OK + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nhello",), BROKEN, False),
    "two lengths in one line": Odd((OK + b"Content-Length: 3, 5\r\n\r\nhello",), BROKEN, False),
    "the same length twice": Odd((OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",), "hello"),
    "a length that is none": Odd((OK + b"Content-Length: five\r\n\r\nhello",), BROKEN, False),
    "a length below 0": Odd((OK + b"Content-Length: -5\r\n\r\nhello",), BROKEN, False),
    "chunks and a shorter length": Odd(
        (OK + b"Content-Length: 2\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), "hello"
    ),
    "chunks and a longer length": Odd(
        (OK + b"Content-Length: 50\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), "hello"
    ),
    "a coding nobody knows": Odd((OK + b"Transfer-Encoding: x\r\nContent-Length: 5\r\n\r\nhello",), BROKEN, False),
    "chunks of a size that is none": Odd((OK + CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",), BROKEN),
    "chunks that end elsewhere": Odd((OK + CHUNKED + b"5\r\nhello!!\r\n0\r\n\r\n",), BROKEN),
    "a line without a colon": Odd((OK + b"X-Ok: 1\r\nwhat is this\r\nContent-Length: 5\r\n\r\nhello",), BROKEN, False),
    "a first line that is none": Odd((b"200 OK\r\nContent-Length: 5\r\n\r\nhello",), BROKEN, False),
    "a thousand headers": Odd((OK + b"X: y\r\n" * 1000 + b"Content-Length: 5\r\n\r\nhello",), BROKEN, False),
    "a header of a megabyte": Odd((OK + b"X: " + b"y" * 1_000_000 + b"\r\n\r\nhello",), BROKEN, False),
    "a longer body": Odd((WHOLE + b" and more",), "hello"),
    "a longer body, another answer": Odd((WHOLE + WRONG,), "hello"),
    "a longer body, somewhat later": Odd((WHOLE, 0.05, WRONG), "hello"),
    "a body beside 204": Odd((b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",), ""),
    "a body beside 304": Odd((b"HTTP/1.1 304 Not Modified\r\n\r\n", WRONG), "", False),
    "a shorter body": Odd((OK + b"Content-Length: 50\r\n\r\nhello",), BROKEN, hangs_up=True),
    "a shorter body in chunks": Odd((OK + CHUNKED + b"5\r\nhel",), BROKEN, hangs_up=True),
    "nothing at all": Odd((), BROKEN, False, hangs_up=True),
}


@pytest.fixture
def raw() -> Iterator[RawAnswers]:
    made = RawAnswers()
    yield made
    made.close()


@pytest.fixture(params=ODD, ids=lambda name: name.replace(" ", "-"))
def played(request: pytest.FixtureRequest, raw: RawAnswers) -> Odd:
    odd = ODD[request.param]
    raw.odd, raw.hangs_up = odd.pieces, odd.hangs_up
    return odd


@contextlib.contextmanager
def gateway_to(raw: RawAnswers) -> Iterator[str]:
    app = Gateway(Listed(raw=(raw.port,)), GatewaySettings(try_s=3.0, total_s=3.0))  # pyright: ignore
    server = Server(app, "127.0.0.1", 0, 4)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}/api/raw"
    finally:
        server.stop(1.0)
        app.close()


def told(session: requests.Session, url: str) -> str:
    try:
        answer = session.get(url, timeout=10)
    except requests.RequestException:
        return BROKEN
    return BROKEN if answer.status_code >= 500 else answer.text


def asked_on(session: requests.Session, base: str) -> list[str]:
    return [told(session, f"{base}/own/{number}") for number in range(4)]


OWN = [f"/own/{number}" for number in range(4)]


def test_the_gateway_passes_on_what_belongs_to_the_request(raw: RawAnswers, played: Odd):
    with gateway_to(raw) as base, requests.Session() as session:
        assert asked_on(session, base) == OWN
        assert told(session, f"{base}/odd") == played.says
        time.sleep(0.15)  # what comes late is there
        assert asked_on(session, base) == OWN


def test_a_call_by_name_gets_what_belongs_to_it(raw: RawAnswers, played: Odd):
    assert_in_step("requests", raw, played.says)


LEFT = [name for name, odd in ODD.items() if "longer body" in name or "a body beside" in name or "interim" in name]
"""What leaves something on a connection, or might. httpx reads answers by h11, which judges all the others as well."""


@pytest.mark.parametrize("caller", ["httpx", "httpx-async"])
@pytest.mark.parametrize("name", LEFT, ids=lambda name: name.replace(" ", "-"))
def test_httpx_gets_what_belongs_to_it_as_well(raw: RawAnswers, name: str, caller: str):
    raw.odd = ODD[name].pieces
    # It has no limit of interim answers.
    assert_in_step(caller, raw, "hello" if name.startswith("no end") else ODD[name].says)


def assert_in_step(name: str, raw: RawAnswers, says: str) -> None:
    caller = CALLERS[name](Listed(raw=(raw.port,)))

    def said(path: str) -> str:
        try:
            answer = caller.ask("GET", f"service://raw{path}")
        except CannotCall:
            return BROKEN
        return BROKEN if answer.status >= 500 else answer.text

    try:
        assert [said(path) for path in OWN] == OWN
        assert said("/odd") == says
        time.sleep(0.15)
        assert [said(path) for path in OWN] == OWN
    finally:
        caller.close()


def test_the_sidecars_check_passes_by_the_final_answer(raw: RawAnswers, played: Odd):
    check = Check(target=f"http://127.0.0.1:{raw.port}/odd", timeout_s=3.0)

    assert check.passes() is played.well


def test_an_answer_to_head_has_a_length_and_ends_with_its_head(raw: RawAnswers):
    raw.odd = (OK + b"Content-Length: 5\r\n\r\n",)
    with gateway_to(raw) as base, requests.Session() as session:
        for _ in range(3):
            assert session.head(f"{base}/odd", timeout=5).headers["Content-Length"] == "5"
            assert asked_on(session, base) == OWN


def test_the_sidecars_check_asks_nobody_but_its_target(
    raw: RawAnswers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No proxy of the environment, and no password of ``.netrc``."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    assert Check(target=f"http://127.0.0.1:{raw.port}/health", timeout_s=3.0).passes()
    assert raw.paths == ["/health"]
    assert b"authorization" not in raw.head.lower()
