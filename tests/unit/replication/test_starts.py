"""An older copy of a directory is told from the directory, and a good one never from itself."""

import random
from typing import NamedTuple

import msgspec
import pytest
from harness.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from rollcall.replication.network import wire
from rollcall.replication.storage import starts
from rollcall.replication.storage.starts import (
    STARTS_MAX,
    UNKNOWN_ADMISSION,
    Chain,
    Claims,
    Known,
    Position,
    Start,
    forgot,
    met,
    objection,
    readmitted,
)

PEERS = frozenset({"b", "c", "d", "e"})
NOWHERE = Position()


def claims_of(chain: Chain, now: Position, admitted: int = 0) -> Claims:
    return Claims(admitted, chain.first, chain.starts, now)


def chain_of(*tokens: str, first: int = 1, at: Position = NOWHERE) -> Chain:
    return Chain(first, tuple(Start(token, at) for token in tokens))


def refuses(known: Known | None, claims: Claims, disk: str = "d", *, member: bool = True) -> str:
    return objection(known, disk, member=member, claims=claims)


# -- what proves something, and what does not

NOW = Position(9, 9, 90)

STARTS = [
    (Known("d", 0, 3, "t3"), chain_of("t1", "t2", "t3", "t4"), ""),
    (Known("d", 0, 4, "t4"), chain_of("t1", "t2", "t3", "t4"), ""),
    (Known("d", 0, 3, "t3"), chain_of("t3", "t4", first=3), ""),
    (Known("d", 0, 3, "t3"), chain_of("t1", "t2", "x3"), "start number 3 was met as t3, and in the directory it is x3"),
    (Known("d", 0, 3, "t3"), chain_of("t1", "t2"), "start number 3 was met, and the directory has had 2"),
    (Known("d", 0, 3, "t3"), chain_of("t9", first=9), ""),
    (Known("d", 0), chain_of("t1"), ""),
    (None, chain_of("t1"), ""),
]


@pytest.mark.parametrize(("known", "chain", "said"), STARTS)
def test_a_start_that_was_met_is_among_those_of_the_directory(known: Known | None, chain: Chain, said: str) -> None:
    """A chain that begins after it, as one that was cut does, proves nothing."""
    assert refuses(known, claims_of(chain, NOW)) == said


WORD = Position(5, 4, 60)

WORDS = [
    (Position(5, 4, 60), False),
    (Position(5, 4, 61), False),
    (Position(5, 5, 40), False),
    (Position(6, 2, 10), False),
    (Position(5, 4, 59), True),
    (Position(5, 3, 80), True),
    (Position(4, 4, 80), True),
    (Position(), True),
]


@pytest.mark.parametrize(("at", "is_older"), WORDS)
def test_a_directory_is_at_least_where_its_node_gave_its_word(at: Position, is_older: bool) -> None:
    """In the same term it only grows; a later term may have cut what nobody had agreed on."""
    assert forgot(at, WORD) == is_older
    assert bool(refuses(Known("d", 0, 1, "t1", WORD), claims_of(chain_of("t1"), at))) == is_older


def test_what_counts_is_the_first_start_after_the_word_not_where_the_directory_has_come_to_since() -> None:
    known = Known("d", 0, 2, "t2", WORD)
    began = Chain(1, (Start("t1", Position()), Start("t2", Position(3, 3, 30)), Start("t3", Position(5, 4, 47))))

    said = refuses(known, claims_of(began, NOW))

    assert said == "it held entry 60 in term 5, and the directory began its start number 3 at entry 47 in term 5"


def test_a_vote_is_a_word_about_its_term() -> None:
    known = Known("d", 0, 1, "t1", Position(7))

    said = refuses(known, claims_of(chain_of("t1"), Position(6, 6, 100)))

    assert said == "it voted in term 7, and the directory is at entry 100 in term 6"
    assert refuses(known, claims_of(chain_of("t1"), Position(7, 1, 1))) == ""


DISKS = [
    (0, 40, True, ""),
    (40, 90, True, ""),
    (0, UNKNOWN_ADMISSION, True, ""),
    (UNKNOWN_ADMISSION, 40, True, ""),
    (40, UNKNOWN_ADMISSION, True, ""),
    (40, 0, False, ""),
    (40, 0, True, "disk known has come in its place since (at entry 40), and this is disk d"),
    (90, 40, True, "disk known has come in its place since (at entry 90), and this is disk d"),
    (0, 0, True, "disk known has come in its place since (at entry 0), and this is disk d"),
]


@pytest.mark.parametrize(("known", "offered", "member", "said"), DISKS)
def test_an_earlier_disk_is_refused_and_a_later_one_is_another_directory(
    known: int, offered: int, member: bool, said: str
) -> None:
    """Who does not vote yet may come with any; and of a disk that nobody noted the admission of, nothing is known."""
    claims = claims_of(chain_of("t1"), Position(), offered)

    assert refuses(Known("known", known, 7, "t7", WORD), claims, member=member) == said


def test_a_readmitted_disk_takes_the_place_of_the_one_before_once() -> None:
    before = Known("old", 0, 7, "t7", WORD)

    now = readmitted(before, "new", 40)

    assert now == Known("new", 40)
    assert readmitted(now, "older", 30) == readmitted(now, "new", 30) == now
    assert readmitted(None, "new", 40) == now
    claims = claims_of(chain_of("t1"), Position(), 40)
    assert met(now, "new", claims) == Known("new", 40, 1, "t1")
    assert met(met(before, "new", claims), "new", claims) == Known("new", 40, 1, "t1")


# -- any life of a directory


class Copy(NamedTuple):
    chain: Chain
    at: Position
    log: tuple[int, ...]
    number: int
    """How much had happened when it was made."""

    def holds(self, word: Position) -> bool:
        """Whether what the word implies is in the copy. (An entry of an earlier term is not looked for: its place
        may have been taken since, until the leader has had one of its own acknowledged.)"""
        if self.at.term != word.term or word.last_term != word.term:
            return self.at.term >= word.term
        return len(self.log) >= word.last_index and self.log[word.last_index - 1] == word.last_term


class Kept(NamedTuple):
    """What a peer has on its disk, and since when what of it counts."""

    known: Known
    start_began: int
    word_given: int


class Life:
    """A directory, its node, and peers that meet it, hear it, and sometimes forget the last that they heard."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.chain = Chain()
        self.log: list[int] = [0]
        self.term = 0
        self.kept_from: int = 1
        """What the leader of this term agrees with: it cannot be cut in this term any more."""
        self.number = 0
        self.peers: dict[str, Kept] = {}
        self.met: set[str] = set()
        self.copies: list[Copy] = []
        self.began = 0
        self.start()

    @property
    def at(self) -> Position:
        return Position(self.term, self.log[-1], len(self.log))

    def start(self) -> None:
        self.number += 1
        self.began = self.number
        self.met.clear()
        self.chain = self.chain.started(f"token {self.number}", self.at)

    def greet(self, peer: str) -> None:
        kept = self.peers.get(peer)
        claims = claims_of(self.chain, self.at)
        assert objection(kept.known if kept else None, "d", member=True, claims=claims) == ""
        self.met.add(peer)
        known = met(kept.known if kept else None, "d", claims)
        if kept is not None and self._chance.random() < 0.8:
            self.chain = self.chain.confirm(peer, kept.known.number, PEERS)
        self.peers[peer] = Kept(known, self.began, kept.word_given if kept else 0)

    def move(self) -> None:
        if self._chance.random() < 0.4:
            self.term += self._chance.choice((1, 1, 5))
            self.kept_from = 1
        if self._chance.random() < 0.4:
            del self.log[self._chance.randint(self.kept_from, len(self.log)) :]
        self.log += sorted(self._chance.choices(range(self.log[-1], self.term + 1), k=self._chance.randrange(4)))

    def give_word(self, peer: str) -> None:
        kept = self.peers.get(peer)
        if kept is None or peer not in self.met:
            return
        if self._chance.random() < 0.2:
            word = Position(self.term)
        else:
            index = self._chance.randint(self.kept_from, len(self.log))
            self.kept_from = index
            word = Position(self.term, self.log[index - 1], index)
        if word > kept.known.word:
            self.peers[peer] = Kept(structs.replace(kept.known, word=word), kept.start_began, self.number)

    def play(self, steps: int) -> None:
        saved = dict(self.peers)
        for _ in range(steps):
            self.number += 1
            peer = self._chance.choice(sorted(PEERS))
            match self._chance.randrange(12):
                case 0 | 1:
                    self.start()
                case 2 | 3 | 4:
                    self.greet(peer)
                case 5 | 6 | 7:
                    self.move()
                case 8 | 9:
                    self.give_word(peer)
                case 10:
                    self.copies.append(Copy(self.chain, self.at, tuple(self.log), self.number))
                case 11 if peer in saved and self._chance.random() < 0.5:
                    # It crashed; what it heard last is lost, and the start that it met is not.
                    now = self.peers[peer]
                    word = saved[peer].known.word
                    self.peers[peer] = Kept(
                        structs.replace(now.known, word=word), now.start_began, saved[peer].word_given
                    )
                case _:
                    saved = dict(self.peers)


@settings(max_examples=examples(300))
@given(st.randoms(use_true_random=False), st.integers(10, 120))
def test_a_directory_that_lost_nothing_is_refused_by_nobody(chance: random.Random, steps: int) -> None:
    """``Life.greet`` holds every greeting to that."""
    life = Life(chance)
    life.play(steps)

    for peer in sorted(PEERS):
        life.greet(peer)
    assert len(life.chain.starts) <= STARTS_MAX


@settings(max_examples=examples(300))
@given(st.randoms(use_true_random=False), st.integers(20, 120))
def test_every_copy_older_than_the_last_start_or_word_that_a_peer_keeps_is_refused(
    chance: random.Random, steps: int
) -> None:
    life = Life(chance)
    life.play(steps)

    for copy in life.copies:
        chain, at = copy.chain, copy.at
        for again in range(chance.choice((1, 1, 2, 5))):
            chain = chain.started(f"token of a copy {again}", at)
            # It goes on with others, who know no better.
            at = Position(at.term + chance.randrange(3), at.term, at.last_index + chance.randrange(3))
        for kept in life.peers.values():
            later_start = kept.start_began > copy.number
            later_word = kept.word_given > copy.number and not copy.holds(kept.known.word)
            if later_start or later_word:
                assert refuses(kept.known, claims_of(chain, at)), (copy, kept)


def test_a_crash_loop_longer_than_the_chain_locks_nobody_out() -> None:
    chain = Chain().started("first", Position())
    known = met(None, "d", claims_of(chain, Position(1, 1, 5)))
    known = structs.replace(known, word=Position(1, 1, 5))

    for number in range(3 * STARTS_MAX):
        chain = chain.started(f"{number}", Position(1, 1, 5))
        assert refuses(known, claims_of(chain, Position(1, 1, 5))) == ""

    assert (len(chain.starts), claims_of(chain, NOW).last) == (STARTS_MAX, 3 * STARTS_MAX + 1)


def test_only_what_every_peer_has_met_is_left_out() -> None:
    chain = chain_of("t1", "t2", "t3", "t4")

    for peer, number, first in (
        ("b", 4, 1),
        ("c", 3, 1),
        ("d", 2, 1),
        ("e", 3, 2),
        ("d", 4, 3),
        ("c", 4, 3),
        ("e", 4, 4),
    ):
        chain = chain.confirm(peer, number, PEERS)
        assert chain.first == first

    assert chain.starts == (Start("t4", Position()),)


def test_the_longest_chain_fits_into_a_hello() -> None:
    most = 2**63 - 1
    position = Position(most, most, most)
    claims = Claims(
        most,
        most,
        (Start("f" * 16, position),) * STARTS_MAX,
        position,
        {f"node-{number}{'x' * 57}": Known("f" * 16, most, most, "f" * 16, position) for number in range(6)},
    )
    hello = wire.Hello(1, "c" * 64, "n" * 64, "f" * 16, most, {"s" * 30: "v" * 30}, 9, "f" * 16, "member", {}, claims)

    assert len(wire.encode(hello)) < wire.HELLO_BYTES_MAX - 8 * 1024


@pytest.mark.parametrize("release", ["older", "newer"])
def test_a_release_that_knows_nothing_of_starts_reads_the_hello_all_the_same(release: str) -> None:
    chain = chain_of("t1")
    hello = wire.Hello(1, "c", "n", "m", 1, {}, 3, "d", "member", {}, claims_of(chain, NOW))
    data = msgspec.msgpack.decode(msgspec.msgpack.encode(hello))
    if release == "older":
        assert data[-1] is not None
        assert msgspec.convert(data[:-1], wire.Message) == structs.replace(hello, starts=None)
    else:
        assert msgspec.convert([*data, "more"], wire.Message) == hello


def test_the_limit_of_the_chain_is_that_of_the_wire() -> None:
    assert starts.STARTS_MAX == STARTS_MAX
    too_long = msgspec.to_builtins(claims_of(chain_of(*["t"] * (STARTS_MAX + 1)), NOW))

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(too_long, Claims)
