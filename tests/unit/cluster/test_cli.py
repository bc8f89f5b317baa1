"""The commands: what they print, and the exit code that says how it ended."""

import json
import re
import unicodedata
from functools import partial
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from harness.fakes import FakeSession, problem, response
from rollcall.cluster.client import Client
from rollcall.cluster.commands import cli, serving, terminal
from rollcall.replication.errors import Gone, Invalid, NoLeader, NotFound, Unknown
from rollcall.replication.records import Instance

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
        def answered(*_: Any) -> Any:
            return answer() if callable(answer) else answer

        session = FakeSession(answered)
        monkeypatch.setattr(terminal, "Client", lambda nodes, **options: Client(nodes, session=session, **options))
        return CliRunner().invoke(cli.main, ["--timeout", "2", *words]), session

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
    # What is unknown is asked again until the time is up, which may come in the middle of the last answer.
    words = {error.message} | ({"the answer did not end in time"} if code == 4 else set())
    assert re.search(f"error: .*({'|'.join(map(re.escape, words))})", result.stderr)
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


# What a terminal is shown


def test_json_has_every_field_those_at_their_defaults_too(asked: Any):
    """``jq 'select(.health == "passing")'`` finds whom it should."""
    result, _ = asked(response(200, LISTING), "--json", "instances", "cart")
    (shown,) = json.loads(result.stdout)["instances"]

    assert shown.keys() == {field.encode_name for field in msgspec.structs.fields(Instance)}
    assert (shown["status"], shown["health"], shown["meta"], shown["checks"]) == ("up", "passing", {}, [])


def test_json_of_changes_is_whole_as_well(asked: Any):
    left = iter([response(200, LISTING, X_Rollcall_Index=3), problem(Invalid("enough"))])
    result, _ = asked(lambda: next(left), "--json", "watch", "cart")

    assert json.loads(result.stdout)["instances"][0]["health"] == "passing"


@pytest.mark.parametrize(
    "words", [["services", "--json", "--env", "prod"], ["--json", "services", "--env", "prod"],
              ["--env", "test", "services", "--env", "prod", "--json"], ["--json", "--env", "prod", "services"]],
)  # fmt: skip
def test_options_may_stand_before_and_after_the_command(asked: Any, words: list[str]):
    result, session = asked(response(200, {"services": []}), *words)

    assert json.loads(result.stdout) == []
    assert session.asked[0][2]["params"]["env"] == "prod"


def test_nodes_may_be_named_after_the_command(asked: Any):
    result, session = asked(response(200, {"services": []}), "services", "--node", "http://h:1")

    assert result.exit_code == 0
    assert session.asked[0][1].startswith("http://h:1/")


EVIL = "a\x1b[31m\x9b31m\x07\r\x7f\u202eb"


MEMBER = {"id": EVIL, "http": EVIL, "raft": EVIL, "role": EVIL, "reachable": True}
ODD: dict[str, Any] = {
    "instances cart": {**LISTING, "instances": [{**CART, "id": EVIL, "zone": EVIL, "tags": [EVIL], "version": EVIL}]},
    "services": {
        "services": [
            {"name": "cart", "env": "e", "instances": 1, "serving": 1, "health": {EVIL: 1}, "tags": [EVIL]},
        ]
    },
    "overrides": {
        "overrides": [
            {"env": "e", "service": "s", "id": EVIL, "status": "down", "reason": EVIL, "set_at": 1,
             "registered": True, "index": 1},
        ]
    },
    "checks cart c": {
        "checks": [{"name": EVIL, "kind": EVIL, "state": "passing", "since": 1, "node": EVIL, "output": EVIL}]
    },
    "members": {
        "node": EVIL, "leader": EVIL, "term": 1, "applied_index": 1, "commit_index": 1, "disk_error": EVIL,
        "members": [MEMBER],
    },
    "heartbeat cart " + EVIL: {"ttl_s": 3.0},
    "transfer": {"leader": EVIL},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "table"])
@pytest.mark.parametrize(("words", "answer"), ODD.items(), ids=lambda value: str(value).split(" ")[0])
def test_what_a_terminal_would_obey_is_shown_and_not_sent(asked: Any, kind: str, words: str, answer: Any):
    options = ["--json"] if kind == "json" else []
    result, _ = asked(response(200, answer), *options, *words.split(" "))

    assert result.exit_code == 0, result.output
    assert [letter for letter in result.output if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf")] == []
    assert "31m" in result.output


def test_what_a_node_says_of_an_error_is_shown_and_not_obeyed(asked: Any):
    result, _ = asked(problem(Invalid(EVIL)), "services")

    assert result.stderr == "error: a\\x1b[31m\\x9b31m\\x07\\r\\x7f\\u202eb\n"


def test_what_the_encoding_lacks_is_shown_as_an_escape(asked: Any):
    listing = {**LISTING, "instances": [{**CART, "id": "cart-é"}]}
    for options, shown in (([], "cart-\\xe9"), (["--json"], "cart-\\u00e9")):
        session = FakeSession(lambda *_: response(200, listing))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(terminal, "Client", partial(Client, session=session))
            result = CliRunner(charset="ascii").invoke(cli.main, [*options, "instances", "cart"])
        assert result.exit_code == 0, result.exception
        assert shown in result.stdout


# Tables


def wide() -> terminal.Table:
    table = terminal.Table("id", "address", "zone", "tags")
    table.add_row("cart-1", "10.0.0.1:80", "", ", ".join(["somewhat-long"] * 6))
    table.add_row("cart-2", "10.0.0.2:80", "", "")
    return table


def test_a_table_that_is_piped_has_one_line_for_each_row_however_long():
    lines = [line.plain for line in wide().lines(None)]

    assert len(lines) == 3
    assert lines[0].split() == ["id", "address", "tags"]  # nobody has a zone
    assert lines[1].split()[:2] == ["cart-1", "10.0.0.1:80"]


def test_a_table_that_does_not_fit_shows_one_field_a_line():
    lines = [line.plain for line in wide().lines(80)]

    assert lines == [
        "id       cart-1",
        "address  10.0.0.1:80",
        "tags     " + ", ".join(["somewhat-long"] * 6),
        "",
        "id       cart-2",
        "address  10.0.0.2:80",
    ]
    assert len(wide().lines(200)) == 3


def test_a_piped_table_of_instances_is_not_folded(asked: Any):
    listing = {**LISTING, "instances": [{**CART, "tags": ["x" * 250] * 3}]}
    result, _ = asked(response(200, listing, X_Rollcall_Complete="true"), "instances", "cart")

    assert len(result.stdout.splitlines()) == 2


# What is given


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e400", "x"])
@pytest.mark.parametrize(
    "words",
    [
        "--timeout {} services", "services --timeout {}", "gateway --try-timeout {}", "gateway --total-timeout {}",
        "gateway --body-max {}", "gateway --threads {}", "sidecar --service s --interval {}",
        "sidecar --service s --check-timeout {}", "sidecar --service s --drain {}",
        "sidecar --service s --stop-timeout {}", "instances s --limit {}", "status s i up --for {}",
    ],
)  # fmt: skip
def test_a_number_that_nobody_can_wait_for_is_wrong_use(words: str, number: str):
    result = CliRunner().invoke(cli.main, words.format(number).split())

    assert result.exit_code == 2, result.output
    assert "Invalid value" in result.stderr


@pytest.mark.parametrize(
    "words", ["register s --id i --ttl {}", "set-policy p s --percent {}", "sidecar --service s --ttl {}"]
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_no_number_is_no_lease_and_no_share(words: str, number: str):
    result = CliRunner().invoke(cli.main, words.format(number).split())

    assert result.exit_code == 2
    assert "expected a number" in result.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_odd_in_a_policy_is_said_beside_that_it_is_in_force(asked: Any, as_json: bool):
    answer = {"name": "p", "service": "cart", "percent": 1.0, "warnings": ["no instance \x1b[2J", "140 % in all"]}
    result, _ = asked(response(200, answer), "set-policy", "p", "cart", *(["--json"] if as_json else []))

    assert result.exit_code == 0, result.exception
    assert "warning: no instance" in result.stderr
    assert "warning: 140 % in all" in result.stderr
    assert "\x1b" not in result.output
    if as_json:
        assert json.loads(result.stdout) == answer
    else:
        assert result.stdout == "policy p is in force\n"


def test_a_policy_that_nothing_is_odd_in_warns_of_nothing(asked: Any):
    result, _ = asked(response(200, {"name": "p"}), "set-policy", "p", "cart")

    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no user")])
def test_a_user_without_a_name_may_set_policies(asked: Any, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def getuser() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", getuser)
    for words in (["set-policy", "p", "cart"], ["remove-policy", "p"]):
        result, session = asked(response(200, {"name": "p"}), *words)
        assert result.exit_code == 0, result.exception
        assert "uid " in str(session.asked[0])


def test_ipv6_is_shown_in_brackets(asked: Any):
    result, _ = asked(response(200, {**LISTING, "instances": [{**CART, "address": "fd00::1"}]}), "instances", "cart")

    assert "[fd00::1]:80" in result.stdout


def test_who_waits_is_told_what_for(asked: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "SILENT_S", 0.02)
    result, _ = asked(lambda: problem(NoLeader("nobody leads")), "services")

    assert result.exit_code == 3
    assert "no answer yet from http://127.0.0.1:8500" in result.stderr
    assert "asking for 2 s at most" in result.stderr


def test_options_of_a_sidecars_program_are_its_own(monkeypatch: pytest.MonkeyPatch):
    given = serving.sidecar.make_context(
        "sidecar", ["--service", "s", "./start", "--port", "1", "--env", "x"], obj={}
    ).params

    assert given["program"] == ("./start", "--port", "1", "--env", "x")
