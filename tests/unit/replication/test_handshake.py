"""Who may be a peer, and which stranger goes first: values in, decisions out."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs
from rollcall.replication.network.handshake import PING_S, STRANGERS_S, Handshake, Strangers, first_to_go
from rollcall.replication.network.wire import Hello

OURS = Handshake("b", ["a", "c"], cluster="test", agreement={"ttl": "30", "same": "1"})


def hello_of(node: str, **other: Any) -> Hello:
    peers = {"a", "b", "c"} - {node}
    return structs.replace(Handshake(node, peers, cluster="test", agreement={}).hello, **other)


def connection(**facts: Any) -> Any:
    usual = {"uris": None, "dialed": None, "peer": None, "spoke": True, "incarnation": 0, "opened_at": 0.0}
    return SimpleNamespace(**{**usual, "heard_at": 0.0, **facts})


@pytest.mark.parametrize(
    ("hello", "caller", "kind"),
    [
        (hello_of("c"), connection(), ""),
        (hello_of("a"), connection(dialed="a"), ""),
        (hello_of("a"), connection(), "direction"),
        (hello_of("c"), connection(dialed="a"), "address"),
        (hello_of("c", version=2), connection(), "version"),
        (hello_of("c", cluster="prod"), connection(), "cluster"),
        (hello_of("c", members="0"), connection(), "members"),
        (hello_of("b"), connection(), "own name"),
        (hello_of("z"), connection(), "member"),
        (hello_of("c"), connection(uris=("registry://test/node/c",)), ""),
        (hello_of("c"), connection(uris=("registry://test/node/a",)), "certificate"),
    ],
)
def test_a_caller_is_a_peer_or_there_is_a_reason(hello: Hello, caller: Any, kind: str):
    found, why = OURS.objection(hello, caller, None, 100.0)

    assert (found, bool(why)) == (kind, bool(kind))


@pytest.mark.parametrize(("silent_s", "incarnation", "kind"), [(0.0, 1, "twice"), (2 * PING_S, 1, ""), (0.0, 2, "")])
def test_a_name_is_one_process_at_a_time_unless_the_first_fell_silent(silent_s: float, incarnation: int, kind: str):
    present = connection(peer="c", incarnation=incarnation, heard_at=100.0 - silent_s)

    assert OURS.objection(hello_of("c", incarnation=2), connection(), present, 100.0)[0] == kind


def test_of_two_nodes_the_greater_dials():
    assert (OURS.dials("a"), OURS.dials("c")) == (True, False)


def test_settings_that_differ_are_named_and_unknown_ones_are_not():
    assert OURS.differences(hello_of("c", agreement={"ttl": "60", "same": "1", "new": "x"})) == (
        "ttl is 60 there and 30 here"
    )


def test_strangers_have_a_share_of_each_tick():
    strangers = Strangers()
    strangers.spend(STRANGERS_S)
    spent = strangers.may_speak
    strangers.begin_tick()

    assert (spent, strangers.may_speak) == (False, True)


def test_neither_a_peer_nor_who_was_dialed_makes_room():
    held = [connection(peer="c"), connection(dialed="a")]

    assert first_to_go(held, lambda each: False) is None
    stranger = connection()
    assert first_to_go([*held, stranger], lambda each: False) is stranger
