"""The S0 dialect: six POST calls, HTTP 200 in every case, and a code."""

from typing import Any

import pytest
from harness.api import Api, FakeService, fill
from rollcall.node.api.s0 import CONFLICT, NOT_FOUND, NOT_MODIFIED, PARAM_ERROR, SERVER_ERROR, SUCCESS
from rollcall.replication.errors import NoLeader, Overloaded, Unknown
from werkzeug.test import TestResponse

APP = {"env": "prod", "appid": "orders", "hostname": "host-1"}
REGISTRATION = {**APP, "addrs": ["http://10.0.0.1:8080", "grpc://10.0.0.1:9000"], "status": 1, "version": "1.2"}
MESSAGES = {
    304: "code: 304, error info: app not modified",
    400: "code: 400, error info: request param error",
    404: "code: 404, error info: not found",
    409: "code: 409, error info: conflict",
    500: "code: 500, error info: service internal error",
}


def call(api: Api, name: str, body: Any = None, code: int = SUCCESS, **fields: Any) -> Any:
    """Calls, checks the envelope and the code, and gives ``data``."""
    sent = {**(body or {}), **fields}
    return told(api.post(f"/api/{name}", sent), code)["data"]


def told(answer: TestResponse, code: int) -> dict[str, Any]:
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    envelope: Any = answer.json
    assert envelope["code"] == code, answer.text
    assert envelope["message"] == MESSAGES.get(code, "")
    return envelope


class TestRegister:
    def test_success_has_the_articles_envelope(self, api: Api) -> None:
        assert api.post("/api/register", REGISTRATION).json == {"code": 200, "message": "", "data": ""}

    def test_it_is_an_instance_whose_id_is_the_hostname(self, api: Api) -> None:
        call(api, "register", REGISTRATION)

        record = api.get("/api/v1/services/orders/instances/host-1?env=prod").json
        assert (record["address"], record["port"], record["hostname"]) == ("10.0.0.1", 8080, "host-1")
        assert (record["status"], record["version"], record["ttl_s"]) == ("up", "1.2", 90.0)
        assert record["addrs"] == REGISTRATION["addrs"]

    @pytest.mark.parametrize("status", [0, 3, -1, 2**32, "up", None])
    def test_a_status_is_1_or_2(self, api: Api, status: Any) -> None:
        call(api, "register", REGISTRATION, PARAM_ERROR, status=status)

    def test_status_2_is_registered_and_gets_no_traffic(self, api: Api) -> None:
        call(api, "register", REGISTRATION, status=2)

        assert api.ids("/api/v1/services/orders/instances?env=prod") == []
        assert api.get("/api/v1/services/orders/instances/host-1?env=prod").json["status"] == "out_of_service"

    @pytest.mark.parametrize("missing", ["appid", "hostname", "status"])
    def test_what_must_be_there(self, api: Api, missing: str) -> None:
        body = {name: value for name, value in REGISTRATION.items() if name != missing}

        answer = told(api.post("/api/register", body), PARAM_ERROR)
        assert answer["field"] == missing
        assert missing in answer["detail"]

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"appid": "a b"}, "appid"),
            ({"env": "a b"}, "env"),
            ({"hostname": "x" * 513}, "hostname"),
            ({"hostname": "a\nb"}, "hostname"),
            ({"addrs": ["x" * 300]}, "addrs[0]"),
            ({"addrs": ["http://10.0.0.300:80"]}, "addrs[0]"),
            ({"addrs": ["http://a:1", "http://a:1,http://b:2"]}, "addrs[1]"),
            ({"appid": ".."}, "appid"),
            ({"hostname": "."}, "hostname"),
            ({"env": ".."}, "env"),
            ({"addrs": "http://10.0.0.1"}, "addrs"),
            ({"version": "x" * 300}, "version"),
            ({"dirty_timestamp": -5}, "dirty_timestamp"),
            ({"latest_timestamp": "soon"}, "latest_timestamp"),
            ({"appid": 17}, "appid"),
        ],
    )
    def test_a_wrong_field_is_named_in_the_dialects_words(self, api: Api, fields: dict, field: str) -> None:
        answer = told(api.post("/api/register", {**REGISTRATION, **fields}), PARAM_ERROR)

        assert answer["field"] == field

    @pytest.mark.parametrize("name", ["renew", "cancel"])
    @pytest.mark.parametrize("fields", [{"appid": "a b"}, {"env": "a b"}, {"hostname": "x" * 513}])
    def test_a_name_that_no_instance_can_have_goes_no_further(self, api: Api, name: str, fields: dict) -> None:
        answer = told(api.post(f"/api/{name}", {**APP, **fields}), PARAM_ERROR)

        assert answer["field"] == next(iter(fields))

    def test_an_env_that_is_not_named_is_the_default_one(self, api: Api) -> None:
        call(api, "register", {**REGISTRATION, "env": ""})

        assert api.ids("/api/v1/services/orders/instances") == ["host-1"]
        assert call(api, "fetch", appid="orders", status=1)["instances"][0]["env"] == "default"

    def test_registering_again_keeps_up_timestamp_and_a_newer_record(self, api: Api) -> None:
        call(api, "register", REGISTRATION, dirty_timestamp=2_000)
        first = call(api, "fetch", APP, status=1)["instances"][0]

        call(api, "register", REGISTRATION, version="old", dirty_timestamp=1_000)
        assert call(api, "fetch", APP, status=1)["instances"][0]["version"] == "1.2"
        call(api, "register", REGISTRATION, version="new", dirty_timestamp=3_000)
        again = call(api, "fetch", APP, status=1)["instances"][0]
        assert (again["version"], again["dirty_timestamp"]) == ("new", 3_000)
        assert again["up_timestamp"] == first["up_timestamp"]

    def test_unknown_fields_and_nulls_are_not_looked_at(self, api: Api) -> None:
        call(api, "register", REGISTRATION, replication=True, renew_timestamp="1", colour=[], latest_timestamp=None)

    def test_names_are_taken_in_the_case_of_go_structs_too(self, api: Api) -> None:
        body = {"Env": "prod", "AppId": "orders", "Hostname": "host-1", "Status": 1, "DirtyTimestamp": 7}

        call(api, "register", body)
        assert call(api, "fetch", APP, status=1)["instances"][0]["dirty_timestamp"] == 7


class TestForms:
    def test_a_form_registers_and_fetches_like_json(self, api: Api) -> None:
        form = "env=prod&appid=orders&hostname=host-1&status=1&addrs[]=http://a:1&addrs[]=http://b:2&dirty_timestamp=9"

        told(api.client.post("/api/register", data=form, content_type="application/x-www-form-urlencoded"), SUCCESS)
        fetched = told(api.client.post("/api/fetch", data="env=prod&appid=orders&status=1"), SUCCESS)
        instance = fetched["data"]["instances"][0]
        assert (instance["addrs"], instance["dirty_timestamp"]) == (["http://a:1", "http://b:2"], 9)

    def test_json_is_json_whatever_it_is_called(self, api: Api) -> None:
        body = b' {"env": "prod", "appid": "orders", "hostname": "host-1", "status": 1}'

        told(api.client.post("/api/register", data=body, content_type="application/x-www-form-urlencoded"), SUCCESS)

    @pytest.mark.parametrize("body", [b"{", b"[]", b"\xff=1", b"%ff=1", b"", b"null", b"17", b"x" * 5000])
    @pytest.mark.parametrize("name", ["register", "renew", "cancel", "fetch"])
    def test_a_body_that_names_nothing_is_a_param_error(self, api: Api, name: str, body: bytes) -> None:
        told(api.client.post(f"/api/{name}", data=body), PARAM_ERROR)


class TestRenew:
    def test_a_renewal_of_what_is_registered(self, api: Api, service: FakeService) -> None:
        call(api, "register", REGISTRATION)

        assert api.post("/api/renew", APP).json == {"code": 200, "message": "", "data": ""}
        assert service.renewals[0].dirty_timestamp is None

    def test_a_renewal_moves_its_time_and_registering_is_one(self, api: Api, service: FakeService) -> None:
        call(api, "register", REGISTRATION)
        shown = call(api, "fetch", APP, status=1)["instances"][0]
        assert shown["renew_timestamp"] >= shown["reg_timestamp"]

    def test_a_renewal_of_nobody_is_not_found(self, api: Api) -> None:
        call(api, "renew", APP, NOT_FOUND)

    def test_dirty_timestamps_are_compared_in_json_too(self, api: Api) -> None:
        call(api, "register", REGISTRATION, dirty_timestamp=2_000)

        call(api, "renew", APP, SUCCESS, dirty_timestamp=2_000)
        call(api, "renew", APP, SUCCESS, dirty_timestamp="2000")
        call(api, "renew", APP, NOT_FOUND, dirty_timestamp=3_000)
        newer = call(api, "renew", APP, CONFLICT, dirty_timestamp=1_000)
        assert newer["dirty_timestamp"] == 2_000


class TestCancel:
    def test_it_gives_the_instance_that_was_removed(self, api: Api) -> None:
        call(api, "register", REGISTRATION)

        answer = told(api.post("/api/cancel", APP), SUCCESS)
        assert answer["data"] == ""
        assert answer["instance"]["hostname"] == "host-1"

    def test_the_last_instance_takes_the_app_with_it(self, api: Api) -> None:
        call(api, "register", REGISTRATION)
        call(api, "cancel", APP)

        call(api, "fetch", APP, NOT_FOUND, status=3)
        call(api, "cancel", APP, NOT_FOUND)
        assert "orders" not in call(api, "fetchall")

    def test_one_that_means_an_older_registration_changes_nothing(self, api: Api) -> None:
        call(api, "register", REGISTRATION, dirty_timestamp=1_000)
        call(api, "register", REGISTRATION, dirty_timestamp=2_000)

        newer = call(api, "cancel", APP, CONFLICT, dirty_timestamp=1_000)
        assert newer["dirty_timestamp"] == 2_000
        call(api, "fetch", APP, status=1)

        call(api, "cancel", APP, dirty_timestamp=2_000)
        call(api, "cancel", APP, NOT_FOUND, dirty_timestamp=2_000)


class TestFetch:
    def test_an_instance_has_elevens_fields(self, api: Api) -> None:
        call(api, "register", REGISTRATION)

        data = call(api, "fetch", APP, status=1)
        assert data["instances"][0].keys() == {
            "env", "appid", "hostname", "addrs", "version", "status", "reg_timestamp", "up_timestamp",
            "renew_timestamp", "dirty_timestamp", "latest_timestamp",
        }  # fmt: skip
        assert data["instances"][0]["renew_timestamp"] > 10**18
        assert data["latest_timestamp"] == data["instances"][0]["latest_timestamp"]

    def test_status_is_a_mask(self, api: Api) -> None:
        call(api, "register", REGISTRATION)
        call(api, "register", REGISTRATION, hostname="host-2", status=2)

        def hosts(status: int) -> list[str]:
            return [instance["hostname"] for instance in call(api, "fetch", APP, status=status)["instances"]]

        assert (hosts(1), hosts(2), hosts(3)) == (["host-1"], ["host-2"], ["host-1", "host-2"])
        call(api, "fetch", APP, NOT_FOUND, status=4)
        call(api, "fetch", APP, NOT_FOUND)

    def test_an_instance_that_gets_no_traffic_for_any_reason_is_status_2(self, api: Api) -> None:
        api.register(id="draining", status="draining", address="10.0.0.1", port=80)
        api.register(id="ready", address="fd00::1", port=80)

        fetched = call(api, "fetch", appid="orders", status=3)["instances"]
        assert [(i["hostname"], i["status"]) for i in fetched] == [("draining", 2), ("ready", 1)]
        assert [i["addrs"] for i in fetched] == [["http://10.0.0.1:80"], ["http://[fd00::1]:80"]]

    def test_what_has_not_changed_since_is_not_sent_again(self, api: Api) -> None:
        call(api, "register", REGISTRATION)
        latest = call(api, "fetch", APP, status=1)["latest_timestamp"]

        call(api, "fetch", APP, NOT_MODIFIED, status=1, latest_timestamp=latest)
        call(api, "fetch", APP, NOT_MODIFIED, status=1, latest_timestamp=str(latest + 1))
        call(api, "fetch", APP, SUCCESS, status=1, latest_timestamp=latest - 1)
        call(api, "register", REGISTRATION)
        assert call(api, "fetch", APP, SUCCESS, status=1, latest_timestamp=latest)["latest_timestamp"] > latest

    def test_not_modified_comes_before_no_match(self, api: Api) -> None:
        call(api, "register", REGISTRATION)
        latest = call(api, "fetch", APP, status=1)["latest_timestamp"]

        call(api, "fetch", APP, NOT_MODIFIED, status=2, latest_timestamp=latest)

    def test_an_unknown_app_is_not_found(self, api: Api) -> None:
        call(api, "fetch", APP, NOT_FOUND, status=1)
        call(api, "fetch", APP, NOT_FOUND, status=1, appid="a b")

    def test_fetchall_has_every_app_of_every_env(self, api: Api) -> None:
        call(api, "register", REGISTRATION)
        call(api, "register", REGISTRATION, env="test", hostname="host-2")
        call(api, "register", REGISTRATION, appid="carts")

        data = told(api.client.post("/api/fetchall"), SUCCESS)["data"]
        assert {app: [i["hostname"] for i in instances] for app, instances in data.items()} == {
            "Kavin.discovery": ["n1", "n2"],
            "orders": ["host-1", "host-2"],
            "carts": ["host-1"],
        }

    def test_without_a_leader_the_answer_is_this_nodes_copy_and_says_so(self, api: Api, service: FakeService) -> None:
        call(api, "register", REGISTRATION)
        service.has_leader = False

        answer = api.post("/api/fetch", {**APP, "status": 1})
        assert told(answer, SUCCESS)["data"]["instances"]
        assert answer.headers["X-Rollcall-Stale"] == "true"


class TestNodes:
    def test_the_nodes_that_can_be_reached(self, api: Api) -> None:
        data = call(api, "nodes", env="prod")

        assert [(node["hostname"], node["addrs"], node["status"]) for node in data["instances"]] == [
            ("n1", ["http://127.0.0.1:8500"], 1)
        ]
        assert data["instances"][0]["appid"] == "Kavin.discovery"
        assert data["latest_timestamp"] > 0

    def test_they_are_an_app_like_others(self, api: Api) -> None:
        data = call(api, "fetch", env="prod", appid="Kavin.discovery", status=3)

        assert [node["status"] for node in data["instances"]] == [1, 2]

    def test_but_nobody_registers_there(self, api: Api) -> None:
        call(api, "register", REGISTRATION, PARAM_ERROR, appid="Kavin.discovery")


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "outcome", "retry"),
        [
            (NoLeader("none"), "not_done", "1"),
            (Overloaded("full"), "not_done", "1"),
            (Unknown("who knows"), "unknown", None),
            (ZeroDivisionError("secret"), "unknown", None),
        ],
    )
    def test_a_failed_write_is_an_internal_error_that_says_what_became_of_it(
        self, api: Api, service: FakeService, error: Exception, outcome: str, retry: str | None
    ) -> None:
        service.submit_error = error

        answer = api.post("/api/register", REGISTRATION)
        assert told(answer, SERVER_ERROR)["outcome"] == outcome
        assert answer.headers.get("Retry-After") == retry
        assert "secret" not in answer.text

    def test_past_the_budget_it_is_an_internal_error_too(self, api: Api, service: FakeService) -> None:
        fill(service.budget)

        for name in ("register", "renew", "cancel", "fetch", "fetchall"):
            answer = api.post(f"/api/{name}", {**REGISTRATION})
            assert told(answer, SERVER_ERROR)["outcome"] == "not_done"

    def test_answers_carry_the_index_as_all_do(self, api: Api) -> None:
        assert api.post("/api/register", REGISTRATION).headers["X-Rollcall-Index"] == "1"
        assert api.post("/api/fetch", {**APP, "status": 1}).headers["X-Rollcall-Index"] == "1"
