"""Three real nodes, one of which takes the year for the next one: it neither leads nor stamps, and the others go on."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import wallclock
from harness.cluster import Cluster, instance_path
from harness.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(wallclock.reason()), reason=wallclock.reason()),
]

TESTS = Path(__file__).resolve().parent.parent
YEAR_S = 365 * 86_400.0
LIMIT_S = 20.0
"""What a wall clock may be ahead by (10 s), and what a slow machine takes in between."""


class Clocked(Cluster):
    """A cluster whose nodes' wall clocks can be set."""

    def set_clock(self, i: int, ahead_s: float) -> None:
        """Felt within a second."""
        wallclock.set_clock(self._clock(i), ahead_s)

    def forget_clocks(self) -> None:
        for i in range(self.nodes):
            pid = self.pid(i)
            self.stop_node(i)
            if pid is not None:
                wallclock.forget(pid)

    def stop_node(self, i: int) -> None:
        if self.pid(i) is not None:
            self.kill(i)

    def _clock(self, i: int) -> Path:
        return self.node_dir(i) / "clock"

    def _command(self, i: int) -> list[str]:
        if not self._clock(i).exists():
            self.set_clock(i, 0.0)
        variables = {"PYTHONPATH": str(TESTS), **wallclock.environment(self._clock(i))}
        python, _, _, *flags = super()._command(i)
        # A launcher that does without the sleep that libfaketime breaks.
        node = [python, "-m", "chaos.launcher", "--", *flags]
        return ["env", *(f"{name}={value}" for name, value in variables.items()), *node]


@pytest.fixture
def three(bench: Path, request: pytest.FixtureRequest) -> Iterator[Clocked]:
    cluster = Clocked(bench / f"clocks-{request.node.name[:40]}", 3, transfer_interval_s=0)
    cluster.start()
    try:
        yield cluster
        cluster.forget_clocks()
    finally:
        cluster.close()


def stamped_ahead_s(cluster: Cluster, i: int, id: str) -> float:
    """Registers through node ``i``, and says how far ahead of the true time that was stamped."""
    cluster.register(i, "clocks", id)
    record = cluster.get(i, instance_path("clocks", id)).json
    return record["reg_timestamp"] / 1e9 - time.time()


def test_a_leader_that_is_a_year_ahead_hands_over_and_stamps_nothing(three: Clocked) -> None:
    leader = three.wait_for_leader()
    assert abs(stamped_ahead_s(three, leader, "before")) < LIMIT_S

    three.set_clock(leader, YEAR_S)

    stamps = [stamped_ahead_s(three, number % 3, f"i{number}") for number in range(30)]
    another = three.wait_for_leader_but(leader)
    stamps += [stamped_ahead_s(three, number % 3, f"j{number}") for number in range(30)]
    assert max(map(abs, stamps)) < LIMIT_S
    said = wait_for(lambda: three.view(leader)["clock_error"], "the node to say that its clock is off")
    assert "s ahead of the others'" in said
    assert said.split(" s ahead")[0].rpartition(" ")[2].startswith("3153")
    # By how much changes by a second now and then.
    logged = re.compile(re.escape(said.split("3153")[0]) + r"3153\d+ s ahead of the others'")
    wait_for(lambda: logged.search(three.log(leader)), "its log to say so")
    assert three.gauge(leader, "rollcall_clock_failing") == 1
    assert three.gauge(leader, "rollcall_clock_offset_seconds") == pytest.approx(YEAR_S, abs=LIMIT_S)
    assert three.view(another)["clock_error"] == ""
    assert three.gauge(another, "rollcall_clock_offset_seconds") == pytest.approx(0.0, abs=2.0)
    # It serves clients all the same.
    assert three.get(leader, "/readyz?write=true").status == 200
    three.wait_same()


def test_it_does_not_lead_after_a_restart_and_may_lead_again_once_its_clock_is_right(three: Clocked) -> None:
    off = three.wait_for_leader()
    three.kill(off)
    wallclock.set_clock(three._clock(off), YEAR_S)
    three.start_node(off)
    three.wait_ready()
    wait_for(lambda: three.view(off)["clock_error"], "the node to say that its clock is off")

    leader = three.wait_for_leader()
    assert leader != off
    three.kill(leader)
    assert three.wait_for_leader_but(leader) != off
    assert abs(stamped_ahead_s(three, off, "there")) < LIMIT_S
    refused = three.ask(off, "POST", f"/api/v1/cluster/transfer?to={three.node_id(off)}", timeout_s=15.0)
    assert refused.status == 503, refused

    three.set_clock(off, 0.0)
    wait_for(lambda: not three.view(off)["clock_error"], "the node to see that its clock is right")
    moved = three.ask(off, "POST", f"/api/v1/cluster/transfer?to={three.node_id(off)}", timeout_s=15.0)
    assert moved.status == 200, moved
    assert three.wait_for_leader() == off
    assert abs(stamped_ahead_s(three, off, "again")) < LIMIT_S


def test_one_of_two_that_is_a_year_ahead_hands_over_although_nobody_else_is_there(three: Clocked) -> None:
    leader = three.wait_for_leader()
    (gone, *_), other = three.followers(), three.followers()[-1]
    three.kill(gone)
    three.set_clock(leader, YEAR_S)

    stamps = [stamped_ahead_s(three, other, f"i{number}") for number in range(30)]

    assert max(map(abs, stamps)) < LIMIT_S
    assert three.wait_for_leader_but(leader, gone) == other
