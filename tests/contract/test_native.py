"""The native API, call by call, against the whole app over one log in memory."""

import threading
from urllib.parse import quote

import pytest
from harness.api import Api, Clock, FakeService, fill, problem
from harness.facts import set_facts
from harness.waiting import wait_for
from rollcall.node.api import ApiSettings
from rollcall.node.api.context import MIN_INDEX_WAIT_S_MAX, Freshness
from rollcall.node.api.query import Query
from rollcall.replication.errors import Unknown

ORDERS = "/api/v1/services/orders/instances"


class TestRegistering:
    def test_a_new_instance_is_created_at_its_location(self, api: Api) -> None:
        answer = api.put(f"{ORDERS}/o1", {"address": "10.0.0.1", "port": 80})

        assert answer.status_code == 201
        assert answer.headers["Location"] == f"{ORDERS}/o1"
        assert answer.headers["X-Rollcall-Index"] == str(answer.json["modify_index"])
        assert api.get(answer.headers["Location"]).json["address"] == "10.0.0.1"

    def test_the_location_names_an_env_that_is_not_the_default(self, api: Api) -> None:
        answer = api.put(f"{ORDERS}/o1?env=prod", {"address": "10.0.0.1"})

        assert answer.headers["Location"] == f"{ORDERS}/o1?env=prod"
        assert api.get(answer.headers["Location"]).json["env"] == "prod"
        problem(api.get(f"{ORDERS}/o1"), 404, "NotFound")

    def test_registering_again_replaces_it_and_keeps_where_it_began(self, api: Api) -> None:
        first = api.register(address="10.0.0.1").json
        again = api.put(f"{ORDERS}/o1", {"address": "10.0.0.2"})

        assert again.status_code == 200
        assert "Location" not in again.headers
        assert again.json["address"] == "10.0.0.2"
        assert again.json["create_index"] == first["create_index"] < again.json["reg_index"]

    def test_s1_2_s4_1_the_record_has_every_field(self, api: Api) -> None:
        record = api.register(tags=["a"], meta={"k": "v"}, version="2", region="eu", checks=[]).json

        assert (record["version"], record["region"], record["tags"], record["meta"]) == ("2", "eu", ["a"], {"k": "v"})
        assert {"address", "port", "status", "check_states", "latest_timestamp"} <= record.keys()
        assert record["checks"] == []
        assert record["health"] == "passing"
        assert record["status_override"] is None
        assert {"env", "service", "id", "hostname", "addrs", "weight", "zone", "up_timestamp"} <= record.keys()

    def test_s4_7_the_lease_is_the_default_one_unless_said_otherwise(self, api: Api) -> None:
        assert api.register(id="silent").json["ttl_s"] == 90
        assert api.register(id="own", ttl_s=5).json["ttl_s"] == 5
        assert api.register(id="none", ttl_s=None).json["ttl_s"] is None

    def test_s1_3_posting_makes_the_default_id(self, api: Api) -> None:
        answer = api.post(ORDERS, {"address": "10.0.0.1", "port": 80})

        assert answer.status_code == 201
        assert answer.json["id"] == "orders-10.0.0.1:80"

    def test_posting_takes_an_id_that_the_body_names(self, api: Api) -> None:
        assert api.post(ORDERS, {"id": "o9"}).json["id"] == "o9"

    @pytest.mark.parametrize(("body", "field"), [({"port": 80}, "address"), ({"address": "h"}, "port")])
    def test_posting_without_what_makes_the_default_id_names_the_field(self, api: Api, body: dict, field: str) -> None:
        problem(api.post(ORDERS, body), 400, "Invalid", field=field)

    def test_s1_3_if_absent_refuses_what_is_registered(self, api: Api) -> None:
        api.register()

        told = problem(api.put(f"{ORDERS}/o1?if_absent=true", {}), 409, "AlreadyRegistered")
        assert told["detail"] == "service o1 already registered"
        assert api.put(f"{ORDERS}/o2?if_absent=true", {}).status_code == 201
        assert api.put(f"{ORDERS}/o1?if_absent=false", {}).status_code == 200

    def test_a_body_that_repeats_the_path_is_fine_and_one_that_differs_is_not(self, api: Api) -> None:
        same = {"service": "orders", "id": "o1", "env": "prod"}

        assert api.put(f"{ORDERS}/o1?env=prod", same).status_code == 201
        for field in same:
            answer = api.put(f"{ORDERS}/o1?env=prod", {**same, field: "other"})
            problem(answer, 400, "Invalid", field=field)

    def test_an_env_in_the_body_alone_counts(self, api: Api) -> None:
        assert api.put(f"{ORDERS}/o1", {"env": "prod"}).json["env"] == "prod"

    def test_an_instance_with_checks_is_pending_and_is_not_handed_out(self, api: Api) -> None:
        checks = [
            {"http": "http://10.0.0.1/health", "headers": {"Authorization": "Bearer secret"}},
            {"name": "t", "ttl_s": 9},
        ]
        shown = api.put(f"{ORDERS}/o1", {"checks": checks}).json

        assert shown["health"] == "pending"
        assert [check["name"] for check in shown["checks"]] == ["check-1", "t"]
        assert shown["checks"][0]["headers"] == {"Authorization": "***"}
        assert [state["state"] for state in shown["check_states"]] == ["pending", "pending"]
        assert "secret" not in api.get(f"{ORDERS}?health=any").text
        assert api.get(ORDERS).json["instances"] == []

    def test_secrets_of_checks_are_shown_on_the_nodes_own_machine_to_who_asks_for_them(self, api: Api) -> None:
        check = {"name": "c", "http": "http://ada:pass@10.0.0.1/", "headers": {"X-Api-Key": "secret"}}
        shown = api.put(f"{ORDERS}/o1", {"checks": [check]}).json["checks"][0]
        assert (shown["http"], shown["headers"]) == ("http://***@10.0.0.1/", {"X-Api-Key": "***"})
        events = api.get("/api/v1/watch?index=0&wait=0s").text
        everything = events + api.get(f"{ORDERS}?health=any").text + api.get(f"{ORDERS}/o1").text
        assert "secret" not in everything
        assert "pass@" not in everything

        path = f"{ORDERS}?health=any&secrets=true"
        here = {"REMOTE_ADDR": "127.0.0.1"}
        assert api.get(path, environ_base=here).json["instances"][0]["checks"] == [check]
        for headers in ({"X-Forwarded-For": "10.0.0.9"}, {"Origin": "http://evil"}, {"Host": "some-proxy"}):
            problem(api.get(path, headers=headers, environ_base=here), 400, "Invalid", field="secrets")
        problem(api.get(path, environ_base={"REMOTE_ADDR": "10.0.0.9"}), 400, "Invalid", field="secrets")
        assert "secret" not in api.get(f"{ORDERS}?health=any").text, "and nothing of it is kept for others"

    def test_a_quick_check_needs_no_timeout(self, api: Api) -> None:
        checks = [{"tcp": "x:1", "interval_s": 1}, {"tcp": "x:2", "interval_s": 60}, {"tcp": "x:3", "interval_s": 1.5}]
        shown = api.put(f"{ORDERS}/o1", {"checks": checks}).json["checks"]

        # What has its default is left out.
        assert [check.get("timeout_s", 5.0) for check in shown] == [1.0, 5.0, 1.5]
        slow = [{"tcp": "x:1", "interval_s": 1, "timeout_s": 2}]
        problem(api.put(f"{ORDERS}/o1", {"checks": slow}), 400, "Invalid", field="checks[0].timeout_s")

    def test_a_check_that_nobody_could_make_is_refused(self, api: Api) -> None:
        told = problem(api.put(f"{ORDERS}/o1", {"checks": [{"type": "http"}]}), 400, "Invalid", field="checks[0].type")
        assert "not known here" in told["detail"]

    def test_an_older_dirty_timestamp_replaces_nothing(self, api: Api) -> None:
        api.register(dirty_timestamp=2_000, version="new")

        told = api.put(f"{ORDERS}/o1", {"dirty_timestamp": 1_000, "version": "old"})
        problem(told, 409, "StaleDirtyTimestamp", field="dirty_timestamp")
        assert api.get(f"{ORDERS}/o1").json["version"] == "new"

    def test_an_idempotency_key_makes_a_repeat_harmless(self, api: Api) -> None:
        first = api.put(f"{ORDERS}/o1", {"version": "1"}, headers={"Idempotency-Key": "k1"})
        again = api.put(f"{ORDERS}/o1", {"version": "1"}, headers={"Idempotency-Key": "k1"})

        assert again.status_code == first.status_code == 201
        assert again.headers["X-Rollcall-Index"] == first.headers["X-Rollcall-Index"]
        assert again.json == first.json

    def test_a_repeated_removal_says_whose_it_was(self, api: Api) -> None:
        api.register()
        api.delete(f"{ORDERS}/o1", headers={"Idempotency-Key": "k1"})
        api.register()

        again = api.delete(f"{ORDERS}/o1", headers={"Idempotency-Key": "k1"})
        assert again.json == {"env": "default", "service": "orders", "id": "o1"}
        assert api.get(f"{ORDERS}/o1").status_code == 200

    @pytest.mark.parametrize("key", ["", "x" * 129, "tab\tkey"])
    def test_an_idempotency_key_must_be_printable_and_short(self, api: Api, key: str) -> None:
        answer = api.put(f"{ORDERS}/o1", {}, headers={"Idempotency-Key": key})

        problem(answer, 400, "Invalid", field="Idempotency-Key")


class TestRemoving:
    def test_deregistering_gives_the_record_as_it_was(self, api: Api) -> None:
        api.register(version="7")

        answer = api.delete(f"{ORDERS}/o1")
        assert answer.status_code == 200
        assert answer.json["version"] == "7"
        problem(api.get(f"{ORDERS}/o1"), 404, "NotFound")

    def test_deregistering_what_is_not_there_is_not_found(self, api: Api) -> None:
        told = problem(api.delete(f"{ORDERS}/o1"), 404, "NotFound")

        assert "'o1'" in told["detail"] and "'orders'" in told["detail"]


class TestRemovingOneRegistration:
    def test_a_removal_may_name_the_registration_by_the_index_that_its_write_was_answered_with(self, api: Api) -> None:
        registered = api.register()
        index = int(registered.headers["X-Rollcall-Index"])
        assert index == registered.json["reg_index"]

        assert api.delete(f"{ORDERS}/o1?registration={index}").status_code == 200
        problem(api.get(f"{ORDERS}/o1"), 404, "NotFound")

    def test_one_that_means_an_older_registration_changes_nothing(self, api: Api) -> None:
        old = api.register(version="1").json["reg_index"]
        new = api.register(version="2").json["reg_index"]

        told = problem(api.delete(f"{ORDERS}/o1?registration={old}"), 409, "Superseded", reg_index=new)

        assert str(old) in told["detail"] and str(new) in told["detail"]
        assert api.get(f"{ORDERS}/o1").json["version"] == "2"

    def test_so_may_a_removal_in_a_batch_and_then_nothing_of_it_is_done(self, api: Api) -> None:
        old = api.register().json["reg_index"]
        new = api.register().json["reg_index"]
        removal = {"op": "deregister", "service": "orders", "id": "o1", "registration": old}
        others = {"op": "register", "service": "orders", "id": "o2"}

        told = problem(api.post("/api/v1/batch", {"operations": [others, removal]}), 409, "Superseded")
        assert told["operation"] == 1
        assert api.ids(f"{ORDERS}?health=any") == ["o1"]

        done = api.post("/api/v1/batch", {"operations": [others, {**removal, "registration": new}]})
        assert [result["kind"] for result in done.json["results"]] == ["created", "removed"]

    def test_with_a_key_it_may_be_said_twice_also_when_it_was_registered_in_between(self, api: Api) -> None:
        index = api.register().json["reg_index"]
        path, headers = f"{ORDERS}/o1?registration={index}", {"Idempotency-Key": "k1"}
        first = api.delete(path, headers=headers)
        api.register()

        again = api.delete(path, headers=headers)
        assert again.status_code == 200
        assert again.headers["X-Rollcall-Index"] == first.headers["X-Rollcall-Index"]
        assert api.get(f"{ORDERS}/o1").status_code == 200

    @pytest.mark.parametrize("index", ["0", "-1", "x", str(2**63)])
    def test_a_registration_is_an_index(self, api: Api, index: str) -> None:
        api.register()

        problem(api.delete(f"{ORDERS}/o1?registration={index}"), 400, "Invalid", field="registration")
        removal = {"op": "deregister", "service": "orders", "id": "o1", "registration": index}
        problem(
            api.post("/api/v1/batch", {"operations": [removal]}), 400, "Invalid", field="operations[0].registration"
        )


class TestStatus:
    def test_an_operators_word_wins_until_it_is_taken_back(self, api: Api) -> None:
        api.register()

        set_ = api.put(f"{ORDERS}/o1/status", {"status": "out_of_service", "reason": "disk"})
        assert (set_.json["status_override"], set_.json["status_reason"]) == ("out_of_service", "disk")
        assert api.ids(ORDERS) == []
        assert api.delete(f"{ORDERS}/o1/status").json["status_override"] is None
        assert api.ids(ORDERS) == ["o1"]

    def test_a_status_must_be_one_of_the_known(self, api: Api) -> None:
        api.register()

        problem(api.put(f"{ORDERS}/o1/status", {"status": "asleep"}), 400, "Invalid", field="status")
        problem(api.put(f"{ORDERS}/o1/status", {"reason": "disk"}), 400, "Invalid", field="status")
        problem(api.put(f"{ORDERS}/o1/status", {"status": "up", "why": "x"}), 400, "Invalid", field="why")

    def test_a_status_of_nobody_is_not_found(self, api: Api) -> None:
        problem(api.put(f"{ORDERS}/o1/status", {"status": "up"}), 404, "NotFound")
        problem(api.delete(f"{ORDERS}/o1/status"), 404, "NotFound")


class TestHeartbeats:
    def test_s4_7_a_heartbeat_tells_the_lease_and_when_to_come_back(self, api: Api) -> None:
        api.register(ttl_s=30)
        assert api.put(f"{ORDERS}/o1/heartbeat").json == {"ttl_s": 30.0, "next_heartbeat_ms": 10_000}

        api.register()
        assert api.put(f"{ORDERS}/o1/heartbeat").json == {"ttl_s": 90.0, "next_heartbeat_ms": 30_000}

    def test_without_a_lease_there_is_nothing_to_come_back_for(self, api: Api) -> None:
        api.register(ttl_s=None)

        answer = api.put(f"{ORDERS}/o1/heartbeat")
        assert answer.status_code == 200
        assert answer.json == {"ttl_s": None, "next_heartbeat_ms": None}

    def test_a_heartbeat_of_nobody_is_not_found(self, api: Api) -> None:
        problem(api.put(f"{ORDERS}/o1/heartbeat"), 404, "NotFound")

    def test_many_heartbeats_tell_who_is_unknown(self, api: Api) -> None:
        api.register(ttl_s=30)
        api.register(id="o2", query="?env=prod", ttl_s=6)
        sent = [
            {"service": "orders", "id": "o1"},
            {"service": "orders", "id": "o2", "env": "prod"},
            {"service": "orders", "id": "o2"},
        ]

        assert api.post("/api/v1/heartbeats", {"instances": sent}).json == {
            "renewed": 2,
            "unknown": [{"service": "orders", "id": "o2", "env": "default"}],
            "next_heartbeat_ms": 2_000,
        }

    def test_no_heartbeats_are_no_work(self, api: Api, service: FakeService) -> None:
        answer = api.post("/api/v1/heartbeats", {"instances": []})

        assert answer.json == {"renewed": 0, "unknown": [], "next_heartbeat_ms": None}
        assert service.renewals == []

    def test_a_heartbeat_among_many_that_is_wrong_is_named_by_its_place(self, api: Api) -> None:
        sent = [{"service": "orders", "id": "o1"}, {"service": "orders"}]

        problem(api.post("/api/v1/heartbeats", {"instances": sent}), 400, "Invalid", field="instances[1].id")
        problem(api.post("/api/v1/heartbeats", {"instances": ["o1"]}), 400, "Invalid", field="instances[0]")
        problem(api.post("/api/v1/heartbeats", {"instances": "o1"}), 400, "Invalid", field="instances")
        problem(api.post("/api/v1/heartbeats", {}), 400, "Invalid", field="instances")


class TestBatch:
    def test_a_batch_lands_at_one_index(self, api: Api) -> None:
        api.register(id="old")
        operations = [
            {"op": "register", "service": "orders", "address": "10.0.0.1", "port": 80, "ttl_s": 5},
            {"op": "register", "service": "carts", "id": "c1", "env": "prod", "checks": []},
            {"op": "status", "service": "orders", "id": "old", "status": "down", "reason": "old"},
            {"op": "deregister", "service": "orders", "id": "old"},
        ]

        answer = api.post("/api/v1/batch", {"operations": operations})
        assert answer.status_code == 200
        assert [result["kind"] for result in answer.json["results"]] == ["created", "created", "status", "removed"]
        assert answer.headers["X-Rollcall-Index"] == str(answer.json["index"])
        assert api.ids(ORDERS) == ["orders-10.0.0.1:80"]
        assert api.ids("/api/v1/services/carts/instances?env=prod") == ["c1"]

    def test_one_operation_that_cannot_be_done_stops_all(self, api: Api) -> None:
        operations = [
            {"op": "register", "service": "orders", "id": "o1"},
            {"op": "deregister", "service": "orders", "id": "nobody"},
        ]

        told = problem(api.post("/api/v1/batch", {"operations": operations}), 404, "NotFound", operation=1)
        assert "operations[1]" in told["detail"]
        assert api.ids(f"{ORDERS}?health=any") == []

    @pytest.mark.parametrize(
        ("operation", "field"),
        [
            ({"op": "register", "service": "orders", "id": "o1", "port": 70_000}, "operations[0].port"),
            ({"op": "register", "service": "orders", "id": "o1", "colour": "red"}, "operations[0].colour"),
            ({"op": "register", "service": "orders", "id": "o1", "if_absent": "yes"}, "operations[0].if_absent"),
            ({"op": "register", "id": "o1"}, "operations[0].service"),
            ({"op": "register", "service": "orders", "port": 1}, "operations[0].address"),
            ({"op": "deregister", "service": "orders"}, "operations[0].id"),
            ({"op": "status", "service": "orders", "id": "o1", "status": "asleep"}, "operations[0].status"),
            ({"op": "evict", "service": "orders", "id": "o1"}, "operations[0].op"),
            ("register", "operations[0]"),
        ],
    )
    def test_a_wrong_operation_is_named_by_its_place(self, api: Api, operation: object, field: str) -> None:
        problem(api.post("/api/v1/batch", {"operations": [operation]}), 400, "Invalid", field=field)

    def test_a_batch_must_hold_operations_and_nothing_else(self, api: Api) -> None:
        problem(api.post("/api/v1/batch", {}), 400, "Invalid", field="operations")
        problem(api.post("/api/v1/batch", {"operations": []}), 400, "Invalid", field="operations")
        problem(api.post("/api/v1/batch", {"operations": [], "atomic": True}), 400, "Invalid", field="atomic")


class TestLists:
    def test_a_list_names_its_service_env_and_index(self, api: Api) -> None:
        api.register()
        api.register(id="o2")

        answer = api.get(ORDERS)
        assert (answer.json["service"], answer.json["env"], answer.json["index"]) == ("orders", "default", 2)
        assert answer.headers["X-Rollcall-Index"] == "2"
        assert answer.headers["X-Rollcall-Complete"] == "true"

    def test_the_index_moves_on_while_the_list_stays(self, api: Api) -> None:
        api.register()
        before = api.get(ORDERS).json
        api.register(service="carts")

        after = api.get(ORDERS).json
        assert after["index"] == before["index"] + 1
        assert after["instances"] == before["instances"]

    def test_an_unknown_service_is_an_empty_list(self, api: Api) -> None:
        answer = api.get("/api/v1/services/nobody/instances?env=prod")

        assert answer.status_code == 200
        assert answer.json == {"service": "nobody", "env": "prod", "index": 0, "instances": []}

    def test_a_node_that_has_not_caught_up_does_not_call_its_list_complete(
        self, api: Api, service: FakeService
    ) -> None:
        service.is_complete = False

        assert "X-Rollcall-Complete" not in api.get(ORDERS).headers

    def test_without_more_said_only_those_that_should_get_traffic_are_listed(self, api: Api) -> None:
        for status in ("up", "down", "starting", "draining", "out_of_service"):
            api.register(id=status, status=status)

        assert api.ids(ORDERS) == ["up"]
        assert len(api.ids(f"{ORDERS}?health=any")) == 5
        assert api.ids(f"{ORDERS}?status=draining") == ["draining"]
        assert len(api.ids(f"{ORDERS}?health=passing")) == 5
        assert api.ids(f"{ORDERS}?health=critical") == []

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("tag=a", ["o1", "o2"]),
            ("tag=a&tag=b", ["o2"]),
            ("version=2", ["o2"]),
            ("zone=z1", ["o1", "o3"]),
            ("region=r2", ["o2"]),
            ("meta.team=blue", ["o1"]),
            ("meta.team=blue&meta.tier=1", []),
            ("near=z2", ["o2", "o1", "o3"]),
            ("near=z1", ["o1", "o3", "o2"]),
            ("near=z2&limit=2", ["o2", "o1"]),
            ("limit=1", ["o1"]),
            ("zone=z9", []),
            ("env=prod", []),
        ],
    )
    def test_filters(self, api: Api, query: str, expected: list[str]) -> None:
        api.register(id="o1", tags=["a"], zone="z1", region="r1", meta={"team": "blue"})
        api.register(id="o2", tags=["a", "b"], version="2", zone="z2", region="r2")
        api.register(id="o3", zone="z1", region="r1")

        assert api.ids(f"{ORDERS}?{query}") == expected
        assert api.ids(f"{ORDERS}?{query}") == expected  # from the cache as well

    def test_a_change_is_seen_in_filtered_lists_too(self, api: Api) -> None:
        api.register(tags=["a"])
        assert api.ids(f"{ORDERS}?tag=a") == ["o1"]
        api.register(tags=["b"])

        assert api.ids(f"{ORDERS}?tag=a") == []

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=ten", "limit"),
            ("limit=%D9%A1", "limit"),
            ("limit=" + "9" * 5000, "limit"),
            ("health=well", "health"),
            ("status=asleep", "status"),
            ("consistency=strong", "consistency"),
            ("min_index=x", "min_index"),
            ("history=", "history"),
            ("history=%2A", "history"),
            (f"history={'A' * 16}", "history"),
            (f"history={'a' * 17}", "history"),
            ("min_index=1&wait=soon", "wait"),
            ("wait=nan", "wait"),
            ("wait=-1", "wait"),
            ("wait=601", "wait"),
            ("colour=red", "colour"),
            ("zone=a&zone=b", "zone"),
            ("env=a%20b", "env"),
            ("env=*", "env"),
            ("zone=%ff", "query"),
            ("&".join(f"x{n}" for n in range(2000)), "query"),
        ],
    )
    def test_a_query_that_is_wrong_or_unknown_is_named(self, api: Api, query: str, field: str) -> None:
        problem(api.get(f"{ORDERS}?{query}"), 400, "Invalid", field=field)

    def test_a_list_of_everything_shows_the_leases(self, api: Api) -> None:
        api.register(id="leased", ttl_s=30)
        api.register(id="unleased", ttl_s=None)

        leased, unleased = api.get(f"{ORDERS}?health=any").json["instances"]
        assert leased["lease"] == {"ttl_s": 30.0, "renewed_ms_ago": 1500, "overdue": False}
        assert unleased["lease"] is None
        assert api.get(f"{ORDERS}/leased").json["lease"] == leased["lease"]
        assert "lease" not in api.get(ORDERS).json["instances"][0]

    def test_services_are_listed_in_sums(self, api: Api) -> None:
        api.register(tags=["b", "a"])
        api.register(id="o2", tags=["a"], status="down")
        api.register(service="carts", id="c1", query="?env=prod")
        health = {"passing": 2, "warning": 0, "pending": 0, "critical": 0}
        orders = {
            "name": "orders",
            "env": "default",
            "instances": 2,
            "serving": 1,
            "health": health,
            "tags": ["a", "b"],
        }

        answer = api.get("/api/v1/services")
        assert answer.json == {"env": "default", "index": 3, "services": [orders]}
        assert answer.headers["X-Rollcall-Complete"] == "true"
        assert [s["name"] for s in api.get("/api/v1/services?env=*").json["services"]] == ["orders", "carts"]
        assert [s["name"] for s in api.get("/api/v1/services?env=prod").json["services"]] == ["carts"]
        assert api.get("/api/v1/services?env=none").json["services"] == []

    def test_the_sums_follow_changes(self, api: Api) -> None:
        api.register()
        assert api.get("/api/v1/services").json["services"][0]["instances"] == 1
        api.register(id="o2")
        assert api.get("/api/v1/services").json["services"][0]["instances"] == 2
        api.delete(f"{ORDERS}/o1")
        api.delete(f"{ORDERS}/o2")

        assert api.get("/api/v1/services").json["services"] == []


class TestFreshness:
    def test_nobody_waits_for_an_index_longer_than_ten_seconds(self) -> None:
        asked = Freshness.from_query(Query("min_index=1&wait=600s"), ApiSettings())

        assert asked.wait_s == MIN_INDEX_WAIT_S_MAX == 10

    def test_min_index_waits_for_the_write(self, api: Api, service: FakeService) -> None:
        service.leader_ahead = 1
        answers: list[list[str]] = []
        reader = threading.Thread(target=lambda: answers.append(api.ids(f"{ORDERS}?min_index=1&wait=5s")))
        reader.start()
        api.register()
        reader.join(5)

        assert answers == [["o1"]]

    def test_an_index_that_does_not_come_is_an_error_that_says_where_the_node_is(
        self, api: Api, service: FakeService
    ) -> None:
        api.register()
        service.leader_ahead = 8

        told = problem(api.get(f"{ORDERS}?min_index=9&wait=10ms"), 503, "NotCaughtUp", applied_index=1)
        assert told["outcome"] == "not_done"
        problem(api.get(f"{ORDERS}?min_index=9"), 503, "NotCaughtUp")
        problem(api.get(f"{ORDERS}/o1?min_index=9&wait=0"), 503, "NotCaughtUp")
        problem(api.get("/api/v1/services?min_index=9&wait=0"), 503, "NotCaughtUp")

    @pytest.mark.parametrize("path", [ORDERS, f"{ORDERS}/o1", "/api/v1/services", "/api/v1/policies"])
    def test_an_index_that_the_registry_never_had_is_gone(self, api: Api, service: FakeService, path: str) -> None:
        api.register()

        told = problem(api.get(f"{path}?min_index=900&wait=60"), 410, "Gone", history="0" * 16, applied_index=1)
        assert "read everything again" in told["detail"]
        service.has_leader = False
        problem(api.get(f"{path}?min_index=900&wait=10ms"), 503, "NotCaughtUp", applied_index=1)
        assert service.budget.in_use == 0

    @pytest.mark.parametrize("path", [ORDERS, f"{ORDERS}/o1", "/api/v1/services", "/api/v1/policies"])
    def test_an_index_of_another_history_is_gone(self, api: Api, service: FakeService, path: str) -> None:
        api.register()
        ours = api.get(path).headers["X-Rollcall-History"]

        assert api.get(f"{path}?min_index=1&history={ours}").status_code == 200
        assert api.get(f"{path}?history={ours}").status_code == 200
        problem(api.get(f"{path}?min_index=1&history={'a' * 16}"), 410, "Gone", history=ours)
        problem(api.get(f"{path}?history={'a' * 16}"), 410, "Gone", history=ours)
        problem(api.get(f"{path}?consistency=linearizable&history={'a' * 16}"), 410, "Gone", history=ours)

    def test_every_answer_names_the_history_that_has_a_name(self, api: Api, service: FakeService) -> None:
        api.register()
        answers = [
            lambda: api.get(ORDERS),
            lambda: api.get(f"{ORDERS}?tag=a"),
            lambda: api.get("/nowhere"),
            lambda: api.get("/services/orders/instances"),
            lambda: api.get("/v1/catalog/service/orders"),
            lambda: api.put(f"{ORDERS}/o1", {}),
            lambda: api.put(f"{ORDERS}/o1/heartbeat"),
        ]
        assert {answer().headers["X-Rollcall-History"] for answer in answers} == {"0" * 16}
        assert api.get("/api/v1/cluster").json["history"] == "0" * 16

        set_facts(service.registry, history="")
        assert all("X-Rollcall-History" not in answer().headers for answer in answers)
        assert api.get("/api/v1/cluster").json["history"] == ""
        assert api.get(f"{ORDERS}?history={'a' * 16}").status_code == 200, "what has no name is compared with none"

    def test_a_linearizable_read_needs_a_leader(self, api: Api, service: FakeService) -> None:
        api.register()
        assert api.ids(f"{ORDERS}?consistency=linearizable") == ["o1"]
        service.has_leader = False

        told = problem(api.get(f"{ORDERS}?consistency=linearizable"), 503, "NoLeader")
        assert "consistency=local" in told["detail"]
        assert api.ids(f"{ORDERS}?consistency=local") == ["o1"]

    def test_every_answer_says_who_gave_it_and_how_far_that_one_is(
        self, api: Api, service: FakeService, clock: Clock
    ) -> None:
        api.register()
        for path in (ORDERS, f"{ORDERS}/o1", "/nowhere", "/healthz", "/services/orders/instances", "/metrics"):
            headers = api.get(path).headers
            assert headers["X-Rollcall-Index"] == "1"
            assert headers["X-Rollcall-Node"] == "n1"
            assert headers["X-Rollcall-Cluster"] == "c0ffee"
            assert headers["X-Rollcall-Leader-Contact-Ms"] == "12"

        clock.now += 0.01
        assert api.get(ORDERS).headers["X-Rollcall-Leader-Contact-Ms"] == "22"
        service.has_leader = False
        clock.now += 1
        assert "X-Rollcall-Leader-Contact-Ms" not in api.get(ORDERS).headers

    def test_a_sane_request_id_comes_back_and_any_other_is_replaced(self, api: Api) -> None:
        for path in (ORDERS, "/nowhere"):
            assert api.get(path, headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
            for bad in ("", "a b", "x" * 129, "é"):
                given = api.get(path, headers={"X-Request-Id": bad}).headers["X-Request-Id"]
                assert given not in ("", bad)
        assert api.get(ORDERS).headers["X-Request-Id"] != api.get(ORDERS).headers["X-Request-Id"]


class TestBudget:
    """What waits is refused at once when nothing is free; plain reads do not notice."""

    def test_past_the_budget_writes_and_renewals_are_refused_and_plain_reads_are_not(
        self, api: Api, service: FakeService
    ) -> None:
        api.register()
        fill(service.budget)

        for answer in (
            api.put(f"{ORDERS}/o1", {}),
            api.put(f"{ORDERS}/o1/heartbeat"),
            api.get(f"{ORDERS}?consistency=linearizable"),
            api.get(f"{ORDERS}?min_index=99"),
            api.get("/api/v1/watch"),
            api.get("/api/v1/watch", headers={"Accept": "text/event-stream"}),
            api.get("/services/orders/instances"),
        ):
            problem(answer, 503, "Overloaded", outcome="not_done")
            assert answer.headers["Retry-After"] == "1"
        assert api.ids(ORDERS) == ["o1"]
        assert api.ids(f"{ORDERS}?tag=a") == []
        assert api.ids(f"{ORDERS}?min_index=1") == ["o1"]  # is there: no need to wait

    def test_every_place_comes_back(self, api: Api, service: FakeService) -> None:
        api.register()
        api.put(f"{ORDERS}/o1/heartbeat")
        api.get(f"{ORDERS}?min_index=9&wait=0")
        api.get(f"{ORDERS}?consistency=linearizable")
        api.get("/api/v1/watch?wait=0")
        service.submit_error = Unknown("the leader went away")
        api.put(f"{ORDERS}/o1", {})
        service.submit_error = ZeroDivisionError("a bug")
        api.put(f"{ORDERS}/o1", {})

        assert service.budget.in_use == 0

    def test_a_write_under_way_holds_a_place(self, api: Api, service: FakeService) -> None:
        service.submit_gate = threading.Event()
        writer = threading.Thread(target=api.register)
        writer.start()
        wait_for(lambda: service.budget.in_use == 1, "the write to hold a place")
        service.submit_gate.set()
        writer.join(5)

        assert service.budget.in_use == 0


class TestPaths:
    @pytest.mark.parametrize(
        "id",
        [
            "a/b",
            "/",
            "//",
            "a b",
            "50%",
            "%2F",
            "a%2Fb",
            "ä/ö",
            "名前",
            "a?b#c",
            "...",
            "a;b=c",
            "~",
            "+",
            "\U0001f600",
        ],
    )
    def test_an_id_may_hold_anything_printable(self, api: Api, id: str) -> None:
        path = f"{ORDERS}/{quote(id, safe='')}"

        created = api.put(path, {"id": id})
        assert created.status_code == 201, created.text
        assert created.json["id"] == id
        assert api.get(created.headers["Location"]).json["id"] == id
        assert api.put(f"{path}/heartbeat").status_code == 200
        assert api.put(f"{path}/status", {"status": "down"}).json["id"] == id
        assert api.delete(f"{path}/status").status_code == 200
        assert api.delete(path).status_code == 200

    def test_without_the_raw_request_line_all_but_slashes_work(self, api: Api) -> None:
        environ = {"REQUEST_URI": None, "RAW_URI": None}

        created = api.put(f"{ORDERS}/50%25%20%C3%A4", {}, environ_overrides=environ)
        assert created.json["id"] == "50% ä"

    def test_an_absolute_request_line_is_understood(self, api: Api) -> None:
        uri = f"http://node:8500{ORDERS}/a%2Fb?env=prod"
        created = api.put(f"{ORDERS}/a%2Fb?env=prod", {}, environ_overrides={"REQUEST_URI": uri})

        assert created.json["id"] == "a/b"

    def test_bad_utf8_in_a_path_is_refused(self, api: Api) -> None:
        problem(api.put(f"{ORDERS}/%ff", {}), 400, "Invalid", field="path")
        problem(api.get("/api/v1/services/%C3/instances"), 400, "Invalid", field="path")

    def test_names_in_paths_are_checked(self, api: Api) -> None:
        problem(api.get("/api/v1/services/a%20b/instances"), 400, "Invalid", field="service")
        problem(api.get(f"/api/v1/services/{'x' * 129}/instances"), 400, "Invalid", field="service")
        problem(api.put("/api/v1/services/a%2Fb/instances/i", {}), 400, "Invalid", field="service")
        problem(api.put(f"{ORDERS}/{'x' * 513}", {}), 400, "Invalid", field="id")
        problem(api.get(f"{ORDERS}/{'x' * 513}"), 400, "Invalid", field="id", limit=512)
        problem(api.put(f"{ORDERS}/a%00b", {}), 400, "Invalid", field="id")

    @pytest.mark.parametrize(
        "path", ["/api/v1", "/api/v1/services/", f"{ORDERS}/", "/api/v1//services", f"{ORDERS}/a/b"]
    )
    def test_what_is_no_path_is_not_redirected(self, api: Api, path: str) -> None:
        problem(api.get(path), 404)


class TestCluster:
    def test_the_cluster_and_its_protection(self, api: Api) -> None:
        told = api.get("/api/v1/cluster").json

        assert (told["node"], told["leader"], told["term"], told["role"]) == ("n1", "n1", 3, "leader")
        assert (told["applied_index"], told["commit_index"]) == (0, 0)
        assert told["members"][1] == {
            "id": "n2",
            "http": "http://127.0.0.1:8501",
            "raft": "127.0.0.1:9501",
            "role": "follower",
            "reachable": False,
        }
        assert told["protection"]["active"] is False
        assert told["protection"]["reason"]
        assert (told["clock_error"], told["clock_ahead_s"]) == ("", None)

    def test_a_wall_clock_that_is_off_is_shown(self, api: Api, service: FakeService) -> None:
        service.clock_error, service.clock_ahead_s = "this node's wall clock is 20 s ahead of the others'", 20.5

        told = api.get("/api/v1/cluster").json

        assert (told["clock_error"], told["clock_ahead_s"]) == (service.clock_error, 20.5)

    def test_the_digest_is_of_an_index(self, api: Api, service: FakeService) -> None:
        before = api.get("/api/v1/cluster/digest").json
        api.register()

        after = api.get("/api/v1/cluster/digest").json
        assert (after["applied_index"], after["sha256"]) == service.registry.digest()
        assert after["sha256"] != before["sha256"]


class TestTransfer:
    def test_leadership_is_handed_over_on_request(self, api: Api) -> None:
        assert api.post("/api/v1/cluster/transfer?to=n2").json == {"leader": "n2"}

    def test_it_is_refused_in_the_words_of_every_other_call(self, api: Api, service: FakeService) -> None:
        problem(api.post("/api/v1/cluster/transfer?from=n2"), 400, "Invalid")
        problem(api.get("/api/v1/cluster/transfer"), 405)
        service.has_leader = False
        problem(api.post("/api/v1/cluster/transfer"), 503, "NoLeader")
