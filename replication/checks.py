"""Health checks as the nodes agree on them: what is to be asked, and how it stands.

Pure values. Who asks is ``owner_of``: every node works it out by itself from the
replicated list of those that check, so an assignment is one small entry in the log,
however many instances there are. What a check found is in the log only when its
state changes.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .errors import Invalid
from .targets import header_fault, of_place, of_url

CHECKS_MAX = 8
INTERVAL_S_MIN = 1.0
INTERVAL_S_MAX = 24 * 3600.0
TIMEOUT_S = 5.0
"""Where nobody says another; in the API, no longer than the interval."""
DEREGISTER_S_MIN = 10.0
HEADERS_MAX = 16

State = Literal["critical", "pending", "warning", "passing"]
"""Worst first: of several checks the worst one counts."""

WORST_FIRST: tuple[State, ...] = ("critical", "pending", "warning", "passing")

Method = Literal["GET", "HEAD", "POST", "PUT", "OPTIONS"]
Kind = Literal["http", "tcp", "grpc", "script", "ttl"]


class Check(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One question to an instance. Exactly one of ``http``, ``tcp``, ``grpc``, ``script`` and ``ttl_s`` says which.

    ``http``: a URL whose answer must have a status of ``expect_status`` (empty: 200 to 299) and,
    if ``expect_body`` is given, hold that text in its first 64 KiB; a user and password in it are
    sent as Basic authorization. ``tcp``: HOST:PORT that takes a
    connection. ``grpc``: HOST:PORT or HOST:PORT/SERVICE that answers SERVING. ``script``: a command
    line whose exit code is 0 (passing), 1 (warning) or another. ``ttl_s``: nobody is asked; the service
    says how it is at least this often.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    http: Annotated[str, Meta(max_length=2048)] = ""
    tcp: Annotated[str, Meta(max_length=300)] = ""
    grpc: Annotated[str, Meta(max_length=600)] = ""
    script: Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=32)] = ()
    ttl_s: Annotated[float, Meta(ge=2.0, le=INTERVAL_S_MAX)] | None = None
    method: Method = "GET"
    headers: Annotated[dict[Annotated[str, Meta(max_length=256)], Annotated[str, Meta(max_length=4096)]],
                       Meta(max_length=HEADERS_MAX)] = {}  # fmt: skip
    expect_status: Annotated[tuple[Annotated[int, Meta(ge=100, le=599)], ...], Meta(max_length=32)] = ()
    expect_body: Annotated[str, Meta(max_length=4096)] = ""
    tls_verify: bool = True
    interval_s: Annotated[float, Meta(ge=INTERVAL_S_MIN, le=INTERVAL_S_MAX)] = 10.0
    timeout_s: Annotated[float, Meta(gt=0.0, le=60.0)] = TIMEOUT_S
    success_before_passing: Annotated[int, Meta(ge=1, le=100)] = 1
    failures_before_critical: Annotated[int, Meta(ge=1, le=100)] = 1
    deregister_critical_after_s: Annotated[float, Meta(ge=DEREGISTER_S_MIN, le=7 * 24 * 3600)] | None = None

    @property
    def kind(self) -> Kind:
        if self.http:
            return "http"
        if self.tcp:
            return "tcp"
        if self.grpc:
            return "grpc"
        return "script" if self.script else "ttl"

    @property
    def asks(self) -> bool:
        """Whether a node asks the instance; else the service speaks by itself."""
        return self.kind != "ttl"


class CheckState(Struct, frozen=True, gc=False):
    """How one check stands. ``since``: the index of the entry that made it so."""

    name: str
    state: State
    since: int


class Assignment(Struct, frozen=True, array_like=True, gc=False):
    """Who checks. ``epoch`` is the index of the entry that said so: a report names it, and one of
    another epoch is void."""

    epoch: int = 0
    nodes: tuple[str, ...] = ()


def owner_of(service: str, id: str, nodes: Sequence[str]) -> str:
    """The one of ``nodes`` that checks this instance; empty if there are none.

    Rendezvous hashing (Thaler and Ravishankar, 1996): when a node goes, only its
    own instances move, and they spread over all the others.
    """
    return max(nodes, key=lambda node: _score(node, service, id), default="")


def others_by_turn(service: str, id: str, nodes: Sequence[str]) -> list[str]:
    """Who would check the instance next, best first, after its owner."""
    return sorted(nodes, key=lambda node: _score(node, service, id), reverse=True)[1:]


def _score(node: str, service: str, id: str) -> bytes:
    return blake2b(f"{node}\0{service}\0{id}".encode(), digest_size=8).digest()


def worst(states: Sequence[CheckState]) -> State:
    """The health of an instance with these checks; ``passing`` without any."""
    found = {each.state for each in states}
    for state in WORST_FIRST:
        if state in found:
            return state
    return "passing"


def begun(checks: Sequence[Check], index: int) -> tuple[CheckState, ...]:
    """How checks stand before anything was asked."""
    return tuple(CheckState(check.name, "pending", index) for check in checks)


def checked(checks: Sequence[Check]) -> None:
    """The rules that a type cannot state. Raises ``Invalid`` with the path of what is wrong."""
    if len(checks) > CHECKS_MAX:
        raise Invalid(f"checks: Expected at most {CHECKS_MAX}, got {len(checks)}", field="checks", limit=CHECKS_MAX)
    names: set[str] = set()
    for number, check in enumerate(checks):
        field = f"checks[{number}]"
        given = [kind for kind in ("http", "tcp", "grpc", "script") if getattr(check, kind)]
        given += ["ttl_s"] if check.ttl_s is not None else []
        if len(given) != 1:
            what = "none" if not given else " and ".join(given)
            raise Invalid(f"{field}: Expected exactly one of http, tcp, grpc, script, ttl_s; got {what}", field=field)
        if check.name in names:
            raise Invalid(f"{field}.name: {check.name!r} is taken by another check", field=f"{field}.name")
        names.add(check.name)
        if check.name in (".", ".."):
            message = f"{field}.name: {check.name!r} can be no name: a path would lead elsewhere"
            raise Invalid(message, field=f"{field}.name")
        if check.asks and check.timeout_s > check.interval_s:
            message = f"{field}.timeout_s: Expected at most interval_s ({check.interval_s:g}), got {check.timeout_s:g}"
            raise Invalid(message, field=f"{field}.timeout_s", limit=check.interval_s)
        _check_target(check, field)


def _check_target(check: Check, field: str) -> None:
    for kind, read in (("http", of_url), ("tcp", of_place), ("grpc", of_place)):
        text = getattr(check, kind)
        try:
            if text:
                read(text.partition("/")[0] if kind == "grpc" else text)
        except ValueError as error:
            raise Invalid(f"{field}.{kind}: {error}", field=f"{field}.{kind}") from None
    for name, value in check.headers.items():
        fault = header_fault(name, value)
        if fault:
            raise Invalid(f"{field}.headers.{name[:80]!r}: {fault}", field=f"{field}.headers")
    if check.http and of_url(check.http).login is not None and "authorization" in map(str.lower, check.headers):
        message = f"{field}.headers: Expected no Authorization beside the one that the URL's user and password make"
        raise Invalid(message, field=f"{field}.headers")
    if check.script and (not check.script[0] or any("\0" in word for word in check.script)):
        raise Invalid(f"{field}.script: Expected a program and its arguments, without NUL", field=f"{field}.script")
