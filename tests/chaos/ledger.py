"""The book of a run: every fact that anybody noticed, one JSON line each, only ever appended.

What clients saw of the registry is told in the words of ``harness.history``; the
facts here are what only a run of real processes has: faults, what was polled from
the nodes, how large they grew, what they logged. The verdict and the report are
made from the book alone, so a run can be judged again long after it.

Times are of ``time.monotonic`` in the process of the clients.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
from harness import history
from msgspec import Struct

FLUSH_BYTES = 256 * 1024
GONE = "gone"
"""The health of an instance that was removed."""


class Began(Struct, frozen=True, kw_only=True, tag="began"):
    """What is run, from when on. ``wall_s`` is ``time.time()`` at ``at``; ``why_not`` has
    the kinds of faults that cannot be had here."""

    at: float
    wall_s: float
    seed: int
    minutes: float
    nodes: tuple[str, ...]
    network: str
    kinds: tuple[str, ...]
    why_not: dict[str, str]
    command: str
    machine: str


class Phase(Struct, frozen=True, kw_only=True, tag="phase"):
    """``chaos``: clients and faults are at work. ``settling``: all is healed, clients go on.
    ``quiet``: nobody writes any more. ``over``: the nodes were stopped."""

    at: float
    name: Literal["chaos", "settling", "quiet", "over"]


class Struck(Struct, frozen=True, kw_only=True, tag="struck"):
    """A fault began."""

    number: int
    at: float
    kind: str
    targets: tuple[str, ...]
    description: str


class Healed(Struct, frozen=True, kw_only=True, tag="healed"):
    """The fault of that number was undone. ``broken``: promises that were broken before its eyes."""

    number: int
    at: float
    broken: tuple[str, ...] = ()


class Trouble(Struct, frozen=True, kw_only=True, tag="trouble"):
    """The bench itself failed: what the run shows is not to be relied on."""

    at: float
    text: str


class Polled(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="polled"):
    """What a node said of the cluster; ``answered`` False: nothing, or an error."""

    node: str
    at: float
    answered: bool = True
    role: str = ""
    leader: str = ""
    term: int = 0
    applied: int = 0
    reachable: tuple[str, ...] = ()
    held: bool = False
    """Self-protection holds evictions."""
    leased: int = 0
    allowed: int = 0
    """How many may be evicted within a minute."""
    contact_s: float | None = None


class Sized(Struct, frozen=True, kw_only=True, tag="sized"):
    """How much memory a node's process takes, and its directory."""

    node: str
    at: float
    memory_bytes: int
    data_bytes: int


class Faithful(Struct, frozen=True, kw_only=True, tag="faithful"):
    """An instance whose client renews it all the time."""

    key: str
    ttl_s: float


class Silenced(Struct, frozen=True, kw_only=True, tag="silenced"):
    """An instance that died: its last heartbeat was answered, or given up, at ``at``."""

    key: str
    ttl_s: float
    at: float


class Checked(Struct, frozen=True, kw_only=True, tag="checked"):
    """An instance with a health check, and its target is well at ``at``. ``steady``: it always is."""

    key: str
    steady: bool
    at: float


class Turned(Struct, frozen=True, kw_only=True, tag="turned"):
    """A target fell ill, or got well."""

    key: str
    well: bool
    at: float


class Stood(Struct, frozen=True, kw_only=True, tag="stood"):
    """How an instance with a health check stood from ``index`` on, as ``who`` was shown by a node. Who asks a node
    again and again notes only what is new."""

    who: str
    node: str
    at: float
    key: str
    index: int
    health: str


class Odd(Struct, frozen=True, kw_only=True, tag="odd"):
    """An answer that no client should have to deal with."""

    client: str
    node: str
    at: float
    text: str


class Lagged(Struct, frozen=True, kw_only=True, tag="lagged"):
    """The clients' own process stood still for so long before ``at``: the machine is too busy to time anything."""

    at: float
    lag_s: float


class Cried(Struct, frozen=True, kw_only=True, tag="cried"):
    """A node logged what no node should log. ``at`` is by the node's own wall clock, None if it does not say."""

    node: str
    at: float | None
    text: str


class Crashed(Struct, frozen=True, kw_only=True, tag="crashed"):
    """A node's process ended although nobody ended it."""

    node: str
    code: int


Own = (
    Began
    | Phase
    | Struck
    | Healed
    | Trouble
    | Polled
    | Sized
    | Faithful
    | Silenced
    | Checked
    | Turned
    | Stood
    | Odd
    | Lagged
    | Cried
    | Crashed
)  # fmt: skip
Entry = Own | history.Fact

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


class Ledger:
    """Appends entries to a file, from any thread, and shows each to ``onlookers``. A context manager closes it.

    An onlooker is called by the thread that notes the entry and must be quick.
    """

    def __init__(self, path: Path, *onlookers: Callable[[Entry], None]) -> None:
        self.path: Path = path
        self._onlookers = onlookers
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=FLUSH_BYTES)

    def note(self, entry: Entry) -> None:
        text = _encoder.encode(entry) + b"\n"
        with self._lock:
            # A client that outlives its welcome may not write behind the verdict's back.
            if not self._file.closed:
                self._file.write(text)
        for onlooker in self._onlookers:
            onlooker(entry)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read(path: Path) -> Iterator[Entry]:
    """All entries of a book; a torn last line is left out."""
    with path.open("rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield _decoder.decode(text)


class Fault(Struct, frozen=True, kw_only=True):
    """A fault from beginning to end; ``until`` None: it was never undone."""

    kind: str
    targets: tuple[str, ...]
    description: str
    since: float
    until: float | None
    broken: tuple[str, ...] = ()


class Book:
    """The entries of a run, sorted by what they are. Times stay in the order they were noted in."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.began: Began | None = None
        self.phases: dict[str, float] = {}
        self.facts: list[history.Fact] = []
        self.writes: list[history.Write] = []
        self.reads: list[history.Read] = []
        self.renewals: list[history.Renewal] = []
        self.pages: list[history.WatchPage] = []
        self.led: list[history.Led] = []
        self.polls: dict[str, list[Polled]] = {}
        self.sizes: dict[str, list[Sized]] = {}
        self.faithful: list[Faithful] = []
        self.silenced: list[Silenced] = []
        self.checked: list[Checked] = []
        self.turned: list[Turned] = []
        self.stood: list[Stood] = []
        self.odd: list[Odd] = []
        self.lagged: list[Lagged] = []
        self.cried: list[Cried] = []
        self.crashed: list[Crashed] = []
        self.troubles: list[Trouble] = []
        self._struck: dict[int, Struck] = {}
        self._healed: dict[int, Healed] = {}
        for entry in entries:
            self._take(entry)

    @property
    def start(self) -> Began:
        """How the run began; a book without it is none."""
        if self.began is None:
            raise ValueError("this is no book of a run: it does not say how the run began")
        return self.began

    @property
    def faults(self) -> list[Fault]:
        """All faults, in the order of their beginning."""
        made: list[Fault] = []
        for number, struck in self._struck.items():
            healed = self._healed.get(number)
            made.append(
                Fault(
                    kind=struck.kind,
                    targets=struck.targets,
                    description=struck.description,
                    since=struck.at,
                    until=None if healed is None else healed.at,
                    broken=() if healed is None else healed.broken,
                )
            )
        return made

    @property
    def ends_at(self) -> float:
        """When the clients had left, or the last thing that is known."""
        known = [self.phases["quiet"]] if "quiet" in self.phases else []
        return known[0] if known else max((p[-1].at for p in self.polls.values()), default=self.start.at)

    def _take(self, entry: Entry) -> None:
        match entry:
            case Began():
                self.began = entry
            case Phase():
                self.phases[entry.name] = entry.at
            case Struck():
                self._struck[entry.number] = entry
            case Healed():
                self._healed[entry.number] = entry
            case Polled():
                self.polls.setdefault(entry.node, []).append(entry)
            case Sized():
                self.sizes.setdefault(entry.node, []).append(entry)
            case Faithful():
                self.faithful.append(entry)
            case Silenced():
                self.silenced.append(entry)
            case Checked():
                self.checked.append(entry)
            case Turned():
                self.turned.append(entry)
            case Stood():
                self.stood.append(entry)
            case Odd():
                self.odd.append(entry)
            case Lagged():
                self.lagged.append(entry)
            case Cried():
                self.cried.append(entry)
            case Crashed():
                self.crashed.append(entry)
            case Trouble():
                self.troubles.append(entry)
            case _:
                self._take_fact(entry)

    def _take_fact(self, fact: history.Fact) -> None:
        self.facts.append(fact)
        match fact:
            case history.Write():
                self.writes.append(fact)
            case history.Read():
                self.reads.append(fact)
            case history.Renewal():
                self.renewals.append(fact)
            case history.WatchPage():
                self.pages.append(fact)
            case history.Led():
                self.led.append(fact)
            case _:
                pass
