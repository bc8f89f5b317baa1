"""The simulated network by itself: what arrives where, when, and who learns that a connection ended."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from pysyncobj.node import Node
from rollcall.replication.network import wire

from simulation.network import NEVER, SimNetwork, Surroundings

LATENCY_S = 0.01
SILENCE_S = 1.0


class Host:
    """A process that keeps what it is told."""

    def __init__(self, node: str) -> None:
        self.id: str = node
        self.hello: wire.Hello = wire.Hello(wire.VERSION, "test", node, "", 0, {})
        self.told: list[str] = []
        self.objection: str = ""

    def hello_for(self, peer: str) -> wire.Hello:
        return self.hello

    def greeted(self, hello: wire.Hello) -> str:
        return self.objection

    def on_connected(self, node: Node) -> None:
        self.told.append(f"up {node.id}")

    def on_disconnected(self, node: Node) -> None:
        self.told.append(f"down {node.id}")


class Hosts:
    """Two hosts, the network between them, and a clock."""

    def __init__(self) -> None:
        self.now: float = 0.0
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self.network: SimNetwork = SimNetwork(
            ("a", "b"),
            random.Random(1),
            Surroundings(now=lambda: self.now, later=self._later, wake=lambda node, at: None, act=self._act),
            latency_s=LATENCY_S,
            silence_s=SILENCE_S,
            redial_s=0.1,
        )
        self.a, self.b = Host("a"), Host("b")
        for host in (self.a, self.b):
            self.network.join(host)  # pyright: ignore[reportArgumentType]
        self.run(0.2)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._alarms.append((self.now + seconds, action))

    def _act(self, node: str, action: Callable[[], Any]) -> Any:
        return action()

    def run(self, seconds: float) -> None:
        """Lets time pass, and both hosts read what arrived."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.005
            for alarm in [alarm for alarm in self._alarms if alarm[0] <= self.now]:
                self._alarms.remove(alarm)
                alarm[1]()
            for host in (self.a, self.b):
                if host.id in self.network._joined and host.id not in self.network._frozen:
                    for source, message in self.network.fetch(host.id):
                        host.told.append(f"{message.term} of {source}")
                    self.network.hang_up(host.id)

    def send(self, term: int) -> None:
        self.network.send("a", "b", wire.encode(wire.RequestVoteResponse(term)))


@pytest.fixture
def hosts() -> Hosts:
    hosts = Hosts()
    assert hosts.a.told == ["up b"]
    assert hosts.b.told == ["up a"]
    hosts.a.told.clear()
    hosts.b.told.clear()
    return hosts


def test_messages_arrive_in_order_and_not_at_once(hosts: Hosts) -> None:
    for term in range(5):
        hosts.send(term)

    assert hosts.network.fetch("b") == []
    assert hosts.network.next_arrival("b") > hosts.now
    hosts.run(0.1)
    assert hosts.b.told == [f"{term} of a" for term in range(5)]
    assert hosts.network.next_arrival("b") == NEVER


def test_behind_a_block_messages_wait(hosts: Hosts) -> None:
    hosts.network.block(1, [("a", "b")], lose=False)
    hosts.send(1)
    hosts.run(0.5)
    assert hosts.b.told == []

    hosts.network.unblock(1)
    hosts.run(0.1)

    assert hosts.b.told == ["1 of a"]


def test_or_they_are_lost(hosts: Hosts) -> None:
    hosts.network.block(1, [("a", "b")], lose=True)
    hosts.send(1)
    hosts.network.unblock(1)
    hosts.send(2)
    hosts.run(0.1)

    assert hosts.b.told == ["2 of a"]


def test_what_is_said_once_on_a_connection_is_not_lost_and_not_late(hosts: Hosts) -> None:
    """A node that says anew how it stands says so once: TCP brings that, in its place, while the connection lasts."""
    hosts.network.lose(1, ("a", "b"), 1.0)
    hosts.network.stray(("a", "b"), 1, 1.0)
    hosts.network.block(2, [("a", "b")], lose=True)
    hosts.network.send("a", "b", wire.encode(hosts.a.hello))
    hosts.send(1)
    hosts.run(0.3)
    assert hosts.network.fetch("b") == []

    hosts.network.heal()
    hosts.now += 0.1
    assert hosts.network.fetch("b") == [("a", hosts.a.hello)]


def test_of_two_blocks_the_last_to_end_counts(hosts: Hosts) -> None:
    hosts.network.block(1, [("a", "b")], lose=False)
    hosts.network.block(2, [("a", "b")], lose=False)
    hosts.send(1)
    hosts.network.unblock(1)
    hosts.run(0.1)
    assert hosts.b.told == []

    hosts.network.unblock(2)
    hosts.run(0.1)

    assert hosts.b.told == ["1 of a"]


def test_silence_ends_a_connection_for_who_hears_nothing_and_then_for_the_other(hosts: Hosts) -> None:
    hosts.network.block(1, [("a", "b")], lose=False)
    hosts.run(SILENCE_S * 0.9)
    assert hosts.b.told == []

    hosts.run(SILENCE_S * 0.2)

    assert hosts.b.told == ["down a"]
    assert hosts.a.told == ["down b"]
    hosts.network.unblock(1)
    hosts.run(0.3)
    assert (hosts.a.told[-1], hosts.b.told[-1]) == ("up b", "up a")


def test_a_process_that_ends_is_noticed_after_what_it_sent(hosts: Hosts) -> None:
    hosts.send(1)
    hosts.network.leave("a")
    hosts.run(0.1)

    assert hosts.b.told == ["1 of a", "down a"]
    assert hosts.network.statuses("b", [Node("a")])[0].down


def test_a_host_without_power_says_nothing(hosts: Hosts) -> None:
    hosts.network.leave("a", power=True)
    hosts.run(SILENCE_S * 0.9)
    assert hosts.b.told == []
    assert not hosts.network.statuses("b", [Node("a")])[0].down

    hosts.run(SILENCE_S * 0.2)

    assert hosts.b.told == ["down a"]


def test_a_frozen_process_reads_what_came_meanwhile_and_then_that_it_ended(hosts: Hosts) -> None:
    hosts.network.freeze("b")
    hosts.send(1)
    hosts.run(0.1)
    hosts.network.leave("a")
    hosts.run(0.1)
    assert hosts.b.told == []

    hosts.network.thaw("b")
    hosts.run(0.1)

    assert hosts.b.told == ["1 of a", "down a"]


def test_nothing_of_an_old_connection_arrives_on_a_new_one(hosts: Hosts) -> None:
    hosts.network.slow(1, ("a", "b"), 5.0)
    hosts.send(1)
    hosts.network.slow(1, ("a", "b"), None)
    hosts.network.reset("a", "b")
    hosts.run(0.5)
    hosts.send(2)
    hosts.run(10.0)

    assert hosts.b.told == ["down a", "up a", "2 of a"]


def test_but_a_stray_message_does(hosts: Hosts) -> None:
    hosts.network.stray(("a", "b"), 1, 1.0)
    hosts.send(1)
    hosts.network.reset("a", "b")
    hosts.run(0.15)
    hosts.send(2)
    hosts.run(1.5)

    assert hosts.b.told == ["down a", "up a", "2 of a", "1 of a"]


def test_an_end_that_objects_is_not_connected(hosts: Hosts) -> None:
    hosts.b.objection = "no"
    hosts.network.reset("a", "b")
    hosts.run(0.5)

    assert (hosts.a.told, hosts.b.told) == (["down b"], ["down a"])
    hosts.b.objection = ""
    hosts.run(0.3)
    assert (hosts.a.told[-1], hosts.b.told[-1]) == ("up b", "up a")
