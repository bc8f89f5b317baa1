"""Lists and changes in pages: nothing missed, nothing twice, and no answer of any size for who asks for no pages."""

import contextlib
import gc
import random
import time
from typing import Any

import msgspec
import pytest
from harness.api import Api, FakeService, InProcess, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.cluster import Client, Snapshot
from rollcall.node.api import ApiSettings, create_app, listings, pages, summaries, watch
from rollcall.node.api.fast import Fast
from rollcall.replication.commands import Batch, Begin, Deregister, Register, SetPolicy, SetStatus
from rollcall.replication.errors import Gone, NotFound
from rollcall.replication.front import pages as client_pages
from rollcall.replication.policies import Policy
from rollcall.replication.records import Event, Instance, Key, Registration
from rollcall.replication.registry.changes import Interest
from rollcall.replication.registry.services import ServiceState

ORDERS = "/api/v1/services/orders/instances"
URL = "http://n1:8500"
LISTS = {
    "instances": ORDERS,
    "services": "/api/v1/services",
    "overrides": "/api/v1/overrides",
    "policies": "/api/v1/policies",
    "changes": "/api/v1/policies/changes",
}


def apply(service: FakeService, command: Any) -> None:
    service.log.propose(command, time_ns=time.time_ns()).result_by(time.monotonic() + 5)


def register(service: FakeService, id: str, *, of: str = "orders", env: str = "default", **fields: Any) -> None:
    apply(service, Register(Registration(service=of, id=id, env=env, **fields)))


def walked(api: Api, path: str, name: str, limit: int | None = None) -> list[list[Any]]:
    """The items of each page of a list."""
    found: list[list[Any]] = []
    after: str | None = ""
    sign = "&" if "?" in path else "?"
    while after is not None:
        size = "" if limit is None else f"&limit={limit}"
        answer = api.get(f"{path}{sign}after={after}{size}")
        assert answer.status_code == 200, answer.text
        assert len(found) < 10_000, "it does not end"
        found.append(answer.json[name])
        after = answer.json["next"]
    return found


def flat(parts: list[list[Any]]) -> list[Any]:
    return [item for part in parts for item in part]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 3_000)
    monkeypatch.setattr(watch, "PAGE_BYTES", 3_000)
    monkeypatch.setattr(pages, "ANSWER_BYTES_MAX", 20_000)
    monkeypatch.setattr(watch, "ANSWER_BYTES_MAX", 20_000)


@pytest.fixture
def full(service: FakeService) -> FakeService:
    """A node with more than 20 KB of each kind of list."""
    for n in range(100):
        register(service, f"o{n:03}", zone="ab"[n % 2], ttl_s=30.0)
        register(service, "x", of=f"service-{n:03}", env=("default", "prod")[n % 2], tags=("t" * 100,))
        apply(service, SetStatus("default", "orders", f"o{n:03}", "down", "r" * 100))
        apply(service, SetPolicy(f"p{n:03}", Policy(service="orders", percent=1), "a" * 100, ""))
    return service


# What a page is


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("name", LISTS)
def test_pages_one_after_the_other_are_the_list(full: FakeService, api: Api, name: str, monkeypatch: Any) -> None:
    query = {"instances": "?health=any", "services": "?env=*"}.get(name, "")
    found = walked(api, LISTS[name] + query, name, 7)
    by_bytes = walked(api, LISTS[name] + query, name)
    problem(api.get(LISTS[name] + query), 413, "TooLarge", limit=20_000)
    monkeypatch.setattr(pages, "ANSWER_BYTES_MAX", 10**7)

    whole = Api(create_app(full, ApiSettings())).get(LISTS[name] + query).json
    assert len(whole[name]) >= 100
    assert "next" not in whole
    assert flat(found) == flat(by_bytes) == whole[name]
    assert {len(page) for page in found[:-1]} <= {4, 5, 6, 7}
    assert all(len(page) > 1 for page in by_bytes[:-1])
    assert len(by_bytes) > 5


def test_a_page_has_one_item_however_large_it_is(service: FakeService, api: Api, monkeypatch: Any) -> None:
    for id in "abc":
        register(service, id)
    monkeypatch.setattr(pages, "PAGE_BYTES", 10)

    assert [len(page) for page in walked(api, ORDERS, "instances")] == [1, 1, 1]


def test_an_empty_list_is_one_page(api: Api) -> None:
    for name, path in LISTS.items():
        assert walked(api, path, name) == [[]]


def test_a_page_says_where_the_copy_was(service: FakeService, api: Api) -> None:
    register(service, "a")
    register(service, "b")
    first = api.get(f"{ORDERS}?after=&limit=1")
    register(service, "c")
    second = api.get(f"{ORDERS}?after={first.json['next']}&limit=1")

    assert (first.json["index"], second.json["index"]) == (2, 3)
    assert first.headers["X-Rollcall-Complete"] == "true"


def test_without_pages_a_limit_is_the_first_of_them(full: FakeService, api: Api) -> None:
    for name, path in LISTS.items():
        query = "?health=any&limit=3" if name == "instances" else "?limit=3"
        answer = api.get(path + query).json
        assert len(answer[name]) == 3
        assert "next" not in answer


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=&limit=0", "limit"),
        ("after=&limit=10001", "limit"),
        ("after=&limit=ten", "limit"),
        ("limit=0", "limit"),
        ("after=%21", "after"),
        ("after=e30", "after"),
        ("after=WzEsMiwzLDRd", "after"),
        ("after=AAAA", "after"),
        ("after=é", "after"),
        ("after=&after=", "after"),
    ],
)
def test_a_page_that_is_none_is_refused_in_words(api: Api, name: str, query: str, field: str) -> None:
    told = problem(api.get(f"{LISTS[name]}?{query}"), 400, "Invalid", field=field)

    assert field in told["detail"]
    assert "10000" in told["detail"] if "10001" in query else True


def test_a_place_of_another_order_is_none_of_this_one(service: FakeService, api: Api) -> None:
    for id in "abc":
        register(service, id)
    after = api.get(f"{ORDERS}?after=&limit=1").json["next"]

    problem(api.get(f"{ORDERS}?near=z&after={after}"), 400, "Invalid", field="after")


def test_a_filter_is_looked_for_once_and_not_without_end(service: FakeService, api: Api) -> None:
    register(service, "a", tags=("t0",))

    assert api.ids(f"{ORDERS}?{'&'.join(['tag=t0'] * 1000)}") == ["a"]
    problem(api.get(f"{ORDERS}?{'&'.join(f'tag=t{n}' for n in range(65))}"), 400, "Invalid", field="tag", limit=64)
    problem(api.get(f"{ORDERS}?{'&'.join(f'meta.m{n}=' for n in range(65))}"), 400, "Invalid", field="meta", limit=64)


def test_large_pages_are_made_few_at_a_time_and_small_ones_always(service: FakeService, app: Fast, api: Api) -> None:
    apply(service, Batch(tuple(Register(Registration(service="orders", id=f"o{n}")) for n in range(500))))
    apply(service, Batch(tuple(Register(Registration(service=f"s{n}", id="a")) for n in range(500))))
    for n in range(500):
        apply(service, SetStatus("default", "orders", f"o{n}", "down"))
        apply(service, SetPolicy(f"p{n}", Policy(service="orders", percent=1), "me", ""))
    places = app._context.large._places
    asked = [f"{path}?after=&limit=" for path in LISTS.values()]

    with places.place(""), places.place(""):
        places._wait_s = 0.01
        for path in asked:
            problem(api.get(f"{path}1000"), 503, "Overloaded")
            assert api.get(f"{path}100").status_code == 200
        problem(api.get(f"{ORDERS}?after=&limit=10&zone=z"), 503, "Overloaded")
    assert {api.get(f"{path}1000").status_code for path in asked} == {200}


# Whole or refused


def test_a_list_of_more_than_eight_megabytes_is_refused_in_words(service: FakeService, api: Api) -> None:
    meta = {f"m{n}": "x" * 500 for n in range(16)}
    for begin in range(0, 1_000, 50):
        register_many = tuple(Registration(service="orders", id=f"o{n}", meta=meta) for n in range(begin, begin + 50))
        apply(service, Batch(tuple(Register(each) for each in register_many)))

    for path in (ORDERS, f"{ORDERS}?health=any", f"{ORDERS}?zone=", ORDERS):
        told = problem(api.get(path), 413, "TooLarge", limit=8 * 1024 * 1024)
        assert "8388608 bytes" in told["detail"]
        assert "after=" in told["detail"]
    assert len(flat(walked(api, f"{ORDERS}?health=any", "instances"))) == 1_000
    first = api.get(f"{ORDERS}?after=")
    assert 900_000 < len(first.data) <= 1024 * 1024 + 1_000
    assert len(api.get(f"{ORDERS}?limit=900").json["instances"]) == 900


@pytest.mark.usefixtures("small_pages")
def test_in_front_of_flask_and_behind_it_the_refusal_is_the_same(full: FakeService, api: Api) -> None:
    for n in range(100):
        apply(full, SetStatus("default", "orders", f"o{n:03}", None))
    fast, flask = api.client.get(ORDERS), api.inner.get(ORDERS)
    problem(fast, 413, "TooLarge", limit=20_000)

    assert fast.data == flask.data
    assert api.client.head(ORDERS).data == b""
    assert api.client.head(ORDERS).status_code == 413


@pytest.mark.usefixtures("small_pages")
def test_who_asks_again_is_refused_without_the_work(full: FakeService, api: Api, monkeypatch: Any) -> None:
    for path in (f"{ORDERS}?status=down", f"{ORDERS}?health=any"):
        problem(api.get(path), 413, "TooLarge")
    made: list[Instance] = []
    monkeypatch.setattr(listings, "record", made.append)
    for path in (f"{ORDERS}?status=down", f"{ORDERS}?health=any"):
        problem(api.get(path), 413, "TooLarge")
    monkeypatch.undo()

    assert made == []
    for n in range(90):
        apply(full, Deregister(Key("default", "orders", f"o{n:03}")))
    assert len(api.ids(f"{ORDERS}?status=down")) == len(api.ids(f"{ORDERS}?health=any")) == 10


def test_one_service_cannot_make_the_list_of_services_large(service: FakeService, api: Api) -> None:
    for n in range(60):
        register(service, f"o{n}", tags=tuple(f"{n:02}-{m:02}-" + "\x01" * 200 for m in range(64)))
    register(service, "c", of="carts", tags=tuple(f"t{n}" for n in range(64)))

    answer = api.get("/api/v1/services")
    carts, orders = answer.json["services"]
    assert len(answer.data) < 20_000
    assert orders["more_tags"] is True
    assert orders["tags"] == sorted(orders["tags"])
    assert orders["tags"][0].startswith("00-00-")
    assert len(carts["tags"]) == 64
    assert "more_tags" not in carts


@pytest.mark.parametrize(("count", "more"), [(100, False), (101, True), (640, True)])
def test_the_tags_that_are_shown_are_the_first(service: FakeService, api: Api, count: int, more: bool) -> None:
    names = [f"t{n:04}" for n in range(count)]
    random.Random(count).shuffle(names)
    for begin in range(0, count, 50):
        register(service, f"o{begin}", tags=tuple(names[begin : begin + 50]))

    (orders,) = api.get("/api/v1/services").json["services"]
    assert orders["tags"] == sorted(names)[:100]
    assert orders.get("more_tags", False) is more


def test_what_is_kept_of_sums_is_bounded_and_right(service: FakeService) -> None:
    services = summaries.Services(service.registry, bytes_max=10_000)
    for n in range(60):
        for id in range(8):
            register(service, f"i{id}", of=f"s{n}")
        services.body("default", 0)

    register(service, "i0", of="s0", tags=("new",))
    assert b'"tags":["new"]' in services.body("default", 0)
    assert services._bytes < 12_000
    assert services._bytes == sum(len(said) + summaries.SUM_ENTRY_BYTES for _, said in services._kept.values())


def test_what_is_kept_for_lists_of_services_is_not_the_services_as_they_were(service: FakeService) -> None:
    register(service, "a")
    services = summaries.Services(service.registry)
    services.body("default", 0)

    service.registry.root()  # for a snapshot: what changes from now on is a copy
    register(service, "b")
    gc.collect()
    a = service.registry.instance(Key("default", "orders", "a"))
    states = [each for each in gc.get_objects() if isinstance(each, ServiceState) and each.instances.get("a") is a]
    assert [[*each.instances] for each in states] == [["a", "b"]]


def test_services_that_come_and_go_are_listed_at_once(service: FakeService) -> None:
    services, seen = summaries.Services(service.registry), 0

    def names() -> list[str]:
        return [each["name"] for each in msgspec.json.decode(services.body("default", 0))["services"]]

    assert names() == []
    for number, name in enumerate("bac"):
        register(service, "a", of=name)
        assert names() == sorted("bac"[: number + 1])
        assert service.registry.names_version > seen
        seen = service.registry.names_version
    register(service, "b", of="a")
    assert service.registry.names_version == seen, "it had one already"
    apply(service, Deregister(Key("default", "b", "a")))
    assert names() == ["a", "c"]
    fresh = FakeService()
    fresh.registry.replace(service.registry.root())
    assert sorted(fresh.registry.names()) == [("default", "a"), ("default", "c")]


@pytest.mark.parametrize("asked", ["", "health=any"])
def test_a_refusal_that_is_known_and_short_reads_wait_for_no_large_answer(
    service: FakeService, app: Fast, api: Api, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(pages, "ANSWER_BYTES_MAX", 50_000)
    apply(service, Batch(tuple(Register(Registration(service="orders", id=f"o{n}")) for n in range(500))))
    apply(service, Batch(tuple(Register(Registration(service=f"s{n}", id="a")) for n in range(500))))
    register(service, "a", env="other")
    problem(api.get(f"{ORDERS}?{asked}"), 413, "TooLarge")
    places = app._context.large._places

    with places.place(""), places.place(""):
        places._wait_s = 0.01
        problem(api.get("/api/v1/services"), 503, "Overloaded")
        problem(api.get(f"{ORDERS}?zone=z&{asked}"), 503, "Overloaded")
        problem(api.get(f"{ORDERS}?{asked}"), 413, "TooLarge")
        assert len(api.ids(f"{ORDERS}?limit=2&{asked}")) == 2
        assert [each["env"] for each in api.get("/api/v1/services?env=other").json["services"]] == ["other"]
        assert len(api.get("/api/v1/services?limit=3").json["services"]) == 3


def test_to_put_many_names_in_order_is_work_too(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMED_AS_ONE", 1)
    services, few = summaries.Services(service.registry), pages.Paging(limit=1)
    apply(service, Batch(tuple(Register(Registration(service=f"s{n}", id="a")) for n in range(500))))
    assert services.work("other", few) == 500
    services.body("other", 0, few)
    assert services.work("other", few) == 0
    assert services.work("default", few) == 1 + 1, "its sum has to be made"
    assert services.work("default", pages.Paging(limit=7, after=("default", "s95"))) == 2 * 4


# Changes


@pytest.mark.usefixtures("small_pages")
def test_changes_come_in_pages_too(full: FakeService, api: Api) -> None:
    index, found, polls = 0, [], 0
    while True:
        answer = api.get(f"/api/v1/watch?index={index}&wait=0&service=orders")
        if answer.status_code == 304:
            break
        assert len(answer.data) < 5_000
        index, polls = answer.json["index"], polls + 1
        found += [(event["index"], event["kind"]) for event in answer.json["events"]]

    whole = full.changes.since(0)
    assert found == [
        (index, event.kind)
        for index, events in whole.events_by_index
        for event in events
        if event.instance.service == "orders"
    ]
    assert polls > 20


@pytest.mark.usefixtures("small_pages")
def test_a_stream_comes_in_pieces(full: FakeService, api: Api) -> None:
    answer = api.get("/api/v1/watch?index=0&env=*", headers={"Accept": "text/event-stream"}, buffered=False)
    pieces: Any = iter(answer.response)
    found = [next(pieces) for _ in range(20)]
    answer.close()

    assert all(1_000 < len(piece) < 5_000 for piece in found)
    indexes = [int(line.rpartition("-")[2]) for line in b"".join(found).decode().splitlines() if line[:3] == "id:"]
    assert indexes == [
        index for index, _ in full.changes.since(0, Interest(None)).events_by_index if index <= indexes[-1]
    ]


@pytest.mark.usefixtures("small_pages")
def test_too_much_at_one_index_is_gone_and_who_reads_again_goes_on(service: FakeService, api: Api) -> None:
    register(service, "before")
    apply(service, Batch(tuple(Register(Registration(service="orders", id=f"o{n}")) for n in range(60))))
    register(service, "after")

    first = api.get("/api/v1/watch?index=0&wait=0").json
    assert [event["instance"]["id"] for event in first["events"]] == ["before"]
    assert first["index"] == 1
    told = problem(api.get("/api/v1/watch?index=1&wait=0"), 410, "Gone", floor=2, limit=20_000)
    assert "index 2" in told["detail"]
    read = api.get(f"{ORDERS}?after=&limit=1").json["index"]
    assert api.get(f"/api/v1/watch?index={read}&wait=0").status_code == 304
    # Who wants little of it is told that.
    (event,) = api.get("/api/v1/watch?index=1&wait=0&service=orders&id=o7").json["events"]
    assert event["index"] == 2


@pytest.mark.usefixtures("small_pages")
def test_a_stream_ends_at_too_much_at_one_index(service: FakeService, api: Api) -> None:
    register(service, "before")
    apply(service, Batch(tuple(Register(Registration(service="orders", id=f"o{n}")) for n in range(60))))

    text = api.get("/api/v1/watch?index=0", headers={"Accept": "text/event-stream"}).text

    assert text.count("event: gone") == 1
    assert '"id":"before"' in text.partition("event: gone")[0]
    assert '"floor":2' in text.partition("event: gone")[2]


# Any registry, any pages

NAMES = st.sampled_from(["a", "b", "c-1", "Z", "é", "x y", "0"])
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["register", "register", "register", "deregister", "down", "policy", "up"]),
        st.sampled_from(["orders", "carts", "Users", "a.b"]),
        st.sampled_from(["default", "prod"]),
        NAMES,
        st.sampled_from(["z1", "z2", ""]),
        st.integers(0, 400),
    ),
    max_size=40,
)


def done(service: FakeService, operation: tuple[str, str, str, str, str, int]) -> None:
    what, name, env, id, zone, size = operation
    command: Any = {
        "register": lambda: Register(
            Registration(service=name, env=env, id=id, zone=zone, meta={"m": "x" * size}, tags=(f"t{size}",))
        ),
        "deregister": lambda: Deregister(Key(env, name, id)),
        "down": lambda: SetStatus(env, name, id, "down", "r" * (size % 200), None, None, True),
        "up": lambda: SetStatus(env, name, id, None),
        "policy": lambda: SetPolicy(f"{name}-{size % 7}", Policy(service=name, percent=1), "me", ""),
    }[what]()
    with contextlib.suppress(NotFound):
        apply(service, command)


@settings(max_examples=25)
@given(before=OPERATIONS, limit=st.integers(1, 12), page_bytes=st.integers(1, 4_000))
def test_while_nothing_changes_pages_are_exactly_the_list(before: list[Any], limit: int, page_bytes: int) -> None:
    service = FakeService()
    api = Api(create_app(service, ApiSettings()))
    for operation in before:
        done(service, operation)
    everywhere = [
        ("instances", f"/api/v1/services/{name}/instances?env={env}{query}")
        for name in ("orders", "Users", "nobody")
        for env in ("default", "prod")
        for query in ("", "&health=any", "&near=z2", "&health=any&near=z1", "&zone=z1", "&status=down&near=z1")
    ]
    everywhere += [("services", "/api/v1/services?env=*"), ("services", "/api/v1/services?env=prod")]
    everywhere += [("overrides", "/api/v1/overrides?env=*"), ("overrides", "/api/v1/overrides?env=prod")]
    everywhere += [("policies", "/api/v1/policies"), ("policies", "/api/v1/policies?service=orders")]
    everywhere += [("changes", "/api/v1/policies/changes"), ("changes", "/api/v1/policies/changes?name=orders-1")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE_BYTES", page_bytes)
        for name, path in everywhere:
            assert flat(walked(api, path, name, limit)) == api.get(path).json[name], path


def in_process(service: FakeService, *more: str) -> tuple[Client, InProcess]:
    app = create_app(service, ApiSettings())
    session = InProcess({URL: app, **dict.fromkeys(more, app)})
    return Client([URL, *more], session=session, timeout_s=10.0), session


def followed(sdk: Client, service: str, found: dict[str, Instance], index: int) -> dict[str, Instance]:
    """What a list becomes by the changes after ``index``."""
    while True:
        page = sdk.changes(service, index=index, wait_s=0.01)
        for event in page.events:
            found.pop(event.instance.id, None)
            if event.kind not in ("DEREGISTER", "EVICT"):
                found[event.instance.id] = event.instance
        if not page.events:
            return found
        index = page.index


@settings(max_examples=30)
@given(before=OPERATIONS, meanwhile=OPERATIONS, seed=st.integers(0, 9), near=st.sampled_from([None, "z1"]))
def test_pages_and_a_watch_from_the_first_ones_index_are_what_is_there(
    before: list[Any], meanwhile: list[Any], seed: int, near: str | None
) -> None:
    """Whatever changes between two pages."""
    service, chance = FakeService(), random.Random(seed)
    sdk, session = in_process(service)
    for operation in before:
        done(service, operation)
    register(service, "always")
    left = list(meanwhile)

    def change(*arguments: object) -> None:
        for _ in range(chance.randint(0, 4)):
            if left:
                done(service, left.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "ANSWER_BYTES_MAX", 100)
        patch.setattr(client_pages, "PAGE_ITEMS", chance.randint(1, 3))
        session.before = change
        listing = sdk.instances("orders", health="any", near=near)
        session.before = lambda *_: None
        patch.undo()

        found = followed(sdk, "orders", {each.id: each for each in listing.instances}, listing.index)
        assert found == {each.id: each for each in sdk.instances("orders", health="any").instances}
        assert found["always"]


# The SDK


@pytest.mark.usefixtures("small_pages")
def test_the_sdk_asks_for_pages_where_it_must_and_remembers(full: FakeService) -> None:
    sdk, session = in_process(full)

    listing = sdk.instances("orders", health="any")
    assert [each.id for each in listing.instances] == [f"o{n:03}" for n in range(100)]
    assert listing.complete
    assert listing.index == full.registry.applied_index
    assert "after" not in session.asked[0]
    assert session.asked[1]["after"] == ""
    again = len(session.asked)
    sdk.instances("orders", health="any")
    assert session.asked[again]["after"] == "", "it knows by now"
    assert len(sdk.instances("service-000").instances) == 1
    assert "after" not in session.asked[-1]


@pytest.mark.usefixtures("small_pages")
def test_every_list_of_the_sdk_comes_in_pages(full: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk, _ = in_process(full)

    def lists() -> list[Any]:
        return [
            sdk.services(env="*"), sdk.overrides(env="*"), sdk.policies(), sdk.policy_changes(),
            sdk.instances("orders", health="any").instances, sdk.instances("orders", health="any", limit=70).instances,
            sdk.instances("orders", health="any", near="b", limit=70).instances,
        ]  # fmt: skip

    in_pages = lists()
    monkeypatch.setattr(pages, "ANSWER_BYTES_MAX", 10**7)
    fresh, _ = in_process(full)
    sdk = fresh

    assert in_pages == lists()
    assert [len(each) for each in in_pages] == [101, 100, 100, 100, 100, 70, 70]


@pytest.mark.usefixtures("small_pages")
def test_a_list_that_became_small_is_asked_for_whole_again(full: FakeService) -> None:
    sdk, session = in_process(full)
    sdk.instances("orders", health="any")
    for n in range(99):
        apply(full, Deregister(Key("default", "orders", f"o{n:03}")))

    assert len(sdk.instances("orders", health="any").instances) == 1
    assert len(sdk.instances("orders", health="any").instances) == 1
    assert "after" in session.asked[-2]
    assert "after" not in session.asked[-1]


@pytest.mark.usefixtures("small_pages")
def test_a_registry_that_begins_anew_between_two_pages_is_read_again(full: FakeService) -> None:
    sdk, session = in_process(full)

    def begin_anew(_: str, params: dict[str, Any]) -> None:
        if params.get("after") and full.registry.history != "a" * 16:
            apply(full, Begin("a" * 16))
            apply(full, Deregister(Key("default", "orders", "o000")))

    session.before = begin_anew
    listing = sdk.instances("orders", health="any")

    assert listing.history == "a" * 16
    assert [each.id for each in listing.instances] == [f"o{n:03}" for n in range(1, 100)]


@pytest.mark.usefixtures("small_pages")
def test_a_watch_tells_nothing_that_its_pages_held_and_misses_nothing(full: FakeService) -> None:
    sdk, session = in_process(full)
    sdk.instances("orders", health="any")

    def change(_: str, params: dict[str, Any]) -> None:
        if params.get("after"):
            session.before = lambda *_: None
            register(full, "o000", version="new")  # its page was read before
            register(full, "o099", version="new")  # its page is read after

    session.before = change
    following = sdk.watch("orders", wait_s=0.01)
    snapshot = next(following)
    assert isinstance(snapshot, Snapshot)
    held = {each.id: each for each in snapshot.instances}
    assert (held["o000"].version, held["o099"].version) == ("", "new")
    register(full, "o050", version="newer")

    told = [event for event in (next(following), next(following)) if isinstance(event, Event)]
    assert [(event.instance.id, event.instance.version) for event in told] == [("o000", "new"), ("o050", "newer")]


@pytest.mark.usefixtures("small_pages")
def test_a_watcher_for_whom_there_is_too_much_at_once_loads_afresh(service: FakeService) -> None:
    register(service, "before")
    sdk, _ = in_process(service)
    following = sdk.watch("orders", wait_s=0.01)
    next(following)
    apply(service, Batch(tuple(Register(Registration(service="orders", id=f"o{n}")) for n in range(60))))
    with pytest.raises(Gone):
        sdk.changes("orders", index=1, wait_s=0.01)

    snapshot = next(following)
    assert isinstance(snapshot, Snapshot)
    assert len(snapshot.instances) == 61
