"""The table that maps the small dialects' fields to ours."""

import msgspec
from rollcall.node.api.seed_fields import (
    FIELDS,
    S0_STATUS,
    addrs_of,
    from_s4,
    in_s0_words,
    in_s4_words,
    s0_status,
    to_s0,
    to_s4,
)
from rollcall.replication.errors import Invalid
from rollcall.replication.records import Instance

INSTANCE = Instance(
    env="prod", service="orders", id="host-1", reg_timestamp=1, up_timestamp=2, dirty_timestamp=3, latest_timestamp=4,
    create_index=5, reg_index=6, modify_index=7,
)  # fmt: skip


def _but(**fields: object) -> Instance:
    return msgspec.structs.replace(INSTANCE, **fields)


def test_every_field_of_the_table_is_one_of_ours_and_named_once() -> None:
    assert {field.ours for field in FIELDS} <= set(Instance.__struct_fields__)
    for names in ([f.ours for f in FIELDS], [f.s0 for f in FIELDS if f.s0], [f.s4 for f in FIELDS if f.s4]):
        assert len(names) == len(set(names))


def test_s0_shows_eleven_fields() -> None:
    assert to_s0(_but(addrs=("http://a:1",), version="v"), renew_timestamp=9) == {
        "env": "prod",
        "appid": "orders",
        "hostname": "host-1",
        "addrs": ["http://a:1"],
        "version": "v",
        "status": 1,
        "reg_timestamp": 1,
        "up_timestamp": 2,
        "renew_timestamp": 9,
        "dirty_timestamp": 3,
        "latest_timestamp": 4,
    }


def test_s0_status_1_is_what_gets_traffic() -> None:
    assert S0_STATUS == {1: "up", 2: "out_of_service"}
    for bit, status in S0_STATUS.items():
        assert s0_status(_but(status=status)) == bit
    for unserving in (
        {"status": "down"},
        {"status": "draining"},
        {"status_override": "out_of_service"},
        {"health": "critical"},
        {"health": "pending"},
    ):
        assert s0_status(_but(**unserving)) == 2
    assert s0_status(_but(health="warning")) == 1


def test_addrs_are_made_of_a_place() -> None:
    assert addrs_of(_but(address="10.0.0.1", port=80)) == ["http://10.0.0.1:80"]
    assert addrs_of(_but(address="fd00::1", port=80)) == ["http://[fd00::1]:80"]
    assert addrs_of(_but(address="host")) == ["http://host"]
    assert addrs_of(INSTANCE) == []


def test_s4_takes_three_fields_and_no_others() -> None:
    sent = {"serviceName": "orders", "host": "h", "port": 1, "id": "mine", "ttl_s": 5}

    assert from_s4(sent) == {"service": "orders", "address": "h", "port": 1}
    assert from_s4({}) == {}


def test_s4_shows_where_to_connect() -> None:
    assert to_s4(_but(address="h", port=1)) == {"host": "h", "port": 1}
    assert to_s4(_but(addrs=("http://a:2", "http://b:3"))) == {"host": "a", "port": 2}
    assert to_s4(_but(hostname="n", port=3)) == {"host": "n", "port": 3}
    assert to_s4(INSTANCE) is None


def test_errors_speak_the_dialects_words() -> None:
    error = Invalid("address: too long", field="address")

    assert (in_s4_words(error).field, in_s4_words(error).message) == ("host", "host: too long")
    assert in_s0_words(Invalid("id: bad id", field="id")).message == "hostname: bad id"
    assert in_s0_words(Invalid("addrs[2]: bad", field="addrs[2]")).field == "addrs[2]"
    assert in_s0_words(Invalid("something else", field="zone")).field == "zone"
