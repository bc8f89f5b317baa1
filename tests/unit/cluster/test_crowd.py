"""Who must make room, and who may have a thread."""

from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.front.crowd import Held, Limits, Shares, in_the_way

LIMITS = Limits(connections=100, share=0.25)


def idle(key: int, since: float, address: str = "") -> Held:
    return Held(key, address, since)


def asking(key: int, since: float, address: str = "", received: int = 0) -> Held:
    return Held(key, address, since, asking=True, received=received)


def test_a_request_must_be_whole_some_seconds_after_its_first_byte():
    held = [asking(1, 89.9), asking(2, 90.1), asking(3, 80.0, received=4 * 1024 * 11), idle(4, 89.0), idle(5, -21.0)]

    assert in_the_way(held, 100.0, LIMITS) == {1, 5}


def test_what_is_being_answered_is_let_be_however_long_it_takes():
    busy = [Held(key, "10.0.0.1", 0.0, busy=True) for key in range(100)]

    assert in_the_way(busy, 10_000.0, LIMITS) == set()


def test_while_there_is_room_nobody_is_sent_away():
    held = [asking(key, 95.0, "10.0.0.1") for key in range(89)]

    assert in_the_way(held, 100.0, LIMITS) == set()


def test_where_it_is_crowded_the_idle_go_first():
    held = [idle(key, 98.0) for key in range(30)] + [asking(key, 91.0) for key in range(30, 100)]

    assert in_the_way(held, 100.0, LIMITS) == set(range(30))


def test_then_those_that_have_been_sending_for_longest():
    held = [asking(key, 91.0 + key / 100) for key in range(100)]

    assert in_the_way(held, 100.0, LIMITS) == set(range(11))


def test_what_came_just_now_is_let_be():
    held = [asking(key, 99.5) for key in range(50)] + [idle(key, 99.5) for key in range(50, 100)]

    assert in_the_way(held, 100.0, LIMITS) == set()


def test_first_of_all_who_has_more_than_a_share():
    """Their newest stay; those of others stay too; no address (loopback, say) has no share."""
    held = [asking(key, 99.0 + key / 1000, "10.0.0.9") for key in range(60)]
    held += [idle(key, 99.5, f"10.0.1.{key}") for key in range(60, 80)] + [idle(key, 99.5) for key in range(80, 100)]

    assert in_the_way(held, 100.0, LIMITS) == set(range(35))


@given(
    st.lists(
        st.tuples(st.sampled_from(("", "a", "b", "c")), st.floats(0, 100), st.booleans(), st.booleans()), max_size=60
    )
)
def test_after_it_there_is_room_or_only_what_must_stay(rows: list[tuple[str, float, bool, bool]]):
    limits = Limits(connections=40, share=0.5)
    held = [Held(n, address, since, asked, busy) for n, (address, since, asked, busy) in enumerate(rows)]
    closed = in_the_way(held, 100.0, limits)
    left = [each for each in held if each.key not in closed]

    assert all(not each.busy for each in held if each.key in closed)
    assert len(left) < 30 or all(each.busy or 100.0 - each.since <= limits.crowded_s for each in left)


def test_while_threads_are_free_anybody_may_have_them():
    shares = Shares(8, 0.25, lambda address: address == "127.0.0.1")

    assert all(shares.take("10.0.0.1") for _ in range(8 + 8)), "while there is nobody else, some wait"
    assert not shares.take("10.0.0.1")
    for _ in range(8):
        shares.give("10.0.0.1")
    assert shares.take("10.0.0.2") and shares.take("10.0.0.2")
    assert not shares.take("10.0.0.2")
    assert all(shares.take("127.0.0.1") for _ in range(20))
    for _ in range(8):
        shares.give("10.0.0.1")
    assert not shares.take("10.0.0.2"), "they are all taken by others"
    for _ in range(20):
        shares.give("127.0.0.1")
    assert shares.take("10.0.0.2")
