"""Node processes on this machine that an earlier command started: which run, and how to end them.

Process ids are given out again, so nothing is ended by its number alone: the
process must be one that runs a node in just that data directory.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from ...replication.errors import RollcallError

STOP_S = 4.5
"""How long nodes may take to drain before they are killed: the whole stop takes less than 5 s."""


class LocalError(RollcallError):
    """Something that the person at the terminal has to know or to change. Holds whole sentences."""


def running_nodes(data_dir: Path) -> dict[Path, int]:
    """The node directories under ``data_dir`` whose process runs, and its id."""
    found: dict[Path, int] = {}
    for file in sorted(data_dir.absolute().glob("node-*/pid")):
        text = file.read_text().strip()
        if text.isdecimal() and _is_node(int(text), file.parent):
            found[file.parent] = int(text)
    return found


def forget_pid(directory: Path, pid: int | None) -> None:
    """Removes the file with the process' id, if it is still about that process (None: whichever)."""
    file = directory / "pid"
    with contextlib.suppress(FileNotFoundError):
        if pid is None or file.read_text().strip() == str(pid):
            file.unlink()


def stop_running(data_dir: Path, only: Collection[str] = ()) -> dict[Path, int]:
    """Ends the nodes that run in ``data_dir`` (those of ``only``, if any are named), in 5 s; says which they were."""
    running = {found: pid for found, pid in running_nodes(data_dir).items() if not only or found.name in only}
    for pid in running.values():
        _send(pid, signal.SIGCONT)
        _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    left = dict(running)
    while left and time.monotonic() < deadline:
        left = {directory: pid for directory, pid in left.items() if _is_node(pid, directory)}
        time.sleep(0.05)
    for pid in left.values():
        _send(pid, signal.SIGKILL)
    for directory, pid in running.items():
        forget_pid(directory, pid)
    return running


def flag_of(pid: int, flag: str) -> str:
    """The value of a flag that process ``pid`` was started with; empty if there is none."""
    words = _command_line(pid).split(" ")
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_node(pid: int, directory: Path) -> bool:
    """Whether process ``pid`` is a node of ours that lives in ``directory``."""
    line = f" {_command_line(pid)} "
    return " rollcall.node " in line and f" {directory} " in line


def _command_line(pid: int) -> str:
    """What process ``pid`` was started with; empty if it is gone (or ended, and nobody has asked how)."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            return ""
    shown = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=5
    )
    return shown.stdout.strip()
