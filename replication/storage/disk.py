"""The few file operations that durability rests on, behind one small object.

Everything that the log and the snapshots put on disk passes through a
``Disk``, so that a test can cut the power between any two steps, fill the
disk, or make an fsync fail, and so that the order of the steps can be read
from one trace. Paths are absolute; sizes and offsets are bytes.
"""

import errno
import fcntl
import os
from pathlib import Path

from ..errors import WrongDirectory

CHOICES = (
    "Choices: if the other nodes form a quorum, empty the data directory and start this node once with --rejoin; "
    "if the disk keeps a second copy (a mirror, RAID), restore the file as it was, never an older one; "
    "if this is the last copy there is, docs/operations.md says what can be saved"
)
"""What an operator can do about a file that is damaged or gone."""


def remedy(error: OSError) -> str:
    """What an operator can do about a file that cannot be read or written."""
    if no_room(error):
        return "free some room there, or allow the node more"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make it readable and writable for the user that runs the node"
    return "the disk may be failing: look at the system's log, and replace it (docs/operations.md says how)"


class Disk:
    """The real file system. Every method raises ``OSError`` as the kernel does."""

    @property
    def short(self) -> bool:
        """Whether there is so little room that what is not needed is better given up (``reserve.py``)."""
        return False

    def open(self, path: Path) -> int:
        """A descriptor for reading and writing; the file is made if missing (mode 0600)."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        """All of ``data`` at ``offset``. It is not durable before ``sync``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written

    def reserve(self, descriptor: int, size: int) -> None:
        """Makes sure that writes below ``size`` cannot fail for lack of room."""
        os.posix_fallocate(descriptor, 0, size)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Puts the file's data on stable storage. After an error the process
        must stop: the kernel may have dropped the pages, and a second try lie."""
        os.fdatasync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Renames ``source`` over ``target``, durably."""
        self.rename(source, target)
        self.sync_directory(target.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Renames ``source`` over ``target``. A power cut may take that back."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Keeps ``source`` under a second name, in place of what had that name."""
        target.unlink(missing_ok=True)
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def free_bytes(self, directory: Path) -> int:
        """How much room the disk under ``directory`` has, as far as it says so: a quota may leave less."""
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rewrite(disk: Disk, path: Path, data: bytes) -> None:
    """``data`` in place of the file, durably: a crash leaves the old file or the new one. Raises ``OSError``."""
    partial = path.with_suffix(".tmp")
    disk.unlink(partial)
    descriptor = disk.open(partial)
    try:
        disk.write(descriptor, data, 0)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    disk.replace(partial, path)


def is_full(error: OSError) -> bool:
    """Whether a file could not be written because there is no room where it is, be it for it or for its user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_room(error: OSError) -> bool:
    """Whether a file could not be written for want of room, which may come back."""
    return is_full(error) or error.errno == errno.EFBIG


def _make(directory: Path) -> None:
    """Makes a directory, and those above it, so that a power cut does not take it back with all that it holds."""
    if directory.is_dir():
        return
    _make(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    Disk().sync_directory(directory.parent)


class DirectoryLock:
    """Keeps a second process out of a data directory until ``release``.

    Makes the directory (mode 0700) if it is missing. Raises ``WrongDirectory``
    if another process holds it or it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        try:
            _make(directory)
            directory.chmod(0o700)
            self._descriptor: int | None = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise WrongDirectory(
                f"the data directory {directory} cannot be written: {error.strerror}; "
                "make it writable for the user that runs the node, or set another data_dir"
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise WrongDirectory(
                f"the data directory {directory} is in use by another process; "
                "stop that node first, or give this one a data_dir of its own"
            ) from None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
