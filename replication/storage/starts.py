"""Whether a data directory is older than what a peer saw of it. Values in, decisions out; no file, no clock.

Raft trusts that a disk remembers. An older copy of a directory (a restored
snapshot of a volume, a cloned machine, a second process on a copy) has forgotten
votes, terms and acknowledged entries, and the node on it does not know. Its peers
do. Two things that they remember of it prove that a directory is older:

**Starts.** Every start draws a random token, and writes number and token into the
directory before the node says a word. A node offers all its starts since the last
that each peer is known to have met. A directory that a later start went on from
lacks that start, or has another token at its number, for ever. A directory on which
the node only tried to start, again and again, lacks nothing.

**Words.** Whoever acknowledges, votes, or leads and names a commit index, has first
made durable what that implies: a term, and what its log holds in that term. A peer
keeps the highest such word. (A vote says no more than its term; the entry that the
winner writes next says more.) Compared with it is the *position* of the directory
(its term, the term and index of its last entry) at its first start after the word
was given, or now if there was none. Let the word be of term t and entry (e, i):

- The position's term c is below t: the directory forgot t, for terms never go back.
- c equals t: in t the log only loses what contradicts the one leader of t, and the
  word was given to that leader or by it, so what it names stayed: the last entry is
  at least (e, i), by term and then index, or the directory forgot.
- c is above t: proves nothing. A leader of a later term may have cut a tail that was
  acknowledged and never agreed on. That is why the position at the start counts, and
  not only the one at the greeting: a copy that went on through later terms had, when
  it began, the position that was copied.

(When a start counts as met: ``peers.py``.)

So a directory older than the last start, or the last word, that a peer keeps is refused
by that peer, and one that never lost anything is refused by nobody: its starts are the
ones that were met, and its positions only move on.

**Disks.** A disk that was readmitted (``standing.py``) is another directory, and takes
the place of the one before: who comes back with an earlier one is refused. Which is
the later one, the index of its ``Readmit`` says; 0 is the birth of the cluster.

A chain of more than ``STARTS_MAX`` starts is cut at its old end. Who met none of what
is left judges by the words alone. A start that was refused is not counted: the next
one takes its place, so that a refused copy that is started for ever stays refused.
"""

from typing import Annotated

from msgspec import Meta, Struct, structs

STARTS_MAX = 1024
PEERS_MAX = 64
UNKNOWN_ADMISSION = 1
"""A disk that was readmitted when nobody noted it: no ``Readmit`` is entry 1."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
First = Annotated[int, Meta(ge=0, le=2**62)]
"""So that the number of the last of a whole chain is one still."""
Name = Annotated[str, Meta(max_length=64)]


class Position(Struct, frozen=True, array_like=True, order=True):
    """How far a directory is: its term, and its last entry. Or how far it was, by a word of its node."""

    term: Number = 0
    last_term: Number = 0
    last_index: Number = 0


class Start(Struct, frozen=True, array_like=True):
    """One start of a node, and where its directory was then."""

    token: Name
    at: Position


class Known(Struct, frozen=True, array_like=True):
    """What one node knows of another's directory. ``number`` 0: none of its starts."""

    disk: Name
    admitted: Number
    number: Number = 0
    token: Name = ""
    word: Position = Position()


class Claims(Struct, frozen=True, array_like=True):
    """What a node says of its directory: its starts from number ``first`` on, where it is now, and what it
    knows of its peers', so that they can tell by themselves."""

    admitted: Number
    first: First
    starts: Annotated[tuple[Start, ...], Meta(min_length=1, max_length=STARTS_MAX)]
    now: Position
    known: Annotated[dict[Name, Known], Meta(max_length=PEERS_MAX)] = {}

    @property
    def last(self) -> int:
        """The number of the newest start."""
        return self.first + len(self.starts) - 1


class Chain(Struct, frozen=True):
    """The starts that a node offers. ``confirmed``: the last that each peer is known to have met."""

    first: Number = 1
    starts: tuple[Start, ...] = ()
    confirmed: dict[Name, Number] = {}

    def started(self, token: str, at: Position) -> "Chain":
        """With one more start."""
        return self._cut(Chain(self.first, (*self.starts, Start(token, at)), self.confirmed), self.first)

    def confirm(self, peer: str, number: int, peers: frozenset[str]) -> "Chain":
        """A peer has met that start: what came before what all ``peers`` have met need not be offered any more."""
        confirmed = {each: self.confirmed.get(each, 0) for each in peers} | {peer: number}
        return self._cut(structs.replace(self, confirmed=confirmed), min(confirmed.values()))

    @staticmethod
    def _cut(chain: "Chain", first: int) -> "Chain":
        drop = max(first - chain.first, len(chain.starts) - STARTS_MAX)
        drop = max(0, min(drop, len(chain.starts) - 1))
        return structs.replace(chain, first=chain.first + drop, starts=chain.starts[drop:])


def objection(known: Known | None, disk: str, *, member: bool, claims: Claims) -> str:
    """Why a directory is older than what is ``known`` of it, in words that name both; or nothing.

    ``disk`` and ``member`` are what its node says of its standing.
    """
    if known is None:
        return ""
    if disk != known.disk:
        # One that does not vote yet comes in the place of a lost one.
        if not member or claims.admitted == UNKNOWN_ADMISSION or claims.admitted > known.admitted:
            return ""
        return f"disk {known.disk} has come in its place since (at entry {known.admitted}), and this is disk {disk}"
    if known.number > claims.last:
        return f"start number {known.number} was met, and the directory has had {claims.last}"
    if known.number >= claims.first:
        offered = claims.starts[known.number - claims.first].token
        if offered != known.token:
            return f"start number {known.number} was met as {known.token}, and in the directory it is {offered}"
    following = max(0, known.number + 1 - claims.first)
    later = following < len(claims.starts)
    at = claims.starts[following].at if later else claims.now
    if not forgot(at, known.word):
        return ""
    when = f"began its start number {claims.first + following}" if later else "is"
    return f"it {_given(known.word)}, and the directory {when} at entry {at.last_index} in term {at.term}"


def forgot(at: Position, word: Position) -> bool:
    """Whether a directory at ``at`` cannot be one whose node gave that word before (see the top)."""
    if at.term != word.term:
        return at.term < word.term
    return (at.last_term, at.last_index) < (word.last_term, word.last_index)


def met(known: Known | None, disk: str, claims: Claims) -> Known:
    """What is known of a member's directory after a greeting that nothing was objected to."""
    before = known if known is not None and known.disk == disk else Known(disk, claims.admitted)
    admitted = max(before.admitted, claims.admitted)
    return Known(disk, admitted, claims.last, claims.starts[-1].token, before.word)


def readmitted(known: Known | None, disk: str, index: int) -> Known | None:
    """What is known of a node once its new ``disk`` was agreed on at that entry."""
    if known is not None and (known.disk == disk or known.admitted >= index):
        return known
    return Known(disk, index)


def _given(word: Position) -> str:
    if not word.last_index:
        return f"voted in term {word.term}"
    return f"held entry {word.last_index} in term {word.term}"
