"""Operators' overrides by the native API: of an id, for a time, and the list of all of them."""

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from harness.api import Api, problem

ORDERS = "/api/v1/services/orders/instances"
STATUS = f"{ORDERS}/o1/status"
LIST = "/api/v1/overrides"


def in_s(seconds: float, zone: timezone = UTC) -> str:
    return datetime.fromtimestamp(time.time() + seconds, zone).isoformat()


class TestForAnId:
    def test_a_process_that_starts_again_is_not_back_in_traffic(self, api: Api) -> None:
        api.register()
        api.put(STATUS, {"status": "out_of_service", "reason": "disk"})
        api.delete(f"{ORDERS}/o1")

        again = api.register()

        assert (again.json["status_override"], again.json["status_reason"]) == ("out_of_service", "disk")
        assert api.ids(ORDERS) == []
        assert api.delete(STATUS).json["status_override"] is None
        assert api.ids(ORDERS) == ["o1"]

    def test_one_of_an_instance_that_is_gone_is_changed_and_removed(self, api: Api) -> None:
        api.register()
        api.put(STATUS, {"status": "out_of_service"})
        api.delete(f"{ORDERS}/o1")
        nobody = {"env": "default", "service": "orders", "id": "o1", "registered": False}

        changed = api.put(STATUS, {"status": "draining", "reason": "slowly", "for_s": 60})
        assert changed.json == {
            **nobody,
            "status_override": "draining",
            "status_reason": "slowly",
            "status_until": api.get(LIST).json["overrides"][0]["until"],
        }
        removed = api.delete(STATUS)

        assert removed.json == {**nobody, "status_override": None, "status_reason": "", "status_until": None}
        assert removed.headers["X-Rollcall-Index"] > changed.headers["X-Rollcall-Index"]
        problem(api.delete(STATUS), 404, "NotFound")

    def test_one_of_who_was_never_registered_is_taken_only_if_that_is_said(self, api: Api) -> None:
        problem(api.put(STATUS, {"status": "down"}), 404, "NotFound")

        made = api.put(STATUS, {"status": "down", "reason": "not yet", "unregistered": True})

        assert (made.json["registered"], made.json["status_override"]) == (False, "down")
        assert api.register().json["status_override"] == "down"

    def test_an_answer_that_is_repeated_says_how_it_stands_too(self, api: Api) -> None:
        api.register()
        key = {"Idempotency-Key": "one"}
        first = api.put(STATUS, {"status": "down"}, headers=key)
        again = api.put(STATUS, {"status": "down"}, headers=key)

        assert again.json == first.json
        assert again.headers["X-Rollcall-Index"] == first.headers["X-Rollcall-Index"]


class TestForATime:
    @pytest.mark.parametrize("said", [{"for_s": 90}, {"until": UTC}, {"until": timezone(timedelta(hours=5))}])
    def test_it_is_given_as_seconds_or_as_a_time(self, api: Api, said: dict[str, Any]) -> None:
        api.register()
        said = {"until": in_s(90, said["until"])} if "until" in said else said

        shown = api.put(STATUS, {"status": "out_of_service", **said}).json

        assert shown["status_until"] == pytest.approx((time.time() + 90) * 1e9, abs=60e9)
        assert api.get(f"{ORDERS}/o1").json["status_until"] == shown["status_until"]
        changes = api.get("/api/v1/watch?index=0&wait=0").json["events"]
        assert changes[-1]["instance"]["status_until"] == shown["status_until"]

    def test_a_retry_with_a_time_is_the_same_write(self, api: Api) -> None:
        """Its time is as it was said, whatever the clocks of the nodes that take the two."""
        api.register()
        body, key = {"status": "down", "until": in_s(90)}, {"Idempotency-Key": "one"}

        first, again = (api.put(STATUS, body, headers=key) for _ in range(2))

        assert (first.status_code, again.status_code) == (200, 200)
        assert again.headers["X-Rollcall-Index"] == first.headers["X-Rollcall-Index"]

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"until": in_s(-5)}, "until"),
            ({"until": in_s(400 * 86_400)}, "until"),
            ({"until": "tomorrow"}, "until"),
            ({"until": "2126-01-01T00:00:00"}, "until"),
            ({"for_s": 60, "until": in_s(60)}, "until"),
            ({"for_s": 0}, "for_s"),
            ({"for_s": 400 * 86_400}, "for_s"),
            ({"for": "2h"}, "for"),
        ],
    )
    def test_what_is_no_time_to_come_is_refused(self, api: Api, said: dict[str, Any], field: str) -> None:
        api.register()

        problem(api.put(STATUS, {"status": "down", **said}), 400, "Invalid", field=field)
        assert api.get(LIST).json["overrides"] == []

    def test_in_a_batch_as_well(self, api: Api) -> None:
        api.register()
        status = {"op": "status", "service": "orders", "id": "o1", "status": "down"}

        api.post("/api/v1/batch", {"operations": [{**status, "until": in_s(60)}]})
        assert api.get(f"{ORDERS}/o1").json["status_until"]
        told = problem(api.post("/api/v1/batch", {"operations": [{**status, "until": in_s(-60)}]}), 400, "Invalid")
        assert told["field"] == "operations[0].until"
        problem(api.post("/api/v1/batch", {"operations": [{**status, "status": None, "for_s": 60}]}), 400, "Invalid")
        api.post("/api/v1/batch", {"operations": [{**status, "status": None}]})
        assert api.get(LIST).json["overrides"] == []


class TestTheList:
    def test_all_are_listed_registered_or_not(self, api: Api) -> None:
        for env, id in (("default", "o2"), ("default", "o1"), ("prod", "o3")):
            api.register(id=id, query=f"?env={env}")
            api.put(f"{ORDERS}/{id}/status?env={env}", {"status": "down", "reason": id, "for_s": 60})
        api.delete(f"{ORDERS}/o1")

        one, two = api.get(LIST).json["overrides"]
        every = api.get(f"{LIST}?env=*")

        assert (one["id"], one["registered"], one["reason"], one["status"]) == ("o1", False, "o1", "down")
        assert (two["id"], two["registered"]) == ("o2", True)
        assert one["set_at"] < one["until"]
        assert one["index"] > two["index"]
        assert [each["id"] for each in every.json["overrides"]] == ["o1", "o2", "o3"]
        assert every.json["index"] == int(every.headers["X-Rollcall-Index"])

    def test_it_takes_what_every_read_takes_and_nothing_else(self, api: Api) -> None:
        index = api.register().headers["X-Rollcall-Index"]

        assert api.get(f"{LIST}?min_index={index}&consistency=linearizable").json["overrides"] == []
        problem(api.get(f"{LIST}?service=orders"), 400, "Invalid")

    def test_how_many_there_are_is_a_metric(self, api: Api) -> None:
        api.register()
        api.put(STATUS, {"status": "down"})

        assert "rollcall_overrides 1.0" in api.get("/metrics").text


class TestKeysOfRequests:
    """A key remembers what it was used for."""

    KEY = {"Idempotency-Key": "one"}

    def test_one_that_was_used_for_another_registration_is_422_and_nothing_is_done(self, api: Api) -> None:
        api.put(f"{ORDERS}/o1", {}, headers=self.KEY)

        told = problem(api.put(f"{ORDERS}/o2", {}, headers=self.KEY), 422, "KeyReused")

        assert "used for another write" in told["detail"]
        assert "outcome" not in told
        assert api.ids(f"{ORDERS}?health=any") == ["o1"]

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("put", f"{ORDERS}/o1", {"port": 81}),
            ("put", f"{ORDERS}/o1?if_absent=true", {}),
            ("delete", f"{ORDERS}/o1", None),
            ("put", STATUS, {"status": "down"}),
            ("post", "/api/v1/batch", {"operations": [{"op": "deregister", "service": "orders", "id": "o1"}]}),
            ("put", "/api/v1/policies/p", {"service": "orders"}),
            ("post", "/register", {"serviceName": "orders", "host": "10.0.0.1", "port": 80}),
        ],
    )
    def test_whatever_the_other_write_is(self, api: Api, method: str, path: str, body: Any) -> None:
        api.put(f"{ORDERS}/o1", {}, headers=self.KEY)
        options = {"headers": self.KEY} if body is None else {"json": body, "headers": self.KEY}

        problem(getattr(api, method)(path, **options), 422, "KeyReused")
        assert api.get(f"{ORDERS}/o1").json["port"] == 0

    def test_s0_says_it_in_its_envelope(self, api: Api) -> None:
        app = {"env": "default", "appid": "orders", "hostname": "h1", "addrs": ["http://10.0.0.1:80"], "status": 1}
        api.post("/api/register", app, headers=self.KEY)

        answer = api.post("/api/register", {**app, "hostname": "h2"}, headers=self.KEY)

        assert (answer.status_code, answer.json["code"]) == (200, 400)
        assert "used for another write" in answer.json["detail"]

    def test_the_same_write_is_answered_as_it_was(self, api: Api) -> None:
        first = api.put("/api/v1/policies/p", {"service": "orders"}, headers=self.KEY)
        again = api.put("/api/v1/policies/p", {"service": "orders"}, headers=self.KEY)

        assert (again.status_code, again.headers["X-Rollcall-Index"]) == (200, first.headers["X-Rollcall-Index"])
