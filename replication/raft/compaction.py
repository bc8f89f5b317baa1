"""When a state file is due, writing it, and cutting the log behind it (section 7).

Invariant: the log is cut only behind a state file that was written, synced and read back (D5, D15, D18); what fails
is discarded, and the log stays. What followers need next is kept: entries behind the file that one is being sent,
and some more for those that were briefly away.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from ..errors import DiskUnavailable, RollcallError
from ..registry.registry import Registry
from ..storage.cut import Cut
from ..storage.journal import Journal
from ..storage.reserve import Reserve
from ..storage.snapshot import SnapshotHeader, Snapshots
from .config import EngineConfig
from .library import Raft

logger = logging.getLogger(__name__)

LOG_BYTES_MAX = 64 * 1024 * 1024
"""A log file that grew by so much is cut even if its entries are few."""
LOG_BYTES_SHORT = 1024 * 1024
"""The same where there is little room."""
LOG_BYTES_HARD = 4 * LOG_BYTES_MAX
"""A leader whose log grew by so much while a state file is written takes nothing up until that is done."""
KEEP_ENTRIES = 2_000
KEEP_BYTES = 4 * 1024 * 1024
"""Kept behind a state file, so that a follower that was briefly away needs no file."""

AGAIN_S = 5.0
AGAIN_S_MAX = 60.0
"""After failures in a row: 5 s, 10 s, 20 s and so on. A large file that fails each time must not be all that
the disk is used for."""

SHORT_S = 30.0
"""Where there is little room (``reserve.py``): what was taken out of the registry makes some only with the next one."""


class Saving:
    """The state files of one node: after so many entries, so long, or so much log, whichever comes first.

    While they fail the log stays whole, so nothing is lost but room; ``error`` says so to whoever looks.
    """

    def __init__(self, now: float) -> None:
        self.error: str = ""
        """Why there is no newer state file; empty when the last one was written."""
        self._began_at: float = now
        self._not_before: float = now
        self._failures: int = 0

    def due(self, now: float, *, many: bool, interval_s: float, short: bool = False) -> bool:
        """Whether to write one now. ``many``: so many entries, or bytes of log, have come since the last one that
        the ``interval_s`` from one to the next is not waited for. ``short``: there is little room."""
        if short:
            interval_s = min(interval_s, SHORT_S)
        return now >= self._not_before and (many or now - self._began_at > interval_s)

    def begun(self, now: float) -> None:
        """One is being written, or was installed in its place: the interval begins anew."""
        self._began_at = now

    def done(self) -> None:
        """It is written, whole and readable."""
        self.error = ""
        self._failures = 0

    def failed(self, error: str, now: float) -> float:
        """It, or the cut of the log behind it, was not. How long to rest before the next."""
        self.error = error
        rest_s = min(AGAIN_S_MAX, AGAIN_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._not_before = now + rest_s
        return rest_s

    def put_off(self, now: float) -> None:
        """It is written, and all of the log is still needed: another one in the next moment would change nothing."""
        self._not_before = now + AGAIN_S


class Compaction:
    """The newest state file of this node, the one being written, and the shorter log behind it."""

    def __init__(
        self,
        raft: Raft,
        journal: Journal,
        registry: Registry,
        snapshots: Snapshots,
        reserve: Reserve,
        config: EngineConfig,
        *,
        saved: SnapshotHeader | None,
        now: float,
        sent_from: Callable[[], Iterable[int]],
    ) -> None:
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._registry: Registry = registry
        self._snapshots: Snapshots = snapshots
        self._reserve: Reserve = reserve
        self.entries: int = config.snapshot_entries
        self.interval_s: float = config.snapshot_interval_s
        """A state file is due after so many entries, or so long."""
        self._sent_from: Callable[[], Iterable[int]] = sent_from
        """Where the state files end that followers are being sent."""
        self.saved: SnapshotHeader | None = saved
        """The newest state file that is whole."""
        self.pace: Saving = Saving(now)
        self._saving: Future[SnapshotHeader] | None = None
        self._cutting: tuple[Cut, Future[None]] | None = None

    @property
    def log_has_room(self) -> bool:
        """False while writes come in faster than a state file is written: what the log takes is bounded."""
        return self._journal.growth < LOG_BYTES_HARD or not (self._saving or self._cutting)

    @property
    def log_grew(self) -> bool:
        """By so much that a state file is due, however few the entries are."""
        return self._journal.growth > (LOG_BYTES_SHORT if self._reserve.short else LOG_BYTES_MAX)

    def save(self) -> None:
        """Begins to write a state file of what is applied now."""
        self._saving = self._snapshots.save(self._registry.root())

    def installed(self, header: SnapshotHeader, now: float) -> None:
        """One from the leader took the place of the newest."""
        self.saved = header
        self.pace.begun(now)
        self.pace.done()

    def step(self, now: float, *, busy: bool) -> None:
        """Writes a state file in the background and then cuts the log (D5, D15, D18)."""
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            self._finish_saving(saving, now)
        if self._cutting is not None and self._cutting[1].done():
            cutting, self._cutting = self._cutting, None
            self._finish_cutting(*cutting, now)
        if busy or self._saving or self._cutting:
            return
        entries = self._raft.applied - (self.saved.index if self.saved else 1)
        short = self._reserve.short
        many = entries >= self.entries or self.log_grew
        if entries and self.pace.due(now, many=many, interval_s=self.interval_s, short=short):
            self.pace.begun(now)
            self.save()

    def _finish_saving(self, saving: "Future[SnapshotHeader]", now: float) -> None:
        """Cuts the log behind a state file that was written and read back. Without one the log stays as it is."""
        try:
            header = saving.result()
        except OSError as error:
            rest_s = self.pace.failed(f"no state file could be written: {error.strerror}", now)
            logger.warning("%s; trying again in %.0f s", self.pace.error, rest_s)
            return
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is a fault of this program, and no reason to lose the log as well.
            what = error.message if isinstance(error, RollcallError) else repr(error)
            rest_s = self.pace.failed(f"a state file was discarded, it could not be read again: {what}", now)
            logger.error("%s; the log is not cut; trying again in %.0f s", self.pace.error, rest_s)
            return
        self.pace.done()
        self._restore_room()
        if header.index <= self._journal.base_index or (self.saved and header.index <= self.saved.index):
            # A newer one was installed meanwhile.
            return
        self.saved = header
        position = self._cut_position(header.index)
        if position:
            cut = self._journal.begin_cut(position)
            self._cutting = cut, self._snapshots.run(lambda: self._journal.write_cut(cut, self._snapshots.rest))
        else:
            # Who needs all of the log will not need less of it in a moment.
            if self.log_grew:
                self.pace.put_off(now)
            self._say_saved(header)

    def _cut_position(self, saved_index: int) -> int:
        """Where to cut the log: behind the state file, less what is kept for followers that were briefly away."""
        cut = saved_index
        if self._journal.growth < 2 * LOG_BYTES_MAX:
            # Who is being sent a state file needs the entries behind it next; but not at the price of a full disk.
            cut = min([cut, *self._sent_from()])
        kept = 0
        floor = max(self._journal.base_index, cut - KEEP_ENTRIES)
        while cut > floor and kept < KEEP_BYTES:
            kept += len(self._journal[cut - self._journal.base_index][0])
            cut -= 1
        return max(0, cut - self._journal.base_index)

    def _finish_cutting(self, cut: Cut, written: "Future[None]", now: float) -> None:
        failed = written.exception()
        try:
            if failed is None:
                self._snapshots.let_go(None, self._journal.end_cut(cut))
        except DiskUnavailable as error:
            failed = error
        if failed is not None:
            cut.abandon()
            what = failed.message if isinstance(failed, RollcallError) else repr(failed)
            rest_s = self.pace.failed(f"the log could not be cut: {what}", now)
            logger.warning("%s; trying again in %.0f s", self.pace.error, rest_s)
            return
        self._restore_room()
        self._say_saved(self.saved)

    def _say_saved(self, header: SnapshotHeader | None) -> None:
        saved_index = header.index if header is not None else 0
        logger.info("state file at entry %d; the log starts at %d", saved_index, self._journal.base_index)

    def abandon(self) -> None:
        if self._cutting is not None:
            self._cutting[0].abandon()
            self._cutting = None

    def _restore_room(self) -> None:
        if not self._reserve.whole:
            self._reserve.restore()
