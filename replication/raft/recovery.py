"""State file, then log, into memory at a start (section 7).

Invariant: what was acknowledged before the start is in the log or the state file after it. The log may lie behind the
state file (a crash between installing one and cutting the other): what follows the file's index is kept if it belongs
there and dropped if it does not, never the reverse (D5). What does not fit together is not run on.
"""

from ..errors import Damaged, Fatal
from ..registry.changes import Changes
from ..registry.registry import Registry
from ..storage.disk import CHOICES
from ..storage.journal import NO_OP, Journal
from ..storage.snapshot import SnapshotHeader, Snapshots
from .library import Raft


def restore(
    snapshots: Snapshots, journal: Journal, registry: Registry, changes: Changes, raft: Raft, level: int
) -> SnapshotHeader | None:
    """Fills the registry and the library's state from disk; the state file's header, if there is one.

    Raises ``Damaged`` if file and log do not belong together, ``Fatal`` if the cluster uses a feature level
    beyond ``level``.
    """
    found = snapshots.load()
    if found is None:
        if journal.base_index > 1:
            raise Damaged(
                f"{snapshots.path} is missing: the log beside it starts at entry {journal.base_index}, and "
                f"the state file for what came before is gone. Put it back, or: {CHOICES}"
            )
        registry.skip(1, 0)
        applied = 1
    else:
        header, state = found
        if header.index < journal.base_index:
            raise Damaged(
                f"{snapshots.path} ends at entry {header.index}, but the log beside it starts at entry "
                f"{journal.base_index}: it is not the newest state file. Put that back, or: {CHOICES}"
            )
        if journal.term_at(header.index) != header.term:
            if journal.getRaftCommitIndex() >= header.index:
                raise Damaged(
                    f"{snapshots.path} ends at entry {header.index} of term {header.term}, which "
                    f"contradicts the log beside it: they do not belong together. {CHOICES}"
                )
            journal.reset((NO_OP, header.index, header.term))
        check_level(state.facts.level, level)
        registry.replace(state)
        applied = header.index
    changes.reset(applied)
    raft.restore(journal, applied, found[0].term if found else 0)
    return found[0] if found else None


def check_level(level: int, understood: int) -> None:
    """Raises ``Fatal`` if the cluster uses a feature level that this release does not know."""
    if level > understood:
        raise Fatal(
            f"the cluster uses feature level {level}, and this release understands {understood}: "
            "start this node with the release that the others run"
        )
