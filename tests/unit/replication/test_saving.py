"""When a state file is due, and how failures are spaced."""

import itertools

from rollcall.replication.raft.compaction import AGAIN_S, AGAIN_S_MAX, Saving


def test_one_is_due_when_much_has_come_or_the_interval_is_over() -> None:
    pace = Saving(100.0)

    assert pace.due(100.0, many=True, interval_s=300.0)
    assert not pace.due(399.0, many=False, interval_s=300.0)
    assert pace.due(401.0, many=False, interval_s=300.0)
    pace.begun(401.0)
    assert not pace.due(402.0, many=False, interval_s=300.0)


def test_failures_in_a_row_are_farther_and_farther_apart_and_never_a_minute() -> None:
    pace = Saving(0.0)
    now, tried = 0.0, []
    while now < 600.0:
        if pace.due(now, many=True, interval_s=300.0):
            tried.append(now)
            pace.begun(now)
            pace.failed("the disk is full", now)
        now += 1.0

    assert tried[:4] == [0.0, AGAIN_S, AGAIN_S * 3, AGAIN_S * 7]
    assert max(later - earlier for earlier, later in itertools.pairwise(tried)) == AGAIN_S_MAX
    assert pace.error == "the disk is full"


def test_after_a_success_nothing_is_left_of_the_failures() -> None:
    pace = Saving(0.0)
    for _ in range(5):
        pace.failed("no", 0.0)
    pace.done()

    assert pace.error == ""
    assert pace.failed("again", 100.0) == AGAIN_S


def test_a_rest_is_counted_from_the_failure_and_not_from_its_beginning() -> None:
    """Writing a large file takes longer than that."""
    pace = Saving(0.0)
    pace.begun(0.0)
    pace.failed("no", 50.0)

    assert not pace.due(54.0, many=True, interval_s=300.0)
    assert pace.due(55.0, many=True, interval_s=300.0)


def test_it_can_be_put_off_without_a_failure() -> None:
    pace = Saving(0.0)
    pace.put_off(0.0)

    assert not pace.due(1.0, many=True, interval_s=300.0)
    assert (pace.due(AGAIN_S, many=True, interval_s=300.0), pace.error) == (True, "")
