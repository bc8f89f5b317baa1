"""Whose requests are taken: programs', this node's own pages', and no other page's."""

import pytest
from harness.api import Api, FakeService, problem
from rollcall.node.api import ApiSettings, create_app
from rollcall.node.api.callers import KNOWN_MAX, Callers

INSTANCE = "/api/v1/services/orders/instances/o1"
S4 = {"serviceName": "orders", "host": "10.0.0.1", "port": 80}
WRITES = (
    ("PUT", INSTANCE, {}),
    ("PUT", f"{INSTANCE}/heartbeat", None),
    ("DELETE", INSTANCE, None),
    ("POST", "/api/v1/batch", {"operations": []}),
    ("POST", "/api/v1/cluster/transfer", None),
    ("PUT", "/api/v1/policies/orders", {}),
    ("POST", "/register", S4),
    ("PUT", "/heartbeat/orders~10.0.0.1:80", None),
    ("DELETE", "/deregister/orders~10.0.0.1:80", None),
    ("POST", "/api/register", {"env": "e", "appid": "a", "hostname": "h"}),
    ("POST", "/api/cancel", {"env": "e", "appid": "a", "hostname": "h"}),
    ("POST", "/nowhere", None),
)


FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://[broken"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "Cross-Site", "Origin": "http://localhost"},
)


@pytest.fixture
def node() -> Api:
    settings = ApiSettings(members=("n1.example.com", "10.0.0.1"), hosts=("Registry.Example.com",))
    return Api(create_app(FakeService(), settings))


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_pages_of_others_write_nothing_in_any_dialect(node: Api, method, path, body):
    node.register()
    before = node.get(INSTANCE).json
    for headers in FOREIGN:
        told = problem(node.client.open(path, method=method, json=body, headers=headers), 403, "Forbidden")
        assert "web page" in told["detail"]
    assert node.get(INSTANCE).json == before


@pytest.mark.parametrize(
    "origin", ["http://localhost", "https://registry.example.com", "http://REGISTRY.example.com:8443"]
)
def test_pages_of_the_nodes_own_address_write(node: Api, origin: str):
    for method, path, body in WRITES[:1] + WRITES[6:7]:
        answer = node.client.open(
            path, method=method, json=body, headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"}
        )
        assert answer.status_code == 201, answer.text


def test_a_page_writes_json_or_a_browser_must_ask_leave_first(node: Api):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"Origin": "http://localhost"}
        answer = node.client.put(INSTANCE, data=b"{}", content_type=kind, headers=headers)
        problem(answer, 400, "Invalid", field="Content-Type")
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"):
        assert node.client.put(INSTANCE, data=b"{}", content_type=kind, headers=headers).status_code in (200, 201)
    assert node.client.put(f"{INSTANCE}/heartbeat", headers=headers).status_code == 200, (
        "without a body there is no type"
    )


def test_programs_that_say_any_type_write_as_ever(node: Api):
    kind = "application/x-www-form-urlencoded"  # what curl -d says

    assert node.client.put(INSTANCE, data=b"{}", content_type=kind).status_code == 201
    assert node.client.post("/register", json=S4).status_code == 201


def test_pages_of_others_may_follow_links(node: Api):
    """What they are answered the browser does not show them, and there are no headers here that say otherwise."""
    answer = node.get("/api/v1/services", headers={"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 200
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]
    asked = node.client.open(INSTANCE, method="OPTIONS", headers={"Origin": "https://evil.example"})
    assert not [name for name, _ in asked.headers if name.lower().startswith("access-control")]


TAKEN = (
    "127.0.0.1:8500", "127.0.0.1", "[::1]:8500", "10.1.2.3:80", "localhost:8500", "node-1:8500", "n1.example.com:8500",
    "N1.EXAMPLE.COM.", "registry.example.com", "registry.example.com:1", "[fe80::1%eth0]:8500",
    "rollcall.default.svc:8500", "rollcall-0.rollcall.default.svc.cluster.local", "host.docker.internal:8500",
)  # fmt: skip
NOT_TAKEN = (
    "evil.example", "evil.example:8500", "127.0.0.1.evil.example", "n1.example.com.evil.example", "example.com",
    "cluster.local.evil.example", "n2.node.rollcall", "localhost.evil.example:8500", "n1.example.com@evil.example",
    "n1.example.com, evil.example", "a b", "[::1", "x/y",
)  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/api/v1/services", "/api/v1/services/orders/instances", "/v1/catalog/services", "/healthz"]
)
def test_the_names_of_a_node(node: Api, path: str):
    for host in TAKEN:
        assert node.get(path, headers={"Host": host}).status_code in (200, 404), host
    for host in NOT_TAKEN:
        told = problem(node.get(path, headers={"Host": host}), 403, "Forbidden")
        assert "hosts in [http]" in told["detail"]


def test_a_target_that_is_a_whole_url_names_its_host():
    callers = Callers(["n1.example.com"])
    environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": "n1.example.com", "PATH_INFO": "/"}
    callers.check({**environ, "REQUEST_URI": "http://n1.example.com/"})

    with pytest.raises(Exception, match=r"does not answer to the name 'evil\.example'"):
        callers.check({**environ, "REQUEST_URI": "http://evil.example/"})


def test_a_node_answers_to_its_own_name_in_dns():
    environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": "n1.node.rollcall:8500", "PATH_INFO": "/"}
    Callers(domain="rollcall").check(environ)

    with pytest.raises(Exception, match="does not answer to the name"):
        Callers(domain="rollcall").check({**environ, "HTTP_HOST": "evilrollcall.example"})
    with pytest.raises(Exception, match="does not answer to the name"):
        Callers().check(environ)


def test_what_is_remembered_of_hosts_is_bounded():
    callers = Callers()
    for number in range(3 * KNOWN_MAX):
        callers.check({"REQUEST_METHOD": "GET", "HTTP_HOST": f"h{number}", "PATH_INFO": "/"})
    callers.check({"REQUEST_METHOD": "GET", "HTTP_HOST": "h" * 60_000, "PATH_INFO": "/"})

    assert len(callers._known) <= KNOWN_MAX
    assert max(map(len, callers._known)) < 100
    assert callers.ordinary({"HTTP_HOST": f"h{3 * KNOWN_MAX - 1}"})
