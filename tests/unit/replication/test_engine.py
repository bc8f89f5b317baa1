"""The engine: what one node does with each message, and what a few of them make of any schedule.

The defects of the library that it closes have their own tests, in ``test_defects_*``.
"""

import itertools
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pysyncobj
import pytest
from harness.members import Refused, run
from harness.ours import EngineMember, state_file
from harness.raft import Cluster, command, entry, is_done, unstamped
from harness.waiting import wait_for
from pysyncobj.node import Node
from rollcall.replication.commands import Deregister, SetStatus
from rollcall.replication.errors import (
    Damaged,
    DiskUnavailable,
    Fatal,
    NotDone,
    NotFound,
    NotLeader,
    Overloaded,
    Overwritten,
    TooLarge,
    Unknown,
)
from rollcall.replication.network import wire
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft import engine as engine_module
from rollcall.replication.raft import progress as progress_module
from rollcall.replication.raft import proposals as proposals_module
from rollcall.replication.raft import snapshot_transfer as install_module
from rollcall.replication.raft.library import LEADER
from rollcall.replication.raft.reviewed import REVIEWED, check_library
from rollcall.replication.records import Key
from rollcall.replication.storage import journal as journal_module
from rollcall.replication.storage import reserve as reserve_module
from rollcall.replication.storage import snapshot as snapshot_module
from rollcall.replication.storage.peers import STAYS_S


@pytest.fixture
def member(ours) -> EngineMember:
    """A node "a" whose peers "b" and "c" the test plays."""
    return ours.member()


@pytest.fixture
def no_reserve(monkeypatch):
    """Nothing is kept for when the disk is full: as after all of it was used up."""
    monkeypatch.setattr(reserve_module, "RESERVE_BYTES", 0)


@pytest.fixture
def cluster(tmp_path, clock, monkeypatch) -> Cluster:
    """Three engines that keep little of their log and send in small pieces."""
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 5)
    monkeypatch.setattr(install_module, "PIECE_BYTES", 500)
    monkeypatch.setattr(install_module, "WINDOW_BYTES", 2000)
    monkeypatch.setattr(progress_module, "BATCH_BYTES", 2000)
    return Cluster(tmp_path, clock, snapshot_entries=40)


def propose(member: EngineMember, value: str) -> Proposal:
    """A write that the node has taken up."""
    proposal = member.engine.propose(command(value), time_ns=1)
    member.tick()
    return proposal


def error_of(proposal: Proposal) -> type[Exception] | None:
    assert is_done(proposal)
    return type(proposal.error) if proposal.error is not None else None


def commit_through(member: EngineMember, *values: str) -> None:
    """Makes the node, which leads, commit and apply these values."""
    for value in values:
        propose(member, value)
    member.acknowledge("b", member.term, member.last_index + 1)
    member.tick()
    member.tick()


# -- the library


def test_the_library_that_is_installed_is_the_one_that_was_reviewed():
    check_library()


def test_a_library_with_a_changed_file_is_refused(tmp_path):
    reviewed = Path(pysyncobj.__file__).parent
    for name in REVIEWED:
        shutil.copy(reviewed / name, tmp_path / name)
    check_library(tmp_path)

    for name in REVIEWED:
        (tmp_path / name).write_bytes((reviewed / name).read_bytes() + b"\n")
        with pytest.raises(Fatal, match=f"pysyncobj's {name} is not the file"):
            check_library(tmp_path)
        shutil.copy(reviewed / name, tmp_path / name)


def test_the_library_and_the_engine_read_one_clock():
    """By itself the library reads one that no time service steers; deadlines cross between the two."""
    library = pysyncobj.syncobj  # pyright: ignore[reportAttributeAccessIssue]
    former = engine_module.time.monotonic()

    assert former <= library.monotonicTime() <= engine_module.time.monotonic()


def test_membership_and_versions_of_the_library_cannot_be_changed(member):
    with pytest.raises(Exception, match="dynamicMembershipChange is disabled"):
        member.engine.raft._library.addNodeToCluster(Node("d"))
    with pytest.raises(Exception, match="dynamicMembershipChange is disabled"):
        member.engine.raft._library.removeNodeFromCluster(Node("c"))
    assert member.members == {"b", "c"}


# -- votes


def test_a_vote_is_given_once_a_term(member):
    member.ask_vote("b", 5, (1, 0))
    member.ask_vote("c", 5, (1, 0))
    member.ask_vote("b", 6, (1, 0))

    assert member.votes() == [("b", 5), ("b", 6)]


def test_no_vote_for_a_log_that_lacks_entries(member):
    member.append("b", 2, (1, 0), [(2, 1, "x"), (3, 2, "y")])

    member.ask_vote("c", 5, (2, 2))
    member.ask_vote("c", 6, (9, 1))
    member.ask_vote("c", 7, (3, 2))

    assert member.votes() == [("c", 7)]


def test_a_vote_counts_once_a_voter(ours):
    member = ours.member(members=("a", "b", "c", "d", "e"))
    member.tick(2.0)

    for _ in range(3):
        member.grant_vote("b", member.term)
    assert not member.leads
    member.grant_vote("c", member.term)

    assert member.leads


def test_a_vote_of_an_earlier_term_does_not_count(member):
    member.tick(2.0)
    earlier = member.term
    member.tick(2.0)
    assert member.term == earlier + 1

    member.grant_vote("b", earlier)

    assert not member.leads


# -- entries


def test_only_what_conflicts_is_replaced(member):
    member.append("b", 1, (1, 0), run(2, 9))

    member.append("c", 2, (3, 1), [(4, 1, "v4.1"), (5, 2, "new")])

    assert member.entries()[1:] == [*run(2, 4), (5, 2, "new")]
    assert member.acknowledged()[-1] == ("c", 6)


def test_a_leader_that_contradicts_a_committed_entry_stops_the_node(member):
    member.append("b", 1, (1, 0), run(2, 9), commit=6)

    with pytest.raises(Refused, match="contradicts a committed one"):
        member.append("c", 2, (4, 1), [(5, 2, "other")])

    assert member.entries()[1:] == run(2, 9)


def test_entries_from_before_the_start_of_the_log_are_skipped(member):
    member.append("b", 1, (1, 0), run(2, 9), commit=9)
    member.tick()
    member.save_state()
    member.tick()
    assert member.engine.journal.base_index == 9

    member.append("b", 1, (4, 1), run(5, 12), commit=12)
    member.tick()

    assert member.entries()[1:] == run(10, 12)
    assert member.acknowledged()[-1] == ("b", 13)
    assert member.state() == {value for _, _, value in run(2, 12)}


def test_the_commit_index_follows_only_what_was_compared(member):
    member.append("b", 1, (1, 0), run(2, 9))

    member.append("c", 2, (4, 1), commit=8)

    assert member.commit_index == 4


def test_entries_out_of_order_end_the_connection_and_change_nothing(member):
    before = member.entries()

    for entries in (
        [(2, 1, "x"), (4, 1, "y")],
        [(3, 1, "x")],
        [(2, 1, "x"), (3, 0, "y")],
        [(2, 5, "of a later term than the leader's")],
    ):
        member.connect("b")
        member.append("b", 1, (1, 0), entries)
        assert not member.network.is_up("a", "b")

    assert member.entries() == before


def test_a_stale_leader_is_told_of_the_later_term(member):
    member.append("b", 5, (1, 0), run(2, 3, term=5))

    member.append("c", 4, (1, 0), [(2, 4, "stale")])

    assert unstamped(member.take("c")) == [wire.AppendEntriesResponse(5, 0, False, False)]
    assert member.entries()[1:] == run(2, 3, term=5)


def test_a_leader_that_hears_of_a_later_term_steps_down(member):
    term = member.elect()

    member.receive("b", wire.AppendEntriesResponse(term + 4, 0, False, False))

    assert not member.leads
    assert member.term == term + 4


def test_two_leaders_in_one_term_stop_the_node(member):
    term = member.elect()

    with pytest.raises(Refused, match="two leaders in term"):
        member.append("b", term, (1, 0))


def test_an_acknowledgement_of_what_does_not_exist_stops_both_sides(member):
    """Whoever leads has all that was agreed on: one of the two has forgotten something. Neither may go on as if not."""
    term = member.elect()
    last = member.last_index

    with pytest.raises(Refused) as caught:
        member.acknowledge("b", term, last + 2)

    said = f"b holds what was agreed on up to entry {last + 1}, and the log of a, the leader of term {term}, ends at"
    assert said in str(caught.value)
    assert f"entry {last} of term {term}. " in str(caught.value)
    assert "an older copy of a data directory took part. Stop all nodes" in str(caught.value)
    assert [(told.final, told.reason) for told in member.take("b") if isinstance(told, wire.Refused)] == [
        (True, str(caught.value))
    ]
    assert member.commit_index == 1


def test_a_node_that_is_told_that_a_peer_stops_for_it_stops(member):
    member.append("b", 3, (1, 0), run(2, 5, 3))

    with pytest.raises(Refused, match="b stops, and so does this node: they cannot both be right"):
        member.receive("b", wire.Refused("they cannot both be right", final=True))


def test_a_leader_commits_nothing_of_earlier_terms_by_counting(member):
    """Paper, figure 8: an entry of an earlier term is committed with one of the leader's own."""
    member.append("b", 1, (1, 0), run(2, 5))
    term = member.elect()

    member.acknowledge("c", term, 6)
    member.tick()
    assert member.commit_index == 1
    member.acknowledge("c", term, 7)
    member.tick()

    assert member.commit_index == 6


def test_a_refused_leader_sends_one_message_until_it_is_agreed_with(member):
    member.append("b", 1, (1, 0), run(2, 30))
    term = member.elect()
    member.take("b")

    for _ in range(3):
        member.receive("b", wire.AppendEntriesResponse(term, 5, False, True))
        member.tick()

    probes = [message for message in member.take("b") if message.previous_index]
    assert [probe.previous_index for probe in probes] == [4]
    assert probes[0].entries[0][1] == 5


def test_a_refusal_that_names_the_first_entry_is_answered_with_the_second(member):
    term = member.elect()
    member.take("b")

    member.receive("b", wire.AppendEntriesResponse(term, 0, False, True))
    member.tick(0.2)

    assert {message.previous_index for message in member.take("b")} == {1}


def test_messages_of_the_transport_that_are_none_of_the_engines_end_the_connection(member):
    member.receive("b", wire.Request(1, "echo", b""))

    assert not member.network.is_up("a", "b")


# -- proposals


def test_a_follower_refuses_a_write(member):
    assert error_of(propose(member, "x")) is NotLeader


def test_a_write_is_settled_when_it_is_applied(member):
    term = member.elect()
    proposal = propose(member, "x")
    assert not is_done(proposal)

    member.acknowledge("b", term, member.last_index + 1)
    member.tick()

    assert error_of(proposal) is None
    assert proposal.outcome.index == member.last_index


def test_a_write_in_whose_place_another_was_committed_is_certainly_not_done(member):
    term = member.elect()
    proposal = propose(member, "x")
    place = member.last_index

    member.append("b", term + 1, (1, 0), run(2, place, term=term + 1), commit=place)
    member.tick()

    assert error_of(proposal) is Overwritten
    assert issubclass(Overwritten, NotDone)


def test_a_write_that_was_cut_off_and_not_replaced_stays_unsettled_or_unknown(member):
    """Another node may hold it, be elected, and commit it after all."""
    term = member.elect()
    first, second = propose(member, "x"), propose(member, "y")
    member.append("b", term + 1, (1, 0), [(2, term + 1, "other")])
    assert not is_done(first)

    member.elect()
    third = propose(member, "z")
    fourth = propose(member, "w")

    assert [error_of(proposal) for proposal in (first, second) if is_done(proposal)] in ([Unknown], [Unknown, Unknown])
    assert not is_done(third)
    assert not is_done(fourth)


def test_a_write_whose_place_a_state_file_took_is_unknown(member):
    term = member.elect()
    proposal = propose(member, "x")

    member.install("b", term + 1, (50, term + 1), ["kept"], damaged=False)
    member.tick()

    assert error_of(proposal) is Unknown


def test_what_waits_is_bounded(member, monkeypatch):
    monkeypatch.setattr(proposals_module, "PROPOSALS_MAX", 3)
    member.elect()

    proposals = [member.engine.propose(command(f"v{number}"), time_ns=1) for number in range(5)]

    assert [error_of(proposal) for proposal in proposals if is_done(proposal)] == [Overloaded, Overloaded]


def test_a_write_that_was_given_up_in_time_is_never_taken_up(member):
    member.elect()
    before = member.last_index
    proposal = member.engine.propose(command("x"), time_ns=1)

    proposal.give_up("the client is gone")
    member.tick()

    assert error_of(proposal) is NotDone
    assert member.last_index == before


def test_closing_leaves_nobody_without_an_answer(member):
    member.elect()
    taken = propose(member, "x")
    waiting = member.engine.propose(command("y"), time_ns=1)

    member.close()

    assert (error_of(taken), error_of(waiting)) == (Unknown, NotDone)


# -- applying


def test_a_listener_that_raises_neither_stops_nor_doubles_anything(member):
    seen = []
    member.engine.applying._listeners.insert(0, lambda index, events: 1 // 0)
    member.engine.listen(lambda index, events: seen.append(index))
    term = member.elect()
    proposal = propose(member, "x")

    member.acknowledge("b", term, member.last_index + 1)
    for _ in range(3):
        member.tick()

    assert error_of(proposal) is None
    assert member.applied == ["x"]
    assert seen == [2, 3]


def test_errors_that_differ_between_nodes_are_not_taken_for_results(member, monkeypatch):
    """Out of memory is no outcome of a command: the next node may have enough."""
    for error in (MemoryError, OSError, Fatal):
        monkeypatch.setattr(member.engine.registry, "apply", _raising(error("here only")))
        with pytest.raises(Refused, match="here only"):
            member.append("b", 1, (1, 0), run(2, 2), commit=2)
            member.tick()
        assert member.engine.registry.applied_index == 1


def _raising(error: Exception):
    def apply(*arguments: object) -> None:
        raise error

    return apply


def test_a_thread_waits_for_an_index_to_be_applied(member):
    waited: list[bool] = []
    threads = [
        threading.Thread(target=lambda index=index: waited.append(member.engine.wait_applied(index, _soon(member))))
        for index in (4, 3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: member.engine.applying.waiters == 2, "both threads to wait", every_s=0.001)

    member.append("b", 1, (1, 0), run(2, 4), commit=4)
    member.tick()
    for thread in threads:
        thread.join(5)

    assert waited == [True, True]
    assert member.engine.wait_applied(4, 0.0)
    assert not member.engine.wait_applied(5, 0.0)
    assert member.engine.applying.waiters == 0


def _soon(member: EngineMember) -> float:
    return member.clock.now + 5.0


def test_a_node_counts_as_caught_up_once_it_applied_what_was_committed_when_it_joined(member):
    member.append("b", 3, (1, 0), run(2, 4, term=3), commit=4)
    member.tick()
    member.restart()
    assert not member.engine.status().caught_up

    # Meanwhile the same leader committed a great deal more.
    member.append("b", 3, (4, 3), run(5, 7, term=3), commit=30)
    member.tick()
    member.tick()
    assert member.engine.raft.applied == 7
    assert not member.engine.status().caught_up
    member.append("b", 3, (7, 3), run(8, 30, term=3), commit=30)
    member.tick()
    member.tick()

    assert member.engine.status().caught_up


def test_a_leader_that_is_cut_off_catches_nobody_up(member):
    """It may not have learnt yet that another leads, and commits."""
    member.append("b", 3, (1, 0), run(2, 4, term=3), commit=4)
    member.restart()

    member.receive("b", wire.AppendEntries(3, 4, 4, 3, (), detached=True))
    member.tick()
    member.tick()
    assert member.engine.raft.applied == 4
    assert not member.engine.status().caught_up

    member.receive("b", wire.AppendEntries(3, 4, 4, 3, ()))
    member.tick()
    assert member.engine.status().caught_up


def test_a_leader_is_caught_up_when_its_first_entry_is_applied(member):
    term = member.elect()
    member.tick()
    assert not member.engine.status().caught_up
    assert not member.engine.status().serving_term

    member.acknowledge("b", term, member.last_index + 1)
    member.tick()
    member.tick()

    assert member.engine.status().serving_term
    assert member.engine.status().caught_up


# -- state files


def test_an_installed_state_file_takes_the_place_of_a_log_that_does_not_reach_it(member):
    member.append("b", 1, (1, 0), run(2, 5))

    member.install("b", 3, (50, 2), ["kept"], damaged=False)
    member.tick()

    assert member.engine.journal[:] == [(b"\x01", 50, 2)]
    assert member.state() == {"kept"}
    assert member.acknowledged()[-1] == ("b", 51)
    member.restart()
    assert member.state() == {"kept"}
    assert member.term == 3


def test_an_installed_state_file_leaves_entries_behind_it_that_belong_there(member):
    member.append("b", 1, (1, 0), run(2, 60))

    member.install("b", 1, (50, 1), ["kept"], damaged=False)
    member.tick()

    assert member.entries()[-10:] == run(51, 60)


def test_a_state_file_older_than_what_is_applied_is_answered_with_what_is_proven(member):
    member.append("b", 1, (1, 0), run(2, 60), commit=60)
    member.tick()

    member.install("b", 1, (50, 1), ["kept"], damaged=False)
    member.tick()

    assert member.acknowledged()[-1] == ("b", 61)
    assert "kept" not in member.state()


def test_after_a_damaged_state_file_the_whole_is_taken_again(member):
    member.install("b", 1, (50, 1), ["kept"], damaged=True)
    member.tick()

    assert member.state() == set()
    member.install("b", 1, (50, 1), ["kept"], damaged=False)
    member.tick()
    assert member.state() == {"kept"}


def test_pieces_out_of_order_are_asked_for_again(member, tmp_path):
    data = state_file(tmp_path / "made", (50, 1), ["kept"])

    member.receive("b", wire.InstallSnapshot(1, 50, 100, len(data), data[100:]))
    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data[:100]))
    member.receive("b", wire.InstallSnapshot(1, 50, 120, len(data), data[120:]))
    member.receive("b", wire.InstallSnapshot(1, 50, 100, len(data), data[100:]))
    member.tick()

    assert [message.offset for message in member.sent(wire.InstallSnapshotResponse)] == [0, 100, 100, len(data)]
    assert member.state() == {"kept"}


def test_a_transfer_begins_anew_after_a_reconnect(member, tmp_path):
    data = state_file(tmp_path / "made", (50, 1), ["kept"])
    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data[:100]))

    member.disconnect("b")
    member.connect("b")
    member.receive("b", wire.InstallSnapshot(1, 50, 100, len(data), data[100:]))

    assert member.sent(wire.InstallSnapshotResponse)[-1].offset == 0
    assert member.acknowledged() == []


def test_a_transfer_that_a_new_leader_does_not_go_on_with_is_forgotten(member, tmp_path):
    """The new leader's log reaches back far enough, so it sends entries, and they must be taken."""
    data = state_file(tmp_path / "made", (50, 1), ["kept"])
    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data[:100]))

    for _ in range(3):
        member.append("c", 2, (1, 0), [(2, 2, "x")], commit=2)
        member.tick()

    assert member.acknowledged()[-1] == ("c", 3)
    assert member.applied == ["x"]


def test_a_transfer_that_the_leader_gave_up_is_forgotten(member, tmp_path):
    """It learned meanwhile that this node holds enough, and goes on with entries, which must be taken."""
    member.append("b", 1, (1, 0), run(2, 5), commit=3)
    data = state_file(tmp_path / "made", (4, 1), ["v2.1", "v3.1", "v4.1"])
    member.receive("b", wire.InstallSnapshot(1, 4, 0, len(data), data[:100]))

    member.append("b", 1, (5, 1), run(6, 6), commit=6)
    member.tick()

    assert member.acknowledged()[-1] == ("b", 7)
    assert member.applied[-1] == "v6.1"


def test_two_files_of_the_same_index_are_never_mixed(member, tmp_path):
    """A new leader has a state file of the same index; the first half came from the old one."""
    data = state_file(tmp_path / "made", (50, 1), ["kept"])
    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data[:100]))

    member.receive("c", wire.InstallSnapshot(2, 50, 100, len(data), data[100:]))

    assert member.take("c")[-1] == wire.InstallSnapshotResponse(2, 50, 0)


def test_a_save_that_ends_after_a_newer_state_file_was_installed_cuts_nothing(member):
    member.append("b", 1, (1, 0), run(2, 20), commit=20)
    member.tick()
    member.bench.worker.held = True
    member.save_state()
    member.install("b", 2, (50, 2), ["kept"], damaged=False)

    member.bench.worker.run()
    for _ in range(3):
        member.tick()

    assert (member.engine.journal.base_index, member.last_index) == (50, 50)
    assert member.engine.compaction.saved.index == 50
    assert member.state() == {"kept"}


def test_a_state_file_that_finds_no_room_waits_for_it(no_reserve, member):
    member.append("b", 1, (1, 0), run(2, 5), commit=5)
    member.tick()
    member.bench.worker.held = True
    member.install("b", 1, (50, 1), ["kept"], damaged=False)
    member.bench.worker.run()
    member.disk.full = True

    for _ in range(3):
        member.tick(0.4)
    assert member.engine.status().disk_error
    assert 51 not in [point for _, point in member.acknowledged()]
    member.disk.full = False
    member.bench.worker.held = False
    for _ in range(40):
        # The leader goes on until it is told that the file is in use.
        member.install("b", 1, (50, 1), ["kept"], damaged=False)
        member.tick(0.4)

    assert member.state() == {"kept"}
    assert member.acknowledged()[-1] == ("b", 51)
    assert not member.engine.status().disk_error


def test_no_descriptor_for_a_state_file_does_not_end_the_process(member, tmp_path, monkeypatch):
    data = state_file(tmp_path / "made", (50, 1), ["kept"])
    monkeypatch.setattr(member.disk, "open", _raising(OSError(28, "No space left on device")))

    member.receive("b", wire.InstallSnapshot(1, 50, 0, len(data), data))
    member.tick()

    assert member.engine.status().disk_error


def test_a_save_that_fails_is_not_tried_again_in_every_round(member):
    member.engine.compaction.entries, member.engine.compaction.interval_s = 10, 300.0
    member.disk.full = True
    member.append("b", 1, (1, 0), run(2, 12), commit=12)
    member.disk.trace.clear()

    for _ in range(20):
        member.tick(0.01)
    attempts = member.disk.trace.count(("open", "snapshot.tmp"))
    member.disk.full = False
    for _ in range(10):
        member.append("b", 1, (12, 1), commit=12)
        member.tick(2.0)

    assert attempts == 1
    assert member.engine.compaction.saved.index == 12


@pytest.mark.parametrize(
    "error", [Damaged("no"), TooLarge("no"), DiskUnavailable("no"), MemoryError(), RuntimeError("no"), OSError(5, "no")]
)
def test_whatever_a_state_file_fails_of_the_log_is_not_cut_and_the_node_lives(member, monkeypatch, error):
    """What was acknowledged is in the log, and stays there."""
    member.engine.compaction.entries, member.engine.compaction.interval_s = 10, 300.0
    failing = Mock(side_effect=error)
    monkeypatch.setattr(snapshot_module.Snapshots, "_save", failing)
    values = run(2, 12)
    member.append("b", 1, (1, 0), values, commit=12)
    for _ in range(600):
        member.tick(0.1)

    assert 3 <= failing.call_count <= 6, "in a minute"
    assert member.engine.status().snapshot_error
    assert member.engine.journal.base_index == 1
    assert len(member.engine.journal) == 12

    monkeypatch.undo()
    for _ in range(70):
        member.append("b", 1, (12, 1), commit=12)
        member.tick(1.0)
    assert member.engine.compaction.saved.index == 12
    assert member.engine.status().snapshot_error == ""
    member.restart()
    assert len(member.state()) == 11


def test_a_cut_that_fails_of_anything_leaves_the_log_as_it_is(member, monkeypatch):
    member.append("b", 1, (1, 0), run(2, 12), commit=12)
    member.tick()
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 0)
    monkeypatch.setattr(journal_module.Journal, "write_cut", Mock(side_effect=RuntimeError("no")))
    member.save_state()
    for _ in range(3):
        member.tick()

    assert len(member.engine.journal) == 12
    assert "could not be cut" in member.engine.status().snapshot_error
    member.restart()
    assert len(member.state()) == 11


def test_a_state_file_without_its_log_is_refused(member):
    """Term, vote and what was acknowledged since are gone: such a node must not vote."""
    member.append("b", 4, (1, 0), run(2, 9, term=4), commit=9)
    member.tick()
    member.save_state()
    member.tick()
    member.close()
    for path in member.directory.glob("journal*"):
        path.unlink()

    with pytest.raises(Refused, match="journal"):
        member.restart()


def test_a_state_file_that_contradicts_what_the_log_holds_for_committed_is_refused(member, tmp_path):
    member.append("b", 1, (1, 0), run(2, 60), commit=60)
    member.close()
    (member.directory / "snapshot").write_bytes(state_file(tmp_path / "made", (50, 2), ["other"]))

    with pytest.raises(Refused, match="contradict"):
        member.restart()


def test_a_follower_behind_the_start_of_the_log_is_sent_the_state_file(member):
    term = member.elect()
    commit_through(member, *(f"v{number}" for number in range(10)))
    member.save_state()
    member.tick()
    base = member.engine.journal.base_index
    assert base > 2

    member.receive("c", wire.AppendEntriesResponse(term, 2, False, True))
    member.tick(0.2)

    pieces = [message for message in member.take("c") if isinstance(message, wire.InstallSnapshot)]
    assert b"".join(piece.data for piece in pieces) == (member.directory / "snapshot").read_bytes()
    assert {piece.index for piece in pieces} == {base}


def test_a_follower_that_runs_on_the_state_file_gets_entries_again(member):
    term = member.elect()
    commit_through(member, *(f"v{number}" for number in range(10)))
    member.save_state()
    member.tick()
    end = member.last_index
    member.receive("c", wire.AppendEntriesResponse(term, 2, False, True))
    member.tick(0.2)
    member.take("c")

    member.acknowledge("c", term, member.engine.compaction.saved.index + 1)
    propose(member, "next")
    member.tick()

    appends = [message for message in member.take("c") if isinstance(message, wire.AppendEntries) and message.entries]
    assert appends[-1].entries[-1] == (entry("next"), end + 1, term)


# -- a disk without room


def full(member: EngineMember) -> Proposal:
    """Fills the disk under a leader, up to the first write that is refused."""
    member.disk.full = True
    for number in range(1000):
        proposal = propose(member, f"fill {number}")
        if is_done(proposal):
            return proposal
    raise AssertionError("the disk never was full")


def test_without_room_a_leader_refuses_writes_and_hands_over(no_reserve, member):
    term = member.elect()
    proposal = full(member)
    end = member.last_index

    assert error_of(proposal) is DiskUnavailable
    assert error_of(propose(member, "x")) is DiskUnavailable
    assert member.last_index == end
    for peer in ("b", "c"):
        member.acknowledge(peer, term, end + 1)
    member.tick()
    member.tick()
    assert [message.term for message in member.sent(wire.TimeoutNow)] == [term]


def test_refused_writes_share_no_exception(no_reserve, member):
    """One that is raised in many threads would keep all their frames alive."""
    member.elect()
    full(member)

    first, second = propose(member, "x"), propose(member, "y")

    assert first.error is not second.error


def test_without_room_a_node_does_not_campaign_but_votes(no_reserve, member):
    member.elect()
    full(member)
    member.append("b", member.term + 1, (1, 0), [])
    term = member.term

    for _ in range(20):
        member.tick(0.3)
    assert member.term == term
    member.receive("b", wire.TimeoutNow(term))
    member.tick()
    assert member.term == term
    member.ask_vote("c", term + 1, (1000, term))

    assert member.votes()[-1] == ("c", term + 1)


def test_without_room_a_follower_acknowledges_nothing_new(no_reserve, member):
    member.append("b", 1, (1, 0), run(2, 3))
    member.disk.full = True
    large = [(4, 1, entry("x" * 4000))]

    member.append("b", 1, (3, 1), large, commit=3)
    assert member.acknowledged()[-1] == ("b", 4)
    assert member.last_index == 3
    member.disk.full = False
    member.tick(2.0)
    member.append("b", 1, (3, 1), large)

    assert member.acknowledged()[-1] == ("b", 5)
    assert not member.engine.status().disk_error


def remove(member: EngineMember, value: str) -> Proposal:
    """A deregistration that the node has taken up."""
    proposal = member.engine.propose(Deregister(Key("default", "s", value)), time_ns=1)
    member.tick()
    return proposal


@pytest.fixture
def reserved(ours, monkeypatch) -> EngineMember:
    """A leader that keeps room for a few hundred entries."""
    monkeypatch.setattr(reserve_module, "RESERVE_BYTES", 64 * 1024)
    monkeypatch.setattr(reserve_module, "MARGIN_BYTES", 8 * 1024)
    monkeypatch.setattr(reserve_module, "STEP_BYTES", 1024)
    monkeypatch.setattr(journal_module, "GROWTH_BYTES", 2 * 1024)
    member = ours.member()
    member.elect()
    commit_through(member, *(f"v{number}" for number in range(10)))
    return member


def acknowledge_short(member: EngineMember, *peers: str) -> None:
    """What followers say that have everything, and no room for more."""
    for peer in peers:
        member.receive(peer, wire.AppendEntriesResponse(member.term, member.last_index + 1, True, False, room=False))
    member.tick()


def fill(member: EngineMember) -> None:
    """Fills the disk under a leader, until it begins to take of what is kept."""
    member.disk.full = True
    for number in range(1_000):
        propose(member, f"fill {number}")
        if not member.engine.reserve.whole:
            return
    raise AssertionError("the disk never was full")


def short_everywhere(member: EngineMember) -> None:
    """All disks are full, up to what is kept."""
    fill(member)
    acknowledge_short(member, "b", "c")


def test_on_nearly_full_disks_what_adds_is_refused_in_words_and_removals_go_on(reserved):
    short_everywhere(reserved)
    refused, removed = propose(reserved, "x"), remove(reserved, "v1")
    override = reserved.engine.propose(SetStatus("default", "s", "v2", "out_of_service"), time_ns=1)
    acknowledge_short(reserved, "b", "c")

    assert error_of(refused) is error_of(override) is DiskUnavailable
    assert refused.error.facts == {"nearly_full": True}
    assert "the disk of a, b, c is nearly full" in refused.error.message
    assert error_of(removed) is None
    assert "v1" not in reserved.state()
    assert "removals go on" in reserved.engine.status().disk_error
    assert str(reserved.directory) in reserved.engine.status().disk_error
    assert reserved.leads


def test_removals_make_room_by_a_smaller_state_file_and_a_shorter_log(reserved, monkeypatch):
    monkeypatch.setattr(compaction_module, "LOG_BYTES_SHORT", 10_000)
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 0)
    short_everywhere(reserved)

    for number in range(1_500):
        removed = remove(reserved, f"v{number}")
        acknowledge_short(reserved, "b", "c")
        assert error_of(removed) is (None if number < 10 else NotFound), number
    reserved.tick(1.0)

    assert reserved.engine.compaction.saved is not None
    assert reserved.engine.journal.size < 20_000
    assert not (reserved.directory / "snapshot.previous").exists()


def test_a_leader_that_is_short_of_room_hands_over_to_whoever_is_not(reserved):
    acknowledge_short(reserved, "c")
    fill(reserved)
    reserved.tick(1.0)
    reserved.acknowledge("b", reserved.term, reserved.last_index + 1)
    reserved.tick()

    assert [to for _, to, message in reserved.network.sent if isinstance(message, wire.TimeoutNow)] == ["b"]


def test_one_full_disk_of_three_stops_nobody(reserved):
    acknowledge_short(reserved, "c")

    taken = propose(reserved, "x")
    reserved.acknowledge("b", reserved.term, reserved.last_index + 1)
    reserved.tick()
    assert error_of(taken) is None
    # Without b a quorum needs c.
    reserved.disconnect("b")
    assert error_of(propose(reserved, "y")) is DiskUnavailable
    reserved.connect("b")
    reserved.acknowledge("b", reserved.term, reserved.last_index + 1)

    assert not is_done(propose(reserved, "z"))


def test_a_follower_that_is_short_of_room_says_so_and_goes_on(reserved):
    reserved.append("b", reserved.term + 1, (1, 0), [])
    reserved.disk.full = True
    last = (reserved.last_index, reserved.engine.journal[-1][2])
    reserved.append("b", reserved.term, last, [(last[0] + 1, reserved.term, "x" * 4_000)])
    reserved.tick()
    reserved.append("b", reserved.term, (last[0] + 1, reserved.term), [])

    answer = reserved.sent(wire.AppendEntriesResponse)[-1]
    assert (answer.success, answer.next_index, answer.room) == (True, last[0] + 2, False)


def test_a_node_starts_on_a_full_disk_says_so_and_is_whole_again_by_itself(reserved):
    short_everywhere(reserved)
    state, starts = reserved.state(), (reserved.directory / "starts").read_bytes()
    reserved.restart()
    reserved.tick()

    assert state <= reserved.state() | {value for _, _, value in reserved.entries()}
    assert "nearly full" in reserved.engine.status().disk_error
    assert (reserved.directory / "starts").read_bytes() != starts, "this start is noted, with what was kept for that"
    reserved.disk.full = False
    reserved.tick(1.5)
    assert reserved.engine.status().disk_error == ""
    reserved.elect()
    taken = propose(reserved, "x")
    reserved.acknowledge("b", reserved.term, reserved.last_index + 1)
    reserved.tick()

    assert error_of(taken) is None


def roomy(member: EngineMember, *peers: str) -> None:
    """What followers say that have everything, and room for more."""
    for peer in peers:
        member.acknowledge(peer, member.term, member.last_index + 1)


def cannot_help(member: EngineMember, peer: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes of ``peer``, which has said that it has room, one that completes no quorum."""
    node = next(node for node in member.engine.followers.known if node.id == peer)
    follower = member.engine.followers.known[node]
    if why == "does not vote":
        member.receive(peer, wire.AppendEntriesResponse(member.term, member.last_index + 1, True, False, voting=False))
    elif why == "is sent a state file":
        member.save_state()
        member.tick()
        follower.sending = install_module.Outgoing(member.directory / "snapshot", 1_000, member.clock.now)
    elif why == "disagrees":
        member.receive(peer, wire.AppendEntriesResponse(member.term, 2, False, True))
    elif why == "is silent":
        member.clock.now += 5.0
    elif why == "said nothing yet":
        member.append("b", member.term + 1, (1, 0), [])
        member.elect()
        roomy(member, *(other for other in member.peers if other != peer))
    elif why == "has a clock that is off":
        trusts = member.engine.pings.clocks.trusts
        monkeypatch.setattr(
            member.engine.pings.clocks, "trusts", lambda name, *now: name != peer and trusts(name, *now)
        )


@pytest.mark.parametrize("why", ["does not vote", "is sent a state file", "disagrees", "is silent", "said nothing yet"])
def test_room_where_no_quorum_can_come_of_it_is_not_counted(reserved, why, monkeypatch):
    roomy(reserved, "b")
    acknowledge_short(reserved, "c")
    assert not is_done(propose(reserved, "with b"))

    cannot_help(reserved, "b", why, monkeypatch)
    acknowledge_short(reserved, "c")
    refused = propose(reserved, "without b")

    assert error_of(refused) is DiskUnavailable
    assert "the disk of c is nearly full" in refused.error.message
    # What will be over in a moment is tried again by whoever serves the client.
    assert ("nearly_full" not in refused.error.facts) == (why in ("disagrees", "said nothing yet"))


def handed(member: EngineMember) -> list[str]:
    return [to for _, to, message in member.network.sent if isinstance(message, wire.TimeoutNow)]


def test_who_is_elected_while_it_is_short_refuses_nothing_for_good_and_hands_over_at_once(reserved):
    fill(reserved)
    reserved.append("b", reserved.term + 1, (1, 0), [])
    reserved.elect()

    refused = propose(reserved, "x")
    assert error_of(refused) is DiskUnavailable
    assert refused.error.facts == {}, "another may take it in a moment"
    roomy(reserved, "b")
    for _ in range(3):
        reserved.tick()

    assert handed(reserved) == ["b"]


@pytest.mark.parametrize(
    "why",
    [
        "does not vote",
        "is sent a state file",
        "disagrees",
        "is silent",
        "said nothing yet",
        "has a clock that is off",
    ],
)
def test_leadership_is_not_offered_for_want_of_room_to_who_cannot_take_it(reserved, why, monkeypatch):
    """All writes would rest meanwhile, again and again."""
    roomy(reserved, "b")
    acknowledge_short(reserved, "c")
    cannot_help(reserved, "b", why, monkeypatch)
    acknowledge_short(reserved, "c")
    reserved.disk.full = True
    assert reserved.engine.reserve.take(1)

    for _ in range(20):
        reserved.tick(0.1)
        acknowledge_short(reserved, "c")
        assert not reserved.engine.handover.under_way


def test_hand_overs_for_want_of_room_that_nobody_takes_are_ever_more_rare(reserved):
    roomy(reserved, "b")
    acknowledge_short(reserved, "c")
    fill(reserved)
    tried: list[float] = []
    began = reserved.clock.now

    while reserved.clock.now < began + 100.0:
        reserved.tick(0.25)
        roomy(reserved, "b")
        acknowledge_short(reserved, "c")
        if reserved.engine.handover.under_way and (not tried or reserved.clock.now - tried[-1] > 1.5):
            tried.append(reserved.clock.now)

    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert tried[0] - began < 1.0
    assert pauses == pytest.approx([2, 3, 5, 9, 17, 33], abs=0.6)


def test_where_nothing_can_be_cut_state_files_are_not_written_back_to_back(reserved, monkeypatch):
    """The followers need all of the log still, and it grew by more than what is much where there is little room."""
    monkeypatch.setattr(compaction_module, "LOG_BYTES_SHORT", 1_000)
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 2_000)
    fill(reserved)
    reserved.disk.trace.clear()

    for number in range(100):
        remove(reserved, f"v{number}")
        acknowledge_short(reserved, "b", "c")
        reserved.tick(0.1)

    assert 1 <= reserved.disk.trace.count(("rename", "snapshot.tmp")) <= 3


def test_what_a_state_file_sets_free_is_kept_for_the_log_at_once(reserved):
    short_everywhere(reserved)
    reserved.engine.reserve.take(60_000)
    reserved.engine.room.restore_at = reserved.clock.now + 1_000.0
    reserved.disk.full = True
    before = (reserved.directory / "reserve").stat().st_size
    assert before < 10_000

    reserved.disk._room = 10_000
    reserved.save_state()
    reserved.tick()

    assert before < (reserved.directory / "reserve").stat().st_size <= 32 * 1024


def test_a_follower_on_a_full_disk_takes_a_state_file_into_what_is_kept(reserved):
    """It gives up the one before for that; until now it waited for an operator, with all of that lying there."""
    reserved.save_state()
    commit_through(reserved, "w1")
    reserved.save_state()
    reserved.tick()
    assert (reserved.directory / "snapshot.previous").exists()
    reserved.disk.full = True
    values = [f"kept {number:05}" for number in range(80)]

    reserved.install("b", reserved.term + 1, (500, reserved.term), values, damaged=False)
    for _ in range(3):
        reserved.tick()

    assert reserved.state() == set(values)
    assert not (reserved.directory / "snapshot.previous").exists()
    assert not reserved.engine.status().stores_nothing
    assert reserved.engine.reserve.short


def test_hints_of_what_peers_said_take_nothing_of_what_is_kept(cluster):
    leader = cluster.wait_for_leader()
    began = cluster.clock.now
    cluster.until(lambda: cluster.clock.now > began + 2 * STAYS_S, "all to have met")
    for disk in cluster.disks.values():
        disk.full = True

    for number in range(8):
        cluster.write(leader, f"v{number}")
        for _ in range(15):
            cluster.round()

    assert all(cluster[name].reserve.whole for name in cluster.names)


def test_a_reserve_that_cannot_be_made_is_said_and_refuses_nothing(ours, monkeypatch, caplog):
    member = ours.member()
    member.close()
    (member.directory / "reserve").unlink()
    (member.directory / "reserve").mkdir()
    monkeypatch.setattr(member.disk, "open", opens_no_directory(member.disk.open))
    member.restart()
    member.elect()
    for _ in range(3):
        member.tick(1.0)
        roomy(member, "b", "c")

    taken = propose(member, "x")
    roomy(member, "b")
    member.tick()
    status = member.engine.status()

    assert error_of(taken) is None
    assert "Is a directory" in status.disk_error
    assert not status.stores_nothing
    assert [record.message for record in caplog.records].count(status.disk_error) == 1


def opens_no_directory(opens):
    def checks(path: Path) -> int:
        if path.is_dir():
            raise OSError(21, "Is a directory")
        return opens(path)

    return checks


def test_with_room_again_a_node_leads_again(no_reserve, member):
    member.elect()
    full(member)
    member.append("b", member.term + 1, (1, 0), [])
    member.disk.full = False

    member.tick(1.5)
    member.elect()
    proposal = propose(member, "x")
    member.acknowledge("b", member.term, member.last_index + 1)
    member.tick()

    assert error_of(proposal) is None


def test_a_failing_sync_stops_the_node_and_nothing_leaves(member, monkeypatch):
    monkeypatch.setattr(member.disk, "sync", _raising(OSError(5, "Input/output error")))

    with pytest.raises(Refused, match="what is on disk is unknown"):
        member.ask_vote("b", 5, (1, 0))

    assert member.votes() == []


# -- the loop


def loop(
    member: EngineMember, monkeypatch: pytest.MonkeyPatch, errors: Sequence[Exception | None]
) -> list[BaseException]:
    """Runs the loop on rounds that fail like this; what the node gave up with."""
    rounds = list(errors)

    def tick() -> None:
        error = rounds.pop(0) if rounds else None
        if error is not None:
            raise error
        if not rounds:
            member.engine._stopping = True

    monkeypatch.setattr(member.engine, "tick", tick)
    member.engine._run()
    return member.bench.failures


def test_a_node_survives_odd_failures(member, monkeypatch):
    odd = ValueError("odd")

    assert loop(member, monkeypatch, [odd, odd, None, odd, KeyError("k"), odd, None]) == []


def test_a_node_gives_up_when_every_round_fails_the_same_way(member, monkeypatch):
    same = [ValueError("same") for _ in range(5)]

    assert loop(member, monkeypatch, same) == [same[2]]


@pytest.mark.parametrize("error", [Fatal("fatal"), OSError(5, "I/O"), MemoryError()])
def test_a_node_gives_up_at_once_when_going_on_is_not_safe(member, monkeypatch, error):
    member.elect()
    taken = propose(member, "x")

    assert loop(member, monkeypatch, [error]) == [error]
    assert error_of(taken) is Unknown


def test_the_thread_of_the_loop_ends_with_the_node(tmp_path, clock):
    cluster = Cluster(tmp_path, clock, nodes=1)
    engine = cluster["n1"]
    engine.start()
    clock.now += 2.0
    seen = engine.leadership
    wait_for(lambda: engine.status().serving_term, "a leader of one", every_s=0.001)

    proposal = engine.propose(command("x"), time_ns=1)
    assert proposal.result_by(time.monotonic() + 10).kinds == ("created",)
    engine.close()

    assert not engine._thread.is_alive()
    assert seen.leader in (None, "n1")


# -- a few nodes together


def test_three_nodes_elect_one_leader_and_hold_the_same(cluster):
    leader = cluster.wait_for_leader()

    cluster.write(leader, *(f"v{number}" for number in range(30)))
    cluster.settle()

    for name in cluster.names:
        assert cluster.values(name) == {f"v{number}" for number in range(30)}
    assert all(cluster[name].status().caught_up for name in cluster.names)


def test_a_leader_that_is_cut_off_steps_down_and_acknowledges_nothing(cluster):
    leader = cluster.wait_for_leader()
    cluster.write(leader, "before")
    others = [name for name in cluster.names if name != leader]
    cluster.partition([leader], others)

    lost = cluster.propose(leader, "lost")
    follower = cluster.wait_for_leader(*others)
    cluster.write(follower, "after")
    cluster.until(lambda: cluster[leader].raft.role != LEADER, "the old leader to step down")
    assert not is_done(lost)
    cluster.heal()
    cluster.settle()

    assert error_of(lost) is Overwritten
    for name in cluster.names:
        assert cluster.values(name) == {"before", "after"}


def test_a_stale_leader_that_can_still_send_harms_nothing(cluster):
    """What it sends arrives; what is answered does not."""
    leader = cluster.wait_for_leader()
    others = [name for name in cluster.names if name != leader]
    for other in others:
        cluster.network.muted.add((other, leader))
    stale = cluster.propose(leader, "stale")
    cluster.until(lambda: cluster.serving() in others, "another leader")
    cluster.write(cluster.serving(), "after")
    cluster.network.muted.clear()
    cluster.settle()

    values = {name: cluster.values(name) for name in cluster.names}
    assert len({frozenset(held) for held in values.values()}) == 1
    assert ("stale" in values[leader]) == (error_of(stale) is None)


def test_a_node_far_behind_gets_a_state_file_and_goes_on_from_there(cluster):
    leader = cluster.wait_for_leader()
    behind = next(name for name in cluster.names if name != leader)
    cluster.kill(behind)
    for number in range(0, 200, 20):
        cluster.write(leader, *(f"v{index}" for index in range(number, number + 20)))
    assert cluster[leader].journal.base_index > 50

    cluster.start(behind)
    cluster.settle()

    assert cluster[behind].journal.base_index > 50
    assert cluster.values(behind) == {f"v{number}" for number in range(200)}
    cluster.write(leader, "next")
    cluster.settle()
    assert "next" in cluster.values(behind)


def test_a_state_file_arrives_although_the_connection_keeps_breaking(cluster):
    leader = cluster.wait_for_leader()
    behind = next(name for name in cluster.names if name != leader)
    cluster.kill(behind)
    for number in range(0, 200, 20):
        cluster.write(leader, *(f"v{index}" for index in range(number, number + 20)))
    cluster.start(behind)

    for number in range(60):
        cluster.round()
        if number % 7 == 0 and number < 40:
            cluster.network.disconnect(leader, behind)
    cluster.settle()

    assert cluster.values(behind) == {f"v{number}" for number in range(200)}


def test_a_conflict_longer_than_a_message_ends(cluster, monkeypatch):
    monkeypatch.setattr(progress_module, "BATCH_BYTES", 150)
    leader = cluster.wait_for_leader()
    others = [name for name in cluster.names if name != leader]
    cluster.partition([leader], others)
    lost = [cluster.propose(leader, f"lost {number}") for number in range(30)]
    follower = cluster.wait_for_leader(*others)
    cluster.write(follower, *(f"kept {number}" for number in range(30)))

    cluster.heal()
    cluster.settle()

    assert cluster.values(leader) == {f"kept {number}" for number in range(30)}
    assert {error_of(proposal) for proposal in lost} == {Overwritten}


def test_leadership_is_handed_over(cluster):
    leader = cluster.wait_for_leader()
    cluster.write(leader, "before")

    cluster.benches[leader].transport.post(cluster[leader].handover.begin)
    began = cluster.clock.now
    new = cluster.wait_for_leader(*(name for name in cluster.names if name != leader))

    assert cluster.clock.now - began < 0.3
    cluster.write(new, "after")
    cluster.settle()
    assert cluster.values(leader) == {"before", "after"}


def test_leadership_is_handed_over_under_a_stream_of_writes(cluster):
    leader = cluster.wait_for_leader()
    proposals: dict[str, Proposal] = {}
    for number in range(100):
        for part in range(3):
            value = f"v{number}.{part}"
            proposals[value] = cluster.propose(cluster.serving() or leader, value)
        if number == 20:
            cluster.benches[leader].transport.post(cluster[leader].handover.begin)
        cluster.round()
    new = cluster.wait_for_leader()
    cluster.until(lambda: all(map(is_done, proposals.values())), "an answer to every write")
    cluster.settle()

    assert new != leader
    errors = {error_of(proposal) for proposal in proposals.values()}
    assert errors <= {None, NotLeader, Overwritten, Unknown}
    done = {value for value, proposal in proposals.items() if proposal.error is None}
    assert len(done) > 200
    for name in cluster.names:
        assert done <= cluster.values(name)
        assert not cluster.values(name) & {v for v, p in proposals.items() if isinstance(p.error, NotDone)}


def test_leadership_is_handed_to_the_node_that_was_asked_for(cluster):
    leader = cluster.wait_for_leader()
    for wanted in (name for name in cluster.names if name != leader):
        begun = cluster[cluster.wait_for_leader()].hand_over(wanted)
        cluster.until(lambda wanted=wanted: cluster.serving() == wanted, f"{wanted} to lead")
        assert begun.error is None


def test_who_cannot_hand_over_or_take_over_says_why(cluster):
    leader = cluster.wait_for_leader()
    gone, other = (name for name in cluster.names if name != leader)
    cluster.kill(gone)
    refused = [cluster[leader].hand_over(gone), cluster[leader].hand_over("nobody"), cluster[other].hand_over()]
    cluster.until(lambda: all(asked.done() for asked in refused), "answers")

    assert [type(asked.error) for asked in refused] == [NotDone, NotDone, NotLeader]
    assert refused[0].error.message.startswith(f"{gone} cannot take over now")
    assert cluster.serving() == leader
    cluster.write(leader, "goes on")


def test_leadership_is_not_handed_to_a_node_that_is_about_to_stop(cluster):
    leader = cluster.wait_for_leader()
    # Of two that are equally far, the greater name would be chosen.
    able, draining = sorted(name for name in cluster.names if name != leader)
    cluster[draining].drain()
    cluster.round()
    cluster.round()

    cluster.benches[leader].transport.post(cluster[leader].handover.begin)

    assert cluster.wait_for_leader(draining, able) == able


def test_a_leader_whose_disk_is_full_gives_way_and_takes_part_again(no_reserve, cluster):
    leader = cluster.wait_for_leader()
    cluster.disks[leader].full = True
    journal = cluster[leader].journal
    journal._reserved = journal._end + journal_module.RESERVE_BYTES

    refused = cluster.propose(leader, "x")
    new = cluster.wait_for_leader(*(name for name in cluster.names if name != leader))
    cluster.write(new, "y")
    assert error_of(refused) is DiskUnavailable
    cluster.disks[leader].full = False
    cluster.settle()

    for name in cluster.names:
        assert cluster.values(name) == {"y"}


def test_a_follower_that_is_behind_syncs_once_for_all_that_waits_for_it(cluster):
    """Each message of a busy leader moves the commit index. Were each of them made durable by itself, a follower
    with a slow disk would fall behind further and further."""
    leader = cluster.wait_for_leader()
    cluster.settle()
    follower = next(name for name in cluster.names if name != leader)
    cluster.paused.add(follower)
    for number in range(12):
        cluster.propose(leader, f"v{number}")
        cluster.round()
    cluster.paused.discard(follower)
    before = cluster[follower].journal.sync_count

    cluster.until(lambda: "v11" in cluster.values(follower), "the follower to catch up", 20)

    assert cluster[follower].journal.sync_count - before <= 4


def test_what_a_follower_was_told_is_committed_is_on_its_disk_before_it_counts(cluster):
    leader = cluster.wait_for_leader()
    cluster.settle()
    follower = next(name for name in cluster.names if name != leader)
    journal = cluster[follower].journal
    unsynced: list[int] = []
    set_commit = journal.setRaftCommitIndex

    def watched(index: int) -> None:
        if journal._unsynced:
            unsynced.append(index)
        set_commit(index)

    journal.setRaftCommitIndex = watched
    for number in range(10):
        cluster.write(leader, f"v{number}")
    cluster.settle()

    assert not unsynced


def test_a_follower_takes_what_its_leader_says_is_committed_for_that_before_its_disk_has_it(cluster):
    """Another message of the same poll may not cut it off any more: two histories were agreed on."""
    leader = cluster.wait_for_leader()
    cluster.write(leader, "v")
    cluster.settle()
    follower = next(name for name in cluster.names if name != leader)
    engine = cluster[follower]
    node = next(node for node in engine._wire.nodes() if node.id == leader)
    last, term = engine.journal.last_index, engine.raft.term
    entry = (b"\x01", last + 1, term)
    engine._on_message(node, wire.AppendEntries(term, last + 1, last, term, (entry,)))
    assert engine.raft.commit_index == last

    with pytest.raises(Fatal, match="contradicts a committed one"):
        engine._on_message(node, wire.AppendEntries(term + 1, last + 1, last, term, ((b"\x01", last + 1, term + 1),)))
