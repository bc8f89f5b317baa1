"""Which names are followed, and which are forgotten first. No clock: the time is said."""

import threading

import pytest
from rollcall.cluster import following
from rollcall.cluster.balancer import RoundRobin
from rollcall.cluster.following import Known, idle, note_uses, surplus, whole_env
from rollcall.cluster.pool import Pool
from rollcall.replication.records import Instance


def known(name: str, wanted_at: float, *, somebody: bool, answered: bool = True) -> Known:
    asked = threading.Event()
    if answered:
        asked.set()
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 1)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 1)
    found = {"a": Instance(env="default", service=name, id="a", address="10.0.0.1", port=1, **stamps, **indexes)}
    made = Known(Pool(name, RoundRobin), found if somebody else {}, asked, wanted_at)
    made.pool.used = False
    return made


def names(*made: Known) -> dict[str, Known]:
    return {each.pool.service: each for each in made}


def test_who_nobody_has_is_forgotten_after_a_minute_the_others_after_an_hour():
    all_of_them = names(known("nobody", 0.0, somebody=False), known("cart", 0.0, somebody=True))

    assert idle(all_of_them, 60.0) == []
    assert idle(all_of_them, 60.1) == ["nobody"]
    assert idle(all_of_them, 3600.1) == ["nobody", "cart"]


def test_a_use_of_the_pool_counts_as_asking():
    all_of_them = names(known("cart", 0.0, somebody=True))
    all_of_them["cart"].pool.used = True
    note_uses(all_of_them, 3000.0)

    assert idle(all_of_them, 3700.0) == []
    assert all_of_them["cart"].pool.used is False


def test_a_first_question_under_way_is_not_judged():
    all_of_them = names(known("cart", 0.0, somebody=False, answered=False))

    assert idle(all_of_them, 9999.0) == []


def test_names_that_nobody_has_make_room_among_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "ABSENT_MAX", 10)
    all_of_them = names(
        known("cart", 0.0, somebody=True), *(known(f"nobody-{n}", float(n), somebody=False) for n in range(9))
    )
    assert surplus(all_of_them) == []

    all_of_them |= names(known("nobody-9", 9.0, somebody=False))
    assert surplus(all_of_them) == ["nobody-0"]


def test_where_all_are_somebodys_who_was_not_asked_for_longest_goes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "NAMES_MAX", 10)
    all_of_them = names(*(known(f"cart-{n}", 100.0 - n, somebody=True) for n in range(9)))
    assert surplus(all_of_them) == []

    all_of_them |= names(known("nobody", 1000.0, somebody=False))
    assert surplus(all_of_them) == ["nobody"]
    all_of_them |= names(known("cart-9", 91.0, somebody=True))
    assert surplus(all_of_them) == ["nobody", "cart-9"]


def test_the_env_is_watched_above_a_hundred_names_until_there_are_half_as_many():
    assert [whole_env(count, before=False) for count in (100, 101)] == [False, True]
    assert [whole_env(count, before=True) for count in (51, 50)] == [True, False]
