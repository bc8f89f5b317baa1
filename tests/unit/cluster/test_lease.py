"""A lease that a service holds: registered, renewed, registered again, taken out. No socket is opened."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from harness.fakes import FakeSession, problem, response
from harness.waiting import wait_for
from rollcall.cluster import lease as lease_module
from rollcall.cluster import pacing
from rollcall.cluster.client import Client
from rollcall.cluster.frameworks import lifespan, wsgi
from rollcall.cluster.interruptible import Interrupted
from rollcall.cluster.lease import Lease, State
from rollcall.replication.errors import Invalid, KeyReused, NoLeader, NotFound, Overloaded, Superseded, Unknown


class Line:
    """The connection on which a lease watches its instance."""

    def __init__(self, registry: "Registry") -> None:
        self._registry = registry
        self._wanted = False

    def request(self, method: str, url: str, **options: Any) -> Any:
        registry, index = self._registry, options["params"]["index"]
        registry.asked.append("WATCH")
        if registry.refuses_watchers is not None:
            return problem(registry.refuses_watchers)
        with registry.happened:
            news = lambda: [event for event in registry.events if event["index"] > index]  # noqa: E731
            wait_s = int(options["params"]["wait"].removesuffix("ms")) / 1000
            registry.happened.wait_for(lambda: news() or self._wanted, wait_s)
            if self._wanted:
                raise Interrupted
            found = news()
        if not found:
            return response(304, X_Rollcall_Index=index)
        return response(200, {"index": found[-1]["index"], "events": found}, X_Rollcall_Index=found[-1]["index"])

    def interrupt(self) -> None:
        with self._registry.happened:
            self._wanted = True
            self._registry.happened.notify_all()

    def close(self) -> None:
        pass


class Registry:
    """One node, as a lease sees it. ``heartbeat_ms``: the pace that it asks for."""

    def __init__(self) -> None:
        self.there: dict[str, int] = {}
        """Who is registered, and the index of the registration."""
        self.index: int = 6
        self.asked: list[str] = []
        self.down: bool = False
        self.mute: bool = False
        """It does what it is asked to, and says that nobody knows."""
        self.keys: dict[str, tuple[str, int]] = {}
        self.heartbeat_ms: int | None = 20
        self.session = FakeSession(self._answer)
        self.events: list[dict[str, Any]] = []
        self.refuses_watchers: Exception | None = None
        self.happened = threading.Condition()
        lease_module.Interruptible = lambda: Line(self)  # type: ignore[misc, assignment]

    def _answer(self, method: str, url: str, options: dict[str, Any]) -> Any:
        if url.endswith("/cluster"):
            return problem(NotFound("nothing to learn here"))
        id = unquote(url.split("/instances/")[1].removesuffix("/heartbeat"))
        call = "HEARTBEAT" if url.endswith("/heartbeat") else method
        self.asked.append(call)
        if self.down:
            return problem(NoLeader("there is no leader"))
        key = options["headers"].get("Idempotency-Key", "") if options.get("headers") else ""
        if key in self.keys and self.keys[key][0] != call:
            return problem(KeyReused("used for another write", index=self.keys[key][1]))
        if self.mute:
            if call == "PUT" and key not in self.keys:
                self.keys[key] = (call, self.register(id))
            return problem(Unknown("nobody knows"))
        if call == "PUT":
            return response(201, _record(id, self.register(id)), X_Rollcall_Index=self.index)
        if id not in self.there:
            return problem(NotFound(f"no instance {id}"))
        if call == "DELETE":
            if options["params"]["registration"] not in (None, self.there[id]):
                return problem(Superseded("registered again since"))
            self.remove(id, "DEREGISTER")
            return response(200, {"id": id}, X_Rollcall_Index=self.index)
        return response(200, {"ttl_s": 30.0, "next_heartbeat_ms": self.heartbeat_ms})

    def register(self, id: str) -> int:
        self.index += 1
        self.there[id] = self.index
        return self.index

    def remove(self, id: str, kind: str) -> None:
        with self.happened:
            self.index += 1
            self.events.append({"kind": kind, "index": self.index, "instance": _record(id, self.there.pop(id))})
            self.happened.notify_all()

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
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    monkeypatch.setattr(lease_module, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(pacing, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(lease_module, "Interruptible", lease_module.Interruptible)  # put back afterwards
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
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
        wait_for(lambda: registry.count("HEARTBEAT") >= 5, lambda: str(registry.asked))
        registry.heartbeat_ms = 60_000
        slow = registry.count("HEARTBEAT")
        wait_for(lambda: registry.count("HEARTBEAT") > slow, lambda: str(registry.asked))
        now = registry.count("HEARTBEAT")
        threading.Event().wait(0.2)
        assert registry.count("HEARTBEAT") <= now + 1
    assert registry.count("PUT") == 1


def test_it_registers_again_when_the_registry_no_longer_knows_it(registry):
    with lease_of(registry):
        registry.there.clear()
        wait_for(lambda: registry.there, lambda: str(registry.asked))

    assert registry.count("PUT") == 2


def test_s4_10_while_no_node_answers_the_host_goes_on_and_it_goes_on_trying(registry, caplog):
    registry.down = True
    told: list[State] = []
    with caplog.at_level(logging.WARNING, "rollcall"), lease_of(registry, start_s=0.1, on_change=told.append) as lease:
        wait_for(lambda: lease.state == "unreachable", lambda: lease.state)
        registry.down = False
        wait_for(lambda: lease.registered, lambda: lease.state)

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
        wait_for(lambda: lease.state == "unreachable", lambda: lease.state)
        asked = registry.count("HEARTBEAT")
        wait_for(lambda: registry.count("HEARTBEAT") > asked + 2, lambda: str(registry.asked))
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

    wrapped = wsgi(app, made[0])
    assert made[0].state == "new"
    assert registry.asked == [], "who imports an app serves nobody yet"

    assert wrapped({}, None) == [b"hello"]
    wait_for(lambda: made[0].registered, lambda: made[0].state)


def test_a_wsgi_app_is_registered_as_soon_as_its_process_listens_without_a_request(registry, made):
    """Who is found through the registry only would never get a first request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        made.append(lease_of(registry, port=port))
        wsgi(lambda *_: [], made[0])
        wait_for(lambda: made[0].registered, lambda: made[0].state)


def test_so_it_is_when_it_begins_to_listen_later(registry, made):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    made.append(lease_of(registry, port=port))
    wsgi(lambda *_: [], made[0])
    assert made[0].state == "new"
    with socket.create_server(("127.0.0.1", port)):
        wait_for(lambda: made[0].registered, lambda: made[0].state)


def test_an_asgi_app_is_registered_while_it_runs(registry):
    lease = lease_of(registry)

    async def run() -> None:
        async with lifespan(lease)(None):
            assert lease.registered

    asyncio.run(run())
    assert not registry.there


@pytest.mark.parametrize("kind", ["DEREGISTER", "EVICT"])
def test_who_is_removed_by_somebody_else_hears_of_it_and_is_back_at_once(registry, kind):
    """And not with the next heartbeat, which is an hour away."""
    registry.heartbeat_ms = 3_600_000
    with lease_of(registry) as lease:
        wait_for(lambda: "WATCH" in registry.asked, lambda: str(registry.asked))
        registry.remove(lease.id, kind)
        wait_for(lambda: registry.there, lambda: str(registry.asked))

    assert registry.count("PUT") == 2


def test_a_newer_registration_of_the_same_id_is_left_alone(registry):
    registry.heartbeat_ms = 3_600_000
    with lease_of(registry) as lease:
        wait_for(lambda: "WATCH" in registry.asked, lambda: str(registry.asked))
        with registry.happened:
            index = registry.register(lease.id)
            registry.events.append({"kind": "UPDATE", "index": index, "instance": _record(lease.id, index)})
            registry.happened.notify_all()
        wait_for(lambda: registry.count("WATCH") >= 2, lambda: str(registry.asked))

    assert registry.count("PUT") == 1
    assert list(registry.there) == [lease.id]


def test_a_node_without_a_place_for_its_watch_is_not_asked_again_soon_and_heartbeats_go_on(registry):
    registry.refuses_watchers = Overloaded("all 1 places are taken")
    registry.heartbeat_ms = 150
    with lease_of(registry):
        wait_for(lambda: registry.count("HEARTBEAT") >= 4, lambda: str(registry.asked))
        assert registry.count("WATCH") == 1


def test_two_who_remove_each_other_do_not_do_so_as_fast_as_they_can():
    returns = pacing.Returns()
    pauses = [returns.pause_s(now) for now in range(10)]

    assert pauses[0] == 0.0
    assert pauses[1:] == sorted(pauses[1:]) or max(pauses) > 2.0
    assert 5.0 <= pauses[9] <= 10.0
    assert returns.pause_s(1000.0) == 0.0


def test_the_end_does_not_wait_for_the_watch(registry):
    registry.heartbeat_ms = 3_600_000
    lease = lease_of(registry).start()
    wait_for(lambda: "WATCH" in registry.asked, lambda: str(registry.asked))
    began = time.monotonic()
    lease.close()

    assert lease.state == "closed"
    assert time.monotonic() - began < lease_module.CLOSE_S
    assert not registry.there


def test_of_two_that_hold_one_instance_the_last_one_takes_it_out(registry):
    first, second = lease_of(registry).start(), lease_of(registry).start()
    first.close()
    assert list(registry.there) == [first.id]

    second.close()
    assert not registry.there


def test_the_last_one_takes_it_out_also_where_another_registered_it_last(registry):
    first, second = lease_of(registry).start(), lease_of(registry).start()
    second.close()
    first.close()

    assert not registry.there


def test_sigterm_cannot_be_asked_for_in_another_thread_and_the_app_runs_all_the_same(registry, made, caplog):
    made.append(lease_of(registry, at_sigterm=True))
    with caplog.at_level(logging.WARNING, "rollcall"):
        asyncio.run(asyncio.to_thread(made[0].start))

    assert made[0].registered
    assert "main thread" in caplog.text


def test_without_threads_nothing_is_begun_and_it_is_said_once(registry, made, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "uwsgi", type("uwsgi", (), {"opt": {"http": b":80"}}))
    made.append(lease_of(registry))
    with caplog.at_level(logging.WARNING, "rollcall"):
        made[0].start()
        made[0].start()

    assert registry.asked == []
    assert caplog.text.count("enable-threads") == 1


# -- processes

PROGRAM = """
import os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
from rollcall.cluster import wsgi
from test_lease import Registry, lease_of
import tempfile
tempfile.tempdir = tempfile.mkdtemp()
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


def test_a_forked_child_does_at_sigterm_what_the_host_wanted_whether_it_starts_the_lease_or_not():
    """What SIGTERM did before is not forgotten by the fork, nor taken for itself."""
    for starts in ("lease.start()", "pass"):
        body = f"""
            signal.signal(signal.SIGTERM, lambda *_: (print("the host's own", flush=True), os._exit(7)))
            lease = lease_of(registry, at_sigterm=True).start()
            child = os.fork()
            if not child:
                {starts}
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(20)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            os._exit(0)
            """

        assert ran(body) == (0, ["the host's own", "7"]), starts


def test_a_wsgi_app_that_serves_takes_its_instance_out_at_sigterm():
    """It registers in a thread, where Python lets nobody take signals: that was done when the app was made."""
    body = """
        lease = lease_of(registry, on_change=ended, at_sigterm=True)
        app = wsgi(lambda environ, start_response: [], lease)
        lease_thread = threading.Thread(target=app, args=({}, None))
        lease_thread.start()
        lease_thread.join()
        while not lease.registered:
            time.sleep(0.01)
        print("ready", flush=True)
        time.sleep(20)
        """

    assert ran(body, sent=signal.SIGTERM) == (-signal.SIGTERM, ["closed 0"])


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

    assert ran(body) == (0, ["child new 1", "parent registered", "closed 0"])


def test_a_child_that_starts_the_same_lease_shares_the_instance_with_its_parent():
    body = """
        lease = lease_of(registry).start()
        child = os.fork()
        if child == 0:
            print("child", lease.state, lease.start().state, flush=True)
            lease.close()
            print("child", lease.state, len(registry.there), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", lease.state, len(registry.there), flush=True)
        """

    assert ran(body) == (0, ["child new registered", "child closed 1", "parent registered 1"])


def test_a_node_whose_name_nobody_knows_is_like_one_that_does_not_answer():
    lease = Lease("http://no-such-node.invalid:8500,http://127.0.0.1:8500", service="cart", port=80)

    assert lease.id == "cart-127.0.0.1:80"
    assert Lease(["no-such-node.invalid:8500", "127.0.0.1:8500"], service="cart", port=80).id == lease.id
    with pytest.raises(Invalid, match=r"address: give one.*no-such-node"):
        Lease("http://no-such-node.invalid:8500", service="cart", port=80)


@pytest.mark.parametrize("again", [False, True])
def test_a_registration_whose_outcome_is_unknown_is_found_and_taken_out_at_the_end(registry: Registry, again: bool):
    """The steps of the thread, one by one."""
    registry.mute = True
    lease = Lease("http://a:1", service="cart", id="c", address="10.0.0.1", client=registry.client())
    with pytest.raises(Unknown):
        lease._register()
    assert "c" in registry.there
    if again:
        registry.register("c")  # somebody else, since
    registry.mute = False
    lease._leave()

    assert (list(registry.there) == ["c"]) is again
