"""Feature levels, so that two releases can work side by side; and the digests that catch a replica that differs."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.facts import set_facts
from harness.members import Refused, run
from harness.ours import EngineMember, state_file
from harness.raft import ROUND_S, Clock, Cluster, command, hello_of, is_done
from harness.sides import OurSide
from msgspec import structs
from pysyncobj.node import Node
from rollcall.replication.commands import (
    LEVEL,
    Command,
    Compare,
    Envelope,
    Raise,
    Readmit,
    decode,
    encode,
    level_of,
)
from rollcall.replication.errors import Fatal, NotDone
from rollcall.replication.network import wire
from rollcall.replication.network.dialing import RETRY_S
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft import upkeep as upkeep_module
from rollcall.replication.storage.journal import REGULAR

OLDER = LEVEL - 1
NEWER = LEVEL + 1


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A node "a"; the test plays its peers "b" and "c"."""
    return ours.member()


class Mixed(Cluster):
    """Engines of several releases: ``start`` takes the level that the node understands."""

    def start(self, name: str, level: int | None = None) -> Any:
        self._config["level"] = self._config["level"] if level is None else level
        return super().start(name)

    def replace(self, name: str, level: int) -> None:
        """Stops a node and starts another release on its data."""
        self.kill(name)
        self.start(name, level)


@pytest.fixture
def mixed(tmp_path: Path, clock: Clock) -> Iterator[Mixed]:
    """Three nodes of the older release, which have elected a leader."""
    mixed = Mixed(tmp_path, clock, level=OLDER)
    mixed.wait_for_leader()
    mixed.until(lambda: levels(mixed) == [OLDER] * 3, "the level of that release")
    yield mixed
    for name in list(mixed.benches):
        mixed.kill(name)


def let_pass(cluster: Cluster, seconds: float) -> None:
    for _ in range(round(seconds / ROUND_S)):
        cluster.round()


def levels(cluster: Cluster) -> list[int]:
    return [cluster[name].registry.level for name in cluster.names if name in cluster.benches]


def placed(cluster: Cluster, name: str, kind: type[Command]) -> list[int]:
    """Where commands of one kind stand in a node's log."""
    return [
        index
        for data, index, _ in cluster[name].journal[:]
        if data[:1] == REGULAR and isinstance(decode(data[1:]).command, kind)
    ]


def entry_of(command: Command) -> bytes:
    return REGULAR + encode(Envelope(level_of(command), 1, command))


# -- raising it


def test_a_new_cluster_uses_the_newest_level_that_all_understand(tmp_path: Path, clock: Clock) -> None:
    cluster = Cluster(tmp_path, clock)
    leader = cluster.wait_for_leader()

    cluster.until(lambda: levels(cluster) == [LEVEL] * 3, "the newest level", rounds=20)

    assert len(placed(cluster, leader, Raise)) == 1
    assert {cluster[name].status().level for name in cluster.names} == {LEVEL}
    for name in cluster.names:
        cluster.kill(name)


def test_a_node_alone_uses_the_newest_level(tmp_path: Path, clock: Clock) -> None:
    cluster = Cluster(tmp_path, clock, nodes=1)

    cluster.until(lambda: levels(cluster) == [LEVEL], "the newest level", rounds=60)
    cluster.kill("n1")


def test_the_level_is_raised_when_the_last_node_was_replaced_and_not_before(mixed: Mixed) -> None:
    for name in ("n1", "n2"):
        mixed.replace(name, LEVEL)
        mixed.settle()
        let_pass(mixed, 5.0)
        assert levels(mixed) == [OLDER] * 3

    mixed.replace("n3", LEVEL)
    mixed.until(lambda: levels(mixed) == [LEVEL] * 3, "the newest level")
    mixed.settle()

    assert len({mixed[name].registry.digest() for name in mixed.names}) == 1


def test_the_level_is_not_raised_while_a_member_is_away(mixed: Mixed) -> None:
    """It may come back as the release that it was."""
    mixed.replace("n1", LEVEL)
    mixed.replace("n3", LEVEL)
    mixed.settle()
    mixed.kill("n3")

    mixed.replace("n2", LEVEL)
    leader = mixed.wait_for_leader("n1", "n2")
    let_pass(mixed, 5.0)
    assert levels(mixed) == [OLDER] * 2
    mixed.start("n3", OLDER)
    mixed.write(leader, "x")
    mixed.settle()

    assert mixed.values("n3") == {"x"}
    assert levels(mixed) == [OLDER] * 3


def test_a_node_can_go_back_before_the_level_was_raised(mixed: Mixed) -> None:
    for name, level in (("n1", LEVEL), ("n2", LEVEL), ("n1", OLDER), ("n2", OLDER)):
        mixed.replace(name, level)
        mixed.write(mixed.wait_for_leader(), f"{name} {level}")
        mixed.settle()

    assert levels(mixed) == [OLDER] * 3
    assert len(mixed.values("n3")) == 4


def test_a_leader_raises_to_what_the_weakest_member_understands(ours: OurSide) -> None:
    member = ours.member()
    member.hellos["b"] = structs.replace(hello_of("b"), level=LEVEL + 5)
    member.hellos["c"] = structs.replace(hello_of("c"), level=OLDER)
    member.restart()
    lead(member)

    for _ in range(20):
        member.tick(0.1)
        member.acknowledge("b", member.term, end_of(member) + 1)
    assert member.engine.registry.level == OLDER
    member.hellos["c"] = structs.replace(hello_of("c"), level=LEVEL + 7)
    member.disconnect("c")
    member.connect("c")
    for _ in range(3):
        member.tick(0.1)
        member.acknowledge("b", member.term, end_of(member) + 1)

    assert member.engine.registry.level == LEVEL


def lead(member: EngineMember) -> None:
    """Makes the node lead and serve."""
    term = member.elect()
    member.acknowledge("b", term, end_of(member) + 1)
    member.tick()


def end_of(member: EngineMember) -> int:
    return member.engine.journal.last_index


# -- what is not understood


@pytest.mark.parametrize("command", [Compare(0, ""), Readmit("b", "d1")])
def test_a_command_above_the_level_is_certainly_not_done(member: EngineMember, command: Command) -> None:
    lead(member)
    before = end_of(member)

    proposal = member.engine.propose(command, time_ns=1)
    member.tick()

    assert is_done(proposal)
    assert type(proposal.error) is NotDone
    assert "upgrade them all" in proposal.error.message
    assert end_of(member) == before


def test_a_command_of_the_level_is_taken(member: EngineMember) -> None:
    lead(member)
    # Not the newest: at that a leader compares clocks first, and these peers have none.
    set_facts(member.engine.registry, level=OLDER)

    proposal = member.engine.propose(Readmit("b", "d1"), time_ns=1)
    member.tick()
    member.acknowledge("b", member.term, end_of(member) + 1)
    member.tick()

    assert proposal.error is None and is_done(proposal)


def test_a_peer_that_understands_less_than_the_cluster_uses_is_refused(member: EngineMember) -> None:
    set_facts(member.engine.registry, level=LEVEL)

    said = member.engine.greeting.greeted(Node("b"), structs.replace(hello_of("b"), level=OLDER), lambda: 0.0)

    assert f"feature level {OLDER}" in said
    assert f"the cluster uses {LEVEL}" in said
    assert "start it with the release that the others run" in said
    assert member.engine.greeting.greeted(Node("b"), structs.replace(hello_of("b"), level=LEVEL), lambda: 0.0) == ""


def test_both_ends_of_a_connection_learn_why_one_of_them_is_refused(
    ours: OurSide, caplog: pytest.LogCaptureFixture
) -> None:
    ends = ours.ends()
    ends.start("a", "b")
    sentence = "it understands too little: start it with the release that the others run"
    ends.objections["a"] = sentence

    ends.tick(1.0)

    assert not ends.connected()
    told = {record.getMessage() for record in caplog.records}
    assert any(line.startswith("refused 'b'") and sentence in line for line in told), told
    assert any(line.startswith("refused 'a'") and f"it refuses this node: {sentence}" in line for line in told), told


def test_a_peer_that_is_refused_dials_no_more_often_than_one_that_is_not_there(
    ours: OurSide, caplog: pytest.LogCaptureFixture
) -> None:
    """It may go on for days, until somebody looks; and each time it takes itself for connected at first."""
    caplog.set_level(logging.INFO)
    ends = ours.ends()
    ends.start("a", "b")
    ends.objections["a"] = "it understands too little"

    for _ in range(250):
        ends.clock.now += 0.02
        ends.round()

    dialled = [record for record in caplog.records if record.getMessage() == "connected to a"]
    assert 5 <= len(dialled) <= 1 + 5.0 / RETRY_S


def test_a_refused_peer_gets_no_connection_and_the_others_go_on(mixed: Mixed) -> None:
    for name in mixed.names:
        mixed.replace(name, LEVEL)
        mixed.settle()
    mixed.until(lambda: levels(mixed) == [LEVEL] * 3, "the newest level")
    leader = mixed.wait_for_leader()
    away = next(name for name in mixed.names if name != leader)
    # A directory from before the level was raised, as a node that slept through it has.
    hello = structs.replace(mixed.benches[away].transport.hello, level=OLDER)
    mixed.network.disconnect(leader, away)
    mixed.benches[away].transport.hello = hello

    let_pass(mixed, 2.0)

    assert not mixed.network.is_up(leader, away)
    assert mixed.serving() == leader
    mixed.write(leader, "x")


@pytest.mark.parametrize("saved", [False, True], ids=["from the log", "from the state file"])
def test_a_node_of_an_older_release_does_not_run_on_a_newer_directory(member: EngineMember, saved: bool) -> None:
    member.append("b", 1, (1, 0), [(2, 1, entry_of(Raise(LEVEL))), (3, 1, "x")], commit=3)
    member.tick()
    if saved:
        member.save_state()
        member.tick()
        member.tick()
        assert member.engine.journal.base_index == 3
    member.config["level"] = OLDER

    for _ in range(2):
        with pytest.raises(
            Refused, match=rf"feature level {LEVEL}.*start this node with the release that the others run"
        ):
            member.restart()
            member.tick()
    member.config["level"] = LEVEL
    member.restart()
    member.tick()

    assert member.engine.registry.level == LEVEL
    assert member.state() == {"x"}


def test_a_node_that_meets_a_newer_level_in_the_log_stops(ours: OurSide) -> None:
    member = ours.member()
    member.config["level"] = OLDER
    member.restart()

    member.append("b", 1, (1, 0), [(2, 1, "x"), (3, 1, entry_of(Raise(LEVEL)))], commit=3)
    with pytest.raises(Refused, match="the cluster uses feature level"):
        member.tick()


def test_a_state_file_of_a_newer_level_is_not_run_on(ours: OurSide, tmp_path: Path) -> None:
    member = ours.member()
    member.config["level"] = OLDER
    member.restart()
    data = state_file(tmp_path / "made", (50, 1), ["kept"], level=LEVEL)

    with pytest.raises(Refused, match="the cluster uses feature level"):
        member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data))
        member.tick()
    assert 51 not in [next_index for _, next_index in member.acknowledged()]
    assert member.state() == set()
    with pytest.raises(Refused, match="the cluster uses feature level"):
        member.restart()
    member.config["level"] = LEVEL
    member.restart()

    assert (member.engine.registry.level, member.state()) == (LEVEL, {"kept"})


def test_a_state_file_of_this_level_brings_it(member: EngineMember, tmp_path: Path) -> None:
    data = state_file(tmp_path / "made", (50, 1), ["kept"], level=LEVEL)

    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data))
    member.tick()

    assert member.engine.registry.level == LEVEL
    member.restart()
    assert member.engine.registry.level == LEVEL


def test_the_level_never_goes_down(member: EngineMember) -> None:
    entries = [(2, 1, entry_of(Raise(LEVEL))), (3, 1, entry_of(Raise(OLDER))), (4, 1, entry_of(Raise(LEVEL)))]

    for number in range(1, 4):
        member.append("b", 1, (1, 0), entries[:number], commit=1 + number)
        member.tick()
        assert member.engine.registry.level == LEVEL


# -- digests that are compared


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three engines of the newest level that compare every two seconds, or every 50 entries."""
    monkeypatch.setattr(upkeep_module, "COMPARE_S", 2.0)
    monkeypatch.setattr(upkeep_module, "COMPARE_ENTRIES", 50)
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 5)
    cluster = Cluster(tmp_path, clock, snapshot_entries=200)
    cluster.wait_for_leader()
    cluster.until(lambda: levels(cluster) == [LEVEL] * 3, "the newest level")
    yield cluster
    for name in list(cluster.benches):
        cluster.kill(name)


class Forgetful(dict[int, str]):
    """In place of the bench's own comparison of digests, where the engines' is what is tested."""

    def setdefault(self, index: int, digest: str = "") -> str:
        return digest


def manipulate(cluster: Cluster, name: str) -> None:
    """The node's state is not what its log says any more."""
    registry = cluster[name].registry
    registry._digest.total ^= 1


def compared(cluster: Cluster) -> set[int]:
    return {cluster[name].upkeep.compared_index for name in cluster.benches}


def keep_writing(cluster: Cluster, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    for number in range(round(seconds / ROUND_S)):
        leader = cluster.serving()
        if leader is not None and number % 5 == 0:
            cluster.propose(leader, f"v{number}")
        cluster.round()
        if until():
            return


def test_equal_digests_are_compared_and_nobody_stops(cluster: Cluster) -> None:
    keep_writing(cluster, 20.0)
    cluster.settle()

    assert len(compared(cluster)) == 1
    assert min(compared(cluster)) > 100
    assert [bench.failures for bench in cluster.benches.values()] == [[], [], []]


def test_many_entries_are_compared_before_the_time_is_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "COMPARE_S", 1e9)
    leader = cluster.wait_for_leader()

    for part in range(10):
        cluster.write(leader, *(f"v{part}.{number}" for number in range(40)))

    assert min(compared(cluster)) > 100


def test_a_follower_whose_state_differs_stops_and_says_what_to_do(cluster: Cluster) -> None:
    keep_writing(cluster, 5.0)
    leader = cluster.wait_for_leader()
    wrong = next(name for name in cluster.names if name != leader)
    cluster.digests = Forgetful()
    manipulate(cluster, wrong)

    with pytest.raises(Fatal) as caught:
        keep_writing(cluster, 20.0)

    said = caught.value.message
    assert "this node's state differs from the leader's" in said
    assert "/api/v1/cluster/digest" in said
    assert "--rejoin" in said
    cluster.kill(wrong)
    keep_writing(cluster, 10.0)
    assert cluster.wait_for_leader() == leader


def test_what_a_node_holds_after_a_wrong_state_was_noted_stops_it_although_nothing_is_written(
    cluster: Cluster,
) -> None:
    leader = cluster.wait_for_leader()
    wrong = next(name for name in cluster.names if name != leader)
    keep_writing(cluster, 5.0)
    cluster.settle()
    cluster.digests = Forgetful()
    manipulate(cluster, wrong)
    cluster.write(leader, "the last write for a long time")

    with pytest.raises(Fatal, match="differs"):
        let_pass(cluster, 10.0)


def test_comparisons_end_when_nothing_changes(cluster: Cluster) -> None:
    keep_writing(cluster, 5.0)
    let_pass(cluster, 10.0)
    leader = cluster.wait_for_leader()
    end = cluster[leader].journal.last_index

    let_pass(cluster, 30.0)

    assert cluster[leader].journal.last_index == end
    assert compared(cluster) == {placed(cluster, leader, Compare)[-2]}


def test_no_alarm_after_changes_of_leader(cluster: Cluster) -> None:
    for _ in range(6):
        keep_writing(cluster, 3.0)
        leader = cluster.wait_for_leader()
        cluster.kill(leader)
        keep_writing(cluster, 3.0)
        cluster.start(leader)
        cluster.settle()

    assert max(compared(cluster)) > 100
    assert [bench.failures for bench in cluster.benches.values()] == [[], [], []]


def test_no_alarm_after_a_state_file_was_installed(cluster: Cluster) -> None:
    keep_writing(cluster, 3.0)
    leader = cluster.wait_for_leader()
    behind = next(name for name in cluster.names if name != leader)
    cluster.kill(behind)
    for number in range(12):
        cluster.write(leader, *(f"w{number}.{part}" for part in range(40)))

    cluster.start(behind)
    cluster.settle()
    assert cluster[behind].journal.base_index > 200
    keep_writing(cluster, 20.0)
    cluster.settle()

    assert len(compared(cluster)) == 1
    assert [bench.failures for bench in cluster.benches.values()] == [[], [], []]


def test_a_state_file_makes_a_node_forget_what_it_noted(member: EngineMember) -> None:
    member.append("b", 1, (1, 0), [(2, 1, "x"), (3, 1, entry_of(Compare(0, "")))], commit=3)
    member.tick()
    assert member.engine.upkeep.noted.keys() == {3}

    member.install("b", 1, (50, 1), ["kept"], damaged=False)
    member.tick()
    member.append("b", 1, (50, 1), [(51, 1, entry_of(Compare(3, "of a state that is gone here")))], commit=51)
    member.tick()

    assert member.engine.raft.applied == 51


def test_only_what_was_noted_here_is_compared(member: EngineMember) -> None:
    entries = [
        (2, 1, entry_of(Compare(0, ""))),
        (3, 1, "x"),
        (4, 1, entry_of(Compare(1, "of an entry that this node did not note"))),
        (5, 1, entry_of(Compare(2, ""))),
    ]

    member.append("b", 1, (1, 0), entries, commit=5)
    member.tick()

    assert member.engine.raft.applied == 5


def test_the_digest_is_that_of_the_noted_entry_not_of_a_later_one(member: EngineMember) -> None:
    member.append("b", 1, (1, 0), [(2, 1, "x"), (3, 1, entry_of(Compare(0, "")))], commit=3)
    member.tick()
    noted = member.engine.registry.digest()[1]
    member.append("b", 1, (3, 1), run(4, 9), commit=9)
    member.tick()
    assert member.engine.registry.digest()[1] != noted

    member.append("b", 1, (9, 1), [(10, 1, entry_of(Compare(3, noted)))], commit=10)
    member.tick()
    assert member.engine.upkeep.compared_index == 3
    member.append("b", 1, (10, 1), [(11, 1, entry_of(Compare(10, noted)))], commit=11)
    with pytest.raises(Refused, match="after entry 10 its digest was"):
        member.tick()


def test_a_node_that_stopped_can_start_and_stops_again_if_the_next_digest_differs_too(member: EngineMember) -> None:
    """The leader may be the one that is wrong: then its word is in every log, and all others must be able to go on."""
    entries = [(2, 1, "x"), (3, 1, entry_of(Compare(0, ""))), (4, 1, entry_of(Compare(3, "of a leader that is wrong")))]
    member.append("b", 1, (1, 0), entries, commit=4)
    with pytest.raises(Refused, match="differs"):
        member.tick()

    for _ in range(2):
        member.restart()
        member.tick()
        assert member.engine.raft.applied == 4
    member.append("b", 1, (4, 1), [(5, 1, entry_of(Compare(4, "of a leader that is wrong")))], commit=5)

    with pytest.raises(Refused, match="after entry 4 its digest was"):
        member.tick()


def test_a_cluster_whose_leader_was_wrong_lives_on_without_it(cluster: Cluster) -> None:
    """A bit flips in the leader's memory: the others stop, and can be started again."""
    keep_writing(cluster, 5.0)
    wrong = cluster.wait_for_leader()
    right = [name for name in cluster.names if name != wrong]
    cluster.digests = Forgetful()
    manipulate(cluster, wrong)

    with pytest.raises(Fatal, match="differs"):
        keep_writing(cluster, 20.0)
    for name in cluster.names:
        cluster.kill(name)
    cluster.digests = {}
    for name in right:
        cluster.start(name)
    cluster.wait_for_leader(*right)
    keep_writing(cluster, 10.0)
    cluster.start(wrong)
    keep_writing(cluster, 10.0)
    cluster.settle()

    assert len({cluster[name].registry.digest() for name in cluster.names}) == 1


def test_what_the_registry_holds_is_not_touched_by_a_comparison(member: EngineMember) -> None:
    member.append("b", 1, (1, 0), [(2, 1, "x")], commit=2)
    member.tick()
    before = member.engine.registry.digest()[1]

    member.append("b", 1, (2, 1), [(3, 1, entry_of(Compare(0, "")))], commit=3)
    member.tick()

    assert member.engine.registry.digest() == (3, before)
    assert member.engine.propose(command("y"), time_ns=1).error is not None
