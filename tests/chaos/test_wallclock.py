"""The wall clock of a process, and what setting it leaves behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos import wallclock

needs_library = pytest.mark.skipif(bool(wallclock.reason()), reason=wallclock.reason())


@needs_library
def test_a_process_that_was_killed_leaves_nothing_in_shared_memory(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    wallclock.set_clock(clock, 3600.0)
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(time.time(), flush=True); time.sleep(60)"],
        env={**os.environ, **wallclock.environment(clock)},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert float(process.stdout.readline()) - time.time() == pytest.approx(3600.0, abs=10.0)
        assert left_by(process.pid)
    finally:
        process.kill()
        process.communicate()

    wallclock.forget(process.pid)
    assert left_by(process.pid) == []
    wallclock.forget(process.pid)


def left_by(pid: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"*faketime_*_{pid}")]
