"""Large answers in the dialects that know no pages: the same bytes as ever, in pieces; and what too many are told."""

import contextlib
import io
import itertools
from typing import Any

import msgspec
import pytest
from harness.api import Api, FakeService, problem
from rollcall.node.api.consul import _row
from rollcall.node.api.fast import Fast
from rollcall.node.api.large import LARGE_MIN
from rollcall.node.api.rendering import record
from rollcall.node.api.s0 import NODES_APP, _groups
from rollcall.node.api.seed_fields import to_s0, to_s4
from rollcall.replication.commands import Batch, Register
from rollcall.replication.errors import Overloaded
from rollcall.replication.front.pieces import Reader
from rollcall.replication.records import Instance, Registration
from werkzeug.test import Client

MANY = LARGE_MIN + 1


def registered(service: str, count: int, env: str = "default") -> tuple[Register, ...]:
    # Without leases: then nothing in an answer moves by itself.
    return tuple(
        Register(Registration(service=service, id=f"i{n}", env=env, address="10.0.0.1", port=80, tags=("t",) * (n % 2)))
        for n in range(count)
    )


@pytest.fixture
def full(service: FakeService) -> FakeService:
    operations = (
        *registered("large", MANY), *registered("large", MANY, "test"), *registered("small", 3, "other"),
        *registered(NODES_APP, 2, "test"), *(each for n in range(50) for each in registered(f"s{n}", 5)),
    )  # fmt: skip
    for begin in range(0, len(operations), 400):
        service.submit(Batch(operations[begin : begin + 400]))
    return service


def shown(service: FakeService, name: str) -> list[Instance]:
    """The instances of that name in the order of their envs."""
    return [i for view in service.registry.services() if view.name == name for i in view.instances]


def s0(instance: Instance) -> dict[str, Any]:
    return to_s0(instance, renew_timestamp=instance.reg_timestamp)


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def test_fetchall_is_what_it_would_be_in_one_piece(api: Api, full: FakeService):
    nodes = msgspec.json.decode(api.client.post("/api/nodes", json={"env": "prod"}).data)["data"]["instances"]
    others = msgspec.json.decode(api.client.post("/api/fetchall", json={"env": "prod"}).data)["data"][NODES_APP]
    assert others[0] == nodes[0]
    apps = dict.fromkeys(view.name for view in full.registry.services() if view.name != NODES_APP)
    data = {NODES_APP: [*others[:2], *map(s0, shown(full, NODES_APP))], **{a: [*map(s0, shown(full, a))] for a in apps}}

    answer = api.client.post("/api/fetchall", json={"env": "prod"})
    assert answer.data == encoded({"code": 200, "message": "", "data": data})
    assert int(answer.headers["Content-Length"]) == len(answer.data) > 300_000
    assert answer.content_type == "application/json"


def test_fetch_is_what_it_would_be_in_one_piece(api: Api, full: FakeService):
    view = full.registry.service("test", "large")
    assert view is not None
    data = {"instances": [*map(s0, view.instances)], "latest_timestamp": view.latest_timestamp}

    answer = api.client.post("/api/fetch", json={"appid": "large", "env": "test", "status": 1})
    assert answer.data == encoded({"code": 200, "message": "", "data": data})


def test_s4_is_what_it_would_be_in_one_piece(api: Api, full: FakeService):
    view = full.registry.service("default", "large")
    assert view is not None

    answer = api.get("/services/large/instances")
    assert answer.data == encoded([*map(to_s4, view.instances)])
    assert answer.headers["X-Rollcall-Complete"] == "true"


@pytest.mark.parametrize(("query", "step"), [("", 1), ("?tag=t&tag=t", 2), ("?tag=nobody", MANY)])
def test_the_catalog_is_what_it_would_be_in_one_piece(api: Api, full: FakeService, query: str, step: int):
    view = full.registry.service("default", "large")
    assert view is not None
    node = {
        "ID": "n1", "Node": "n1", "Address": "127.0.0.1", "Datacenter": "dc1",
        "TaggedAddresses": {"lan": "127.0.0.1", "wan": "127.0.0.1"}, "NodeMeta": {},
    }  # fmt: skip
    wanted = [i for i in view.instances if step == 1 or (step == 2 and i.tags)]

    answer = api.get(f"/v1/catalog/service/large{query}")
    assert answer.data == encoded([{**node, **_row(instance)} for instance in wanted])
    assert answer.headers["X-Consul-Index"] == str(view.modify_index)


@pytest.mark.parametrize("path", ["/services/large/instances", "/v1/catalog/service/large"])
def test_a_head_says_how_long_it_would_be(api: Api, full: FakeService, path: str):
    head, answer = api.client.head(path), api.get(path)

    assert head.data == b""
    assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(answer.data))


def test_a_native_list_of_many_is_what_it_would_be_of_few(api: Api, full: FakeService):
    view = full.registry.service("default", "large")
    assert view is not None
    path = "/api/v1/services/large/instances"
    expected = {"service": "large", "env": "default", "index": 0, "instances": [*map(record, view.instances)]}

    for shown, leases in ((path, {}), (f"{path}?health=any", {"lease": None})):
        answer = api.get(shown)
        expected["index"] = full.registry.applied_index
        expected["instances"] = [{**record(each), **leases} for each in view.instances]
        assert answer.data == encoded(expected)
        assert int(answer.headers["X-Rollcall-Index"]) == expected["index"]
        full.submit(Batch(registered("small", 1)))


def reader_of(
    app: Fast, body: bytes = b"", method: str = "POST", path: str = "/api/fetchall", query: str = ""
) -> Reader:
    """What a server that sends files is given for a fetchall, or another call."""
    given: list[Any] = []
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "REQUEST_URI": path, "SERVER_NAME": "n1", "QUERY_STRING": query,
        "SERVER_PORT": "8500", "wsgi.url_scheme": "http", "HTTP_HOST": "127.0.0.1", "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), "wsgi.file_wrapper": lambda file, size: given.append(file) or [],
    }  # fmt: skip
    app(environ, lambda status, headers: None)
    return given[0]


def test_readers_of_one_state_are_given_the_same_pieces(app: Fast, full: FakeService):
    one, other = reader_of(app), reader_of(app, b'{"env": "prod"}')

    assert one.read(20_000) != other.read(20_000), "the nodes are in the env that was asked for"
    both = one.holds.keys() & other.holds.keys()
    assert sum(one.holds[each] for each in both) > 0.99 * len(one)


def test_of_a_later_state_what_did_not_change_is_the_same(app: Fast, full: FakeService):
    one = reader_of(app)
    full.submit(Batch(registered("small", 9)))
    other = reader_of(app)

    both = one.holds.keys() & other.holds.keys()
    assert 0.7 * len(one) < sum(one.holds[each] for each in both) < len(one)


@pytest.mark.parametrize("query", ["", "health=any"])
def test_readers_of_one_native_list_are_given_the_same_pieces_and_each_its_index(
    app: Fast, full: FakeService, query: str
):
    readers: list[Reader] = []
    for _ in range(2):
        readers.append(reader_of(app, b"", "GET", "/api/v1/services/large/instances", query))
        full.submit(Batch(registered("small", 1)))
    one, other = readers

    both = one.holds.keys() & other.holds.keys()
    assert sum(one.holds[each] for each in both) > 0.99 * len(one)
    assert one.read(60) != other.read(60), "the index is the one at which each of them asked"


def test_where_large_answers_have_no_place_every_dialect_says_so_and_small_ones_go_on(
    app: Fast, api: Api, full: FakeService
):
    places = app._context.large._places
    assert api.get("/api/v1/services/large/instances?env=test").status_code == 200
    with contextlib.ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(places.place(""))
        places._wait_s = 0.01

        for path, body in (("fetchall", {}), ("fetch", {"appid": "large", "status": 1})):
            answer = api.client.post(f"/api/{path}", json=body)
            assert (answer.status_code, answer.json["code"], answer.json["outcome"]) == (200, 500, "not_done")
            assert answer.headers["Retry-After"]
        native = "/api/v1/services/large/instances"
        for path in ("/services/large/instances", "/v1/catalog/service/large", native, f"{native}?health=any"):
            answer = api.get(path)
            problem(answer, 503, Overloaded("").code())
            assert answer.headers["Retry-After"]

        assert api.get("/services/s1/instances").status_code == 200
        assert api.get("/api/v1/services").status_code == 200, "they are few, and summed up quickly"
        assert api.get(f"{native}?env=test").status_code == 200, "it is made already"
        assert api.get(f"{native}?limit=10&after=").status_code == 200, "pages are small"
        assert api.client.post("/api/fetch", json={"appid": "s1", "status": 1}).json["code"] == 200
        assert api.register("orders", "o1").status_code == 201
    assert api.get("/services/large/instances").status_code == 200


@pytest.fixture
def heavy(service: FakeService) -> FakeService:
    """Few instances, of more than a megabyte."""
    meta = {f"m{n}": "x" * 500 for n in range(16)}
    for n in range(0, 150, 50):
        many = (
            Registration(service="heavy", id=f"i{each:03}", address="a", port=1, meta=meta) for each in range(n, n + 50)
        )
        service.submit(Batch(tuple(map(Register, many))))
    return service


def test_few_large_instances_make_a_large_answer_too(app: Fast, api: Api, heavy: FakeService):
    native, places = "/api/v1/services/heavy/instances", app._context.large._places
    with places.place(""), places.place(""):
        places._wait_s = 0.01
        for path, body in (("fetchall", {}), ("fetch", {"appid": "heavy", "status": 1})):
            assert api.client.post(f"/api/{path}", json=body).json["code"] == 500
        for path in ("/services/heavy/instances", "/v1/catalog/service/heavy", native, f"{native}?health=any"):
            problem(api.get(path), 503, "Overloaded")
        assert len(api.ids(f"{native}?limit=10")) == 10

    one, other = (reader_of(app, b"", "GET", native) for _ in range(2))
    assert sum(one.holds[each] for each in one.holds.keys() & other.holds.keys()) > 1_000_000
    assert one.read() == other.read()


def test_a_short_list_is_made_on_one_side_and_then_given_by_the_other(
    app: Fast, api: Api, service: FakeService, monkeypatch: pytest.MonkeyPatch
):
    path, inner, behind = "/api/v1/services/s/instances", app.inner, []
    monkeypatch.setattr(app, "inner", lambda environ, start: behind.append(1) or inner(environ, start))
    assert (api.ids(path), behind) == ([], []), "where there is nothing, nothing has to be made"
    for ids in (["i0"], ["i0", "i1"]):
        service.submit(Batch(registered("s", len(ids))))
        behind.clear()
        assert [api.ids(path) for _ in range(3)] == [ids] * 3
        assert behind == [1]


def test_whose_client_left_waits_for_no_place(app: Fast, full: FakeService):
    places, client = app._context.large._places, Client(app)
    with places.place(""), places.place(""):
        answer = client.get(
            "/services/large/instances", environ_overrides={"waitress.client_disconnected": lambda: True}
        )
    assert "client left" in problem(answer, 503, "Overloaded")["detail"]


def test_groups_of_apps_are_whole_and_in_order():
    apps = [(f"a{n}", ()) for n in range(5000)]
    groups = [*_groups(apps)]
    without = [*_groups(each for each in apps if each[0] != groups[1][3][0])]

    assert [*itertools.chain(*groups)] == apps
    assert len(groups) > 2
    assert [*groups[:1], *groups[2:]] == [*without[:1], *without[2:]], "who goes moves no other group"
