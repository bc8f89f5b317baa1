"""Whatever the node says to its log and to other nodes fits: commands of its own, and rounds of questions."""

import threading
import time

import msgspec
import pytest
from harness.waiting import wait_for
from rollcall.node import peers, rounds
from rollcall.node.checks import checker
from rollcall.node.leader import eviction, judging
from rollcall.node.leader.renewals import Renewal
from rollcall.node.service import HEARTBEATS_AT_ONCE
from rollcall.replication.commands import (
    COMMAND_BYTES_MAX,
    Command,
    Condemn,
    Condemned,
    Evict,
    Judgement,
    Report,
    Result,
    encode,
    sealed,
)
from rollcall.replication.network import wire
from rollcall.replication.records import ID_LENGTH_MAX, Key

LAST = 2**63 - 1
LONGEST = Key("e" * 128, "s" * 128, "😀" * ID_LENGTH_MAX)
CHECK = "c" * 64


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(Evict((Judgement(LONGEST, LAST),) * eviction.JUDGED_MAX, LAST), id="evictions"),
        pytest.param(
            Condemn((Condemned(LONGEST, LAST, CHECK, LAST),) * judging.CHECKED_MAX, LAST), id="what is condemned"
        ),
        pytest.param(
            Report("n" * 64, LAST, (Result(LONGEST, LAST, CHECK, "critical"),) * checker.RESULTS_MAX), id="results"
        ),
    ],
)
def test_what_a_node_proposes_by_itself_fits_however_long_the_ids_are(command: Command) -> None:
    """What does not would be tried again for ever: nobody evicted, nothing reported."""
    data = encode(sealed(command, LAST, level=4))

    assert len(data) < COMMAND_BYTES_MAX


@pytest.mark.parametrize("key", [LONGEST, Key("e", "s", "i"), Key("default", "cart", "é" * 40)])
def test_a_heartbeat_takes_no_more_in_a_message_than_is_counted(key: Key) -> None:
    renewals = [Renewal(key, LAST)] * 100

    assert len(peers.RENEW.question(renewals)) <= peers.renewals_bytes(renewals)


def test_a_round_of_heartbeats_fits_in_a_frame_however_many_ask() -> None:
    """One that does not would be an error for everybody in it, and for whoever asks again."""
    sent: list[int] = []
    began, go = threading.Event(), threading.Event()

    def send(asked: list[tuple[Renewal, ...]], deadline: float) -> list[int]:
        flat = [renewal for renewals in asked for renewal in renewals]
        sent.append(len(wire.encode(wire.Request(1, peers.RENEW.name, peers.RENEW.question(flat)))))
        began.set()
        assert go.wait(10)
        return [len(renewals) for renewals in asked]

    gathered = rounds.Rounds(send, peers.renewals_bytes, len)
    many = (Renewal(LONGEST, LAST),) * (HEARTBEATS_AT_ONCE // 2)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(gathered.ask(many, time.monotonic() + 10))) for _ in range(12)
    ]
    threads[0].start()
    assert began.wait(10)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(gathered._waiting) == 11, "the others to wait")
    go.set()
    for thread in threads:
        thread.join(10)

    assert answers == [HEARTBEATS_AT_ONCE // 2] * 12
    assert len(sent) < 12, "they share rounds all the same"
    assert max(sent) < wire.FRAME_BYTES_MAX


def test_the_answer_to_the_largest_write_fits_in_a_frame() -> None:
    """A batch names what each of its operations did."""
    kinds = ("replaced",) * 10_000
    answered = msgspec.msgpack.encode(peers.Answered(outcome=peers.Outcome(LAST, kinds)))

    assert len(wire.encode(wire.Answer(LAST, answered, ""))) < wire.FRAME_BYTES_MAX / 8
