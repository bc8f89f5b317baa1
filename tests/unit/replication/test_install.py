"""A state file in pieces: nothing lost, nothing twice, no more under way than allowed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.replication.raft import snapshot_transfer
from rollcall.replication.raft.snapshot_transfer import AGAIN_S, RETRY_S, Incoming, Outgoing
from rollcall.replication.storage.disk import Disk

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_transfer, "PIECE_BYTES", 1000)
    monkeypatch.setattr(snapshot_transfer, "WINDOW_BYTES", 3000)


@pytest.fixture
def source(tmp_path: Path, small_pieces: None) -> Path:
    path = tmp_path / "snapshot"
    path.write_bytes(CONTENT)
    return path


def test_no_more_than_the_window_is_under_way(source: Path) -> None:
    sending = Outgoing(source, 7, 0.0)

    assert [offset for offset, _ in sending.pieces(0.0)] == [0, 1000, 2000]
    assert list(sending.pieces(0.1)) == []
    sending.acknowledged(1000, 0.2)
    assert [offset for offset, _ in sending.pieces(0.2)] == [3000]
    sending.close()


def test_what_is_not_acknowledged_is_sent_again(source: Path) -> None:
    sending = Outgoing(source, 7, 0.0)
    list(sending.pieces(0.0))
    sending.acknowledged(1000, 0.0)
    list(sending.pieces(0.0))

    assert [offset for offset, _ in sending.pieces(RETRY_S + 0.1)] == [1000, 2000, 3000]
    sending.close()


def test_a_follower_that_has_it_all_and_stays_silent_gets_it_again(source: Path) -> None:
    sending = Outgoing(source, 7, 0.0)
    while pieces := list(sending.pieces(0.0)):
        sending.acknowledged(pieces[-1][0] + len(pieces[-1][1]), 0.0)

    assert list(sending.pieces(AGAIN_S - 1)) == []
    assert next(sending.pieces(AGAIN_S + 1))[0] == 0
    sending.close()


def test_the_file_that_was_opened_is_sent_even_if_a_newer_takes_its_name(source: Path) -> None:
    sending = Outgoing(source, 7, 0.0)
    newer = source.with_suffix(".tmp")
    newer.write_bytes(b"newer")
    newer.replace(source)

    assert next(sending.pieces(0.0))[1] == CONTENT[:1000]
    sending.close()


def test_an_aborted_file_leaves_nothing(tmp_path: Path) -> None:
    receiving = Incoming(tmp_path / "received.tmp", 7, Disk())
    receiving.take(0, b"half")
    receiving.abort()

    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50)
@given(st.lists(st.integers(min_value=0, max_value=4), min_size=1, max_size=60))
def test_the_file_arrives_whole_whatever_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, fates: list[int]
) -> None:
    """Each piece meets a fate: arrives (0, 1), arrives twice (2), is lost (3), its acknowledgement is lost (4)."""
    directory = tmp_path_factory.mktemp("install")
    (directory / "snapshot").write_bytes(CONTENT)
    sending = Outgoing(directory / "snapshot", 7, 0.0)
    receiving = Incoming(directory / "received.tmp", 7, Disk())
    now, turn = 0.0, 0
    while receiving.received < len(CONTENT):
        now += RETRY_S + 0.1
        for offset, data in sending.pieces(now):
            fate = fates[turn] if turn < len(fates) else 0
            turn += 1
            for _ in range({2: 2, 3: 0}.get(fate, 1)):
                receiving.take(offset, data)
            if fate < 3:
                sending.acknowledged(receiving.received, now)
    sending.close()
    receiving.close()

    assert receiving.path.read_bytes() == CONTENT
