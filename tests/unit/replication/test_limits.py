"""Whatever can be proposed can be saved, read back, sent and installed: each kind of record at its limits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.limits import LETTERS, NAME, policy, registration
from harness.raft import Clock, Cluster, HandWorker, is_done
from harness.sim_disk import SimDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollcall.replication import policies as policies_module
from rollcall.replication.checks import CHECKS_MAX
from rollcall.replication.commands import (
    FOR_S_MAX,
    REQUEST_ID_MAX,
    Assign,
    Batch,
    Command,
    Deregister,
    Raise,
    Register,
    SetPolicy,
    SetStatus,
    decode,
    encode,
    from_peer,
    sealed,
    to_peer,
)
from rollcall.replication.errors import Invalid, TooLarge
from rollcall.replication.policies import AUDITED_BYTES_MAX, AUDITED_MAX, POLICIES_MAX, POLICY_BYTES_MAX, policy_of
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.records import (
    CHECKS_BYTES_MAX,
    ID_LENGTH_MAX,
    REGISTRATION_BYTES_MAX,
    Key,
    Registration,
    build,
)
from rollcall.replication.registry import requests as requests_module
from rollcall.replication.registry.registry import Registry
from rollcall.replication.registry.state import State, verify
from rollcall.replication.storage import snapshot as snapshot_module
from rollcall.replication.storage.snapshot import FRAME_BYTES_MAX, Snapshots

Given = tuple[Command, str]
"""A command, and the ``Idempotency-Key`` that it came with."""


def full(letter: str, *, policies: int, instances: int, errors: int, operations: int) -> Iterator[Given]:
    """Commands of every kind, each as large as it may be."""
    words = letter * 256
    key = "k" * (REQUEST_ID_MAX - 6)
    made = policy_of(policy(letter))
    for number in range(policies):
        yield SetPolicy(f"{number:04d}".ljust(128, "p"), made, words, words), ""
    for number in range(instances):
        instance = registration(letter, number)
        yield Register(instance), f"{key}{number:06d}"
        yield SetStatus(NAME, NAME, instance.id, "out_of_service", words, FOR_S_MAX), ""
        if number % 2:
            yield Deregister(instance.key), ""
    for number in range(errors):
        missing = Key(NAME, NAME, f"{number:06d}".ljust(ID_LENGTH_MAX, letter))
        yield Deregister(missing), f"{key}{number + 500_000:06d}"
    yield Register(Registration(service="s", id="i")), ""
    switched = (SetStatus("default", "s", "i", "down"), SetStatus("default", "s", "i", None))
    if operations:
        yield Batch(switched * (operations // 2)), "many operations".ljust(REQUEST_ID_MAX, "k")
    yield Assign(tuple(f"{number}" * 128 for number in range(7)), 1), ""


def play(registry: Registry, given: Iterator[Given]) -> Registry:
    for command, request_id in given:
        made = sealed(command, registry.applied_index * 1000, request_id, level=registry.level)
        registry.apply(registry.applied_index + 1, 1, decode(encode(made)))
    return registry


def a_registry(level: int = 4) -> Registry:
    return play(Registry(), iter([(Raise(level), "")]))


@contextlib.contextmanager
def state_files(directory: Path) -> Iterator[Snapshots]:
    made = Snapshots(directory, cluster="test", disk=SimDisk())
    made._worker = HandWorker()  # type: ignore[assignment]
    try:
        yield made
    finally:
        made.close()


# -- the door


@pytest.mark.parametrize("letter", LETTERS)
def test_a_registration_is_limited_in_bytes_at_every_door(letter: str) -> None:
    most = registration(letter)
    size = len(msgspec.msgpack.encode(most))

    assert REGISTRATION_BYTES_MAX / 3 < size <= REGISTRATION_BYTES_MAX
    assert from_peer(to_peer(Register(most))) == Register(most)


def test_checks_are_limited_in_all() -> None:
    checks = [{"name": f"c{n}", "script": ["x" * 4096] * 3} for n in range(CHECKS_MAX)]

    with pytest.raises(Invalid, match=f"checks: Expected at most {CHECKS_BYTES_MAX} bytes in all") as caught:
        build(Registration, {"service": "s", "id": "i", "checks": checks})

    assert (caught.value.field, caught.value.facts["limit"]) == ("checks", CHECKS_BYTES_MAX)


def test_what_a_peer_of_another_release_lets_in_is_refused_by_the_leader() -> None:
    data = msgspec.structs.asdict(registration("a"))
    large = Registration(**{**data, "tags": ("😀" * 256,) * 64, "addrs": ("http://h/" + "😀" * 246,) * 16})
    policy_too = SetPolicy("p", msgspec.convert({"service": "s", "tags": ["😀" * 256] * 16}, policies_module.Policy))

    for command in (Register(large), Batch((Register(large),)), policy_too):
        with pytest.raises(Invalid, match="bytes in all"):
            from_peer(to_peer(command))


@pytest.mark.parametrize("letter", LETTERS)
def test_a_policy_is_limited_in_bytes(letter: str) -> None:
    most = policy_of(policy(letter))
    over = {**policy(letter), "tags": [letter * 256] * 16}

    assert POLICY_BYTES_MAX * 0.9 < len(msgspec.msgpack.encode(most)) <= POLICY_BYTES_MAX
    with pytest.raises(Invalid, match=f"policy: Expected at most {POLICY_BYTES_MAX} bytes in all") as caught:
        policy_of(over)
    assert caught.value.facts["limit"] == POLICY_BYTES_MAX


@pytest.mark.parametrize("letter", LETTERS)
def test_what_is_read_can_be_sent_back_whole(letter: str) -> None:
    """With each field that has its default said: an export that is imported."""
    most = policy_of(policy(letter))
    instance = registration(letter)
    assert instance.checks is not msgspec.UNSET
    checks = [msgspec.structs.asdict(check) for check in instance.checks]

    assert policy_of(through_json(msgspec.structs.asdict(most))) == most
    assert build(Registration, through_json({**msgspec.structs.asdict(instance), "checks": checks})) == instance


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(fields))


def test_a_thousand_policies_at_their_limit_fit_in_one_part_of_a_state_file_of_before() -> None:
    """A cluster of level 3 keeps them all, and as many changes, in the header."""
    registry = play(a_registry(level=3), full("😀", policies=POLICIES_MAX, instances=0, errors=0, operations=0))

    assert (len(registry.policies), len(registry.policy_changes)) == (POLICIES_MAX, AUDITED_MAX)
    assert FRAME_BYTES_MAX / 2 < len(next(registry.root().chunks())) < FRAME_BYTES_MAX


# -- what is kept


def test_changes_of_policies_are_limited_in_bytes_from_the_new_level_on() -> None:
    def commands() -> Iterator[Given]:
        return full("😀", policies=POLICIES_MAX, instances=0, errors=0, operations=0)

    before, after = play(a_registry(3), commands()), play(a_registry(4), commands())
    sizes = [len(msgspec.msgpack.encode(change)) for change in after.policy_changes]

    assert len(before.policy_changes) == AUDITED_MAX
    assert AUDITED_BYTES_MAX - 20_000 < sum(sizes) <= AUDITED_BYTES_MAX
    assert after.policy_changes[-1].name == f"{POLICIES_MAX - 1:04d}".ljust(128, "p")
    assert restored(after).digest() == after.digest()
    for registry in (after, restored(after), before):
        removed = SetPolicy("0001".ljust(128, "p"), None)
        play(registry, iter([(Raise(4), ""), (removed, "")]))
        assert sum(len(msgspec.msgpack.encode(change)) for change in registry.policy_changes) <= AUDITED_BYTES_MAX
        assert verify(registry.root().chunks()) == registry.digest()


def test_remembered_requests_are_limited_in_bytes_from_the_new_level_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "REMEMBER_BYTES_MAX", 100_000)

    def commands() -> Iterator[Given]:
        return full("😀", policies=0, instances=0, errors=300, operations=0)

    before, after = play(a_registry(3), commands()), play(a_registry(4), commands())

    assert len(before.root().requests) == 300
    assert 20 < len(after.root().requests) < 100
    assert restored(after).digest() == after.digest()
    play(after, full("a", policies=0, instances=0, errors=5, operations=0))
    assert verify(after.root().chunks()) == after.digest()


@pytest.mark.parametrize("letter", LETTERS)
def test_what_is_remembered_of_an_error_is_short(letter: str) -> None:
    registry = play(a_registry(), full(letter, policies=0, instances=0, errors=3, operations=0))

    for remembered in registry.root().requests.values():
        assert remembered.error is not None
        assert remembered.error["code"] == "NotFound"
        assert len(msgspec.msgpack.encode(remembered)) <= remembered.cost


# -- save, restart, install


def restored(registry: Registry) -> Registry:
    other = Registry()
    other.replace(State.from_chunks(registry.root().chunks()))
    return other


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(LETTERS),
    st.integers(0, 60),
    st.integers(0, 6),
    st.integers(0, 40),
    st.sampled_from([0, 2, 10_000]),
    st.sampled_from([3, 4]),
)
def test_whatever_was_applied_is_saved_read_back_and_goes_on_as_before(
    tmp_path_factory: pytest.TempPathFactory,
    letter: str,
    policies: int,
    instances: int,
    errors: int,
    operations: int,
    level: int,
) -> None:
    def commands(letter: str = letter) -> Iterator[Given]:
        given = full(letter, policies=policies, instances=instances, errors=errors, operations=operations)
        return ((command, key) for command, key in given if level > 3 or getattr(command, "for_s", None) is None)

    registry = play(a_registry(level), commands())
    directory = tmp_path_factory.mktemp("state")

    with state_files(directory) as files:
        files.save(registry.root()).result()
        found = files.load()
    assert found is not None
    again = Registry()
    again.replace(found[1])

    assert again.digest() == registry.digest()
    for each in (registry, again):
        play(each, commands("b"))
    assert again.digest() == registry.digest()


def test_no_part_of_a_state_file_is_longer_than_a_record_and_a_chunk() -> None:
    registry = play(a_registry(), full("😀", policies=100, instances=10, errors=100, operations=10_000))

    parts = [len(part) for part in registry.root().chunks(snapshot_module.CHUNK_BYTES)]

    assert max(parts) < snapshot_module.CHUNK_BYTES + REGISTRATION_BYTES_MAX + 16 * 1024
    assert parts[0] < 4_000, "the header has no record in it"


def test_what_the_release_before_let_in_is_saved_read_back_and_removed() -> None:
    """The limits are for what is new."""
    tags = ["😀" * 256] * 16
    large = msgspec.convert({"service": "s", "tags": tags, "match": dict.fromkeys(tags, "")}, policies_module.Policy)
    matches = {f"{n}" + "😀" * 254: "😀" * 256 for n in range(16)}
    large = msgspec.structs.replace(large, match=matches)
    instance = Registration(service="s", id="i", tags=("😀" * 256,) * 64, addrs=("😀" * 255,) * 16)
    checks = [{"name": f"c{n}", "script": ["x" * 4096] * 32} for n in range(CHECKS_MAX)]
    checked = msgspec.convert({"service": "s", "id": "j", "checks": checks}, Registration)
    given: list[Given] = [(SetPolicy(f"p{n}", large), "") for n in range(30)]
    registry = play(a_registry(3), iter([*given, (Register(instance), ""), (Register(checked), ""), (Raise(4), "")]))

    again = restored(registry)

    assert len(msgspec.msgpack.encode(checked)) > 1_000_000
    assert again.digest() == registry.digest() == verify(registry.root().chunks())
    for key in (instance.key, checked.key):
        play(again, iter([(Deregister(key), "")]))
    assert len(again) == 0


def test_a_state_that_fits_in_no_file_of_the_old_format_is_never_written(tmp_path: Path) -> None:
    """As long as a member may know no other: the log stays, and the file before."""
    tags = ["😀" * 256] * 16
    large = msgspec.convert({"service": "s", "tags": tags}, policies_module.Policy)
    registry = play(a_registry(3), iter([(SetPolicy(f"p{n}", large, "😀" * 256), "") for n in range(500)]))

    with state_files(tmp_path) as files, pytest.raises(TooLarge, match="a part of the state file takes"):
        files.save(registry.root()).result()
    assert list(tmp_path.iterdir()) == []

    play(registry, iter([(Raise(4), "")]))
    with state_files(tmp_path) as files:
        files.save(registry.root()).result()
        found = files.load()
    assert found is not None
    assert found[1].digest() == registry.digest()


def test_three_nodes_keep_it_all_through_state_files_a_late_follower_and_a_restart(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 10)
    monkeypatch.setattr(compaction_module, "KEEP_BYTES", 1000)
    cluster = Cluster(tmp_path, clock, snapshot_entries=200)
    leader = cluster.wait_for_leader()
    cluster.until(lambda: cluster[leader].registry.level == 4, "the level")
    away = next(name for name in cluster.names if name != leader)
    cluster.settle()
    cluster.kill(away)
    given = list(full("😀", policies=POLICIES_MAX, instances=20, errors=200, operations=10_000))
    for start in range(0, len(given), 100):
        some = given[start : start + 100]
        proposals = [cluster[leader].propose(command, time_ns=start, request_id=key) for command, key in some]
        cluster.until(lambda proposals=proposals: all(map(is_done, proposals)), "an answer to each")
    assert len(cluster[leader].registry.policies) == POLICIES_MAX
    assert len(cluster[leader].registry.overrides) == 20
    assert cluster[leader].journal.base_index > POLICIES_MAX, "most of it is in no log any more"

    cluster.start(away)
    cluster.settle()
    assert cluster[away].journal.base_index > POLICIES_MAX, "it came as a state file"

    digest = cluster[leader].registry.digest()[1]
    for name in cluster.names:
        cluster.kill(name)
    cluster.digests.clear()
    for name in cluster.names:
        cluster.start(name)
        assert cluster[name].compaction.saved is not None
    cluster.wait_for_leader()
    cluster.settle()

    assert {cluster[name].registry.digest()[1] for name in cluster.names} == {digest}
    assert {cluster[name].status().snapshot_error for name in cluster.names} == {""}
    for name in cluster.names:
        cluster.kill(name)
