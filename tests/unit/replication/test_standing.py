"""Who may vote: a disk that remembers, and never the empty one that came in its place."""

import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.members import Refused, run
from harness.ours import EngineMember
from harness.raft import ROUND_S, Bench, Clock, Cluster, Network, hello_of, is_done, unstamped
from harness.seeds import seeds
from harness.sim_disk import PowerCut, SimDisk
from msgspec import structs
from rollcall.replication.commands import LEVEL, Envelope, Readmit, decode, encode, level_of
from rollcall.replication.errors import Damaged, Fatal, WrongDirectory
from rollcall.replication.network import wire
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft.library import LEADER
from rollcall.replication.storage.disk import Disk
from rollcall.replication.storage.journal import REGULAR
from rollcall.replication.storage.standing import Standing

MEMBERS = ("a", "b", "c")


# -- the table


def standing_of(directory: Path, *, empty: bool = True, rejoin: bool = False, disk: Disk | None = None) -> Standing:
    """The standing of node "a", whose peers are "b" and "c"."""
    directory.mkdir(exist_ok=True)
    return Standing(directory, disk or SimDisk(), ("b", "c"), node="a", empty=empty, rejoin=rejoin)


def new(directory: Path) -> Standing:
    return standing_of(directory)


def rejoining(directory: Path) -> Standing:
    return standing_of(directory, rejoin=True)


def member(directory: Path) -> Standing:
    return standing_of(directory, empty=False)


def meets_both_as_new(standing: Standing) -> None:
    """And they have met each other and this disk."""
    standing.meet("b", "b1", "new", {"a": standing.disk, "c": "c1"})
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})


def meets_both_before_they_met_each_other(standing: Standing) -> None:
    standing.meet("b", "b1", "new", {"a": standing.disk})
    standing.meet("c", "c1", "new", {"a": standing.disk})


def meets_both_of_whom_one_met_another_disk_of_the_other(standing: Standing) -> None:
    standing.meet("b", "b1", "new", {"a": standing.disk, "c": "c0"})
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})


def meets_both_of_whom_one_met_another_disk_of_this_node(standing: Standing) -> None:
    standing.meet("b", "b1", "new", {"a": "another", "c": "c1"})
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})


def hears_of_a_meeting_later(standing: Standing) -> None:
    meets_both_before_they_met_each_other(standing)
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})
    assert standing.kind == "new"
    standing.meet("b", "b1", "new", {"a": standing.disk, "c": "c1"})


def meets_one_as_new(standing: Standing) -> None:
    standing.meet("b", "b1", "new", {"a": standing.disk, "c": "c1"})
    standing.meet("b", "b2", "new", {"a": standing.disk, "c": "c1"})


def meets_rejoining_peers(standing: Standing) -> None:
    standing.meet("b", "b1", "rejoining", {})
    standing.meet("c", "c1", "rejoining", {})


def meets_new_peers_without_a_disk(standing: Standing) -> None:
    standing.meet("b", "", "new", {})
    standing.meet("c", "", "new", {})


def meets_a_member_that_met_this_disk(standing: Standing) -> None:
    standing.meet("b", "b1", "member", {"a": standing.disk, "c": "c1"})


def meets_a_member_that_met_another_disk(standing: Standing) -> None:
    standing.meet("b", "b1", "member", {"a": "another", "c": "c1"})


def meets_a_member_that_met_none(standing: Standing) -> None:
    """As one of an older release, or one that was readmitted."""
    standing.meet("b", "b1", "member", {})


def is_admitted(standing: Standing) -> None:
    standing.admitted(standing.disk)


def sees_another_disk_admitted(standing: Standing) -> None:
    standing.admitted("another")


TRANSITIONS = [
    (new, meets_both_as_new, "member"),
    (new, meets_both_before_they_met_each_other, "new"),
    (new, meets_both_of_whom_one_met_another_disk_of_the_other, "new"),
    (new, meets_both_of_whom_one_met_another_disk_of_this_node, "new"),
    (new, hears_of_a_meeting_later, "member"),
    (new, meets_one_as_new, "new"),
    (new, meets_rejoining_peers, "new"),
    (new, meets_new_peers_without_a_disk, "new"),
    (new, meets_a_member_that_met_this_disk, "member"),
    (new, meets_a_member_that_met_another_disk, "stops"),
    (new, meets_a_member_that_met_none, "stops"),
    (new, is_admitted, "new"),
    (rejoining, meets_both_as_new, "rejoining"),
    (rejoining, meets_rejoining_peers, "rejoining"),
    (rejoining, meets_a_member_that_met_this_disk, "rejoining"),
    (rejoining, meets_a_member_that_met_another_disk, "rejoining"),
    (rejoining, meets_a_member_that_met_none, "rejoining"),
    (rejoining, is_admitted, "member"),
    (rejoining, sees_another_disk_admitted, "rejoining"),
    (member, meets_both_as_new, "member"),
    (member, meets_rejoining_peers, "member"),
    (member, meets_a_member_that_met_this_disk, "member"),
    (member, meets_a_member_that_met_another_disk, "member"),
    (member, meets_a_member_that_met_none, "member"),
    (member, is_admitted, "member"),
    (member, sees_another_disk_admitted, "member"),
]


@pytest.mark.parametrize(
    ("begin", "event", "expected"),
    [pytest.param(*row, id=f"{row[0].__name__} {row[1].__name__}") for row in TRANSITIONS],
)
def test_every_transition(
    tmp_path: Path, begin: Callable[[Path], Standing], event: Callable[[Standing], None], expected: str
) -> None:
    standing = begin(tmp_path)
    disk = standing.disk

    if expected == "stops":
        with pytest.raises(Fatal, match="start this node once with --rejoin"):
            event(standing)
        expected = "new"
    else:
        event(standing)

    assert standing.kind == expected
    assert standing.votes == (expected == "member")
    # And so a process that starts again finds it, whatever it is told; the operator's word moves only a new one.
    for rejoin, found in ((False, expected), (True, "rejoining" if expected == "new" else expected)):
        again = standing_of(tmp_path, rejoin=rejoin)
        assert (again.kind, again.disk) == (found, disk)


@pytest.mark.parametrize(
    ("empty", "rejoin", "expected"),
    [(True, False, "new"), (True, True, "rejoining"), (False, False, "member"), (False, True, "member")],
)
def test_a_directory_without_the_file_is_new_unless_it_holds_something(
    tmp_path: Path, empty: bool, rejoin: bool, expected: str
) -> None:
    """What holds something was written by a release that had no such file."""
    standing = standing_of(tmp_path, empty=empty, rejoin=rejoin)

    assert (standing.kind, standing.met) == (expected, {})


def test_a_node_that_is_a_cluster_of_its_own_is_a_member_at_once(tmp_path: Path) -> None:
    assert Standing(tmp_path, Disk(), (), node="a", empty=True, rejoin=False).kind == "member"


def test_every_directory_has_a_disk_of_its_own(tmp_path: Path) -> None:
    assert len({standing_of(tmp_path / str(number)).disk for number in range(10)}) == 10


def test_who_was_there_at_the_birth_is_kept(tmp_path: Path) -> None:
    standing = standing_of(tmp_path)
    meets_both_as_new(standing)

    assert standing.met == standing_of(tmp_path).met == {"b": "b1", "c": "c1"}


def test_who_was_there_at_the_birth_is_learnt_from_a_member(tmp_path: Path) -> None:
    standing = standing_of(tmp_path)
    meets_a_member_that_met_this_disk(standing)

    assert standing.met == {"b": "b1", "c": "c1"}


def test_a_new_node_says_whom_it_has_met_so_far(tmp_path: Path) -> None:
    standing = standing_of(tmp_path)
    assert standing.announced == ("new", {})

    standing.meet("b", "b1", "new", {})
    assert standing.announced == ("new", {"b": "b1"})
    meets_both_as_new(standing)

    assert standing.announced == ("member", {"b": "b1", "c": "c1"})


def test_of_a_peer_that_was_new_twice_the_last_disk_counts(tmp_path: Path) -> None:
    standing = standing_of(tmp_path)
    standing.meet("b", "b1", "new", {"a": standing.disk, "c": "c1"})
    standing.meet("b", "b2", "new", {"a": standing.disk, "c": "c1"})
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})
    assert standing.kind == "new"
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b2"})

    assert standing.met == {"b": "b2", "c": "c1"}


def test_whom_an_earlier_process_met_as_new_does_not_count(tmp_path: Path) -> None:
    """It may have become a member since, and have met another disk of this node."""
    before = standing_of(tmp_path)
    before.meet("b", "b1", "new", {"a": before.disk, "c": "c1"})

    standing = standing_of(tmp_path)
    standing.meet("c", "c1", "new", {"a": standing.disk, "b": "b1"})

    assert standing.kind == "new"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"disk":"d"}', b'{"disk":"d","standing":"king","met":{}}', b"\xff\xfe", b'{"disk":1}'],
)
def test_a_damaged_file_is_refused_with_the_choices(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "standing").write_bytes(content)

    with pytest.raises(Damaged) as caught:
        standing_of(tmp_path)

    assert str(tmp_path / "standing") in caught.value.message
    assert "--rejoin" in caught.value.message


# -- the members that a directory knows


def of_members(directory: Path, *members: str, accept: bool = False, **options: bool) -> Standing:
    directory.mkdir(exist_ok=True)
    others = [member for member in members if member != "a"]
    options = {"empty": True, "rejoin": False, **options}
    return Standing(directory, SimDisk(), others, node="a", accept_members=accept, **options)


FIVE, THREE, OTHERS = ("a", "b", "c", "d", "e"), ("a", "b", "c"), ("a", "b", "x")


@pytest.mark.parametrize(("before", "now"), [(FIVE, THREE), (THREE, FIVE), (THREE, OTHERS), (("a",), THREE)])
def test_a_member_starts_with_no_other_list_of_members(
    tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    of_members(tmp_path, *before, empty=False)

    with pytest.raises(WrongDirectory) as caught:
        of_members(tmp_path, *now)

    shown = f"that of a in a cluster of {len(before)} ({', '.join(before)}), and members says {len(now)}"
    assert shown in caught.value.message
    assert f"{len(now)} ({', '.join(now)})" in caught.value.message
    assert "--accept-members" in caught.value.message
    assert of_members(tmp_path, *before).kind == "member"


def test_the_order_of_the_members_does_not_matter(tmp_path: Path) -> None:
    of_members(tmp_path, "a", "b", "c", empty=False)

    assert of_members(tmp_path, "c", "a", "b").kind == "member"


def test_another_list_is_taken_at_a_word_and_is_the_only_one_from_then_on(tmp_path: Path) -> None:
    of_members(tmp_path, *FIVE, empty=False)

    assert of_members(tmp_path, *THREE, accept=True).kind == "member"

    assert of_members(tmp_path, *THREE).kind == "member"
    with pytest.raises(WrongDirectory, match=r"a cluster of 3 \(a, b, c\), and members says 5"):
        of_members(tmp_path, *FIVE)


@pytest.mark.parametrize("rejoin", [False, True])
def test_who_has_not_taken_part_yet_may_be_told_of_other_members(tmp_path: Path, rejoin: bool) -> None:
    of_members(tmp_path, *FIVE, rejoin=rejoin)

    of_members(tmp_path, *THREE, rejoin=rejoin).admitted(of_members(tmp_path, *THREE, rejoin=rejoin).disk)

    assert of_members(tmp_path, *THREE, rejoin=rejoin)._record.members == THREE


def test_a_directory_of_a_release_that_kept_no_list_takes_the_first_that_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "standing").write_bytes(b'{"disk":"d","standing":"member","met":{"b":"b1","c":"c1"}}')

    standing = of_members(tmp_path, *THREE)

    assert (standing.kind, standing.disk, standing.met) == ("member", "d", {"b": "b1", "c": "c1"})
    with pytest.raises(WrongDirectory):
        of_members(tmp_path, *FIVE)


# -- on disk before anybody relies on it


@pytest.mark.parametrize(
    ("begin", "event"),
    [(new, meets_both_as_new), (new, meets_a_member_that_met_this_disk), (rejoining, is_admitted)],
)
def test_a_power_cut_at_any_step_leaves_the_standing_of_before_or_after(
    tmp_path: Path, begin: Callable[..., Standing], event: Callable[[Standing], None]
) -> None:
    chance = random.Random(5)
    before = "new" if begin is new else "rejoining"
    seen: set[str] = set()
    for attempt in range(60):
        directory = tmp_path / str(attempt)
        disk = SimDisk()
        standing = standing_of(directory, rejoin=begin is rejoining, disk=disk)
        name = standing.disk
        disk.cut_at = disk.steps + attempt % 10
        done = True
        try:
            event(standing)
        except PowerCut:
            done = False
        disk.cut_power(chance)

        found = standing_of(directory)
        assert found.disk == name
        assert found.kind in ((before, "member") if not done else ("member",))
        seen.add(f"{found.kind} {done}")

    assert seen == {f"{before} False", "member False", "member True"}


def test_a_power_cut_while_a_directory_is_made_leaves_nothing_or_all_of_it(tmp_path: Path) -> None:
    chance = random.Random(5)
    for attempt in range(60):
        directory = tmp_path / str(attempt)
        disk = SimDisk()
        disk.cut_at = attempt % 8
        try:
            made: str | None = standing_of(directory, disk=disk).disk
        except PowerCut:
            made = None
        disk.cut_power(chance)

        found = standing_of(directory)
        assert found.kind == "new"
        assert made is None or found.disk == made


def test_no_vote_leaves_before_the_standing_and_the_vote_are_on_disk(tmp_path: Path, clock: Clock) -> None:
    """The power goes at every step from an empty directory to the first vote, and of what is left it votes again."""
    chance = random.Random(2)
    outcomes: set[str] = set()
    for step in range(120):
        disk = SimDisk()
        disk.cut_at = step // 2
        network = Network()
        directory = tmp_path / str(step)
        bench: Bench | None = None
        try:
            bench = Bench("a", MEMBERS, directory, network, disk)
            for peer in ("b", "c"):
                network.connect("a", peer)
            network.inject("b", "a", wire.RequestVote(5, 1, 0))
            bench.engine.tick()
            outcome = "whole"
        except PowerCut:
            outcome = "cut"
        voted = [message for _, _, message in network.sent if isinstance(message, wire.RequestVoteResponse)]
        if bench is not None:
            bench.cut_power(chance)
        else:
            disk.cut_power(chance)

        network = Network()
        bench = Bench("a", MEMBERS, directory, network, disk)
        standing = bench.engine.status().standing
        if voted:
            assert standing == "member"
        for peer in ("b", "c"):
            network.connect("a", peer)
        network.inject("c", "a", wire.RequestVote(5, 1, 0))
        bench.engine.tick()
        again = [message for _, _, message in network.sent if isinstance(message, wire.RequestVoteResponse)]
        assert not (voted and again), f"two votes in a term, with the power cut at step {step // 2}"
        outcomes.add(f"{outcome} {standing} {bool(voted)}")
        bench.kill()

    assert {"cut new False", "cut member False", "whole member True"} <= outcomes


# -- any order of meetings, restarts and lost disks


class Life:
    """One process of a node in the test below: its standing, and what its disk remembers of its vote."""

    def __init__(self, name: str, directory: Path, names: list[str], votes: dict[str, str]) -> None:
        self.name = name
        directory.mkdir(exist_ok=True)
        others = [other for other in names if other != name]
        self.standing = Standing(directory, SimDisk(), others, node=name, empty=True, rejoin=False)
        self.said_yes: set[str] = set()
        self._votes = votes
        self.directory = directory

    def hello(self) -> tuple[str, str, str, dict[str, str]]:
        return self.name, self.standing.disk, self.standing.kind, dict(self.standing.met)

    def votes_for(self, candidate: str) -> bool:
        """Once a disk, in the one term that there is."""
        return self.standing.votes and self._votes.setdefault(self.standing.disk, candidate) == candidate


Said = tuple[str, str, str, dict[str, str]]


class Birth:
    """Three or five nodes that meet, with greetings that were sent long ago, restart, and lose their disks:
    but not a quorum of those that had begun to vote, which would be another cluster's beginning."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        directory.mkdir()
        self._directory = directory
        self._chance = chance
        self._names = [f"n{number}" for number in range(chance.choice((3, 5, 5)))]
        self._apart: list[set[str]] = [set(chance.sample(self._names, 2)) for _ in range(chance.randint(0, 2))]
        """Pairs that do not meet for now."""
        self._votes: dict[str, str] = {}
        self._homes: int = 0
        self._lost: set[str] = set()
        self._lives: dict[str, Life] = {}
        self._under_way: list[tuple[Said, Life, Life]] = []
        self.leaders: set[str] = set()
        """Who had a quorum of votes, and on which disk."""
        for name in self._names:
            self._lose(name)

    def play(self) -> set[str]:
        for _ in range(self._chance.choice((100, 300, 600))):
            one, other = (self._lives[name] for name in self._chance.sample(self._names, 2))
            match self._chance.randrange(24):
                case 0 if self._chance.random() < 0.2:
                    self._lose(one.name)
                case 1:
                    self._begin(one.name, one.directory)
                case 2 | 3 | 4 | 5:
                    self._under_way.append((one.hello(), one, other))
                case 6 | 7 | 8 | 9 if self._under_way:
                    self._greet(*self._under_way.pop(self._chance.randrange(len(self._under_way))))
                case 10 | 11 | 12 | 13 | 14 | 15 | 16:
                    self._greet(one.hello(), one, other)
                    self._greet(other.hello(), other, one)
                case 17 | 18 | 19 | 20:
                    self._ask_for_vote(one, other)
        return self.leaders

    def _begin(self, name: str, home: Path) -> None:
        self._lives[name] = Life(name, home, self._names, self._votes)

    def _lose(self, name: str) -> None:
        life = self._lives.get(name)
        if life is not None and life.standing.votes:
            if 2 * len(self._lost | {name}) > len(self._names):
                return
            self._lost.add(name)
        self._homes += 1
        self._begin(name, self._directory / f"{name}-{self._homes}")

    def _greet(self, said: Said, sender: Life, receiver: Life) -> None:
        connected = self._lives[sender.name] is sender and self._lives[receiver.name] is receiver
        if not connected or {sender.name, receiver.name} in self._apart:
            return
        try:
            receiver.standing.meet(*said)
        except Fatal:
            self._begin(receiver.name, receiver.directory)

    def _ask_for_vote(self, candidate: Life, voter: Life) -> None:
        if not candidate.votes_for(candidate.name):
            return
        candidate.said_yes.add(candidate.name)
        if {candidate.name, voter.name} not in self._apart and voter.votes_for(candidate.name):
            candidate.said_yes.add(voter.name)
        if 2 * len(candidate.said_yes) > len(self._names):
            if not self.leaders:
                self._strike(candidate.said_yes)
            self.leaders.add(f"{candidate.name} {candidate.standing.disk}")

    def _strike(self, quorum: set[str]) -> None:
        """The worst moment: of those that just voted, as many as may lose their disks, and the rest is cut off."""
        struck = self._chance.sample(sorted(quorum), len(quorum) - 1)
        for name in struck:
            self._lose(name)
        kept = quorum - set(struck)
        self._apart = [{name, other} for name in kept for other in self._names if other != name]


def test_whatever_happens_at_a_birth_nobody_votes_twice(tmp_path: Path) -> None:
    """All elections are of one term: if two nodes ever get a quorum of nodes, somebody voted twice."""
    leaders = [Birth(tmp_path / str(seed), random.Random(seed)).play() for seed in range(300)]

    assert [seed for seed, found in enumerate(leaders) if len(found) > 1] == []
    assert sum(map(len, leaders)) > 20


# -- a node that has not found out yet


@pytest.fixture
def lonely(tmp_path: Path, clock: Clock) -> Iterator[EngineMember]:
    """A new node that has met one of its two peers as new; the other is being readmitted."""
    hellos = {"b": hello_of("b"), "c": structs.replace(hello_of("c"), standing="rejoining")}
    member = EngineMember(tmp_path / "a", clock, "a", MEMBERS, hellos=hellos)
    assert member.engine.status().standing == "new"
    yield member
    member.close()


def test_a_new_node_takes_no_part(lonely: EngineMember) -> None:
    before = lonely.entries()

    for _ in range(10):
        lonely.tick(1.0)
    lonely.ask_vote("b", 5, (100, 4))
    lonely.receive("b", wire.RequestVote(6, 100, 4, True))
    lonely.receive("b", wire.PreVote(0, 100, 4))
    lonely.append("b", 5, (1, 0), run(2, 4))
    lonely.receive("b", wire.InstallSnapshot(5, 50, 0, 10, b"0123456789"))
    lonely.receive("b", wire.TimeoutNow(5))
    lonely.tick(0.1)

    assert lonely.network.sent == []
    assert (lonely.term, lonely.entries()) == (0, before)


def test_a_new_node_takes_part_once_all_say_that_they_have_met_the_same(lonely: EngineMember) -> None:
    assert lonely.bench is not None
    own = lonely.engine.standing.disk
    lonely.hellos["c"] = structs.replace(hello_of("c"), met={"a": own, "b": "disk of b"})
    lonely.disconnect("c")

    lonely.connect("c")
    lonely.tick(0.5)
    assert lonely.engine.status().standing == "new"
    assert lonely.sent(wire.Hello)[-1].met == {"b": "disk of b", "c": "disk of c"}
    lonely.receive("b", structs.replace(hello_of("b"), met={"a": own, "c": "disk of c"}))
    lonely.tick(0.4)

    assert lonely.engine.status().standing == "member"
    assert len(lonely.sent(wire.RequestVote)) == 2
    told = lonely.sent(wire.Hello)[-1]
    assert structs.replace(told, starts=None) == lonely.bench.transport.hello
    assert (told.standing, told.met) == ("member", {"b": "disk of b", "c": "disk of c"})


def test_what_a_node_says_of_itself_is_what_its_peers_need(lonely: EngineMember) -> None:
    assert lonely.bench is not None
    hello = lonely.bench.transport.hello

    own = lonely.engine.standing.disk
    assert (hello.level, hello.disk, hello.standing, hello.met) == (LEVEL, own, "new", {"b": "disk of b"})


def test_a_log_that_is_gone_from_beside_the_file_is_refused(lonely: EngineMember) -> None:
    lonely.close()
    for path in lonely.directory.glob("journal*"):
        path.unlink()

    with pytest.raises(Refused, match="journal"):
        lonely.restart()


# -- clusters


class Tended(Cluster):
    """A cluster with an operator. ``links`` are the only connections, where not None."""

    links: set[frozenset[str]] | None = None

    def start(self, name: str, *, rejoin: bool = False) -> Any:
        self._config["rejoin"] = rejoin
        return super().start(name)

    def _connect(self) -> None:
        if self.links is None:
            super()._connect()
            return
        for one, other in [sorted(link) for link in self.links]:
            if one in self.benches and other in self.benches:
                self.network.connect(one, other)

    def lose_disk(self, name: str) -> None:
        """The node is gone and its directory with it."""
        if name in self.benches:
            self.kill(name)
        shutil.rmtree(self._directory / name)
        self.disks[name] = SimDisk()

    def restart(self, name: str, *, rejoin: bool = False) -> None:
        self.kill(name)
        self.start(name, rejoin=rejoin)

    def standings(self) -> dict[str, str]:
        return {name: bench.engine.status().standing for name, bench in self.benches.items()}

    def link(self, *pairs: tuple[str, str]) -> None:
        assert self.links is not None
        self.links |= {frozenset(pair) for pair in pairs}
        self._connect()

    def let_pass(self, seconds: float) -> None:
        for _ in range(round(seconds / ROUND_S)):
            self.round()

    def others(self, *names: str) -> list[str]:
        return [name for name in self.names if name not in names]

    def close(self) -> None:
        for name in list(self.benches):
            self.kill(name)


class Apart(Tended):
    """Nodes that know nobody yet."""

    def __init__(self, directory: Path, clock: Clock, nodes: int = 3, **config: Any) -> None:
        self.links = set()
        super().__init__(directory, clock, nodes, **config)
        self.network.greet = self._greet

    def _greet(self, one: str, other: str) -> bool:
        """As on a real connection, both ends have spoken before they listen."""
        here, there = self.benches[one].transport, self.benches[other].transport
        said = here.hello_for(other), there.hello_for(one)
        return not any([here.greeted(said[1]), there.greeted(said[0])])


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock) -> Iterator[Tended]:
    """Three members at the newest level, which hold a value."""
    cluster = Tended(tmp_path, clock)
    leader = cluster.wait_for_leader()
    cluster.until(lambda: {cluster[name].registry.level for name in cluster.names} == {LEVEL}, "the newest level")
    cluster.write(leader, "before")
    cluster.settle()
    yield cluster
    cluster.close()


@pytest.fixture
def apart(tmp_path: Path, clock: Clock) -> Iterator[Apart]:
    cluster = Apart(tmp_path, clock)
    yield cluster
    cluster.close()


def readmissions(cluster: Cluster, name: str) -> int:
    """How many stand in a node's log."""
    regular = [data for data, _, _ in cluster[name].journal[:] if data[:1] == REGULAR]
    return sum(isinstance(decode(data[1:]).command, Readmit) for data in regular)


# -- a cluster is born


def born(cluster: Tended) -> None:
    cluster.until(lambda: set(cluster.standings().values()) == {"member"}, "all to be members", rounds=20)


def test_a_cluster_is_born_when_all_have_met_and_a_quorum_is_enough_from_then_on(apart: Apart) -> None:
    apart.link(("n1", "n2"))
    apart.let_pass(5.0)
    assert set(apart.standings().values()) == {"new"}
    assert apart.leaders == {}

    apart.link(("n1", "n3"), ("n2", "n3"))
    born(apart)
    apart.wait_for_leader()
    for name in apart.names:
        apart.kill(name)
    for name in ("n1", "n2"):
        apart.start(name)

    apart.write(apart.wait_for_leader(), "x")


def test_who_met_everybody_waits_for_those_who_did_not(apart: Apart) -> None:
    """n1 has met both, and they have not met each other: what they will meet is not certain yet."""
    apart.link(("n1", "n2"), ("n1", "n3"))
    apart.let_pass(5.0)
    assert set(apart.standings().values()) == {"new"}
    assert apart.leaders == {}

    apart.link(("n2", "n3"))
    born(apart)

    apart.write(apart.wait_for_leader(), "x")


@pytest.mark.parametrize("away", ["n1", "n2", "n3"])
def test_who_did_not_hear_of_the_birth_is_told_at_the_next_greeting(apart: Apart, away: str) -> None:
    """It was met by all; nothing reached it after that, and its process ended."""
    present = apart.others(away)
    apart.network.muted |= {(other, away) for other in present}
    apart.link(("n1", "n2"), ("n1", "n3"), ("n2", "n3"))
    apart.until(lambda: [apart.standings()[name] for name in present] == ["member"] * 2, "the birth")
    assert apart.standings()[away] == "new"
    apart.write(apart.wait_for_leader(*present), "x")
    apart.kill(away)
    apart.network.muted.clear()

    apart.start(away)
    apart.settle()

    assert set(apart.standings().values()) == {"member"}
    assert apart.values(away) == {"x"}


def test_a_restart_at_the_birth_delays_it(apart: Apart) -> None:
    apart.link(("n1", "n2"), ("n1", "n3"))
    apart.let_pass(0.2)
    apart.restart("n1")
    apart.link(("n2", "n3"))

    born(apart)

    apart.write(apart.wait_for_leader(), "x")


def test_a_disk_lost_before_the_cluster_was_born_is_no_loss(apart: Apart) -> None:
    apart.link(("n1", "n2"), ("n1", "n3"))
    apart.let_pass(0.2)
    apart.lose_disk("n2")
    apart.start("n2")
    apart.link(("n2", "n3"))

    born(apart)

    apart.write(apart.wait_for_leader(), "x")
    assert apart["n1"].standing.met["n2"] == apart["n3"].standing.met["n2"] == apart["n2"].standing.disk


def test_a_cluster_is_not_born_again_on_the_disks_that_replace_a_minority(tmp_path: Path, clock: Clock) -> None:
    """n1, n2 and n3 committed something. Two of them lose their disks and the third is away: n4 and n5, which
    had not heard of the birth, and the two new disks have all met, and would be a quorum without the third."""
    cluster = Apart(tmp_path, clock, nodes=5)
    first, late = ["n1", "n2", "n3"], ["n4", "n5"]
    cluster.network.muted |= {(one, other) for one in cluster.names for other in late if one != other}
    cluster.link(*((one, other) for one in cluster.names for other in cluster.names if one < other))
    cluster.until(lambda: [cluster.standings()[name] for name in first] == ["member"] * 3, "the birth", rounds=50)
    assert [cluster.standings()[name] for name in late] == ["new"] * 2
    leader = cluster.wait_for_leader(*first)
    cluster.write(leader, "on three disks")

    cluster.kill("n3")
    for name in ("n1", "n2"):
        cluster.lose_disk(name)
    for name in ("n1", "n2"):
        cluster.start(name)
    cluster.network.muted.clear()
    cluster.let_pass(10.0)

    assert set(cluster.standings().values()) == {"new"}
    assert set(cluster.leaders.values()) <= set(first)
    cluster.close()


# -- a disk is lost


def test_a_node_whose_disk_was_lost_stops_by_itself_and_says_what_to_do(cluster: Tended, tmp_path: Path) -> None:
    cluster.lose_disk("n3")

    for _ in range(2):
        with pytest.raises(Fatal) as caught:
            cluster.start("n3")
        said = caught.value.message
        assert f"the data directory {tmp_path / 'n3'} is new" in said
        assert "start this node once with --rejoin" in said
        assert "data_dir" in said
        cluster.kill("n3")

    cluster.write(cluster.wait_for_leader("n1", "n2"), "after")


def test_a_node_whose_disk_was_lost_does_nothing_while_it_meets_nobody(cluster: Tended) -> None:
    cluster.kill("n1")
    cluster.kill("n2")
    cluster.lose_disk("n3")

    cluster.start("n3")
    cluster.let_pass(5.0)

    assert cluster.standings() == {"n3": "new"}
    assert cluster["n3"].raft.term == 0


def test_a_node_that_rejoins_is_filled_readmitted_and_votes(cluster: Tended) -> None:
    cluster.lose_disk("n3")
    cluster.write(cluster.wait_for_leader("n1", "n2"), "meanwhile")

    cluster.start("n3", rejoin=True)
    assert cluster.standings()["n3"] == "rejoining"
    cluster.until(lambda: cluster.standings()["n3"] == "member", "the readmission")
    cluster.settle()

    assert cluster.values("n3") == {"before", "meanwhile"}
    cluster.restart("n3")
    assert cluster.standings()["n3"] == "member"
    # Its vote is needed now, and counts.
    cluster.kill("n1")
    cluster.write(cluster.wait_for_leader("n2", "n3"), "after")


def test_a_large_state_is_filled_in_by_a_file_and_the_node_readmitted_after(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 5)
    cluster = Tended(tmp_path, clock, snapshot_entries=40)
    leader = cluster.wait_for_leader()
    for number in range(0, 200, 20):
        cluster.write(leader, *(f"v{index}" for index in range(number, number + 20)))
    lost = cluster.others(leader)[0]
    cluster.lose_disk(lost)
    cluster.wait_for_leader(*cluster.others(lost))

    cluster.start(lost, rejoin=True)
    cluster.until(lambda: cluster.standings()[lost] == "member", "the readmission")
    cluster.settle()

    assert cluster[lost].journal.base_index > 50
    assert len(cluster.values(lost)) == 200
    cluster.close()


def test_the_disk_of_a_leader_may_be_lost_as_well(cluster: Tended) -> None:
    leader = cluster.wait_for_leader()
    cluster.write(leader, "x")
    cluster.lose_disk(leader)

    cluster.start(leader, rejoin=True)
    cluster.until(lambda: cluster.standings()[leader] == "member", "the readmission")
    cluster.settle()

    assert cluster.values(leader) == {"before", "x"}


def test_one_disk_after_the_other_may_be_lost(cluster: Tended) -> None:
    for round_ in range(2):
        for name in cluster.names:
            cluster.lose_disk(name)
            cluster.write(cluster.wait_for_leader(*cluster.others(name)), f"{round_} {name}")
            cluster.start(name, rejoin=True)
            cluster.until(lambda: set(cluster.standings().values()) == {"member"}, "the readmission")
    cluster.settle()

    for name in cluster.names:
        assert len(cluster.values(name)) == 7


def test_the_word_of_the_operator_changes_nothing_about_a_disk_that_is_there(cluster: Tended) -> None:
    disk = cluster["n3"].standing.disk

    cluster.restart("n3", rejoin=True)

    assert cluster.standings()["n3"] == "member"
    assert cluster["n3"].standing.disk == disk
    cluster.settle()
    assert readmissions(cluster, "n3") == 0


def test_a_directory_of_a_release_without_standings_is_a_members(cluster: Tended, tmp_path: Path) -> None:
    for name in cluster.names:
        cluster.kill(name)
        (tmp_path / name / "standing").unlink()

    for name in cluster.names:
        cluster.start(name)

    assert set(cluster.standings().values()) == {"member"}
    cluster.settle()
    assert cluster.values("n1") == {"before"}


def test_a_new_disk_is_found_out_by_members_that_know_no_disks(cluster: Tended, tmp_path: Path) -> None:
    """As after an upgrade from a release without standings."""
    for name in cluster.names:
        cluster.kill(name)
        (tmp_path / name / "standing").unlink()
    for name in ("n1", "n2"):
        cluster.start(name)
    cluster.lose_disk("n3")

    with pytest.raises(Fatal, match="--rejoin"):
        cluster.start("n3")
    cluster.kill("n3")
    cluster.start("n3", rejoin=True)
    cluster.until(lambda: cluster.standings()["n3"] == "member", "the readmission")


# -- what a rejoining node does not do


def test_a_rejoining_node_stores_but_counts_towards_no_quorum(cluster: Tended) -> None:
    leader = cluster.wait_for_leader()
    dead, lost = cluster.others(leader)
    cluster.lose_disk(lost)
    cluster.kill(dead)

    cluster.start(lost, rejoin=True)
    committed = cluster[leader].raft.commit_index
    proposal = cluster.propose(leader, "on two disks, of which one does not count")
    cluster.until(lambda: cluster[lost].journal.last_index > committed, "the entry on the rejoining node")
    cluster.let_pass(10.0)

    assert cluster[leader].raft.commit_index == committed
    assert proposal.error is not None or not is_done(proposal)
    assert cluster[leader].raft.role != LEADER
    assert cluster.standings()[lost] == "rejoining"
    cluster.start(dead)
    cluster.until(lambda: cluster.standings()[lost] == "member", "the readmission")
    cluster.settle()
    assert "before" in cluster.values(lost)


def test_a_rejoining_node_that_is_being_filled_keeps_no_leader_in_place(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state file takes long; each piece of it that arrives is no word for the leader."""
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 5)
    monkeypatch.setattr("rollcall.replication.raft.snapshot_transfer.PIECE_BYTES", 100)
    monkeypatch.setattr("rollcall.replication.raft.snapshot_transfer.WINDOW_BYTES", 100)
    cluster = Tended(tmp_path, clock, snapshot_entries=40)
    leader = cluster.wait_for_leader()
    cluster.write(leader, *(f"v{number}" for number in range(60)))
    cluster.until(lambda: cluster[leader].journal.base_index > 20, "the log to be cut")
    dead, lost = cluster.others(leader)
    cluster.lose_disk(lost)
    cluster.kill(dead)

    cluster.start(lost, rejoin=True)
    cluster.until(lambda: cluster[lost].receiver.receiving, "the state file to be on its way")
    cluster.until(lambda: cluster[leader].raft.role != LEADER, "the leader to step down", rounds=100)

    assert cluster[lost].receiver.receiving or cluster[lost].receiver.installing
    cluster.close()


def test_a_lost_vote_is_not_given_a_second_time(tmp_path: Path, clock: Clock) -> None:
    """n3 voted for n1, which leads. n3 loses its disk, and meets only n2, which never heard of that
    election and stands in the same term. With a vote of n3 there would be two leaders in it."""
    cluster = Tended(tmp_path, clock)
    for name in cluster.names:
        cluster[name].election.step = lambda now: None  # each stands when the test says so
        hold_back(cluster[name])
    born(cluster)
    for name in cluster.names:
        hold_back(cluster[name])
    n1, n2, n3 = (cluster[name] for name in cluster.names)
    cluster.partition(["n2"], ["n1", "n3"])
    stand(n1)
    cluster.until(lambda: n1.raft.role == LEADER, "n1 to lead", rounds=5)
    assert (n1.raft.term, n2.raft.term) == (1, 0)
    assert n3.raft.vote == "n1"

    cluster.lose_disk("n3")
    cluster.heal()
    cluster.partition(["n1"], ["n2", "n3"])
    cluster.start("n3", rejoin=True)
    stand(n2)
    for _ in range(20):
        cluster.round()

    # Two leaders in a term would have been the end of the bench's patience as well.
    assert n2.raft.term == 1
    assert n2.raft.role != LEADER
    assert cluster.leaders == {1: "n1"}
    cluster.close()


def stand(engine: Any) -> None:
    """Lets the library stand for election in its next round."""
    engine.raft.election_due = 0


def hold_back(engine: Any) -> None:
    engine.raft.election_due = math.inf


# -- readmission


@pytest.fixture
def returning(tmp_path: Path, clock: Clock) -> Iterator[EngineMember]:
    """A node that rejoins; "b" leads, and the test plays it."""
    hellos = {peer: structs.replace(hello_of(peer), standing="member", met={"a": "the lost disk"}) for peer in "bc"}
    member = EngineMember(tmp_path / "a", clock, "a", MEMBERS, hellos=hellos, rejoin=True)
    assert member.engine.status().standing == "rejoining"
    yield member
    member.close()


def readmit(disk: str, node: str = "a") -> bytes:
    command = Readmit(node, disk)
    return REGULAR + encode(Envelope(level_of(command), 1, command))


def test_a_rejoining_node_acknowledges_without_a_voice(returning: EngineMember) -> None:
    returning.append("b", 5, (1, 0), run(2, 4, term=5), commit=4)
    returning.tick()

    assert unstamped(returning.sent(wire.AppendEntriesResponse)) == [
        wire.AppendEntriesResponse(5, 5, True, False, False)
    ]
    assert returning.applied == ["v2.5", "v3.5", "v4.5"]


def test_a_rejoining_node_neither_asks_nor_answers_nor_stands(returning: EngineMember) -> None:
    returning.ask_vote("c", 5, (100, 4))
    returning.receive("c", wire.RequestVote(6, 100, 4, True))
    returning.receive("c", wire.PreVote(6, 100, 4))
    returning.receive("b", wire.ReadProbe(0, 1))
    for _ in range(20):
        returning.tick(0.5)

    assert returning.network.sent == []
    returning.append("b", 5, (1, 0))
    returning.receive("b", wire.TimeoutNow(5))
    returning.tick(0.1)
    assert returning.term == 5
    assert returning.sent(wire.RequestVote) == []


def test_a_rejoining_node_is_a_member_once_its_readmission_is_committed(returning: EngineMember) -> None:
    disk = returning.engine.standing.disk

    returning.append("b", 5, (1, 0), [(2, 5, readmit(disk))], commit=1)
    returning.tick()
    assert returning.engine.status().standing == "rejoining"
    assert not returning.sent(wire.AppendEntriesResponse)[-1].voting
    returning.append("b", 5, (2, 5), commit=2)
    returning.tick()
    returning.append("b", 5, (2, 5), commit=2)

    assert returning.engine.status().standing == "member"
    assert unstamped(returning.sent(wire.AppendEntriesResponse))[-1] == wire.AppendEntriesResponse(
        5, 3, True, False, True
    )
    assert returning.bench is not None
    assert returning.bench.transport.hello.standing == "member"


@pytest.mark.parametrize(("node", "disk"), [("a", "another disk"), ("b", "")])
def test_the_readmission_of_another_disk_or_node_is_nothing_to_this_one(
    returning: EngineMember, node: str, disk: str
) -> None:
    disk = disk or returning.engine.standing.disk

    returning.append("b", 5, (1, 0), [(2, 5, readmit(disk, node))], commit=2)
    returning.tick()

    assert returning.engine.status().standing == "rejoining"


def test_the_vote_of_the_term_of_the_readmission_is_spent(returning: EngineMember) -> None:
    """The lost disk may have given it away. (A candidate of that term would also lack the entry, and
    be refused for that; the one that the test plays claims more than a candidate can have.)"""
    impossible = (100, 5)
    returning.append("b", 5, (1, 0), [(2, 5, readmit(returning.engine.standing.disk))], commit=2)
    returning.tick()
    assert returning.engine.status().standing == "member"

    for _ in range(2):
        returning.ask_vote("c", 5, impossible)
        assert (returning.term, returning.votes()) == (5, [])
        returning.restart()
    returning.ask_vote("c", 6, impossible)

    assert returning.votes() == [("c", 6)]


def test_a_power_cut_while_it_is_readmitted_costs_neither_the_vote_nor_the_readmission(
    tmp_path: Path, clock: Clock
) -> None:
    """At each step: what is left is not a member yet, or one that gives no candidate of that term its
    vote, since none can have the entry that readmitted it."""
    chance = random.Random(4)
    hellos = {peer: structs.replace(hello_of(peer), standing="member", met={"a": "lost"}) for peer in "bc"}
    seen: set[str] = set()
    for attempt in range(80):
        member = EngineMember(tmp_path / str(attempt), clock, "a", MEMBERS, hellos=hellos, rejoin=True)
        entries = [(2, 5, readmit(member.engine.standing.disk))]
        member.append("b", 5, (1, 0), entries, commit=1)
        member.disk.cut_at = member.disk.steps + attempt % 16
        try:
            member.append("b", 5, (2, 5), commit=2)
            for _ in range(3):
                member.tick()
        except PowerCut:
            pass
        assert member.bench is not None
        member.bench.cut_power(chance)
        member.config["rejoin"] = False
        member.bench = None
        member.restart()

        seen.add(member.engine.status().standing)
        member.ask_vote("c", 5, (100, 4))
        assert member.votes() == [], f"a second vote after a power cut at step {attempt % 16}"
        member.append("b", 5, (1, 0), entries, commit=2)
        member.tick()
        assert member.engine.status().standing == "member"
        member.close()

    assert seen == {"rejoining", "member"}


def test_a_restart_before_the_readmission_needs_no_second_word_of_the_operator(cluster: Tended) -> None:
    leader = cluster.wait_for_leader()
    dead, lost = cluster.others(leader)
    cluster.lose_disk(lost)
    cluster.kill(dead)
    cluster.start(lost, rejoin=True)
    cluster.let_pass(0.5)

    cluster.restart(lost)
    assert cluster.standings()[lost] == "rejoining"
    cluster.start(dead)
    cluster.until(lambda: cluster.standings()[lost] == "member", "the readmission")
    cluster.settle()

    assert cluster.values(lost) == {"before"}


def test_a_readmission_that_a_state_file_swallowed_is_proposed_again(cluster: Tended, tmp_path: Path) -> None:
    cluster.lose_disk("n3")
    cluster.start("n3", rejoin=True)
    cluster.until(lambda: cluster.standings()["n3"] == "member", "the readmission")
    cluster.settle()
    # As if the node had got the state after its readmission, and not the entry.
    bench = cluster.benches["n3"]
    bench.engine.compaction.save()
    cluster.let_pass(0.2)
    assert bench.engine.compaction.saved is not None
    cluster.kill("n3")
    path = tmp_path / "n3" / "standing"
    path.write_bytes(path.read_bytes().replace(b'"member"', b'"rejoining"'))

    cluster.start("n3")
    assert cluster.standings()["n3"] == "rejoining"
    cluster.until(lambda: cluster.standings()["n3"] == "member", "the readmission")


def test_a_disk_that_is_lost_again_is_readmitted_as_the_third(cluster: Tended) -> None:
    leader = cluster.wait_for_leader()
    dead, lost = cluster.others(leader)
    cluster.lose_disk(lost)
    cluster.kill(dead)
    cluster.start(lost, rejoin=True)
    second = cluster[lost].standing.disk
    cluster.let_pass(0.5)
    cluster.lose_disk(lost)
    cluster.start(lost, rejoin=True)
    third = cluster[lost].standing.disk

    cluster.start(dead)
    cluster.until(lambda: cluster.standings()[lost] == "member", "the readmission")
    cluster.settle()

    assert second != third
    assert cluster[lost].standing.disk == third


def test_a_readmission_is_proposed_a_few_times_at_most(cluster: Tended) -> None:
    """Not at every heartbeat while the node is away, or being filled."""
    leader = cluster.wait_for_leader()
    lost = cluster.others(leader)[0]
    cluster.lose_disk(lost)
    cluster.start(lost, rejoin=True)
    cluster.kill(lost)

    cluster.let_pass(10.0)
    assert readmissions(cluster, leader) <= 3
    cluster.start(lost)
    cluster.until(lambda: cluster.standings()[lost] == "member", "the readmission")
    cluster.let_pass(10.0)

    assert readmissions(cluster, leader) <= 6


# -- more than a minority


def test_with_two_of_three_disks_lost_nothing_is_committed_and_nothing_is_lost(cluster: Tended) -> None:
    left = cluster.wait_for_leader()
    lost = cluster.others(left)
    for name in lost:
        cluster.lose_disk(name)
    for name in lost:
        with pytest.raises(Fatal, match="the other nodes still form a quorum"):
            cluster.start(name)
        cluster.kill(name)

    for name in lost:
        cluster.start(name, rejoin=True)
    proposal = cluster.propose(left, "too late")
    cluster.let_pass(10.0)

    assert set(cluster.standings().values()) == {"member", "rejoining"}
    assert proposal.error is not None or not is_done(proposal)
    assert cluster.serving() is None
    assert cluster.values(left) == {"before"}


def test_two_new_disks_without_the_third_node_do_not_begin_a_cluster_of_their_own(cluster: Tended) -> None:
    for name in ("n2", "n3"):
        cluster.lose_disk(name)
    cluster.kill("n1")

    for name in ("n2", "n3"):
        cluster.start(name)
    cluster.let_pass(10.0)

    assert cluster.standings() == {"n2": "new", "n3": "new"}
    with pytest.raises(Fatal, match="--rejoin"):
        cluster.start("n1")


# -- any schedule


@pytest.mark.parametrize("seed", seeds(5, 16))
def test_disks_are_lost_among_other_faults_and_no_acknowledged_write_is(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Kills, power cuts, partitions, one-way losses, and disks that are lost and rejoin. There is one leader
    a term, one state an index (the bench sees to that), and in the end every acknowledged write everywhere."""
    chance = random.Random(seed)
    random.seed(seed)
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", chance.choice((0, 20, 500)))
    cluster = Tended(tmp_path, clock, nodes=chance.choice((3, 5)), snapshot_entries=chance.choice((30, 100, 10_000)))
    cluster.chance = chance
    cluster.wait_for_leader()
    minority = (len(cluster.names) - 1) // 2
    lost: set[str] = set()
    proposals: dict[str, Proposal] = {}
    losses = 0
    for step in range(1500):
        lost -= {name for name, standing in cluster.standings().items() if standing == "member"}
        one, other = chance.sample(cluster.names, 2)
        match chance.randrange(150):
            case 0 | 1 if len(lost) < minority and one not in lost:
                lost.add(one)
                losses += 1
                cluster.lose_disk(one)
                if chance.random() < 0.7:
                    cluster.start(one, rejoin=True)
            case 2 if one in cluster.benches:
                cluster.kill(one)
            case 3 if one in cluster.benches:
                cluster.cut_power(chance, one)
            case 4:
                cluster.partition([one], cluster.others(one))
            case 5:
                cluster.network.muted.add((one, other))
            case 6 | 7 | 8 | 9 | 10:
                cluster.heal()
                for name in cluster.others(*cluster.benches):
                    cluster.start(name, rejoin=name in lost)
        leader = cluster.serving()
        if leader is not None and step % 3 == 0:
            proposals[f"v{step}"] = cluster.propose(leader, f"v{step}")
        cluster.round()
    cluster.heal()
    for name in cluster.others(*cluster.benches):
        cluster.start(name, rejoin=name in lost)
    cluster.until(lambda: set(cluster.standings().values()) == {"member"}, "all to be members", rounds=2000)
    cluster.settle()

    done = {value for value, proposal in proposals.items() if is_done(proposal) and proposal.error is None}
    assert len(done) > 50, f"seed {seed}: {len(done)} of {len(proposals)}, {losses} disks lost"
    for name in cluster.names:
        assert done <= cluster.values(name), f"seed {seed}"
    cluster.close()
