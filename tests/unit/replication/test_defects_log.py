"""The library's defects in keeping and committing the log: our engine has none of them, the bare library each.

The numbers are those of DESIGN.md. Each scenario plays the peers of one node.
"""

import pickle

from harness.members import Member, Refused, keeps, proves, require, run
from pysyncobj.node import Node


@proves
def test_d01_a_batch_that_is_sent_again_deletes_nothing_behind_it(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 9))

    member.append("b", 1, (1, 0), run(2, 4))

    keeps(member.entries(), run(2, 9), "entries up to 9 were acknowledged")


@proves
def test_d01_a_late_heartbeat_deletes_nothing_behind_it(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 9))

    member.append("b", 1, (4, 1))

    keeps(member.entries(), run(2, 9), "entries up to 9 were acknowledged")


@proves
def test_d02_a_message_that_proves_nothing_commits_nothing(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 5))

    member.claim("c", 2, commit=9)
    member.tick()

    require(member.commit_index == 1, f"the tail of a deposed leader was committed up to {member.commit_index}")
    require(member.applied == [], f"applied what was never committed: {member.applied}")


@proves
def test_d02_a_deposed_leader_does_not_take_its_own_tail_for_committed(side):
    member = side.member()
    term = member.elect()
    answer = member.propose("lost")

    member.claim("c", term + 1, commit=9)
    member.tick()

    require(not answer.succeeded, "a client was told that its write succeeded, which stands on no other node")


@proves
def test_d02_a_piece_of_a_state_file_commits_nothing(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 5))

    member.install("c", 2, (50, 2), ["kept"], damaged=True)
    member.tick()

    require(member.applied == [], f"applied what was never committed: {member.applied}")


@proves
def test_d03_a_state_file_that_cannot_be_loaded_is_not_acknowledged(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 9))
    before = len(member.acknowledged())

    member.install("c", 2, (50, 2), ["kept"], damaged=True)
    member.tick()

    since = member.acknowledged()[before:]
    require(since == [], f"acknowledged {since} and has nothing of it")


@proves
def test_d04_an_acknowledgement_of_an_earlier_term_counts_for_nothing(side):
    member = side.member()
    first = member.elect()
    for value in ("x", "y", "z"):
        member.propose(value)
    member.append("b", first + 1, (1, 0), [(2, first + 1, "other")])
    second = member.elect()
    member.propose("new")

    # It was given in the first of the two terms, for x, y and z, and was long on its way.
    member.acknowledge("c", first, member.last_index + 1)
    member.tick()

    require(member.leads and member.term == second, "the leader stepped down")
    require(member.commit_index == 1, f"a leader committed up to {member.commit_index} alone")


@proves
def test_d05_entries_behind_a_state_file_survive_a_crash_before_the_log_is_cut(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 10), commit=10)
    member.tick()
    member.save_state()
    member.append("b", 1, (10, 1), run(11, 20), commit=10)

    member.restart()

    keeps(member.entries(), run(11, 20), "entries up to 20 were acknowledged")


@proves
def test_d07_a_vote_is_on_disk_before_it_leaves(side):
    member = side.member()
    member.trace.clear()

    member.ask_vote("b", 5, (1, 0))

    synced_before(member, "send RequestVoteResponse")


@proves
def test_d07_a_candidacy_is_on_disk_before_it_is_announced(side):
    member = side.member()
    member.trace.clear()

    member.tick(2.0)

    synced_before(member, "send RequestVote")


@proves
def test_d07_entries_are_on_disk_before_they_are_acknowledged(side):
    member = side.member()
    member.trace.clear()

    member.append("b", 1, (1, 0), run(2, 3))

    synced_before(member, "send AppendEntriesResponse")


@proves
def test_d07_a_leader_has_a_write_on_disk_before_it_answers(side):
    member = side.member()
    term = member.elect()
    member.trace.clear()
    answer = member.propose("x")
    member.acknowledge("b", term, member.last_index + 1)
    member.tick()
    member.tick()
    assert answer.succeeded

    synced_before(member, "answer")


def synced_before(member: Member, what: str) -> None:
    """Since the trace was cleared there was a sync, with no change behind it, before the first ``what``."""
    assert what in member.trace
    before = member.trace[: member.trace.index(what)]
    steps = [step for step in before if step in ("change", "sync")]
    require(steps[-1:] == ["sync"], f"{what} left before the disk had what it implies: {member.trace}")


@proves
def test_d08_an_entry_is_not_applied_before_it_is_committed_whatever_a_power_cut_left(side):
    member = side.member()
    for index in range(2, 9):
        member.append("b", 1, (index - 1, 1 if index > 2 else 0), run(index, index), commit=index)
        member.tick()

    restarts = 0
    for _ in member.restarts_after_power_cuts():
        restarts += 1
        last, term, _ = member.entries()[-1]
        require(member.commit_index <= last, f"the log ends at {last} and is committed up to {member.commit_index}")
        member.append("c", 9, (last, term), [(last + 1, 9, "fresh")], commit=1)
        member.tick()
        require("fresh" not in member.applied, "an entry was applied that only this node has")
    assert restarts


@proves
def test_d12_a_callback_that_raises_does_not_make_an_entry_apply_twice(side):
    member = side.member(members=("a",))
    member.tick(2.0)
    member.tick()

    member.propose("x", raising=True)
    for _ in range(5):
        member.tick()

    require(member.applied == ["x"], f"one write was applied as {member.applied}")


@proves
def test_d13_a_command_that_cannot_be_applied_does_not_stop_those_behind_it(side):
    member = side.member(poison="poison")
    entries = [(2, 1, "before"), (3, 1, "poison"), (4, 1, "behind")]
    member.append("b", 1, (1, 0), entries, commit=4)

    for _ in range(10):
        member.tick(0.01)

    require(member.applied == ["before", "behind"], f"after ten rounds only {member.applied} is applied")


@proves
def test_d14_refusals_in_a_row_name_the_same_point(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 30))

    # What a leader of a later term has on its way at once, all of it in conflict.
    member.append("c", 2, (20, 2), [(21, 2, "x")])
    member.append("c", 2, (21, 2), [(22, 2, "y")])
    member.append("c", 2, (40, 2), [(41, 2, "z")])

    points = set(member.refusals())
    require(len(points) == 1, f"the leader is sent back and forth between {sorted(points)}")


@proves
def test_d14_a_conflict_that_is_longer_than_a_message_ends(side):
    leader = side.member("a", batch_bytes=200)
    follower = side.member("b", batch_bytes=200)
    leader.append("c", 2, (1, 0), run(2, 40, term=2))
    follower.append("c", 1, (1, 0), run(2, 40, term=1))

    # From here on these two are alone, with a good connection and all the time they want.
    leader.tick(2.0)
    for _ in range(100):
        exchange(leader, follower)
        leader.tick(0.06)
        follower.tick()

    assert leader.leads
    require(follower.entries() == leader.entries(), f"after 100 rounds: {follower.entries()}")


def exchange(one: Member, other: Member) -> None:
    for sender, receiver in ((one, other), (other, one)):
        for message in sender.take(receiver.node):
            receiver.receive(sender.node, message)


@proves
def test_d15_a_save_that_ends_after_an_older_state_file_came_does_not_empty_the_log(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 40), commit=40)
    member.tick()
    member.save_state()

    member.install("c", 2, (20, 1), ["old"], damaged=False)
    for _ in range(5):
        member.tick(0.01)

    require(member.entries() != [], "the log is empty")
    require(not [step for step in member.trace if step.startswith("failed")], "every round fails")


@proves
def test_d18_a_log_that_was_cut_is_never_used_without_its_state_file(side):
    member = side.member(state_files=False)
    member.append("b", 1, (1, 0), run(2, 10), commit=10)
    member.tick()
    before = member.state()
    member.save_state()
    member.tick()
    member.append("b", 1, (10, 1), run(11, 11), commit=11)
    member.lose_state_file()

    try:
        member.restart()
    except Refused:
        return
    member.tick()
    require(before <= member.state(), f"the node runs, and of {sorted(before)} it has {sorted(member.state())}")


@proves
def test_d19_an_entry_of_the_log_does_not_change_who_the_members_are(side):
    member = side.member()
    removal = b"\x02" + pickle.dumps(["rem", "c", Node("c")], 2)

    try:
        member.append("b", 1, (1, 0), [(2, 1, removal)], commit=2)
        member.tick()
    except Refused:
        pass

    require(member.members == {"b", "c"}, f"the quorum is now one of {member.members} and this node")


@proves
def test_d21_a_write_is_answered_when_a_state_file_takes_the_place_of_the_log(side):
    member = side.member()
    term = member.elect()
    answer = member.propose("x")

    member.install("c", term + 1, (50, term + 1), ["kept"], damaged=False)
    for _ in range(5):
        member.tick(0.01)

    require(answer.done, "the client waits for ever")
    assert not answer.succeeded
