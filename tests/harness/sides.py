"""The two makes of everything that a scenario plays with: ours, and the bare library's.

Run as a program, it plays one scenario of a test file on the version of the
library that is first on the path, in a process of its own:

    python -m harness.sides FILE SCENARIO DIRECTORY

and ends with 0 if the promise was kept, with 3 and a sentence if it was not.
"""

import contextlib
import logging
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pysyncobj.version import VERSION
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft import progress as progress_module
from rollcall.replication.storage import journal as journal_module
from rollcall.replication.storage.disk import Disk

from harness.bare import BareLog, BareMember
from harness.ends import BareAsker, BareEnds, OurAsker, OurEnds
from harness.members import BROKEN, Broken
from harness.ours import EngineMember, OurLog
from harness.raft import Clock
from harness.sim_disk import SimDisk

Replace = Callable[[Any, str, Any], None]
MEMBERS = ("a", "b", "c")


class OurSide(contextlib.ExitStack):
    """Makes things of our make, and closes them at its end."""

    def __init__(self, directory: Path, clock: Clock, replace: Replace) -> None:
        super().__init__()
        self._directory: Path = directory
        self._clock: Clock = clock
        self._replace: Replace = replace
        # Small files are read faster, and a log without reserve is cut where a scenario says so.
        replace(journal_module, "GROWTH_BYTES", 4096)
        replace(journal_module, "RESERVE_BYTES", 1024)
        replace(compaction_module, "KEEP_ENTRIES", 0)

    def member(
        self,
        node: str = "a",
        members: Sequence[str] = MEMBERS,
        *,
        poison: str = "",
        state_files: bool = True,
        batch_bytes: int = 1024 * 1024,
    ) -> EngineMember:
        self._replace(progress_module, "BATCH_BYTES", batch_bytes)
        return self._owned(EngineMember(self._directory / node, self._clock, node, members, poison))

    def log(self, *, real_disk: bool = False) -> OurLog:
        return self._owned(OurLog(self._directory / "journal", Disk() if real_disk else SimDisk()))

    def ends(self) -> OurEnds:
        return self._owned(OurEnds(self._clock, self._replace))

    def asker(self) -> OurAsker:
        return self._owned(OurAsker(self._clock, self._replace))

    def _owned(self, made: Any) -> Any:
        self.callback(made.close)
        return made


class BareSide(contextlib.ExitStack):
    """Makes things of the library's make, and closes them at its end."""

    def __init__(self, directory: Path, clock: Clock, replace: Replace) -> None:
        super().__init__()
        self._directory: Path = directory
        self._clock: Clock = clock
        self._replace: Replace = replace

    def member(
        self,
        node: str = "a",
        members: Sequence[str] = MEMBERS,
        *,
        poison: str = "",
        state_files: bool = True,
        batch_bytes: int = 64 * 1024,
    ) -> BareMember:
        directory = self._directory / node
        directory.mkdir()
        options = {
            "fullDumpFile": str(directory / "dump") if state_files else None,
            "appendEntriesBatchSizeBytes": batch_bytes,
        }
        return self._owned(BareMember(directory, self._clock, node, members, poison, options, self._replace))

    def log(self, *, real_disk: bool = True) -> BareLog:
        return self._owned(BareLog(self._directory / "journal"))

    def ends(self) -> BareEnds:
        return self._owned(BareEnds(self._clock, self._replace))

    def asker(self) -> BareAsker:
        return self._owned(BareAsker(self.member()))

    def _owned(self, made: Any) -> Any:
        self.callback(made.close)
        return made


def main() -> None:
    file, scenario, directory = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    print(f"pysyncobj {VERSION}")
    clock = Clock().install(setattr)
    with BareSide(Path(directory), clock, setattr) as side:
        try:
            runpy.run_path(file)[scenario].scenario(side)
        except Broken as broken:
            print(f"broken: {broken}")
            sys.exit(BROKEN)


if __name__ == "__main__":
    main()
