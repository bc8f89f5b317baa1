"""Whom a client asks next: a matter of what failed when, and of nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.members import BACKOFF_S_MAX, BACKOFF_S_MIN, Members, nodes_from, urls_from
from rollcall.replication.errors import Invalid

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def test_a_client_stays_with_the_node_that_answered():
    members = Members([A, B, C])

    members.answered(B)

    assert members.order(now=0) == [B, C, A]


def test_a_node_that_failed_comes_last_until_its_pause_is_over():
    members = Members([A, B, C])

    members.failed(A, now=10)

    assert members.order(now=10) == [B, C, A]
    assert members.order(now=10 + BACKOFF_S_MIN) == [A, B, C]


def test_pauses_double_up_to_a_limit_and_end_with_an_answer():
    members = Members([A, B])

    pauses: list[float] = []
    for _ in range(8):
        members.failed(A, now=0)
        due = next(t / 10 for t in range(1000) if members.order(now=t / 10)[0] == A)
        pauses.append(due)
    members.answered(A)

    assert pauses == sorted(pauses)
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert pauses[-1] == BACKOFF_S_MAX
    assert members.order(now=0) == [A, B]


def test_when_all_failed_the_one_soonest_due_is_tried_first():
    members = Members([A, B])
    members.failed(A, now=0)
    members.failed(A, now=0)
    members.failed(B, now=0)

    assert members.order(now=0) == [B, A]


def test_the_leader_is_the_next_after_the_current_node():
    members = Members([A, B, C])
    members.learned([A, B, C], leader=C)

    assert members.order(now=0) == [A, C, B]


def test_a_leader_that_failed_is_no_longer_taken_for_one():
    members = Members([A, B, C])
    members.learned([A, B, C], leader=C)

    members.failed(C, now=0)

    assert members.order(now=BACKOFF_S_MAX) == [A, B, C]


def test_nodes_that_the_cluster_names_are_added_and_configured_ones_kept():
    members = Members([A])

    members.learned([B + "/", C], leader=None)

    assert members.urls == (A, B, C)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.booleans(), st.floats(0, 10)), max_size=30), st.floats(0, 40))
def test_every_node_is_always_tried_exactly_once(history: list[tuple[str, bool, float]], now: float):
    members = Members([A, B, C])
    for url, worked, at in history:
        if worked:
            members.answered(url)
        else:
            members.failed(url, at)

    assert sorted(members.order(now)) == [A, B, C]


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://127.0.0.1:8500,8501,8502", tuple(f"http://127.0.0.1:{port}" for port in (8500, 8501, 8502))),
        ("a:1, http://b:2/", ("http://a:1", "http://b:2")),
        ("https://a:1,a:1", ("https://a:1", "http://a:1")),
        ("http://[::1]:8500,8501", ("http://[::1]:8500", "http://[::1]:8501")),
    ],
)
def test_nodes_are_named_by_urls_and_a_bare_port_is_one_more_on_the_same_host(text: str, urls: tuple[str, ...]):
    assert urls_from(text) == urls


@pytest.mark.parametrize("text", ["", "8500", "ftp://a:1", "http://a:x", "http://a:1/path", "http://", "a:1,,b:2"])
def test_what_names_no_node_is_refused(text: str):
    with pytest.raises(Invalid, match="nodes: expected URLs such as"):
        urls_from(text)


def test_nodes_may_be_listed_one_by_one_in_the_same_words():
    assert nodes_from(["a:1", "http://b:2/", "3"]) == ("http://a:1", "http://b:2", "http://b:3")
    assert nodes_from("a:1,b:2") == nodes_from(("a:1", "b:2")) == ("http://a:1", "http://b:2")
    with pytest.raises(Invalid, match="nodes: expected URLs"):
        nodes_from([])
