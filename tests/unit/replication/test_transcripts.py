"""Transcripts: what node ``a`` of three says and does, to be read before the code (``transcripts/``).

A line that begins with ``>`` is what happens; below it stands what ``a`` sends, and where it stands if that changed:

    > b: PreVoteResponse term=0 granted=True     a message from b
    > after 2.0                                   time passes, and a has one round
    > propose x                                   a client of a writes x

An entry is written INDEX/TERM:VALUE, without a value if it is a no-op. To write the answers anew, and read what
changed before it is committed: ``REWRITE=1 .venv/bin/pytest tests/unit/replication/test_transcripts.py``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.facts import set_facts
from harness.ours import EngineMember
from harness.raft import command, entry
from msgspec import structs
from rollcall.replication.commands import LEVEL, Register, decode
from rollcall.replication.network import wire
from rollcall.replication.storage.log_file import REGULAR

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
ROLES = ("follows", "stands", "leads")
CLOCKS = {"at", "asked_at", "contact_s", "heard", "detached", "voting", "room"}
"""Fields that are about other things than what a transcript tells."""


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_node_says_and_does_what_the_transcript_tells(path: Path, ours: Any) -> None:
    member: EngineMember = ours.member()
    set_facts(member.engine.registry, level=LEVEL)
    told = path.read_text()

    played = "\n".join(play(member, told.splitlines())) + "\n"

    if os.environ.get("REWRITE"):
        path.write_text(played)
        return
    assert played == told


def play(member: EngineMember, lines: list[str]) -> Iterator[str]:
    """The transcript with what happens now below each of its ``>`` lines."""
    member.take("b")
    member.take("c")
    before = standing(member)
    for line in lines:
        if not line.startswith("  "):
            yield line
        if line.startswith("> "):
            act(member, line[2:].split())
            yield from sent(member)
            if standing(member) != before:
                before = standing(member)
                yield f"  a {before}"


def act(member: EngineMember, words: list[str]) -> None:
    match words:
        case ["after", seconds]:
            member.tick(float(seconds))
        case ["propose", value]:
            member.engine.propose(command(value), time_ns=1)
            member.tick()
        case [peer, kind, *fields]:
            member.receive(peer.rstrip(":"), message(kind, dict(field.split("=", 1) for field in fields)))
        case _:
            raise ValueError(f"no such thing can happen: {words}")


def message(kind: str, fields: dict[str, str]) -> wire.Message:
    made: dict[str, Any] = {name: int(value) for name, value in fields.items() if value.isdigit()}
    made |= {name: value == "True" for name, value in fields.items() if value in ("True", "False")}
    if kind == "AppendEntries":
        made["previous_index"], made["previous_term"] = (int(number) for number in fields["previous"].split("/"))
        made["entries"] = tuple(placed(each) for each in fields.get("entries", "").split(",") if each)
    return getattr(wire, kind)(**made)


def placed(text: str) -> tuple[bytes, int, int]:
    where, _, value = text.partition(":")
    index, term = where.split("/")
    return entry(value or None), int(index), int(term)


def sent(member: EngineMember) -> Iterator[str]:
    """What a sent since this was asked last; to both in one line if it is the same."""
    to_b, to_c = ([shown(each) for each in member.take(peer)] for peer in "bc")
    both = [each for each in to_b if each in to_c]
    for names, lines in (("b and c", both), ("b", to_b), ("c", to_c)):
        for each in lines:
            if names == "b and c" or each not in both:
                yield f"  to {names}: {each}"


def shown(message: wire.Message) -> str:
    fields = {name: value for name, value in structs.asdict(message).items() if name not in CLOCKS}
    if isinstance(message, wire.AppendEntries):
        fields["previous"] = f"{fields.pop('previous_index')}/{fields.pop('previous_term')}"
        fields["entries"] = entries(fields.pop("entries"))
    return " ".join([type(message).__name__, *(f"{name}={value}" for name, value in fields.items())])


def entries(held: Any) -> str:
    return ",".join(f"{index}/{term}{written(data)}" for data, index, term in held)


def written(data: bytes) -> str:
    if data[:1] != REGULAR:
        return ""
    done = decode(data[1:]).command
    return f":{done.registration.id}" if isinstance(done, Register) else f":({type(done).__name__})"


def standing(member: EngineMember) -> str:
    raft, log = member.engine.raft, member.engine.journal
    leader = f" {raft.leader.id}" if raft.leader is not None and raft.leader.id != "a" else ""
    voted = f", voted for {raft.vote}" if raft.vote else ""
    role = f"{ROLES[raft.role]}{leader} in term {raft.term}{voted}"
    return f"{role}; log {entries(log[:])}; committed {raft.commit_index}, applied {raft.applied}"
