"""Nodes whose wall clocks disagree: one that is far off neither leads nor stamps, and the others go on."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.facts import set_facts
from harness.raft import ROUND_S, Clock, Cluster, MemoryTransport, command
from hypothesis import given
from hypothesis import strategies as st
from pysyncobj.node import Node
from rollcall.replication.commands import LEVEL
from rollcall.replication.errors import NotDone
from rollcall.replication.network import wire
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft.clocks import ANSWER_S, LIMIT_S, Clocks
from rollcall.replication.raft.election import OTHERS_FIRST
from rollcall.replication.raft.library import LEADER

YEAR_S = 365 * 86_400.0
PATIENCE_S = OTHERS_FIRST * 1.0
"""Of a node that is off, with the longest election timeout of an engine that is told nothing (1 s)."""

# -- the pure part -------------------------------------------------------------------------------

NOW = 5_000.0
DELAYS = st.tuples(*[st.floats(0.0, ANSWER_S / 3 - 0.01)] * 3)
"""Of one answer: on the way there, at the peer before it read its clock, and on the way back."""
AGREEING = st.floats(0.0, LIMIT_S - 0.001)
ANY = st.floats(-2 * YEAR_S, 2 * YEAR_S)
NONE = (0.0, 0.0, 0.0)


def wall(ahead_s: float, at: float = NOW) -> int:
    """What a clock shows that is so far ahead of the true time."""
    return 1_700_000_000 * 10**9 + int((ahead_s + at) * 1e9)


def hear(
    clocks: Clocks, peer: str, theirs: float, ours: float, delays: tuple[float, float, float] = NONE, now: float = NOW
) -> None:
    """A node whose clock is ``ours`` ahead hears a peer whose clock is ``theirs`` ahead."""
    there_s, kept_s, back_s = delays
    asked_at = now - there_s - kept_s - back_s
    clocks.heard(peer, wall(theirs, now - back_s), asked_at=asked_at, now=now, own_ns=wall(ours, now))


def told(ours: float, *theirs: float) -> Clocks:
    clocks = Clocks()
    for number, ahead_s in enumerate(theirs):
        hear(clocks, f"p{number}", ahead_s, ours)
    return clocks


@given(st.integers(1, 6), AGREEING, st.data())
def test_who_agrees_with_most_of_those_it_hears_is_never_off_whatever_delays_there_are(
    count: int, ours: float, data: st.DataObject
) -> None:
    agreeing = data.draw(st.integers((count + 1) // 2, count))
    theirs = [data.draw(AGREEING) for _ in range(agreeing)] + [data.draw(ANY) for _ in range(count - agreeing)]
    clocks = Clocks()

    for number, ahead_s in enumerate(theirs):
        hear(clocks, f"p{number}", ahead_s, ours, data.draw(DELAYS))

        assert clocks.error == ""
        assert clocks.objection(wall(ours), NOW) == ""


@given(st.integers(2, 6), st.sampled_from([-1, 1]), st.floats(LIMIT_S + ANSWER_S + 6.0, 2 * YEAR_S), st.data())
def test_who_is_far_from_a_majority_is_off(count: int, side: int, far: float, data: st.DataObject) -> None:
    agreeing = data.draw(st.integers((count + 1) // 2 + 1 if count > 2 else 2, count))
    theirs = [data.draw(st.floats(0.0, 5.0)) for _ in range(agreeing)]
    theirs += [data.draw(ANY) for _ in range(count - agreeing)]
    clocks = Clocks()

    for number, ahead_s in enumerate(data.draw(st.permutations(theirs))):
        hear(clocks, f"p{number}", ahead_s, side * far, data.draw(DELAYS))

    assert ("ahead of" if side > 0 else "behind") in clocks.error
    assert clocks.objection(wall(side * far), NOW)


@given(ANY, ANY, DELAYS, DELAYS)
def test_of_two_that_disagree_the_one_ahead_is_off_and_never_both(
    one: float, other: float, delays: tuple[float, float, float], more_delays: tuple[float, float, float]
) -> None:
    ones, others = Clocks(), Clocks()
    hear(ones, "other", other, one, delays)
    hear(others, "one", one, other, more_delays)

    assert not (ones.error and others.error)
    if abs(one - other) > LIMIT_S + ANSWER_S:
        assert [bool(ones.error), bool(others.error)] == [one > other, other > one]


@given(st.lists(st.tuples(ANY, DELAYS), min_size=1, max_size=6), ANY)
def test_nothing_is_stamped_far_ahead_of_the_middle(
    theirs: list[tuple[float, tuple[float, ...]]], stamp: float
) -> None:
    clocks = Clocks()
    for number, (ahead_s, delays) in enumerate(theirs):
        hear(clocks, f"p{number}", ahead_s, theirs[0][0], delays)  # pyright: ignore[reportArgumentType]
    clocks.error = ""
    middle = sorted([stamp, *(ahead_s for ahead_s, _ in theirs)])[len(theirs) // 2]

    objection = clocks.objection(wall(stamp), NOW)

    if stamp - middle > LIMIT_S + ANSWER_S:
        assert "ahead of" in objection
    if stamp - middle < LIMIT_S:
        assert objection == ""


def test_who_hears_nobody_knows_of_nothing_wrong() -> None:
    clocks = Clocks()

    assert (clocks.error, clocks.objection(wall(YEAR_S), NOW), clocks.ahead_s(NOW, wall(YEAR_S))) == ("", "", None)
    assert clocks.trusts("p0", NOW, wall(0.0))


def test_a_stamp_is_refused_from_the_moment_the_clock_is_set_ahead() -> None:
    clocks = told(0.0, 0.0, 0.0)

    assert clocks.objection(wall(0.0, NOW + 3.0), NOW + 3.0) == ""
    assert f"{int(YEAR_S)} s ahead of" in clocks.objection(wall(YEAR_S, NOW + 3.0), NOW + 3.0)
    # A stamp too early does no harm: the registry's time does not go back.
    assert clocks.objection(wall(-YEAR_S, NOW + 3.0), NOW + 3.0) == ""


def test_the_sentence_says_how_far_and_what_to_do_and_ends_with_the_cause() -> None:
    clocks = told(3600.0, 0.0, 0.5)

    assert clocks.error.startswith("this node's wall clock is 3599 s ahead of the others'")
    assert "time service" in clocks.error
    hear(clocks, "p0", 0.0, 0.0)
    assert clocks.error == ""


def test_what_was_found_stands_until_others_show_that_it_is_not_so_any_more() -> None:
    clocks = told(YEAR_S, 0.0, 0.0)
    hear(clocks, "p0", 0.0, YEAR_S, now=NOW + 4 * ANSWER_S)

    assert clocks.error
    # So slow an answer proves neither.
    hear(clocks, "p0", 0.0, LIMIT_S + 2.0, (0.0, 5.0, 0.0), now=NOW + 8 * ANSWER_S)
    assert clocks.error
    hear(clocks, "p0", 0.0, LIMIT_S - 1.0, now=NOW + 9 * ANSWER_S)
    assert clocks.error == ""


def test_an_answer_that_is_older_than_the_one_known_or_from_no_time_of_ours_changes_nothing() -> None:
    clocks = told(0.0, 0.0)

    for asked_at in (NOW - 1.0, NOW + 1.0, NOW - ANSWER_S - 1.0, float("nan"), float("-inf"), float("inf")):
        clocks.heard("p0", wall(-YEAR_S), asked_at=asked_at, now=NOW, own_ns=wall(0.0))

    assert clocks.error == ""
    assert clocks.ahead_s(NOW, wall(0.0)) == pytest.approx(0.0, abs=0.01)


def test_who_is_away_counts_with_what_it_said_last() -> None:
    clocks = told(0.0, 0.0)

    later = NOW + 86_400.0
    hear(clocks, "p2", -YEAR_S, 0.0, now=later)

    # Of two alone, this node would be the one that is ahead.
    assert clocks.error == ""
    assert clocks.ahead_s(later, wall(0.0, later)) == pytest.approx(0.0)


def test_leadership_is_not_given_to_whose_clock_is_far_off() -> None:
    clocks = told(0.0, 0.0, 40.0, -40.0, 5.0)

    assert [clocks.trusts(f"p{number}", NOW, wall(0.0)) for number in range(4)] == [True, False, False, True]


# -- engines -------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[[int], Cluster]]:
    made: list[Cluster] = []

    def cluster(nodes: int) -> Cluster:
        made.append(Cluster(tmp_path, clock, nodes))
        made[-1].wait_for_leader()
        made[-1].until(
            lambda: {bench.engine.registry.level for bench in made[-1].benches.values()} == {LEVEL}, "the newest level"
        )
        return made[-1]

    yield cluster
    for each in made:
        for name in list(each.benches):
            each.kill(name)


@pytest.fixture
def cluster(make: Callable[[int], Cluster]) -> Cluster:
    """Three engines, one of which leads."""
    return make(3)


def let_pass(cluster: Cluster, seconds: float, between: Callable[[], object] = lambda: None) -> None:
    for _ in range(round(seconds / ROUND_S)):
        cluster.round()
        between()


def stamped(cluster: Cluster, name: str, value: str) -> Proposal:
    """A write as a node stamps it: with its own wall clock."""
    cluster.clock.select(name)
    return cluster[name].propose(command(value), time_ns=cluster.clock.time_ns())


def written(cluster: Cluster, name: str, value: str) -> None:
    proposal = stamped(cluster, name, value)
    cluster.until(proposal.done, f"an answer about {value}")
    assert proposal.error is None, proposal.error


def ahead_s(cluster: Cluster) -> float:
    """How far the registry's time is ahead of the true one, on whichever node it is furthest."""
    newest = max(bench.engine.registry.last_time_ns for bench in cluster.benches.values())
    return (newest - wall(0.0, cluster.clock.now)) / 1e9


def others(cluster: Cluster, *names: str) -> list[str]:
    return [name for name in cluster.names if name not in names]


def error_of(cluster: Cluster, name: str) -> str:
    cluster.clock.select(name)
    return cluster[name].status().clock_error


@pytest.mark.parametrize("far_s", [YEAR_S, -YEAR_S, 30.0])
def test_a_leader_whose_clock_is_set_far_off_hands_over_and_stamps_nothing(cluster: Cluster, far_s: float) -> None:
    leader = cluster.wait_for_leader()
    written(cluster, leader, "before")
    tried: list[Proposal] = []

    cluster.clock.ahead_s[leader] = far_s
    tried += [stamped(cluster, leader, "at once")] if far_s > 0 else []
    cluster.until(lambda: error_of(cluster, leader), "the leader to see that its clock is off")
    tried.append(stamped(cluster, leader, "later"))
    another = cluster.wait_for_leader(*others(cluster, leader))
    written(cluster, another, "there")

    assert [str(proposal.error) for proposal in tried if "wall clock is" in str(proposal.error)]
    assert all(isinstance(proposal.error, NotDone) for proposal in tried)
    assert -1.0 < ahead_s(cluster) < LIMIT_S
    let_pass(cluster, 3 * PATIENCE_S)
    assert cluster.serving() == another
    assert cluster.values(another) == {"before", "there"}


def test_both_is_said_once_and_a_clock_that_is_right_again_may_lead(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    leader = cluster.wait_for_leader()
    with caplog.at_level(logging.INFO):
        cluster.clock.ahead_s[leader] = YEAR_S
        another = cluster.wait_for_leader(*others(cluster, leader))
        let_pass(cluster, 5.0)
        cluster.clock.ahead_s[leader] = 0.0
        let_pass(cluster, 5.0)

    said = [record for record in caplog.records if "wall clock" in record.message]
    assert [record.levelname for record in said] == ["ERROR", "INFO"]
    assert cluster[leader].status().clock_error == ""
    assert cluster[another].hand_over(leader) is not None
    cluster.wait_for_leader(leader)
    written(cluster, leader, "again")
    assert ahead_s(cluster) < LIMIT_S


def test_a_follower_whose_clock_is_off_does_not_lead_as_long_as_others_can(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    off, well = others(cluster, leader)
    cluster.clock.ahead_s[off] = YEAR_S
    cluster.until(lambda: error_of(cluster, off), "it to see that its clock is off")
    asked: set[str] = set()
    cluster.network.on_send = lambda source, target, message: (
        asked.add(source) if isinstance(message, wire.PreVote | wire.RequestVote) else None
    )

    cluster.kill(leader)

    cluster.wait_for_leader(well)
    let_pass(cluster, 2 * PATIENCE_S)
    assert asked == {well}
    assert error_of(cluster, well) == ""


def test_the_one_that_is_off_leads_just_long_enough_if_only_it_has_what_was_acknowledged(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    gone, behind = others(cluster, leader)
    cluster.partition((leader, gone), (behind,))
    written(cluster, leader, "acknowledged")
    cluster.kill(gone)
    cluster.clock.ahead_s[leader] = YEAR_S
    let_pass(cluster, 3.0)
    cluster.heal()
    led: set[str] = set()

    def try_to_write() -> None:
        for name, bench in cluster.benches.items():
            if bench.engine.raft.role == LEADER:
                led.add(name)
        if cluster[leader].raft.role == LEADER and cluster.network.is_up(leader, behind):
            proposal = stamped(cluster, leader, "stamped a year ahead")
            assert "wall clock" in str(proposal.error)

    let_pass(cluster, PATIENCE_S + 4.0, try_to_write)

    assert led == {leader, behind}
    cluster.wait_for_leader(behind)
    written(cluster, behind, "after")
    assert cluster.values(behind) == {"acknowledged", "after"}
    assert ahead_s(cluster) < LIMIT_S


def test_after_a_start_a_leader_knows_the_clocks_of_all_who_voted_for_it(cluster: Cluster) -> None:
    """Or it could stamp a year ahead in its first moments."""
    for name in cluster.names:
        cluster.kill(name)
    for name in cluster.names[:2]:
        cluster.clock.ahead_s[name] = YEAR_S * (name == cluster.names[0])
        cluster.start(name)

    def try_to_write() -> None:
        for name, bench in cluster.benches.items():
            if bench.engine.raft.role == LEADER:
                stamped(cluster, name, f"{cluster.clock.now}")

    let_pass(cluster, 3 * PATIENCE_S, try_to_write)

    assert cluster.serving() == cluster.names[1]
    assert len(cluster.values(cluster.names[1])) > 10
    assert ahead_s(cluster) < LIMIT_S


def test_one_whose_clock_is_off_does_not_take_leadership_over(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    well, off = others(cluster, leader)
    cluster.clock.ahead_s[off] = -YEAR_S
    let_pass(cluster, 3.0)
    assert error_of(cluster, off)

    # Without that, it would be the one: of two that have the same log, the greater name is chosen.
    cluster[leader].hand_over()
    cluster.wait_for_leader(well)
    cluster[well].hand_over(off)
    let_pass(cluster, 3.0)

    assert cluster.serving() == well


def test_a_process_that_stood_still_for_long_takes_nobody_for_wrong(cluster: Cluster) -> None:
    """What it reads first was sent long ago, by clocks that have gone on since."""
    leader = cluster.wait_for_leader()
    for name in cluster.names:
        cluster.paused.add(name)
        let_pass(cluster, 100.0)
        cluster.paused.discard(name)
        for _ in range(200):
            cluster.round()
            assert [error_of(cluster, each) for each in cluster.names] == [""] * 3
    written(cluster, cluster.wait_for_leader(), f"after {leader}")


def test_what_the_leader_proposes_by_itself_is_not_stamped_by_its_clock(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    written(cluster, leader, "before")
    for name in others(cluster, leader):
        # Nobody can take over.
        cluster[name].drain()
    cluster.clock.ahead_s[leader] = YEAR_S
    cluster.until(lambda: error_of(cluster, leader), "the leader to see that its clock is off")
    compared = cluster[leader].upkeep.compared_index

    # A comparison of the replicas is due after a minute.
    cluster.until(lambda: cluster[leader].upkeep.compared_index > compared, "a comparison", rounds=10_000)

    assert cluster.serving() == leader
    assert "wall clock" in str(stamped(cluster, leader, "a client's").error)
    assert ahead_s(cluster) < LIMIT_S


def test_an_older_release_says_nothing_of_its_clock_and_nothing_changes(
    make: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: MemoryTransport, node: Node, **times: object) -> None:
        self.send(node, wire.Ping(False))

    monkeypatch.setattr(MemoryTransport, "ping", silent)
    cluster = make(3)
    for bench in cluster.benches.values():
        set_facts(bench.engine.registry, level=LEVEL - 1)  # as long as a member is of such a release
    leader = cluster.wait_for_leader()
    cluster.clock.ahead_s[leader] = YEAR_S

    for each in range(5):
        let_pass(cluster, 0.05)
        for bench in cluster.benches.values():
            set_facts(bench.engine.registry, level=LEVEL - 1)
        written(cluster, leader, f"a year ahead {each}")

    assert cluster.serving() == leader
    assert (cluster[leader].status().clock_error, cluster[leader].status().clock_ahead_s) == ("", None)


def test_who_was_never_told_what_time_it_is_stamps_nothing(
    make: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has just begun may get its votes before it has compared its clock with anybody."""
    cluster = make(3)
    ping = MemoryTransport.ping
    monkeypatch.setattr(MemoryTransport, "ping", lambda self, node, **times: self.send(node, wire.Ping(False)))
    new = cluster.wait_for_leader()
    cluster[new].pings.clocks = Clocks()  # as after a start

    refused = stamped(cluster, new, "before")
    monkeypatch.setattr(MemoryTransport, "ping", ping)
    let_pass(cluster, 3.0)

    assert isinstance(refused.error, NotDone)
    assert "needed" in refused.error.message
    written(cluster, cluster.wait_for_leader(), "after")


def test_a_node_alone_goes_on_whatever_its_clock_says(make: Callable[[int], Cluster]) -> None:
    cluster = make(1)
    cluster.clock.ahead_s["n1"] = YEAR_S

    written(cluster, "n1", "alone")

    assert cluster.serving() == "n1"


def test_how_far_a_clock_is_ahead_is_shown_before_it_matters(cluster: Cluster) -> None:
    cluster.clock.ahead_s["n2"] = 4.0
    let_pass(cluster, 3.0)

    shown = []
    for name in cluster.names:
        cluster.clock.select(name)
        shown.append(cluster[name].status().clock_ahead_s)

    assert shown == [pytest.approx(0.0, abs=0.2), pytest.approx(4.0, abs=0.2), pytest.approx(0.0, abs=0.2)]
