"""Processes of one host that serve one instance share it: the kernel tells which is the last.

Each of them holds a shared ``flock`` on one file per instance, in which the greatest
``reg_index`` of their registrations stands. Who leaves tries to turn the lock into an
exclusive one, without waiting: who gets it is the last, and takes the instance out by that
``reg_index``; all others just go. The kernel frees the lock of a process that is killed.

Why this holds when they come and go at once:

* Two leave together. Linux gives the shared lock up before it tries for the exclusive one
  (flock(2)), so of several that leave, whoever tries last meets no lock but an exclusive
  one, and at least one gets it. If two do, one after the other, the second removal finds
  nothing, or what is newer than it means.
* One leaves, one comes. The last one takes the file's name away while it has it to itself,
  and lets go at once; who opened the file before finds that the name leads elsewhere, and
  begins again with a new one. The removal that is still under way names a ``reg_index``
  that is older than the newcomer's registration, so it changes nothing, or comes before it.
* A fork. The lock belongs to the open file and not to the process, so a child lets go of its
  copy and opens the file anew if it serves the instance itself (``forks``).
* Files of killed processes are swept by whoever comes next. A sweeper has them to itself for
  a moment, which somebody who leaves could take for company: so leaving tries more than once.

The files lie in a directory of the user in the directory for temporary files. A directory
that is not the user's own, or open to others, is not used: the process then serves the
instance as if alone, which the ``reg_index`` keeps harmless. So are processes of another
user, or with another ``TMPDIR``. Its lock keeps systemd-tmpfiles from cleaning it up.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import stat
import tempfile
import time

from . import forks

logger = logging.getLogger(__name__)

JOIN_S = 1.0
"""How long a file may be in the sole use of one process, which lasts microseconds unless that one was stopped."""

TRIES = 3
PAUSE_S = 0.01
SWEEP_MAX = 200
"""Files looked at by one process that comes; those that it leaves are the next one's."""

_PLACES = 64
_DIGITS = 20
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

_warned: bool = False


class Share:
    """This process' part in the instance that ``name`` stands for. For one thread at a time."""

    def __init__(self, *name: str) -> None:
        self._file_name: str = hashlib.sha256("\0".join(name).encode()).hexdigest()[:32]
        self._directory: int = -1
        self._file: int = -1
        self._reg_index: int = 0
        forks.begins_anew(self)

    def begin_in_child(self) -> None:
        self._close()
        self._reg_index = 0

    def join(self) -> None:
        """Takes part. Never fails: where nothing can be shared, this process is alone."""
        global _warned
        try:
            self._directory = _directory()
            with contextlib.suppress(BlockingIOError):  # by who cleans up here, for a moment
                fcntl.flock(self._directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._file = self._joined()
            self._sweep()
        except OSError as error:
            self._close()
            if not _warned:
                _warned = True
                logger.warning("an instance cannot be shared with other processes of this host: %s", error)

    def registered(self, reg_index: int) -> None:
        """This process registered the instance, with that index."""
        self._reg_index = max(self._reg_index, reg_index)
        if self._file >= 0:
            with contextlib.suppress(OSError):
                # Several may write at once: each to the place of its index, and the greatest counts.
                os.pwrite(self._file, b"%0*d" % (_DIGITS, reg_index), reg_index % _PLACES * _DIGITS)

    def leave(self) -> int:
        """Takes part no more. The ``reg_index`` to take out, or 0: another process serves the instance on,
        or none was registered."""
        if self._file < 0:
            self._close()
            return self._reg_index
        try:
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE_S)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._unlink(self._file_name, self._file)
                    return max(self._reg_index, self._noted())
            return 0
        finally:
            self._close()

    def _joined(self) -> int:
        until = time.monotonic() + JOIN_S
        while True:
            file = os.open(self._file_name, _OPEN, 0o600, dir_fd=self._directory)
            try:
                _check(os.fstat(file), stat.S_ISREG)
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if self._is_named(self._file_name, file):
                    return file
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(file)
                    raise
                time.sleep(PAUSE_S)
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _noted(self) -> int:
        text = os.pread(self._file, _PLACES * _DIGITS, 0)
        noted = (text[begin : begin + _DIGITS] for begin in range(0, len(text), _DIGITS))
        return max((int(one) for one in noted if one.isdigit()), default=0)

    def _is_named(self, name: str, file: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            there, here = os.stat(name, dir_fd=self._directory, follow_symlinks=False), os.fstat(file)
            return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        return False

    def _unlink(self, name: str, file: int) -> None:
        """To be called by the process that has the file to itself: nobody else takes that name away meanwhile."""
        with contextlib.suppress(OSError):
            if self._is_named(name, file):
                os.unlink(name, dir_fd=self._directory)

    def _sweep(self) -> None:
        """Removes files that nobody holds any more."""
        with os.scandir(self._directory) as entries:
            names = [entry.name for entry in itertools.islice(entries, SWEEP_MAX) if entry.name != self._file_name]
        for name in names:
            with contextlib.suppress(OSError):
                file = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._unlink(name, file)
                finally:
                    os.close(file)

    def _close(self) -> None:
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1


def _directory() -> int:
    path = os.path.join(tempfile.gettempdir(), f"rollcall-{os.geteuid()}")  # noqa: PTH118
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)  # noqa: PTH102
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _check(os.fstat(directory), stat.S_ISDIR)
    except OSError as error:
        os.close(directory)
        raise PermissionError(f"{path}: {error}") from None
    return directory


def _check(found: os.stat_result, kind: object) -> None:
    """That it is this user's, of that kind, and closed to others: else somebody may have put it there."""
    assert callable(kind)
    if not kind(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("it is not this user's own, or open to others")
