"""SIGTERM: a node leaves so that no client loses an answer, and leadership with it."""

import signal
import threading
import time

import pytest
from harness.cluster import ALONE, Cluster, Line, Measured, StartCluster, ask
from harness.traffic import LEDGER, NO_ANSWER, PLAIN, Client, Heartbeats, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for
from rollcall.cluster.client import Client as Sdk
from rollcall.replication.errors import RollcallError

pytestmark = pytest.mark.integration

LEASE_S = 2.0
STOP_S_MAX = 20.0
"""Generous, for a busy machine; what it really was is printed."""


def test_the_leader_told_to_stop_under_load_finishes_what_it_began_and_hands_over(three: Cluster, measured: Measured):
    leader = three.wait_for_leader()
    others = [i for i in range(3) if i != leader]
    ledger = Ledger()
    readers = [Reader(three, i, {"p1", "p2", "p3"}) for i in others]
    with Traffic(*readers, *(Writer(three, i, ledger) for i in (0, 1, 2, leader, leader))):
        wait_for(lambda: len(ledger.acknowledged) > 200, "200 acknowledged writes")
        began = time.monotonic()
        code = three.terminate(leader, timeout_s=STOP_S_MAX)
        stopped_s = time.monotonic() - began
        wait_for(lambda: len(ledger.since(began + stopped_s)) > 50, "writes to go on elsewhere")
        pause_s = ledger.pause_s(began)
        over = time.monotonic()

    measured(
        f"leader stopped by SIGTERM under load: exit after {stopped_s:.2f} s, "
        f"longest pause of all writes {pause_s * 1000:.0f} ms, "
        f"longest read gap elsewhere {max(reader.gap_s(began, over) for reader in readers) * 1000:.0f} ms; {ledger}"
    )
    assert code == 0
    assert not [failure for reader in readers for failure in reader.failures]
    assert "leadership handed over" in three.log(leader), "and not waited for"
    ledger.compare(three)
    three.restart(leader)
    three.wait_same()
    ledger.compare(three)


def test_leadership_goes_on_request_to_each_node_in_turn_while_others_write(three: Cluster, measured: Measured):
    leader = three.wait_for_leader()
    ledger = Ledger()
    pauses: list[float] = []
    with Traffic(*(Writer(three, i, ledger) for i in range(3))):
        for to in (*(i for i in range(3) if i != leader), leader):
            began = time.monotonic()
            # Any node takes the request, the one that is to lead too.
            answer = three.ask((to + len(pauses)) % 3, "POST", f"/api/v1/cluster/transfer?to={three.node_id(to)}")
            assert (answer.status, answer.json) == (200, {"leader": three.node_id(to)})
            wait_for(lambda began=began: len(ledger.since(began)) > 50, "writes to go on")
            assert three.wait_for_leader() == to
            pauses.append(ledger.pause_s(began))
        refused = three.ask(0, "POST", "/api/v1/cluster/transfer?to=stranger")
        assert (refused.status, refused.json["field"]) == (400, "to")

    shown = ", ".join(f"{pause_s * 1000:.0f}" for pause_s in pauses)
    measured(f"leadership handed over on request under load: longest pauses of all writes {shown} ms; {ledger}")
    ledger.compare(three)


def test_who_is_dead_goes_however_often_leadership_is_handed_over_and_who_lives_stays(three: Cluster):
    """Each new leader would begin its lease anew."""
    ids = [f"i{number}" for number in range(8)]
    three.register_many(0, "cart", ids, ttl_s=LEASE_S)
    beats = Heartbeats(three, "cart", ids, period_s=0.2)
    with Traffic(beats):
        wait_for(lambda: beats.rounds >= 3, "heartbeats through every node")
        beats.silence("i0")
        began, moved = time.monotonic(), 0
        # Three leases more than it may take, should nothing be handed on.
        while "i0" in three.ids(0, "cart") and time.monotonic() < began + 6 * LEASE_S:
            moved += three.ask(0, "POST", "/api/v1/cluster/transfer").status == 200
            time.sleep(LEASE_S / 2)  # how often it is asked for
        assert "i0" not in three.ids(0, "cart"), f"it stayed while leadership was handed over {moved} times"
        assert moved >= 2
        assert three.ids(0, "cart") == {*ids[1:]}
    assert not beats.lost
    operations = [{"op": "deregister", "service": "cart", "id": id} for id in ids[1:]]
    assert three.ask(0, "POST", "/api/v1/batch", {"operations": operations}).status == 200


def test_a_leader_that_is_stopped_tells_the_next_how_leases_stood_before_it_ends(three: Cluster):
    leader = three.wait_for_leader()
    three.register_many(leader, "kept", ["k1"], ttl_s=60.0)
    told = "1 leases go on as they stood"

    def heard() -> int:
        return sum(three.log(i).count(told) for i in range(3))

    before = heard()
    assert three.terminate(leader, timeout_s=STOP_S_MAX) == 0

    assert heard() == before + 1
    three.restart(leader)
    assert three.ask(0, "DELETE", "/api/v1/services/kept/instances/k1").status in (200, 204)


def test_a_draining_node_says_so_and_takes_nothing_new_before_it_closes(three: Cluster):
    """A write that cannot end (the others are frozen) keeps the door open long enough to look."""
    leader = three.wait_for_leader()
    others = [i for i in range(3) if i != leader]
    watching, writing = Line(three.url(leader)), Writer(three, leader, Ledger(), rest_s=10.0)
    try:
        assert watching.ask("GET", "/readyz").status == 200
        for i in others:
            three.pause(i)
        with Traffic(writing):
            wait_for(lambda: three.gauge(leader, 'rollcall_budget_in_use{kind="write"}') >= 1, "a write under way")
            ended: list[int] = []
            stopper = threading.Thread(target=lambda: ended.append(three.terminate(leader, timeout_s=STOP_S_MAX)))
            stopper.start()

            wait_for(lambda: watching.ask("GET", "/readyz").status == 503, "/readyz to say 503", every_s=0.001)
            assert "shutting down" in watching.ask("GET", "/readyz").json["detail"]
            refused = watching.ask("PUT", "/api/v1/services/late/instances/l1", {"address": "10.0.0.1", "port": 80})
            assert (refused.status, refused.json["outcome"]) == (503, "not_done")
            assert watching.ask("GET", "/api/v1/watch?index=1&wait=5s").status in (410, 503)
            assert watching.ask("GET", f"/api/v1/services/{PLAIN}/instances").status == 200, "reads go on to the end"
            assert watching.ask("GET", "/healthz").status == 200

            stopper.join(STOP_S_MAX)
            assert ended == [0], "even with a write that cannot end"
    finally:
        watching.close()
        for i in others:
            three.resume(i)
    three.restart(leader)
    held = three.get(leader, "/api/v1/services/late/instances?health=any&consistency=linearizable")
    assert held.json["instances"] == []
    three.wait_same()


def test_a_node_alone_and_a_follower_stop_without_waiting_for_anything(three: Cluster, start_cluster: StartCluster):
    """They might wait for four times as long as they are given here."""
    patient = ("--drain-timeout-s", f"{4 * STOP_S_MAX}")
    follower = three.followers()[0]
    three.restart(follower, *patient)
    assert three.terminate(follower, timeout_s=STOP_S_MAX) == 0
    three.restart(follower)

    one = start_cluster(1, **ALONE)
    one.restart(0, *patient)
    assert one.terminate(0, timeout_s=STOP_S_MAX) == 0


class SdkWriter(Client):
    """Registers through the SDK, which goes to another node by itself: nothing may reach its caller."""

    def __init__(self, sdk: Sdk, number: int) -> None:
        super().__init__(f"sdk-{number}")
        self.rest_s = 0.005
        self._sdk = sdk
        self.acknowledged: list[str] = []
        self.slowest_s = 0.0
        self.errors: list[str] = []

    def turn(self) -> None:
        id = f"{self.name}-{len(self.acknowledged)}-{len(self.errors)}"
        began = time.monotonic()
        try:
            self._sdk.register(LEDGER, id=id, address="10.0.0.1", port=80, ttl_s=None)
            assert self._sdk.instance(LEDGER, id).id == id, "its own write is visible to it"
        except RollcallError as error:
            self.errors.append(repr(error))
        else:
            self.acknowledged.append(id)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def test_a_rolling_restart_is_not_noticed_by_clients_that_try_other_nodes(three: Cluster, measured: Measured):
    with three.client() as first, three.client() as second:
        writers = [SdkWriter(first, 1), SdkWriter(second, 2)]
        with Traffic(*writers):
            for i in range(3):
                done = sum(len(writer.acknowledged) for writer in writers)
                three.restart(i)
                wait_for(
                    lambda done=done: sum(len(writer.acknowledged) for writer in writers) > done + 40,
                    f"writes to go on after the restart of node {i}",
                )

    errors = [error for writer in writers for error in writer.errors]
    acknowledged = {id for writer in writers for id in writer.acknowledged}
    measured(
        f"rolling restart of three under two SDK clients: {len(acknowledged)} registrations, {len(errors)} errors, "
        f"slowest registration {max(writer.slowest_s for writer in writers):.2f} s"
    )
    assert not errors, errors[:3]
    three.wait_same()
    for i in range(3):
        assert three.ids(i, LEDGER) >= acknowledged


def test_a_second_signal_ends_a_draining_node_at_once(three: Cluster):
    """For an operator who will not wait. The others go on, and the node comes back."""
    leader = three.wait_for_leader()
    others = [i for i in range(3) if i != leader]
    with Traffic(Writer(three, leader, Ledger(), rest_s=10.0)):
        for i in others:
            three.pause(i)
        try:
            ended: list[int] = []
            ask_drain = threading.Thread(target=lambda: ended.append(three.terminate(leader, timeout_s=STOP_S_MAX)))
            ask_drain.start()
            wait_for(lambda: _refuses(three.url(leader)), "the node to drain", every_s=0.002)
            pid = three.pid(leader)
            assert pid is not None, "the drain was over too soon to be interrupted"
            three._signal(leader, signal.SIGTERM)
            ask_drain.join(STOP_S_MAX)
            assert ended == [128 + 15], "one that has drained exits with 0"
        finally:
            for i in others:
                three.resume(i)
    three.restart(leader)
    three.wait_same()


def _refuses(url: str) -> bool:
    try:
        return ask(url, "GET", "/readyz", timeout_s=1.0).status == 503
    except NO_ANSWER:
        return True
