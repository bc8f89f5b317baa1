"""Commands: one encoding for log, wire and tests, and what is not taken from the wire."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.checks import Check
from rollcall.replication.commands import (
    BATCH_MAX,
    COMMAND_BYTES_MAX,
    FORMAT,
    KEEP_LEVEL,
    LEVEL,
    OPERATIONS_MAX,
    Assign,
    Barrier,
    Batch,
    Begin,
    Command,
    Compare,
    Condemn,
    Condemned,
    Deregister,
    Envelope,
    Evict,
    Expired,
    Judgement,
    Lift,
    Raise,
    Readmit,
    Register,
    Report,
    Result,
    SetPolicy,
    SetStatus,
    decode,
    encode,
    from_peer,
    level_of,
    to_peer,
)
from rollcall.replication.errors import Fatal, Invalid, TooLarge
from rollcall.replication.levels import LEVELS
from rollcall.replication.policies import Policy
from rollcall.replication.records import Key, Registration

KEY = Key("default", "web", "a")
REGISTER = Register(Registration(service="web", id="a", tags=("x",), meta={"k": "v"}, ttl_s=30.0), if_absent=True)
FROM_CLIENTS = [
    REGISTER,
    Deregister(KEY),
    SetStatus("default", "web", "a", "draining", "kernel update"),
    SetStatus("default", "web", "a", None),
    Batch((REGISTER, Deregister(KEY))),
    SetPolicy("canary", Policy(service="web", percent=1.0, match={"version": "2"}), "ada", "try it"),
    SetPolicy("canary", None),
]
SECOND_LEVEL = [Raise(LEVEL), Raise(LEVEL + 1), Compare(9, "digest"), Readmit("node-1", "disk")]
CHECKED = Registration(service="web", id="a", checks=(Check(name="up", tcp="10.0.0.1:80"),))
THIRD_LEVEL = [
    Assign(("n1", "n2"), term=3),
    Report("n1", 7, (Result(KEY, 7, "up", "critical"),)),
    Condemn((Condemned(KEY, 7, "up", 9),), term=3),
]
FOURTH_LEVEL = [Begin("0123456789abcdef"), Lift((Expired(KEY, 7),), term=3)]
INTERNAL = [Evict((Judgement(KEY, 7),), term=3), Barrier(), *SECOND_LEVEL, *THIRD_LEVEL, *FOURTH_LEVEL]


@pytest.mark.parametrize("command", [*FROM_CLIENTS, *INTERNAL])
def test_the_log_gives_back_the_command_it_was_given(command: Command) -> None:
    envelope = Envelope(level_of(command), 1_700_000_000_000_000_000, command, "request-1")

    assert decode(encode(envelope)) == envelope


def test_every_command_has_the_level_of_the_release_that_brought_it() -> None:
    """A release of a lower level cannot read it, so this must never change for a command that is out."""
    levels = {type(command).__name__: level_of(command) for command in [*FROM_CLIENTS, *INTERNAL]}

    assert levels == {
        **dict.fromkeys(["Register", "Deregister", "SetStatus", "Batch", "Evict", "Barrier"], 1),
        **dict.fromkeys(["Raise", "Compare", "Readmit"], 2),
        **dict.fromkeys(["Assign", "Report", "Condemn", "SetPolicy"], 3),
        **dict.fromkeys(["Begin", "Lift"], 4),
    }
    assert level_of(Deregister(KEY, 7)) == level_of(SetStatus("default", "web", "a", "down", for_s=60.0)) == 4
    assert level_of(Register(CHECKED)) == level_of(Batch((REGISTER, Register(CHECKED)))) == 3
    assert b"checks" not in to_peer(REGISTER), "a release without checks refuses a field that it does not know"
    assert levels.keys() == {kind.__name__ for kind in Command.__args__}
    assert max(levels.values()) == max(LEVELS) == LEVEL
    assert FORMAT == min(LEVELS) == 1


@pytest.mark.parametrize("command", FROM_CLIENTS)
def test_a_peer_gets_the_command_that_was_forwarded(command: Any) -> None:
    assert from_peer(to_peer(command)) == command


@pytest.mark.parametrize("command", INTERNAL)
def test_internal_commands_are_not_taken_from_the_wire(command: Any) -> None:
    with pytest.raises(Invalid):
        from_peer(msgspec.msgpack.encode(command))


def test_an_eviction_cannot_hide_in_a_batch_from_the_wire() -> None:
    smuggled = {"type": "batch", "operations": [{"type": "evict", "judged": [], "term": 1}]}

    with pytest.raises(Invalid):
        from_peer(msgspec.msgpack.encode(smuggled))


def test_a_command_over_the_limit_is_refused_before_it_is_proposed() -> None:
    one = Register(Registration(service="web", id="a", meta={"k": "v" * 8_000}))
    batch = Batch((one,) * (COMMAND_BYTES_MAX // 8_000 + 1))

    with pytest.raises(TooLarge) as caught:
        encode(Envelope(FORMAT, 0, batch))

    assert caught.value.facts["limit"] == COMMAND_BYTES_MAX


@pytest.mark.parametrize("count", [0, OPERATIONS_MAX + 1])
def test_a_batch_from_a_peer_has_operations_and_not_too_many(count: int) -> None:
    with pytest.raises(Invalid, match="operations"):
        from_peer(to_peer(Batch((Deregister(KEY),) * count)))


def test_a_batch_that_an_earlier_release_lets_in_is_read_from_the_log_and_taken_while_there_are_such_members() -> None:
    """It is applied in one go, and no heartbeat leaves meanwhile: so no longer than that."""
    large = Batch((Deregister(KEY),) * (BATCH_MAX + 1))

    with pytest.raises(TooLarge, match="at most 500, got 501"):
        from_peer(to_peer(large))
    assert from_peer(to_peer(large), level=KEEP_LEVEL - 1) == large
    assert decode(encode(Envelope(FORMAT, 0, large))).command == large


@pytest.mark.parametrize("command", [{"type": "barrier"}, {"type": "of a later version"}])
def test_a_newer_format_stops_a_node_that_does_not_know_it(command: dict[str, str]) -> None:
    """Passed over, it would leave this node with another state than the nodes that understand it."""
    data = msgspec.msgpack.encode({"format": LEVEL + 1, "time_ns": 0, "command": command})

    with pytest.raises(Fatal, match="upgrade"):
        decode(data)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_command_are_invalid_and_nothing_else(data: bytes) -> None:
    for read in (decode, from_peer):
        with pytest.raises(Invalid):
            read(data)


@given(st.data())
def test_a_command_with_a_flipped_byte_is_invalid_or_another_command(data: st.DataObject) -> None:
    good = bytearray(encode(Envelope(FORMAT, 5, Batch((REGISTER, Deregister(KEY))), "request-1")))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode(bytes(good))
    except (Invalid, Fatal):  # Fatal where the byte is the format's
        return

    assert decode(encode(decoded)) == decoded
