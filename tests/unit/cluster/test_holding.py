"""What is held for whoever is slow has a sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.front.holding import LITTLE_BYTES, Bytes, Reader, too_slow


def test_one_client_holds_as_many_bytes_as_it_leaves_free():
    held = Bytes(1000)

    assert held.grow("a", 400) and held.grow("a", 100) and not held.grow("a", 1)
    assert held.grow("b", 250) and not held.grow("b", 1)
    assert held.grow("", 250), "who has no share takes what there is"
    assert not held.grow("", 1) and not held.grow("c", 1)
    held.shrink("a", 500)
    assert held.grow("c", 250) and held.taken == 750


MIB = 1024 * 1024


def reader(key: int, holds: dict[int, int], took: int = 0, since: float = 0.0) -> Reader:
    """``holds`` in MiB, and a header of its own."""
    return Reader(key, {**{what: size * MIB for what, size in holds.items()}, 1000 + key: 200}, took, since)


def dropped(readers: list[Reader], most_mib: int) -> set[int]:
    return too_slow(readers, 100.0, most_mib * MIB)


def test_those_who_take_least_lose_their_answers():
    readers = [reader(1, {1: 40}, took=5), reader(2, {2: 40}, took=900), reader(3, {3: 40}), reader(4, {4: 40}, took=7)]

    assert dropped(readers, 200) == set()
    assert dropped(readers, 100) == {1, 3}


def test_an_answer_that_many_are_sent_counts_once():
    shared = [reader(key, {7: 90}) for key in range(50)]

    assert dropped(shared, 100) == set()
    assert dropped([*shared, reader(99, {8: 20}, took=1)], 100) == set(range(50)), "it is freed with the last of them"


def test_who_has_just_begun_has_a_moment():
    assert dropped([reader(1, {1: 40}, since=99.5), reader(2, {2: 40}, took=10)], 50) == {2}


def test_who_was_only_just_answered_is_not_the_one_who_took_least():
    """The others had a part of a second, and what the kernel takes for them at once counts as taken."""
    unread = [reader(key, {key: 40}, took=30, since=99.4 + key / 100) for key in range(1, 5)]

    assert dropped([*unread, reader(9, {9: 40}, since=99.99)], 100) == {1, 2, 3}


def test_one_answer_may_be_larger_than_all_that_is_allowed():
    assert dropped([reader(1, {1: 400})], 50) == set()


def test_an_answer_larger_than_all_that_is_allowed_is_read_by_as_many_as_ask_for_it():
    """Who reads for longest would go first, with each newcomer, and nothing would be freed."""
    reading = [reader(key, {7: 80}, took=30 * MIB + key, since=98.0) for key in range(60)]

    assert dropped([*reading, reader(99, {7: 80}, since=99.9)], 64) == set()


@pytest.mark.parametrize("other", [{}, {8: 1}, {8: 60}])
def test_an_answer_larger_than_all_that_is_allowed_is_read_beside_others(other: dict[int, int]):
    reading = [reader(key, {7: 80}, took=30 * MIB + key, since=98.0) for key in range(60)]

    assert dropped([*reading, reader(99, other, since=99.9)], 64) == set()


def test_of_two_answers_larger_than_all_that_is_allowed_one_is_read():
    assert dropped([reader(1, {1: 80}, took=5), reader(2, {2: 80}, took=9), reader(3, {2: 80}, took=1)], 64) == {1}


def test_who_reads_what_others_go_on_reading_stays_and_who_holds_something_alone_goes():
    first = [reader(key, {1: 30}, took=20 * MIB + key, since=98.0) for key in range(30)]
    second = [reader(key, {2: 30}, took=20 * MIB + key, since=98.0) for key in range(30, 60)]

    assert dropped([*first, *second, reader(99, {3: 30}, took=20 * MIB + 20, since=98.0)], 64) == {99}
    assert dropped([*first, *second, reader(99, {3: 30}, took=90 * MIB, since=98.0)], 64) == set(range(30))


rows = st.lists(
    st.tuples(
        st.sets(st.integers(0, 5), max_size=3).map(lambda those: {what: (30, 70)[what % 2] for what in those}),
        st.integers(0, 9),
        st.sampled_from([0.0, 99.5, 99.9]),
    ),
    max_size=20,
)


def sum_of(readers: list[Reader]) -> int:
    """What lies in memory for them, without what is too little to count."""
    things = {what: size for each in readers for what, size in each.holds.items()}
    return sum(size for size in things.values() if size >= LITTLE_BYTES)


@given(rows, st.integers(0, 200))
def test_what_is_left_fits_beside_one_answer_that_does_not(rows: list, most: int):
    readers = [reader(key, holds, took, since) for key, (holds, took, since) in enumerate(rows)]
    gone = dropped(readers, most)
    largest = max((sum_of([each]) for each in readers), default=0)

    assert sum_of([each for each in readers if each.key not in gone]) <= most * MIB + largest * (largest > most * MIB)
    assert not readers or len(gone) < len(readers)


@given(rows, st.integers(0, 200))
def test_nobody_goes_for_nothing(rows: list, most: int):
    """Whom the others leave behind holds something that they do not."""
    readers = [reader(key, holds, took, since) for key, (holds, took, since) in enumerate(rows)]
    gone = dropped(readers, most)
    left = [each for each in readers if each.key not in gone]

    for each in readers:
        if each.key in gone:
            assert sum_of([*left, each]) > sum_of(left)
    assert not gone or sum_of(readers) > most * MIB
