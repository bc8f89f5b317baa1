"""Whether a node may vote: it has its disk, or it does not.

Raft trusts that a member remembers its vote and its entries. A member whose
disk was emptied has forgotten both: it could vote twice in a term, and it could
help to elect a leader that lacks what it once acknowledged. So a data directory
has a standing, kept in the file ``standing``:

- ``new``: made by this process or an earlier one, and never taken part. Such a
  node neither votes nor acknowledges. It becomes a member when it has met every
  other member as new and all of them have met the same disks (a cluster is
  being born), or when it meets a member that met this very disk at its birth. If
  it meets a member that did not, the disk that the cluster knew is gone, and the
  process stops (``Fatal``).
- ``rejoining``: a new directory that an operator said may come in place of a
  lost one. It stores what the leader sends, and its acknowledgements do not
  count. The leader proposes ``Readmit`` with the id of this disk; when that
  entry is applied here, it is a member.
- ``member``: votes and acknowledges.

Why that is enough. Let the readmitting entry stand in term T. It was proposed
after the new disk was made, and committed by a quorum that did not count this
node. A candidate that still holds a vote of the old disk, in a term after T,
began that candidacy before the disk was lost, so it refused the entry; every
quorum contains, beside this node, one that holds the entry, and that one
refuses a candidate without it. In T itself and before, the vote counts as
given away (``Engine._admit``). And what the old disk acknowledged is held by
all but this node of some quorum, which meets any quorum without this node.

All of this, and Raft, speaks of the quorums of one list of members. So the list
is kept with the disk too, and a member starts with no other: a quorum of a shorter
list may hold none of what a quorum of the longer one acknowledged.
"""

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, structs

from ..errors import Damaged, Fatal, WrongDirectory
from .disk import Disk, no_room, rewrite
from .starts import UNKNOWN_ADMISSION

Kind = Literal["new", "rejoining", "member"]


class _Record(Struct, frozen=True):
    """The file. ``met``: the disks of the other members when the cluster was born. Fields that came
    later have a default, for what an earlier release wrote."""

    disk: str
    standing: Kind
    met: dict[str, str]
    members: tuple[str, ...] = ()
    admitted: int = UNKNOWN_ADMISSION
    """The entry at which the cluster agreed on this disk, if it was not there at the birth."""
    counted: bool = False
    """The starts of this directory are counted (``peers.py``): their file was here."""


class Standing:
    """The standing of one data directory. Belongs to the tick thread.

    ``empty``: neither log nor state file hold anything. ``rejoin`` and ``accept_members``: the
    operator's word. Raises ``Damaged`` if the file cannot be read, ``WrongDirectory`` if it
    belongs to a cluster of other members.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        others: Iterable[str],
        *,
        node: str,
        empty: bool,
        rejoin: bool,
        accept_members: bool = False,
    ) -> None:
        self._path: Path = directory / "standing"
        self._file: Disk = disk
        self._node: str = node
        self._others: frozenset[str] = frozenset(others)
        self._seen_new: dict[str, str] = {}
        self._views: dict[str, dict[str, str]] = {}
        self._members: tuple[str, ...] = tuple(sorted({node, *self._others}))
        self._record: _Record = self._read(empty=empty, rejoin=rejoin)
        if self._record.members != self._members:
            self._take_members(accepted=accept_members)
        if self.kind == "new" and not self._others:
            self._become("member", {})

    @property
    def kind(self) -> Kind:
        return self._record.standing

    @property
    def votes(self) -> bool:
        return self._record.standing == "member"

    @property
    def disk(self) -> str:
        """Names this data directory; another one has another id."""
        return self._record.disk

    @property
    def met(self) -> dict[str, str]:
        """The disks of the others: as this node has met them so far, or as they were at the birth."""
        return self._seen_new if self.kind == "new" else self._record.met

    @property
    def announced(self) -> tuple[Kind, dict[str, str]]:
        """What the others must be told when it changes."""
        return self.kind, dict(self.met)

    def meet(self, peer: str, disk: str, kind: str, met: dict[str, str]) -> bool:
        """What ``peer`` said of itself. True if that made this node a member.

        Raises ``Fatal`` if it proves that this node's disk is not the one that the cluster knew.
        """
        if self.kind != "new":
            return False
        if kind == "new" and disk:
            self._seen_new[peer] = disk
            self._views[peer] = {**met, peer: disk}
            # Not before all have seen the same: a node that was replaced meanwhile, or that only
            # some have met, would let the same cluster be born twice.
            ours = {**self._seen_new, self._node: self.disk}
            if self._seen_new.keys() != self._others or any(view != ours for view in self._views.values()):
                return False
            self._become("member", self._seen_new)
            return True
        if kind == "member":
            if met.get(self._node) == self.disk:
                # Who was there when the cluster was born is the same for all.
                self._become("member", {**{other: met[other] for other in met if other != self._node}, peer: disk})
                return True
            raise Fatal(
                f"the data directory {self._path.parent} is new, but {peer} belongs to a cluster that {self._node} was "
                "part of. If its disk was lost for good, and the other nodes still form a quorum, start this node "
                "once with --rejoin; if the directory is merely the wrong one, set data_dir"
            )
        return False

    @property
    def admission(self) -> int:
        """The entry at which the cluster agreed on this disk; of two disks of a node the later has the greater."""
        born = self.votes and self._record.met
        return 0 if born else self._record.admitted

    def admitted(self, disk: str, index: int = UNKNOWN_ADMISSION) -> bool:
        """The cluster agreed on this disk at that entry. True if that made this node a member."""
        if self.kind != "rejoining" or disk != self.disk:
            return False
        self._become("member", {}, admitted=index)
        return True

    @property
    def counted(self) -> bool:
        """Whether the starts of this directory were counted before."""
        return self._record.counted

    def count(self) -> None:
        """From now on there is a file that counts them: a directory without it lost it."""
        if not self.counted:
            self._record = self._write_if_room(structs.replace(self._record, counted=True))

    def _read(self, *, empty: bool, rejoin: bool) -> _Record:
        try:
            data = self._file.read(self._path)
        except FileNotFoundError:
            kind: Kind = ("rejoining" if rejoin else "new") if empty else "member"
            return self._write(_Record(secrets.token_hex(8), kind, {}, self._members))
        try:
            record = msgspec.json.decode(data, type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(
                f"{self._path} cannot be read ({error}). It says whether this node may vote. Choices: put it back; or, "
                "if the other nodes form a quorum, empty the data directory and start this node once with --rejoin"
            ) from None
        if record.standing == "new" and rejoin:
            return self._write(structs.replace(record, standing="rejoining"))
        return record

    def _take_members(self, *, accepted: bool) -> None:
        """Another list than the one in the file, or the first: of an earlier release, or of a node that
        has not taken part yet and holds nothing."""
        former = self._record.members
        if former and self.votes and not accepted:
            raise WrongDirectory(
                f"the data directory {self._path.parent} is that of {self._node} in a cluster of "
                f"{_listed(former)}, and members says {_listed(self._members)}: among these, a quorum may lack what "
                "was acknowledged among those. Set members to what they were; or, if this change is meant, make it as "
                "docs/operations.md says, and start every node once with --accept-members"
            )
        self._record = self._write_if_room(structs.replace(self._record, members=self._members))

    def _become(self, kind: Kind, met: dict[str, str], *, admitted: int = UNKNOWN_ADMISSION) -> None:
        self._record = self._write(structs.replace(self._record, standing=kind, met=dict(met), admitted=admitted))

    def _write_if_room(self, record: _Record) -> _Record:
        """For what protects and is not relied on: it is no reason not to start on a full disk."""
        try:
            return self._write(record)
        except OSError as error:
            if not no_room(error):
                raise
            return record

    def _write(self, record: _Record) -> _Record:
        """Durably, before anybody can rely on it."""
        rewrite(self._file, self._path, msgspec.json.encode(record))
        return record


def _listed(members: tuple[str, ...]) -> str:
    return f"{len(members)} ({', '.join(members)})"
