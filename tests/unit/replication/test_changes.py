"""The change feed: every change, in order, once, or the word that it is too late."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest
from harness.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.replication.errors import Fatal, Gone, RollcallError
from rollcall.replication.records import Event, Instance
from rollcall.replication.registry import changes as changes_module
from rollcall.replication.registry.changes import EVERYTHING, Changes, Interest, Page

Published = list[tuple[int, tuple[Event, ...]]]


def event(index: int, service: str = "web", env: str = "default", id: str = "a") -> Event:
    instance = Instance(
        env=env,
        service=service,
        id=id,
        reg_timestamp=0,
        up_timestamp=0,
        dirty_timestamp=0,
        latest_timestamp=0,
        create_index=index,
        reg_index=index,
        modify_index=index,
    )
    return Event(kind="UPDATE", index=index, instance=instance)


def publish(changes: Changes, *services: str, index: int | None = None) -> int:
    index = changes.last + 1 if index is None else index
    changes.publish(index, tuple(event(index, service) for service in services))
    return index


def only(*services: str, env: str | None = "default") -> Interest:
    return Interest(env, frozenset(services))


def indexes(page: Page) -> list[int]:
    return [index for index, _ in page.events_by_index]


def soon() -> float:
    return time.monotonic() + 10


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for ``condition``, and says ``what`` was awaited when it does not come."""
    deadline = soon()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.001)


class Watcher:
    """A thread in one ``wait``."""

    def __init__(
        self,
        changes: Changes,
        index: int,
        interest: Interest = EVERYTHING,
        abandoned: Callable[[], bool] | None = None,
    ) -> None:
        self.page: Page | None = None
        self.error: RollcallError | None = None
        self._call = (changes, index, interest, abandoned)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        changes, index, interest, abandoned = self._call
        try:
            self.page = changes.wait(index, interest, soon(), abandoned)
        except RollcallError as error:
            self.error = error

    @property
    def waiting(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Page:
        self._thread.join(20)
        assert not self.waiting
        if self.error is not None:
            raise self.error
        assert self.page is not None
        return self.page


class CountingChanges(Changes):
    """Counts how often anybody looks for something of an interest."""

    def __init__(self, capacity: int = 100_000) -> None:
        super().__init__(capacity)
        self.looks: dict[Interest, int] = {}

    def since(self, index: int, interest: Interest = EVERYTHING) -> Page:
        self.looks[interest] = self.looks.get(interest, 0) + 1
        return super().since(index, interest)


@pytest.fixture
def changes() -> Iterator[CountingChanges]:
    feed = CountingChanges()
    yield feed
    feed.close()


def parked(changes: CountingChanges, *interests: Interest) -> Iterable[Interest]:
    """Waits until somebody of each interest has looked once; it then waits for the bell."""
    for interest in interests:
        until(lambda interest=interest: changes.looks.get(interest, 0) > 0, f"a waiter for {interest}")
    return interests


# -- looking


def test_events_come_by_index_after_the_one_that_was_named(changes: Changes) -> None:
    for services in (("web",), (), ("web", "api"), ("db",)):
        publish(changes, *services)

    page = changes.since(1)

    assert [(index, [e.instance.service for e in events]) for index, events in page.events_by_index] == [
        (3, ["web", "api"]),
        (4, ["db"]),
    ]
    assert page.examined == 4


def test_an_index_without_events_moves_a_watcher_on(changes: Changes) -> None:
    publish(changes)
    publish(changes)

    assert changes.since(0) == Page((), 2)


@pytest.mark.parametrize(
    ("interest", "expected"),
    [
        (Interest(), [("default", "web"), ("default", "api"), ("test", "web")]),
        (Interest("default"), [("default", "web"), ("default", "api")]),
        (Interest("test"), [("test", "web")]),
        (Interest(None, frozenset({"web"})), [("default", "web"), ("test", "web")]),
        (Interest("default", frozenset({"web", "db"})), [("default", "web")]),
        (Interest("default", frozenset()), []),
        (Interest("other"), []),
    ],
)
def test_a_filter_lets_through_what_was_asked_for(
    changes: Changes, interest: Interest, expected: list[tuple[str, str]]
) -> None:
    changes.publish(1, (event(1), event(1, "api"), event(1, "web", "test")))

    found = [
        (e.instance.env, e.instance.service) for _, events in changes.since(0, interest).events_by_index for e in events
    ]

    assert found == expected
    assert changes.since(0, interest).examined == 1


@pytest.mark.parametrize("page_events", [4, 5, 6])
def test_a_page_ends_with_the_index_that_fills_it(
    changes: Changes, monkeypatch: pytest.MonkeyPatch, page_events: int
) -> None:
    monkeypatch.setattr(changes_module, "PAGE_EVENTS", page_events)
    for services in (("a", "b", "c"), ("a", "b", "c"), ("a",)):
        publish(changes, *services)

    page = changes.since(0)

    assert (indexes(page), page.examined) == ([1, 2], 2)
    assert indexes(changes.since(page.examined)) == [3]


def test_an_index_below_the_floor_is_gone_and_says_where_the_feed_begins() -> None:
    changes = Changes(capacity=3)
    for _ in range(5):
        publish(changes, "web")

    with pytest.raises(Gone) as caught:
        changes.since(1)

    assert (changes.floor, caught.value.facts["floor"]) == (2, 2)
    assert indexes(changes.since(2)) == [3, 4, 5]


def test_the_newest_index_stays_however_large_it_is() -> None:
    changes = Changes(capacity=3)
    publish(changes, "web")
    publish(changes, *("web",) * 10)

    assert changes.floor == 1
    assert indexes(changes.since(1)) == [2]


def test_the_feed_holds_no_more_than_it_should() -> None:
    changes = Changes(capacity=50)
    for _ in range(5_000):
        publish(changes, "web")

    assert len(changes._groups) == len(changes._indexes) < 50 + 1_024 + 1
    assert indexes(changes.since(changes.floor)) == list(range(4_951, 5_001))


def test_large_changes_are_bounded_by_their_bytes_and_who_is_behind_is_told() -> None:
    changes = Changes(capacity=1_000, bytes_max=1_000_000)
    for index in range(1, 301):
        plain = event(index)
        large = msgspec.structs.replace(plain.instance, meta={"k": f"{index:06}" * 2_000})
        changes.publish(index, (msgspec.structs.replace(plain, instance=large),))

    held = [e.instance for group in changes._groups for e in group.events]
    assert sum(len(instance.meta["k"]) for instance in held) <= 1_000_000
    assert 70 <= len(held) <= 83
    assert indexes(changes.since(changes.floor)) == list(range(changes.floor + 1, 301))
    with pytest.raises(Gone):
        changes.since(changes.floor - 1)


def test_ordinary_changes_are_bounded_by_their_number() -> None:
    changes = Changes()
    plain = event(1).instance
    meta = {"commit": "3f2a9c01", "team": "payments", "rack": "r12"}
    ordinary = msgspec.structs.replace(plain, tags=("blue", "canary"), meta=meta, address="10.1.2.3", version="1.2.3")
    for index in range(1, 100_011):
        changes.publish(index, (Event(kind="UPDATE", index=index, instance=ordinary),))

    assert changes.floor == 10


def test_after_a_snapshot_was_loaded_one_resumes_from_its_index_only(changes: Changes) -> None:
    publish(changes, "web")
    changes.reset(100)
    publish(changes, "web")

    assert (changes.floor, changes.last) == (100, 101)
    assert indexes(changes.since(100)) == [101]
    with pytest.raises(Gone):
        changes.since(99)


@pytest.mark.parametrize("index", [4, 5])
def test_an_index_is_published_once_and_in_order(changes: Changes, index: int) -> None:
    publish(changes, "web", index=5)
    for services in ((), ("web",)):
        with pytest.raises(Fatal):
            publish(changes, *services, index=index)


# -- waiting


def test_a_watcher_gets_what_is_there_at_once(changes: Changes) -> None:
    publish(changes, "web")

    assert indexes(changes.wait(0, EVERYTHING, soon())) == [1]


def test_a_watcher_is_woken_by_what_it_waits_for(changes: CountingChanges) -> None:
    interests = [EVERYTHING, Interest("default"), only("web"), only("web", "api"), only("web", env=None)]
    watchers = [Watcher(changes, 0, interest) for interest in interests]
    parked(changes, *interests)
    publish(changes, "web")

    assert [indexes(watcher.join()) for watcher in watchers] == [[1]] * len(interests)


def test_a_write_that_nobody_asked_about_wakes_nobody(changes: CountingChanges) -> None:
    interests = [Interest("test"), only("api"), only("web", env="test"), only("api", "db", env=None)]
    watchers = [Watcher(changes, 0, interest) for interest in interests for _ in range(10)]
    until(lambda: sum(changes.looks.values()) == len(watchers), "all watchers parked")
    for _ in range(200):
        publish(changes, "web")
    publish(changes)

    assert sum(changes.looks.values()) == len(watchers)
    assert all(watcher.waiting for watcher in watchers)
    changes.close()
    assert {watcher.join() for watcher in watchers} == {Page((), 201)}


def test_a_watcher_in_vain_is_told_what_was_examined(changes: Changes) -> None:
    publish(changes, "web")

    assert changes.wait(0, only("api"), time.monotonic() + 0.01) == Page((), 1)


def test_an_index_ahead_of_this_node_waits_for_what_comes_after_it(changes: CountingChanges) -> None:
    watcher = Watcher(changes, 2)
    parked(changes, EVERYTHING)
    for looks in (2, 3):
        publish(changes, "web")
        until(lambda looks=looks: changes.looks[EVERYTHING] == looks, "a look")
    assert watcher.waiting
    publish(changes, "web")

    assert indexes(watcher.join()) == [3]
    assert changes.since(7) == Page((), 7)


def test_a_parked_watcher_loses_nothing_when_the_feed_drops_what_it_did_not_ask_for() -> None:
    changes = CountingChanges(capacity=3)
    watcher = Watcher(changes, 0, only("web"))
    parked(changes, only("web"))
    for _ in range(50):
        publish(changes, "api")
    index = publish(changes, "web")

    assert changes.floor > 0
    assert indexes(watcher.join()) == [index]


def test_a_loaded_snapshot_tells_parked_watchers_that_they_missed_something(changes: CountingChanges) -> None:
    publish(changes, "web")
    behind, ahead = Watcher(changes, 1, only("web")), Watcher(changes, 200, only("api"))
    parked(changes, only("web"), only("api"))
    changes.reset(100)

    with pytest.raises(Gone):
        behind.join()
    until(lambda: changes.looks[only("api")] == 2, "the other to look again")
    publish(changes, "api", index=201)
    assert indexes(ahead.join()) == [201]


def test_closing_sends_every_watcher_home_and_nobody_waits_after(changes: CountingChanges) -> None:
    watchers = [Watcher(changes, 0), Watcher(changes, 0, only("web"))]
    parked(changes, EVERYTHING, only("web"))
    began = time.monotonic()
    changes.close()

    assert [watcher.join() for watcher in watchers] == [Page((), 0)] * 2
    assert changes.wait(0, EVERYTHING, soon()) == Page((), 0)
    assert time.monotonic() - began < 5


def test_a_watcher_whose_client_has_left_gives_its_thread_back(
    changes: CountingChanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "_ABANDONED_CHECK_S", 0.01)
    left = threading.Event()
    watcher = Watcher(changes, 0, EVERYTHING, left.is_set)
    parked(changes, EVERYTHING)
    assert watcher.waiting
    left.set()

    assert watcher.join() == Page((), 0)


def test_nothing_is_kept_of_watchers_that_have_gone(changes: Changes) -> None:
    publish(changes, "web")
    changes.wait(0, only("web", "api"), soon())
    with pytest.raises(Gone):
        changes.reset(50)
        changes.wait(1, only("web"), soon())

    assert changes._waiters == {}


# -- any feed at all

services = st.sampled_from(["a", "b", "c"])
envs = st.sampled_from(["default", "test"])
groups = st.lists(st.tuples(envs, services), max_size=4)
interests = st.builds(Interest, st.none() | envs, st.none() | st.frozensets(services))


def wanted(published: Published, interest: Interest, after: int) -> Published:
    """What a watcher should see, the plain way."""
    found = []
    for index, events in published:
        left = tuple(
            e
            for e in events
            if (interest.env in (None, e.instance.env))
            and (interest.services is None or e.instance.service in interest.services)
        )
        if left and index > after:
            found.append((index, left))
    return found


def drain(changes: Changes, index: int, interest: Interest) -> Published:
    found: Published = []
    while True:
        page = changes.since(index, interest)
        assert page.examined >= index
        found += page.events_by_index
        if page.examined == index or not page.events_by_index:
            return found
        index = page.examined


@settings(max_examples=examples(150))
@given(
    st.lists(groups, max_size=6) | st.lists(groups, min_size=10, max_size=30),
    st.integers(1, 20),
    interests,
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_page_by_page_one_sees_every_change_of_interest_once_and_in_order(
    log: list[list[tuple[str, str]]], capacity: int, interest: Interest, page_events: int, slice_: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes_module, "PAGE_EVENTS", page_events)
        patch.setattr(changes_module, "_SLICE", slice_)
        patch.setattr(changes_module, "_CUT", 3)
        changes = Changes(capacity)
        published: Published = []
        for index, names in enumerate(log, 1):
            events = tuple(event(index, service, env) for env, service in names)
            changes.publish(index, events)
            published.append((index, events))
            assert sum(len(e) for i, e in published if i > changes.floor) <= max(capacity, *map(len, log))

        for start in range(len(log) + 2):
            if start < changes.floor:
                with pytest.raises(Gone):
                    changes.since(start, interest)
            else:
                assert drain(changes, start, interest) == wanted(published, interest, start)


@settings(max_examples=15)
@given(st.lists(groups, min_size=20, max_size=60), st.lists(interests, min_size=1, max_size=4))
def test_watchers_see_every_change_once_and_in_order_while_it_happens(
    log: list[list[tuple[str, str]]], wishes: list[Interest]
) -> None:
    changes = Changes()
    last = len(log)
    seen: list[Published] = [[] for _ in wishes]
    failed: list[RollcallError] = []

    def watch(interest: Interest, found: Published) -> None:
        index, deadline = 0, soon()
        try:
            while index < last and time.monotonic() < deadline:
                page = changes.wait(index, interest, min(deadline, time.monotonic() + 0.02))
                found += page.events_by_index
                index = page.examined
        except RollcallError as error:
            failed.append(error)

    threads = [threading.Thread(target=watch, args=pair) for pair in zip(wishes, seen, strict=True)]
    for thread in threads:
        thread.start()
    published: Published = []
    for index, names in enumerate(log, 1):
        events = tuple(event(index, service, env) for env, service in names)
        published.append((index, events))
        changes.publish(index, events)
    for thread in threads:
        thread.join(20)

    assert failed == []
    assert seen == [wanted(published, interest, 0) for interest in wishes]
