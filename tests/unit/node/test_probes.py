"""Asking an instance how it is, against servers of the test's own process that are well, ill, slow or hostile."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rollcall.node.probes import OUTPUT_BYTES_MAX, Found, NotAsked, Reach, ask, networks_from
from rollcall.replication.checks import Check
from rollcall.replication.errors import Invalid

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
ANYWHERE = Reach()


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


def asked(answer: Any, *, reach: Reach = ANYWHERE, **fields: Any) -> tuple[Found, list[bytes]]:
    async def run() -> tuple[Found, list[bytes]]:
        async with server(answer) as (port, requests):
            given = (
                fields if {"tcp", "http"} & fields.keys() else {"http": f"http://127.0.0.1:{port}/health?x=1", **fields}
            )
            given = {name: v.replace("PORT", str(port)) if isinstance(v, str) else v for name, v in given.items()}
            return await ask(Check(name="c", **given), reach), requests

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
    assert asked(ok(), headers={"X": "a\r\nEvil: 1"})[0].output == "a header of this check holds a line break"


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
    assert asked(b"", http="http://no-such-host.invalid/")[0].state == "critical"


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
    found = asyncio.run(ask(Check(name="c", script=("/bin/true",)), ANYWHERE))

    assert (found.state, "checks_scripts" in found.output) == ("critical", True)


def test_checks_do_not_reach_where_the_operator_did_not_allow():
    assert not ANYWHERE.allows("169.254.169.254")
    assert not ANYWHERE.allows("::ffff:169.254.169.254")
    assert not ANYWHERE.allows("fe80::1%eth0")
    assert not ANYWHERE.allows("0.0.0.0")
    assert ANYWHERE.allows("10.0.0.1")
    only = Reach(networks_from("10.0.0.0/8, fd00::/8"))
    assert only.allows("10.1.2.3")
    assert only.allows("fd00::1")
    assert not only.allows("192.168.0.1")
    assert "may not be made of 127.0.0.1" in asked(ok(), reach=only)[0].output
    assert "may not be made of" in asked(b"", reach=only, tcp="localhost:PORT")[0].output
    with pytest.raises(Invalid, match="checks_networks"):
        networks_from("10.0.0.0/99")


def test_a_node_that_stood_still_does_not_take_that_for_silence():
    """It was paused past the timeout, and the answer may have come meanwhile."""

    async def hangs(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(5)

    async def run() -> Found:
        async with server(hangs) as (port, _):
            asking = asyncio.create_task(
                ask(Check(name="c", http=f"http://127.0.0.1:{port}/", timeout_s=0.3), ANYWHERE)
            )
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
        asyncio.run(ask(Check(name="c", tcp="127.0.0.1:80"), ANYWHERE))


def test_a_thousand_slow_targets_wait_side_by_side():
    async def hangs(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(5)

    async def run() -> tuple[float, Found]:
        async with server(hangs) as (slow, _), server(ok()) as (fast, _):
            check = Check(name="c", http=f"http://127.0.0.1:{slow}/", timeout_s=1.0)
            waiting = [asyncio.create_task(ask(check, ANYWHERE)) for _ in range(300)]
            await asyncio.sleep(0.3)
            found = await ask(Check(name="c", http=f"http://127.0.0.1:{fast}/"), ANYWHERE)
            began = time.monotonic()
            await asyncio.gather(*waiting)
            return time.monotonic() - began, found

    left_s, found = asyncio.run(run())
    assert found.state == "passing"
    assert found.latency_s < 0.5
    assert left_s < 3
