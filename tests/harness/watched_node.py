"""A node as it is, and beside it a watch on how late its tick thread is.

    python -P tests/harness/watched_node.py FILE PORT [flags of the node]

A metronome (another process) sends its clock to UDP port PORT; the node's own
poller reads it, so what is measured is how long the tick thread took to come
round to something that arrived: waits for the interpreter's lock, collections,
the disk and long steps of its own alike. FILE gets one JSON object a line:

    {"what": "late", "at": ..., "ms": ..., "thread": "raft", "cpu_ms": ...}   a tick that came late
    {"what": "Journal.sync", "at": ..., "ms": ..., "thread": "raft"}          a step that took long
    {"what": "gc 2", "at": ..., "ms": ..., "thread": ...}                     a collection

``at`` is when it ended, in the time of ``time.monotonic``. ``cpu_ms`` is what
the whole process ran meanwhile: on a machine that has other work to do a tick
may come late without the node doing anything, and that is not the node's fault.
"""

import functools
import gc
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pysyncobj.poller import POLL_EVENT_TYPE
from rollcall.node.__main__ import main
from rollcall.replication.raft import applying, compaction, engine, proposals
from rollcall.replication.registry import registry, services
from rollcall.replication.registry.changes import Changes
from rollcall.replication.storage import journal, snapshot

STAMP = struct.Struct("<Q")
WORTH_NOTING_MS = 3.0

STEPS: tuple[tuple[type, str], ...] = (
    (engine.Engine, "_continue_install"),
    (compaction.Compaction, "_finish_saving"),
    (applying.Applying, "step"),
    (proposals.Proposals, "take_up"),
    (journal.Journal, "sync"),
    (journal.Journal, "_rewrite"),
    (registry.Registry, "apply"),
    (registry.Registry, "root"),
    (registry.Registry, "replace"),
    (services.ServiceState, "copy"),
    (Changes, "reset"),
    (snapshot.Snapshots, "_save"),
    (snapshot.Snapshots, "_install"),
)
"""What may take long: on the tick thread it stalls it, elsewhere it tells what was going on."""


class Watch:
    """Notes what is late, in lines of JSON."""

    def __init__(self, path: Path) -> None:
        # One write a line: the file is read while the node runs.
        self._file = path.open("ab", buffering=0)
        self._cpu_ns: int = time.process_time_ns()
        self._began: float = 0.0

    def note(self, what: str, ms: float, **more: Any) -> None:
        if ms >= WORTH_NOTING_MS:
            facts = {
                "what": what,
                "at": round(time.monotonic(), 4),
                "ms": round(ms, 2),
                "thread": threading.current_thread().name,
                **more,
            }
            self._file.write(json.dumps(facts).encode() + b"\n")

    def heard(self, sock: socket.socket) -> None:
        """The metronome's oldest stamp tells how late this tick is."""
        oldest_ns = 0
        while True:
            try:
                (stamp_ns,) = STAMP.unpack(sock.recv(64))
            except BlockingIOError:
                break
            oldest_ns = oldest_ns or stamp_ns
        cpu_ns, self._cpu_ns = self._cpu_ns, time.process_time_ns()
        if oldest_ns:
            late_ms = (time.monotonic_ns() - oldest_ns) / 1e6
            self.note("late", late_ms, cpu_ms=round((self._cpu_ns - cpu_ns) / 1e6, 2))

    def collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.note(f"gc {info['generation']}", (time.perf_counter() - self._began) * 1000)

    def step(self, owner: type, name: str) -> None:
        """Notes each call of a method."""
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                took_ms = (time.perf_counter() - began) * 1000
                self.note(f"{owner.__name__}.{name}", took_ms)

        setattr(owner, name, timed)


def watch(path: Path, port: int) -> None:
    """Arranges for the engine of this process to be watched."""
    noted = Watch(path)
    gc.callbacks.append(noted.collected)
    for owner, name in STEPS:
        noted.step(owner, name)
    start = engine.Engine.start

    def start_watched(self: engine.Engine) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", port))
        self.raft.poller.subscribe(sock.fileno(), lambda descriptor, events: noted.heard(sock), POLL_EVENT_TYPE.READ)
        start(self)

    engine.Engine.start = start_watched  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
