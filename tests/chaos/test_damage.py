"""Flipped bits: whatever the fault flips, the product must tell; and the fault must tell if it did not."""

import random
from pathlib import Path

import pytest
from rollcall.replication.errors import Damaged
from rollcall.replication.registry.registry import Registry
from rollcall.replication.storage.journal import Journal
from rollcall.replication.storage.snapshot import Snapshots

from chaos import damage
from chaos.faults import CATALOGUE, Injected
from chaos.nodes import ChaosCluster


def fill(directory: Path) -> None:
    """What a node leaves."""
    directory.mkdir(parents=True)
    journal = Journal(directory / "journal", cluster="test", node="n")
    for index in range(2, 20):
        journal.add(b"entry", index, 1)
        journal.sync()
    journal._destroy()
    snapshots = Snapshots(directory, cluster="test")
    snapshots.save(Registry().root()).result(10.0)
    snapshots.close()


def load(directory: Path) -> None:
    """What a node reads when it starts."""
    snapshots = Snapshots(directory, cluster="test")
    try:
        snapshots.load()
        Journal(directory / "journal", cluster="test", node="n")._destroy()
    finally:
        snapshots.close()


def test_every_flipped_bit_is_refused_and_can_be_flipped_back(tmp_path: Path):
    fill(tmp_path / "data")
    seen: set[str] = set()
    for seed in range(120):
        flipped = damage.flip(tmp_path / "data", random.Random(seed))
        assert flipped is not None
        seen.add(flipped.path.name)
        with pytest.raises(Damaged, match=flipped.path.name):
            load(tmp_path / "data")
        flipped.undo()

    load(tmp_path / "data")
    assert seen == {"journal", "snapshot"}


def test_nothing_is_flipped_where_nothing_is_certain(tmp_path: Path):
    (tmp_path / "journal").write_bytes(b"never synced")

    assert damage.flip(tmp_path, random.Random(1)) is None


class Careless(ChaosCluster):
    """Nodes on paper, which do on damaged files what the test says."""

    def __init__(self, directory: Path, code: int | None, said: str) -> None:
        super().__init__(directory, 3)
        self._code = code
        self._said = said
        self._started = False
        for name in self.names:
            fill(self.data_dir(name))

    def leader(self) -> str | None:
        return None

    def alive(self, node: str) -> bool:
        return True

    def kill(self, names: object) -> None: ...

    def start_node(self, node: str, *, rejoin: bool = False) -> None: ...

    def run_to_end(self, node: str, timeout_s: float = 20.0) -> int | None:
        self._started = True
        return self._code

    def log(self, node: str) -> str:
        said = self._said.replace("DIR", str(self.data_dir(node)))
        return "started before\n" + (said if self._started else "")


@pytest.mark.parametrize(
    ("code", "said", "fine"),
    [
        (70, "DIR/journal is damaged, DIR/snapshot is damaged", True),
        (70, "something is wrong", False),
        (-11, "DIR/journal DIR/snapshot", False),
        (0, "DIR/journal DIR/snapshot", False),
        (None, "node-1 serves", False),
    ],
)
def test_what_is_not_a_refusal_that_names_the_file_is_a_violation(
    tmp_path: Path, code: int | None, said: str, fine: bool
):
    injected: Injected = CATALOGUE["damage"].inject(Careless(tmp_path, code, said), random.Random(1))
    injected.heal()

    assert bool(injected.violations) != fine
