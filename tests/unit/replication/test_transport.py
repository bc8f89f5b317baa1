"""The transport: who may connect, what keeps a connection, and what becomes of requests."""

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from harness.ends import PORTS, OurEnds
from harness.fake_net import FakeSocket
from harness.waiting import wait_for
from pysyncobj.node import Node
from rollcall.replication import transport as transport_module
from rollcall.replication import wire
from rollcall.replication.errors import NotDone, Overloaded, Unknown
from rollcall.replication.transport import CONNECTIONS_MAX, HANDSHAKE_S, SILENCE_S, Endpoint


@pytest.fixture
def ends(ours):
    return ours.ends()


def arrived(connection: FakeSocket) -> list[wire.Message]:
    """What a raw connection was sent."""
    reader = wire.FrameReader()
    reader.limit = wire.FRAME_BYTES_MAX
    messages = list(reader.feed(bytes(connection.inbox)))
    connection.inbox.clear()
    return messages


def is_closed(connection: FakeSocket) -> bool:
    """Whether the node closed its end."""
    return connection.other.closed


class Asking(threading.Thread):
    """A thread that asks once and keeps what came of it."""

    def __init__(self, ask: Callable[[], bytes]) -> None:
        super().__init__()
        self._ask: Callable[[], bytes] = ask
        self.answer: bytes | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def result(self) -> tuple[bytes | None, type[Exception] | None]:
        self.join(5)
        assert not self.is_alive()
        return self.answer, type(self.error) if self.error else None


def ask(ends: OurEnds, source: str, target: str, payload: bytes = b"?", wait_s: float = 60.0) -> Asking:
    """A request that a thread has handed to its node."""
    transport = ends.transports[source]
    asking = Asking(lambda: transport.request(target, "echo", payload, ends.clock.now + wait_s))
    wait_for(lambda: transport._posted, "the request", every_s=0.001)
    return asking


# -- who may connect


def test_two_nodes_connect_and_hear_each_other(ends):
    ends.start("a", "b")
    ends.tick(1.0)

    ends.talk("a", 1)
    ends.talk("b", 2)
    ends.tick()

    assert ends.connected()
    assert ends.heard == {"b": [1], "a": [2]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "protocol version 2"),
        ({"cluster": "prod"}, "belongs to cluster 'prod'"),
        ({"node": "a"}, "two nodes are called 'a'"),
        ({"node": "z"}, "not in this node's member list"),
        ({"members": "0" * 16}, "member list differs"),
    ],
)
def test_a_peer_that_cannot_be_ours_is_refused_and_told_why(ends, change, reason):
    ends.start("a")
    connection = ends.net.dial(PORTS["a"])

    connection.send(wire.encode(msgspec.structs.replace(ends.greeting_of("b"), **change)))
    ends.round()
    ends.round()

    refusals = [message for message in arrived(connection) if isinstance(message, wire.Refused)]
    assert [reason in refusal.reason for refusal in refusals] == [True]
    assert is_closed(connection)
    assert not ends.connected()


def test_a_node_whose_turn_it_is_to_be_dialed_is_refused(ends):
    ends.start("b")
    connection = ends.net.dial(PORTS["b"])

    connection.send(wire.encode(ends.greeting_of("a")))
    ends.round()
    ends.round()

    assert "should wait to be dialed" in arrived(connection)[-1].reason


def test_a_second_process_with_the_same_name_is_refused_while_the_first_lives(ends):
    ends.start("a")
    first = ends.dial_as_b()

    second = ends.net.dial(PORTS["a"])
    second.send(wire.encode(ends.greeting_of("b")))
    ends.round()
    ends.round()

    assert "another process that calls itself 'b'" in arrived(second)[-1].reason
    assert is_closed(second)
    assert not is_closed(first)


def test_a_restarted_process_is_taken_once_the_old_one_is_silent(ends):
    ends.start("a")
    first = ends.dial_as_b()
    ends.tick(1.0)

    second = ends.net.dial(PORTS["a"])
    second.send(wire.encode(ends.greeting_of("b")))
    ends.round()
    ends.round()

    assert is_closed(first)
    assert not is_closed(second)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", id="HTTP"),
        pytest.param(wire.encode(wire.GrantVote(99)), id="a vote before the hello"),
        pytest.param(wire.encode(wire.Request(1, "echo", b"")), id="a request before the hello"),
        pytest.param(b"\x04\x00\x00\x00\x92\x01\xa1\xf0", id="bad UTF-8"),
        pytest.param(b"\xff\xff\xff\x7f", id="a length of 2 GiB"),
    ],
)
def test_a_stranger_that_does_not_greet_is_closed_and_heard_by_nobody(ends, data):
    ends.start("a")
    connection = ends.net.dial(PORTS["a"])

    connection.send(data)
    ends.round()
    ends.round()

    assert is_closed(connection)
    assert ends.heard["a"] == []


def test_a_second_greeting_ends_the_connection(ends):
    ends.start("a")
    connection = ends.dial_as_b()

    connection.send(wire.encode(ends.greeting_of("b")))
    ends.round()

    assert is_closed(connection)


def test_a_stranger_that_says_nothing_is_closed(ends):
    ends.start("a")
    connection = ends.net.dial(PORTS["a"])

    ends.tick(HANDSHAKE_S - 1)
    assert not is_closed(connection)
    ends.tick(2.0)

    assert is_closed(connection)


def test_idle_strangers_do_not_keep_a_peer_out(ends):
    ends.start("a")
    strangers = []
    for _ in range(CONNECTIONS_MAX * 2):
        strangers.append(ends.net.dial(PORTS["a"]))
        ends.round()

    ends.start("b")
    ends.tick(1.0)

    assert ends.connected()
    assert len(ends.transports["a"]._connections) <= CONNECTIONS_MAX


def test_settings_that_differ_are_named_on_both_sides(ends):
    ends.start("a")
    ends.transports["a"]._hello = msgspec.structs.replace(
        ends.transports["a"]._hello, agreement={"ttl": "30", "same": "1"}
    )
    ends._hello = msgspec.structs.replace(ends.greeting_of("b"), agreement={"ttl": "60", "same": "1", "other": "x"})

    ends.dial_as_b()

    assert ends.transports["a"].disagreements == {"b": "ttl is 60 there and 30 here"}


# -- what keeps and what ends a connection


def test_a_listener_out_of_descriptors_rests_and_goes_on(ends):
    ends.start("a")
    ends.net.accept_errors.extend([errno.EMFILE, errno.ECONNABORTED])

    ends.start("b")
    ends.tick(5.0)

    assert ends.connected()


def test_a_socket_that_breaks_while_it_is_accepted_costs_nothing(ends, monkeypatch):
    ends.start("a")

    def broken(*option: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    ends.net.dial(PORTS["a"]).other.setsockopt = broken
    ends.tick(1.5)
    ends.start("b")
    ends.tick(1.0)

    assert ends.connected()


def test_a_connection_on_which_nobody_talks_is_kept(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    lost = []
    ends.transports["a"]._on_disconnected = lost.append

    ends.tick(60.0)

    assert lost == []
    assert ends.connected()


def test_a_silent_peer_is_let_go(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    ends.net.silent = True

    ends.tick(SILENCE_S + 0.5)

    assert not ends.connected()


def test_a_lost_connection_is_made_again_and_both_ends_learn_of_it(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    seen = []
    ends.transports["a"]._on_disconnected = lambda node: seen.append(("lost", node.id))
    ends.transports["a"]._on_connected = lambda node: seen.append(("made", node.id))

    ends.transports["b"].drop(Node("a"), "has to go, says the test")
    ends.tick(1.0)

    assert seen == [("lost", "b"), ("made", "b")]
    assert ends.connected()


def test_what_a_slow_peer_does_not_read_is_counted_and_arrives_in_order(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    ends.net.window = 100
    for number in range(200):
        ends.talk("a", number)
    assert ends.transports["a"].backlog(Node("b")) > 500

    for _ in range(100):
        ends.round()

    assert ends.heard["b"] == list(range(200))
    assert ends.transports["a"].backlog(Node("b")) == 0


def test_a_peer_that_reads_nothing_is_cut_off(ends, monkeypatch):
    monkeypatch.setattr(transport_module, "BACKLOG_BYTES_MAX", 1000)
    ends.start("a", "b")
    ends.tick(1.0)
    ends.net.window = 0

    for number in range(1000):
        ends.talk("a", number)

    assert not ends.transports["a"].connected(Node("b"))


def test_a_peer_whose_host_refuses_is_known_to_be_down(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    (before,) = ends.transports["a"].statuses()

    ends.transports.pop("b").close()
    ends.tick(2.0)

    assert (before.reachable, before.down) == (True, False)
    (status,) = ends.transports["a"].statuses()
    assert (status.reachable, status.down) == (False, True)


def test_a_peer_that_is_about_to_stop_is_known_to_be_draining(ends):
    ends.start("a", "b")
    ends.tick(1.0)

    ends.transports["b"].set_draining()
    ends.tick()

    assert ends.transports["a"].draining(Node("b"))
    ends.transports["b"].drop(Node("a"), "has to go, says the test")
    ends.tick(1.0)
    assert ends.connected()
    assert ends.transports["a"].draining(Node("b"))


def test_host_names_are_looked_up_outside_of_the_tick(ends, monkeypatch):
    looked_up = []

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        looked_up.append((host, threading.current_thread().name))
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    ends.net.getaddrinfo = getaddrinfo
    ends.start("a", "b")
    ends.transports["b"]._peers["a"].endpoint = Endpoint("a.example", PORTS["a"])

    until = time.monotonic() + 5
    while not ends.connected():
        ends.tick(0.3)
        assert time.monotonic() < until

    assert looked_up[0] == ("a.example", "resolver")


# -- requests


def test_a_request_is_answered(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    ends.transports["b"].serve("echo", lambda peer, payload, reply: reply(peer.encode() + payload))

    asking = ask(ends, "a", "b")
    ends.tick(0.5)

    assert asking.result() == (b"a?", None)


def test_a_reply_may_come_later_and_from_any_thread(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    replies: list[Callable[[bytes], None]] = []
    ends.transports["b"].serve("echo", lambda peer, payload, reply: replies.append(reply))
    asking = ask(ends, "a", "b")
    ends.tick(0.5)

    thread = threading.Thread(target=lambda: replies[0](b"late"))
    thread.start()
    thread.join()
    ends.tick(0.5)

    assert asking.result() == (b"late", None)


def test_a_request_without_a_connection_is_certainly_not_done(ends):
    ends.start("a")
    asking = ask(ends, "a", "b")
    ends.round()

    assert asking.result() == (None, NotDone)


def test_a_request_to_nobody_is_certainly_not_done(ends):
    ends.start("a")

    with pytest.raises(NotDone, match="no member is called 'z'"):
        ends.transports["a"].request("z", "echo", b"", 0.0)


def test_a_request_that_nobody_serves_is_certainly_not_done(ends):
    ends.start("a", "b")
    ends.tick(1.0)

    asking = ask(ends, "a", "b")
    ends.tick(0.5)

    assert asking.result() == (None, NotDone)


def test_a_request_that_was_sent_and_not_answered_in_time_may_have_been_done(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    ends.transports["b"].serve("echo", lambda peer, payload, reply: None)

    asking = ask(ends, "a", "b", wait_s=0.05)
    ends.tick(0.2)

    assert asking.result() == (None, Unknown)


def test_a_request_lost_with_its_connection_may_have_been_done_and_is_answered_at_once(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    ends.transports["b"].serve("echo", lambda peer, payload, reply: None)
    asking = ask(ends, "a", "b", wait_s=3600)
    ends.tick(0.2)

    ends.transports["a"].drop(Node("b"), "has to go, says the test")

    assert asking.result() == (None, Unknown)


def test_what_was_called_not_done_is_not_sent_afterwards(ends):
    """The asker gives up in the very moment in which its node is about to send."""
    ends.start("a", "b")
    ends.tick(1.0)
    transport = ends.transports["a"]
    asked = []
    ends.transports["b"].serve("echo", lambda peer, payload, reply: asked.append(payload))

    class Slow(dict[int, Any]):
        def get(self, key: int, default: Any = None) -> Any:
            found = super().get(key, default)
            asking.join(0.3)
            return found

    transport._pending = Slow()
    asking = Asking(lambda: transport.request("b", "echo", b"?", ends.clock.now + 0.05))
    wait_for(lambda: transport._posted, "the request", every_s=0.001)
    ends.tick(0.2)

    _, error = asking.result()
    assert (error, asked) in ((NotDone, []), (Unknown, [b"?"]))


def test_an_answer_counts_only_on_the_connection_that_was_asked(ends):
    ends.start("a")
    first = ends.dial_as_b()
    asking = ask(ends, "a", "b", wait_s=3600)
    ends.round()
    (request,) = [message for message in arrived(first) if isinstance(message, wire.Request)]
    ends.transports["a"]._pending[request.id].connection = object()

    first.send(wire.encode(wire.Answer(request.id, b"of another", "")))
    ends.round()

    assert not ends.transports["a"]._pending[request.id].done.is_set()
    ends.transports["a"].close()
    assert asking.result() == (None, Unknown)


def test_a_handler_that_fails_does_not_stop_the_node(ends, caplog):
    ends.start("a", "b")
    ends.tick(1.0)

    def failing(peer: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
        raise ValueError("a bug in a handler")

    ends.transports["b"].serve("echo", failing)
    askings = [ask(ends, "a", "b", wait_s=0.3) for _ in range(4)]
    ends.tick(0.3)

    assert [asking.result() for asking in askings] == [(None, Unknown)] * 4
    assert "a bug in a handler" in caplog.text
    assert ends.connected()


def test_requests_under_way_are_bounded(ends, monkeypatch):
    monkeypatch.setattr(transport_module, "REQUESTS_MAX", 2)
    ends.start("a", "b")
    ends.tick(1.0)
    ends.transports["b"].serve("echo", lambda peer, payload, reply: None)
    askings = [ask(ends, "a", "b") for _ in range(2)]

    with pytest.raises(Overloaded, match="2 requests"):
        ends.transports["a"].request("b", "echo", b"", ends.clock.now)

    ends.transports["a"].close()
    assert {asking.result()[1] for asking in askings} <= {NotDone, Unknown}


def test_closing_answers_what_is_under_way_and_closes_every_socket(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    asking = ask(ends, "a", "b", wait_s=3600)

    for transport in ends.transports.values():
        transport.close()

    assert asking.result()[1] in (NotDone, Unknown)
    assert ends.net.sockets == {}


def test_a_port_that_is_taken_is_said_at_once(ends):
    ends.start("a")

    with pytest.raises(OSError, match=r"cannot listen for peers on 127\.0\.0\.1:1001: Address already in use"):
        ends.make("a")
