"""Asking an instance how it is, against servers of the test's own process that are well, ill, slow or hostile."""

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rollcall.node.checks.names import Names, NotAsked
from rollcall.node.checks.probes import OUTPUT_BYTES_MAX, Found, Prober, Whom
from rollcall.node.checks.reach import Reach
from rollcall.replication.checks import Check

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
HERE = Reach()
WHOM = Whom(("default", "web"), ("127.0.0.1", "localhost"))


async def ask(check: Check, reach: Reach = HERE, *, whom: Whom = WHOM, names: Names | None = None) -> Found:
    prober = Prober(reach, names=names)
    try:
        return await prober.ask(check, whom)
    finally:
        prober.close()


@asynccontextmanager
async def server(answer: bytes | Callable[[Reader, Writer], Awaitable[None]]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answers every connection; the port, and the requests that came."""
    asked: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        try:
            if callable(answer):
                await answer(reader, writer)
            else:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1], asked
    finally:
        running.close()


def asked(answer: Any, *, reach: Reach = HERE, **fields: Any) -> tuple[Found, list[bytes]]:
    async def run() -> tuple[Found, list[bytes]]:
        async with server(answer) as (port, requests):
            given = (
                fields if {"tcp", "http"} & fields.keys() else {"http": f"http://127.0.0.1:{port}/health?x=1", **fields}
            )
            said: dict[str, Any] = {
                name: v.replace("PORT", str(port)) if isinstance(v, str) else v for name, v in given.items()
            }
            return await ask(Check(name="c", **said), reach), requests

    return asyncio.run(run())


def ok(body: bytes = b"fine", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def test_s1_5_an_answer_of_200_is_passing_and_says_what_came():
    found, requests = asked(ok())

    assert (found.state, found.output) == ("passing", "HTTP 200: fine")
    assert 0 < found.latency_s < 1
    head = requests[0].decode()
    assert head.startswith("GET /health?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "Connection: close" in head


@pytest.mark.parametrize(
    ("status", "expected", "state"),
    [
        ("204 No Content", (), "passing"),
        ("302 Found", (), "critical"),
        ("500 Oops", (), "critical"),
        ("204 No Content", (200,), "critical"),
        ("418 Teapot", (200, 418), "passing"),
    ],
)
def test_which_status_is_well_can_be_said(status, expected, state):
    assert asked(ok(b"", status), expect_status=expected)[0].state == state


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_ends_with_its_head(status):
    """The connection is left open, and nothing says how long the body is that does not come."""

    async def leaves_open(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nX: y\r\n\r\n".encode())
        await reader.read()

    found, _ = asked(leaves_open, expect_status=(204, 304))
    assert (found.state, found.output) == ("passing", f"HTTP {status[:3]}")


def test_the_answer_to_head_has_no_body_whatever_length_it_names():
    async def leaves_open(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        await reader.read()

    assert asked(leaves_open, method="HEAD")[0].state == "passing"


def test_what_comes_before_the_answer_is_skipped():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3

    assert asked(early + ok(b"UP"), expect_body="UP")[0].state == "passing"


def test_an_answer_that_breaks_off_has_its_status_all_the_same():
    assert asked(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")[0].output == "HTTP 200: half"
    assert asked(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", expect_body="whole")[0].state == "critical"


def test_user_and_password_of_a_url_are_sent_as_basic_authorization():
    found, requests = asked(ok(), http="http://ada:se%40cret@127.0.0.1:PORT/health")

    assert found.state == "passing"
    assert b"Authorization: Basic YWRhOnNlQGNyZXQ=\r\n" in requests[0]
    assert b"ada" not in requests[0]
    assert "cret" not in found.output


@pytest.mark.parametrize("fields", [{"tcp": "cart.test:PORT"}, {"http": "http://cart.test:PORT/"}])
def test_every_address_of_a_name_is_asked_until_one_answers(fields):
    """As ``localhost`` has ::1 first, where the service listens on 127.0.0.1 alone."""
    names = Names(lambda host: ["127.0.0.9", "127.0.0.8", "127.0.0.1"])
    whom = Whom(("default", "web"), ("cart.test",))

    async def run() -> Found:
        async with server(ok()) as (port, _):
            given = {name: value.replace("PORT", str(port)) for name, value in fields.items()}
            return await ask(Check(name="c", **given), whom=whom, names=names)

    assert asyncio.run(run()).state == "passing"


def test_of_a_name_only_those_addresses_are_asked_that_are_allowed():
    names = Names(lambda host: ["127.0.0.9", "127.0.0.1"])
    whom = Whom(("default", "web"), ("127.0.0.1",))

    async def run() -> Found:
        async with server(ok()) as (port, _):
            return await ask(Check(name="c", http=f"http://cart.test:{port}/"), whom=whom, names=names)

    assert asyncio.run(run()).state == "passing"


def test_a_text_may_be_asked_for_in_the_body():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n5;x=y\r\n good\r\n0\r\n\r\n"

    assert asked(ok(b"status: UP"), expect_body="UP")[0].state == "passing"
    assert asked(ok(b"status: DOWN"), expect_body="UP")[0].state == "critical"
    assert asked(chunked, expect_body="all good")[0].state == "passing"
    assert asked(b"HTTP/1.0 200 OK\r\n\r\nto the end UP", expect_body="UP")[0].state == "passing"


def test_method_and_headers_are_sent_as_they_were_given():
    found, requests = asked(ok(), method="POST", headers={"Authorization": "Bearer x", "host": "cart.example.org"})
    head = requests[0].decode()

    assert found.state == "passing"
    assert head.startswith("POST /health")
    assert "Authorization: Bearer x\r\n" in head
    assert "host: cart.example.org\r\n" in head
    assert "Host: 127" not in head
    refused = asked(ok(), headers={"X": "secret\r\nEvil: 1"})[0].output
    assert "a header of this check cannot be sent" in refused
    assert "secret" not in refused


def _no_such_host(host: str) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


def test_what_is_no_answer_is_critical_and_says_why():
    async def hangs(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(5)

    async def drips(reader: Reader, writer: Writer) -> None:
        for _ in range(100):
            writer.write(b"x")
            await asyncio.sleep(0.02)

    began = time.monotonic()
    assert asked(hangs, timeout_s=0.2)[0].output == "no answer within 0.2 s"
    assert asked(drips, timeout_s=0.2)[0].output == "no answer within 0.2 s"
    assert time.monotonic() - began < 2
    assert asked(b"SSH-2.0-OpenSSH_9\r\n\r\n")[0].output == "the answer is not HTTP"
    assert asked(b"")[0].output == "the connection was closed without an answer"
    assert asked(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000)[0].state == "critical"
    assert asked(b"", http="http://127.0.0.1:1/")[0].output
    gone = Names(_no_such_host)
    found = asyncio.run(ask(Check(name="c", http="http://gone.test/"), names=gone))
    assert (found.state, found.output) == ("critical", "gone.test cannot be found: no such name")


def test_a_long_answer_is_cut():
    assert len(asked(ok(b"x" * 1_000_000))[0].output.encode()) <= OUTPUT_BYTES_MAX


def test_s4_8_tcp_is_well_if_a_connection_is_taken():
    assert asked(b"", tcp="127.0.0.1:PORT")[0].state == "passing"
    assert asked(b"", tcp="127.0.0.1:1")[0].state == "critical"


def test_s4_8_a_script_says_it_by_its_exit_code():
    may = Reach(scripts=True)

    def run(*line: str, **fields: Any) -> tuple[str, str]:
        found = asyncio.run(ask(Check(name="c", script=line, **fields), may))
        return found.state, found.output

    assert run("/bin/sh", "-c", "echo good") == ("passing", "good")
    assert run("/bin/sh", "-c", "echo so-so; exit 1") == ("warning", "so-so")
    assert run("/bin/sh", "-c", "exit 2") == ("critical", "exit code 2")
    assert run("/no/such/script")[0] == "critical"
    assert run("/bin/sleep", "5", timeout_s=0.2) == ("critical", "no answer within 0.2 s")
    assert len(run("/bin/sh", "-c", "yes | head -c 100000")[1]) <= OUTPUT_BYTES_MAX


def test_scripts_are_off_unless_the_operator_allows_them():
    found = asyncio.run(ask(Check(name="c", script=("/bin/true",))))

    assert (found.state, "checks_scripts" in found.output) == ("critical", True)


def test_checks_do_not_reach_where_the_operator_did_not_allow():
    """127.0.0.1 answers here, and only what is allowed decides whether it is asked."""
    elsewhere = Whom(("default", "web"), ("10.0.0.7",))
    for reach, whom in ((Reach.of("10.0.0.0/8"), WHOM), (Reach(), elsewhere)):
        for check in (Check(name="c", http="http://127.0.0.1:1/"), Check(name="c", tcp="localhost:1")):
            found = asyncio.run(ask(check, reach, whom=whom))
            assert (found.state, "may not be made of" in found.output) == ("critical", True)

    assert asked(ok(), reach=Reach.of("127.0.0.0/8"))[0].state == "passing"


def test_a_node_that_stood_still_does_not_take_that_for_silence():
    """It was paused past the timeout, and the answer may have come meanwhile."""

    async def hangs(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(5)

    async def run() -> Found:
        async with server(hangs) as (port, _):
            asking = asyncio.create_task(ask(Check(name="c", http=f"http://127.0.0.1:{port}/", timeout_s=0.3)))
            await asyncio.sleep(0.1)
            time.sleep(0.7)  # the whole loop is to stand still
            return await asking

    with pytest.raises(NotAsked, match="stood still"):
        asyncio.run(run())


@pytest.mark.parametrize("trouble", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_a_node_without_files_or_ports_says_nothing_of_others(monkeypatch: pytest.MonkeyPatch, trouble: int):
    async def none_left(*_: object, **__: object) -> None:
        raise OSError(trouble, "none left")

    monkeypatch.setattr(asyncio, "open_connection", none_left)
    with pytest.raises(NotAsked, match="none left"):
        asyncio.run(ask(Check(name="c", tcp="127.0.0.1:80")))


def test_a_thousand_slow_targets_wait_side_by_side():
    async def hangs(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(5)

    async def run() -> tuple[float, Found]:
        async with server(hangs) as (slow, _), server(ok()) as (fast, _):
            check = Check(name="c", http=f"http://127.0.0.1:{slow}/", timeout_s=1.0)
            waiting = [asyncio.create_task(ask(check)) for _ in range(300)]
            await asyncio.sleep(0.3)
            found = await ask(Check(name="c", http=f"http://127.0.0.1:{fast}/"))
            began = time.monotonic()
            await asyncio.gather(*waiting, return_exceptions=True)  # on a busy machine some may not know
            return time.monotonic() - began, found

    left_s, found = asyncio.run(run())
    assert found.state == "passing"
    assert left_s < 60, "one after the other they would take 300 s"
