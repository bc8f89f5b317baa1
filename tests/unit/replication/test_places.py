"""Where an instance is, made of what it says."""

from typing import Any

import pytest
from rollcall.replication.places import Place, address_fault, place_of, read, url_of
from rollcall.replication.records import Registration

NOWHERE = None
TABLE: list[tuple[dict[str, Any], Place | None, str]] = [
    ({"address": "10.0.0.1", "port": 80}, Place("10.0.0.1", 80), "http://10.0.0.1:80"),
    ({"address": "::1", "port": 80}, Place("::1", 80), "http://[::1]:80"),
    ({"address": "a.b_c"}, Place("a.b_c", 0), "http://a.b_c"),
    ({"hostname": "h", "port": 3}, Place("h", 3), "http://h:3"),
    ({"addrs": ("http://10.0.0.5:8080",)}, Place("10.0.0.5", 8080, "http"), "http://10.0.0.5:8080"),
    ({"addrs": ("https://h/x",)}, Place("h", 443, "https"), "https://h/x"),
    ({"addrs": ("h:8",)}, Place("h", 8), "http://h:8"),
    ({"addrs": ("::1",)}, Place("::1", 0), "http://[::1]"),
    ({"addrs": ("grpc://h:9", "http://h:8")}, Place("h", 8, "http"), "http://h:8"),
    ({"addrs": ("grpc://h:9",)}, Place("h", 9, "grpc"), "grpc://h:9"),
    # What S0 keeps of an instance that speaks gRPC alone, and one that says where its HTTP is.
    ({"addrs": ("grpc://h:9",), "address": "h", "port": 9}, Place("h", 9), "grpc://h:9"),
    ({"addrs": ("grpc://h:9",), "address": "h", "port": 8}, Place("h", 8), "http://h:8"),
    ({"addrs": ("http://h:8",), "hostname": "x", "port": 1}, Place("h", 8, "http"), "http://h:8"),
    # Two places: callers of HTTP take the URL.
    ({"addrs": ("http://h:8",), "address": "10.0.0.1", "port": 1}, Place("10.0.0.1", 1), "http://h:8"),
    # Of releases that looked at nothing.
    ({"address": "a b"}, NOWHERE, ""),
    ({"address": "10.0.0.300", "hostname": "h"}, Place("h", 0), "http://h"),
    ({"address": "http://10.0.0.1", "addrs": ("http://[", "x y", "http://h:8")}, Place("h", 8, "http"), "http://h:8"),
    ({}, NOWHERE, ""),
]  # fmt: skip


@pytest.mark.parametrize(("said", "place", "url"), TABLE)
def test_an_instance_is_at_one_place(said: dict[str, Any], place: Place | None, url: str) -> None:
    instance = Registration(service="s", id="i", **said)

    assert (place_of(instance), url_of(instance)) == (place, url)


@pytest.mark.parametrize(
    "text", ["", "://", "http://", "http://h:99999", "http://[broken", "h:port", "a b", "h:0", "\n"]
)
def test_what_cannot_be_read_is_no_place(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://u:secret@10.0.0.1", "put a URL into addrs"),
        ("[::1]", "brackets"),
        ("10.0.0.300", "digits and dots alone"),
        ("10.0.0.1:80", "put the port into port"),
        ("a b", "an IP address or a host name"),
        ("fe80::1%eth0", "zone"),
    ],
)
def test_an_address_that_is_none_is_refused_in_words_that_help(text: str, said: str) -> None:
    fault = address_fault(text)

    assert said in fault
    assert "secret" not in fault
