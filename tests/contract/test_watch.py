"""Watching, by long poll and as a stream: nothing missed, nothing twice."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.api import Api, FakeService, problem
from harness.facts import set_facts
from harness.waiting import wait_for
from rollcall.node.api import ApiSettings, create_app, watch
from rollcall.node.api.watch import Stream
from rollcall.replication.commands import Begin
from rollcall.replication.front.networks import networks
from rollcall.replication.registry.changes import EVERYTHING, Interest, Page
from werkzeug.test import TestResponse

WATCH = "/api/v1/watch"
ORDERS = "/api/v1/services/orders/instances"
HISTORY, OTHER = "0" * 16, "a" * 16


def begin_anew(service: FakeService) -> None:
    """As if the registry had been put back from a copy."""
    service.log.propose(Begin(OTHER), time_ns=0).result_by(time.monotonic() + 5)


def _later(api: Api, path: str) -> Callable[[], TestResponse]:
    """Asks from a thread of its own; call the result for the answer."""
    answers: list[TestResponse] = []
    thread = threading.Thread(target=lambda: answers.append(api.get(path)))
    thread.start()

    def answer() -> TestResponse:
        thread.join(5)
        assert answers, f"no answer to {path} within 5 s"
        return answers[0]

    return answer


def _parked(service: FakeService, count: int = 1) -> None:
    wait_for(lambda: service.budget.by_kind()["watch"] == count, f"{count} parked watchers")


def test_what_many_ask_for_at_once_is_made_once(
    service: FakeService, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        api.register(version=str(number))
    made: list[int] = []
    go_on = threading.Event()
    in_pieces = watch.pieces

    def slowly(page: Page) -> Iterator[watch.Piece]:
        made.append(page.examined)
        go_on.wait(5.0)
        return in_pieces(page)

    monkeypatch.setattr(watch, "pieces", slowly)
    answers = [_later(api, f"{WATCH}?index=1") for _ in range(3)]
    wait_for(lambda: made, "the first to ask")
    other = _later(api, f"{WATCH}?index=2")
    wait_for(lambda: len(made) == 2, "the one that asks for something else")
    go_on.set()

    texts = {answer().text for answer in answers}
    assert len(texts) == 1
    assert [change["index"] for change in json.loads(texts.pop())["events"]] == [2, 3]
    assert [change["index"] for change in other().json["events"]] == [3]
    assert len(made) <= 3, "of three that ask for the same, one may come when the others are done"


class TestLongPoll:
    def test_it_tells_what_changed_after_an_index(self, api: Api) -> None:
        api.register(version="1")
        api.register(version="2")
        api.put(f"{ORDERS}/o1/status", {"status": "down"})
        api.delete(f"{ORDERS}/o1")

        answer = api.get(f"{WATCH}?index=1")
        assert [(event["kind"], event["index"]) for event in answer.json["events"]] == [
            ("UPDATE", 2),
            ("STATUS_CHANGE", 3),
            ("DEREGISTER", 4),
        ]
        assert answer.json["index"] == 4
        assert answer.headers["X-Rollcall-Index"] == "4"
        assert answer.json["events"][0]["instance"] == api.get(f"{WATCH}?index=1").json["events"][0]["instance"]
        assert answer.json["events"][0]["instance"]["version"] == "2"

    def test_it_waits_for_the_next_change(self, api: Api, service: FakeService) -> None:
        answer = _later(api, f"{WATCH}?index=0")
        _parked(service)
        api.register()

        assert [event["kind"] for event in answer().json["events"]] == ["REGISTER"]
        assert service.budget.in_use == 0

    def test_without_an_index_it_starts_now(self, api: Api, service: FakeService) -> None:
        api.register()
        answer = _later(api, WATCH)
        _parked(service)
        api.register(id="o2")

        assert [event["instance"]["id"] for event in answer().json["events"]] == ["o2"]

    def test_it_gives_up_after_the_wait_and_says_how_far_it_looked(self, api: Api) -> None:
        api.register()
        api.register(service="carts")

        answer = api.get(f"{WATCH}?index=0&service=payments&wait=10ms")
        assert answer.status_code == 304
        assert answer.headers["X-Rollcall-Index"] == "2"
        assert answer.data == b""

    def test_an_index_ahead_of_the_node_waits_for_what_comes_after_it(self, api: Api, service: FakeService) -> None:
        service.leader_ahead = 2
        problem(api.get(f"{WATCH}?index=2&wait=10ms"), 503, "NotCaughtUp", applied_index=0)
        answer = _later(api, f"{WATCH}?index=2")
        _parked(service)
        for id in ("o1", "o2", "o3"):
            api.register(id=id)

        assert [event["index"] for event in answer().json["events"]] == [3]

    def test_an_index_that_the_registry_never_had_is_gone(self, api: Api, service: FakeService) -> None:
        api.register()

        problem(api.get(f"{WATCH}?index=900&wait=60"), 410, "Gone", history=HISTORY, applied_index=1)
        assert service.leader_asked == 1
        service.has_leader = False
        problem(api.get(f"{WATCH}?index=900&wait=10ms"), 503, "NotCaughtUp", applied_index=1)
        assert service.budget.in_use == 0

    def test_an_index_of_another_history_is_gone(self, api: Api) -> None:
        api.register()

        assert api.get(f"{WATCH}?index=0&history={HISTORY}").json["history"] == HISTORY
        problem(api.get(f"{WATCH}?index=0&history={OTHER}&wait=60"), 410, "Gone", history=HISTORY)
        problem(api.get(f"{WATCH}?history={OTHER}&wait=60"), 410, "Gone", history=HISTORY)

    def test_a_parked_poll_hears_that_the_history_changed(self, api: Api, service: FakeService) -> None:
        api.register()
        answer = _later(api, f"{WATCH}?index=1&service=orders&wait=60")
        _parked(service)
        begin_anew(service)

        problem(answer(), 410, "Gone")
        assert service.budget.in_use == 0

    def test_a_poll_that_waits_for_this_node_hears_it_as_well(self, api: Api, service: FakeService) -> None:
        service.leader_ahead = 5
        answer = _later(api, f"{WATCH}?index=5&history={HISTORY}&wait=60")
        wait_for(lambda: service.leader_asked, "the leader to be asked")
        begin_anew(service)
        for _ in range(4):
            api.register()

        problem(answer(), 410, "Gone", history=OTHER)

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("service=orders", ["orders"]),
            ("service=orders&service=carts", ["orders", "carts"]),
            ("env=prod", ["orders-prod"]),
            ("env=prod&service=carts", []),
            ("env=*&service=orders", ["orders", "orders-prod"]),
            ("env=*", ["orders", "carts", "orders-prod"]),
            ("", ["orders", "carts"]),
        ],
    )
    def test_it_keeps_to_what_was_asked_for(self, api: Api, query: str, expected: list[str]) -> None:
        api.register(service="orders", id="orders")
        api.register(service="carts", id="carts")
        api.register(service="orders", id="orders-prod", query="?env=prod")

        answer = api.get(f"{WATCH}?index=0&wait=0&{query}")
        told = [] if answer.status_code == 304 else answer.json["events"]
        assert [event["instance"]["id"] for event in told] == expected

    def test_a_watch_from_a_list_misses_nothing(self, api: Api) -> None:
        api.register()
        index = api.get(ORDERS).json["index"]
        api.register(id="o2")

        events = api.get(f"{WATCH}?index={index}&service=orders").json["events"]
        assert [event["instance"]["id"] for event in events] == ["o2"]

    def test_a_batch_is_one_index_of_many_events(self, api: Api) -> None:
        operations = [{"op": "register", "service": "orders", "id": str(n)} for n in range(5)]
        api.post("/api/v1/batch", {"operations": operations})

        assert [event["index"] for event in api.get(f"{WATCH}?index=0").json["events"]] == [1] * 5

    def test_an_index_older_than_the_feed_is_gone(self) -> None:
        service = FakeService(feed=2)
        api = Api(create_app(service))
        for n in range(5):
            api.register(id=f"o{n}")

        told = problem(api.get(f"{WATCH}?index=1"), 410, "Gone", floor=3)
        assert "read everything again" in told["detail"]
        problem(api.get(f"{WATCH}?index=1", headers={"Accept": "text/event-stream"}), 410, "Gone")
        assert service.budget.in_use == 0

    def test_draining_releases_the_parked_and_takes_no_more(self, api: Api, service: FakeService) -> None:
        answer = _later(api, f"{WATCH}?index=0&wait=60")
        _parked(service)
        service.draining = True
        service.changes.close()

        assert answer().status_code == 304
        problem(api.get(f"{WATCH}?index=0"), 503, "Draining")

    def test_a_client_that_left_frees_its_place(self, api: Api, service: FakeService) -> None:
        left = threading.Event()
        environ = {"waitress.client_disconnected": left.is_set}
        poll = threading.Thread(
            target=lambda: api.get(f"{WATCH}?index=0&wait=60", environ_overrides=environ), daemon=True
        )
        poll.start()
        _parked(service)
        left.set()

        wait_for(lambda: service.budget.in_use == 0, "the place to come back")
        poll.join(5)

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("index=-1", "index"),
            ("index=x", "index"),
            ("wait=601s", "wait"),
            ("service=a%20b", "service"),
            ("since=1", "since"),
            ("history=", "history"),
            ("index=1&history=xyz", "history"),
        ],
    )
    def test_what_is_wrong_is_named(self, api: Api, query: str, field: str) -> None:
        problem(api.get(f"{WATCH}?{query}"), 400, "Invalid", field=field)

    def test_it_has_no_head(self, api: Api, service: FakeService) -> None:
        assert api.client.head(WATCH).status_code == 405
        assert service.budget.in_use == 0


class Reader:
    """Reads an event stream message by message."""

    def __init__(self, answer: TestResponse) -> None:
        self.answer = answer
        self._pieces: Iterator[bytes] = answer.iter_encoded()
        self._text = ""

    def message(self) -> dict[str, Any]:
        """The next message: its fields, ``data`` parsed."""
        while "\n\n" not in self._text:
            self._text += next(self._pieces).decode()
        message, self._text = self._text.split("\n\n", 1)
        fields = dict(line.split(": ", 1) for line in message.splitlines())
        return {**fields, "data": json.loads(fields["data"])}

    def ended(self) -> bool:
        return next(self._pieces, None) is None


@pytest.fixture
def stream(api: Api) -> Iterator[Callable[..., Reader]]:
    opened: list[TestResponse] = []

    def open(query: str = "", **headers: str) -> Reader:
        answer = api.get(f"{WATCH}{query}", headers={"Accept": "text/event-stream", **headers}, buffered=False)
        opened.append(answer)
        assert answer.status_code == 200, answer.text
        assert answer.content_type == "text/event-stream; charset=utf-8"
        return Reader(answer)

    yield open
    for answer in opened:
        answer.close()


class TestStream:
    def test_it_says_at_once_where_it_stands(self, api: Api, stream: Callable[..., Reader]) -> None:
        api.register()

        progress = {"id": f"{HISTORY}-1", "event": "progress", "data": {"index": 1, "history": HISTORY}}
        assert stream().message() == progress

    def test_a_history_without_a_name_is_not_named(
        self, api: Api, service: FakeService, stream: Callable[..., Reader]
    ) -> None:
        set_facts(service.registry, history="")
        api.register()

        reader = stream("?index=0")
        assert reader.message()["id"] == "1"
        assert stream().message() == {"id": "1", "event": "progress", "data": {"index": 1}}

    def test_it_sends_one_message_per_index_with_all_its_events(self, api: Api, stream: Callable[..., Reader]) -> None:
        operations = [{"op": "register", "service": "orders", "id": str(n)} for n in range(3)]
        api.post("/api/v1/batch", {"operations": operations})
        api.register(id="o4")

        reader = stream("?index=0")
        first, second = reader.message(), reader.message()
        assert (first["id"], len(first["data"]["events"]), first["data"]["index"]) == (f"{HISTORY}-1", 3, 1)
        assert (second["id"], second["data"]["events"][0]["instance"]["id"]) == (f"{HISTORY}-2", "o4")
        assert "event" not in first  # so that a browser's onmessage sees it

    def test_it_goes_on_with_what_happens_next(self, api: Api, stream: Callable[..., Reader]) -> None:
        reader = stream("?index=0&service=orders")
        assert reader.message()["event"] == "progress"
        api.register(service="carts")
        api.register()

        assert reader.message()["data"]["events"][0]["instance"]["service"] == "orders"

    def test_it_resumes_after_the_last_event_id(self, api: Api, stream: Callable[..., Reader]) -> None:
        for id in ("o1", "o2", "o3"):
            api.register(id=id)

        for said in ("2", f"{HISTORY}-2"):
            reader = stream(f"?index=0&history={OTHER}", **{"Last-Event-ID": said})
            assert reader.message()["data"]["events"][0]["instance"]["id"] == "o3"

    @pytest.mark.parametrize("said", ["x", "-1", f"{HISTORY}-", f"{HISTORY}-x", f"{'A' * 16}-2"])
    def test_a_last_event_id_must_be_an_index(self, api: Api, said: str) -> None:
        answer = api.get(WATCH, headers={"Accept": "text/event-stream", "Last-Event-ID": said})

        problem(answer, 400, "Invalid", field="Last-Event-ID")

    @pytest.mark.parametrize("said", [f"{OTHER}-1", "900", f"{HISTORY}-900"])
    def test_where_the_registry_never_was_is_gone_before_the_first_byte(
        self, api: Api, service: FakeService, said: str
    ) -> None:
        api.register()
        headers = {"Accept": "text/event-stream", "Last-Event-ID": said}

        problem(api.get(f"{WATCH}?wait=60", headers=headers), 410, "Gone", history=HISTORY)
        service.has_leader = False
        problem(api.get(f"{WATCH}?wait=10ms", headers=headers), 503, "NotCaughtUp")
        assert service.budget.in_use == 0

    def test_it_ends_when_the_history_changes_and_says_so(
        self, api: Api, service: FakeService, stream: Callable[..., Reader]
    ) -> None:
        api.register()
        reader = stream("?index=1&service=orders")
        reader.message()
        begin_anew(service)

        told = reader.message()
        assert (told["event"], told["data"]["code"]) == ("gone", "Gone")
        assert reader.ended()

    def test_it_holds_a_place_until_it_is_closed(
        self, api: Api, service: FakeService, stream: Callable[..., Reader]
    ) -> None:
        reader = stream()
        assert service.budget.by_kind()["watch"] == 1
        reader.message()
        reader.answer.close()

        assert service.budget.in_use == 0

    def test_a_stream_never_read_gives_its_place_back_as_well(
        self, service: FakeService, stream: Callable[..., Reader]
    ) -> None:
        stream().answer.close()

        assert service.budget.in_use == 0

    def test_it_ends_when_the_node_drains(self, service: FakeService, stream: Callable[..., Reader]) -> None:
        reader = stream()
        reader.message()
        service.draining = True
        service.changes.close()

        assert reader.ended()

    def test_while_nothing_of_interest_happens_it_still_moves_on(self, api: Api, service: FakeService) -> None:
        first = service.changes.since(0, EVERYTHING)
        pieces = Stream(service, 0, Interest("prod"), first, lambda: False, progress_s=0.05)
        assert b"-0\nevent: progress" in next(pieces)
        api.register()

        id, data = f"{HISTORY}-1".encode(), f'{{"index":1,"history":"{HISTORY}"}}'.encode()
        assert next(pieces) == b"id: %b\nevent: progress\ndata: %b\n\n" % (id, data)
        pieces.close()

    def test_a_reader_that_fell_behind_the_feed_is_told_so(self) -> None:
        service = FakeService(feed=2)
        api = Api(create_app(service, ApiSettings()))
        answer = api.get(f"{WATCH}?index=0", headers={"Accept": "text/event-stream"}, buffered=False)
        reader = Reader(answer)
        reader.message()
        for n in range(5):
            api.register(id=f"o{n}")

        told = reader.message()
        assert told["event"] == "gone"
        assert (told["data"]["code"], told["data"]["status"]) == ("Gone", 410)
        assert reader.ended()
        answer.close()

    def test_it_ends_within_a_second_of_its_client_leaving(self, service: FakeService) -> None:
        left = threading.Event()
        pieces = Stream(service, 0, EVERYTHING, service.changes.since(0), left.is_set)
        next(pieces)
        threading.Timer(0.1, left.set).start()
        began = time.monotonic()

        assert next(pieces, None) is None
        assert time.monotonic() - began < 10
        pieces.close()


class TestOneInstance:
    def test_it_hears_of_itself_alone(self, api: Api) -> None:
        for id in ("o1", "o2", "o1"):
            api.register(id=id)

        page = api.get("/api/v1/watch?index=0&wait=0&service=orders&id=o1").json
        assert [event["instance"]["id"] for event in page["events"]] == ["o1", "o1"]

    def test_it_has_places_of_its_own_and_is_sent_home_when_places_are_scarce(
        self, api: Api, service: FakeService
    ) -> None:
        index = int(api.register(id="o1").headers["X-Rollcall-Index"])
        for _ in range(7):
            service.budget.take("read")
        polls = [
            threading.Thread(
                target=lambda: api.get(f"/api/v1/watch?index={index}&wait=30s&service=orders&id=o1"), daemon=True
            )
        ]
        polls[0].start()
        wait_for(lambda: service.budget.by_kind()["own"] == 1, "the poll to be parked")
        problem(api.get(f"/api/v1/watch?index={index}&wait=5s&service=orders&id=o1"), 503, "Overloaded")

        for _ in range(6):
            service.budget.take("watch")
        polls[0].join(10)
        assert not polls[0].is_alive()
        assert service.budget.by_kind()["own"] == 0

    def test_an_instance_is_one_of_one_service(self, api: Api) -> None:
        problem(api.get("/api/v1/watch?index=0&wait=0&id=o1"), 400, "Invalid", field="id")
        problem(api.get("/api/v1/watch?index=0&wait=0&service=a&service=b&id=o1"), 400, "Invalid", field="id")
        problem(api.get("/api/v1/watch?index=0&wait=0&service=a&id="), 400, "Invalid", field="id")


def test_one_client_may_not_park_more_than_it_leaves_for_others(service: FakeService) -> None:
    """Of 14 places for watchers seven; an address of IPv6 stands for its network; who is trusted has no share."""
    api = Api(create_app(service, ApiSettings(trusted=networks(["10.0.0.9"]))))
    for client, places in {"10.0.0.1": 7, "2001:db8::/64": 4}.items():
        for _ in range(places):
            service.budget.take("watch", client)

    def polled(address: str) -> TestResponse:
        return api.get(f"{WATCH}?wait=0s", environ_base={"REMOTE_ADDR": address})

    for address in ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8::5", "2001:db8::6"):
        problem(polled(address), 503, "Overloaded", outcome="not_done")
    assert "7 places for watchers are taken by 10.0.0.1" in polled("10.0.0.1").json["detail"]
    assert polled("10.0.0.2").status_code == polled("2001:db8:0:1::5").status_code == 304
    for _ in range(2):
        service.budget.take("watch")
    assert polled("10.0.0.9").status_code == 304
    stream = api.get(WATCH, headers={"Accept": "text/event-stream"}, environ_base={"REMOTE_ADDR": "10.0.0.9"})
    stream.close()
    assert service.budget.in_use == 13
