"""One node in the hands of a test, in two makes: our engine and the bare library.

A defect of the library is told once, as a scenario over a ``Member`` (a node
whose peers the test plays) or a ``LogFile`` (its log alone), which raises
``Broken`` where Raft's promise is not kept. Our side must come through; the
bare library must not, or the scenario would prove nothing.
"""

import functools
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

OLD = Path(sys.prefix) / "pysyncobj-0.3.14"
BROKEN = 3
"""How a process says that the scenario it played was ``Broken``."""

Placed = tuple[int, int, str | None]
"""An entry: index, term, and the value that it writes (None: a no-op)."""


class Broken(AssertionError):
    """A promise of Raft was not kept."""


class Refused(Exception):
    """The node does not start, or stops, rather than go on. That keeps every promise."""


def require(kept: object, what: str) -> None:
    if not kept:
        raise Broken(what)


def run(first: int, last: int, term: int = 1) -> list[Placed]:
    """Entries ``first`` to ``last`` of one term, each with a value of its own."""
    return [(index, term, f"v{index}.{term}") for index in range(first, last + 1)]


def keeps(held: list[Placed], wanted: list[Placed], why: str) -> None:
    """``Broken`` unless all that is wanted is held."""
    missing = [entry for entry in wanted if entry not in held]
    require(not missing, f"{why}, and now the log lacks {missing}")


class Answer:
    """What a proposal came to."""

    def __init__(self) -> None:
        self.done: bool = False
        self.succeeded: bool = False


class Member(ABC):
    """A node that stands until it is told to move; messages act at once."""

    applied: list[str | None]
    """Values in the order in which they were applied since the start of the process."""
    trace: list[str]
    """``change`` and ``sync`` of its files, ``send`` and the kind of message, ``answer``."""

    # -- what happens to it

    @abstractmethod
    def tick(self, seconds: float = 0.0) -> None:
        """Lets time pass and the node do one round, with errors treated as its loop does."""

    @abstractmethod
    def restart(self) -> None:
        """SIGKILL, and a new process on the same files. ``Refused`` if that does not start."""

    @abstractmethod
    def append(
        self, leader: str, term: int, previous: tuple[int, int], entries: Sequence[Any] = (), commit: int = 1
    ) -> None:
        """AppendEntries; ``previous`` is index and term. A value may be bytes: a raw command."""

    @abstractmethod
    def claim(self, leader: str, term: int, commit: int) -> None:
        """A message of a leader that proves nothing of the log."""

    @abstractmethod
    def install(self, leader: str, term: int, last: tuple[int, int], values: Sequence[str], *, damaged: bool) -> None:
        """A whole state file that covers the log up to ``last``, an index and its term."""

    @abstractmethod
    def ask_vote(self, candidate: str, term: int, last: tuple[int, int]) -> None:
        """RequestVote; ``last`` is index and term of the candidate's last entry."""

    @abstractmethod
    def grant_vote(self, voter: str, term: int) -> None: ...

    @abstractmethod
    def acknowledge(self, follower: str, term: int, next_index: int) -> None:
        """A follower's word, given in ``term``, that it holds everything below ``next_index``."""

    @abstractmethod
    def propose(self, value: str, *, raising: bool = False) -> Answer:
        """A write of a client, whose callback raises if ``raising``."""

    @abstractmethod
    def save_state(self) -> None:
        """Writes a state file of what is applied; the log is cut in the next round."""

    @abstractmethod
    def lose_state_file(self) -> None: ...

    @abstractmethod
    def damage_state_file(self) -> None: ...

    @abstractmethod
    def restarts_after_power_cuts(self) -> Iterator[None]:
        """Restarts the node on what each of many power cuts may leave, and comes back where it starts."""

    @abstractmethod
    def take(self, peer: str) -> list[Any]:
        """What the node has sent to a peer since this was asked last, for that peer's ``receive``."""

    @abstractmethod
    def receive(self, peer: str, message: Any) -> None:
        """A message from a peer, and what follows at once from it."""

    def elect(self) -> int:
        """Makes the node the leader of the next term, with the votes of all peers."""
        self.tick(2.0)
        for peer in self.peers:
            self.grant_vote(peer, self.term)
        assert self.leads, "the node could not be made leader"
        return self.term

    # -- what is seen of it

    node: str
    peers: tuple[str, ...]

    @property
    @abstractmethod
    def term(self) -> int: ...

    @property
    @abstractmethod
    def leads(self) -> bool: ...

    @property
    @abstractmethod
    def commit_index(self) -> int: ...

    @property
    @abstractmethod
    def members(self) -> set[str]:
        """The peers that count for a quorum."""

    @abstractmethod
    def state(self) -> set[str]:
        """The values that the state machine holds."""

    @abstractmethod
    def entries(self) -> list[Placed]:
        """The log as it is in memory."""

    @abstractmethod
    def acknowledged(self) -> list[tuple[str, int]]:
        """Acknowledgements sent so far: to whom, and the next index named."""

    @abstractmethod
    def refusals(self) -> list[int]:
        """The points that the node's refusals named: send again from there."""

    @abstractmethod
    def votes(self) -> list[tuple[str, int]]:
        """Votes given: to whom, in which term."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def last_index(self) -> int:
        return self.entries()[-1][0]

    def values(self) -> list[str | None]:
        return [value for _, _, value in self.entries()]


class LogFile(ABC):
    """The log of one node on its disk, without the node."""

    @abstractmethod
    def add(self, *entries: Placed) -> None:
        """Appends, durably."""

    @abstractmethod
    def compact(self, index: int, cut_at: int | None = None) -> bool:
        """Drops what is before ``index``; False if the process dies at step ``cut_at`` of that."""

    @abstractmethod
    def reopen(self) -> None:
        """Reads the file again, as a new process would. ``Refused`` if it will not."""

    @abstractmethod
    def entries(self) -> list[Placed]: ...

    @abstractmethod
    def content(self) -> bytes:
        """The bytes of the file that count."""

    @abstractmethod
    def overwrite(self, content: bytes) -> None:
        """Changes the file behind the log's back; ``reopen`` comes next."""

    @abstractmethod
    def room(self) -> tuple[int, int]:
        """Bytes that the file claims to have room for, and bytes that the disk gave it."""

    @abstractmethod
    def close(self) -> None: ...


def proves(scenario: Callable[[Any], None]) -> Callable[..., None]:
    """A scenario as a test of both sides: ours keeps the promise, the bare library breaks it."""

    def test(request: pytest.FixtureRequest, side: str) -> None:
        bench = request.getfixturevalue(side)
        if side == "ours":
            scenario(bench)
        else:
            with pytest.raises(Broken):
                scenario(bench)

    # The library leaves open files to the collector.
    bare = pytest.param("bare", marks=pytest.mark.filterwarnings("ignore::ResourceWarning"))
    return pytest.mark.parametrize("side", ["ours", bare])(_named(test, scenario))


def proves_on_0_3_14(scenario: Callable[[Any], None]) -> Callable[..., None]:
    """The same for what version 0.3.16 of the library mended: there, bare means 0.3.14, in its own process."""

    def test(request: pytest.FixtureRequest, tmp_path: Path, side: str) -> None:
        if side == "ours":
            scenario(request.getfixturevalue(side))
            return
        played = play_on_0_3_14(Path(request.node.path), scenario.__name__, tmp_path)
        assert "pysyncobj 0.3.14" in played.stdout, played.stderr
        assert played.returncode == BROKEN, f"0.3.14 kept the promise?\n{played.stdout}{played.stderr}"

    found: Any = pytest.mark.parametrize("side", ["ours", "0.3.14"])(_named(test, scenario))
    found.scenario = scenario
    return found


def play_on_0_3_14(file: Path, scenario: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Plays one scenario of a test file on pysyncobj 0.3.14; see ``sides.py``."""
    assert (OLD / "pysyncobj").is_dir(), f"{OLD} is missing: scripts/test makes it (pysyncobj 0.3.14, to compare with)"
    tests = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(part for part in (str(OLD), str(tests), os.environ.get("PYTHONPATH", "")) if part)
    return subprocess.run(
        [sys.executable, "-m", "harness.sides", str(file), scenario, str(directory)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _named(test: Callable[..., None], scenario: Callable[[Any], None]) -> Callable[..., None]:
    named: Any = functools.update_wrapper(test, scenario)
    del named.__wrapped__  # pytest would take the scenario's arguments for the test's
    return named
