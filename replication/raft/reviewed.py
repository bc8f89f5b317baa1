"""Which files of the Raft library were read, line by line, before ``library.py`` was written against them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pysyncobj

from ..errors import Fatal

REVIEWED: Mapping[str, str] = {
    "config.py": "fbbc7ff9f18e4d15",
    "journal.py": "9cf1eaf6acc70458",
    "node.py": "e4a3f027cd8291f5",
    "poller.py": "f69ac749fb410670",
    "serializer.py": "4d39fde2f15000ad",
    "syncobj.py": "e8bdf06797085d73",
    "transport.py": "0c9d89f9c4781ec9",
}
"""Files of the library that ``library.py`` was checked against (H0), by sha256."""


def check_library(directory: Path | None = None) -> None:
    """Raises ``Fatal`` unless the installed library is the one that was reviewed (H0)."""
    root = directory or Path(pysyncobj.__file__).parent
    for name, expected in REVIEWED.items():
        found = hashlib.sha256((root / name).read_bytes()).hexdigest()[:16]
        if found != expected:
            raise Fatal(
                f"pysyncobj's {name} is not the file that this version was checked against "
                f"(sha256 {found}, expected {expected}): install pysyncobj 0.3.17 exactly"
            )
