"""What a node keeps on disk so that no older copy of a directory passes for it, or for a peer's.

``starts.py`` says what it is for and decides. Here are the two files:

- ``starts``: this directory's own starts, written before the first hello; and the last
  start of each peer that was met. A start counts as met once its node gave its word, or
  stayed for ``STAYS_S``: one that another peer refused at once said nothing that matters,
  and must not be held against the right directory when that comes back.
- ``words``: the highest word of each peer (what it acknowledged, voted for, led).
  Words come with every message, so this one is written a second after they changed,
  and by the background thread. A crash may lose the last of them: then less is known, and
  nothing wrong.

Both carry a checksum. Without ``starts``, or with one that cannot be read, a directory
cannot say which starts it has had, so the node does not start on it; ``words`` that
cannot be read are forgotten, with a warning. Without room on the disk a node starts
under its last start once more (under none if there was none: then it says nothing of
them), and a peer's start is remembered in memory, and written when there is room.
"""

import errno
import logging
import secrets
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from ..errors import Damaged, DiskUnavailable, Fatal
from .disk import CHOICES, Disk, no_room, remedy, rewrite
from .starts import Chain, Claims, Known, Position, met, objection, readmitted

logger = logging.getLogger(__name__)

WORDS_S = 1.0
"""Words are written no more often than once in this time."""

STAYS_S = 2.0
"""A peer that was here for this long without being refused elsewhere has been met."""

OLDER = (
    "Put the right directory back; or, if the other nodes form a quorum without this one, empty the data directory "
    "and start this node once with --rejoin (docs/operations.md: an older copy of a directory)"
)
"""What an operator can do about a directory that is older than what a peer saw of it."""

T = TypeVar("T")

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Wants that pass, beside that of room: they say nothing of what the disk holds."""


class _Starts(Struct, frozen=True):
    """The file ``starts``. ``refused_by``: the peer that refused the newest start as one of an older copy."""

    own: Chain = Chain()
    known: dict[str, Known] = {}
    refused_by: str = ""


class _Word(Struct, frozen=True):
    """A peer's highest word, and the disk that it gave it on."""

    disk: str
    word: Position


class Peers:
    """The memory of one directory for starts, its own and its peers'. Belongs to the tick thread.

    The constructor is a start: it is on disk when it returns, if there is room. ``at``: where the directory is.
    ``counted``: its starts were counted before. ``hints``: the disk for what a crash may lose, and want of room
    as well: none of what is kept for a full disk is used for that. Raises ``Damaged`` or ``DiskUnavailable``.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        others: Iterable[str],
        *,
        node: str,
        at: Position,
        counted: bool,
        hints: Disk | None = None,
    ) -> None:
        self._directory: Path = directory
        self._disk: Disk = disk
        self._hints: Disk = hints or disk
        self._node: str = node
        self._others: frozenset[str] = frozenset(others)
        self._present: dict[str, tuple[str, Claims]] = {}
        """The disk of each member that was greeted last, and what it said: whatever it says next is of that start."""
        self._arrived: dict[str, float | None] = {}
        """Since when those are here whose start does not count as met yet."""
        self._unsaved: bool = False
        self._changed: bool = False
        self._saving: Future[None] | None = None
        self._save_at: float = 0.0
        self._record: _Starts = self._read(counted=counted)
        # Members that were replaced by others are nobody's peers any more.
        members = {peer: known for peer, known in self._record.known.items() if peer in self._others}
        self._record = structs.replace(self._record, known=members)
        for peer, spoken in self._read_words().items():
            known = self._record.known.get(peer)
            if known is not None and known.disk == spoken.disk:
                self._note(peer, structs.replace(known, word=max(known.word, spoken.word)))
        self._begin(at)

    def claims(self, admitted: int, now: Position) -> Claims | None:
        """What this node says of its directory, and of its peers'. None: there was never room to note a start."""
        own = self._record.own
        if not own.starts:
            return None
        return Claims(admitted, own.first, own.starts, now, self._record.known)

    def meet(self, peer: str, known: Known | None, ours: Claims | None, disk: str, *, votes: bool) -> None:
        """``peer`` shows what is ``known`` there of this directory. Raises ``Fatal`` if this one is older than that.

        ``ours`` and ``disk`` are what this node says of itself, ``votes`` whether it is a member.
        """
        if known is None or ours is None:
            return
        why = objection(known, disk, member=votes, claims=ours)
        if why:
            self._save(structs.replace(self._record, refused_by=peer))
            raise Fatal(
                f"the data directory {self._directory} is older than what {peer} saw of {self._node}: {why}. "
                f"This node does not go on with it, because it may have acknowledged what is lost there. {OLDER}"
            )
        record = self._record
        if record.refused_by == peer:
            self._save(structs.replace(record, refused_by=""))
        if known.disk == disk and known.number:
            # To be written with the next start: until then a longer chain is offered than needs be.
            own = record.own.confirm(peer, known.number, self._others)
            self._record = structs.replace(self._record, own=own)

    def greet(self, peer: str, disk: str, claims: Claims | None, *, votes: bool) -> str:
        """What ``peer`` says of its own directory. Why that is older than what is known of it, or nothing."""
        self._arrived.pop(peer, None)
        self._present.pop(peer, None)
        if claims is None:
            return ""
        why = objection(self._record.known.get(peer), disk, member=votes, claims=claims)
        if not why and votes:
            self._arrived[peer] = None
            self._present[peer] = (disk, claims)
        return why

    def leave(self, peer: str) -> None:
        """The connection to ``peer`` ended: the one before, if that was there still when the newest was greeted."""
        self._arrived.pop(peer, None)

    def hear(self, peer: str, word: Position) -> None:
        """``peer`` said something that it had made durable that for."""
        if peer not in self._present:
            return
        # A word is compared with the starts after the one that it was given in: so that one is met first.
        known = self._met(peer)
        if word <= known.word:
            return
        self._note(peer, structs.replace(known, word=word))
        self._changed = True

    def readmit(self, peer: str, disk: str, index: int) -> None:
        """The cluster agreed on another disk of ``peer``, at that entry."""
        known = readmitted(self._record.known.get(peer), disk, index)
        if known is not None:
            self._remember(peer, known)

    def save(self, now: float, run: Callable[[Callable[[], None]], "Future[None]"], *, at_once: bool = False) -> None:
        """Has ``run`` write what was heard since, if it is time to."""
        for peer, since in list(self._arrived.items()):
            if since is None:
                self._arrived[peer] = now
            elif now - since >= STAYS_S:
                self._met(peer)
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            error = saving.exception()
            if error is not None:
                self._changed = True
                if not (isinstance(error, OSError) and no_room(error)):
                    logger.warning("could not note what the peers acknowledged: %s; trying again", error)
        if self._saving is not None or not (self._changed or self._unsaved) or (now < self._save_at and not at_once):
            return
        self._save_at = now + WORDS_S
        if self._unsaved:
            # First: a word is compared with the starts after the one that it was given in.
            self._save(self._record)
            if self._unsaved:
                return
        self._changed = False
        words = {peer: _Word(known.disk, known.word) for peer, known in self._record.known.items()}
        data, path = _sealed(words), self._directory / "words"
        self._saving = run(lambda: rewrite(self._hints, path, data))

    # -- files ---------------------------------------------------------------------

    def _begin(self, at: Position) -> None:
        """One more start; or the last again, if that was refused."""
        record = self._record
        if not record.refused_by or not record.own.starts:
            record = structs.replace(record, own=record.own.started(secrets.token_hex(8), at))
        try:
            self._disk.unlink(self._directory / "words.tmp")
            rewrite(self._disk, self._directory / "starts", _sealed(record))
        except OSError as error:
            if no_room(error):
                logger.warning("no room in %s to note this start: it goes for the one before", self._directory)
                return
            raise DiskUnavailable(
                f"this start could not be noted in {self._directory}: {error.strerror}; {remedy(error)}"
            ) from None
        self._record = record

    def _met(self, peer: str) -> Known:
        self._arrived.pop(peer, None)
        disk, claims = self._present[peer]
        known = self._record.known.get(peer)
        if known is None or (known.disk, known.number) != (disk, claims.last):
            known = met(known, disk, claims)
            self._remember(peer, known)
        return known

    def _note(self, peer: str, known: Known) -> None:
        self._record = structs.replace(self._record, known={**self._record.known, peer: known})

    def _remember(self, peer: str, known: Known) -> None:
        if known != self._record.known.get(peer):
            self._note(peer, known)
            self._save(self._record)

    def _save(self, record: _Starts) -> None:
        """Durably if there is room, and as soon as there is if not."""
        self._record = record
        try:
            rewrite(self._disk, self._directory / "starts", _sealed(record))
        except OSError as error:
            if not no_room(error) and error.errno not in _PASSING:
                raise
            if not self._unsaved:
                logger.warning("could not note which start of a peer was met: %s; trying again", error.strerror)
        else:
            self._unsaved = False
            return
        self._unsaved = True

    def _read(self, *, counted: bool) -> _Starts:
        path = self._directory / "starts"
        try:
            return _opened(self._disk.read(path), _Starts)
        except FileNotFoundError:
            if not counted:
                return _Starts()
            what = "is missing"
        except ValueError as error:
            what = f"cannot be read ({error})"
        except OSError as error:
            raise DiskUnavailable(f"{path} cannot be read: {error.strerror}; {remedy(error)}") from None
        raise Damaged(
            f"{path} {what}. It says which starts this directory has had, and the other nodes ask for that. {CHOICES}",
            file=str(path),
        )

    def _read_words(self) -> dict[str, _Word]:
        path = self._directory / "words"
        try:
            return _opened(self._disk.read(path), dict[str, _Word])
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            logger.warning("%s cannot be read (%s): what the peers acknowledged before is forgotten", path, error)
            return {}


def _sealed(value: Any) -> bytes:
    body = msgspec.json.encode(value)
    return b"%s\n%08x\n" % (body, zlib.crc32(body))


def _opened(data: bytes, kind: type[T]) -> T:
    """What ``_sealed`` made. Raises ``ValueError`` where it did not."""
    body, _, rest = data.partition(b"\n")
    if rest != b"%08x\n" % zlib.crc32(body):
        raise ValueError("its checksum does not fit")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
