"""A cluster on this machine: n node processes, for ``scripts/up``, the demo, the benches and the tests.

Node i (from 0) listens on 127.0.0.1: HTTP on P+i, DNS on P+100+i, the nodes
among themselves on P+1000+i. It lives in ``DIR/node-i``: its data, its output
(``log``) and its process id (``pid``).
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from ...replication.errors import RollcallError
from ..client import Client
from ..http import exchange, session_over
from .ports import DNS_OFFSET, HOST, NODES_MAX, PORT, RAFT_OFFSET, is_free
from .processes import STOP_S, LocalError, flag_of, forget_pid, running_nodes

READY_S = 30.0
LOG_LINES_SHOWN = 15
_EXTRA_NODE = ("dns", "flask", "prometheus_client", "pysyncobj", "waitress")


class LocalCluster:
    """``nodes`` nodes, started by ``start`` and ended by ``stop``; a context manager does both.

    ``settings`` are passed to every node, by their names in the table of
    settings. Nodes are counted from 0.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        data_dir: Path,
        port: int = PORT,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if not (1 <= nodes <= NODES_MAX and nodes % 2):
            raise LocalError(f"{nodes} nodes: expected 1, 3, 5 or {NODES_MAX}")
        if not 1024 <= port <= 65_535 - RAFT_OFFSET - nodes:
            raise LocalError(f"port {port}: expected 1024 to {65_535 - RAFT_OFFSET - nodes}")
        self.nodes: int = nodes
        self.port: int = port
        self.data_dir: Path = data_dir.absolute()
        self.settings: dict[str, object] = dict(settings or {})
        self.others: tuple[int, ...] = ()
        """Nodes that ran in ``data_dir`` before ``start``: they are left alone, by ``stop`` too."""
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()

    # Where things are

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self.url(i) for i in range(self.nodes))

    def url(self, i: int) -> str:
        return f"http://{HOST}:{self.port + i}"

    def node_id(self, i: int) -> str:
        return f"node-{i}"

    def node_dir(self, i: int) -> Path:
        return self.data_dir / self.node_id(i)

    @property
    def started(self) -> tuple[int, ...]:
        """The nodes that were started here."""
        return tuple(sorted(self._processes))

    def pid(self, i: int) -> int | None:
        """The process id of node i while it runs."""
        process = self._processes.get(i)
        return process.pid if process is not None and process.poll() is None else None

    def log_tail(self, i: int, lines: int = LOG_LINES_SHOWN) -> str:
        """The last lines that node i wrote."""
        path = self.node_dir(i) / "log"
        if not path.exists():
            return "(nothing written)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:]) or "(nothing written)"

    # Starting

    def start(self, *, wait: bool = True, only: Sequence[int] = ()) -> None:
        """Starts the nodes that do not run yet (of ``only``, if any are named), and waits until they are ready, if
        there are enough to elect a leader. On failure none of them is left running; those that ran before go on."""
        _check_installed()
        if any(not 0 <= i < self.nodes for i in only):
            raise LocalError(f"node {max(only, key=abs)}: nodes are counted from 0 to {self.nodes - 1}")
        running = running_nodes(self.data_dir)
        self.others = tuple(i for i in range(self.nodes) if self.node_dir(i) in running)
        missing = [i for i in only or range(self.nodes) if i not in self.others]
        if not missing:
            raise LocalError(
                f"nodes are running in {self.data_dir} already (process ids {', '.join(map(str, running.values()))}): "
                "stop them first (--stop), or use another --data-dir"
            )
        self._check_members()
        self._check_ports(missing, running)
        try:
            for i in missing:
                self.start_node(i)
            if wait and 2 * (len(missing) + len(self.others)) > self.nodes:
                self.wait_ready(nodes=missing)
        except BaseException:
            self.stop()
            raise

    def _check_ports(self, missing: Sequence[int], running: Mapping[Path, int]) -> None:
        for i in self.others:
            port = flag_of(running[self.node_dir(i)], "--http-port")
            if port != str(self.port + i):
                raise LocalError(
                    f"{self.node_id(i)} runs in {self.data_dir} already, and its port is {port}: start the others with "
                    f"--port {int(port) - i if port.isdecimal() else '(its own)'}, or stop it first (--stop)"
                )
        ports = (self.port + offset + i for offset in (0, DNS_OFFSET, RAFT_OFFSET) for i in missing)
        taken = next((port for port in ports if not is_free(port)), None)
        if taken is not None:
            raise LocalError(
                f"port {taken} on {HOST} is taken by another program: choose another --port "
                f"(nodes use PORT+i, PORT+{DNS_OFFSET}+i and PORT+{RAFT_OFFSET}+i)"
            )

    def _check_members(self) -> None:
        """Raises ``LocalError`` if the data is that of more or of fewer nodes, unless the settings accept that."""
        found = _nodes_of(self.data_dir)
        if found not in (0, self.nodes) and not _is_true(self.settings.get("accept_members")):
            raise LocalError(
                f"the data in {self.data_dir} is that of {found} nodes, and {self.nodes} of them could lose "
                f"acknowledged writes or never agree: start --nodes {found}, or use another --data-dir "
                "(docs/operations.md says how a cluster grows and shrinks)"
            )

    def start_node(self, i: int, *flags: str) -> None:
        """Starts node i, with ``flags`` beside the usual ones, and does not wait for it."""
        if self.pid(i) is not None:
            raise LocalError(f"{self.node_id(i)} runs already")
        directory = self.node_dir(i)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            output = (directory / "log").open("ab")
        except OSError as error:
            raise LocalError(f"{directory} cannot be written: {error.strerror}; choose another --data-dir") from None
        with output:
            process = subprocess.Popen(
                [*self._command(i), *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("ROLLCALL_")},
                # Ctrl-C at the terminal is for the launcher, which then stops the nodes in order.
                start_new_session=True,
            )
        self._processes[i] = process
        (directory / "pid").write_text(f"{process.pid}\n")

    def _command(self, i: int) -> list[str]:
        members = ",".join(
            f"{self.node_id(k)}={HOST}:{self.port + RAFT_OFFSET + k}/{self.url(k)}" for k in range(self.nodes)
        )
        settings: dict[str, object] = {
            "node_id": self.node_id(i),
            "data_dir": self.node_dir(i),
            "http_host": HOST,
            "http_port": self.port + i,
            "dns_host": HOST,
            "dns_port": self.port + DNS_OFFSET + i,
            "raft_host": HOST,
            "raft_port": self.port + RAFT_OFFSET + i,
            "members": members,
            **self.settings,
        }
        return [sys.executable, "-m", "rollcall.node", *flags(settings)]

    def wait_ready(self, timeout_s: float = READY_S, nodes: Sequence[int] | None = None) -> None:
        """Waits until ``/readyz`` of every node (or of ``nodes``) answers 200; ``LocalError`` says why not."""
        deadline = time.monotonic() + timeout_s
        waiting = dict.fromkeys(range(self.nodes) if nodes is None else nodes, "it was not asked yet")
        with session_over(HTTPAdapter) as session:
            while waiting:
                for i in tuple(waiting):
                    process = self._processes[i]
                    if process.poll() is not None:
                        raise LocalError(self._failed(i, f"it ended with exit code {process.returncode}"))
                    reason = _not_ready(session, self.url(i))
                    if reason is None:
                        del waiting[i]
                    else:
                        waiting[i] = reason
                if waiting and time.monotonic() > deadline:
                    i, reason = next(iter(waiting.items()))
                    raise LocalError(self._failed(i, f"it was not ready within {timeout_s:g} s: {reason}"))
                if waiting:
                    time.sleep(0.05)

    def _failed(self, i: int, why: str) -> str:
        return f"{self.node_id(i)} did not start: {why}. The end of {self.node_dir(i) / 'log'}:\n{self.log_tail(i)}"

    # Breaking and mending

    def kill(self, i: int) -> None:
        """Ends node i at once, as a power cut would (SIGKILL)."""
        self._signal(i, signal.SIGKILL)
        self._ended(i, 5.0)

    def terminate(self, i: int, timeout_s: float = 10.0) -> int:
        """Asks node i to drain and end (SIGTERM); its exit code."""
        self._signal(i, signal.SIGTERM)
        return self._ended(i, timeout_s)

    def pause(self, i: int) -> None:
        """Freezes node i (SIGSTOP): alive, and silent."""
        self._signal(i, signal.SIGSTOP)
        self._paused.add(i)
        if hasattr(os, "waitid"):
            # Its many threads stop one after the other; until the last has, it may still answer.
            os.waitid(os.P_PID, self._processes[i].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, i: int) -> None:
        """Lets a paused node go on."""
        self._paused.discard(i)
        self._signal(i, signal.SIGCONT)

    def restart(self, i: int, *flags: str, wait: bool = True) -> None:
        """Starts node i again, with its data; ends it gracefully first if it runs."""
        if self.pid(i) is not None:
            self.terminate(i)
        self.start_node(i, *flags)
        if wait:
            self.wait_ready(nodes=[i])

    def _signal(self, i: int, number: signal.Signals) -> None:
        process = self._processes.get(i)
        if process is None or process.poll() is not None:
            raise LocalError(f"{self.node_id(i)} does not run")
        process.send_signal(number)

    def _ended(self, i: int, timeout_s: float) -> int:
        process = self._processes[i]
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalError(f"{self.node_id(i)} did not end within {timeout_s:g} s\n{self.log_tail(i)}") from None
        self._forget(i)
        return code

    def _forget(self, i: int) -> None:
        self._paused.discard(i)
        process = self._processes.pop(i, None)
        forget_pid(self.node_dir(i), None if process is None else process.pid)

    # Asking

    def client(self, **options: Any) -> Client:
        """A client that knows all nodes; the caller closes it."""
        return Client(self.urls, **options)

    def leader(self) -> int | None:
        """The node that leads, by the word of those that answer (the highest term wins); None if nobody does."""
        best: tuple[int, str] | None = None
        with session_over(HTTPAdapter) as session:
            for i in range(self.nodes):
                if self.pid(i) is None or i in self._paused:
                    continue
                with contextlib.suppress(RollcallError):
                    said = exchange(session, "GET", f"{self.url(i)}/api/v1/cluster", timeout_s=1.0).body
                    if said["leader"] is not None and (best is None or said["term"] > best[0]):
                        best = (said["term"], said["leader"])
        alive = {self.node_id(i): i for i in range(self.nodes) if self.pid(i) is not None and i not in self._paused}
        return alive.get(best[1]) if best else None

    def wait_for_leader(self, timeout_s: float = 15.0) -> int:
        """The node that leads, once there is one."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            leader = self.leader()
            if leader is not None:
                return leader
            time.sleep(0.05)
        raise LocalError(f"no leader within {timeout_s:g} s")

    def followers(self) -> list[int]:
        """The nodes that run and do not lead."""
        leader = self.leader()
        return [i for i in range(self.nodes) if i != leader and self.pid(i) is not None]

    # Ending

    def stop(self) -> None:
        """Ends all nodes within 5 s, gracefully where they can."""
        for i in tuple(self._paused):
            with contextlib.suppress(LocalError):
                self.resume(i)
        processes = dict(self._processes)
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for i, process in processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5.0)
            self._forget(i)

    def remove(self) -> None:
        """Deletes the data directory of a cluster that was stopped."""
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> "LocalCluster":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def exited(self) -> dict[int, int]:
        """Nodes that ended on their own, and their exit codes."""
        return {i: p.returncode for i, p in self._processes.items() if p.poll() is not None}


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags of the node's command line."""
    made: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            made.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            made += [flag, str(value)]
    return made


def _check_installed() -> None:
    missing = [name for name in _EXTRA_NODE if util.find_spec(name) is None]
    if missing:
        raise LocalError(
            f"a node needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'rollcall-registry[node]'"
        )


def _not_ready(session: requests.Session, url: str) -> str | None:
    """Why the node at ``url`` is not ready; None if it is."""
    try:
        exchange(session, "GET", f"{url}/readyz", timeout_s=2.0)
    except RollcallError as error:
        return error.message
    return None


def _nodes_of(data_dir: Path) -> int:
    """Of how many members the cluster was whose data lies in ``data_dir``; 0 if nothing says so.

    A node keeps the list in its file ``standing`` (``replication/storage/standing.py``). A node that never took part
    holds nothing.
    """
    counts = [0]
    for file in data_dir.glob("node-*/standing"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            record = json.loads(file.read_bytes())
            if isinstance(record, dict) and record.get("standing") == "member":
                counts.append(len(record.get("members", ())))
    return max(counts)


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "1")
