"""What a client remembers of where it read, and when it forgets that."""

from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.seen import Seen

A, B = "a" * 16, "b" * 16


def seen(history: str, index: int) -> Seen:
    made = Seen()
    made.took(history, index)
    return made


def where(known: Seen) -> tuple[str, int]:
    return known.history, known.index


def test_within_one_history_the_highest_index_counts():
    known = seen(A, 7)

    assert [known.took(A, index) for index in (9, 8)] == [False, False]
    assert where(known) == (A, 9)


def test_an_answer_of_another_history_takes_its_index_along():
    known = seen(A, 900)

    assert known.took(B, 5)
    assert where(known) == (B, 5)


def test_the_first_name_is_no_other_one_and_a_missing_name_changes_nothing():
    known = seen("", 900)

    assert not known.took(A, 5)
    assert not known.took("", 901)
    assert where(known) == (A, 901)


def test_an_answer_of_the_former_history_that_was_on_its_way_changes_nothing():
    known = seen(A, 900)
    known.took(B, 5)

    assert not known.took(A, 901)
    assert where(known) == (B, 5)


def test_what_the_registry_never_had_is_forgotten_whatever_its_history_is_called():
    for told in (A, B, ""):
        known = seen(A, 900)
        assert known.refused(A, 900, told)
        assert where(known) == (told, 0)


def test_a_name_without_an_index_moves_nobody_to_another_history():
    """A node that lags says it with every answer; believed, it would make all that follow look like the former."""
    known = seen(A, 900)

    assert not known.took(B, 0)
    assert where(known) == (A, 900)
    assert not known.took(A, 901)
    assert where(known) == (A, 901)


def test_what_was_refused_once_is_no_news_the_second_time():
    """Two threads asked with the same index."""
    known = seen(A, 900)
    known.refused(A, 900, B)
    known.took(B, 5)

    assert not known.refused(A, 900, B)
    assert where(known) == (B, 5)


def test_an_index_that_was_not_seen_here_is_the_callers_own():
    known = seen(A, 900)

    assert not known.refused("", 10_000, A)
    assert not known.refused(A, 10_000, A)
    assert not known.refused(B, 3, A)
    assert where(known) == (A, 900)


histories = st.sampled_from(["", A, B, "c" * 16])
steps = st.tuples(st.sampled_from(["took", "refused"]), histories, st.integers(0, 20), histories)


@given(st.lists(steps, max_size=30))
def test_an_index_is_never_carried_over_into_another_history(made: list[tuple[str, str, int, str]]):
    """Whatever comes: the index that is asked for was told in that history, or before it had a name."""
    known = Seen()
    told: set[tuple[str, int]] = {("", 0)}
    for step, history, index, other in made:
        if step == "took":
            told.add((history, index))
            known.took(history, index)
        else:
            known.refused(history, index, other)
        assert known.index == 0 or {(known.history, known.index), ("", known.index)} & told
