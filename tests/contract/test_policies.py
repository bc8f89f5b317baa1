"""Routing policies by the native API."""

from harness.api import Api, problem

CANARY = "/api/v1/policies/canary"


class TestPolicies:
    def test_s1_12_a_policy_is_put_shown_listed_and_removed(self, api: Api) -> None:
        api.register(version="2")
        sent = {"service": "orders", "percent": 1, "match": {"version": "2"}, "author": "ada", "reason": "try it"}
        made = api.put(CANARY, sent)

        assert made.status_code == 200
        assert (made.json["name"], made.json["author"], made.json["percent"]) == ("canary", "ada", 1.0)
        assert api.get(CANARY).json == made.json
        assert [each["name"] for each in api.get("/api/v1/policies?service=orders").json["policies"]] == ["canary"]
        assert api.get("/api/v1/policies?service=carts").json["policies"] == []
        assert api.delete(f"{CANARY}?author=bob").json == {"name": "canary"}
        problem(api.get(CANARY), 404, "NotFound")
        problem(api.delete(CANARY), 404, "NotFound")

    def test_who_changed_what_is_known_newest_first(self, api: Api) -> None:
        api.put(CANARY, {"service": "orders", "percent": 1, "author": "ada"})
        api.put(CANARY, {"service": "orders", "percent": 5}, environ_base={"REMOTE_ADDR": "10.0.0.5"})
        api.delete(f"{CANARY}?author=eve&reason=over")
        api.put("/api/v1/policies/other", {"service": "orders"})
        changes = api.get("/api/v1/policies/changes?name=canary").json["changes"]

        assert [(change["author"], change["policy"] is None) for change in changes] == [
            ("eve", True),
            ("10.0.0.5", False),
            ("ada", False),
        ]
        assert changes[0]["reason"] == "over"

    def test_what_makes_no_sense_is_refused_by_its_field(self, api: Api) -> None:
        problem(api.put(CANARY, {"percent": 1}), 400, "Invalid", field="service")
        problem(api.put(CANARY, {"service": "orders", "percent": 101}), 400, "Invalid", field="percent")
        problem(api.put(CANARY, {"service": "orders", "colour": "red"}), 400, "Invalid", field="colour")
        problem(api.put(CANARY, {"service": "orders", "header": "no spaces"}), 400, "Invalid", field="header")
        problem(api.put("/api/v1/policies/no%20name", {"service": "orders"}), 400, "Invalid", field="name")
        problem(api.get("/api/v1/policies?colour=red"), 400, "Invalid", field="colour")

    def test_what_was_perhaps_not_meant_is_taken_with_a_word(self, api: Api) -> None:
        """A service that nobody has, a version that nobody has, and two shares that are more than there is."""
        warned = api.put(CANARY, {"service": "orders", "percent": 80, "match": {"version": "2"}})
        assert (warned.status_code, len(warned.json["warnings"])) == (200, 1)
        assert "no instance of service 'orders' is registered" in warned.json["warnings"][0]
        api.register(version="1")
        assert "matches" in api.put(CANARY, {"service": "orders", "match": {"version": "2"}}).json["warnings"][0]
        api.register(id="o2", version="2")
        assert "warnings" not in api.put(CANARY, {"service": "orders", "percent": 80, "match": {"version": "2"}}).json

        (told,) = api.put("/api/v1/policies/other", {"service": "orders", "percent": 80}).json["warnings"]
        assert "160 %" in told
        by_header = {"service": "orders", "header": "X-Try"}
        assert "warnings" not in api.put("/api/v1/policies/headers", by_header).json
        assert "warnings" not in api.get(CANARY).json

    def test_what_no_path_can_hold_is_no_name(self, api: Api) -> None:
        problem(api.put("/api/v1/policies/%2E%2E", {"service": "orders"}), 400, "Invalid", field="name")
        problem(api.put(CANARY, {"service": ".."}), 400, "Invalid", field="service")
        problem(api.put(CANARY, {"service": "orders", "env": "."}), 400, "Invalid", field="env")
