"""The SDK against nodes that answer, refuse, break off and fall behind. No socket is opened."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from harness.fakes import FakeSession, problem, response
from requests import exceptions
from rollcall.cluster import Client, Snapshot
from rollcall.cluster import nodes as nodes_module
from rollcall.replication.errors import (
    AlreadyRegistered,
    Gone,
    Invalid,
    NoLeader,
    NotCaughtUp,
    NotDone,
    NotFound,
    Superseded,
    Unknown,
)
from rollcall.replication.records import Event, Instance
from urllib3 import exceptions as lower

NODES = ("http://a:1", "http://b:1", "http://c:1")

REFUSED = exceptions.ConnectionError(lower.NewConnectionError(None, "refused"))  # type: ignore[arg-type]
BROKEN_OFF = exceptions.ConnectionError("Connection reset")


def instance(id: str = "cart-1", *, service: str = "cart", index: int = 1) -> dict[str, Any]:
    times = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), index)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), index)
    return {"env": "default", "service": service, "id": id, "lease": None, "checks": [], **times, **indexes}


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are asked in the order in which they are named here."""
    monkeypatch.setattr(nodes_module.random, "sample", lambda urls, _: list(urls))


def client(answers: Callable[[str, str, dict[str, Any]], Any], **options: Any) -> tuple[Client, FakeSession]:
    session = FakeSession(answers)
    return Client(NODES, session=session, **{"timeout_s": 2.0, **options}), session


def hosts(session: FakeSession) -> list[str]:
    return [url.removeprefix("http://")[0] for _, url, _ in session.asked]


def script(*answers: Any) -> Callable[..., Any]:
    """One answer after the other, whoever is asked; the last one for ever."""
    left = list(answers)
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


# Whom it asks, and how often


def test_clients_of_one_configuration_do_not_all_begin_with_the_same_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    first: set[str] = set()
    for _ in range(100):
        sdk, session = client(script(response(200, {"services": []})))
        sdk.services()
        first.update(hosts(session))

    assert first == {"a", "b", "c"}


def test_a_node_that_is_gone_is_left_for_the_next_and_not_asked_again_at_once():
    sdk, session = client(lambda _, url, __: REFUSED if "//a" in url else response(200, {"services": []}))

    sdk.services()
    sdk.services()

    assert hosts(session) == ["a", "b", "b"]


def test_a_write_that_was_certainly_not_done_is_sent_again():
    id = "cart-10.0.0.1:80"
    sdk, session = client(script(problem(NoLeader("no leader")), response(201, instance(id))))

    made = sdk.register("cart", address="10.0.0.1", port=80)

    assert made.id == id
    assert hosts(session) == ["a", "b"]


def test_a_write_that_was_perhaps_done_is_sent_again_under_the_same_key():
    sdk, session = client(script(BROKEN_OFF, problem(Unknown("who knows")), response(200, instance())))

    sdk.register("cart", id="cart-1")

    keys = {options["headers"]["Idempotency-Key"] for _, _, options in session.asked}
    assert len(session.asked) == 3
    assert len(keys) == 1


def test_two_writes_have_different_keys():
    sdk, session = client(lambda *_: response(200, instance()))

    sdk.register("cart", id="cart-1")
    sdk.register("cart", id="cart-1")

    assert len({options["headers"]["Idempotency-Key"] for _, _, options in session.asked}) == 2


@pytest.mark.parametrize("error", [AlreadyRegistered("exists"), Invalid("port: wrong", field="port"), NotFound("none")])
def test_an_error_that_would_be_the_same_elsewhere_is_raised_at_once(error: Exception):
    sdk, session = client(lambda *_: problem(error))

    with pytest.raises(type(error)):
        sdk.register("cart", id="cart-1", if_absent=True)

    assert len(session.asked) == 1


def test_at_the_deadline_the_last_reason_is_raised_with_those_who_were_asked():
    sdk, session = client(lambda *_: REFUSED, timeout_s=0.2)

    with pytest.raises(NotDone, match=r"refused .asked in turn: http://a:1, http://b:1, http://c:1"):
        sdk.services()

    assert set(hosts(session)) == {"a", "b", "c"}


def test_a_write_that_was_once_perhaps_done_never_ends_as_not_done():
    sdk, _ = client(script(BROKEN_OFF, REFUSED), timeout_s=0.2)

    with pytest.raises(Unknown):
        sdk.register("cart", id="cart-1")


def test_an_instance_missing_after_a_deregistration_that_was_perhaps_done_is_success():
    sdk, _ = client(script(BROKEN_OFF, problem(NotFound("none"))))

    sdk.deregister("cart", "cart-1")


def test_an_instance_missing_at_the_first_attempt_is_not_found():
    sdk, _ = client(lambda *_: problem(NotFound("none")))

    with pytest.raises(NotFound):
        sdk.deregister("cart", "cart-1")


def test_what_the_cluster_says_of_itself_is_used_for_later_calls():
    members = [
        {"id": id, "http": f"http://{id}:1", "raft": "h:1", "role": "follower", "reachable": True} for id in "abcd"
    ]
    view = {"node": "a", "leader": "d", "term": 3, "applied_index": 9, "commit_index": 9, "members": members}

    def answers(_: str, url: str, __: dict[str, Any]) -> Any:
        if url.endswith("/cluster"):
            return response(200, view)
        return response(200, {"services": []}) if "//d" in url else REFUSED

    sdk, session = client(answers)

    assert sdk.cluster().leader == "d"
    sdk.services()

    assert hosts(session) == ["a", "a", "d"]


# What it sends


def test_the_default_id_names_the_service_and_its_address():
    sdk, session = client(lambda *_: response(201, instance("cart-10.0.0.1:80")))

    sdk.register("cart", address="10.0.0.1", port=80, tags=["x"])

    method, url, options = session.asked[0]
    assert (method, url) == ("PUT", "http://a:1/api/v1/services/cart/instances/cart-10.0.0.1%3A80")
    assert msgspec.json.decode(options["data"]) == {"address": "10.0.0.1", "port": 80, "tags": ["x"]}


def test_the_lease_is_the_clusters_default_or_none_or_so_long():
    sdk, session = client(lambda *_: response(201, instance("x")))

    sdk.register("cart", id="x")
    sdk.register("cart", id="x", ttl_s=None)
    sdk.register("cart", id="x", ttl_s=30)

    sent = [msgspec.json.decode(options["data"]).get("ttl_s", "absent") for _, _, options in session.asked]
    assert sent == ["absent", None, 30]


@pytest.mark.parametrize(
    "wrong", [{"port": 70_000}, {"tags": [""]}, {"colour": "red"}, {"ttl_s": 0.5}, {"id": "x" * 513}, {"env": "a/b"}]
)
def test_a_registration_that_cannot_be_is_refused_before_it_is_sent(wrong: dict[str, Any]):
    sdk, session = client(lambda *_: response(201, instance()))

    said: dict[str, Any] = {"id": "x", **wrong}
    with pytest.raises(Invalid):
        sdk.register("cart", **said)

    assert session.asked == []


def test_ids_are_encoded_whole():
    sdk, session = client(lambda *_: response(200, {"ttl_s": 30.0, "next_heartbeat_ms": 10_000}))

    renewal = sdk.heartbeat("cart", "a/b ü?")

    assert session.asked[0][1] == "http://a:1/api/v1/services/cart/instances/a%2Fb%20%C3%BC%3F/heartbeat"
    assert (renewal.ttl_s, renewal.next_heartbeat_ms) == (30.0, 10_000)


def test_filters_travel_as_parameters():
    sdk, session = client(lambda *_: response(200, {"service": "cart", "env": "e", "index": 3, "instances": []}))

    sdk.instances("cart", env="e", tags=["x", "y"], zone="z", meta={"k": "v"}, limit=2, near="z")

    assert session.asked[0][2]["params"] == {
        "env": "e", "tag": ["x", "y"], "zone": "z", "meta.k": "v", "limit": 2, "near": "z",
    }  # fmt: skip


# What it reads


def test_an_empty_list_is_marked_complete_only_if_the_node_said_so():
    listing = {"service": "cart", "env": "default", "index": 3, "instances": []}
    sdk, _ = client(script(response(200, listing, X_Rollcall_Complete="true"), response(200, listing)))

    assert sdk.instances("cart").complete
    assert not sdk.instances("cart").complete


def test_a_read_asks_for_what_this_client_wrote_or_saw_before():
    listing = {"service": "cart", "env": "default", "index": 3, "instances": []}

    def answers(method: str, *_: Any) -> Any:
        return response(201, instance(), X_Rollcall_Index=7) if method == "PUT" else response(
            200, listing, X_Rollcall_Index=9
        )  # fmt: skip

    sdk, session = client(answers)

    sdk.instances("cart")
    sdk.register("cart", id="cart-1")
    sdk.instances("cart")

    wanted = [options["params"].get("min_index") for method, _, options in session.asked if method == "GET"]
    assert wanted == [None, 9]


def test_a_node_that_lags_behind_is_left_for_one_that_does_not():
    sdk, session = client(script(problem(NotCaughtUp("at 5", applied_index=5)), response(200, {"services": []})))

    sdk.services()

    assert hosts(session) == ["a", "b"]


def test_a_registry_that_began_anew_is_believed_once_a_read_that_is_never_stale_says_so(caplog):
    """All disks were wiped, say: its indexes are smaller than what this client has seen, and stay so."""
    listing = {"service": "cart", "env": "default", "index": 3, "instances": []}
    index = 9000

    def answers(method: str, url: str, options: dict[str, Any]) -> Any:
        if options["params"].get("min_index", 0) > index:
            return problem(NotCaughtUp(f"at {index}", applied_index=index))
        return response(200, listing, X_Rollcall_Index=index)

    sdk, session = client(answers, timeout_s=0.2)
    sdk.instances("cart")
    index = 12

    assert sdk.instances("cart").index == 3
    assert "the registry began anew: it is at index 12; this client had seen index 9000" in caplog.text
    assert session.asked[-1][2]["params"]["consistency"] == "linearizable"
    sdk.instances("cart")
    assert session.asked[-1][2]["params"]["min_index"] == 12


FORMER, OURS = "f" * 16, "0" * 16


class Registry:
    """What nodes answer that name their history: the first ``index`` entries of ``history``.

    ``lags``: hosts that have not applied the last entry yet. ``hangs``: hosts that never answer. ``leads``:
    whether somebody can say what there is; else nodes wait for as long as they were told, and say 503.
    """

    def __init__(self, index: int, history: str = FORMER) -> None:
        self.index = index
        self.history = history
        self.leads = True
        self.lags = ""
        self.hangs = ""
        self.now = 0.0
        """The time that all answers took."""

    def __call__(self, method: str, url: str, options: dict[str, Any]) -> Any:
        host, params = url.removeprefix("http://")[0], options["params"]
        if host in self.hangs:
            self.now += options["timeout"][1]
            return exceptions.ReadTimeout("no answer")
        headers = {"X_Rollcall_Index": self.index, "X_Rollcall_History": self.history}
        index = self.index - (host in self.lags)
        wanted = int(params.get("min_index") or params.get("index") or 0)
        another = bool(self.history) and params.get("history", self.history) != self.history
        if self.leads and (another or wanted > self.index):
            told = Gone("another", history=self.history, applied_index=self.index)
            return problem(told, **headers)
        if another or wanted > index:
            self.now += float(params["wait"].removesuffix("s"))
            return problem(NotCaughtUp(f"at {index}", applied_index=index))
        if method == "PUT":
            return response(201, instance(), **headers)
        if url.endswith("/watch"):
            return response(304, **headers)
        listing = {"service": "cart", "env": "default", "index": self.index, "instances": []}
        return response(200, listing, **headers)

    def begin_anew(self, index: int = 5, history: str = OURS) -> None:
        self.index, self.history = index, history


def sent(session: FakeSession) -> list[tuple[Any, Any]]:
    """Which index of which history each request asked for."""
    params = [options["params"] for _, _, options in session.asked]
    return [(each.get("min_index", each.get("index")), each.get("history")) for each in params]


def test_a_read_names_the_history_of_what_this_client_saw():
    registry = Registry(900)
    sdk, session = client(registry)

    listing = sdk.instances("cart")
    sdk.instances("cart")

    assert (listing.index, listing.history, sdk.history) == (900, FORMER, FORMER)
    assert sent(session) == [(None, None), (900, FORMER)]


def test_a_read_that_meets_another_history_is_repeated_at_once_and_goes_on_from_there(caplog):
    registry = Registry(900)
    sdk, session = client(registry)
    sdk.instances("cart")
    registry.begin_anew()

    found = [sdk.instances("cart") for _ in range(3)]

    assert [(each.index, each.history) for each in found] == [(5, OURS)] * 3
    assert sent(session) == [(None, None), (900, FORMER), (None, None), (5, OURS), (5, OURS)]
    assert hosts(session) == ["a"] * 5
    assert len([record for record in caplog.records if "began anew" in record.message]) == 1


def test_a_registry_that_has_lost_what_this_client_saw_is_gone_also_where_its_history_has_no_other_name():
    registry = Registry(900)
    sdk, session = client(registry)
    sdk.instances("cart")
    registry.begin_anew(history=FORMER)

    assert sdk.instances("cart").index == 5
    assert sent(session)[1:] == [(900, FORMER), (None, None)]


@pytest.mark.parametrize("write", [True, False])
def test_another_history_is_learnt_from_what_was_read_or_refused_in_it(write: bool, caplog):
    """The name alone, in the answer to a heartbeat, may be that of a node which lags."""
    registry = Registry(900)
    sdk, session = client(registry)
    sdk.instances("cart")
    registry.begin_anew(history=OURS)

    if write:
        sdk.register("cart", id="cart-1")
    else:
        sdk.heartbeat("cart", "cart-1")
    sdk.instances("cart")

    assert sent(session)[2:] == ([(5, OURS)] if write else [(900, FORMER), (None, None)])
    assert len([record for record in caplog.records if "began anew" in record.message]) == 1


def test_a_history_that_gets_its_first_name_is_no_other_one(caplog):
    registry = Registry(900, history="")
    sdk, session = client(registry)
    sdk.instances("cart")
    registry.history = OURS
    sdk.instances("cart")
    registry.history = ""  # a node of the older release, or one that has not heard of it
    sdk.instances("cart")
    sdk.instances("cart")

    assert sent(session) == [(None, None), (900, None), (900, OURS), (900, OURS)]
    assert not caplog.records


def test_what_a_client_learns_is_known_to_it_over_every_session():
    registry = Registry(900)
    sdk, _ = client(registry)
    other = sdk.over(FakeSession(registry))
    other.instances("cart")

    assert sdk.history == FORMER
    registry.begin_anew()
    with pytest.raises(Gone):
        other.changes(index=900, history=FORMER, wait_s=1.0)
    assert sdk.history == OURS


def test_an_index_that_only_the_caller_believes_in_is_not_what_this_client_saw():
    registry = Registry(900)
    sdk, session = client(registry)
    sdk.instances("cart")

    with pytest.raises(Gone):
        sdk.changes(index=1_000_000, wait_s=1.0)
    with pytest.raises(Gone):
        sdk.changes(index=3, history="a" * 16, wait_s=1.0)
    sdk.instances("cart")

    assert sent(session)[-1] == (900, FORMER)


@pytest.mark.parametrize("hangs", ["", "b", "bc"])
@pytest.mark.parametrize("timeout_s", [0.5, 2.0, 10.0])
def test_every_node_is_asked_within_the_time_of_a_call_however_short_it_is(
    hangs: str, timeout_s: float, monkeypatch: pytest.MonkeyPatch
):
    """Nodes that are all behind and wait, or that hang: there is still time for the read that tells."""
    registry = Registry(900)
    monkeypatch.setattr(nodes_module.time, "monotonic", lambda: registry.now)
    sdk, session = client(registry, timeout_s=timeout_s)
    sdk.instances("cart")
    registry.leads, registry.lags, registry.hangs = False, "abc", hangs

    sdk.instances("cart")

    assert hosts(session)[1:4] == ["a", "b", "c"]
    assert session.asked[-1][2]["params"]["consistency"] == "linearizable"
    assert registry.now <= timeout_s


@pytest.mark.parametrize("hangs", ["a", "ab"])
def test_nodes_that_hang_leave_time_to_ask_the_next_one(hangs: str, monkeypatch: pytest.MonkeyPatch):
    registry = Registry(900)
    monkeypatch.setattr(nodes_module.time, "monotonic", lambda: registry.now)
    sdk, session = client(registry, timeout_s=2.0)
    registry.hangs = hangs

    assert sdk.instances("cart", timeout_s=2.0).index == 900
    sdk.register("cart", id="cart-1", timeout_s=2.0)
    assert sdk.changes(index=900, wait_s=1.0, patience_s=1.0).index == 900

    for _, _, options in session.asked:
        wait = options["params"].get("wait")
        assert wait is None or float(wait.removesuffix("s")) < options["timeout"][1]


# Watching


def event(kind: str, index: int, *, id: str = "cart-1", service: str = "cart") -> dict[str, Any]:
    return {"kind": kind, "index": index, "instance": instance(id, service=service, index=index)}


def watched(sdk: Client, count: int, *services: str, **options: Any) -> list[Any]:
    changes = sdk.watch(*services, wait_s=1.0, **options)
    return [next(changes) for _ in range(count)]


def shown(changes: list[Any]) -> list[Any]:
    return [(c.kind, c.index) if isinstance(c, Event) else [i.id for i in c.instances] for c in changes]


def test_a_watch_goes_on_where_it_was_on_the_next_node():
    def answers(_: str, url: str, options: dict[str, Any]) -> Any:
        index = options["params"]["index"]
        if index == 5:
            return response(200, {"events": [event("REGISTER", 6), event("UPDATE", 6)]}, X_Rollcall_Index=8)
        if "//a" in url:
            return BROKEN_OFF
        return response(200, {"events": [event("EVICT", 10)]}, X_Rollcall_Index=10)

    sdk, session = client(answers)

    assert shown(watched(sdk, 3, index=5)) == [("REGISTER", 6), ("UPDATE", 6), ("EVICT", 10)]
    assert [(host, o["params"]["index"]) for host, (_, _, o) in zip(hosts(session), session.asked, strict=True)] == [
        ("a", 5),
        ("a", 8),
        ("b", 8),
    ]


def test_a_poll_without_news_moves_the_watch_on():
    sdk, session = client(
        script(response(304, X_Rollcall_Index=20), response(200, {"events": [event("REGISTER", 21)]}))
    )

    watched(sdk, 1, index=5)

    assert [options["params"]["index"] for _, _, options in session.asked] == [5, 20]


def registry_with(*polls: Any, listing_index: int = 7) -> Callable[..., Any]:
    """A node that knows one service of one instance, and answers polls in turn."""
    left = list(polls)

    def answers(_: str, url: str, __: dict[str, Any]) -> Any:
        if url.endswith("/watch"):
            return left.pop(0)
        if url.endswith("/services"):
            return response(200, {"services": [{"name": "cart"}]}, X_Rollcall_Index=5)
        listing = {"service": "cart", "env": "default", "index": listing_index, "instances": [instance()]}
        return response(200, listing, X_Rollcall_Index=listing_index)

    return answers


def test_a_watch_begins_with_what_is_there_and_skips_what_that_contained():
    polls = response(200, {"events": [event("REGISTER", 6), event("UPDATE", 8)]}, X_Rollcall_Index=8)
    sdk, session = client(registry_with(polls))

    changes = watched(sdk, 2)

    assert isinstance(changes[0], Snapshot)
    assert isinstance(changes[0].instances[0], Instance)
    assert shown(changes) == [["cart-1"], ("UPDATE", 8)]
    assert session.asked[-1][2]["params"]["index"] == 5


def test_a_watch_of_everything_passes_over_a_service_that_no_path_can_name():
    """An older release registered it: one such service ended everybody's watch."""
    services = {"services": [{"name": ".."}, {"name": "cart"}]}
    here = {"service": "cart", "env": "default", "index": 3, "instances": [instance(index=2)]}
    sdk, session = client(script(response(200, services, index=3), response(200, here, index=3)))

    snapshot = next(sdk.watch())
    assert isinstance(snapshot, Snapshot)
    assert [each.id for each in snapshot.instances] == ["cart-1"]
    assert all("/services/.." not in url for _, url, _ in session.asked)


@pytest.mark.parametrize(("service", "id"), [("..", "i"), ("cart", ".")])
def test_what_no_path_can_name_is_removed_by_name(service: str, id: str):
    sdk, session = client(lambda *_: response(200, {"index": 3, "results": []}))

    sdk.deregister(service, id, registration=7)
    ((method, url, options),) = session.asked
    assert (method, url.endswith("/api/v1/batch")) == ("POST", True)
    named = {"op": "deregister", "env": "default", "service": service, "id": id, "registration": 7}
    assert msgspec.json.decode(options["data"]) == {"operations": [named]}
    with pytest.raises(Invalid):
        sdk.instance(service, id)


def test_a_watcher_that_fell_too_far_behind_gets_everything_afresh():
    sdk, _ = client(registry_with(problem(Gone("too old", floor=6)), response(200, {"events": [event("EVICT", 9)]})))

    assert shown(watched(sdk, 3, "cart")) == [["cart-1"], ["cart-1"], ("EVICT", 9)]


def test_a_watcher_of_a_registry_that_began_anew_gets_everything_afresh_at_a_lower_index():
    registry = Registry(900)
    sdk, session = client(registry)
    changes = sdk.watch("cart", wait_s=1.0)

    assert (snapshot := next(changes)) == Snapshot(index=900, instances=(), history=FORMER)
    registry.begin_anew()
    assert (snapshot := next(changes)) == Snapshot(index=5, instances=(), history=OURS), snapshot
    assert sent(session) == [(None, None), (900, FORMER), (None, None)]


def test_a_watch_can_be_resumed_in_its_history():
    registry = Registry(900, history=OURS)
    sdk, session = client(registry)

    assert next(sdk.watch("cart", index=3, history=FORMER, wait_s=1.0)) == Snapshot(
        index=900, instances=(), history=OURS
    )
    assert sent(session)[0] == (3, FORMER)


def test_a_watch_gives_up_when_nobody_answers_for_too_long():
    sdk, _ = client(lambda *_: REFUSED)

    with pytest.raises(NotDone):
        next(sdk.watch(index=1, wait_s=0.1, patience_s=0.1))


@pytest.mark.parametrize("body", [{}, {"policies": None}, {"policies": [{}]}, {"policies": [None]}, [], "no", None])
def test_an_answer_that_is_not_what_was_asked_for_is_an_error_of_ours(body: Any):
    sdk, _ = client(lambda *_: response(200, body))

    with pytest.raises(Unknown, match="cannot be read by this release"):
        sdk.policies()


def test_a_client_needs_nodes_that_are_urls():
    with pytest.raises(Invalid):
        Client("nonsense://")


# Which registration is meant


def test_a_removal_says_which_registration_it_means():
    sdk, session = client(lambda *_: response(200, {"id": "cart-1"}, X_Rollcall_Index=9))

    sdk.deregister("cart", "cart-1", registration=7)
    sdk.deregister("cart", "cart-1")

    assert [options["params"].get("registration") for _, _, options in session.asked] == [7, None]


def test_a_registration_that_was_asked_about_twice_is_the_one_that_was_made_and_not_a_later_one():
    """The first answer was lost, and before the second somebody else registered under the same id."""
    later = response(200, instance(index=9), X_Rollcall_Index=7)
    sdk, session = client(script(BROKEN_OFF, later))

    assert sdk.register("cart", id="cart-1").reg_index == 7
    assert len({options["headers"]["Idempotency-Key"] for _, _, options in session.asked}) == 1


@pytest.mark.parametrize(("there", "removed"), [(7, True), (9, False)])
def test_at_a_node_of_a_release_before_it_looks_first(there: int, removed: bool):
    def older(method: str, url: str, options: dict[str, Any]) -> Any:
        if "registration" in options["params"]:
            return problem(Invalid("query parameter 'registration' is not known here", field="registration"))
        return response(200, instance(index=there), X_Rollcall_Index=10)

    sdk, session = client(older)

    if removed:
        sdk.deregister("cart", "cart-1", registration=7)
    else:
        with pytest.raises(Superseded):
            sdk.deregister("cart", "cart-1", registration=7)
    assert [method for method, _, _ in session.asked] == ["DELETE", "GET", *(["DELETE"] if removed else [])]


# Whose answer it is


def other_echo(method: str, url: str, options: dict[str, Any]) -> Any:
    return response(200, instance(), X_Request_Id="sdk-0123456789abcdef")


def test_an_answer_to_another_request_is_thrown_away_and_the_next_node_asked():
    """On a connection that two processes read from, each reads what the other asked for."""

    def answers(method: str, url: str, options: dict[str, Any]) -> Any:
        return other_echo(method, url, options) if "//a" in url else response(200, instance(index=5))

    sdk, session = client(answers)

    assert sdk.instance("cart", "cart-1").reg_index == 5
    assert sdk.register("cart", id="cart-1").reg_index == 5
    assert hosts(session) == ["a", "b", "b"]
    assert len({options["headers"]["X-Request-Id"] for _, _, options in session.asked}) == 3


def test_a_write_that_is_answered_with_another_requests_answer_has_perhaps_been_done():
    sdk, session = client(other_echo, timeout_s=0.3)

    with pytest.raises(Unknown, match="another request's"):
        sdk.deregister("cart", "cart-1")
    keys = {options["headers"]["Idempotency-Key"] for _, _, options in session.asked}
    assert len(session.asked) > 1 and len(keys) == 1


def test_an_answer_about_something_else_is_thrown_away():
    """Where a proxy keeps the ids of requests to itself."""
    listing = {"env": "default", "index": 3, "instances": []}
    asked = 0

    def answers(method: str, url: str, options: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        service = "users" if asked % 2 else "cart"
        body = instance(service=service) if url.endswith("cart-1") else {"service": service, **listing}
        return response(200, body)

    sdk, session = client(answers)

    assert sdk.instances("cart").service == "cart"
    assert sdk.instance("cart", "cart-1").service == "cart"
    assert sdk.register("cart", id="cart-1").service == "cart"
    assert len(session.asked) == 6


@pytest.mark.parametrize("echo", [{}, {"X_Request_Id": "8f1c-of-a-proxy"}])
def test_a_proxy_may_keep_the_id_to_itself_or_put_its_own_in_its_place(echo: dict[str, str]):
    sdk, session = client(lambda *_: response(200, instance(), **echo))

    assert sdk.instance("cart", "cart-1").id == "cart-1"
    assert len(session.asked) == 1
