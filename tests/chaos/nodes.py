"""A cluster of real nodes that can be broken: processes, the links between them, their disks and their clocks.

``ChaosCluster`` is the product's own launcher with four things in between: every
link between two nodes goes through a proxy (or a network of namespaces) that can
hold, slow or break it; what a node has not synced is known, so that its power
can be cut; its disk can be small; its wall clock can be set. Nodes go by their
names, ``node-0`` and so on.

Several faults can be in force at once. What they do to links adds up (``impose``);
a node's process and disk belong to one fault at a time (``claim``).
"""

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from harness.cluster import ask
from rollcall.cluster.local.local import LocalCluster, flags
from rollcall.cluster.local.ports import HOST, RAFT_OFFSET, free_port
from rollcall.cluster.local.processes import LocalError
from rollcall.replication.commands import LEVEL

from chaos import full_disk, spaces, volatile, wallclock
from chaos.links import Conditions, Network, Pair, all_pairs, joined
from chaos.proxy import TESTS, Link, Proxies

NetworkKind = Literal["proxy", "namespaces", "direct"]

LINK_OFFSET = 2000
LINKS_PER_NODE = 8
STARTS_MAX = 5
KILLED_S = 10.0
LEVEL_S = 30.0
GROWTH_BYTES = 128 * 1024
"""A node on a small disk reserves room for its log in such steps, so that it feels soon when the disk is full."""


class ChaosCluster:
    """Three or five nodes to break. ``start`` before use, ``stop`` after; a context manager does both.

    ``base_port`` 0 looks for free ports. ``network`` "direct" connects the nodes
    without anything in between (no link faults). ``volatile`` makes power cuts possible,
    ``small_disks`` full disks (root only), ``clocks`` wall-clock jumps (needs
    libfaketime); what is asked for and cannot be had here is in ``missing``, by
    what and why. ``forgetful`` disks lie about syncs. ``settings`` go to every node.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        base_port: int = 0,
        *,
        network: NetworkKind = "proxy",
        volatile: bool = True,
        small_disks: bool = False,
        clocks: bool = False,
        forgetful: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.names: tuple[str, ...] = tuple(f"node-{i}" for i in range(nodes))
        self.directory: Path = directory.absolute()
        self.network: NetworkKind = network
        self.volatile: bool = volatile
        self.missing: dict[str, str] = {}
        if small_disks and full_disk.reason():
            self.missing["small disks"] = full_disk.reason()
        if clocks and wallclock.reason():
            self.missing["clocks"] = wallclock.reason()
        self.small_disks: bool = small_disks and "small disks" not in self.missing
        self.clocks: bool = clocks and "clocks" not in self.missing
        self._forgetful: bool = forgetful
        self._base_port: int = base_port
        self._settings: dict[str, object] = dict(settings or {})
        self._nodes: _Nodes | None = None
        self._links: Network | None = None
        self._layers: list[Conditions] = []
        self._claimed: set[str] = set()
        self._ending: set[str] = set()
        self._lock = threading.RLock()

    # Life

    def start(self) -> None:
        """Starts everything and waits until all nodes are ready. On failure nothing is left running."""
        assert self._nodes is None, "a cluster starts once"
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            if self.small_disks:
                for name in self.names:
                    full_disk.mount(self.data_dir(name))
            self._start()
            self._wait_for_level()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        if self.network == "namespaces":
            if spaces.reason():
                raise LocalError(f"{spaces.reason()}: use --network proxy")
            namespaces = spaces.Spaces(self.names)
            self._links = namespaces
            namespaces.start()
            self._nodes = _Nodes(self, self._base_port or free_port(len(self.names)), namespaces)
            self._nodes.start()
            return
        for attempt in range(1, STARTS_MAX + 1):
            port = self._base_port or free_port(len(self.names))
            try:
                if self.network == "proxy":
                    proxies = Proxies(_links(self.names, port))
                    proxies.start()
                    self._links = proxies
                self._nodes = _Nodes(self, port, None)
                self._nodes.start()
                return
            except (LocalError, OSError) as error:
                # Another program took a port between the look and the start.
                taken = any(part in str(error) for part in ("is taken", "in use"))
                if self._base_port or not taken or attempt == STARTS_MAX:
                    raise
                if self._links is not None:
                    self._links.stop()
                    self._links = None

    def stop(self) -> None:
        """Ends all nodes within 5 s, the proxies, namespaces and mounts; the directory stays, with its logs."""
        with contextlib.ExitStack() as steps:
            if self.small_disks:
                for name in self.names:
                    steps.callback(full_disk.unmount, self.data_dir(name))
            if self._links is not None:
                steps.callback(self._links.stop)
            if self._nodes is not None:
                self._ending.update(self.names)
                steps.callback(self._nodes.stop)

    def __enter__(self) -> "ChaosCluster":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # Looking

    def urls(self) -> dict[str, str]:
        """Where each node serves HTTP. The same for the cluster's life; not through the proxies."""
        return dict(zip(self.names, self._local.urls, strict=True))

    def raft_address(self, node: str) -> tuple[str, int]:
        """Where a node listens for its peers."""
        host, _, port = self._local.raft(self._number(node)).rpartition(":")
        return host, int(port)

    def leader(self) -> str | None:
        """The node that leads, by the word of the nodes that answer (the highest term wins). Asks over HTTP."""
        leader = self._local.leader()
        return None if leader is None else self.names[leader]

    def _wait_for_level(self) -> None:
        """What an operator's override outlives depends on the feature level, which the leader raises in its first
        moments: the verdict knows one rule, so clients begin after that."""
        wanted = dict.fromkeys(self.names, LEVEL)
        found: dict[str, object] = {}
        until = time.monotonic() + LEVEL_S
        while found != wanted:
            if time.monotonic() > until:
                raise LocalError(f"the nodes did not reach feature level {LEVEL} within {LEVEL_S:g} s: {found}")
            found = {name: self._view(name).get("level") for name in self.names}
            time.sleep(0.05)

    def _view(self, node: str) -> dict[str, Any]:
        """What the node says of the cluster; nothing if it does not answer."""
        try:
            return ask(self.urls()[node], "GET", "/api/v1/cluster", timeout_s=2.0).json
        except (OSError, HTTPException):
            return {}

    def standing(self, node: str) -> str:
        """ "member", "new" or "rejoining", by the node's own word; empty if it does not answer."""
        return self._view(node).get("standing", "")

    def wait_for_leader(self, timeout_s: float = 15.0) -> str:
        return self.names[self._local.wait_for_leader(timeout_s)]

    def alive(self, node: str) -> bool:
        """Whether its process runs and is not paused."""
        return self.runs(node) and not self._local.is_paused(self._number(node))

    def runs(self, node: str) -> bool:
        """Whether its process runs, paused or not."""
        return self._local.pid(self._number(node)) is not None

    def log(self, node: str) -> str:
        """All that the node wrote to its output, over all its lives."""
        path = self.directory / node / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def crashed(self) -> dict[str, int]:
        """Nodes whose process ended although nobody ended it, and the exit codes."""
        with self._lock:
            ended = {self.names[i]: code for i, code in self._local.exited().items()}
            return {name: code for name, code in ended.items() if name not in self._ending}

    def wait_ready(self, timeout_s: float = 30.0, names: Sequence[str] | None = None) -> None:
        """Waits until these nodes (all) say that they are ready; ``LocalError`` says which is not, and why."""
        self._local.wait_ready(timeout_s, [self._number(name) for name in names or self.names])

    def data_dir(self, node: str) -> Path:
        return self.directory / node / "data"

    def durable_dir(self, node: str) -> Path:
        """What of ``data_dir`` is on stable storage (``volatile``)."""
        return self.directory / node / "durable"

    # Who may be struck

    def claim(self, chance: random.Random, count: int, *, leader_first: float = 0.0) -> tuple[str, ...]:
        """Takes nodes whose process and disk no other fault has; fewer than ``count`` if there are no more.

        With probability ``leader_first`` the leader is among them. ``release`` gives them back.
        """
        leader = self.leader() if chance.random() < leader_first else None
        with self._lock:
            free = [name for name in self.names if name not in self._claimed and self.alive(name)]
            chance.shuffle(free)
            free.sort(key=lambda name: name != leader)
            taken = tuple(free[:count])
            self._claimed.update(taken)
        return taken

    def claimed(self) -> int:
        """How many nodes belong to faults now."""
        with self._lock:
            return len(self._claimed)

    def release(self, names: Collection[str]) -> None:
        with self._lock:
            self._claimed.difference_update(names)

    # Processes

    def kill(self, names: Collection[str]) -> None:
        """Ends these nodes at once and at the same moment (SIGKILL); what they wrote stays."""
        with self._lock:
            self._ending.update(names)
            self._local.kill_all([self._number(name) for name in names])
            self._apply()

    def terminate(self, node: str, timeout_s: float = 15.0) -> int:
        """Asks a node to drain and end (SIGTERM); its exit code."""
        with self._lock:
            self._ending.add(node)
        code = self._local.terminate(self._number(node), timeout_s)
        with self._lock:
            self._apply()
        return code

    def start_node(self, node: str, *, rejoin: bool = False) -> None:
        """Starts a node that is down, and does not wait for it. ``rejoin``: as an operator does whose disk was lost."""
        with self._lock:
            if self.runs(node):
                return
            self._ending.discard(node)
            self._local.rejoining = node if rejoin else ""
            self._local.start_node(self._number(node))
            self._apply()

    def expect_end(self, node: str) -> None:
        """The node may end by itself until it is started again; that is no crash."""
        with self._lock:
            self._ending.add(node)

    def run_to_end(self, node: str, timeout_s: float = 20.0) -> int | None:
        """Starts a node that should refuse to run; its exit code, or None if it runs on (it is killed then)."""
        with self._lock:
            self._ending.add(node)
            self._local.rejoining = ""
            self._local.start_node(self._number(node))
            # Or nobody could reach it: a node that is only ever dialed would wait for ever.
            self._apply()
        code = self._local.wait_ended(self._number(node), timeout_s)
        if code is None:
            self.kill([node])
        else:
            with self._lock:
                self._apply()
        return code

    def pause(self, names: Collection[str]) -> None:
        """Freezes nodes (SIGSTOP)."""
        for name in names:
            self._local.pause(self._number(name))

    def resume(self, names: Collection[str]) -> None:
        for name in names:
            self._local.resume(self._number(name))

    # Links

    def impose(self, conditions: Conditions) -> Callable[[], None]:
        """Puts links into these conditions, on top of what other faults do to them; the result undoes it."""
        layer = dict(conditions)

        def undo() -> None:
            with self._lock:
                # By identity: two faults may do the same.
                self._layers = [kept for kept in self._layers if kept is not layer]
                self._apply()

        with self._lock:
            self._layers.append(layer)
            try:
                self._apply()
            except BaseException:
                self._layers.pop()
                raise
        return undo

    @property
    def proxies(self) -> Proxies:
        assert isinstance(self._links, Proxies), "no proxies are between these nodes"
        return self._links

    @property
    def namespaces(self) -> spaces.Spaces:
        assert isinstance(self._links, spaces.Spaces), "these nodes are not in namespaces"
        return self._links

    def _apply(self) -> None:
        if self._links is not None:
            self._links.apply(joined(self._layers), [name for name in self.names if not self.runs(name)])

    # Disks and clocks

    def cut_power(self, names: Collection[str], chance: random.Random | None) -> dict[str, list[str]]:
        """Ends these nodes at once, and with them what they had not synced; the files that lost something, by node.

        ``chance`` decides how much of it remains; None: nothing.
        """
        assert self.volatile, "power cuts need volatile=True"
        self.kill(names)
        return {name: volatile.cut_power(self.data_dir(name), self.durable_dir(name), chance) for name in sorted(names)}

    def wipe(self, node: str) -> None:
        """Gives a node that is down an empty disk."""
        volatile.wipe(self.data_dir(node), self.durable_dir(node))

    def slow_disk(self, node: str, sync_s: float | None) -> None:
        """Every sync of the node takes so much longer; None makes the next one fail."""
        assert self.volatile, "slow and failing disks need volatile=True"
        volatile.order(self.durable_dir(node), sync_s)

    def mend_disk(self, node: str) -> None:
        volatile.obey_no_more(self.durable_dir(node))

    def set_clock(self, node: str, offset_s: float) -> None:
        """Sets the node's wall clock so much ahead of the true one (behind, if negative)."""
        wallclock.set_clock(self._clock(node), offset_s)

    def _clock(self, node: str) -> Path:
        return self.directory / node / "clock"

    # How a node is started

    def command(self, node: str, settings: Mapping[str, object]) -> list[str]:
        """The command line of a node; its process id is the node's own."""
        variables = {"PYTHONPATH": str(TESTS)}
        if self.clocks:
            if not self._clock(node).exists():
                self.set_clock(node, 0.0)
            variables |= wallclock.environment(self._clock(node))
        command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable]
        command += ["-m", "chaos.launcher"]
        command += ["--durable", str(self.durable_dir(node))] if self.volatile else []
        command += ["--forgetful"] if self._forgetful else []
        command += ["--growth-bytes", str(GROWTH_BYTES)] if self.small_disks else []
        command.append("--")
        return [*command, *flags({**settings, **self._settings})]

    @property
    def _local(self) -> "_Nodes":
        assert self._nodes is not None, "the cluster was not started"
        return self._nodes

    def _number(self, node: str) -> int:
        return self.names.index(node)


class _Nodes(LocalCluster):
    """The product's launcher, with links, disks and clocks of our own."""

    def __init__(self, cluster: ChaosCluster, port: int, namespaces: spaces.Spaces | None) -> None:
        super().__init__(len(cluster.names), data_dir=cluster.directory, port=port)
        self._cluster = cluster
        self._namespaces = namespaces
        self.rejoining: str = ""
        """The node that is started with ``--rejoin`` just now."""

    def url(self, i: int) -> str:
        if self._namespaces is not None:
            return f"http://{self._namespaces.client_address(self.node_id(i))}:{spaces.HTTP_PORT}"
        return super().url(i)

    def _command(self, i: int) -> list[str]:
        members = ",".join(f"{self.node_id(k)}={self._found_at(i, k)}/{self.url(k)}" for k in range(self.nodes))
        node = self.node_id(i)
        settings: dict[str, object] = {"node_id": node, "data_dir": self._cluster.data_dir(node), "members": members}
        if node == self.rejoining:
            settings["rejoin"] = True
        if self._namespaces is None:
            where = {"http_host": HOST, "http_port": self.port + i}
            where |= {"raft_host": HOST, "raft_port": self.port + RAFT_OFFSET + i}
            return self._cluster.command(node, settings | where)
        where = {"http_host": self._namespaces.client_address(node), "http_port": spaces.HTTP_PORT}
        where |= {"raft_host": self._namespaces.peer_address(node), "raft_port": spaces.RAFT_PORT, "insecure": True}
        return self._namespaces.prefix(node) + self._cluster.command(node, settings | where)

    def raft(self, k: int) -> str:
        """Where node k listens for its peers."""
        if self._namespaces is not None:
            return f"{self._namespaces.peer_address(self.node_id(k))}:{spaces.RAFT_PORT}"
        return f"{HOST}:{self.port + RAFT_OFFSET + k}"

    def _found_at(self, i: int, k: int) -> str:
        """Where node i is told that node k listens."""
        if self._cluster.network == "proxy" and i != k:
            return f"{HOST}:{_link_port(self.port, i, k)}"
        return self.raft(k)

    def is_paused(self, i: int) -> bool:
        return i in self._paused

    def kill_all(self, numbers: Collection[int]) -> None:
        running = [i for i in numbers if self.pid(i) is not None]
        for i in running:
            self._signal(i, signal.SIGKILL)
        for i in running:
            self._ended(i, KILLED_S)

    def _forget(self, i: int) -> None:
        process = self._processes.get(i)
        if process is not None:
            wallclock.forget(process.pid)
        super()._forget(i)

    def wait_ended(self, i: int, timeout_s: float) -> int | None:
        """The exit code of a node that ends by itself; None if it does not."""
        try:
            return self._ended(i, timeout_s)
        except LocalError:
            return None


def _link_port(port: int, i: int, k: int) -> int:
    return port + LINK_OFFSET + i * LINKS_PER_NODE + k


def _links(names: Sequence[str], port: int) -> list[Link]:
    number = {name: i for i, name in enumerate(names)}
    pairs: list[Pair] = all_pairs(names)
    return [
        Link(source, target, _link_port(port, number[source], number[target]), port + RAFT_OFFSET + number[target])
        for source, target in pairs
    ]
