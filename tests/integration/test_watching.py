"""Watchers outlive the node that they watch: nothing missed, nothing twice, or told that it is too late."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from harness.cluster import Cluster, Line, Measured, StartCluster, instance_path
from harness.traffic import LEDGER, NO_ANSWER, Client, Ledger, Traffic, Writer
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

FEED_EVENTS = 2000
MARKER = "marker"
"""A service of which each test registers one instance, to see that watchers have come so far."""
FOLLOWED = f"service={LEDGER}&service={MARKER}"


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3, watch_events_max=FEED_EVENTS)


class Watcher(Client):
    """Follows a service from an index on, at one node until that fails, then at the next."""

    def __init__(self, cluster: Cluster, first: int, index: int, query: str = FOLLOWED) -> None:
        super().__init__(f"{type(self).__name__}-{first}")
        self._cluster = cluster
        self._at = first
        self._query = query
        self.index = index
        self.moves = 0
        self.events: list[dict[str, Any]] = []
        self.unexpected: list[str] = []

    def move(self) -> None:
        self.moves += 1
        self._at = (self._at + 1) % self._cluster.nodes
        self._over.wait(0.05)


class Poller(Watcher):
    """By long poll."""

    def __init__(self, cluster: Cluster, first: int, index: int, query: str = FOLLOWED) -> None:
        super().__init__(cluster, first, index, query)
        self._line = Line(cluster.url(first))

    def turn(self) -> None:
        try:
            answer = self._line.ask("GET", f"/api/v1/watch?index={self.index}&wait=1s&{self._query}")
        except NO_ANSWER:
            answer = None
        if answer is None or answer.status == 503:
            self.move()
            self._line.close()
            self._line = Line(self._cluster.url(self._at))
        elif answer.status == 200:
            self.events += answer.json["events"]
            self.index = answer.json["index"]
        elif answer.status == 304:
            self.index = answer.index
        else:
            self.unexpected.append(f"{answer.status} {answer.body[:200]!r}")

    def hang_up(self) -> None:
        self._line.close()


class Streamer(Watcher):
    """By event stream, resumed with ``Last-Event-ID`` as a browser does."""

    _socket: socket.socket | None = None

    def __init__(self, cluster: Cluster, first: int, index: int, query: str = FOLLOWED) -> None:
        super().__init__(cluster, first, index, query)
        self._last_event_id = str(index)

    def turn(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._cluster.port + self._at, timeout=15.0)
        try:
            connection.connect()
            self._socket = connection.sock
            for id, kind, data in stream(connection, f"/api/v1/watch?{self._query}", self._last_event_id):
                index = int(id.rpartition("-")[2])
                if kind == "message":
                    assert {event["index"] for event in data["events"]} == {index}, "one message holds one index"
                    self.events += data["events"]
                elif kind != "progress":
                    self.unexpected.append(f"{kind}: {data}")
                self.index, self._last_event_id = index, id
                if self._over.is_set():
                    return
        except NO_ANSWER:
            pass
        finally:
            self._socket = None
            connection.close()
        self.move()

    def leave(self) -> None:
        """Hangs up: a quiet stream would keep the thread for long."""
        super().leave()
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


def stream(connection: http.client.HTTPConnection, path: str, after: str) -> Iterator[tuple[str, str, Any]]:
    """Messages of an event stream: id, kind, data. Ends when the node ends it."""
    connection.request("GET", path, headers={"Accept": "text/event-stream", "Last-Event-ID": after})
    answer = connection.getresponse()
    if answer.status != 200:
        answer.read()
        return
    fields: dict[str, str] = {}
    while line := answer.readline():
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif fields:
            yield fields.get("id", ""), fields.get("event", "message"), msgspec.json.decode(fields["data"])
            fields = {}


@pytest.mark.parametrize("victim", ["follower", "leader"])
def test_watchers_miss_and_repeat_nothing_when_their_node_dies(three: Cluster, measured: Measured, victim: str):
    leader = three.wait_for_leader()
    killed = leader if victim == "leader" else three.followers()[0]
    others = [i for i in range(3) if i != killed]
    start = three.view(killed)["applied_index"]
    ledger = Ledger()
    watchers: list[Watcher] = [Poller(three, killed, start), Streamer(three, killed, start)]
    watchers += [Poller(three, others[0], start), Streamer(three, others[1], start)]
    writers = [Writer(three, i, ledger, name=f"{victim}-{i}", rest_s=0.01) for i in others]

    with Traffic(*watchers):
        with Traffic(*writers):
            wait_for(lambda: all(len(watcher.events) > 20 for watcher in watchers), "events to reach every watcher")
            three.kill(killed)
            count = len(ledger.acknowledged)
            wait_for(lambda: len(ledger.acknowledged) > count + 50, "writes to go on")
            three.restart(killed)
            count = len(ledger.acknowledged)
            wait_for(lambda: len(ledger.acknowledged) > count + 20, "writes to go on")
        end = three.register(others[0], MARKER, f"m-{victim}")
        wait_for(
            lambda: all(watcher.index >= end for watcher in watchers),
            lambda: f"all watchers to be at {end}: {[(watcher.name, watcher.index) for watcher in watchers]}",
        )

    path = f"/api/v1/services/{LEDGER}/instances?health=any&min_index={end}"
    happened = sorted(
        (instance["create_index"], instance["id"])
        for instance in three.get(others[0], path).json["instances"]
        if instance["create_index"] > start
    )
    measured(f"watch across the death of a {victim}: {len(happened)} events, moves {[w.moves for w in watchers]}")
    for watcher in watchers:
        assert not watcher.unexpected, watcher.unexpected[:3]
        told = [(event["index"], event["instance"]["id"]) for event in watcher.events]
        assert told == [*happened, (end, f"m-{victim}")], watcher.name
        assert {event["kind"] for event in watcher.events} == {"REGISTER"}
    assert {id for _, id in happened} >= ledger.acknowledged.keys()


def test_a_watcher_of_another_service_moves_on_without_events(three: Cluster):
    start = three.view(0)["applied_index"]
    last = max(three.register(1, "loud", f"l{number}") for number in range(5))
    three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= last, f"index {last}")

    answer = three.get(0, f"/api/v1/watch?index={start}&wait=100ms&service=quiet")

    assert answer.status == 304
    assert answer.index >= last


def test_every_kind_of_change_is_told_by_its_name(three: Cluster):
    start = three.view(0)["applied_index"]
    path = instance_path("kinds", "k1")
    three.register(0, "kinds", "k1")
    three.register(1, "kinds", "k1", version="2")
    three.ask(2, "PUT", f"{path}/status", {"status": "down", "reason": "test"})
    three.ask(0, "DELETE", f"{path}/status")
    end = three.ask(1, "DELETE", path).index

    for i in range(3):
        wait_for(lambda i=i: three.view(i)["applied_index"] >= end, f"node {i} to reach {end}")
        events = three.get(i, f"/api/v1/watch?index={start}&service=kinds&wait=1s").json["events"]
        kinds = [event["kind"] for event in events]
        assert kinds == ["REGISTER", "UPDATE", "STATUS_CHANGE", "STATUS_CHANGE", "DEREGISTER"]
        indexes = [event["index"] for event in events]
        assert indexes == sorted(indexes)


def test_an_index_older_than_the_feed_is_gone_on_every_node_poll_and_stream(three: Cluster):
    start = three.view(0)["applied_index"]
    end = 0
    for turn in range(5):
        end = three.register_many(0, "flood", [f"f{turn}-{number}" for number in range(FEED_EVENTS // 4)])
    three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= end, f"index {end}")

    for i in range(3):
        gone = three.get(i, f"/api/v1/watch?index={start}&wait=5s")
        assert (gone.status, gone.json["code"]) == (410, "Gone")
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(start)}
        assert three.get(i, "/api/v1/watch", headers=headers).status == 410
        # Loading anew gives an index that can be watched from.
        listed = three.get(i, "/api/v1/services/flood/instances?health=any")
        assert three.get(i, f"/api/v1/watch?index={listed.index}&wait=50ms").status == 304


def test_polls_and_streams_parked_on_a_node_that_stops_return_at_once(three: Cluster):
    node = three.followers()[0]
    index = three.view(node)["applied_index"]
    watchers = [Poller(three, node, index, "service=nobody"), Streamer(three, node, index, "service=nobody")]
    with Traffic(*watchers):
        wait_for(lambda: three.gauge(node, "rollcall_watchers") == 2, "both to be parked")

        code = three.terminate(node, timeout_s=5.0)

        assert code == 0
        wait_for(lambda: all(watcher.moves for watcher in watchers), "both to be sent on")
        three.restart(node)
    assert not [said for watcher in watchers for said in watcher.unexpected]
