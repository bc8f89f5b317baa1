"""Flipped bits in the files of a node that is down.

Only where the product can tell: in a state file anywhere, in the log below the
point up to which it is known to have been synced. A node must refuse to start
on either, and name the file.
"""

import random
import struct
from pathlib import Path
from typing import NamedTuple

_MARK = struct.Struct("<QQI")


class Flipped(NamedTuple):
    """One bit that is not what it was."""

    path: Path
    offset: int
    bit: int

    def undo(self) -> None:
        _flip(self.path, self.offset, self.bit)

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.offset} of {self.path.name}"


def flip(directory: Path, chance: random.Random) -> Flipped | None:
    """Flips a bit in the log or the state file there; None if there is nothing to flip yet."""
    sizes = {path: size for path in (directory / "journal", directory / "snapshot") if (size := _certain(path)) > 0}
    if not sizes:
        return None
    path = chance.choice(sorted(sizes))
    flipped = Flipped(path, chance.randrange(sizes[path]), chance.randrange(8))
    flipped.undo()
    return flipped


def _certain(path: Path) -> int:
    """How many bytes of the file are known to be as they were written."""
    if not path.exists():
        return 0
    if path.name != "journal":
        return path.stat().st_size
    mark = path.with_suffix(".synced")
    data = mark.read_bytes() if mark.exists() else b""
    return min(path.stat().st_size, _MARK.unpack_from(data)[1]) if len(data) >= _MARK.size else 0


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
