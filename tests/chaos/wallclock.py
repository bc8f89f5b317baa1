"""The wall clock of one node, set while it runs, by libfaketime (Debian: ``apt install faketime``).

Only the wall clock: the monotonic one, which timers must use, stays true. So a
jump of some seconds must change nothing but time stamps, and one of more nothing
but who leads.
"""

from pathlib import Path

_PLACES = ("/usr/lib/*/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime", "/opt/homebrew/lib/faketime")
_LIBRARY = "libfaketimeMT.so.1"


def library() -> Path | None:
    """Where libfaketime is installed."""
    for place in _PLACES:
        for found in Path("/").glob(f"{place[1:]}/{_LIBRARY}"):
            return found
    return None


def reason() -> str:
    """Why clocks cannot be set here; empty if they can."""
    return "" if library() else "libfaketime is not installed (Debian: apt install faketime)"


def environment(clock: Path) -> dict[str, str]:
    """What a node is started with so that the file ``clock`` sets its wall clock."""
    found = library()
    assert found is not None, reason()
    return {
        "LD_PRELOAD": str(found),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
        # Or waits of the interpreter's own lock end at once, and its threads spin.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def forget(pid: int) -> None:
    """Removes what libfaketime leaves in shared memory of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)


def set_clock(clock: Path, offset_s: float) -> None:
    """The clock is so much ahead of the true one from now on (behind, if negative). Felt within a second."""
    new = clock.with_suffix(".new")
    new.write_text(f"{offset_s:+.3f}\n")
    new.replace(clock)
