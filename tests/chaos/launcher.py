"""Runs a node on a disk whose power can be cut, or under a wall clock that is set from outside.

    python -m chaos.launcher [--durable DIR [--forgetful]] [--growth-bytes N] -- <the node's own flags>

``--growth-bytes`` makes the log reserve room in smaller steps, so that a full
disk is felt sooner.
"""

import argparse
import os
import select
import sys
import time
from pathlib import Path


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # Up to 0.9.10, libfaketime turns the time to sleep until into a negative one
    # (github.com/wolfcw/libfaketime/issues/426). Before anybody imports ``sleep``.
    time.sleep = _sleep

from rollcall.node.__main__ import main as run_node  # noqa: E402
from rollcall.replication.raft import engine  # noqa: E402
from rollcall.replication.storage import journal  # noqa: E402

from chaos.volatile import VolatileDisk  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.launcher")
    parser.add_argument("--durable", type=Path)
    parser.add_argument("--forgetful", action="store_true")
    parser.add_argument("--growth-bytes", type=int, default=journal.GROWTH_BYTES)
    at = sys.argv.index("--")
    options, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    journal.GROWTH_BYTES = options.growth_bytes
    if options.durable is not None:
        live = Path(flags[flags.index("--data-dir") + 1])
        live.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = VolatileDisk(live, options.durable, forgetful=options.forgetful)
        engine.Disk = lambda: disk  # pyright: ignore[reportAttributeAccessIssue]
    return run_node(flags)


if __name__ == "__main__":
    sys.exit(main())
