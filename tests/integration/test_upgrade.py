"""Releases that work side by side: one is replaced by the next node by node, and a cluster may go back until it cannot.

The release before this one is the newest commit whose nodes differ from this
commit's; ``UPGRADE_FROM=69d6ab4`` in the environment names another. The release
after this one is made here: this one with a feature level and a command more.
Nodes of all of them are ordinary processes that import ``rollcall`` from elsewhere.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest
from harness.cluster import Answer, Cluster, Measured, instance_path, run_node
from harness.traffic import Ledger, Traffic, Writer
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "node", "replication")
FAILED = 70


class Release:
    """Sources that nodes can be started from; ``path`` holds the rooms of ``rollcall``, None is this commit's."""

    def __init__(self, path: Path | None, name: str) -> None:
        self.path: Path | None = path
        self.name: str = name
        rooms = REPOSITORY if path is None else path / "rollcall"
        sources = (rooms / "replication" / name for name in ("levels.py", "commands.py"))
        text = "".join(source.read_text() for source in sources if source.exists())
        found = re.search(r"^LEVEL = (\d+)$", text, re.MULTILINE)
        self.level: int = int(found[1]) if found else 1
        self.has_dns: bool = "dns_port" in (rooms / "node" / "__main__.py").read_text()

    def variables(self) -> pytest.MonkeyPatch:
        """Has processes that are started meanwhile run this release; ``undo`` ends that."""
        patch = pytest.MonkeyPatch()
        if self.path is not None:
            patch.setenv("PYTHONPATH", os.pathsep.join([str(self.path), os.environ.get("PYTHONPATH", "")]).rstrip(":"))
        return patch

    def __str__(self) -> str:
        return f"{self.name} (level {self.level})"


class Mixed(Cluster):
    """A cluster whose nodes run different releases."""

    def __init__(self, directory: Path, release: Release) -> None:
        super().__init__(directory, 3, write_timeout_s=3.0)
        self.releases: list[Release] = [release] * self.nodes

    def start_node(self, i: int, *flags: str) -> None:
        variables = self.releases[i].variables()
        try:
            super().start_node(i, *flags)
        finally:
            variables.undo()

    def _command(self, i: int) -> list[str]:
        command = super()._command(i)
        if not self.releases[i].has_dns:
            for flag in ("--dns-host", "--dns-port"):
                place = command.index(flag)
                del command[place : place + 2]
        return command

    def replace(self, i: int, release: Release) -> None:
        """Ends a node in order and starts another release on its data."""
        assert self.terminate(i) == 0
        self.releases[i] = release
        self.start_node(i)
        self.wait_ready(nodes=[i])

    def level(self, i: int) -> int:
        # Releases without levels show none.
        return self.view(i).get("level", 1)

    def wait_for_level(self, level: int) -> None:
        self.wait_everywhere(lambda i: self.level(i) == level, f"feature level {level}")

    def make_lead(self, i: int) -> None:
        """Has leadership handed to node i, by stopping the others in order."""
        for _ in range(5):
            leader = self.wait_for_leader()
            if leader == i:
                return
            (third,) = {0, 1, 2} - {i, leader}
            self.terminate(third)
            self._wait_until_missed(leader, third)
            # With nobody else there, it hands over to node i.
            self.terminate(leader)
            self.start_node(third)
            self.start_node(leader)
            self.wait_ready()
        raise AssertionError(f"node {i} does not come to lead")

    def _wait_until_missed(self, by: int, gone: int) -> None:
        def missed() -> bool:
            return self.node_id(gone) not in {
                member["id"] for member in self.view(by)["members"] if member["reachable"]
            }

        wait_for(missed, f"node {by} to see that node {gone} is gone")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            for i in range(self.nodes):
                print(f"--- log of {self.node_id(i)}, which ran {self.releases[i]}\n{self.log_tail(i, 40)}")
        super().__exit__(kind, error, at)


@pytest.fixture(scope="module")
def present() -> Release:
    return Release(None, "this release")


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release before this one, from the history of the repository."""
    named = os.environ.get("UPGRADE_FROM")
    commit = named or _git("log", "-1", "--format=%H", "--", "replication", "node").decode().strip() + "^"
    name = _git("rev-parse", "--short", commit).decode().strip()
    path = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(_git("archive", name, *ROOMS))) as tar:
        tar.extractall(path / "rollcall", filter="data")
    return checked(Release(path, name))


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("the release before this one is in the history, and git is not installed")
    if done.returncode or not done.stdout.strip():
        pytest.skip(f"the history of the repository is not here: {done.stderr.decode().strip()[:200]}")
    return done.stdout


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """This release with one level more, which brings a command: an override with the reason "pin" becomes a ``Pin``."""
    path = tmp_path_factory.mktemp("newer")
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, path / "rollcall" / room, ignore=shutil.ignore_patterns("__pycache__"))
    levels = path / "rollcall" / "replication" / "levels.py"
    levels.write_text(changed(levels.read_text(), r"^LEVEL = (\d+)$", lambda found: f"LEVEL = {int(found[1]) + 1}"))
    commands = path / "rollcall" / "replication" / "commands.py"
    pin = 'class Pin(SetStatus, frozen=True, tag="pin", gc=False):\n    feature_level: ClassVar[int] = LEVEL'
    commands.write_text(
        changed(commands.read_text(), r"^(Command = .*)$", lambda found: f"{pin}\n\n\n{found[1]} | Pin")
    )
    service = path / "rollcall" / "node" / "service.py"
    text = changed(
        service.read_text(),
        r"self\._log\.propose\(self\._unmasked\(command\),",
        lambda found: "self._log.propose(_pin(self._unmasked(command)),",
    )
    service.write_text(
        text
        + "\n\nfrom ..replication.commands import Pin, SetStatus\n\n\ndef _pin(command):\n"
        + '    if isinstance(command, SetStatus) and command.reason == "pin":\n'
        + "        return Pin(command.env, command.service, command.id, command.status, command.reason)\n"
        + "    return command\n"
    )
    return checked(Release(path, "the next release"))


def changed(text: str, pattern: str, replacement: Callable[[re.Match[str]], str]) -> str:
    """``text`` with its one place of that pattern replaced."""
    text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    assert count == 1, f"{count} places look like {pattern}"
    return text


def checked(release: Release) -> Release:
    """Makes sure that a process finds the release's files, not this commit's."""
    variables = release.variables()
    try:
        program = "import rollcall.node.service as s, rollcall.replication.errors as e; print(s.__file__, e.__file__)"
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    finally:
        variables.undo()
    assert [Path(file).is_relative_to(str(release.path)) for file in found.stdout.split()] == [True, True], found.stdout
    return release


def read_what_was_written(cluster: Mixed, round_: str) -> None:
    """A write through each node is seen by a linearizable read of each node that follows it."""
    for writer in range(3):
        for reader in range(3):
            id = f"{round_}-{writer}-{reader}"
            cluster.register(writer, "mixed", id, ttl_s=None)
            answer = cluster.get(reader, "/api/v1/services/mixed/instances?health=any&consistency=linearizable")
            assert answer.status == 200, answer
            assert "X-Rollcall-Stale" not in answer.headers, answer.headers
            assert id in {instance["id"] for instance in answer.json["instances"]}


def understood_each_other(cluster: Mixed) -> None:
    """Nobody said anything that the other release took for nonsense, and hung up."""
    for i in range(cluster.nodes):
        nonsense = [
            line for line in cluster.log(i).splitlines() if re.search("closed: it sent|broke the protocol", line)
        ]
        assert not nonsense, f"node {i}: {nonsense[:3]}"


# -- from the release before


def test_a_release_is_replaced_by_this_one_node_by_node_under_load(
    bench: Path, previous: Release, present: Release, measured: Measured
) -> None:
    ledger = Ledger()
    with Mixed(bench / "upgraded", previous) as cluster:
        cluster.wait_for_level(previous.level)
        gaps_s: list[float] = []
        with Traffic(*(Writer(cluster, i, ledger, rest_s=0.005) for i in range(3))):
            wait_for(lambda: len(ledger.acknowledged) > 100, "100 acknowledged writes")
            for i in (*cluster.followers(), cluster.wait_for_leader()):
                assert {cluster.level(k) for k in range(3)} == {previous.level}
                began = time.monotonic()
                cluster.replace(i, present)
                so_far = len(ledger.acknowledged)
                wait_for(lambda so_far=so_far: len(ledger.acknowledged) > so_far + 50, "50 more writes")
                gaps_s.append(ledger.pause_s(began))
            cluster.wait_for_level(present.level)
            so_far = len(ledger.acknowledged)
            wait_for(lambda: len(ledger.acknowledged) > so_far + 50, "50 more writes")

        shown = ", ".join(f"{gap:.2f}" for gap in gaps_s)
        measured(f"{previous} replaced by {present}: longest times without a write {shown} s; {ledger}")
        assert max(gaps_s) < 20.0
        cluster.wait_same()
        ledger.compare(cluster)
        read_what_was_written(cluster, "after")
        understood_each_other(cluster)


@pytest.mark.slow
def test_nodes_of_both_releases_elect_each_other_and_read_what_the_other_wrote(
    bench: Path, previous: Release, present: Release
) -> None:
    """Leadership passes in order from one release to the other and back, and is taken over when its holder dies."""
    large = [{"op": "register", "service": "large", "id": f"i{number}"} for number in range(501)]
    with Mixed(bench / "side-by-side", previous) as cluster:
        cluster.wait_for_level(previous.level)
        taken = cluster.ask(0, "POST", "/api/v1/batch", {"operations": large}).status
        for new in (1, 2):
            cluster.replace(new, present)
            for leader in (0, new):
                cluster.make_lead(leader)
                read_what_was_written(cluster, f"led-by-{leader}-with-{new}-new")
                # Whoever leads, what a node takes it takes: its clients know its limits, and no others.
                assert cluster.ask(0, "POST", "/api/v1/batch", {"operations": large}).status == taken
            cluster.kill(new)
            cluster.wait_for_leader_but(new)
            cluster.restart(new)
            read_what_was_written(cluster, f"after-a-kill-with-{new}-new")
            cluster.make_lead(0)
            cluster.kill(0)
            cluster.wait_for_leader_but(0)
            cluster.restart(0)
            read_what_was_written(cluster, f"after-the-other-with-{new}-new")
            assert {cluster.level(i) for i in range(3)} == {previous.level}
        cluster.wait_same()
        understood_each_other(cluster)


def test_a_node_that_was_replaced_can_go_back_before_the_others_follow(
    bench: Path, previous: Release, present: Release
) -> None:
    with Mixed(bench / "back", previous) as cluster:
        cluster.wait_for_level(previous.level)
        cluster.register_many(0, "kept", [f"k{number}" for number in range(100)], ttl_s=None)
        for i in (0, 2):
            cluster.replace(i, present)
            cluster.make_lead(i)
            read_what_was_written(cluster, f"there-{i}")

            cluster.replace(i, previous)
            cluster.make_lead(i)
            read_what_was_written(cluster, f"and-back-{i}")

        assert {cluster.level(k) for k in range(3)} == {previous.level}
        cluster.wait_same()
        assert len(cluster.ids(0, "kept")) == 100
        understood_each_other(cluster)


# -- to the release after


def pin(cluster: Mixed, through: int) -> Answer:
    """Asks for the newer release's command; a leader of that release makes it one."""
    path = instance_path("pinned", "p1") + "/status"
    return cluster.ask(through, "PUT", path, {"status": "down", "reason": "pin"})


def overrides(cluster: Mixed) -> list[str | None]:
    return [cluster.get(i, instance_path("pinned", "p1")).json["status_override"] for i in cluster.running()]


@pytest.mark.slow
def test_what_the_next_release_brings_waits_for_the_last_node_and_there_is_no_way_back(
    bench: Path, present: Release, newer: Release, measured: Measured
) -> None:
    with Mixed(bench / "newer", present) as cluster:
        cluster.wait_for_level(present.level)
        cluster.register(0, "pinned", "p1", ttl_s=None)
        for i in (0, 1):
            cluster.replace(i, newer)
            cluster.make_lead(i)
            for through in (i, 2):
                refused = pin(cluster, through)
                assert (refused.status, refused.json["outcome"]) == (503, "not_done")
            assert "upgrade them all" in pin(cluster, i).json["detail"]
            cluster.wait_same()
            assert overrides(cluster) == [None] * 3
            assert {cluster.level(k) for k in range(3)} == {present.level}
        kept = bench / "kept-of-node-2"
        cluster.terminate(2)
        shutil.copytree(cluster.node_dir(2), kept)
        cluster.releases[2] = newer
        cluster.restart(2)
        cluster.wait_for_level(newer.level)
        assert pin(cluster, 2).status == 200
        cluster.wait_same()
        assert overrides(cluster) == ["down"] * 3

        # Back again, on what the newer release left.
        assert cluster.terminate(2) == 0
        ended = run_node(cluster.settings_of(2))
        assert ended.returncode == FAILED, ended.stdout
        assert (
            f"the cluster uses feature level {newer.level}, and this release understands {present.level}"
            in ended.stdout
        )
        assert "start this node with the release that the others run" in ended.stdout

        # And on what it had before: an older copy, of a release that does not understand the level.
        shutil.move(cluster.node_dir(2), bench / "newer-of-node-2")
        shutil.copytree(kept, cluster.node_dir(2))
        cluster.releases[2] = present
        cluster.expected_faults.append("is older than what")
        cluster.start_node(2)
        wait_for(lambda: 2 in cluster.exited(), "node 2 to stop")
        assert f"the data directory {cluster.node_dir(2)} is older than what node-" in cluster.log(2)
        why = f"it understands feature level {present.level}, and the cluster uses {newer.level}"
        wait_for(
            lambda: re.search(rf"refused 'node-2' at .*: {why}: start it with", cluster.log(0) + cluster.log(1)),
            "the others to say why they refuse it",
        )
        read_index = cluster.register(0, "pinned", "p2", ttl_s=None)
        assert cluster.ids(1, "pinned", min_index=read_index) == {"p1", "p2"}
        cluster._forget(2)

        # The release that the others run goes on where it stopped.
        shutil.rmtree(cluster.node_dir(2))
        shutil.move(bench / "newer-of-node-2", cluster.node_dir(2))
        cluster.releases[2] = newer
        cluster.restart(2)
        cluster.wait_same()
        assert overrides(cluster) == ["down"] * 3
        measured(f"{present} replaced by {newer}, and not back")
