"""What is shown while a run goes on."""

import io

import pytest
from rich.console import Console

from chaos.ledger import Healed, Odd, Polled
from chaos.live import Live, Tally
from chaos.test_verdict import Story


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    for entry in Story().told():
        if not isinstance(entry, Healed):
            tally(entry)
    return tally


def live(tally: Tally) -> Live:
    return Live(tally, ["node-0", "node-1", "node-2"], title="chaos", ends_at=200.0, console=Console())


def shown(tally: Tally) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(live(tally).view(160.0))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_has_nodes_faults_and_latencies(tally):
    picture = shown(tally)

    assert "leader" in picture
    assert "kill: node-2 is killed" in picture
    assert "read, linearizable" in picture
    assert "1 faults, 0:40 left" in picture
    assert "1 evicted" in picture
    assert "no violation so far" in picture


def test_a_line_says_the_same_where_there_is_no_terminal(tally):
    line = live(tally).line(160.0)

    assert line.startswith("0:40 left, node-0 leads term 4 at ")
    assert "1 faults (now kill), 0 violations" in line


def test_what_is_wrong_already_is_shown_at_once(tally):
    tally(Odd(client="client-1", node="node-1", at=150.0, text="500 the node failed"))
    tally(Polled(node="node-1", at=150.0, role="leader", leader="node-1", term=4))

    picture = shown(tally)

    assert "2 violations so far" in picture
    assert "500 the node failed" in picture
    assert "node-0 and node-1 both led term 4" in picture


def test_a_node_that_does_not_answer_is_shown_so(tally):
    tally(Polled(node="node-2", at=159.0, answered=False))

    assert "no answer" in shown(tally)
