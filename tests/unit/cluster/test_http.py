"""One exchange with one node: what an answer, or the lack of one, means to the caller."""

import inspect
from typing import Any

import pytest
from harness.fakes import FakeSession, problem, response
from requests import exceptions
from rollcall.cluster import http
from rollcall.cluster.http import exchange, from_requests
from rollcall.replication import errors
from rollcall.replication.errors import Gone, Invalid, NotDone, NotFound, RollcallError, TooLarge, Unknown
from urllib3 import exceptions as lower

URL = "http://127.0.0.1:8500/api/v1/services"


def asked(answer: Any, **options: Any) -> http.Answer:
    return exchange(FakeSession(lambda *_: answer), "GET", URL, timeout_s=1.0, **options)


def test_an_answer_carries_its_json_and_its_index():
    answer = asked(response(200, {"services": []}, X_Rollcall_Index=7))

    assert answer.body == {"services": []}
    assert answer.index == 7


def test_an_answer_names_its_history_if_that_can_be_a_name():
    assert asked(response(304, X_Rollcall_History="0123456789abcdef")).history == "0123456789abcdef"
    assert asked(response(304)).history == ""
    for none in ("", "x", "0123456789ABCDEF", "0123456789abcdef0", "../../../../../.."):
        assert asked(response(304, X_Rollcall_History=none)).history == ""


def test_an_answer_without_json_has_no_body():
    assert asked(response(304, X_Rollcall_Index=9)).body is None
    assert asked(response(200, b"hello", content_type="text/plain")).body is None


def test_what_is_asked_leaves_out_parameters_that_are_none_and_sends_json():
    session = FakeSession(lambda *_: response(200, {}))

    exchange(session, "PUT", URL, timeout_s=0.5, params={"env": "a", "zone": None}, body={"port": 1})

    (method, url, options) = session.asked[0]
    assert (method, url) == ("PUT", URL)
    assert options["params"] == {"env": "a"}
    assert options["data"] == b'{"port":1}'
    assert options["timeout"] == (0.5, 0.5)
    assert not options["allow_redirects"]


def test_an_answer_that_is_not_json_is_no_node_of_ours():
    with pytest.raises(Unknown, match="is it a Rollcall node"):
        asked(response(200, b"<html>"))


def test_an_answer_larger_than_the_limit_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "ANSWER_BYTES_MAX", 10)

    with pytest.raises(Unknown, match="larger than 10 bytes"):
        asked(response(200, b"[" + b" " * 20 + b"]"))


def test_an_answer_that_trickles_past_the_deadline_is_given_up():
    with pytest.raises(Unknown, match="did not end in time"):
        exchange(FakeSession(lambda *_: response(200, {})), "GET", URL, timeout_s=-1.0)


# Errors that a node answers


def all_errors() -> list[type[RollcallError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RollcallError)]
    assert len(found) > 15
    return found


def test_the_table_of_errors_is_complete():
    assert set(errors.BY_CODE.values()) == set(all_errors())
    assert len(errors.BY_CODE) == len(all_errors())


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_what_it_was(kind: type[RollcallError]):
    with pytest.raises(RollcallError) as caught:
        asked(problem(kind("what happened", limit=7)))

    assert type(caught.value) is kind
    assert caught.value.message == "what happened"
    assert caught.value.facts["limit"] == 7


def test_the_field_of_an_invalid_request_arrives():
    with pytest.raises(Invalid) as caught:
        asked(problem(Invalid("port: Expected `int`", field="port")))

    assert caught.value.field == "port"


def test_the_outcome_wins_over_the_name_of_an_error():
    """A newer node may know errors that this client does not; what became of the write it must know."""
    body = {"title": "New", "code": "SomethingNew", "detail": "x"}
    kinds = [(503, "not_done", NotDone), (504, "unknown", Unknown), (500, "unknown", Unknown), (503, None, Unknown)]

    for status, outcome, kind in kinds:
        with pytest.raises(kind):
            asked(response(status, {**body, "outcome": outcome}, content_type="application/problem+json"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Invalid), (403, Invalid), (404, NotFound), (410, Gone), (413, TooLarge), (502, Unknown), (503, Unknown)],
)
def test_an_error_of_somebody_in_between_says_little_and_nothing_certain_about_writes(status: int, kind: Any):
    for body in (b"", b"<html>Bad Gateway</html>", b"[1]", b"\xff"):
        with pytest.raises(kind, match=str(status)):
            asked(response(status, body, content_type="text/html"))


# Errors of the connection


def test_the_tables_of_connection_errors_are_complete():
    theirs = {
        kind
        for _, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, exceptions.RequestException)
    }

    assert theirs - {*http.NOT_SENT, *http.PERHAPS_SENT, *http.WRONG} == set()


def _wrapped(reason: Exception) -> exceptions.ConnectionError:
    return exceptions.ConnectionError(lower.MaxRetryError(None, "/", reason))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_wrapped(lower.NewConnectionError(None, "refused")), NotDone),  # type: ignore[arg-type]
        (exceptions.ConnectTimeout("slow"), NotDone),
        (exceptions.SSLError("certificate"), NotDone),
        (exceptions.ConnectionError(lower.ProtocolError("Connection aborted")), Unknown),
        (exceptions.ConnectionError("reset"), Unknown),
        (exceptions.ReadTimeout("slow"), Unknown),
        (exceptions.ChunkedEncodingError("cut off"), Unknown),
        (exceptions.InvalidURL("what?"), Invalid),
        (exceptions.MissingSchema("no scheme"), Invalid),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_refused_is_not_done_and_broken_off_is_unknown(error: exceptions.RequestException, kind: type[RollcallError]):
    assert type(from_requests(error, URL)) is kind
