"""A small disk under a node's data directory, to be filled to the last byte and freed again. Root only."""

import contextlib
import os
import subprocess
from pathlib import Path

from chaos.volatile import BALLAST

DISK_MIB = 48
_COMMAND_S = 10.0


def reason() -> str:
    """Why small disks cannot be had here; empty if they can."""
    return "" if os.geteuid() == 0 else "mounting a small disk needs root"


def mount(directory: Path) -> None:
    """Puts a disk of its own at ``directory``; ``OSError`` if that is not possible."""
    directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "rollcall-chaos", str(directory)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if made.returncode:
        raise OSError(f"a small disk cannot be mounted: {made.stderr.strip()}")


def unmount(directory: Path) -> None:
    subprocess.run(["umount", "-l", str(directory)], capture_output=True, timeout=_COMMAND_S, check=False)


def fill(directory: Path) -> None:
    """Leaves no room at all."""
    with (directory / BALLAST).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1024 * 1024, 4096):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass


def free(directory: Path) -> None:
    """Gives the room back."""
    (directory / BALLAST).unlink(missing_ok=True)
