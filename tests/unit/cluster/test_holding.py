"""What is held for whoever is slow has a sum."""

from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.holding import Bytes, Reader, too_slow


def test_one_client_holds_as_many_bytes_as_it_leaves_free():
    held = Bytes(1000)

    assert held.grow("a", 400) and held.grow("a", 100) and not held.grow("a", 1)
    assert held.grow("b", 250) and not held.grow("b", 1)
    assert held.grow("", 250), "who has no share takes what there is"
    assert not held.grow("", 1) and not held.grow("c", 1)
    held.shrink("a", 500)
    assert held.grow("c", 250) and held.taken == 750


def reader(key: int, holds: dict[int, int], took: int = 0, since: float = 0.0) -> Reader:
    return Reader(key, holds, took, since)


def test_those_who_take_least_lose_their_answers():
    readers = [reader(1, {1: 40}, took=5), reader(2, {2: 40}, took=900), reader(3, {3: 40}), reader(4, {4: 40}, took=7)]

    assert too_slow(readers, 100.0, 200) == set()
    assert too_slow(readers, 100.0, 100) == {1, 3}


def test_an_answer_that_many_are_sent_counts_once():
    shared = [reader(key, {7: 90}) for key in range(50)]

    assert too_slow(shared, 100.0, 100) == set()
    assert too_slow([*shared, reader(99, {8: 20}, took=1)], 100.0, 100) == set(range(50))


def test_who_has_just_begun_has_a_moment():
    assert too_slow([reader(1, {1: 40}, since=99.5), reader(2, {2: 40}, took=10)], 100.0, 50) == {2}


def test_who_was_only_just_answered_is_not_the_one_who_took_least():
    """The others had a part of a second, and what the kernel takes for them at once counts as taken."""
    unread = [reader(key, {key: 40}, took=30, since=99.4 + key / 100) for key in range(1, 5)]

    assert too_slow([*unread, reader(9, {9: 40}, since=99.99)], 100.0, 100) == {1, 2, 3}


def test_one_answer_may_be_larger_than_all_that_is_allowed():
    assert too_slow([reader(1, {1: 400})], 100.0, 50) == set()


@given(
    st.lists(st.tuples(st.dictionaries(st.integers(0, 5), st.just(30), max_size=3), st.integers(0, 9)), max_size=20),
    st.integers(0, 200),
)
def test_what_is_left_fits_or_is_one(rows: list, most: int):
    readers = [reader(key, holds, took) for key, (holds, took) in enumerate(rows)]
    dropped = too_slow(readers, 100.0, most)
    left = [each for each in readers if each.key not in dropped]

    assert sum({what: size for each in left for what, size in each.holds.items()}.values()) <= most or len(left) == 1
