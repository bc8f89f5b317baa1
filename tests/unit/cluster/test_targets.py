"""What a request line and a Host mean, and what is refused before it could mean something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.names import service_name
from rollcall.cluster.origin import Origin, origin_of
from rollcall.cluster.targets import Malformed, Target, host_of, services_of, target_of
from rollcall.replication.errors import Invalid


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/", Target("/")),
        ("/a/b?c=d", Target("/a/b", "?c=d")),
        ("/a?", Target("/a", "?")),
        ("//evil.example/x", Target("//evil.example/x")),
        ("/a/../b", Target("/a/../b")),
        ("/a%2fb", Target("/a%2fb")),
        ("/@evil/x", Target("/@evil/x")),
        ("http://cart.example/x?y", Target("/x", "?y", "cart.example")),
        ("HTTP://Cart.example:80", Target("/", "", "Cart.example:80")),
        ("https://cart.example?y", Target("/", "?y", "cart.example")),
    ],
)
def test_a_path_or_a_whole_url_is_a_target(text: str, target: Target):
    assert target_of("GET", text) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "@evil:80/x", ":80/x", "x", "evil:80", "evil:80/x", "?x", "#x", "*", "\\\\evil/x", "http:/x", "http:x",
        "http://", "http:///x", "http://?x", "ftp://evil/x", "file:///etc/passwd", "/a#b", "/a b", "/a\tb", "/\x00",
        "/\x7f", "/caf\xe9", "http:\\\\evil/x", " /x", "https:@evil/x",
    ],
)  # fmt: skip
def test_whatever_else_is_refused(text: str):
    with pytest.raises(Malformed):
        target_of("GET", text)


def test_the_asterisk_is_for_options_and_connect_is_for_nobody():
    assert target_of("OPTIONS", "*") == Target("*")
    for method, text in (("CONNECT", "/"), ("CONNECT", "cart:80"), ("GET", "*")):
        with pytest.raises(Malformed):
            target_of(method, text)


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_a_path_begins_with_a_slash_and_holds_nothing_that_ends_a_line(text: str):
    try:
        target = target_of("GET", text)
    except Malformed:
        return
    assert target.path.startswith("/")
    assert all("!" <= letter <= "~" for letter in target.path + target.query)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("", ""),
        ("a.example", "a.example"),
        ("A.b:8080", "A.b"),
        ("[::1]:80", "[::1]"),
        ("a_b.c.", "a_b.c."),
        ("a:", "a"),
    ],
)
def test_a_host_and_its_port(text: str, host: str):
    assert host_of(text) == host


@pytest.mark.parametrize(
    "text",
    [".x", "a..b", "..", "a b", "u@a.b", "a.b, c.d", "a.b/c", "a.b:x", "a:1:2", "[::1", "caf\xe9.x", "a%20.b", "\x00"],
)
def test_what_is_no_host_is_refused(text: str):
    with pytest.raises(Malformed):
        host_of(text)


@pytest.mark.parametrize(
    ("host", "services"),
    [
        ("cart.example", ("cart",)),
        ("Cart.Example", ("Cart", "cart")),
        ("CART.example.", ("CART", "cart")),
        ("users.example", ("user-service",)),
        ("USERS.example", ("user-service",)),
        ("Shop.Example", ("shop-front",)),
        ("shop.example.", ("shop-front",)),
        ("cart", ()),
        ("127.0.0.1", ()),
        ("[::1.2.3.4]", ()),
    ],
)
def test_a_host_has_no_case_and_a_service_has(host: str, services: tuple[str, ...]):
    assert services_of(host, {"users": "user-service", "shop.example": "shop-front"}) == services


@pytest.mark.parametrize("name", ["cart", "Cart_2.x-y", "...", "a" * 128])
def test_names_that_services_can_have(name: str):
    assert service_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "café", "a/b", "a%20b", "a" * 129, "a\n"])
def test_names_that_no_service_can_have_are_invalid(name: str):
    with pytest.raises(Invalid, match=r"^service: "):
        service_name(name)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://10.0.0.7:8080", Origin("http", "10.0.0.7", 8080, "")),
        ("HTTPS://Host/base/", Origin("https", "host", None, "/base")),
        ("http://[::1]:80/", Origin("http", "::1", 80, "")),
    ],
)
def test_an_instances_url_in_parts(url: str, origin: Origin):
    assert origin_of(url) == origin
    assert origin_of(origin.url) == origin


@pytest.mark.parametrize(
    "url",
    ["", "cart", "grpc://h:1", "http://", "http://u@h", "http://h:99999", "http://h:x", "http://h?x", "http://[x"],
)
def test_what_http_cannot_be_spoken_to_is_invalid(url: str):
    with pytest.raises(Invalid):
        origin_of(url)
