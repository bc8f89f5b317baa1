"""Services that find and call each other through a real cluster."""

import http.server
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from harness.cluster import Cluster, Measured, StartCluster, instance_path
from harness.served import Served
from harness.waiting import WAIT_S, wait_for
from rollcall.cluster import AsyncDiscovery
from rollcall.cluster.adapter import ServiceAdapter, ServiceSession
from rollcall.cluster.client import Client
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.lease import Lease
from rollcall.cluster.local.ports import free_port
from rollcall.cluster.pool import NoInstances

pytestmark = pytest.mark.integration


class Service:
    """An HTTP server of this process that says its name and the path it was asked for.

    ``/to/PLACE`` redirects to PLACE, ``/login`` sets a cookie.
    """

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.calls: int = 0
        self.status: int = 200
        self.closed: bool = False
        self.headers: dict[str, str] = {}
        """Of the last request, as is ``body``."""
        self.body: bytes = b""
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                if service.closed:
                    # The process is gone: kept connections break.
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                service.calls += 1
                service.headers = dict(self.headers.items())
                service.body = self._sent()
                body = f"{service.name} {self.path}".encode()
                place = unquote(self.path).partition("/to/")[2]
                self.send_response(302 if place else service.status)
                if place:
                    self.send_header("Location", place)
                if self.path == "/login":
                    self.send_header("Set-Cookie", "who=ada; Path=/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _sent(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts: list[bytes] = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def discovery(three: Cluster) -> Iterator[Discovery]:
    with Discovery(three.urls) as made:
        yield made
    assert not [thread for thread in threading.enumerate() if thread.name == "rollcall discovery"]


@pytest.fixture
def session(discovery: Discovery) -> Iterator[requests.Session]:
    with requests.Session() as made:
        adapter = ServiceAdapter(discovery)
        made.mount("service://", adapter)
        made.mount("http+service://", adapter)
        yield made


@pytest.fixture
def serve() -> Iterator[Callable[[str], Service]]:
    services: list[Service] = []

    def start(name: str) -> Service:
        services.append(Service(name))
        return services[-1]

    yield start
    for service in services:
        service.close()


def register(cluster: Cluster, service: str, id: str, port: int, address: str = "127.0.0.1") -> None:
    """And waits until every node has it: a first question goes to any of them."""
    index = cluster.register(0, service, id, address=address, port=port)
    cluster.wait_everywhere(lambda i: cluster.view(i)["applied_index"] >= index, f"{id} of {service}")


def ids(discovery: Discovery, service: str) -> set[str]:
    try:
        return {instance.id for instance in discovery.instances(service)}
    except NoInstances:
        return set()


def wait_ids(discovery: Discovery, service: str, wanted: set[str]) -> None:
    wait_for(lambda: ids(discovery, service) == wanted, lambda: f"{service}: {ids(discovery, service)}")


def test_s3_3_a_change_is_known_in_a_moment_and_nothing_is_asked_per_pick(three, discovery, measured):
    for id in ("a", "b"):
        register(three, "known", id, 1, "10.0.0.1")
    assert ids(discovery, "known") == {"a", "b"}
    assert {discovery.pick("known").instance.id for _ in range(10)} == {"a", "b"}

    began = time.monotonic()
    three.register(1, "known", "c", address="10.0.0.1", port=2)
    wait_ids(discovery, "known", {"a", "b", "c"})
    measured(f"a registration was known to a Discovery after {(time.monotonic() - began) * 1000:.0f} ms")
    three.ask(2, "DELETE", instance_path("known", "a"))
    wait_ids(discovery, "known", {"b", "c"})
    three.ask(2, "PUT", instance_path("known", "b") + "/status", json={"status": "out_of_service"})
    wait_ids(discovery, "known", {"c"})
    assert (discovery.age_s("known") or 99.0) < WAIT_S


def test_many_services_are_followed_by_one_connection_and_a_new_one_at_once(three, discovery):
    names = [f"many-{number}" for number in range(8)]
    for name in names:
        three.register(0, name, "a", address="10.0.0.1", port=1)
        wait_ids(discovery, name, {"a"})

    for name in names:
        three.register(1, name, "b", address="10.0.0.1", port=2)
        wait_ids(discovery, name, {"a", "b"})
    assert len([thread for thread in threading.enumerate() if thread.name == "rollcall discovery"]) == 1


def test_a_service_that_does_not_exist_yet_is_found_when_it_comes(three, discovery):
    with pytest.raises(NoInstances):
        discovery.instances("later")
    three.register(0, "later", "a", address="10.0.0.1", port=1)

    wait_ids(discovery, "later", {"a"})


def test_asyncio_programs_ask_in_the_same_words(three):
    import asyncio

    async def found() -> tuple[str, int]:
        async with AsyncDiscovery(Discovery(three.urls)) as discovery:
            return (await discovery.pick("async")).instance.id, len(await discovery.instances("async"))

    register(three, "async", "a", 1, "10.0.0.1")
    assert asyncio.run(found()) == ("a", 1)


def test_a_forked_child_follows_by_itself(three, discovery):
    register(three, "forked", "a", 1, "10.0.0.1")
    assert ids(discovery, "forked") == {"a"}
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from 3.12 on Python warns of forks in programs with threads: that is the test
        child = os.fork()
    if child == 0:
        try:
            before = ids(discovery, "forked")
            Client(three.urls).register("forked", id="b", address="10.0.0.1", port=2)
            wait_ids(discovery, "forked", {"a", "b"})
            os.write(write, f"{sorted(before)} {sorted(ids(discovery, 'forked'))}".encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(child, 0)

    assert said == "['a'] ['a', 'b']"
    wait_ids(discovery, "forked", {"a", "b"})


def test_s4_14_with_all_nodes_down_what_is_known_stays_in_use(tmp_path: Path, start_cluster: StartCluster, caplog):
    cluster = start_cluster(1)
    kept = tmp_path / "lists.json"
    cluster.register(0, "cart", "a", address="10.0.0.1", port=1)
    with Discovery(cluster.urls, keep=kept) as discovery:
        assert ids(discovery, "cart") == {"a"}
        cluster.register(0, "cart", "b", address="10.0.0.1", port=2)
        wait_ids(discovery, "cart", {"a", "b"})
        cluster.kill(0)
        time.sleep(0.5)
        assert ids(discovery, "cart") == {"a", "b"}
        assert (discovery.age_s("cart") or 0.0) >= 0.4

        # A program that starts now.
        with Discovery(cluster.urls, keep=kept, fallback={"billing": ["10.0.0.9:80"]}) as later:
            assert ids(later, "cart") == {"a", "b"}
            assert later.age_s("cart") is None
            assert later.pick("billing").url == "http://10.0.0.9:80"
            with pytest.raises(NoInstances):
                later.pick("users")
            cluster.start_node(0)
            cluster.wait_ready()
            cluster.register(0, "cart", "c", address="10.0.0.1", port=3)
            wait_ids(later, "cart", {"a", "b", "c"})
        wait_ids(discovery, "cart", {"a", "b", "c"})


def test_s2_requests_go_to_the_instances_by_name(three, discovery, session, serve):
    first, second = serve("first"), serve("second")
    with (
        Lease(three.urls, service="shop", address="127.0.0.1", port=first.port),
        Lease(three.urls, service="shop", address="127.0.0.1", port=second.port),
    ):
        wait_for(lambda: len(ids(discovery, "shop")) == 2, lambda: str(ids(discovery, "shop")))
        said = {session.get("service://shop/items?of=me").text for _ in range(10)}
        assert said == {"first /items?of=me", "second /items?of=me"}

        # One dies and says nothing: who may be repeated is served by the other.
        second.close()
        assert {session.get("service://shop/items").text for _ in range(20)} == {"first /items"}
        assert {session.post("service://shop/items", data="x").status_code for _ in range(20)} == {200}
    wait_ids(discovery, "shop", set())
    with pytest.raises(requests.ConnectionError, match="no instance of 'shop'"):
        session.get("service://shop/items")


def test_an_instance_that_cannot_is_passed_by_for_what_may_be_repeated(three, session, serve):
    good, bad = serve("good"), serve("bad")
    bad.status = 503
    for service in (good, bad):
        register(three, "mixed", service.name, service.port)

    assert {session.get("service://mixed/").text for _ in range(10)} == {"good /"}
    assert 503 in {session.post("service://mixed/").status_code for _ in range(10)} | {503 if bad.calls else 200}
    good.status = 503
    assert session.get("service://mixed/").status_code == 503


def test_parameters_are_part_of_the_url(three, discovery, serve):
    register(three, "asked", "a", serve("a").port)
    with ServiceSession(discovery) as session:
        session.params = {"all": "1"}
        for scheme in ("service", "http+service"):
            assert session.get(f"{scheme}://asked/x?y=1", params={"a": 1, "b": ["2", "ä &"]}).text == (
                "a /x?y=1&all=1&a=1&b=2&b=%C3%A4+%26"
            )
        assert session.get("service://asked").text == "a /?all=1"


def test_a_session_that_an_adapter_is_mounted_on_needs_a_scheme_that_requests_takes_for_http(three, session, serve):
    register(three, "asked-too", "a", serve("a").port)

    assert session.get("http+service://asked-too/x?y=1", params={"a": 1}).text == "a /x?y=1&a=1"
    assert session.get("service://asked-too/x?y=1").text == "a /x?y=1"
    assert session.get("http+service://asked-too").text == "a /"


def test_bodies_of_all_kinds_arrive(three, session, serve):
    service = serve("bodies")
    register(three, "bodies", "b", service.port)

    session.post("service://bodies/", json={"a": "ä"})
    assert (service.headers["Content-Type"], service.body) == ("application/json", b'{"a": "\\u00e4"}')
    session.put("service://bodies/", data={"a": "1", "b": "2"})
    assert (service.headers["Content-Type"], service.body) == ("application/x-www-form-urlencoded", b"a=1&b=2")
    session.post("service://bodies/", files={"file": ("name.txt", b"in the file")})
    assert service.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'filename="name.txt"' in service.body
    assert b"in the file" in service.body
    session.post("service://bodies/", data=(part for part in (b"one ", b"two")))
    assert service.body == b"one two"


def test_an_answer_may_be_read_as_it_comes(three, session):
    slow = Served("slow", drip_s=0.3)
    register(three, "dripping", "d", slow.port)
    try:
        began = time.monotonic()
        with session.get("service://dripping/", stream=True) as answer:
            arrived = [(time.monotonic() - began, part) for part in answer.iter_content(None)]
    finally:
        slow.close()

    assert b"".join(part for _, part in arrived) == b"one two three "
    assert arrived[0][0] < 0.25
    assert arrived[-1][0] > 0.5


def test_a_redirect_within_a_service_is_followed_at_any_instance_of_it(three, session, serve):
    services = {service.name: service for service in (serve("first"), serve("second"), serve("outside"))}
    for name in ("first", "second"):
        register(three, "moved", name, services[name].port)
    answers = [session.get("service://moved/to//items?of=me", auth=("ada", "secret")) for _ in range(4)]

    # Round and round: who redirects is not who answers.
    assert [answer.text.split()[1] for answer in answers] == ["/items?of=me"] * 4
    assert all(urlsplit(answer.url).port != urlsplit(answer.history[0].url).port for answer in answers)
    assert services[answers[-1].text.split()[0]].headers["Authorization"].startswith("Basic ")

    # An instance that writes its own address there means the same; another address is another place.
    own = f"http://127.0.0.1:{services['first'].port}/x"
    assert "second /x" in {session.get(f"service://moved/to/{own}").text for _ in range(4)}
    outside = f"http://127.0.0.1:{services['outside'].port}/y"
    assert session.get(f"service://moved/to/{outside}", auth=("ada", "secret")).text == "outside /y"
    assert "Authorization" not in services["outside"].headers


def test_a_cookie_is_for_all_instances_of_the_service_and_for_no_other(three, session, serve):
    services = [serve(name) for name in ("one", "two", "stranger")]
    for service in services:
        name = "strangers" if service.name == "stranger" else "cookies"
        register(three, name, service.name, service.port)
    session.get("service://cookies/login")
    for _ in range(2):
        session.get("service://cookies/x")
    session.get("service://strangers/x")

    assert [service.headers.get("Cookie") for service in services] == ["who=ada", "who=ada", None]


def test_an_answer_that_broke_off_is_asked_for_again_if_the_caller_had_none_of_it(three, session, serve):
    good, bad = serve("good"), Served("bad", breaks_off=True)
    for service in (good, bad):
        register(three, "breaking", service.name, service.port)
    try:
        assert {session.get("service://breaking/").text for _ in range(6)} == {"good /"}
        asked, broken = bad.calls, 0
        for _ in range(10):
            try:
                session.post("service://breaking/", data="x")
            except requests.RequestException:
                broken += 1
        # A POST may have been carried out: its caller is told.
        assert broken == bad.calls - asked
        assert good.calls == 6 + 10 - broken
    finally:
        bad.close()


def test_however_many_refuse_the_one_that_serves_is_found(three, session, serve):
    good, port = serve("good"), free_port(6)
    register(three, "mostly-dead", "good", good.port)
    for number in range(6):
        register(three, "mostly-dead", f"dead-{number}", port + number)

    assert {session.get("service://mostly-dead/").text for _ in range(20)} == {"good /"}
    assert {session.post("service://mostly-dead/", data="x").text for _ in range(20)} == {"good /"}


def test_calls_go_on_while_the_registrys_leader_is_killed(start_cluster: StartCluster, serve, measured: Measured):
    cluster = start_cluster(3)
    services = [serve("one"), serve("two")]
    session = requests.Session()
    with Discovery(cluster.urls) as discovery:
        session.mount("service://", ServiceAdapter(discovery))
        leases = [Lease(cluster.urls, service="shop", address="127.0.0.1", port=s.port).start() for s in services]
        wait_for(lambda: len(ids(discovery, "shop")) == 2, lambda: str(ids(discovery, "shop")))
        leader = cluster.wait_for_leader()
        slowest, calls = 0.0, 0
        until = time.monotonic() + 4.0
        killed = False
        while time.monotonic() < until:
            if not killed and time.monotonic() > until - 3.0:
                cluster.kill(leader)
                killed = True
            began = time.monotonic()
            assert session.get("service://shop/").status_code == 200
            slowest, calls = max(slowest, time.monotonic() - began), calls + 1
        third = Lease(cluster.urls, service="shop", address="127.0.0.1", port=1).start()
        wait_for(lambda: len(ids(discovery, "shop")) == 3, lambda: str(ids(discovery, "shop")))
        for lease in (*leases, third):
            lease.close()
        cluster.start_node(leader)
        cluster.wait_ready()
    measured(f"{calls} calls by name while the leader was killed: 0 failed, slowest {slowest * 1000:.0f} ms")
