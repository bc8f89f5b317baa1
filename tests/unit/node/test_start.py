"""The order in which a node starts and ends: clients come in last, and leases are handed on before it goes."""

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollcall.node import __main__ as main
from rollcall.node.__main__ import FIRST_ENTRY, Node
from rollcall.node.api import ApiSettings
from rollcall.node.settings import Settings


class Parts:
    """What a node is made of, and in which order it was started. ``caught_up_after``: looks until a leader was met."""

    def __init__(self, *, commit_index: int, caught_up_after: int, taken: str = "") -> None:
        self.taken: str = taken
        self.done: list[str] = []
        self.looks: int = 0
        self._commit_index: int = commit_index
        self._caught_up_after: int = caught_up_after

    def status(self) -> SimpleNamespace:
        self.looks += 1
        caught_up = self.looks > self._caught_up_after
        if caught_up:
            self.done.append("caught up")
        return SimpleNamespace(commit_index=self._commit_index, caught_up=caught_up)

    def wait_applied(self, index: int, deadline: float) -> bool:
        self.done.append(f"applied {index}")
        return True

    def bind(self, name: str) -> None:
        if name == self.taken:
            raise OSError(f"the address of {name} is in use")
        self.done.append(f"{name} bound")

    def part(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: self.done.append(name))

    def node(self) -> Node:
        node: Any = object.__new__(Node)
        node.engine = SimpleNamespace(
            start=lambda: self.done.append("engine"), status=self.status, wait_applied=self.wait_applied
        )
        node.duties, node.checker = self.part("duties"), self.part("checker")
        node._desk = self.part("desk")
        node.server, node.dns = self.part("clients"), self.part("dns")
        for served, name in ((node.server, "clients"), (node.dns, "dns")):
            served.bind = partial(self.bind, name)
        return node


def test_large_answers_wait_as_long_as_all_else_for_which_the_setting_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ApiSettings] = []
    create = main.create_app
    monkeypatch.setattr(
        main, "create_app", lambda service, api, *rest: given.append(api) or create(service, api, *rest)
    )
    node = Node(Settings(node_id="n1", data_dir=tmp_path, write_timeout_s=7.5))
    node.close()

    assert [each.write_timeout_s for each in given] == [7.5]


def test_clients_come_in_when_this_node_has_caught_up_with_a_leader() -> None:
    """After a power cut its log alone does not tell how much was agreed on."""
    parts = Parts(commit_index=900, caught_up_after=5)

    parts.node().start()

    assert parts.done[2:] == ["desk", "engine", "applied 900", "caught up", "duties", "checker", "clients", "dns"]


def test_a_node_that_finds_no_leader_serves_what_it_has_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "MEET_S", 0.05)
    parts = Parts(commit_index=900, caught_up_after=10**9)

    parts.node().start()

    assert parts.looks > 2
    assert parts.done[-2:] == ["clients", "dns"]


def test_a_new_node_has_nothing_to_wait_for() -> None:
    parts = Parts(commit_index=FIRST_ENTRY, caught_up_after=10**9)

    parts.node().start()

    assert parts.looks == 1
    assert "clients" in parts.done


@pytest.mark.parametrize("taken", ["clients", "dns"])
def test_a_node_whose_port_is_taken_takes_no_part(taken: str) -> None:
    """It could lead, or vote, for the seconds that it takes to find out otherwise."""
    parts = Parts(commit_index=900, caught_up_after=0, taken=taken)

    with pytest.raises(OSError, match="in use"):
        parts.node().start()

    assert "engine" not in parts.done


class Ending:
    """A node that leads and is told to stop. ``done``: in which order what was asked of its parts."""

    def __init__(self, *, handed_over: bool) -> None:
        self.done: list[str] = []
        self.waited_s: float = 0.0
        self._handed_over: bool = handed_over

    def _hand_over(self, deadline: float) -> bool:
        self.done.append("handed over")
        return self._handed_over

    def _settle(self, deadline: float) -> bool:
        self.done.append("leases handed on")
        self.waited_s = deadline - time.monotonic()
        return False

    def node(self, drain_timeout_s: float) -> Node:
        node: Any = object.__new__(Node)
        node._settings = SimpleNamespace(drain_timeout_s=drain_timeout_s, members=["n1", "n2", "n3"])
        nothing_under_way = SimpleNamespace(by_kind=lambda: {"write": 0, "renewal": 0})
        node.service = SimpleNamespace(drain=lambda: None, budget=nothing_under_way)
        node.engine = SimpleNamespace(
            drain=lambda: None, status=lambda: SimpleNamespace(role="leader"), transfer_leadership=self._hand_over
        )
        node.duties, node.checker = SimpleNamespace(settle=self._settle), SimpleNamespace(stop=lambda: None)
        node.dns = None
        node.server = SimpleNamespace(stop=lambda timeout_s: self.done.append("clients"))
        return node


def test_a_leader_that_ends_waits_until_the_next_knows_how_leases_stood_and_never_for_long() -> None:
    patient, hasty = Ending(handed_over=True), Ending(handed_over=True)

    patient.node(60.0).drain()
    hasty.node(1.0).drain()

    assert patient.done == ["handed over", "leases handed on", "clients"]
    assert patient.waited_s <= main.SETTLE_S
    assert hasty.waited_s <= 0.5


def test_a_leader_that_nobody_follows_on_has_nobody_to_tell() -> None:
    ending = Ending(handed_over=False)

    ending.node(60.0).drain()

    assert ending.done == ["handed over", "clients"]
