"""Elections that are asked for first, and what keeps a healthy leader in place."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.facts import set_facts
from harness.members import run
from harness.ours import EngineMember
from harness.raft import ROUND_S, Clock, Cluster
from harness.sides import OurSide
from rollcall.replication.commands import LEVEL
from rollcall.replication.levels import PRE_VOTE_LEVEL
from rollcall.replication.network import wire
from rollcall.replication.raft.library import CANDIDATE, FOLLOWER, LEADER

SHORTEST_S = 0.4
"""The engine's shortest election timeout, which it has when it is told nothing."""


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A node "a" of a cluster that uses pre-votes; the test plays its peers "b" and "c"."""
    return raised(ours.member())


def raised(member: EngineMember) -> EngineMember:
    set_facts(member.engine.registry, level=LEVEL)
    return member


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock) -> Iterator[Cluster]:
    """Three engines that have agreed on the newest level."""
    cluster = Cluster(tmp_path, clock)
    agree(cluster)
    yield cluster
    for name in list(cluster.benches):
        cluster.kill(name)


def agree(cluster: Cluster) -> str:
    """Waits until all nodes use the newest level; who leads then."""
    leader = cluster.wait_for_leader()
    cluster.until(lambda: levels(cluster) == {LEVEL}, "all to use the newest level")
    return leader


def levels(cluster: Cluster) -> set[int]:
    return {bench.engine.registry.level for bench in cluster.benches.values()}


def terms(cluster: Cluster) -> set[int]:
    return {bench.engine.raft.term for bench in cluster.benches.values()}


def others(cluster: Cluster, *names: str) -> list[str]:
    return [name for name in cluster.names if name not in names]


def cut(cluster: Cluster, one: str, other: str) -> None:
    """Ends the connection of these two, and lets them make none; both still hear the rest."""
    cluster._cuts.add(frozenset((one, other)))
    cluster.network.disconnect(one, other)


def let_pass(cluster: Cluster, seconds: float, between: Callable[[], None] = lambda: None) -> None:
    for _ in range(round(seconds / ROUND_S)):
        cluster.round()
        between()


def heard(cluster: Cluster, kind: type[wire.Message]) -> list[tuple[float, str, Any]]:
    """Collects when, by whom and what was sent of one kind of message from here on."""
    found: list[tuple[float, str, Any]] = []

    def note(source: str, target: str, message: wire.Message) -> None:
        if isinstance(message, kind):
            found.append((cluster.clock.now, source, message))

    cluster.network.on_send = note
    return found


# -- the question


def test_the_others_are_asked_before_a_term_is_counted_up(member: EngineMember) -> None:
    member.append("b", 3, (1, 0), run(2, 4, term=2))

    member.tick(2.0)

    asked = [(to, message) for _, to, message in member.network.sent if isinstance(message, wire.PreVote)]
    assert sorted(asked, key=lambda to_message: to_message[0]) == [(peer, wire.PreVote(3, 4, 2)) for peer in "bc"]
    assert member.sent(wire.RequestVote) == []
    assert (member.term, member.engine.raft.role) == (3, FOLLOWER)


def test_unanswered_questions_are_asked_again_and_count_nothing_up(member: EngineMember) -> None:
    term = member.term

    for _ in range(100):
        member.tick(0.1)

    # Every 0.1 to 0.2 s, to two peers.
    assert len(member.sent(wire.PreVote)) > 80
    assert member.sent(wire.RequestVote) == []
    assert member.term == term


def test_asking_and_answering_write_nothing_to_disk(member: EngineMember) -> None:
    member.append("b", 3, (1, 0), run(2, 4, term=2))
    member.tick(2.0)
    journal, trace = (member.directory / "journal").read_bytes(), list(member.disk.trace)
    vote = member.engine.raft.vote

    for _ in range(5):
        member.tick(0.3)
    member.receive("c", wire.PreVote(9, 100, 8))
    member.tick()

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(9, True)]
    assert (member.directory / "journal").read_bytes() == journal
    assert member.disk.trace == trace
    assert (member.term, member.engine.raft.vote) == (3, vote)


def test_a_yes_can_be_given_to_many_because_it_binds_nobody(member: EngineMember) -> None:
    for asker in ("b", "c", "b"):
        member.receive(asker, wire.PreVote(0, 1, 0))
    member.ask_vote("c", 1, (1, 0))

    assert len(member.sent(wire.PreVoteResponse)) == 3
    assert member.votes() == [("c", 1)]


def test_a_node_that_reaches_nobody_asks_nobody_and_stands_for_nothing(member: EngineMember) -> None:
    term = member.term
    for peer in member.peers:
        member.disconnect(peer)

    for _ in range(20):
        member.tick(0.5)

    assert (member.term, member.sent(wire.PreVote)) == (term, [])


# -- the answer


@pytest.mark.parametrize(
    ("last", "granted"),
    [
        ((4, 2), True),  # the same
        ((5, 2), True),  # longer
        ((2, 3), True),  # of a later term
        ((3, 2), False),  # shorter
        ((9, 1), False),  # of an earlier term, however long
        ((1, 0), False),
    ],
)
def test_only_who_has_all_that_this_node_has_gets_a_yes(
    member: EngineMember, last: tuple[int, int], granted: bool
) -> None:
    member.append("b", 2, (1, 0), run(2, 4, term=2))
    member.tick(2.0)

    member.receive("c", wire.PreVote(3, *last))

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(3, True)] * granted


def test_who_hears_a_leader_says_nothing_until_that_leader_has_been_silent(member: EngineMember) -> None:
    member.append("b", 2, (1, 0), run(2, 4, term=2))
    better = wire.PreVote(2, 100, 2)

    member.tick(SHORTEST_S - 0.01)
    member.receive("c", better)
    assert member.sent(wire.PreVoteResponse) == []
    member.tick(0.02)
    member.receive("c", better)

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(2, True)]


def test_who_lost_the_connection_to_the_leader_says_yes_at_once(member: EngineMember) -> None:
    member.append("b", 2, (1, 0), run(2, 4, term=2))

    member.disconnect("b")
    member.receive("c", wire.PreVote(2, 4, 2))

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(2, True)]


def test_a_leader_says_nothing_while_it_hears_a_quorum(member: EngineMember) -> None:
    term = lead(member)
    member.acknowledge("b", term, member.last_index + 1)
    better = wire.PreVote(term, 100, term)

    member.receive("c", better)
    assert member.sent(wire.PreVoteResponse) == []
    member.tick(SHORTEST_S + 0.01)
    member.receive("c", better)

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(term, True)]
    assert member.leads


def test_an_asker_of_an_earlier_term_learns_the_newer_one(member: EngineMember) -> None:
    member.append("b", 7, (1, 0))

    member.receive("c", wire.PreVote(5, 100, 5))

    assert member.sent(wire.PreVoteResponse) == [wire.PreVoteResponse(7, False)]


def test_a_no_with_a_newer_term_is_followed_and_one_without_changes_nothing(member: EngineMember) -> None:
    member.append("b", 3, (1, 0))
    member.tick(2.0)

    for term in (1, 3):
        member.receive("b", wire.PreVoteResponse(term, False))
    assert member.term == 3
    member.receive("b", wire.PreVoteResponse(8, False))

    assert (member.term, member.engine.raft.role) == (8, FOLLOWER)
    member.restart()
    assert member.term == 8


def test_a_leader_that_is_told_of_a_newer_term_steps_down(member: EngineMember) -> None:
    term = lead(member)

    member.receive("b", wire.PreVoteResponse(term + 1, False))

    assert (member.term, member.leads) == (term + 1, False)


# -- from a quorum of yes to one campaign


def lead(member: EngineMember) -> int:
    """Makes the node lead by way of a pre-vote; its term."""
    member.tick(2.0)
    member.receive("b", wire.PreVoteResponse(member.term, True))
    member.tick()
    member.grant_vote("b", member.term)
    assert member.leads
    return member.term


def test_a_quorum_of_yes_leads_to_one_campaign(member: EngineMember) -> None:
    term = member.term
    member.tick(2.0)

    member.receive("b", wire.PreVoteResponse(term, True))
    member.tick()
    member.receive("c", wire.PreVoteResponse(term, True))
    for _ in range(5):
        member.tick(0.05)

    assert member.sent(wire.RequestVote) == [wire.RequestVote(term + 1, 1, 0, False)] * 2
    assert (member.term, member.engine.raft.role) == (term + 1, CANDIDATE)


def test_a_lost_campaign_is_followed_by_a_question_not_by_another_campaign(member: EngineMember) -> None:
    term = member.term
    member.tick(2.0)
    member.receive("b", wire.PreVoteResponse(term, True))
    member.tick()
    assert member.term == term + 1

    for _ in range(50):
        member.tick(0.1)

    assert member.term == term + 1
    assert member.sent(wire.PreVote)[-1].term == term + 1


def test_a_yes_counts_once_a_voter(ours: OurSide) -> None:
    member = raised(ours.member(members=("a", "b", "c", "d", "e")))
    term = member.term
    member.tick(2.0)

    for _ in range(3):
        member.receive("b", wire.PreVoteResponse(term, True))
    member.tick()
    assert member.term == term
    member.receive("c", wire.PreVoteResponse(term, True))
    member.tick()

    assert member.term == term + 1


def test_a_yes_that_was_not_asked_for_counts_for_nothing(member: EngineMember) -> None:
    term = member.term

    for peer in ("b", "c"):
        member.receive(peer, wire.PreVoteResponse(term, True))
    member.tick(0.01)

    assert (member.term, member.sent(wire.RequestVote)) == (term, [])


def test_a_yes_to_an_earlier_term_counts_for_nothing(member: EngineMember) -> None:
    term = member.term
    member.tick(2.0)
    member.receive("b", wire.PreVoteResponse(term + 3, False))
    member.tick(2.0)

    member.receive("c", wire.PreVoteResponse(term, True))
    member.tick()

    assert (member.term, member.sent(wire.RequestVote)) == (term + 3, [])


def test_a_yes_after_a_leader_was_heard_counts_for_nothing(member: EngineMember) -> None:
    member.tick(2.0)

    member.append("b", 3, (1, 0))
    member.receive("c", wire.PreVoteResponse(3, True))
    for _ in range(3):
        member.tick(0.1)

    assert (member.term, member.sent(wire.RequestVote)) == (3, [])
    assert member.engine.status().leader == "b"


def test_a_yes_after_a_vote_was_given_away_counts_for_nothing(member: EngineMember) -> None:
    """The other was faster; standing as well would only split the votes."""
    term = member.term
    member.tick(2.0)

    member.ask_vote("c", term + 1, (1, 0))
    member.receive("b", wire.PreVoteResponse(term, True))
    for _ in range(3):
        member.tick(0.1)

    assert member.votes() == [("c", term + 1)]
    assert (member.term, member.sent(wire.RequestVote)) == (term + 1, [])


# -- who hears a leader does not help to depose it


def test_a_request_for_a_vote_is_ignored_while_a_leader_is_heard(member: EngineMember) -> None:
    member.append("b", 3, (1, 0))

    member.ask_vote("c", 9, (100, 8))
    assert (member.votes(), member.term) == ([], 3)
    member.tick(SHORTEST_S + 0.01)
    member.ask_vote("c", 9, (100, 8))

    assert (member.votes(), member.term) == ([("c", 9)], 9)


def test_a_leader_with_a_quorum_ignores_requests_for_votes(member: EngineMember) -> None:
    term = lead(member)
    member.acknowledge("b", term, member.last_index + 1)

    member.ask_vote("c", term + 5, (100, term))

    assert (member.leads, member.term) == (True, term)


def test_an_election_that_the_leader_asked_for_is_not_ignored(member: EngineMember) -> None:
    member.append("b", 3, (1, 0))

    member.receive("c", wire.RequestVote(4, 100, 3, True))

    assert (member.votes(), member.term) == ([("c", 4)], 4)


def test_timeout_now_leads_to_a_campaign_without_a_question(member: EngineMember) -> None:
    member.append("b", 3, (1, 0))

    member.receive("b", wire.TimeoutNow(3))
    member.tick()

    assert member.sent(wire.PreVote) == []
    assert member.sent(wire.RequestVote) == [wire.RequestVote(4, 1, 0, True)] * 2


def test_only_the_campaign_that_was_asked_for_may_disturb_a_leader(member: EngineMember) -> None:
    member.append("b", 3, (1, 0))
    member.receive("b", wire.TimeoutNow(3))
    member.tick()

    member.tick(2.0)
    member.receive("c", wire.PreVoteResponse(4, True))
    member.tick()

    assert [request.transfer for request in member.sent(wire.RequestVote) if request.term == 5] == [False, False]


@pytest.mark.parametrize(("source", "term"), [("c", 3), ("b", 2)])
def test_timeout_now_counts_only_from_the_leader_of_this_term(member: EngineMember, source: str, term: int) -> None:
    member.append("b", 3, (1, 0))

    member.receive(source, wire.TimeoutNow(term))
    member.tick()

    assert (member.term, member.sent(wire.RequestVote)) == (3, [])


# -- below the level that brought the question


def test_a_cluster_of_an_older_level_uses_the_librarys_own_election(ours: OurSide) -> None:
    member = ours.member()
    assert member.engine.registry.level < PRE_VOTE_LEVEL
    term = member.term

    member.tick(2.0)
    assert member.sent(wire.PreVote) == []
    assert member.sent(wire.RequestVote) == [wire.RequestVote(term + 1, 1, 0, False)] * 2
    member.append("b", 5, (1, 0))
    member.ask_vote("c", 9, (100, 8))

    assert member.votes() == [("c", 9)]


# -- three engines


def test_a_node_that_was_cut_off_comes_back_without_a_change_of_term(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    away = others(cluster, leader)[0]
    (term,) = terms(cluster)

    cluster.partition([away], others(cluster, away))
    let_pass(cluster, 10.0)
    cluster.write(leader, "meanwhile")
    cluster.heal()
    cluster.settle()

    assert terms(cluster) == {term}
    assert cluster.serving() == leader
    assert cluster.values(away) == {"meanwhile"}


def test_a_node_that_hears_nothing_and_is_heard_changes_no_term(cluster: Cluster) -> None:
    """Its questions arrive, and the others hear a leader."""
    leader = cluster.wait_for_leader()
    deaf = others(cluster, leader)[0]
    (term,) = terms(cluster)
    asked = heard(cluster, wire.PreVote)

    cluster.network.muted |= {(other, deaf) for other in others(cluster, deaf)}
    let_pass(cluster, 10.0)
    assert len(asked) > 50
    cluster.heal()
    cluster.settle()

    assert terms(cluster) == {term}
    assert cluster.serving() == leader


def test_a_node_whose_connections_flap_deposes_nobody(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    flapping = others(cluster, leader)[0]
    (term,) = terms(cluster)
    chance = random.Random(1)

    def flap() -> None:
        if chance.random() < 0.1:
            for other in others(cluster, flapping):
                cluster.network.disconnect(flapping, other)

    let_pass(cluster, 20.0, flap)

    assert terms(cluster) == {term}
    assert cluster.serving() == leader


def test_a_follower_that_alone_lost_the_leader_changes_nothing(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    alone = others(cluster, leader)[0]
    (term,) = terms(cluster)
    asked = heard(cluster, wire.PreVote)

    cut(cluster, leader, alone)
    let_pass(cluster, 10.0)

    assert {source for _, source, _ in asked} == {alone}
    assert terms(cluster) == {term}
    assert cluster.serving() == leader


def test_a_leader_whose_process_is_gone_is_replaced_without_waiting_for_a_timeout(cluster: Cluster) -> None:
    began_s: list[float] = []
    for _ in range(10):
        leader = cluster.wait_for_leader()
        requests = heard(cluster, wire.RequestVote)

        cluster.kill(leader)
        killed_at = cluster.clock.now
        cluster.wait_for_leader(*others(cluster, leader))
        began_s.append(requests[0][0] - killed_at)
        cluster.start(leader)
        cluster.settle()

    # The question within a quarter of the timeout; it takes two turns to be asked and answered.
    assert max(began_s) <= SHORTEST_S / 4 + 3 * ROUND_S


def test_a_leader_that_falls_silent_is_replaced_after_a_timeout(cluster: Cluster) -> None:
    """Nobody is told that it is gone: as when its machine loses power."""
    leader = cluster.wait_for_leader()
    requests = heard(cluster, wire.RequestVote)

    cluster.paused.add(leader)
    paused_at = cluster.clock.now
    cluster.wait_for_leader(*others(cluster, leader))

    assert requests[0][0] - paused_at >= SHORTEST_S - 0.1
    assert cluster.clock.now - paused_at <= 2.0


def test_leadership_is_handed_over_although_everybody_hears_the_leader(cluster: Cluster) -> None:
    for _ in range(5):
        leader = cluster.wait_for_leader()
        cluster.settle()
        (term,) = terms(cluster)
        asked = heard(cluster, wire.PreVote)
        began = cluster.clock.now

        cluster.benches[leader].transport.post(cluster[leader].handover.begin)
        cluster.wait_for_leader(*others(cluster, leader))

        assert cluster.clock.now - began <= 0.2
        assert (terms(cluster), asked) == ({term + 1}, [])


def test_who_lacks_entries_does_not_get_to_stand(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    (term,) = terms(cluster)
    behind, complete = others(cluster, leader)
    cut(cluster, leader, behind)
    cluster.write(leader, "x", "y")
    requests = heard(cluster, wire.RequestVote)

    cluster.kill(leader)
    cluster.heal()
    assert cluster.wait_for_leader() == complete

    assert {source for _, source, _ in requests} == {complete}
    assert terms(cluster) == {term + 1}


def test_the_first_election_of_a_new_cluster_is_quick_and_not_at_one_moment(
    tmp_path: Path, clock: Clock, request: pytest.FixtureRequest
) -> None:
    """All members meet at the same moment; a common timer would have them split their votes."""
    took_s: list[float] = []
    for seed in range(20):
        random.seed(seed)
        cluster = Cluster(tmp_path / str(seed), clock)
        began = clock.now
        leader = cluster.wait_for_leader()
        took_s.append(clock.now - began)
        assert cluster[leader].raft.role == LEADER
        for name in cluster.names:
            cluster.kill(name)

    assert sum(took <= SHORTEST_S + 0.1 for took in took_s) >= 14
    assert max(took_s) <= 4.0
