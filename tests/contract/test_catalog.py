"""S3-4: the lookup that clients of Consul make, in Consul's shape."""

import threading
import time

import pytest
from harness.api import Api, FakeService, problem
from rollcall.node.api import create_app
from rollcall.node.api.consul import go_duration_s

CATALOG = "/v1/catalog/service/orders"


class TestCatalog:
    def test_s3_4_a_service_is_found_in_the_words_of_consul(self, api: Api) -> None:
        registered = api.register(address="10.0.0.1", port=80, tags=["v1"], meta={"k": "v"}, weight=3).json
        answer = api.get(CATALOG)
        (row,) = answer.json

        assert answer.status_code == 200
        assert (row["ServiceName"], row["ServiceID"]) == ("orders", "o1")
        assert (row["ServiceAddress"], row["ServicePort"], row["ServiceTags"]) == ("10.0.0.1", 80, ["v1"])
        assert (row["ServiceMeta"], row["ServiceWeights"]) == ({"k": "v"}, {"Passing": 3, "Warning": 1})
        assert (row["Node"], row["Address"], row["Datacenter"]) == ("n1", "127.0.0.1", "dc1")
        assert row["ModifyIndex"] == registered["modify_index"]
        assert answer.headers["X-Consul-Index"] == str(registered["modify_index"])
        assert answer.headers["X-Consul-KnownLeader"] == "true"
        assert answer.headers["X-Consul-LastContact"] == "12"

    def test_what_is_not_there_is_an_empty_list_with_an_index(self, api: Api) -> None:
        answer = api.get("/v1/catalog/service/nobody")

        assert (answer.status_code, answer.json) == (200, [])
        assert int(answer.headers["X-Consul-Index"]) >= 1

    def test_all_tags_that_are_named_must_match(self, api: Api) -> None:
        api.register(id="o1", tags=["a", "b"])
        api.register(id="o2", tags=["a"])

        assert [row["ServiceID"] for row in api.get(f"{CATALOG}?tag=a").json] == ["o1", "o2"]
        assert [row["ServiceID"] for row in api.get(f"{CATALOG}?tag=a&tag=b").json] == ["o1"]

    def test_parameters_of_consul_that_mean_nothing_here_are_passed_over(self, api: Api) -> None:
        assert api.get(f"{CATALOG}?dc=dc1&stale=&near=_agent&ns=x").json == []

    def test_who_should_get_no_traffic_is_listed_too(self, api: Api) -> None:
        api.register(status="down")

        assert len(api.get(CATALOG).json) == 1

    def test_without_a_leader_it_says_so(self, api: Api, service: FakeService) -> None:
        service.has_leader = False
        answer = api.get(CATALOG)

        assert answer.headers["X-Consul-KnownLeader"] == "false"
        assert answer.headers["X-Rollcall-Stale"] == "true"

    def test_a_query_with_an_index_waits_for_a_change_of_its_service(self, api: Api, service: FakeService) -> None:
        """A client that blocks properly once asked 250 times a second."""
        index = api.register(address="10.0.0.1").json["modify_index"]
        api.register(service="others", address="10.0.0.2")
        began = time.monotonic()
        quiet = api.get(f"{CATALOG}?index={index}&wait=300ms")
        assert time.monotonic() - began >= 0.29
        assert (quiet.headers["X-Consul-Index"], len(quiet.json)) == (str(index), 1)
        assert len(api.get(f"{CATALOG}?index={index - 1}&wait=1m").json) == 1, "at once: it has changed since"

        changing = threading.Timer(0.1, lambda: Api(create_app(service)).register(id="o2", address="10.0.0.3"))
        changing.start()
        changed = api.get(f"{CATALOG}?index={index}&wait=1m")
        changing.join()
        assert int(changed.headers["X-Consul-Index"]) > index
        assert len(changed.json) == 2
        assert service.budget.in_use == 0

    def test_what_is_not_there_is_waited_for_and_what_goes_is_told(self, api: Api) -> None:
        absent = int(api.get(CATALOG).headers["X-Consul-Index"])
        api.register(service="others")
        began = time.monotonic()
        assert api.get(f"{CATALOG}?index={absent}&wait=200ms").json == []
        assert time.monotonic() - began >= 0.19
        index = api.register().json["modify_index"]
        assert len(api.get(f"{CATALOG}?index={absent}&wait=1m").json) == 1
        api.delete("/api/v1/services/orders/instances/o1")

        gone = api.get(f"{CATALOG}?index={index}&wait=1m")
        assert gone.json == []
        assert int(gone.headers["X-Consul-Index"]) > index

    def test_a_quiet_service_is_waited_for_however_much_else_has_changed(self) -> None:
        service = FakeService(feed=3)
        api = Api(create_app(service))
        index = api.register().json["modify_index"]
        for number in range(10):
            api.register(service="others", id=f"o{number}")

        began = time.monotonic()
        api.get(f"{CATALOG}?index={index}&wait=200ms")
        assert time.monotonic() - began >= 0.19

    @pytest.mark.parametrize("query", ["index=x", "index=-1", "index=1&wait=soon", "index=1&wait=5", "wait=1.2.3s"])
    def test_what_is_no_index_or_no_time_is_refused(self, api: Api, query: str) -> None:
        problem(api.get(f"{CATALOG}?{query}"), 400, "Invalid", field=query.rpartition("&")[2].partition("=")[0])

    @pytest.mark.parametrize(("text", "seconds"), [("", 300.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5h", 5400.0)])
    def test_durations_are_those_of_go(self, text: str, seconds: float) -> None:
        assert go_duration_s(text, "wait") == pytest.approx(seconds)

    def test_other_calls_of_consul_are_not_there(self, api: Api) -> None:
        problem(api.get("/v1/catalog/services"), 404)
        problem(api.put(CATALOG, {}), 405)
