"""Logs, state files and digests of fixed commands, byte for byte as the releases before wrote them.

One of each for every feature level, below ``goldens``, with every kind of command, of record in the log and of record
in a state file that the level has. A change that moves a byte here is a new format, and needs a feature level.

    PYTHONPATH=tests .venv/bin/python tests/unit/replication/test_goldens.py

makes the files anew, for a level that is new.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from rollcall.replication.checks import Check
from rollcall.replication.commands import (
    LEVEL,
    Assign,
    Barrier,
    Batch,
    Begin,
    Command,
    Compare,
    Condemn,
    Condemned,
    Deregister,
    Envelope,
    Evict,
    Expired,
    Judgement,
    Lift,
    Raise,
    Readmit,
    Register,
    Report,
    Result,
    SetPolicy,
    SetStatus,
    decode,
    encode,
    level_of,
    sealed,
)
from rollcall.replication.outcome import Applied, Kind
from rollcall.replication.policies import Policy
from rollcall.replication.records import Key, Registration
from rollcall.replication.registry.registry import Registry
from rollcall.replication.storage.journal import NO_OP, REGULAR, Journal
from rollcall.replication.storage.snapshot import Snapshots

GOLDENS = Path(__file__).parent / "goldens"
LEVELS = range(1, LEVEL + 1)
BEGAN_NS = 1_700_000_000_000_000_000
SECOND_NS = 10**9
TERM = 3
CHECKS = (
    Check(name="up", http="http://10.0.0.1:80/health", headers={"Accept": "*/*"}, deregister_critical_after_s=60.0),
    Check(name="said", ttl_s=30.0),
)


class Request(NamedTuple):
    """One command of the script: at how many seconds, and with which ``Idempotency-Key``."""

    at_s: float
    command: Command
    request_id: str = ""


def key(id: str) -> Key:
    return Key("default", "web", id)


def plain(id: str, **more: object) -> Register:
    return Register(Registration(service="web", id=id, **more))  # type: ignore[arg-type]


def script(level: int, registry: Registry) -> Iterator[Request]:
    """The commands after the log's first entry, each to be applied to ``registry`` before the next is asked for."""
    if level > 1:
        yield Request(1, Raise(level))
    yield Request(2, Barrier())
    if level >= 4:
        yield Request(2, Begin("0123456789abcdef"))
    yield from of_the_first_level(registry)
    if level >= 2:
        yield from (Request(20, Compare(2, "ab" * 32)), Request(20, Readmit("node-2", "disk-2")))
    if level >= 3:
        yield from of_checks(registry)
        yield from of_policies()
    if level >= 4:
        yield from of_overrides(registry)
    yield Request(90, plain("last", ttl_s=5.0), "request-last")


def of_the_first_level(registry: Registry) -> Iterator[Request]:
    full = Registration(
        service="db",
        id="full",
        env="prod",
        hostname="db-1.example",
        address="10.0.0.9",
        port=5432,
        addrs=("http://10.0.0.9:80", "grpc://10.0.0.9:81"),
        version="1.2.3",
        region="eu",
        zone="eu-1",
        tags=("primary", "ssd"),
        meta={"z": "last", "a": "first", "ü": "ö"},
        weight=7,
        status="starting",
        ttl_s=30.0,
        dirty_timestamp=5,
    )
    yield Request(3, Register(full), "request-full")
    yield Request(3.5, Register(full, if_absent=True), "request-refused")
    yield Request(3.5, Register(full), "request-full")
    yield Request(3.5, Deregister(Key("prod", "db", "full")), "request-full")
    yield Request(4, Register(Registration(service="db", id="full", env="prod", dirty_timestamp=4)))
    yield from (Request(5, plain(id, ttl_s=10.0)) for id in ("c", "b", "a", "gone", "judged", "kept"))
    yield Request(4, plain("a", port=81, meta={"k": "v"}), "request-behind")
    yield Request(6, Deregister(key("gone")), "request-gone")
    yield Request(6, Deregister(key("gone")))
    yield Request(6, Deregister(Key("default", "nothing", "x" * 60)), "request-missing")
    yield Request(7, SetStatus("default", "web", "a", "draining", "kernel update"))
    yield Request(7, SetStatus("default", "web", "b", "out_of_service", "bad disk"), "request-status")
    yield Request(7, SetStatus("default", "web", "b", None), "request-lifted")
    several = (plain("d"), Deregister(key("c")), SetStatus("default", "web", "d", "down"))
    yield Request(8, Batch(several), "request-batch")
    yield Request(8, Batch((plain("e"), Deregister(key("nobody")))), "request-batch-refused")
    judged = (Judgement(key("judged"), reg_index(registry, "judged")), Judgement(key("kept"), 1))
    yield Request(9, Evict(judged, term=TERM - 1))
    yield Request(9, Evict((*judged, Judgement(key("nobody"), 1)), term=TERM))
    yield Request(9, Register(Registration(service="alone", id="once")))
    yield Request(9, Deregister(Key("default", "alone", "once")))


def of_checks(registry: Registry) -> Iterator[Request]:
    yield Request(30, Assign(("node-1", "node-2"), term=TERM))
    yield Request(30, Assign(("node-9",), term=TERM - 1))
    epoch = registry.assignment.epoch
    yield from (Request(31, plain(id, checks=CHECKS)) for id in ("checked", "condemned"))
    checked, condemned = reg_index(registry, "checked"), reg_index(registry, "condemned")
    passing = (Result(key("checked"), checked, "up", "passing"), Result(key("condemned"), condemned, "up", "passing"))
    yield from (Request(32, Report(node, epoch, passing)) for node in ("node-1", "node-2"))
    said = (Result(key("checked"), checked, "said", "warning"), Result(key("condemned"), condemned, "said", "critical"))
    yield Request(33, Report("", 0, said, term=TERM - 1))
    yield Request(33, Report("", 0, said, term=TERM))
    since = registry.applied_index
    yield Request(34, Report("node-1", epoch - 1, passing))
    yield Request(35, Condemn((Condemned(key("condemned"), condemned, "said", since),), term=TERM - 1))
    yield Request(35, Condemn((Condemned(key("checked"), checked, "said", since),), term=TERM))
    yield Request(36, Condemn((Condemned(key("condemned"), condemned, "said", since),), term=TERM))


def of_policies() -> Iterator[Request]:
    canary = Policy(service="web", percent=2.5, tags=("new",), match={"version": "2"}, header="X-Try", value="yes")
    yield Request(40, SetPolicy("canary", canary, "ada", "try it"), "request-canary")
    yield Request(41, SetPolicy("beta", Policy(service="db", env="prod"), "bob"))
    yield Request(42, SetPolicy("canary", Policy(service="web"), "ada", "more"))
    yield Request(43, SetPolicy("beta", None, "bob", "done"))
    yield Request(44, SetPolicy("beta", None, "bob", "again"), "request-none")


def of_overrides(registry: Registry) -> Iterator[Request]:
    yield Request(50, SetStatus("default", "web", "new", "out_of_service", "not yet", unregistered=True))
    yield Request(51, SetStatus("default", "web", "checked", "down", "an hour", for_s=3_600.0), "request-hour")
    yield Request(52, SetStatus("default", "web", "d", "draining", "until", until=BEGAN_NS + 60 * SECOND_NS))
    yield Request(53, plain("new"))
    yield Request(54, Deregister(key("kept"), reg_index=1), "request-superseded")
    yield Request(54, Deregister(key("kept"), reg_index=reg_index(registry, "kept")))
    yield Request(55, SetStatus("default", "web", "late", "down", "short", for_s=1.0, unregistered=True))
    yield Request(60, plain("late"))
    ended = Expired(key("d"), registry.overrides[key("d")].modify_index)
    yield Request(61, Lift((ended,), term=TERM - 1))
    yield Request(62, Lift((ended, Expired(key("checked"), 7), Expired(key("nobody"), 8)), term=TERM))


def reg_index(registry: Registry, id: str) -> int:
    instance = registry.instance(key(id))
    assert instance is not None
    return instance.reg_index


@dataclass(frozen=True)
class Played:
    """One command of the script, and what became of it."""

    index: int
    envelope: Envelope
    applied: Applied


def play(level: int, registry: Registry) -> Iterator[Played]:
    registry.skip(1, 0)
    for index, request in enumerate(script(level, registry), 2):
        envelope = sealed(request.command, BEGAN_NS + round(request.at_s * SECOND_NS), request.request_id, level=level)
        assert level_of(request.command) <= level
        yield Played(index, envelope, registry.apply(index, TERM, decode(encode(envelope))))


class Made(NamedTuple):
    """What a node has after the script: the bytes of its files, and its digest."""

    log: bytes
    cut_log: bytes
    mark: bytes
    state: bytes
    digest: str

    @classmethod
    def files(cls, level: int) -> dict[str, str]:
        return {field: f"level-{level}.{field.replace('_', '-')}" for field in cls._fields}


def make(level: int, directory: Path) -> Made:
    """Plays the script of ``level``, in an empty directory."""
    journal = Journal(directory / "journal", cluster="golden", node="node-1")
    registry = Registry()
    journal.setCurrentTerm(1, None)
    journal.add(NO_OP, 2, 1)
    journal.add(REGULAR + b"void", 3, 1)
    journal.sync()
    journal.deleteEntriesFrom(1)
    journal.setCurrentTerm(TERM, "node-2")
    for played in play(level, registry):
        journal.add(REGULAR + encode(played.envelope), played.index, TERM)
        if played.index % 8 == 0:
            journal.setRaftCommitIndex(played.index - 2)
    journal.sync()
    log = written(journal, directory)
    cut = journal.begin_cut(10)
    journal.write_cut(cut, lambda: None)
    journal.end_cut(cut)
    cut_log = written(journal, directory)
    mark = (directory / "journal.synced").read_bytes()
    journal._destroy()
    snapshots = Snapshots(directory, cluster="golden")
    snapshots.save(registry.root()).result()
    snapshots.close()
    return Made(log, cut_log, mark, (directory / "snapshot").read_bytes(), digest_of(registry))


def digest_of(registry: Registry) -> str:
    """Its digest in words, and where its state is divided into chunks."""
    index, digest = registry.digest()
    chunks = " ".join(str(len(chunk)) for chunk in registry.root().chunks(300))
    return f"index {index}, {len(registry)} instances: {digest}\nchunks: {chunks}\n"


def written(journal: Journal, directory: Path) -> bytes:
    data = (directory / "journal").read_bytes()
    assert not data[journal.size :].strip(b"\0")
    return data[: journal.size]


def golden(level: int) -> Made:
    files = {field: (GOLDENS / name).read_bytes() for field, name in Made.files(level).items()}
    return Made(**{**files, "digest": files["digest"].decode()})


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_commands_leave_the_same_bytes(tmp_path: Path, level: int) -> None:
    made, wanted = make(level, tmp_path), golden(level)

    assert [field for field in Made._fields if getattr(made, field) != getattr(wanted, field)] == []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("field", ["log", "cut_log"])
def test_a_log_as_it_was_written_is_read(tmp_path: Path, level: int, field: str) -> None:
    (tmp_path / "journal").write_bytes(getattr(golden(level), field))

    journal = Journal(tmp_path / "journal", cluster="golden", node="node-1")
    entries, base = journal[1:], journal.base_index
    found = (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex())
    journal._destroy()

    wanted = [(played.index, TERM, played.envelope) for played in play(level, Registry())]
    commit = max(index for index, _, _ in wanted if index % 8 == 0) - 2
    assert (found, base) == ((TERM, "node-2", commit), 1 if field == "log" else 11)
    assert [(index, term, decode(data[1:])) for data, index, term in entries] == wanted[base - 1 :]


@pytest.mark.parametrize("level", LEVELS)
def test_a_log_as_it_was_written_gives_the_same_state(tmp_path: Path, level: int) -> None:
    (tmp_path / "journal").write_bytes(golden(level).log)

    journal = Journal(tmp_path / "journal", cluster="golden", node="node-1")
    registry = Registry()
    registry.skip(1, 0)
    for data, index, term in journal[1:]:
        registry.apply(index, term, decode(data[1:]))
    journal._destroy()

    assert digest_of(registry) == golden(level).digest


@pytest.mark.parametrize("level", LEVELS)
def test_a_state_file_as_it_was_written_is_read_and_would_be_written_again(tmp_path: Path, level: int) -> None:
    (tmp_path / "snapshot").write_bytes(golden(level).state)

    snapshots = Snapshots(tmp_path, cluster="golden")
    found = snapshots.load()
    assert found is not None
    registry = Registry()
    registry.replace(found[1])
    snapshots.save(registry.root()).result()
    snapshots.close()

    assert digest_of(registry) == golden(level).digest
    assert (tmp_path / "snapshot").read_bytes() == golden(level).state


def test_the_script_has_every_kind_of_command_and_what_each_can_do() -> None:
    """Or a golden file would prove less than it says."""
    registry = Registry()
    played = list(play(LEVEL, registry))
    outcomes = [each.applied.outcome for each in played]
    done = {
        (type(each.envelope.command).__name__, kind) for each in played if each.applied.outcome
        for kind in each.applied.outcome.kinds
    }  # fmt: skip

    assert {type(each.envelope.command) for each in played} == set(Command.__args__)
    assert {kind for _, kind in done} == set(Kind.__args__)
    assert {("Evict", "evicted"), ("Condemn", "evicted"), ("Lift", "status"), ("Report", "checked")} <= done
    assert {("Evict", "void"), ("Condemn", "void"), ("Lift", "void"), ("Report", "void"), ("Assign", "void")} <= done
    refused = {type(each.applied.error).__name__ for each in played if each.applied.error}
    assert refused == {"AlreadyRegistered", "KeyReused", "NotFound", "Superseded"}
    assert any(outcome and not outcome.instances and outcome.kinds == ("created",) for outcome in outcomes), "a repeat"
    facts = registry.facts
    assert all((facts.policies, facts.policy_changes, facts.overrides, facts.history, registry.root().requests))


if __name__ == "__main__":
    for each in LEVELS:
        with tempfile.TemporaryDirectory() as made_in:
            made_now = make(each, Path(made_in))
        for field_made, file_name in Made.files(each).items():
            content = getattr(made_now, field_made)
            (GOLDENS / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
    sys.stdout.write(f"made {len(list(GOLDENS.iterdir()))} files\n")
