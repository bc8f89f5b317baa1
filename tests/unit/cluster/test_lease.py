"""A lease that a service holds: registered, renewed, registered again, taken out. No socket is opened."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from harness.fakes import FakeSession, problem, response
from harness.waiting import wait_for
from rollcall.cluster import lease as lease_module
from rollcall.cluster.client import Client
from rollcall.cluster.lease import Lease, State, lifespan, wsgi
from rollcall.replication.errors import Invalid, NoLeader, NotFound, Superseded

SEEN_S = 5.0


class Registry:
    """One node, as a lease sees it. ``heartbeat_ms``: the pace that it asks for."""

    def __init__(self) -> None:
        self.there: dict[str, int] = {}
        """Who is registered, and the index of the registration."""
        self.index: int = 6
        self.asked: list[str] = []
        self.down: bool = False
        self.heartbeat_ms: int | None = 20
        self.session = FakeSession(self._answer)

    def _answer(self, method: str, url: str, options: dict[str, Any]) -> Any:
        if url.endswith("/cluster"):
            return problem(NotFound("nothing to learn here"))
        id = unquote(url.split("/instances/")[1].removesuffix("/heartbeat"))
        call = "HEARTBEAT" if url.endswith("/heartbeat") else method
        self.asked.append(call)
        if self.down:
            return problem(NoLeader("there is no leader"))
        if call == "PUT":
            return response(201, _record(id, self.register(id)), X_Rollcall_Index=self.index)
        if id not in self.there:
            return problem(NotFound(f"no instance {id}"))
        if call == "DELETE":
            if options["params"]["registration"] not in (None, self.there[id]):
                return problem(Superseded("registered again since"))
            del self.there[id]
            return response(200, {"id": id}, X_Rollcall_Index=self.index)
        return response(200, {"ttl_s": 30.0, "next_heartbeat_ms": self.heartbeat_ms})

    def register(self, id: str) -> int:
        self.index += 1
        self.there[id] = self.index
        return self.index

    def count(self, call: str) -> int:
        return self.asked.count(call)

    def client(self) -> Client:
        return Client(["http://a:1"], session=self.session, timeout_s=0.2)


def _record(id: str, index: int) -> dict[str, Any]:
    times = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 1)
    return {
        "env": "default",
        "service": "cart",
        "id": id,
        **times,
        **dict.fromkeys(("create_index", "reg_index", "modify_index"), index),
    }


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(lease_module, "RETRY_S_MIN", 0.01)
    return Registry()


@pytest.fixture
def made(registry: Registry) -> Iterator[list[Lease]]:
    leases: list[Lease] = []
    yield leases
    for lease in leases:
        lease.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease ")]


def lease_of(registry: Registry, **more: Any) -> Lease:
    fields = {"service": "cart", "address": "10.0.0.7", "port": 8080, "client": registry.client(), **more}
    return Lease(["http://a:1"], **fields)


def test_s1_4_it_is_registered_for_as_long_as_the_with_lasts(registry):
    with lease_of(registry) as lease:
        assert lease.registered
        assert list(registry.there) == ["cart-10.0.0.7:8080"]

    assert not registry.there
    assert lease.state == "closed"


def test_s4_10_it_renews_at_the_pace_that_the_registry_asks_for(registry):
    with lease_of(registry):
        wait_for(lambda: registry.count("HEARTBEAT") >= 5, lambda: str(registry.asked), SEEN_S)
        registry.heartbeat_ms = 60_000
        slow = registry.count("HEARTBEAT")
        wait_for(lambda: registry.count("HEARTBEAT") > slow, lambda: str(registry.asked), SEEN_S)
        now = registry.count("HEARTBEAT")
        threading.Event().wait(0.2)
        assert registry.count("HEARTBEAT") <= now + 1
    assert registry.count("PUT") == 1


def test_it_registers_again_when_the_registry_no_longer_knows_it(registry):
    with lease_of(registry):
        registry.there.clear()
        wait_for(lambda: registry.there, lambda: str(registry.asked), SEEN_S)

    assert registry.count("PUT") == 2


def test_s4_10_while_no_node_answers_the_host_goes_on_and_it_goes_on_trying(registry, caplog):
    registry.down = True
    told: list[State] = []
    with caplog.at_level(logging.WARNING, "rollcall"), lease_of(registry, start_s=0.1, on_change=told.append) as lease:
        wait_for(lambda: lease.state == "unreachable", lambda: lease.state, SEEN_S)
        registry.down = False
        wait_for(lambda: lease.registered, lambda: lease.state, SEEN_S)

    assert told == ["unreachable", "registered", "closed"]
    assert "could not be registered" in caplog.text


def test_the_old_process_does_not_take_the_new_one_out(registry):
    old = lease_of(registry).start()
    registry.register(old.id)  # by the process that takes its place, on another host
    old.close()

    assert list(registry.there) == [old.id]
    assert old.state == "closed"


def test_a_registry_that_goes_away_is_told_once_and_not_each_time(registry, caplog):
    with caplog.at_level(logging.WARNING, "rollcall"), lease_of(registry) as lease:
        registry.down = True
        wait_for(lambda: lease.state == "unreachable", lambda: lease.state, SEEN_S)
        asked = registry.count("HEARTBEAT")
        wait_for(lambda: registry.count("HEARTBEAT") > asked + 2, lambda: str(registry.asked), SEEN_S)
        registry.down = False

    assert caplog.text.count("could not be renewed") == 1


def test_a_callback_that_fails_is_logged_and_harms_nothing(registry, caplog):
    def failing(state: State) -> None:
        raise ValueError("of the host")

    with lease_of(registry, on_change=failing) as lease:
        assert lease.registered

    assert "the callback of the lease" in caplog.text


def test_what_no_registry_takes_is_refused_before_anything_is_started(registry):
    with pytest.raises(Invalid, match="port"):
        lease_of(registry, port=99999)
    with pytest.raises(Invalid, match="service"):
        lease_of(registry, service="no spaces")
    with pytest.raises(Invalid, match="nickname"):
        lease_of(registry, nickname="x")

    assert registry.asked == []


@pytest.mark.parametrize(
    ("check", "fields"),
    [
        ("http://10.0.0.7:8080/health", {"name": "http", "http": "http://10.0.0.7:8080/health"}),
        ("https://cart/health", {"name": "http", "http": "https://cart/health"}),
        ("tcp://10.0.0.7:8080", {"name": "tcp", "tcp": "10.0.0.7:8080"}),
        ("grpc://10.0.0.7:9000/cart", {"name": "grpc", "grpc": "10.0.0.7:9000/cart"}),
        ({"ttl_s": 30}, {"name": "check", "ttl_s": 30}),
    ],
)
def test_a_check_is_a_url_or_a_checks_fields(registry, check, fields):
    with lease_of(registry, check=check):
        sent = next(options["data"] for method, _, options in registry.session.asked if method == "PUT")

    assert msgspec.json.decode(sent)["checks"] == [fields]


@pytest.mark.parametrize("check", ["ftp://10.0.0.7", "10.0.0.7:80", "tcp://10.0.0.7", {"interval_s": 0}])
def test_a_check_that_cannot_be_is_refused_at_once(registry, check):
    with pytest.raises(Invalid, match="check"):
        lease_of(registry, check=check)


def test_an_end_that_nobody_hears_is_left_to_the_lease(registry, caplog, monkeypatch):
    monkeypatch.setattr(lease_module, "CLOSE_S", 0.2)
    with lease_of(registry):
        registry.down = True

    assert "its lease will run out" in caplog.text


def test_a_lease_that_was_closed_stays_closed(registry, made):
    lease = lease_of(registry)
    made.append(lease)
    lease.close()
    lease.start()

    assert registry.asked == []


def test_its_own_address_is_the_one_that_leads_to_the_registry(registry):
    lease = Lease(["http://127.0.0.1:1"], service="cart", port=80, client=registry.client())

    assert lease.id == "cart-127.0.0.1:80"


def test_a_wsgi_app_is_registered_and_is_the_app_that_it_was(registry, made):
    def app(environ: Any, start_response: Any) -> list[bytes]:
        return [b"hello"]

    made.append(lease_of(registry))

    assert wsgi(app, made[0])({}, None) == [b"hello"]
    assert made[0].registered


def test_an_asgi_app_is_registered_while_it_runs(registry):
    lease = lease_of(registry)

    async def run() -> None:
        async with lifespan(lease)(None):
            assert lease.registered

    asyncio.run(run())
    assert not registry.there


# -- processes

PROGRAM = """
import os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
from test_lease import Registry, lease_of
registry = Registry()
def ended(state):
    if state == "closed":
        print("closed", len(registry.there), flush=True)
"""


def ran(body: str, *, sent: int | None = None) -> tuple[int, list[str]]:
    """A program that holds a lease; its exit code and what it said. It prints "ready" where a signal is to come."""
    here = os.path.dirname(__file__)
    tests = os.path.join(here, "..", "..")
    program = PROGRAM.format(tests=os.path.abspath(tests), here=here) + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said: list[str] = []
    try:
        if sent is not None:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(sent)
        said = process.stdout.read().split("\n")
        return process.wait(20), [line for line in said if line]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_program_that_ends_takes_its_instance_out():
    assert ran("lease_of(registry, on_change=ended).start()") == (0, ["closed 0"])


def test_a_program_that_fails_takes_its_instance_out_too():
    code, said = ran("lease_of(registry, on_change=ended).start()\nsys.exit(3)")

    assert (code, said) == (3, ["closed 0"])


def test_sigterm_takes_it_out_and_ends_the_program_as_ever():
    body = """
        lease_of(registry, on_change=ended, at_sigterm=True).start()
        print("ready", flush=True)
        time.sleep(20)
        """

    assert ran(body, sent=signal.SIGTERM) == (-signal.SIGTERM, ["closed 0"])


def test_sigterm_then_does_what_the_host_wanted():
    body = """
        signal.signal(signal.SIGTERM, lambda *_: (print("the host's own", flush=True), sys.exit(7)))
        lease_of(registry, on_change=ended, at_sigterm=True).start()
        print("ready", flush=True)
        time.sleep(20)
        """

    assert ran(body, sent=signal.SIGTERM) == (7, ["closed 0", "the host's own"])


def test_unasked_it_stays_out_of_the_hosts_signals():
    body = """
        lease_of(registry, on_change=ended).start()
        print("ready", flush=True)
        time.sleep(20)
        """

    assert ran(body, sent=signal.SIGTERM) == (-signal.SIGTERM, [])


def test_a_forked_child_leaves_the_lease_to_its_parent():
    body = """
        lease = lease_of(registry, on_change=ended).start()
        child = os.fork()
        if child == 0:
            lease.close()
            print("child", lease.state, len(registry.there), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", lease.state, flush=True)
        """

    assert ran(body) == (0, ["child registered 1", "parent registered", "closed 0"])
