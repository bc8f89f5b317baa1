"""An older copy of a data directory: refused as soon as a peer is there that knows better, in whole clusters."""

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from harness.raft import Clock, Cluster
from harness.sim_disk import SimDisk
from msgspec import structs
from rollcall.replication.commands import LEVEL
from rollcall.replication.errors import Damaged, Fatal
from rollcall.replication.storage.disk import Disk
from rollcall.replication.storage.peers import STAYS_S, WORDS_S, Peers
from rollcall.replication.storage.starts import Claims, Known, Position, Start


class Copied(Cluster):
    """A cluster whose operator makes copies of directories and puts them back."""

    def copy(self, name: str) -> Path:
        """What is on the disk of a node now, whether it runs or not."""
        kept = self._directory / f"copy-{len(list(self._directory.iterdir()))}"
        shutil.copytree(self._directory / name, kept)
        return kept

    def put_back(self, name: str, copy: Path) -> None:
        """In place of what a node that is down had."""
        shutil.rmtree(self._directory / name)
        shutil.copytree(copy, self._directory / name)
        self.disks[name].forget()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def close(self) -> None:
        for name in list(self.benches):
            self.kill(name)

    def ended(self, name: str, rounds: int = 200) -> str:
        """Lets rounds pass until that node ends itself; why. The others go on."""
        for _ in range(rounds):
            said = self.try_round().get(name)
            if said is not None:
                return said
        raise AssertionError(f"{name} goes on: {self.describe()}")

    def try_round(self) -> dict[str, str]:
        """A round, and which nodes ended themselves in it and why."""
        self.clock.now += 0.02
        said: dict[str, str] = {}
        try:
            self._connect()
        except Fatal as error:
            name = next(name for name in self.benches if str(self._directory / name) in str(error))
            said[name] = str(error)
            self.kill(name)
        for name, bench in list(self.benches.items()):
            try:
                bench.engine.tick()
            except Fatal as error:
                said[name] = str(error)
                self.kill(name)
        return said


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock) -> Iterator[Copied]:
    """Three members at the newest level, which hold a value."""
    cluster = Copied(tmp_path, clock)
    leader = cluster.wait_for_leader()
    cluster.until(lambda: {cluster[name].registry.level for name in cluster.names} == {LEVEL}, "the newest level")
    cluster.write(leader, "before")
    cluster.settle()
    yield cluster
    cluster.close()


def others(cluster: Cluster, *names: str) -> list[str]:
    return [name for name in cluster.names if name not in names]


def test_a_copy_from_before_the_last_start_is_refused_and_the_right_directory_is_not(cluster: Copied) -> None:
    leader = cluster.wait_for_leader()
    name = others(cluster, leader)[0]
    cluster.kill(name)
    copy = cluster.copy(name)
    cluster.start(name)
    cluster.settle()
    cluster.kill(name)
    right = cluster.copy(name)

    cluster.put_back(name, copy)
    with pytest.raises(Fatal) as caught:
        cluster.start(name)
        cluster.ended(name)

    said = str(caught.value)
    assert f"the data directory {cluster._directory / name} is older than what" in said
    assert "start number 2 was met as" in said
    assert "Put the right directory back; or, if the other nodes form a quorum" in said
    cluster.benches.pop(name, None)
    cluster.disks[name].close_all()
    cluster.network.leave(name)
    cluster.put_back(name, right)
    cluster.start(name)
    cluster.write(cluster.wait_for_leader(), "after")
    cluster.settle()
    assert cluster.values(name) == {"before", "after"}


def test_a_copy_of_a_node_that_ran_on_is_refused_by_who_heard_it_acknowledge_more(cluster: Copied) -> None:
    """No start tells them apart: the copy is of the running process' own files."""
    leader = cluster.wait_for_leader()
    name = others(cluster, leader)[0]
    copy = cluster.copy(name)
    cluster.write(leader, *(f"more-{number}" for number in range(5)))
    cluster.settle()
    cluster.kill(name)
    cluster.put_back(name, copy)

    with pytest.raises(Fatal, match=rf"older than what {leader} saw of {name}: it held entry \d+ in term \d+, and the"):
        cluster.start(name)
        for _ in range(50):
            cluster.round()


def test_a_copy_of_a_leader_is_refused_by_who_followed_it(cluster: Copied) -> None:
    leader = cluster.wait_for_leader()
    copy = cluster.copy(leader)
    cluster.write(leader, *(f"more-{number}" for number in range(5)))
    cluster.settle()
    cluster.kill(leader)
    cluster.put_back(leader, copy)

    with pytest.raises(Fatal, match=rf"saw of {leader}: it held entry \d+ in term \d+, and the directory began its"):
        cluster.start(leader)
        for _ in range(50):
            cluster.round()


def test_what_a_peer_acknowledged_outlives_a_crash_of_who_heard_it(cluster: Copied) -> None:
    """The word is on disk a second later; nobody else heard it."""
    leader = cluster.wait_for_leader()
    name = others(cluster, leader)[0]
    copy = cluster.copy(name)
    cluster.write(leader, "more")
    for _ in range(round(2 * WORDS_S / 0.02)):
        cluster.round()
    cluster.kill(name)
    cluster.kill(leader)
    cluster.put_back(name, copy)
    cluster.start(leader)

    with pytest.raises(Fatal, match=f"is older than what .* saw of {name}: it held entry"):
        cluster.start(name)
        for _ in range(50):
            cluster.round()


def test_when_who_knows_better_comes_later_both_stop_and_say_so(cluster: Copied) -> None:
    """B is copied, starts again and acknowledges with A. A goes; B's copy and C agree on something else. A is back."""
    a = cluster.wait_for_leader()
    b, c = others(cluster, a)
    cluster.kill(c)
    cluster.kill(b)
    copy = cluster.copy(b)
    cluster.start(b)
    cluster.write(cluster.wait_for_leader(a, b), *(f"lost-{number}" for number in range(5)))
    for name in (a, b):
        cluster.kill(name)
    cluster.put_back(b, copy)
    cluster.start(b)
    cluster.start(c)
    cluster.write(cluster.wait_for_leader(b, c), "instead")

    stopped: dict[str, str] = {}
    try:
        cluster.start(a)
    except Fatal as error:
        stopped[a if str(cluster._directory / b) not in str(error) else b] = str(error)
    for _ in range(400):
        stopped |= cluster.try_round()
        if b not in cluster.benches and a not in cluster.benches:
            break
        for name in (a, b):
            # As a supervisor would.
            if name in stopped and name not in cluster.benches and len(stopped) < 2:
                try:
                    cluster.start(name)
                except Fatal as error:
                    stopped[b if str(cluster._directory / b) in str(error) else a] = str(error)

    assert set(stopped) >= {a, b}, stopped
    assert f"is older than what {a} saw of {b}: start number" in stopped[b]
    assert f"the data directory of {b} is older than what {a} saw of it" in stopped[a] or "committed" in stopped[a]


# -- what is kept, and when

NOWHERE = Position()


def peers_of(directory: Path, *, disk: Disk | None = None, at: Position = NOWHERE, counted: bool = False) -> Peers:
    directory.mkdir(exist_ok=True)
    return Peers(directory, disk or SimDisk(), ("b", "c"), node="a", at=at, counted=counted)


def said(*tokens: str, first: int = 1, known: dict[str, Known] | None = None) -> Claims:
    return Claims(0, first, tuple(Start(token, Position()) for token in tokens), Position(9, 9, 9), known or {})


def test_every_start_is_on_disk_before_a_word_is_said(tmp_path: Path) -> None:
    first = claims_of(peers_of(tmp_path))
    second = peers_of(tmp_path, at=Position(3, 2, 7)).claims(0, Position(3, 2, 7))

    assert [len(first.starts), len(second.starts)] == [1, 2]
    assert second.starts[0] == first.starts[0]
    assert second.starts[1].at == Position(3, 2, 7)
    assert second.starts[1].token != first.starts[0].token


def claims_of(peers: Peers) -> Claims:
    claims = peers.claims(0, NOWHERE)
    assert claims is not None
    return claims


def no_job(job: Callable[[], None]) -> "Future[None]":
    return Future()


def greets(peers: Peers, *tokens: str) -> str:
    """What is objected to "b" with its disk "b1", these starts, and a word that it gives."""
    objected = peers.greet("b", "b1", said(*tokens), votes=True)
    if not objected:
        peers.hear("b", Position())
    return objected


def test_a_peers_start_is_on_disk_once_it_gave_its_word(tmp_path: Path) -> None:
    disk = SimDisk()
    peers = peers_of(tmp_path, disk=disk)

    assert greets(peers, "t1", "t2") == ""
    steps = disk.trace[-3:]

    assert [name for name, _ in steps] == ["sync", "rename", "sync directory"]
    assert "start number 2 was met as t2" in greets(peers_of(tmp_path), "t1", "x2")


def test_a_process_that_comes_while_the_connection_of_the_one_before_still_stands_is_taken_for_the_new_one(
    tmp_path: Path,
) -> None:
    """The old connection ends after the new greeting: what the peer says from then on is said in its new start."""
    peers = peers_of(tmp_path)
    assert greets(peers, "t1") == ""
    moved = Claims(0, 1, (Start("t1", NOWHERE), Start("t2", Position(3, 3, 10))), Position(3, 3, 10))
    assert peers.greet("b", "b1", moved, votes=True) == ""
    peers.leave("b")
    peers.hear("b", Position(3, 3, 20))

    again = structs.replace(moved, now=Position(3, 3, 20))
    assert peers.greet("b", "b1", again, votes=True) == ""
    third = structs.replace(again, starts=(*again.starts, Start("t3", Position(3, 3, 20))))
    assert peers.greet("b", "b1", third, votes=True) == ""
    older = structs.replace(moved, starts=(*moved.starts, Start("x3", Position(3, 3, 10))))
    assert "held entry 20 in term 3" in peers.greet("b", "b1", older, votes=True)


def test_a_number_that_no_chain_reaches_is_no_hello() -> None:
    """What is taken from a peer is written down, and must be read again at the next start."""
    absurd = Claims(0, 2**63 - 1, (Start("t", NOWHERE), Start("u", NOWHERE)), NOWHERE)

    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(absurd), type=Claims)


def test_members_that_were_replaced_are_forgotten(tmp_path: Path) -> None:
    peers = peers_of(tmp_path)
    greets(peers, "t1")

    others = Peers(tmp_path, SimDisk(), ("c", "d"), node="a", at=NOWHERE, counted=True)

    assert claims_of(others).known == {}


def test_a_peers_start_is_on_disk_once_it_has_stayed(tmp_path: Path) -> None:
    peers = peers_of(tmp_path)
    peers.greet("b", "b1", said("t1", "t2"), votes=True)

    for now in (100.0, 100.0 + STAYS_S):
        peers.save(now, no_job)

    assert "start number 2 was met as t2" in greets(peers_of(tmp_path), "t1", "x2")


def test_a_start_that_was_refused_elsewhere_at_once_is_not_held_against_the_right_directory(tmp_path: Path) -> None:
    """A copy greets this peer, which knows no better, and goes because another does."""
    peers = peers_of(tmp_path)
    greets(peers, "t1")
    assert peers.greet("b", "b1", said("t1", "of the copy"), votes=True) == ""
    peers.save(100.0, no_job)
    peers.leave("b")
    peers.save(200.0, no_job)

    assert greets(peers, "t1", "of the right one") == ""
    assert "start number 2 was met as of the right one" in greets(peers, "t1", "of the copy")


def test_who_does_not_vote_yet_is_not_kept(tmp_path: Path) -> None:
    peers = peers_of(tmp_path)

    for votes in (False, False):
        assert peers.greet("b", "b1", said("t1", "t2"), votes=votes) == ""
    peers.hear("b", Position(5, 5, 50))

    assert claims_of(peers).known == {}
    assert peers.greet("b", "b2", said("t1"), votes=True) == ""


def test_a_release_that_says_nothing_of_its_starts_is_neither_kept_nor_refused(tmp_path: Path) -> None:
    peers = peers_of(tmp_path)
    greets(peers, "t1", "t2")

    assert peers.greet("b", "b1", None, votes=True) == ""
    assert claims_of(peers).known["b"].number == 2
    # Upgraded again, its starts go on from where they were.
    assert peers.greet("b", "b1", said("t1", "t2", "t3"), votes=True) == ""


def test_words_are_written_a_second_later_and_not_by_the_thread_that_hears_them(tmp_path: Path) -> None:
    peers = peers_of(tmp_path)
    peers.greet("b", "b1", said("t1"), votes=True)
    jobs: list[tuple[Callable[[], None], Future[None]]] = []

    def run(job: Callable[[], None]) -> "Future[None]":
        done: Future[None] = Future()
        jobs.append((job, done))
        return done

    for now in (100.0, 100.1, 100.9):
        peers.hear("b", Position(5, 5, int(now * 10)))
        peers.save(now, run)
    assert len(jobs) == 1
    job, done = jobs[0]
    job()
    done.set_result(None)
    assert claims_of(peers_of(tmp_path)).known["b"].word == Position(5, 5, 1000)
    peers.save(101.1, run)
    assert len(jobs) == 2
    peers.hear("b", Position(5, 5, 1001))
    peers.save(101.2, run, at_once=True)
    assert len(jobs) == 2, "one at a time"


def test_words_that_cannot_be_read_are_forgotten_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peers = peers_of(tmp_path)
    greets(peers, "t1")
    (tmp_path / "words").write_bytes(b'{"b":{"disk":"b1","word":[5,5,50]}}\n00000000\n')
    caplog.set_level(logging.WARNING)

    again = peers_of(tmp_path)

    assert claims_of(again).known["b"].word == Position()
    assert "words cannot be read (its checksum does not fit)" in caplog.text


def test_a_directory_whose_starts_were_counted_and_are_gone_is_refused(tmp_path: Path) -> None:
    peers_of(tmp_path)
    (tmp_path / "starts").unlink()

    with pytest.raises(Damaged, match=r"starts is missing. It says which starts this directory has had"):
        peers_of(tmp_path, counted=True)
    assert claims_of(peers_of(tmp_path, counted=False)).last == 1


def test_a_refused_start_is_not_counted_so_that_a_copy_never_outgrows_what_is_known_of_it(tmp_path: Path) -> None:
    known = {"a": Known("d", 0, 2, "another")}
    tokens: set[str] = set()
    peers = peers_of(tmp_path)
    claims = claims_of(peers)
    for _ in range(5):
        peers = peers_of(tmp_path)
        claims = claims_of(peers)
        assert claims.last == 2
        tokens.add(claims.starts[-1].token)
        with pytest.raises(Fatal, match="older than what b saw of a: start number 2 was met as another"):
            peers.meet("b", known["a"], claims, "d", votes=True)

    assert len(tokens) == 1
    # Another peer's ignorance changes nothing; that one's own word does.
    peers.meet("c", None, claims_of(peers), "d", votes=True)
    assert claims_of(peers_of(tmp_path)).last == 2
    peers.meet("b", Known("d", 0, 1, claims.starts[0].token), claims, "d", votes=True)
    assert claims_of(peers_of(tmp_path)).last == 3


def test_without_room_a_peer_is_let_in_and_its_start_noted_when_there_is_room(tmp_path: Path) -> None:
    disk = SimDisk()
    peers = peers_of(tmp_path, disk=disk)
    disk.full = True

    assert greets(peers, "t1", "t2") == ""
    assert "start number 2" in greets(peers, "t1", "x2")
    peers.save(100.0, lambda job: pytest.fail("nothing to write before there is room"))
    disk.full = False
    peers.save(102.0, lambda job: Future())

    assert "start number 2" in greets(peers_of(tmp_path), "t1", "x2")


def test_without_room_a_node_starts_under_its_last_start_once_more(tmp_path: Path) -> None:
    """Other nodes may have met that, and would not know one that is on no disk."""
    never = SimDisk()
    never.full = True
    assert peers_of(tmp_path / "never", disk=never).claims(0, NOWHERE) is None

    last = claims_of(peers_of(tmp_path))
    disk = SimDisk()
    disk.full = True

    assert claims_of(peers_of(tmp_path, disk=disk)) == last
    assert claims_of(peers_of(tmp_path)).last == last.last + 1
