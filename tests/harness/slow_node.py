"""A node as it is, on a disk whose syncs take as long as a test says.

    python -P tests/harness/slow_node.py FILE [flags of the node]

FILE holds by how many seconds each sync takes longer; without it the disk is as it is.
"""

import contextlib
import sys
import time
from pathlib import Path

from rollcall.node.__main__ import main
from rollcall.replication.storage.disk import Disk


def slow_down(orders: Path) -> None:
    """Arranges for the syncs of this process to take as long as the file says."""
    sync = Disk.sync

    def syncing(self: Disk, descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            time.sleep(float(orders.read_text()))
        sync(self, descriptor)

    Disk.sync = syncing


if __name__ == "__main__":
    slow_down(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
