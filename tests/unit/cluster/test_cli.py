"""The commands: what they print, and the exit code that says how it ended."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness.fakes import FakeSession, problem, response
from rollcall.cluster import cli, terminal
from rollcall.cluster.client import Client
from rollcall.replication.errors import Gone, Invalid, NoLeader, NotFound, Unknown

TIMES = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 10**18)
INDEXES = dict.fromkeys(("create_index", "reg_index", "modify_index"), 3)
CART = {
    "env": "default", "service": "cart", "id": "cart-[red]1", "address": "10.0.0.1", "port": 80, "tags": ["[bold]"],
    "ttl_s": 30.0, **TIMES, **INDEXES,
}  # fmt: skip
LISTING = {"service": "cart", "env": "default", "index": 3, "instances": [CART]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``asked(answer, *words)`` runs ``rollcall`` with these words against a node that answers so."""

    def run(answer: Any, *words: str) -> tuple[Result, FakeSession]:
        session = FakeSession(lambda *_: answer() if callable(answer) else answer)
        monkeypatch.setattr(terminal, "Client", lambda nodes, **options: Client(nodes, session=session, **options))
        return CliRunner().invoke(cli.main, ["--timeout", "0.2", *words]), session

    return run


def test_instances_are_listed_as_they_are_spelt(asked: Any):
    result, _ = asked(response(200, LISTING, X_Rollcall_Complete="true"), "instances", "cart")

    assert result.exit_code == 0
    for text in ("cart-[red]1", "10.0.0.1:80", "[bold]", "30 s", "2001-09-09 01:46:40Z"):
        assert text in result.stdout
    assert result.stderr == ""


def test_a_list_that_may_lack_something_says_so(asked: Any):
    result, _ = asked(response(200, LISTING), "instances", "cart")

    assert "may not be complete" in result.stderr


def test_json_is_the_answer_itself(asked: Any):
    result, _ = asked(response(200, LISTING), "--json", "instances", "cart")

    assert json.loads(result.stdout)["instances"][0]["id"] == "cart-[red]1"


def test_registering_sends_what_was_said(asked: Any):
    words = ["register", "cart", "--address", "10.0.0.1", "--port", "80", "--ttl", "30"]
    words += ["--tag", "x", "--meta", "a=b=c", "--zone", "z"]
    result, session = asked(response(201, {**CART, "id": "cart-10.0.0.1:80"}), *words)

    assert result.exit_code == 0
    method, url, options = session.asked[0]
    assert (method, url.rpartition("/")[2]) == ("PUT", "cart-10.0.0.1%3A80")
    assert json.loads(options["data"]) == {
        "address": "10.0.0.1", "port": 80, "ttl_s": 30, "tags": ["x"], "meta": {"a": "b=c"}, "zone": "z", "version": "",
    }  # fmt: skip


def test_the_word_none_removes_an_override(asked: Any):
    result, session = asked(response(200, {**CART, "id": "cart-1"}), "status", "cart", "cart-1", "none")

    assert result.exit_code == 0
    assert session.asked[0][0] == "DELETE"


def test_an_override_for_a_time_is_said_in_words(asked: Any):
    made = {**CART, "id": "cart-1", "status_override": "draining"}
    result, session = asked(response(200, made), "status", "cart", "cart-1", "draining", "--for", "2h", "--reason", "x")

    assert result.exit_code == 0
    assert json.loads(session.asked[0][2]["data"]) == {"status": "draining", "reason": "x", "for_s": 7200.0}


@pytest.mark.parametrize("words", [["down", "--for", "soon"], ["none", "--for", "2h"]])
def test_what_is_no_time_span_is_wrong_use(asked: Any, words: list[str]):
    result, session = asked(response(200, CART), "status", "cart", "cart-1", *words)

    assert result.exit_code == 2
    assert session.asked == []


def test_an_override_of_who_is_not_registered_says_so(asked: Any):
    nobody = {"env": "default", "service": "cart", "id": "cart-1", "registered": False, "status_override": "down"}
    result, _ = asked(response(200, nobody), "status", "cart", "cart-1", "down")

    assert (result.exit_code, result.stdout) == (0, "cart-1 is not registered: it will be down\n")


def test_overrides_are_listed_with_what_ends_them(asked: Any):
    one = {
        "env": "default", "service": "cart", "id": "cart-[red]1", "status": "out_of_service", "reason": "new [disk]",
        "until": 1_000_000_000_000_000_000, "set_at": 999_999_000_000_000_000, "registered": True, "index": 9,
    }  # fmt: skip
    two = {**one, "id": "cart-2", "until": None, "registered": False, "reason": ""}
    result, session = asked(response(200, {"index": 9, "overrides": [one, two]}), "overrides")

    assert session.asked[0][1].endswith("/api/v1/overrides")
    for text in (
        "cart-[red]1",
        "out_of_service",
        "new [disk]",
        "2001-09-09 01:46:40Z",
        "registered",
        "gone",
        "removed",
    ):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 200


def test_the_members_are_shown_with_their_leader_and_why_evictions_are_held(asked: Any):
    member = {"id": "n1", "http": "http://h:1", "raft": "h:2", "role": "leader", "reachable": False}
    view = {
        "node": "n1", "cluster": "c", "leader": "n1", "term": 4, "applied_index": 9, "commit_index": 9,
        "members": [member], "protection": {"active": True, "reason": "3 of 4 are late"}, "disk_error": "no room",
        "clock_error": "an hour ahead",
    }  # fmt: skip
    result, _ = asked(response(200, view), "members")

    said = "as seen by n1: n1 leads, term 4, index 9"
    for text in (said, "evictions are held: 3 of 4 are late", "no room", "n1 should not lead: an hour ahead", "no "):
        assert text in result.stdout


def test_leadership_is_handed_to_the_node_that_is_named(asked: Any):
    result, session = asked(response(200, {"leader": "n2"}), "transfer", "n2")

    assert result.stdout == "n2 leads now\n"
    method, url, options = session.asked[0]
    assert (method, url.rpartition("/")[2], options["params"]) == ("POST", "transfer", {"to": "n2"})


def test_a_watch_says_when_the_registry_began_anew(asked: Any):
    """Two readings of everything, in two histories; then the node is gone."""
    seen = [
        response(200, LISTING, X_Rollcall_Index=900, X_Rollcall_History="a" * 16),
        problem(Gone("another history", history="b" * 16, applied_index=5)),
        response(200, LISTING, X_Rollcall_Index=5, X_Rollcall_History="b" * 16),
        problem(Invalid("enough")),
    ]
    left = iter(seen)
    result, _ = asked(lambda: next(left), "watch", "cart")

    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "3 1 instances; waiting for changes",
        "3 the registry began anew: 1 instances; waiting for changes",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("no such instance"), 1),
        (Invalid("id: wrong"), 1),
        (NoLeader("no leader"), 3),
        (Unknown("perhaps"), 4),
    ],
)
def test_the_exit_code_says_how_it_ended(asked: Any, error: Any, code: int):
    result, _ = asked(lambda: problem(error), "deregister", "cart", "cart-1")

    assert result.exit_code == code
    assert f"error: {error.message}" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("register cart", "give --address and --port, or --id"),
        ("register cart --id x --ttl 3 --no-lease", "exclude each other"),
        ("register cart --id x --meta novalue", "expects KEY=VALUE"),
        ("status cart x sleeping", "is not one of"),
        ("--nodes ftp://x services", "expected URLs such as"),
        ("instances", "Missing argument"),
        ("no-such-command", "No such command"),
    ],
)
def test_wrong_use_ends_with_code_2_and_the_reason(asked: Any, words: str, said: str):
    result = CliRunner().invoke(cli.main, words.split())

    assert result.exit_code == 2
    assert said in result.stderr


def test_nodes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    given: list[str] = []
    session = FakeSession(lambda *_: response(200, {"services": []}))

    def made(nodes: str, **options: Any) -> Client:
        given.append(nodes)
        return Client(nodes, session=session, **options)

    monkeypatch.setattr(terminal, "Client", made)
    result = CliRunner().invoke(cli.main, ["services"], env={"ROLLCALL_NODES": "http://h:1,2"})

    assert result.exit_code == 0
    assert given == ["http://h:1,2"]


def test_a_removal_may_mean_one_registration(asked: Any):
    result, session = asked(response(200, {"id": "cart-1"}), "deregister", "cart", "cart-1", "--registration", "7")

    assert result.exit_code == 0
    assert session.asked[0][2]["params"]["registration"] == 7
