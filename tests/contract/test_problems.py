"""Errors: whatever is wrong, the answer is a problem that says so, and nothing leaks."""

import logging
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import quote_from_bytes

import msgspec
import pytest
from harness.api import Api, FakeService, problem
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.api import ApiSettings, create_app
from rollcall.node.api.body import BATCHES, limit_of
from rollcall.node.api.fast import Fast
from rollcall.replication import errors
from rollcall.replication.errors import (
    AlreadyRegistered,
    Damaged,
    DiskUnavailable,
    Draining,
    NoLeader,
    NotDone,
    Overloaded,
    RollcallError,
    TooLarge,
    Unknown,
)

ORDERS = "/api/v1/services/orders/instances"
O1 = f"{ORDERS}/o1"


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (NoLeader("none in 5 s"), 503, "not_done"),
        (NotDone("no"), 503, "not_done"),
        (Overloaded("full", limit=3), 503, "not_done"),
        (Draining("going"), 503, "not_done"),
        (DiskUnavailable("full"), 503, "not_done"),
        (Unknown("who knows"), 504, "unknown"),
        (AlreadyRegistered("service o1 already registered"), 409, None),
        (TooLarge("2 MiB", limit=1), 413, None),
    ],
)
def test_a_failed_write_says_what_became_of_it(
    api: Api, failing: Callable[[RollcallError], None], error: RollcallError, status: int, outcome: str | None
) -> None:
    failing(error)

    answer = api.put(O1, {})
    told = problem(answer, status, error.code())
    assert told.get("outcome") == outcome
    assert told["detail"] == error.message
    assert answer.headers.get("Retry-After") == (None if outcome != "not_done" else "1")
    assert all(told[name] == fact for name, fact in error.facts.items())


def test_every_error_of_the_tree_has_an_answer(api: Api, service: FakeService) -> None:
    tree = vars(errors).values()
    for kind in [k for k in tree if isinstance(k, type) and issubclass(k, RollcallError)]:
        service.submit_error = kind("words")
        problem(api.put(O1, {}), kind.status)


@pytest.mark.parametrize("fault", [ZeroDivisionError("secret words"), Damaged("secret words in /var/lib/x")])
def test_a_fault_is_logged_once_and_told_without_details(
    api: Api, service: FakeService, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    service.submit_error = fault

    with caplog.at_level(logging.ERROR):
        answer = api.put(O1, {}, headers={"X-Request-Id": "r-17"})
    told = problem(answer, 500, "InternalError", outcome="unknown")
    assert "secret" not in answer.text and "Error:" not in answer.text
    assert "log" in told["detail"]
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info and caplog.records[0].exc_info[1] is fault


def test_a_fault_of_a_read_has_no_outcome(api: Api, service: FakeService) -> None:
    service.members = lambda: 1 / 0  # type: ignore[method-assign, assignment]

    assert "outcome" not in problem(api.get("/api/v1/cluster"), 500, "InternalError")


def test_paths_and_methods_that_do_not_exist(api: Api) -> None:
    problem(api.get("/nowhere"), 404)
    problem(api.get("/"), 404)
    answer = api.post(O1)
    problem(answer, 405)
    assert {method.strip() for method in answer.headers["Allow"].split(",")} >= {"GET", "PUT", "DELETE"}
    problem(api.client.open("/healthz", method="BREW"), 405)
    problem(api.get("/register"), 405)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"[]",
        b'"text"',
        b"null",
        b"17",
        b"NaN",
        b'{"weight": NaN}',
        b'{"weight": 1e999}',
        b'{"version": "\xff"}',
        b'{"version": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"version": "a',
        b"[" * 3000,
        b'{"a":' * 600,
        b"a=b&c=d",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", O1), ("POST", ORDERS), ("PUT", f"{O1}/status"), ("POST", "/api/v1/batch"), ("POST", "/api/v1/heartbeats")],
)
def test_a_body_that_is_no_json_object_is_refused(api: Api, method: str, path: str, body: bytes) -> None:
    problem(api.client.open(path, method=method, data=body), 400, "Invalid", field="body")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"port": "80"}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": -1}, "port"),
        ({"port": 1.5}, "port"),
        ({"port": True}, "port"),
        ({"port": None}, "port"),
        ({"port": 10**40}, "port"),
        ({"ttl_s": 1}, "ttl_s"),
        ({"ttl_s": 86_401}, "ttl_s"),
        ({"ttl_s": "90"}, "ttl_s"),
        ({"address": "x" * 256}, "address"),
        ({"address": "a\nb"}, "address"),
        ({"address": ["a"]}, "address"),
        ({"tags": ["x"] * 65}, "tags"),
        ({"tags": ["x", ""]}, "tags[1]"),
        ({"tags": "x"}, "tags"),
        ({"addrs": ["x"] * 17}, "addrs"),
        ({"meta": {str(n): "" for n in range(65)}}, "meta"),
        ({"meta": {"k": 1}}, "meta[...]"),
        ({"meta": []}, "meta"),
        ({"weight": -1}, "weight"),
        ({"status": "asleep"}, "status"),
        ({"env": "a b"}, "env"),
        ({"env": ""}, "env"),
        ({"dirty_timestamp": -1}, "dirty_timestamp"),
        ({"status_override": "up"}, "status_override"),
        ({"health": "passing"}, "health"),
        ({"modify_index": 1}, "modify_index"),
        ({"checks": [1]}, "checks[0]"),
        ({"checks": "no"}, "checks"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named(api: Api, fields: dict[str, Any], field: str) -> None:
    told = problem(api.put(O1, fields), 400, "Invalid", field=field)

    assert field.partition("[")[0] in told["detail"]
    assert api.get(O1).status_code == 404


def test_of_a_key_given_twice_the_last_counts(api: Api) -> None:
    assert api.put(O1, data=b'{"version": "1", "version": "2"}').json["version"] == "2"


def test_the_content_type_does_not_matter(api: Api) -> None:
    for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
        assert api.put(O1, data=b'{"version": "1"}', content_type=content_type).status_code in (200, 201)


class TestSize:
    def test_a_body_over_the_limit_is_refused_with_the_limit(self, api: Api) -> None:
        problem(api.put(O1, {"meta": {"k": "x" * 5000}}), 413, "TooLarge", limit=4096)
        problem(api.post("/register", {"serviceName": "x" * 5000}), 413, "TooLarge", limit=4096)

    def test_a_batch_may_be_larger_up_to_a_limit_of_its_own(self, api: Api) -> None:
        operation = {"op": "register", "service": "orders", "meta": {"k": "x" * 100}}
        operations = [{**operation, "id": str(n)} for n in range(50)]

        assert api.post("/api/v1/batch", {"operations": operations}).status_code == 200
        problem(api.post("/api/v1/batch", {"operations": operations * 4}), 413, "TooLarge", limit=16_384)

    def test_a_body_without_a_length_is_measured(self, api: Api, app: Fast) -> None:
        for size, status in ((100, 201), (5000, 413)):
            body = b'{"version": "' + b"1" * size + b'"}'
            environ = {"wsgi.input": BytesIO(body), "wsgi.input_terminated": True}
            answer = api.put(O1, environ_overrides=environ, headers={"Transfer-Encoding": "chunked"})
            assert answer.status_code == status, answer.text

    def test_too_many_at_once_are_refused_with_the_limit(self, service: FakeService) -> None:
        api = Api(create_app(service, ApiSettings()))
        heartbeat = {"service": "s", "id": "i"}
        problem(api.post("/api/v1/heartbeats", {"instances": [heartbeat] * 10_001}), 413, "TooLarge", limit=10_000)
        removal = {"op": "deregister", "service": "s", "id": "i"}
        problem(api.post("/api/v1/batch", {"operations": [removal] * 501}), 413, "TooLarge", limit=500)


FIELDS = st.sampled_from(
    ["service", "id", "env", "address", "port", "tags", "meta", "ttl_s", "status", "operations", "instances", "op",
     "serviceName", "host", "appid", "hostname", "addrs", "latest_timestamp", "dirty_timestamp", "reason", "checks"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["orders", "o1", "up"])
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(FIELDS, values, max_size=6),
    max_leaves=12,
)  # fmt: skip
CALLS = [
    ("PUT", O1), ("POST", ORDERS), ("PUT", f"{O1}/status"), ("POST", "/api/v1/batch"), ("POST", "/api/v1/heartbeats"),
    ("POST", "/register"), *(("POST", f"/api/{name}") for name in ("register", "renew", "cancel", "fetch", "nodes")),
]  # fmt: skip


class TestAnyInput:
    """Nothing that a client can send is a fault of this program."""

    api = Api(create_app(FakeService()))

    @given(call=st.sampled_from(CALLS), body=st.dictionaries(FIELDS, VALUES, max_size=8) | VALUES)
    def test_any_json(self, call: tuple[str, str], body: Any) -> None:
        answer = self.api.client.open(call[1], method=call[0], data=msgspec.json.encode(body))

        assert answer.status_code in (200, 201, 400, 404, 409), answer.text
        assert answer.json.get("code") != 500

    @given(call=st.sampled_from(CALLS), body=st.binary())
    def test_any_bytes(self, call: tuple[str, str], body: bytes) -> None:
        answer = self.api.client.open(call[1], method=call[0], data=body)

        assert answer.status_code in (200, 400), answer.text
        assert answer.json.get("code") != 500

    @given(
        method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
        before=st.sampled_from(["/", f"{ORDERS}/", "/api/v1/services/", "/heartbeat/", "/services/", "/deregister/"]),
        path=st.binary(max_size=30),
        after=st.sampled_from(["", "/heartbeat", "/status", "/instances"]),
        query=st.sampled_from(["", "?"])
        | st.binary(max_size=20).map(lambda raw: "?" + quote_from_bytes(raw, safe="=&")),
    )
    def test_any_path(self, method: str, before: str, path: bytes, after: str, query: str) -> None:
        answer = self.api.client.open(before + quote_from_bytes(path) + after + query, method=method, data=b"{}")

        assert answer.status_code in (200, 201, 400, 404, 405), answer.text


def test_a_server_keeps_no_more_of_a_body_than_the_route_takes(service: FakeService) -> None:
    """What the server is told of a path is what the path says itself."""
    limits = ApiSettings(body_bytes_max=4096, batch_body_bytes_max=16_384)
    api = Api(create_app(service, limits))
    seen: set[int] = set()
    one = ("/api/v1/services/a/instances/b", "/register", "/api/register", "/api/v1/policies/p")
    for path in (*sorted(BATCHES), *one):
        method = "PUT" if path.endswith(("/b", "/p")) else "POST"
        told = api.client.open(path, method=method, data=b"x" * 20_000).json
        assert told["limit"] == limit_of(limits, method, path), path
        seen.add(told["limit"])
    assert seen == {4096, 16_384}


@pytest.mark.parametrize(
    ("path", "sent", "field", "meant"),
    [
        (f"{ORDERS}/o1", {"adress": "h"}, "adress", "address"),
        (f"{ORDERS}/o1", {"checks": [{"ttl_s": 5, "intervall_s": 5}]}, "checks[0].intervall_s", "interval_s"),
        (f"{ORDERS}/o1?evn=x", {}, "evn", "env"),
        ("/api/v1/policies/p", {"service": "s", "procent": 5}, "procent", "percent"),
    ],
)
def test_a_misspelt_field_is_told_what_was_perhaps_meant(
    api: Api, path: str, sent: dict[str, Any], field: str, meant: str
) -> None:
    told = problem(api.put(path, sent), 400, "Invalid", field=field)

    assert f"did you mean {meant!r}?" in told["detail"]


def test_a_field_that_is_like_none_is_to_be_left_out(api: Api) -> None:
    for name in ("colour", "x" * 3000):
        assert "leave it out" in problem(api.put(f"{ORDERS}/o1", {name: 1}), 400, "Invalid")["detail"]
