"""The transport: who may connect, what keeps a connection, and what becomes of requests."""

import datetime
import errno
import shutil
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.certified import credentials_of
from harness.ends import PORTS, OurEnds
from harness.fake_net import FakeSocket
from harness.raft import Clock
from harness.waiting import wait_for
from pysyncobj.node import Node
from rollcall.node import certs
from rollcall.replication.errors import NotDone, Overloaded, Unknown
from rollcall.replication.network import connection as connection_module
from rollcall.replication.network import handshake, requests, wire
from rollcall.replication.network.dialing import Endpoint
from rollcall.replication.network.handshake import CONNECTIONS_MAX, HANDSHAKE_S
from rollcall.replication.network.links import SILENCE_S
from rollcall.replication.network.tls import Channel


@pytest.fixture
def ends(ours):
    return ours.ends()


def arrived(connection: FakeSocket) -> list[Any]:
    """The messages that a raw connection was sent."""
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
def test_a_peer_that_cannot_be_ours_is_refused_and_told_why(ends, caplog, change, reason):
    ends.start("a")
    connection = ends.net.dial(PORTS["a"])

    connection.send(wire.encode(msgspec.structs.replace(ends.greeting_of("b"), **change)))
    ends.round()
    ends.round()

    refusals = [message for message in arrived(connection) if isinstance(message, wire.Refused)]
    assert [reason in refusal.reason for refusal in refusals] == [True]
    assert [reason in line for line in refused(caplog)] == [True]
    assert is_closed(connection)
    assert not ends.connected()


def test_a_node_whose_turn_it_is_to_be_dialed_is_refused(ends):
    ends.start("b")
    connection = ends.net.dial(PORTS["b"])

    connection.send(wire.encode(ends.greeting_of("a")))
    ends.round()
    ends.round()

    assert "should wait to be dialed" in arrived(connection)[-1].reason


def test_a_second_process_with_the_same_name_is_refused_while_the_first_lives(ends, caplog):
    ends.start("a")
    first = ends.dial_as_b()

    second = ends.net.dial(PORTS["a"])
    second.send(wire.encode(ends.greeting_of("b")))
    ends.round()
    ends.round()

    assert "another process that calls itself 'b'" in arrived(second)[-1].reason
    assert "another process that calls itself 'b' is connected: check node_id" in refused(caplog)[0]
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
        pytest.param(wire.encode(wire.RequestVoteResponse(99)), id="a vote before the hello"),
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


def test_a_node_that_answers_at_the_address_of_another_is_refused_by_who_dialed_it(ends, caplog):
    peers = {"a": Endpoint("127.0.0.1", PORTS["a"]), "c": Endpoint("127.0.0.1", 1003)}
    ends.start("b", peers=peers)
    listener = ends.net.socket()
    listener.bind(("127.0.0.1", PORTS["a"]))
    listener.listen(1)
    ends.tick(0.3)
    accepted, _ = listener.accept()

    hello = ends.greeting_of("b", peers=peers)
    accepted.send(wire.encode(msgspec.structs.replace(hello, node="c", incarnation=1)))
    ends.round()
    ends.round()

    assert refused(caplog) == ["refused 'a' at 127.0.0.1: 'c' answers at the address of 'a': check members"]
    listener.close()


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
    assert len(ends.transports["a"]._links._connections) <= CONNECTIONS_MAX


def test_settings_that_differ_are_named_on_both_sides(ends, caplog):
    ends.start("a", agreement={"ttl": "30", "same": "1"})
    ends._hello = msgspec.structs.replace(ends.greeting_of("b"), agreement={"ttl": "60", "same": "1", "other": "x"})

    ends.dial_as_b()

    assert "b runs with other settings: ttl is 60 there and 30 here" in caplog.messages


def test_when_there_are_too_many_strangers_those_go_first_that_cannot_be_a_peer(ends):
    """From elsewhere before from a member's address, silent before talking, old before new."""
    ends.start("a")
    dialed: dict[str, FakeSocket] = {}
    for name, host, says in (
        ("near, old, talks", "127.0.0.1", b"\x10"),
        ("far, old, talks", "10.9.9.9", b"\x10"),
        ("near, silent", "127.0.0.1", b""),
        ("far, silent", "10.9.9.9", b""),
        ("near, new, talks", "127.0.0.1", b"\x10"),
    ):
        dialed[name] = ends.net.dial(PORTS["a"], host=host)
        ends.round()
        if says:
            dialed[name].send(says)
        ends.tick(0.1)
    for _ in range(CONNECTIONS_MAX - len(dialed)):
        ends.net.dial(PORTS["a"]).send(b"\x10")
        ends.round()

    order: list[str] = []
    for _ in dialed:
        ends.clock.now += 0.01
        ends.net.dial(PORTS["a"]).send(b"\x10")
        ends.round()
        ends.round()
        gone = [name for name, connection in dialed.items() if is_closed(connection) and name not in order]
        assert len(gone) <= 1
        order += gone

    assert order == ["far, silent", "far, old, talks", "near, silent", "near, old, talks", "near, new, talks"]


def test_what_many_strangers_say_at_once_is_heard_over_many_ticks(ends, monkeypatch):
    """A tick must end: the heartbeats are sent in it."""
    ends.start("a")
    strangers = [ends.net.dial(PORTS["a"]) for _ in range(50)]
    ends.tick(0.5)
    for stranger in strangers:
        stranger.send(b"\x10")
    now = ends.clock.now

    def hurrying(clock: Clock) -> float:
        nonlocal now
        now += 0.0005
        return now

    def unheard() -> int:
        return sum(bool(stranger.other.inbox) for stranger in strangers)

    monkeypatch.setattr(Clock, "__call__", hurrying)
    ends.round()

    assert 40 <= unheard() < 50
    for _ in range(50):
        ends.round()
    assert unheard() == 0


def test_who_was_dialed_is_heard_however_much_strangers_say(ends, monkeypatch):
    monkeypatch.setattr(handshake, "STRANGERS_S", 0.0)
    ends.start("b")
    listener = ends.net.socket()
    listener.bind(("127.0.0.1", PORTS["a"]))
    listener.listen(1)
    ends.tick(0.3)
    accepted, _ = listener.accept()

    accepted.send(wire.encode(ends.greeting_of("a")))
    ends.round()

    assert ends.transports["b"].connected(Node("a"))
    listener.close()


def test_a_stranger_is_read_in_small_pieces(ends):
    ends.start("a")
    stranger = ends.net.dial(PORTS["a"])
    ends.round()
    stranger.send((wire.HELLO_BYTES_MAX).to_bytes(4, "little") + b"x" * 1_000_000)

    ends.round()

    assert len(stranger.other.inbox) > 900_000


# -- what is said of strangers


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("refused ")]


def test_strangers_cannot_fill_the_log(ends, caplog):
    ends.start("a")
    for number in range(200):
        connection = ends.net.dial(PORTS["a"])
        greeting = msgspec.structs.replace(ends.greeting_of("b"), node=f"z{number}", cluster=f"c{number}" * 100)
        connection.send(wire.encode(greeting))
        ends.round()
        ends.round()

    (line,) = refused(caplog)
    assert line.startswith("refused 'z0' at 127.0.0.1: it belongs to cluster 'c0c0")
    assert len(line) < 250


def test_strangers_cannot_forge_a_line_of_the_log(ends, caplog):
    ends.start("a")
    connection = ends.net.dial(PORTS["a"])

    connection.send(wire.encode(wire.Refused("no\n2026-01-01 critical all is lost\x1b[2J" + "!" * 1000)))
    ends.round()
    ends.round()

    (line,) = refused(caplog)
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.startswith("refused a connection from 127.0.0.1: it refuses this node: no?2026")
    assert len(line) < 500


def test_a_mistake_is_said_again_later_and_another_one_at_once(ends, caplog):
    ends.start("a")

    def greet(**change: Any) -> None:
        connection = ends.net.dial(PORTS["a"])
        connection.send(wire.encode(msgspec.structs.replace(ends.greeting_of("b"), **change)))
        ends.round()
        ends.round()

    greet(version=7)
    greet(version=7)
    greet(members="0")
    ends.tick(6.0)
    greet(version=7)

    assert [line.partition(": ")[2][:24] for line in refused(caplog)] == [
        "it speaks protocol versi", "its member list differs ", "it speaks protocol versi",
    ]  # fmt: skip


# -- who may connect, with certificates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    certs.make("test", ["a", "b", "z"], directory / "ours")
    certs.make("test", ["a", "b"], directory / "other")
    return directory


@pytest.fixture
def secured(ends, made) -> OurEnds:
    """Both nodes have certificates of one CA."""
    ends.credentials = {name: credentials_of(made / "ours" / name, "test", name) for name in ("a", "b")}
    return ends


class Dialing:
    """Somebody who dials "a" and speaks TLS, with a certificate of the test's choice."""

    def __init__(self, ends: OurEnds, files: Path | None, ca: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(ca)
        if files is not None:
            context.load_cert_chain(files / "cert.pem", files / "key.pem")
        self._ends = ends
        self._channel = Channel(context, accepted=False)
        self._reader = wire.FrameReader()
        self.heard: list[wire.Message] = []
        self.connection = ends.net.dial(PORTS["a"])
        self.turn(5)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            said = self._channel.outgoing()
            if said and not is_closed(self.connection):
                self.connection.send(said)
            self._ends.round()
            data = bytes(self.connection.inbox)
            self.connection.inbox.clear()
            self.heard += self._reader.feed(self._channel.receive(data))

    def send(self, message: wire.Message) -> None:
        self.connection.send(self._channel.seal(wire.encode(message)))
        self._ends.round()
        self.turn()


def test_two_nodes_with_certificates_connect_and_hear_each_other(secured, caplog):
    caplog.set_level("INFO")
    secured.start("a", "b")
    secured.tick(1.0)

    secured.talk("a", 1)
    secured.talk("b", 2)
    secured.tick()

    assert secured.heard == {"b": [1], "a": [2]}
    assert "connected to b over TLS" in caplog.text
    secured.tick(60.0)
    assert secured.connected()


def test_with_certificates_what_a_slow_peer_does_not_read_arrives_in_order(secured):
    secured.start("a", "b")
    secured.tick(1.0)
    secured.net.window = 1000
    for number in range(200):
        secured.talk("a", number)
    assert secured.transports["a"].backlog(Node("b")) > 500

    for _ in range(100):
        secured.round()

    assert secured.heard["b"] == list(range(200))


def test_with_certificates_requests_of_any_size_are_answered(secured):
    secured.start("a", "b")
    secured.tick(1.0)
    secured.transports["b"].serve("echo", lambda peer, payload, reply: reply(payload))

    asking = ask(secured, "a", "b", b"?" * 3_000_000)
    for _ in range(10):
        secured.round()

    assert asking.result() == (b"?" * 3_000_000, None)


def test_before_it_has_proved_itself_nobody_is_told_anything(secured):
    secured.start("a")
    connection = secured.net.dial(PORTS["a"])

    secured.tick(1.0)

    assert bytes(connection.inbox) == b""


@pytest.mark.parametrize(("with_tls", "without"), [("a", "b"), ("b", "a")])
def test_a_node_without_tls_and_one_with_it_each_say_so(ends, made, caplog, with_tls, without):
    ends.credentials = {with_tls: credentials_of(made / "ours" / with_tls, "test", with_tls)}
    ends.start("a", "b")

    ends.tick(4.0)

    assert not ends.connected()
    lines = "\n".join(refused(caplog))
    assert "it does not speak TLS, and this node does: all nodes need tls_cert, tls_key and tls_ca" in lines
    assert "it speaks TLS, and this node does not: all nodes need tls_cert, tls_key and tls_ca" in lines
    assert len(refused(caplog)) == 2
    assert any(line.startswith("refused 'a' at 127.0.0.1: ") for line in refused(caplog))  # by b, which dials


def test_nodes_with_certificates_of_different_cas_each_say_so(ends, made, caplog):
    ends.credentials = {
        "a": credentials_of(made / "ours" / "a", "test", "a"),
        "b": credentials_of(made / "other" / "b", "test", "b"),
    }
    ends.start("a", "b")

    ends.tick(4.0)

    assert not ends.connected()
    assert sorted(refused(caplog)) == [
        "refused 'a' at 127.0.0.1: its certificate was not issued by a CA in tls_ca: "
        "all nodes need certificates of their cluster's own CA",
        "refused a connection from 127.0.0.1: it does not trust this node's certificate: "
        "every node's tls_ca must hold the CA of all of them",
    ]


def test_a_stranger_without_a_certificate_is_refused(secured, made, caplog):
    secured.start("a")

    with pytest.raises(Exception, match="it does not accept this node's certificate"):
        Dialing(secured, None, made / "ours" / "ca" / "ca.pem")

    assert refused(caplog) == [
        "refused a connection from 127.0.0.1: it shows no certificate: only nodes may connect here"
    ]
    assert secured.heard["a"] == []


def test_a_node_may_not_take_the_name_of_another(secured, made, caplog):
    """Its certificate is in order, and it is another node's."""
    secured.start("a")
    dialing = Dialing(secured, made / "ours" / "z", made / "ours" / "ca" / "ca.pem")

    dialing.send(secured.greeting_of("b"))

    assert [message.reason for message in dialing.heard if isinstance(message, wire.Refused)] == [
        "it has the certificate of registry://test/node/z: give it its own"
    ]
    assert refused(caplog) == [
        "refused 'b' at 127.0.0.1: it has the certificate of registry://test/node/z: give it its own"
    ]
    assert not secured.connected()


def test_a_node_may_not_answer_at_the_address_of_another(secured, made, caplog):
    """ "b" dials "a", and finds somebody who has another node's certificate and says that it is "a"."""
    secured.credentials["a"] = credentials_of(made / "ours" / "z", "test", "z")
    secured.start("a", "b")

    secured.tick(1.0)

    assert not secured.connected()
    assert "refused 'a' at 127.0.0.1: it has the certificate of registry://test/node/z" in refused(caplog)[0]


def test_a_certificate_of_another_cluster_does_not_count_even_from_the_same_ca(secured, made, tmp_path, caplog):
    now = datetime.datetime.now(datetime.UTC)
    authority = certs._read_authority(made / "ours" / "ca", "test", now)
    assert authority is not None
    issued = certs._issue(authority, "prod", "b", now, now + datetime.timedelta(days=1))
    (tmp_path / "cert.pem").write_bytes(issued.pem())
    (tmp_path / "key.pem").write_bytes(issued.key_pem())
    secured.start("a")
    dialing = Dialing(secured, tmp_path, made / "ours" / "ca" / "ca.pem")

    dialing.send(secured.greeting_of("b"))

    assert not secured.connected()
    assert "it has the certificate of registry://prod/node/b" in refused(caplog)[0]


def test_with_certificates_idle_strangers_do_not_keep_a_peer_out(secured):
    secured.start("a")
    for number in range(CONNECTIONS_MAX * 2):
        stranger = secured.net.dial(PORTS["a"])
        if number % 2:
            stranger.send(b"\x16\x03\x01\x02\x00")
        secured.round()

    secured.start("b")
    secured.tick(1.0)

    assert secured.connected()
    assert len(secured.transports["a"]._links._connections) <= CONNECTIONS_MAX


def test_a_handshake_that_stops_halfway_is_closed(secured):
    secured.start("a")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    hello = Channel(context, accepted=False).outgoing()
    connection = secured.net.dial(PORTS["a"])
    connection.send(hello)

    secured.tick(HANDSHAKE_S - 1)
    assert not is_closed(connection)
    secured.tick(2.0)

    assert is_closed(connection)


def test_new_credentials_count_for_the_next_connection_and_those_that_stand_stay(secured, made, tmp_path):
    shutil.copytree(made / "ours" / "a", tmp_path / "a")
    secured.credentials["a"] = credentials_of(tmp_path / "a", "test", "a")
    secured.start("a", "b")
    secured.tick(1.0)
    for name in ("cert.pem", "key.pem"):
        shutil.copyfile(made / "other" / "a" / name, tmp_path / "a" / name)
    shutil.copyfile(made / "other" / "ca" / "ca.pem", tmp_path / "a" / "ca.pem")

    secured.credentials["a"].reload()
    secured.tick(1.0)
    stayed = secured.connected()
    secured.transports["a"].drop(Node("b"), "has to go, says the test")
    secured.tick(1.0)

    assert (stayed, secured.connected()) == (True, False)


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


def test_a_caller_that_is_gone_before_it_is_greeted_leaves_nothing_in_the_poller(ends):
    ends.start("a")
    (listener,) = ends.pollers["a"]._subscribed

    ends.net.dial(PORTS["a"]).close()
    ends.round()

    assert list(ends.pollers["a"]._subscribed) == [listener]
    assert ends.transports["a"]._links._connections == {}


def test_a_connection_on_which_nobody_talks_is_kept(ends):
    ends.start("a", "b")
    ends.tick(1.0)
    made = list(ends.changes)

    ends.tick(60.0)

    assert ends.changes == made
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
    ends.changes.clear()

    ends.transports["b"].drop(Node("a"), "has to go, says the test")
    ends.tick(1.0)

    assert sorted(ends.changes, key=lambda change: change[0]) == [
        ("a", "lost", "b"), ("a", "made", "b"), ("b", "lost", "a"), ("b", "made", "a"),
    ]  # fmt: skip
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
    monkeypatch.setattr(connection_module, "BACKLOG_BYTES_MAX", 1000)
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
    ends.start("a")
    ends.start("b", peers={"a": Endpoint("a.example", PORTS["a"])})

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

    transport._requests._pending = Slow()
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
    ends.transports["a"]._requests._pending[request.id].connection = object()

    first.send(wire.encode(wire.Answer(request.id, b"of another", "")))
    ends.round()

    assert not ends.transports["a"]._requests._pending[request.id].done.is_set()
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
    monkeypatch.setattr(requests, "REQUESTS_MAX", 2)
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
