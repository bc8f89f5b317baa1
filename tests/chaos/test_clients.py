"""What clients write into the book, against nodes that answer as a test tells them to."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import history
from harness.history import Change, Held
from harness.waiting import wait_for

from chaos.clients import Client, Keeper
from chaos.desk import Desk, Place, body
from chaos.ledger import Entry, Ledger, Odd, read
from chaos.probes import Pulse, data_bytes, memory_bytes
from chaos.watchers import Watcher

PLACE = Place("pool-0", "i-0", 20.0)
REGISTER = Change("register", PLACE.key, "v1")


class Reply(NamedTuple):
    """What a node says. ``body`` None: it hangs up."""

    status: int
    body: Any = {}
    applied: int = 5
    headers: dict[str, str] = {}


class Asked(NamedTuple):
    method: str
    path: str
    key: str | None


class Node:
    """A node of which ``answer`` says what it answers."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Reply] = lambda asked: Reply(200)
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, self.headers.get("Idempotency-Key"))
                node.asked.append(asked)
                reply = node.answer(asked)
                if reply.body is None:
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"X-Rollcall-Index": str(reply.applied), **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


@pytest.fixture
def node() -> Iterator[Node]:
    with closing(Node()) as node:
        yield node


@pytest.fixture
def nodes() -> Iterator[dict[str, Node]]:
    with ExitStack() as stack:
        yield {f"node-{number}": stack.enter_context(closing(Node())) for number in range(2)}


@pytest.fixture
def book() -> list[Entry]:
    return []


@pytest.fixture
def ledger(tmp_path: Path, book: list[Entry]) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.jsonl", book.append) as ledger:
        yield ledger


@pytest.fixture
def desk(node: Node, ledger: Ledger) -> Iterator[Desk]:
    with closing(Desk("client-0", {"node-0": node.url}, ledger, 2.0)) as desk:
        yield desk


def register(desk: Desk, request: str = "") -> history.Write:
    return desk.write("node-0", "PUT", PLACE.path, body(PLACE, "v1"), [REGISTER], request)


SAFE = {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("reply", "outcome", "results", "odd"),
    [
        (Reply(201), "ok", ("created",), False),
        (Reply(200), "ok", ("replaced",), False),
        (Reply(409, {"code": "AlreadyRegistered"}), "refused", ("already_registered",), False),
        (Reply(404, {"code": "NotFound"}), "refused", ("not_found",), False),
        (Reply(503, {"outcome": "not_done"}, headers=SAFE), "not_done", (), False),
        (Reply(504, {"outcome": "unknown"}), "unknown", (), False),
        (Reply(0, None), "unknown", (), False),
        (Reply(503, {"outcome": "not_done"}), "unknown", (), True),
        (Reply(503, {}, headers=SAFE), "unknown", (), True),
        (Reply(500, {"outcome": "unknown"}), "unknown", (), True),
        (Reply(400, {}), "unknown", (), True),
        (Reply(502, b"<html>"), "unknown", (), True),
    ],
)
def test_an_answer_is_a_promise_or_odd(desk, node, book, reply, outcome, results, odd):
    node.answer = lambda asked: reply

    written = register(desk, "key-1")

    assert (written.outcome, written.results) == (outcome, results)
    assert written.index == (5 if outcome == "ok" else None)
    assert (written.returned_at is None) == (outcome == "unknown")
    assert any(isinstance(entry, Odd) for entry in book) == odd
    assert node.asked == [Asked("PUT", PLACE.path, "key-1")]


def test_a_node_that_is_not_there_has_not_done_it(ledger):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with closing(Desk("client-0", {"node-0": url}, ledger, 1.0)) as desk:
        assert register(desk).outcome == "not_done"


def test_a_read_shows_what_was_found_and_at_which_index(desk, node):
    shown = {"service": "pool-0", "id": "i-0", "version": "v7", "modify_index": 9, "status_override": "down"}
    node.answer = lambda asked: Reply(200, shown, applied=8, headers={"X-Rollcall-Leader-Contact-Ms": "120"})

    found = desk.read("node-0", PLACE, linearizable=True, min_index=3)

    assert found.found == {PLACE.key: Held("v7", "down")}
    # The node noted its index before it looked: what it found cannot be older than itself.
    assert (found.index, found.min_index, found.age_s) == (9, 3, 0.12)
    assert node.asked[0].path == f"{PLACE.path}?consistency=linearizable&min_index=3&wait=2s"


def test_nothing_found_is_an_answer_and_no_answer_is_none(desk, node):
    node.answer = lambda asked: Reply(404, {})
    assert (desk.read("node-0", PLACE).outcome, desk.read("node-0", PLACE).found) == ("ok", {})

    node.answer = lambda asked: Reply(503, {})
    assert desk.read("node-0", PLACE).outcome == "failed"


def test_heartbeats_of_many_name_those_that_are_unknown(desk, node):
    other = Place("pool-0", "i-1", 20.0)
    node.answer = lambda asked: Reply(200, {"unknown": [{"service": "pool-0", "id": "i-1"}]})

    assert desk.renew("node-0", [PLACE, other]) == {PLACE.key: "ok", other.key: "not_found"}


def test_a_node_that_says_nothing_makes_no_heartbeat(desk, node):
    node.answer = lambda asked: Reply(0, None)

    assert desk.renew("node-0", [PLACE]) == {PLACE.key: "failed"}


def test_an_unknown_outcome_is_tried_again_with_the_same_key(nodes, ledger, book, monkeypatch):
    monkeypatch.setattr(Client, "MIX", {"register": 1.0})
    monkeypatch.setattr(Client, "RETRIED", 1.0)
    monkeypatch.setattr(Client, "TWICE", 0.0)
    answers = iter([Reply(504, {"outcome": "unknown"}), Reply(0, None)])
    for node in nodes.values():
        node.answer = lambda asked: next(answers, Reply(201))
    client = Client(1, urls(nodes), ledger, [PLACE], seed=1, period_s=0.001)
    try:
        client.turn()
    finally:
        client.hang_up()

    writes = [entry for entry in book if isinstance(entry, history.Write)]
    assert [write.outcome for write in writes] == ["unknown", "unknown", "ok"]
    assert len({write.request for write in writes}) == len({write.changes for write in writes}) == 1
    assert writes[0].request


def test_some_writes_are_sent_twice_on_purpose(nodes, ledger, book, monkeypatch):
    monkeypatch.setattr(Client, "MIX", {"register": 1.0})
    monkeypatch.setattr(Client, "TWICE", 1.0)
    client = Client(0, urls(nodes), ledger, [PLACE], seed=1, period_s=0.001)
    try:
        for _ in range(6):
            client.turn()
    finally:
        client.hang_up()

    writes = [entry for entry in book if isinstance(entry, history.Write)]
    assert len(writes) == 12
    assert len({write.request for write in writes}) == 6


def test_a_keeper_goes_to_the_next_node_when_one_fails(nodes, ledger, book):
    nodes["node-0"].answer = lambda asked: Reply(503, {})
    keeper = Keeper(0, urls(nodes), ledger, [Place("faithful", f"f-{n}", 6.0) for n in range(5)], seed=1)
    try:
        keeper.turn()
    finally:
        keeper.hang_up()

    renewals = [entry for entry in book if isinstance(entry, history.Renewal)]
    assert {renewal.key for renewal in renewals if renewal.outcome == "ok"} == {
        f"default/faithful/f-{n}" for n in range(5)
    }
    assert {renewal.node for renewal in renewals if renewal.outcome == "ok"} == {"node-1"}


def test_a_watcher_takes_its_position_along(nodes, ledger, book):
    def poll(asked: Asked) -> Reply:
        if asked.path.endswith("/digest"):
            return Reply(200, {"applied_index": 3})
        after = int(asked.path.partition("index=")[2].partition("&")[0])
        if after >= 5:
            return Reply(304, b"", applied=5)
        shown = {"service": "pool-0", "id": "i-0", "version": f"v{after + 1}"}
        event = {"kind": "UPDATE", "index": after + 1, "instance": shown}
        # After each page this node is gone.
        return Reply(200, {"index": after + 1, "events": [event]}, headers={"Connection": "close"})

    for node in nodes.values():
        node.answer = poll
    watch(nodes, ledger, lambda: len(pages(book)) >= 4)

    found = pages(book)[:4]
    assert [(page.after, page.examined, page.reload) for page in found] == [
        (3, 3, True),
        (3, 4, False),
        (4, 5, False),
        (5, 5, False),
    ]
    assert [seen.held.value for page in found for seen in page.events] == ["v4", "v5"]


def test_a_watcher_begins_anew_only_when_every_node_has_forgotten(nodes, ledger, book):
    """First only node-1 remembers, then only node-0, then nobody. None: the node hangs up."""
    first, then = [4, None, 5], [6, None]

    def answering(name: str) -> Callable[[Asked], Reply]:
        def answer(asked: Asked) -> Reply:
            if asked.path.endswith("/digest"):
                return Reply(200, {"applied_index": 3 if first else 9})
            remembered = first if name == "node-1" else then
            if not remembered or (name == "node-0" and first):
                return Reply(410, {"floor": 100})
            index = remembered.pop(0)
            return Reply(0, None) if index is None else Reply(304, b"", applied=index)

        return answer

    for name, node in nodes.items():
        node.answer = answering(name)
    watch(nodes, ledger, lambda: len(pages(book)) >= 5)

    assert [(page.after, page.examined, page.reload) for page in pages(book)[:5]] == [
        (3, 3, True),
        (3, 4, False),
        (4, 5, False),
        (5, 6, False),
        (9, 9, True),
    ]


def test_a_registry_that_never_was_where_it_told_a_watcher_to_be_is_odd(node, ledger, book):
    def answer(asked: Asked) -> Reply:
        if asked.path.endswith("/digest"):
            return Reply(200, {"applied_index": 9})
        return Reply(410, {"applied_index": 5, "detail": "index 9 was never reached"})

    node.answer = answer
    watch({"node-0": node}, ledger, lambda: any(isinstance(entry, Odd) for entry in book))

    odd = next(entry for entry in book if isinstance(entry, Odd))
    assert "410 at 9, which the registry told: index 9 was never reached" in odd.text


def test_a_stream_is_cut_into_its_messages(node, ledger, book):
    event = {"kind": "REGISTER", "index": 7, "instance": {"service": "pool-0", "id": "i-0", "version": "v1"}}
    stream = (
        b'id: 4\nevent: progress\ndata: {"index":4}\n\n'
        + b"id: 00000000000000aa-7\ndata: "
        + json.dumps({"index": 7, "events": [event]}).encode()
        + b'\n\nid: 8\ndata: {"ind'
    )
    node.answer = lambda asked: Reply(200, {"applied_index": 3} if asked.path.endswith("/digest") else stream)
    watch({"node-0": node}, ledger, lambda: len(pages(book)) >= 3, way="stream")

    assert [(page.after, page.examined) for page in pages(book)[:3]] == [(3, 3), (3, 4), (4, 7)]
    assert pages(book)[2].events == (history.Seen(7, "REGISTER", PLACE.key, Held("v1")),)


def test_a_book_is_read_as_it_was_written(tmp_path, ledger, book, desk):
    register(desk)
    ledger.note(Odd(client="c", node="n", at=1.0, text="x"))
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"type":"odd","cli')

    assert list(read(path)) == book


def test_the_pulse_notices_when_this_process_stood_still(ledger, book):
    pulse = Pulse(ledger)
    pulse.turn()
    pulse.turn()
    assert book == []

    assert pulse._last_at is not None
    pulse._last_at -= 2.0
    pulse.turn()
    assert len(book) == 1


def test_a_process_and_a_directory_have_a_size(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal").write_bytes(b"x" * 1000)

    assert memory_bytes(os.getpid()) > 10 * 2**20
    assert data_bytes(tmp_path) == 1000


def urls(nodes: dict[str, Node]) -> dict[str, str]:
    return {name: node.url for name, node in nodes.items()}


def pages(book: list[Entry]) -> list[history.WatchPage]:
    return [entry for entry in book if isinstance(entry, history.WatchPage)]


def watch(nodes: dict[str, Node], ledger: Ledger, until: Callable[[], bool], way: Any = "poll") -> None:
    watcher = Watcher("w", urls(nodes), ledger, seed=1, way=way)
    watcher.start()
    try:
        wait_for(until, "the watcher to see it")
    finally:
        watcher.leave()
        watcher.join(10.0)
    assert watcher.failure is None
    assert not watcher.is_alive()
