"""What a ``Discovery`` asks a registry, how often, and what it makes of bad answers. The registry is a small server."""

import contextlib
import http.server
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from harness.waiting import wait_for
from rollcall.cluster import discovery as discovery_module
from rollcall.cluster import following
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.following import ABSENT_MAX, NAMED_MAX
from rollcall.cluster.pool import NoInstances
from rollcall.replication.errors import Invalid


class Registry:
    """One node with one service, and any that is asked for; but nobody has one whose name begins with ``nobody``.
    What it answers can be changed; ``listed_at`` is when its list was asked for.

    Where its ``history`` has a name, it says 410 to who comes from another one, or is ahead.
    """

    def __init__(self) -> None:
        self.ids: tuple[str, ...] = ("a", "b")
        self.complete: bool = True
        self.index: int = 10
        self.history: str = ""
        self.policies: list[dict[str, Any]] = []
        self.silent = threading.Event()
        self.over = threading.Event()
        self.down: bool = False
        self.in_trouble: tuple[int, str] = (0, "")
        """The status of what is answered about the service ``first``."""
        self.poll_s: float = 0.2
        """So long a poll is parked at most."""
        self.listed_at: list[float] = []
        self.watched: list[list[str]] = []
        """The names that each poll was about."""
        self.news: list[dict[str, Any]] = []
        """Events that polls answer, once, if they watch it."""
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # who asked has gone meanwhile
                    registry._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url: str = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        if self.silent.is_set():
            self.over.wait(30.0)
            return
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        ahead = int(asked.get("min_index") or asked.get("index") or 0) > self.index
        if self.down:
            self._say(handler, 503, {"title": "no leader", "outcome": "not_done"})
        elif parts.path.endswith("/first/instances") and self.in_trouble[0]:
            status, code = self.in_trouble
            self._say(handler, status, {"title": "no", "code": code})
        elif self.history and (ahead or asked.get("history", self.history) != self.history):
            self._say(handler, 410, {"code": "Gone", "history": self.history, "applied_index": self.index})
        elif parts.path.endswith("/policies"):
            self._say(handler, 200, {"policies": self.policies})
        elif parts.path.endswith("/instances"):
            self.listed_at.append(time.monotonic())
            service = parts.path.split("/")[-2]
            listed = [] if service.startswith("nobody") else self._all()
            self._say(handler, 200, {"service": service, "env": "default", "index": self.index, "instances": listed})
        elif parts.path.endswith("/watch"):
            until = time.monotonic() + min(self.poll_s, float(asked["wait"].removesuffix("s")))
            names = parse_qs(parts.query).get("service", [])
            self.watched.append(names)
            history = self.history

            def quiet() -> bool:
                return history == self.history and not self._seen_by(names, int(asked["index"]))

            while quiet() and time.monotonic() < until and not self.over.wait(0.01):
                pass
            events = self._seen_by(names, int(asked["index"]))
            if events:
                self._say(handler, 200, {"index": self.index, "events": events})
            elif history != self.history:
                self._say(handler, 410, {"code": "Gone", "floor": self.index})
            else:
                self._say(handler, 304, None)
        else:
            self._say(handler, 404, {"title": "not found"})

    def _seen_by(self, names: list[str], index: int) -> list[dict[str, Any]]:
        seen = [each for each in self.news if not names or each["instance"]["service"] in names]
        return [each for each in seen if each["index"] > index]

    def comes(self, id: str) -> None:
        """Another instance of ``cart`` registers, of which a poll tells."""
        self.index += 1
        record = {**self._all()[0], "id": id}
        self.news.append({"index": self.index, "kind": "REGISTER", "instance": record})

    def _all(self) -> list[dict[str, Any]]:
        stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 1)
        indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 1)
        named = {"env": "default", "service": "cart", "address": "10.0.0.1", "port": 80}
        return [{**named, "id": id, **stamps, **indexes} for id in self.ids]

    def _say(self, handler: http.server.BaseHTTPRequestHandler, status: int, value: Any) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("X-Rollcall-Index", str(self.index))
        if self.history:
            handler.send_header("X-Rollcall-History", self.history)
        if self.complete:
            handler.send_header("X-Rollcall-Complete", "true")
        if body:
            handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def begin_anew(self, *ids: str) -> None:
        """Another registry at the same place, in which ``ids`` have registered already."""
        self.ids, self.index = ids, 3
        self.history = "b" * 16


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


def ids(discovery: Discovery) -> set[str]:
    return {instance.id for instance in discovery.instances("cart")}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rollcall discovery"]


def test_s3_5_jitter_a_thousand_clients_do_not_come_at_once():
    with Discovery(["http://127.0.0.1:1"]) as discovery:
        pauses = sorted(discovery._pause_s() for _ in range(1000))

    assert 30.0 <= pauses[0] < 30.5
    assert 34.5 < pauses[-1] <= 35.0
    assert max(after - before for before, after in itertools.pairwise(pauses)) < 0.2


def test_s3_5_jitter_everything_is_read_again_after_the_interval_and_up_to_the_spread_more(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(discovery_module, "REFRESH_S_SPREAD", 0.3)
    with Discovery([registry.url], refresh_s=0.5) as discovery:
        discovery.pick("cart")
        wait_for(lambda: len(registry.listed_at) >= 5, lambda: str(registry.listed_at))
    gaps = [after - before for before, after in itertools.pairwise(registry.listed_at)]

    assert all(0.5 <= gap < 2.5 for gap in gaps), gaps  # the end of the poll under way comes on top


@pytest.mark.parametrize("trouble", [(404, "NotFound"), (400, "Invalid"), (500, "RollcallError"), (504, "Unknown")])
def test_the_trouble_of_one_service_does_not_end_the_round_for_the_others(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, trouble: tuple[int, str]
):
    monkeypatch.setattr(discovery_module, "REFRESH_S_SPREAD", 0.0)
    with Discovery([registry.url], refresh_s=0.2) as discovery:
        discovery.pool("first")
        discovery.pool("cart")
        registry.in_trouble, registry.ids, registry.index = trouble, ("c",), 11

        wait_for(lambda: ids(discovery) == {"c"}, lambda: str(ids(discovery)))


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "caf\xe9", "a" * 129])
def test_what_no_service_can_be_called_is_refused_without_asking(registry: Registry, name: str):
    with Discovery([registry.url]) as discovery:
        for ask in (discovery.pick, discovery.pool, discovery.instances):
            with pytest.raises(Invalid, match="no service can be called"):
                ask(name)
        assert (discovery.pools(), registry.listed_at, threads()) == ((), [], [])


def test_where_threads_do_not_run_it_says_that_lists_grow_old(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """uWSGI without ``enable-threads``: the thread that follows changes runs only while a request is answered."""
    monkeypatch.setitem(sys.modules, "uwsgi", type("uwsgi", (), {"opt": {"http": b":80"}}))
    with Discovery([registry.url]) as discovery:
        assert ids(discovery) == {"a", "b"}
        discovery.pool("other")

    assert caplog.text.count("enable-threads") == 1

    monkeypatch.setitem(sys.modules, "uwsgi", type("uwsgi", (), {"opt": {"enable-threads": True}}))
    with Discovery([registry.url]) as discovery:
        assert ids(discovery) == {"a", "b"}
    assert caplog.text.count("enable-threads") == 1


def test_s3_3_when_reading_again_fails_the_list_stays_and_says_how_old_it_is(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(discovery_module, "REFRESH_S_SPREAD", 0.0)
    with Discovery([registry.url], refresh_s=0.2) as discovery:
        assert ids(discovery) == {"a", "b"}
        registry.down = True
        wait_for(lambda: (discovery.age_s("cart") or 0.0) > 1.0, lambda: f"age {discovery.age_s('cart')}")
        assert ids(discovery) == {"a", "b"}

        registry.down, registry.ids, registry.index = False, ("c",), 11
        wait_for(lambda: ids(discovery) == {"c"}, lambda: str(ids(discovery)))
        assert (discovery.age_s("cart") or 0.0) < 1.0


def test_an_empty_list_after_another_is_believed_only_of_a_node_that_is_up_to_date(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(discovery_module, "REFRESH_S_SPREAD", 0.0)
    with Discovery([registry.url], refresh_s=0.1) as discovery:
        assert ids(discovery) == {"a", "b"}
        registry.ids, registry.complete = (), False
        seen = len(registry.listed_at)
        wait_for(lambda: len(registry.listed_at) > seen + 2, lambda: str(registry.listed_at))
        assert ids(discovery) == {"a", "b"}

        registry.complete = True

        def empty() -> bool:
            try:
                return not ids(discovery)
            except NoInstances:
                return True

        wait_for(empty, lambda: str(ids(discovery)))


def test_s3_3_a_registry_that_never_answers_is_given_up_after_2_s_and_not_asked_for_each_pick(registry: Registry):
    registry.silent.set()
    with Discovery([registry.url]) as discovery:
        began = time.monotonic()
        with pytest.raises(NoInstances, match="no instance of 'cart'"):
            discovery.pick("cart")
        assert 1.9 < time.monotonic() - began < 4.0

        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(NoInstances):
                discovery.pick("cart")
        assert time.monotonic() - began < 0.5
        with pytest.raises(NoInstances):
            discovery.pick("users")  # another service: it is asked about once as well
        assert time.monotonic() - began < 4.0


def test_threads_that_ask_first_at_the_same_time_all_wait_for_the_one_question(registry: Registry):
    with Discovery([registry.url]) as discovery, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: discovery.pick("cart").instance.id, range(8)))

    assert set(found) == {"a", "b"}
    assert len(registry.listed_at) == 1


def test_a_registry_that_began_anew_is_read_at_once_and_lists_are_kept_until_services_are_back(registry: Registry):
    """A poll is parked for long, and the next reading of everything is half a minute away."""
    registry.history, registry.index, registry.poll_s = "a" * 16, 900, 30.0
    with Discovery([registry.url]) as discovery:

        def read_again() -> set[str]:
            discovery._read_again()
            discovery._line.interrupt()
            return ids(discovery)

        assert ids(discovery) == {"a", "b"}

        registry.begin_anew("c")
        wait_for(lambda: ids(discovery) == {"a", "b", "c"}, lambda: str(ids(discovery)))
        assert {instance.id for instance in discovery.instances("users")} == {"c"}, "one that it had not met before"

        # Who has not come back has the time until the next reading of everything would be due.
        read = len(registry.listed_at)
        wait_for(lambda: read_again() and len(registry.listed_at) > read + 2, "several readings")
        assert ids(discovery) == {"a", "b", "c"}
        for known in discovery._lists.known.values():
            assert 20.0 < known.kept_until - time.monotonic() <= 30.0 or known.pool.service == "users"
            known.kept_until = 0.0
        wait_for(lambda: read_again() == {"c"}, lambda: str(ids(discovery)))


def test_who_hears_of_another_history_by_a_first_question_reads_all_others_again(registry: Registry):
    """No poll tells: the one under way is parked at a node that has not heard of it."""
    registry.history, registry.index, registry.poll_s = "a" * 16, 900, 30.0
    with Discovery([registry.url], refresh_s=600.0) as discovery:
        assert ids(discovery) == {"a", "b"}
        wait_for(lambda: discovery._lists.known["cart"].index == 900, "the first list")
        discovery._client.saw(3, "b" * 16)
        registry.history, registry.index, registry.ids = "b" * 16, 3, ("a", "b", "c")
        registry.poll_s = 0.2

        assert len(discovery.instances("users")) == 3
        wait_for(lambda: ids(discovery) == {"a", "b", "c"}, lambda: str(ids(discovery)))
        assert {known.history for known in discovery._lists.known.values()} == {"b" * 16}


def test_policies_are_read_again_at_once_as_well(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discovery_module, "POLICIES_S", 600.0)
    registry.history, registry.index, registry.poll_s = "a" * 16, 900, 30.0
    with Discovery([registry.url], follow_policies=True) as discovery:
        assert ids(discovery) == {"a", "b"}
        policy = {"service": "cart", "env": "default", "percent": 1.0, "tags": ["v2"]}
        facts = {"name": "canary", "author": "", "reason": "", "changed_at": 1, "modify_index": 2}
        registry.policies = [{**policy, **facts}]

        registry.begin_anew("a", "b")
        wait_for(lambda: len(discovery.pool("cart").policies) == 1, "the policy to be in force")


def test_a_registry_that_does_not_say_its_policies_says_who_is_there_all_the_same(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    with Discovery([registry.url], follow_policies=True) as discovery:
        monkeypatch.setattr(registry, "policies", None)

        assert ids(discovery) == {"a", "b"}


@pytest.mark.parametrize("silent", [False, True])
def test_s2_s3_6_cancellation_the_background_ends_with_the_discovery_whatever_it_waits_for(
    registry: Registry, silent: bool
):
    discovery = Discovery([registry.url])
    discovery.pick("cart")
    wait_for(lambda: len(threads()) == 1, lambda: str(threads()))
    if silent:
        registry.silent.set()
        threading.Event().wait(0.5)  # so that a poll is under way that nobody will answer
    began = time.monotonic()
    discovery.close()

    assert threads() == []
    assert time.monotonic() - began < 3.0


def test_s3_6_cancellation_one_after_the_other_they_leave_nothing_behind(registry: Registry):
    before = threading.active_count()
    for _ in range(20):
        with Discovery([registry.url]) as discovery:
            discovery.pick("cart")

    wait_for(lambda: threads() == [], lambda: str(threads()))
    assert threading.active_count() <= before + 25  # the little server's own, one a connection


def ask_for_nobody(discovery: Discovery, names: int) -> None:
    for number in range(names):
        with pytest.raises(NoInstances, match="it has no instance that serves"):
            discovery.pick(f"nobody-{number}")


def test_of_few_names_the_watch_says_which_of_many_it_is_about_the_env(registry: Registry):
    with Discovery([registry.url]) as discovery:
        discovery.pool("cart")
        wait_for(lambda: ["cart"] in registry.watched, lambda: str(registry.watched))

        ask_for_nobody(discovery, NAMED_MAX)
        wait_for(lambda: registry.watched[-1] == [], lambda: f"{len(registry.watched[-1])} names")
        assert max(len(names) for names in registry.watched) <= NAMED_MAX


def test_names_that_nobody_has_leave_changes_of_the_others_followed_and_only_so_many_are_kept(registry: Registry):
    """The poll is parked for long and the next reading of everything is far: only the watch can tell."""
    registry.poll_s = 30.0
    with Discovery([registry.url], refresh_s=600.0) as discovery:
        assert ids(discovery) == {"a", "b"}
        ask_for_nobody(discovery, ABSENT_MAX + 100)
        registry.comes("c")

        wait_for(lambda: ids(discovery) == {"a", "b", "c"}, lambda: str(ids(discovery)))
        assert len(discovery.pools()) <= ABSENT_MAX + 1
        assert len(discovery._lists.pools) <= ABSENT_MAX + 1


def test_a_name_that_nobody_asks_for_is_forgotten_and_found_again_when_somebody_does(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(discovery_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(following, "ABSENT_S", 0.5)
    monkeypatch.setattr(following, "IDLE_S", 1.0)
    with Discovery([registry.url]) as discovery:
        discovery.pool("cart")
        ask_for_nobody(discovery, 3)
        called = discovery.pool("users")

        def left() -> set[str]:
            called.pick(time.monotonic())  # who calls by other means, and goes on calling
            return {pool.service for pool in discovery.pools()}

        wait_for(lambda: left() == {"users"}, lambda: str(left()))
        assert len(discovery.instances("cart")) == 2


def test_what_is_known_is_not_forgotten_while_no_node_answers(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discovery_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(following, "ABSENT_S", 0.2)
    with Discovery([registry.url], refresh_s=0.2) as discovery:
        assert ids(discovery) == {"a", "b"}
        registry.down = True
        wait_for(lambda: discovery._unheard, "that no node answers")
        monkeypatch.setattr(following, "IDLE_S", 0.2)
        with pytest.raises(NoInstances, match="no node of the registry answered"):
            discovery.pick("made-up")

        wait_for(lambda: "made-up" not in discovery._lists.known, "what nobody has to be forgotten")
        assert {pool.service for pool in discovery.pools()} == {"cart"}


def test_the_file_is_the_owners_alone_and_no_link_is_followed(registry: Registry, tmp_path: Path):
    file, victim = tmp_path / "lists.json", tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f"lists.json.{os.getpid()}").symlink_to(victim)
    with Discovery([registry.url], keep=file) as discovery:
        discovery.pool("cart")
        wait_for(file.exists, "the file")

    assert victim.read_text() == "mine"
    assert file.stat().st_mode & 0o777 == 0o600


def test_names_that_nobody_has_are_not_written_to_the_file(registry: Registry, tmp_path: Path):
    file = tmp_path / "lists.json"
    with Discovery([registry.url], keep=file) as discovery:
        discovery.pool("cart")
        wait_for(file.exists, "the file")
        written = file.stat().st_mtime_ns
        ask_for_nobody(discovery, 5)
    kept = json.loads(file.read_bytes())["instances"]

    assert set(kept) == {"cart"}
    assert file.stat().st_mtime_ns == written


def test_changes_are_followed_while_many_lists_are_read_again(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    """A round that takes long gives way to the watch: it does not wait for the round's end."""
    monkeypatch.setattr(discovery_module, "SLICE_S", 0.0001)
    with Discovery([registry.url], refresh_s=600.0) as discovery:
        assert ids(discovery) == {"a", "b"}
        for number in range(40):
            discovery.pool(f"users-{number}")
        read = len(registry.listed_at)
        discovery._read_again()
        discovery._line.interrupt()
        registry.comes("c")

        wait_for(lambda: ids(discovery) == {"a", "b", "c"}, lambda: str(ids(discovery)))
        assert len(registry.listed_at) < read + 41, "not all lists were read before the change was heard of"
