"""A list that comes in pages, put together; and whom the SDK asks for pages."""

from typing import Any

import pytest
from harness.fakes import FakeSession, problem, response
from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster import Client
from rollcall.cluster.lists import LARGE_MAX
from rollcall.replication.errors import Invalid, NotDone, TooLarge, Unknown
from rollcall.replication.front import pages as pages_module
from rollcall.replication.front.pages import PAGES_MAX, Pages

TOO_LARGE = problem(TooLarge("the list is larger than 8388608 bytes", limit=8_388_608))


def first_letter(item: str) -> str:
    return item[0]


@given(st.lists(st.lists(st.sampled_from(["a1", "a2", "b1", "b2", "c", "d", "e"]))), st.none() | st.integers(1, 6))
def test_of_what_is_seen_twice_the_later_stands_and_no_more_is_asked_for_than_is_wanted(
    parts: list[list[str]], most: int | None
) -> None:
    pages: Pages[str] = Pages(first_letter, most)
    expected: dict[str, str] = {}
    for number, part in enumerate(parts):
        if pages.after is None:
            break
        assert 1 <= pages.limit <= (most or pages_module.PAGE_ITEMS)
        part = part[: pages.limit]
        pages.take(part, f"after-{number}")
        for item in part:
            expected.pop(first_letter(item), None)
            expected[first_letter(item)] = item

    assert pages.items == tuple(expected.values())
    assert most is None or len(pages.items) <= most
    assert (pages.after is None) == (most is not None and len(pages.items) == most)


def test_the_first_page_stands_for_all_of_them() -> None:
    pages: Pages[str] = Pages(first_letter)

    assert [pages.take("a", "x", "h1"), pages.take("b", "y", "h1"), pages.take("c", None, "h1")] == [True, False, False]
    assert pages.items == ("a", "b", "c")
    assert pages.after is None


def test_a_registry_that_began_anew_is_read_from_the_beginning() -> None:
    pages: Pages[str] = Pages(first_letter)
    pages.take("a", "x", "h1")

    assert not pages.take("b", "y", "h2")
    assert (pages.after, pages.items) == ("", ())
    assert pages.take("c", None, "h2")
    assert pages.items == ("c",)


@pytest.mark.parametrize("following", ["x", "", 7, {}])
def test_pages_that_lead_nowhere_are_not_followed_for_ever(following: Any) -> None:
    pages: Pages[str] = Pages(first_letter)
    with pytest.raises(Unknown, match="end"):
        for _ in range(3):
            pages.take("a", following)


def test_pages_end_somewhere_even_if_the_registry_begins_anew_again_and_again() -> None:
    pages: Pages[str] = Pages(first_letter)
    with pytest.raises(Unknown, match="end"):
        for number in range(PAGES_MAX + 1):
            pages.take("a", f"{number}", f"h{number}")
    assert pages.count == PAGES_MAX + 1


def client(answers: Any, **options: Any) -> tuple[Client, list[dict[str, Any]]]:
    session = FakeSession(lambda method, url, asked: answers(url, asked["params"]))
    sdk = Client("http://a:1", session=session, **options)
    asked: list[dict[str, Any]] = []
    inner = session.request
    session.request = lambda *a, **o: (asked.append(o["params"]), inner(*a, **o))[1]  # type: ignore[method-assign]
    return sdk, asked


def service(name: str) -> dict[str, Any]:
    return {"name": name, "env": "default", "instances": 1, "serving": 1, "health": {}, "tags": []}


def test_a_node_of_a_release_without_pages_is_asked_for_the_whole_again() -> None:
    """In a rolling upgrade: one that knows pages refuses the whole, and then one answers that does not know them."""
    turns = iter([TOO_LARGE, problem(Invalid("query parameter 'limit' is not known here", field="limit"))])

    def answers(url: str, params: dict[str, Any]) -> Any:
        refusal = next(turns, None)
        return response(200, {"services": [service("a")]}) if refusal is None else refusal

    sdk, asked = client(answers)

    assert [each.name for each in sdk.services()] == ["a"]
    assert ["after" in params for params in asked] == [False, True, False]


def test_a_cluster_that_cannot_make_up_its_mind_is_asked_so_often_and_no_more() -> None:
    def answers(url: str, params: dict[str, Any]) -> Any:
        if "after" in params:
            return problem(Invalid("query parameter 'after' is not known here", field="after"))
        return problem(TooLarge("too large"))

    sdk, asked = client(answers)

    with pytest.raises((TooLarge, Invalid)):
        sdk.services()
    assert len(asked) <= 4


def test_a_wrong_question_is_not_taken_for_an_old_node() -> None:
    sdk, asked = client(lambda url, params: problem(Invalid("env: wrong", field="env")))

    with pytest.raises(Invalid, match="env"):
        sdk.services()
    assert len(asked) == 1


def test_all_pages_have_one_deadline() -> None:
    def answers(url: str, params: dict[str, Any]) -> Any:
        if "after" not in params:
            return problem(TooLarge("too large"))
        number = int(params["after"] or "0")
        if number == 5:
            return problem(NotDone("no more"))
        return response(200, {"services": [service(f"s{number}")], "next": f"{number + 1}"})

    sdk, asked = client(answers, timeout_s=0.3)

    with pytest.raises(NotDone):
        sdk.services()
    assert {params.get("after") for params in asked} == {None, "", "1", "2", "3", "4", "5"}


def test_lists_remembered_as_large_are_few() -> None:
    def answers(url: str, params: dict[str, Any]) -> Any:
        if "after" not in params:
            return problem(TooLarge("too large"))
        name = url.split("/")[-2]
        following = None if params["after"] else "x"
        return response(200, {"service": name, "env": "default", "index": 1, "instances": [], "next": following})

    sdk, _ = client(answers)
    for number in range(LARGE_MAX + 100):
        sdk.instances(f"s{number}")

    assert 0 < len(sdk._lists) <= LARGE_MAX
