"""The library's defects in what it keeps on disk: our journal has none of them, the bare library each.

The numbers are those of DESIGN.md.
"""

import contextlib

from harness.members import Refused, keeps, proves, proves_on_0_3_14, require, run


@proves
def test_d06_a_kill_at_any_step_of_a_compaction_loses_nothing(side):
    log = side.log()
    log.add(*run(2, 60))

    for step in range(40):
        base = log.entries()[0][0] + 1
        finished = log.compact(base, cut_at=step)
        log.reopen()
        keeps(log.entries(), run(base + 1, 60), f"entries up to 60 were there, the process was killed at step {step}")
        if finished:
            return
    raise AssertionError("the compaction never came to its end")


@proves_on_0_3_14
def test_d09_a_node_votes_once_in_a_term_whatever_it_forgot(side):
    member = side.member()
    member.ask_vote("b", 5, (1, 0))
    votes = member.votes()

    member.restart()
    member.ask_vote("c", 5, (1, 0))

    require(votes + member.votes() == [("b", 5)], f"votes in one term: {votes + member.votes()}")


@proves_on_0_3_14
def test_d10_the_term_survives_a_restart(side):
    member = side.member()
    member.append("b", 5, (1, 0), run(2, 3, term=5))

    member.restart()

    require(member.term >= 5, f"the term was 5 and is {member.term}")


@proves
def test_d11_a_flipped_bit_in_the_log_is_never_taken_for_data(side):
    log = side.log()
    log.add(*run(2, 4))
    log.add(*run(5, 6))
    before = log.entries()
    content = log.content()

    for position in reversed(range(len(content))):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        log.overwrite(bytes(damaged))
        try:
            log.reopen()
        except Refused:
            log.overwrite(content)
            continue
        require(log.entries() == before, f"a bit of byte {position} was flipped, and the log says {log.entries()}")
        log.overwrite(content)


@proves
def test_d11_a_node_does_not_run_on_a_damaged_state_file(side):
    member = side.member()
    member.append("b", 1, (1, 0), run(2, 10), commit=10)
    member.tick()
    before = member.state()
    member.save_state()
    member.tick()
    member.damage_state_file()

    try:
        member.restart()
    except Refused:
        return

    require(before <= member.state(), f"the node runs, and of {sorted(before)} it has {sorted(member.state())}")


@proves
def test_d17_a_write_that_was_taken_has_its_room_on_the_disk(side):
    log = side.log(real_disk=True)
    for index in range(2, 92):
        log.add((index, 1, "x" * 400))

    size, allocated = log.room()

    require(allocated >= size, f"the file may be written to up to {size}, and the disk has {allocated} bytes for it")


@proves_on_0_3_14
def test_d25_a_first_entry_of_3_kb_leaves_disk_and_memory_equal(side):
    log = side.log()
    with contextlib.suppress(ValueError, IndexError):
        log.add((2, 1, "x" * 3000))
    memory = log.entries()

    log.reopen()

    require(log.entries() == memory, "the log in memory is not the log on disk")
