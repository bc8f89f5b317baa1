"""S3-4: the lookup that clients of Consul make, in Consul's shape."""

from harness.api import Api, FakeService, problem

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

    def test_other_calls_of_consul_are_not_there(self, api: Api) -> None:
        problem(api.get("/v1/catalog/services"), 404)
        problem(api.put(CATALOG, {}), 405)
