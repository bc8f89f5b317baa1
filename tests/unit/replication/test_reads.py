"""Linearizable reads: by asking a quorum whether this leader still leads, without an entry in the log."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.ours import EngineMember
from harness.raft import Clock, Cluster, command, is_done, unstamped
from harness.seeds import seeds
from harness.sides import OurSide
from rollcall.replication.errors import NotDone, NotLeader, Overloaded
from rollcall.replication.network import wire
from rollcall.replication.proposal import Pending, Proposal


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A node "a" that leads; the test plays its peers "b" and "c"."""
    return leading(ours.member())


def leading(member: EngineMember, *voters: str) -> EngineMember:
    """Makes the node lead and serve."""
    term = member.elect()
    for voter in voters or ("b",):
        member.acknowledge(voter, term, member.last_index + 1)
    member.tick()
    assert member.engine.status().serving_term
    return member


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, clock)
    yield cluster
    for name in list(cluster.benches):
        cluster.kill(name)


def read(member: EngineMember) -> Pending[int]:
    """A read that the node has taken up."""
    asked = member.engine.read_index()
    member.tick()
    return asked


def write(member: EngineMember, value: str) -> None:
    """A write that is committed and applied."""
    proposal = member.engine.propose(command(value), time_ns=1)
    member.tick()
    member.acknowledge("b", member.term, member.last_index + 1)
    member.tick()
    assert is_done(proposal)


def say_yes(member: EngineMember, *peers: str, probe: wire.ReadProbe | None = None) -> None:
    """The answer of ``peers`` to a probe, the last one if none is given."""
    probe = probe or probes(member)[-1]
    for peer in peers:
        member.receive(peer, wire.ReadProbeResponse(probe.term, probe.round))


def probes(member: EngineMember) -> list[wire.ReadProbe]:
    return member.sent(wire.ReadProbe)


def index_of(read: Pending[int]) -> int:
    assert is_done(read), "the read is not answered"
    assert read.error is None, read.error
    assert read.outcome is not None
    return read.outcome


# -- a round


def test_all_reads_that_wait_share_one_round(member: EngineMember) -> None:
    reads = [member.engine.read_index() for _ in range(50)]

    member.tick()
    assert probes(member) == [wire.ReadProbe(member.term, 1)] * 2
    say_yes(member, "b")

    assert [index_of(read) for read in reads] == [member.commit_index] * 50


def test_a_read_writes_nothing_to_the_log(member: EngineMember) -> None:
    entries, trace = member.entries(), list(member.disk.trace)

    asked = read(member)
    say_yes(member, "b")

    assert index_of(asked) == member.last_index
    assert (member.entries(), member.disk.trace) == (entries, trace)


def test_what_comes_during_a_round_waits_for_the_next(member: EngineMember) -> None:
    first = read(member)
    write(member, "x")

    second, third = read(member), read(member)
    assert len(probes(member)) == 2
    say_yes(member, "b")
    assert (is_done(first), is_done(second)) == (True, False)
    member.tick()
    assert probes(member)[2:] == [wire.ReadProbe(member.term, 2)] * 2
    say_yes(member, "c")

    assert index_of(second) == index_of(third) == index_of(first) + 1


def test_a_quorum_must_say_yes(ours: OurSide) -> None:
    member = leading(ours.member(members=("a", "b", "c", "d", "e")), "b", "c")

    asked = read(member)
    for _ in range(3):
        say_yes(member, "d")
    assert not is_done(asked)
    say_yes(member, "e")

    assert index_of(asked) == member.commit_index


def test_no_read_before_the_leader_applied_the_first_entry_of_its_term(ours: OurSide) -> None:
    """Until then it may not know what was acknowledged before."""
    member = ours.member()
    term = member.elect()

    asked = read(member)
    member.tick(0.2)
    assert probes(member) == []
    assert not is_done(asked)
    member.acknowledge("c", term, member.last_index + 1)
    member.tick()
    member.tick()
    say_yes(member, "b")

    assert index_of(asked) == member.last_index


def test_the_index_is_that_of_the_start_of_the_round(member: EngineMember) -> None:
    write(member, "before")
    asked = read(member)
    before = member.last_index

    write(member, "meanwhile")
    say_yes(member, "b")

    assert index_of(asked) == before
    assert member.commit_index == before + 1


def test_a_write_that_was_answered_is_in_the_index_of_every_read_after(member: EngineMember) -> None:
    for number in range(5):
        write(member, f"v{number}")
        acknowledged = member.last_index

        asked = read(member)
        say_yes(member, "c")

        assert index_of(asked) >= acknowledged


# -- answers that do not count


def test_the_answer_to_an_earlier_round_counts_for_nothing(member: EngineMember) -> None:
    read(member)
    (earlier, _) = probes(member)
    say_yes(member, "b")

    asked = read(member)
    say_yes(member, "c", probe=earlier)
    assert not is_done(asked)
    say_yes(member, "c")

    assert is_done(asked)


def test_the_answer_of_another_term_counts_for_nothing(member: EngineMember) -> None:
    asked = read(member)
    (probe, _) = probes(member)

    for term in (probe.term - 1, probe.term + 1):
        member.receive("b", wire.ReadProbeResponse(term, probe.round))
    assert not is_done(asked)
    say_yes(member, "b")

    assert is_done(asked)


def test_the_answer_to_an_earlier_leadership_counts_for_nothing(member: EngineMember) -> None:
    read(member)
    earlier = probes(member)[-1]
    member.append("b", member.term + 1, (1, 0))
    leading(member, "c")

    asked = read(member)
    say_yes(member, "b", probe=earlier)
    say_yes(member, "b", probe=wire.ReadProbe(member.term, earlier.round))

    assert not is_done(asked)


# -- who answers probes


def test_a_node_of_the_same_term_says_yes_at_once_and_writes_nothing(member: EngineMember) -> None:
    member.append("b", 7, (1, 0))
    trace = list(member.disk.trace)

    member.receive("b", wire.ReadProbe(7, 31))

    assert member.sent(wire.ReadProbeResponse) == [wire.ReadProbeResponse(7, 31)]
    assert member.disk.trace == trace


def test_a_stale_leader_gets_no_yes_and_learns_the_newer_term(member: EngineMember) -> None:
    member.append("b", 7, (1, 0))
    member.take("c")

    member.receive("c", wire.ReadProbe(6, 31))

    assert unstamped(member.take("c")) == [wire.AppendEntriesResponse(7, 0, False, False)]


def test_a_node_that_has_not_reached_the_term_says_nothing(member: EngineMember) -> None:
    """It will hear of the term with the next entries, and is asked again."""
    member.receive("c", wire.ReadProbe(member.term + 1, 31))

    assert member.sent(wire.ReadProbeResponse) == []


@pytest.mark.parametrize("rejoin", [True, False])
def test_a_node_that_does_not_vote_says_nothing(tmp_path: Path, clock: Clock, rejoin: bool) -> None:
    """It may have forgotten a newer term together with its disk."""
    met = {"a": "another disk"} if rejoin else {}
    hellos = {
        peer: wire.Hello(wire.VERSION, "test", peer, "", 0, {}, standing="member" if rejoin else "rejoining", met=met)
        for peer in "bc"
    }
    member = EngineMember(tmp_path / "a", clock, "a", ("a", "b", "c"), hellos=hellos, rejoin=rejoin)
    assert member.engine.status().standing == ("rejoining" if rejoin else "new")
    member.append("b", member.term, (1, 0))

    member.receive("b", wire.ReadProbe(member.term, 1))

    assert member.sent(wire.ReadProbeResponse) == []
    member.close()


# -- what is lost is asked again, and nobody waits for ever


def test_lost_probes_are_asked_again_at_the_next_heartbeat_of_who_has_not_answered(ours: OurSide) -> None:
    member = leading(ours.member(members=("a", "b", "c", "d", "e")), "b", "c")
    asked = read(member)
    say_yes(member, "b")
    before = len(probes(member))

    member.tick(0.05)
    assert len(probes(member)) == before
    member.tick(0.06)

    again = [(to, message) for _, to, message in member.network.sent if isinstance(message, wire.ReadProbe)][before:]
    assert again == [(peer, wire.ReadProbe(member.term, 1)) for peer in "cde"]
    say_yes(member, "e")
    assert is_done(asked)


def test_a_follower_refuses_at_once(ours: OurSide) -> None:
    asked = ours.member().engine.read_index()

    assert isinstance(asked.error, NotLeader)


def test_the_reads_of_a_deposed_leader_are_certainly_not_answered(member: EngineMember) -> None:
    under_way = read(member)
    waiting = member.engine.read_index()

    member.append("b", member.term + 1, (1, 0))

    for asked in (under_way, waiting):
        assert isinstance(asked.error, NotLeader)
        assert isinstance(asked.error, NotDone)


def test_a_read_asked_for_in_the_moment_in_which_leadership_is_lost_is_answered(member: EngineMember) -> None:
    """Another thread looked at the role just before, and queues its read just after."""
    member.append("b", member.term + 1, (1, 0))
    late: Pending[int] = Pending()
    member.engine.reads._reads.append(late)

    member.tick()

    assert isinstance(late.error, NotLeader)


def test_a_leader_that_loses_its_quorum_gives_its_reads_up(member: EngineMember) -> None:
    asked = read(member)

    for _ in range(20):
        member.tick(0.1)

    assert not member.leads
    assert isinstance(asked.error, NotLeader)


def test_reads_that_wait_are_bounded(member: EngineMember) -> None:
    reads = [member.engine.read_index() for _ in range(20_001)]

    assert [type(read.error) for read in reads if is_done(read)] == [Overloaded]
    member.tick()
    say_yes(member, "b")
    assert {read.error is None for read in reads[:20_000]} == {True}
    assert not is_done(member.engine.read_index())


def test_closing_answers_everybody(member: EngineMember) -> None:
    under_way = read(member)
    waiting = member.engine.read_index()

    member.close()

    assert [type(asked.error) for asked in (under_way, waiting)] == [NotDone, NotDone]


def test_a_read_that_was_given_up_is_not_asked_for(member: EngineMember) -> None:
    asked = member.engine.read_index()
    asked.give_up("the client is gone")

    member.tick()

    assert probes(member) == []


# -- several engines


def test_a_node_that_is_a_cluster_of_its_own_reads_at_once(tmp_path: Path, clock: Clock) -> None:
    cluster = Cluster(tmp_path, clock, nodes=1)
    cluster.wait_for_leader()
    cluster.write("n1", "x")

    asked = cluster["n1"].read_index()
    cluster.round()

    assert index_of(asked) == cluster["n1"].raft.applied
    cluster.kill("n1")


def test_a_leader_reads_within_a_few_turns(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    cluster.write(leader, "x")

    committed = cluster[leader].raft.commit_index
    asked = cluster[leader].read_index()
    cluster.until(lambda: is_done(asked), "the read", rounds=3)

    assert index_of(asked) >= committed


@pytest.mark.parametrize("shape", ["cut", "unheard", "deaf"])
def test_a_leader_that_was_replaced_never_answers_from_what_it_holds(cluster: Cluster, shape: str) -> None:
    stale = cluster.wait_for_leader()
    rest = [name for name in cluster.names if name != stale]
    reads = [cluster[stale].read_index()]
    if shape == "cut":
        cluster.partition([stale], rest)
    elif shape == "unheard":
        cluster.network.muted |= {(stale, other) for other in rest}
    else:
        cluster.network.muted |= {(other, stale) for other in rest}

    def ask() -> bool:
        reads.append(cluster[stale].read_index())
        return cluster.serving() in rest

    cluster.until(ask, "another leader")
    cluster.write(cluster.wait_for_leader(*rest), "new")
    for _ in range(100):
        ask()
        cluster.round()
    cluster.heal()
    cluster.settle()

    assert {type(read.error) for read in reads} == {NotLeader}


@pytest.mark.parametrize("seed", seeds(5, 12))
def test_no_read_is_older_than_a_write_that_was_answered_before_it(tmp_path: Path, clock: Clock, seed: int) -> None:
    """Random partitions, one-way losses, delays, kills and pauses; every node that will is asked."""
    chance = random.Random(seed)
    cluster = Cluster(tmp_path, clock, nodes=5 if seed % 3 == 2 else 3, snapshot_entries=60)
    cluster.wait_for_leader()
    newest = 0
    writes: list[Proposal] = []
    reads: list[tuple[Pending[int], int]] = []
    answered = 0
    for step in range(700):
        newest = max([newest, *(write.outcome.index for write in writes if write.outcome is not None)])
        writes = [write for write in writes if not is_done(write)]
        for name in list(cluster.benches):
            if chance.random() < 0.5:
                writes.append(cluster.propose(name, f"{name} {step}"))
            if chance.random() < 0.5:
                reads.append((cluster[name].read_index(), newest))
        _disturb(cluster, chance)
        cluster.round()
        for asked, floor in [each for each in reads if is_done(each[0])]:
            if asked.outcome is not None:
                answered += 1
                assert asked.outcome >= floor, f"seed {seed}, step {step}"
        reads = [each for each in reads if not is_done(each[0])]
    assert answered > 40, answered
    for name in list(cluster.benches):
        cluster.kill(name)


def _disturb(cluster: Cluster, chance: random.Random) -> None:
    names = cluster.names
    one, other = chance.sample(names, 2)
    match chance.randrange(60):
        case 0:
            cluster.partition([one], [name for name in names if name != one])
        case 1:
            cluster.network.muted.add((one, other))
        case 2:
            cluster.network.delayed.add((one, other))
        case 3 if one in cluster.benches:
            cluster.kill(one)
        case 4:
            cluster.paused.add(one)
        case 5 | 6 | 7 | 8:
            cluster.paused.clear()
            cluster.heal()
            for name in names:
                if name not in cluster.benches:
                    cluster.start(name)
