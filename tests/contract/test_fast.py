"""The layer in front of Flask: the same answers, sooner."""

import re

import pytest
from harness.api import Api, Clock, FakeService, fill
from rollcall.node.api import ApiSettings, create_app
from rollcall.node.api.fast import LIST, Fast
from rollcall.node.api.listings import Listings, Wanted
from rollcall.node.metrics import Metrics
from werkzeug.test import Client, TestResponse

ORDERS = "/api/v1/services/orders/instances"


def _told(answer: TestResponse) -> tuple[str, list[tuple[str, str]], bytes]:
    headers = [(name, value) for name, value in answer.headers.to_wsgi_list() if name != "X-Request-Id"]
    return answer.status, headers, answer.data


PUTS = (
    (f"{ORDERS}/o1", b'{"address": "10.0.0.1", "port": 80}'),
    (f"{ORDERS}/o1", b'{"address": "10.0.0.2", "port": 81, "ttl_s": 30, "tags": ["a"], "dirty_timestamp": 5}'),
    (f"{ORDERS}/o1", b'{"address": "10.0.0.2", "dirty_timestamp": 4}'),
    (f"{ORDERS}/o1/heartbeat", b""),
    (f"{ORDERS}/o1/heartbeat", b"what is in a heartbeat does not matter"),
    (f"{ORDERS}/o9/heartbeat", b""),
    (f"{ORDERS}/heartbeat", b'{"address": "10.0.0.1", "port": 80}'),
    (f"{ORDERS}/heartbeat/heartbeat", b""),
    (f"{ORDERS}/o2", b'{"id": "o3"}'),
    (f"{ORDERS}/o2", b'{"port": 99999}'),
    (f"{ORDERS}/o2", b'{"prot": 1}'),
    (f"{ORDERS}/o2", b'{"checks": [{"type": "tcp"}]}'),
    (f"{ORDERS}/o2", b"\xff"),
    (f"{ORDERS}/o2", b"[]"),
    (f"{ORDERS}/o2", b""),
    (f"{ORDERS}/o2", b" " * (256 * 1024 + 1)),
    (f"{ORDERS}/o2?if_absent=true", b'{"address": "10.0.0.1", "port": 80}'),
    (f"{ORDERS}/o2?if_absent=true", b'{"address": "10.0.0.1", "port": 80}'),
)


@pytest.mark.parametrize("trouble", ["", "draining", "full", "fault"])
def test_a_put_gets_the_same_answer_as_from_flask(trouble: str) -> None:
    """Two nodes that live through the same, one asked in front of Flask, one behind."""

    def live(behind: bool) -> list[tuple[str, list[tuple[str, str]], str]]:
        service = FakeService()
        api = Api(create_app(service, ApiSettings(), clock=Clock()))
        service.draining = trouble == "draining"
        service.submit_error = ValueError("boom") if trouble == "fault" else None
        if trouble == "full":
            fill(service.budget)
        told: list[tuple[str, list[tuple[str, str]], str]] = []
        for path, body in PUTS:
            status, headers, said = _told((api.inner if behind else api.client).put(path, data=body))
            text = re.sub(r'_timestamp":\d{19}', '_timestamp":"now"', said.decode())
            kept = sorted(header for header in headers if header[0] != "Content-Length")
            told.append((status, kept, text))
        return told

    assert live(behind=False) == live(behind=True)


def test_plain_puts_never_enter_flask(api: Api, app: Fast) -> None:
    def refuse(environ: object, start_response: object) -> list[bytes]:
        raise AssertionError("entered")

    app.inner = refuse

    assert api.client.put(f"{ORDERS}/o1", data=b"{}").status_code == 201
    assert api.client.put(f"{ORDERS}/o1/heartbeat").status_code == 200
    for path, headers in (
        (f"{ORDERS}/o1?env=prod", {}),
        (f"{ORDERS}/o%2F1", {}),
        (f"{ORDERS}/o1/status", {}),
        (f"{ORDERS}/o1", {"Idempotency-Key": "k"}),
    ):
        with pytest.raises(AssertionError, match="entered"):
            api.client.put(path, data=b"{}", headers=headers)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path", [ORDERS, f"{ORDERS}?env=prod", "/api/v1/services/nobody/instances", f"{ORDERS}?env=default"]
)
def test_it_answers_as_flask_does_byte_for_byte(api: Api, method: str, path: str) -> None:
    api.register(version="1")
    api.register(id="o2", query="?env=prod")
    api.register(id="o3", status="down")

    assert _told(api.client.open(path, method=method)) == _told(api.inner.open(path, method=method))


@pytest.mark.parametrize("change", ["leaderless", "incomplete", "named"])
def test_the_headers_agree_wherever_the_node_stands(api: Api, service: FakeService, change: str) -> None:
    service.has_leader = change != "leaderless"
    service.is_complete = change != "incomplete"
    headers = {"X-Request-Id": "r-1"}

    fast, flask = api.client.get(ORDERS, headers=headers), api.inner.get(ORDERS, headers=headers)
    assert fast.headers.to_wsgi_list() == flask.headers.to_wsgi_list()
    assert fast.headers["X-Request-Id"] == "r-1"


def test_plain_reads_never_enter_flask(api: Api, app: Fast) -> None:
    def refuse(environ: object, start_response: object) -> list[bytes]:
        raise AssertionError("entered")

    app.inner = refuse

    assert api.get(ORDERS).status_code == 200
    assert api.get(f"{ORDERS}?env=prod").status_code == 200
    for special in (
        f"{ORDERS}?tag=a",
        f"{ORDERS}?env=",
        f"{ORDERS}?env=a%20b",
        f"{ORDERS}/o1",
        f"{ORDERS}?min_index=0",
    ):
        with pytest.raises(AssertionError, match="entered"):
            api.get(special)
    with pytest.raises(AssertionError, match="entered"):
        api.post(ORDERS, {})


def test_an_encoded_slash_is_not_a_path_of_more_segments(api: Api) -> None:
    assert api.get("/api/v1/services/orders%2Finstances").status_code == 404


def test_it_sees_every_change(api: Api) -> None:
    assert api.ids(ORDERS) == []
    api.register()
    assert api.ids(ORDERS) == ["o1"]
    api.register(status="down")
    assert api.ids(ORDERS) == []
    api.delete(f"{ORDERS}/o1")
    assert api.ids(ORDERS) == []
    api.register(version="9")

    assert api.get(ORDERS).json["instances"][0]["version"] == "9"


def test_its_requests_are_counted_with_the_others(api: Api, metrics: Metrics) -> None:
    for client in (api.client, api.client, api.inner):
        client.get(ORDERS)

    counted = metrics.registry.get_sample_value(
        "rollcall_http_requests_total", {"route": LIST, "method": "GET", "status": "2xx"}
    )
    assert counted == 3


def test_the_known_addresses_are_bounded(app: Fast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollcall.node.api.fast.PATHS_MAX", 10)
    client = Client(app)
    for n in range(35):
        assert client.get(f"/api/v1/services/s{n}/instances").status_code == 200

    assert len(app._known) <= 10


def test_kept_lists_stay_within_their_bytes(service: FakeService) -> None:
    api = Api(create_app(service, ApiSettings(), clock=Clock()))
    for n in range(20):
        api.register(service=f"s{n}", id="x" * 200)
    listings = Listings(service.registry, bytes_max=5_000)
    for n in range(20):
        for _ in range(2):
            body = listings.tail("default", f"s{n}", Wanted(limit=1)).whole()
            assert b"x" * 200 in body

    assert listings._bytes <= 5_000
    assert 1 <= len(listings._kept) < 20


def test_questions_with_made_up_texts_do_not_make_a_node_grow(service: FakeService) -> None:
    api = Api(create_app(service, ApiSettings(), clock=Clock()))
    api.register(service="web", id="a")
    listings = Listings(service.registry, bytes_max=1_000_000)
    for n in range(200):
        text = f"{n:03}" + "x" * 60_000
        for wanted in (Wanted(version=text), Wanted(tags=(text,)), Wanted(meta=((text, text),)), Wanted(near=text)):
            listings.tail("default", "web", wanted)

    texts = [t for _, _, w in listings._kept for t in (w.version, w.near, *w.tags, *(p for m in w.meta for p in m))]
    assert sum(len(text) for text in texts if text is not None) <= listings._bytes <= 1_000_000
    assert listings._kept  # what matched is still kept
    assert all(wanted.near for _, _, wanted in listings._kept)  # what matched nothing is not
