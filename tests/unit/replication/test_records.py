"""Records: what a registration may say, and that it is told what is wrong with it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.errors import Invalid
from rollcall.replication.records import (
    ADDRS_MAX,
    ID_LENGTH_MAX,
    META_BYTES_MAX,
    META_KEYS_MAX,
    TAGS_MAX,
    WEIGHT_MAX,
    Instance,
    Key,
    Registration,
    build,
)


def _build(**fields: Any) -> Registration:
    return build(Registration, {"service": "web", "id": "a", **fields})


def _instance(**fields: Any) -> Instance:
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 5)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 7)
    return Instance(env="default", service="web", id="a", **stamps, **indexes, **fields)


def test_a_service_and_an_id_are_enough() -> None:
    registration = _build()

    assert registration.key == Key("default", "web", "a")
    assert (registration.status, registration.weight, registration.ttl_s) == ("up", 1, None)


GOOD: list[tuple[str, Any]] = [
    ("service", "A-z_0.9"),
    ("service", "x" * 128),
    ("id", "x" * ID_LENGTH_MAX),
    ("id", "web-10.0.0.1:8080"),
    ("id", "a/b c ünïcödé 日本"),
    ("port", 0),
    ("port", 65_535),
    ("ttl_s", 2),
    ("ttl_s", 86_400.0),
    ("ttl_s", None),
    ("tags", ["x"] * TAGS_MAX),
    ("addrs", ["http://10.0.0.1:80"] * ADDRS_MAX),
    ("meta", {f"k{n}": "v" for n in range(META_KEYS_MAX)}),
    ("meta", {"k": "v" * (META_BYTES_MAX - 1)}),
    ("weight", 0),
    ("weight", WEIGHT_MAX),
    ("dirty_timestamp", 0),
    ("dirty_timestamp", 2**63 - 1),
]


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_what_lies_within_the_limits_is_taken(field: str, value: Any) -> None:
    built = getattr(_build(**{field: value}), field)

    assert list(built) == value if isinstance(value, list) else built == value


BAD: list[tuple[str, Any, str]] = [
    ("service", "", "service"),
    ("service", "x" * 129, "service"),
    ("service", "a b", "service"),
    ("service", "a\n", "service"),
    ("service", "é", "service"),
    ("service", None, "service"),
    ("env", "a/b", "env"),
    ("id", "", "id"),
    ("id", "x" * (ID_LENGTH_MAX + 1), "id"),
    ("id", "a\tb", "id"),
    ("id", "\u202e", "id"),
    ("id", "\ud800", "id"),
    ("hostname", "a\x00", "hostname"),
    ("hostname", "x" * 256, "hostname"),
    ("address", "\n", "address"),
    ("service", "..", "service"),
    ("service", ".", "service"),
    ("id", "..", "id"),
    ("env", ".", "env"),
    ("checks", [{"name": "..", "ttl_s": 5}], "checks[0].name"),
    ("hostname", "a b", "hostname"),
    ("address", "http://10.0.0.1", "address"),
    ("address", "[::1]", "address"),
    ("address", "a b", "address"),
    ("address", "10.0.0.300", "address"),
    ("address", "10.0.0.1:80", "address"),
    ("address", "a..b", "address"),
    ("address", "-a", "address"),
    ("address", "fe80::1%eth0", "address"),
    ("addrs", ["http://10.0.0.1", "http://"], "addrs[1]"),
    ("addrs", ["http://10.0.0.300:80"], "addrs[0]"),
    ("addrs", ["http://10.0.0.1:port"], "addrs[0]"),
    ("addrs", ["http://10.0.0.1:0"], "addrs[0]"),
    ("addrs", ["http://a b"], "addrs[0]"),
    ("addrs", [""], "addrs[0]"),
    ("version", "x" * 257, "version"),
    ("port", -1, "port"),
    ("port", 65_536, "port"),
    ("port", 1.5, "port"),
    ("port", True, "port"),
    ("port", "80", "port"),
    ("ttl_s", 1.9, "ttl_s"),
    ("ttl_s", 86_400.1, "ttl_s"),
    ("ttl_s", float("nan"), "ttl_s"),
    ("ttl_s", float("inf"), "ttl_s"),
    ("ttl_s", "30", "ttl_s"),
    ("ttl_s", True, "ttl_s"),
    ("tags", "ab", "tags"),
    ("tags", ["x"] * (TAGS_MAX + 1), "tags"),
    ("tags", ["a", ""], "tags[1]"),
    ("tags", ["\ud800"], "tags"),
    ("addrs", ["x"] * (ADDRS_MAX + 1), "addrs"),
    ("addrs", [1], "addrs[0]"),
    ("meta", {"a": 1}, "meta[...]"),
    ("meta", {"": "v"}, "meta"),
    ("meta", {f"k{n}": "v" for n in range(META_KEYS_MAX + 1)}, "meta"),
    ("meta", {"k": "v" * META_BYTES_MAX}, "meta"),
    ("meta", {"k": "é" * (META_BYTES_MAX // 2)}, "meta"),
    ("meta", {"\ud800": "v"}, "meta"),
    ("meta", {"k": "\udfff"}, "meta"),
    ("weight", -1, "weight"),
    ("weight", WEIGHT_MAX + 1, "weight"),
    ("weight", 2**70, "weight"),
    ("status", "UP", "status"),
    ("dirty_timestamp", -1, "dirty_timestamp"),
    ("dirty_timestamp", 2**63, "dirty_timestamp"),
    ("health", "passing", "health"),
    ("create_index", 1, "create_index"),
]


@pytest.mark.parametrize(("field", "value", "named"), BAD)
def test_what_lies_outside_the_limits_is_refused_and_named(field: str, value: Any, named: str) -> None:
    with pytest.raises(Invalid) as caught:
        _build(**{field: value})

    assert caught.value.field == named
    assert named in caught.value.message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Invalid) as caught:
        build(Registration, {"service": "web"})

    assert caught.value.field == "id"
    assert "required" in caught.value.message


def test_something_that_is_no_object_is_refused() -> None:
    with pytest.raises(Invalid, match="object"):
        build(Registration, ["web"])  # pyright: ignore[reportArgumentType]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(Registration.__struct_fields__)


@given(st.dictionaries(_fields, _json))
def test_anything_at_all_is_either_a_registration_that_can_be_written_or_invalid(data: dict[str, Any]) -> None:
    try:
        registration = build(Registration, {"service": "web", "id": "a", **data})
    except Invalid as error:
        assert error.message
    else:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(registration), type=Registration) == registration


def test_the_operators_word_wins_over_the_services_own() -> None:
    assert _instance(status="up", status_override="draining").effective_status == "draining"
    assert _instance(status="down").effective_status == "down"


@pytest.mark.parametrize(
    ("fields", "serving"),
    [
        ({}, True),
        ({"health": "warning"}, True),
        ({"health": "critical"}, False),
        ({"health": "pending"}, False),
        ({"status": "starting"}, False),
        ({"status_override": "out_of_service"}, False),
        ({"status": "down", "status_override": "up"}, True),
    ],
)
def test_only_what_is_up_and_healthy_gets_traffic(fields: dict[str, Any], serving: bool) -> None:
    assert _instance(**fields).serving is serving


def test_the_bytes_of_a_record_do_not_depend_on_where_its_values_came_from() -> None:
    """Defaults are left out by identity, so an equal value made at run time must not make other bytes."""
    written = _instance(meta={"a": "b"}, ttl_s=30.0)
    whole = {name: getattr(written, name) for name in Instance.__struct_fields__}

    read = msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=Instance)

    assert read == written
    assert msgspec.msgpack.encode(read) == msgspec.msgpack.encode(written)
