"""What requests really raises when a node is gone, or goes away: the line between not done and unknown."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from rollcall.cluster.http import exchange
from rollcall.replication.errors import NotDone, Unknown

pytestmark = pytest.mark.integration


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A server that takes one connection, reads a little, sends ``answer`` and closes (None: says nothing)."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                if answer is None:
                    done.wait(5.0)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            done.set()
            thread.join(5.0)
            assert not thread.is_alive()


def put(url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        exchange(session, "PUT", url, timeout_s=0.3, body={})


def test_nobody_listens_so_nothing_was_done():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    with pytest.raises(NotDone, match="refused"):
        put(f"http://127.0.0.1:{port}/")


def test_a_name_that_nobody_has_means_that_nothing_was_done():
    with pytest.raises(NotDone):
        put("http://no-such-host.invalid:1/")


@pytest.mark.parametrize(
    "answer",
    [None, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Type: application/json\r\n\r\n{"],
    ids=["silence", "closed", "cut off"],
)
def test_a_request_that_left_and_was_not_answered_whole_is_unknown(answer: bytes | None):
    with listener(answer) as url, pytest.raises(Unknown):
        put(url)
