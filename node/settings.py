"""The settings of a node: one table, from which everything else is made.

The fields of ``Settings`` are the table. From them come the keys of the TOML
file, the ``ROLLCALL_*`` variables, the flags, ``--help``, the sample file and
the table in the README:

    field            [section] and key in the file   variable                  flag
    write_timeout_s  [http] write_timeout_s          ROLLCALL_WRITE_TIMEOUT_S  --write-timeout-s

A flag wins over a variable, a variable over the file, the file over the
default. What nobody knows is an error that names the nearest thing that
exists: a misspelt setting that is silently ignored is found at three at night.

    python -m rollcall.node.settings table     the table for the README
    python -m rollcall.node.settings sample    a commented node.toml
"""

import math
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..replication.errors import Invalid
from ..replication.records import DEFAULT_ENV, TTL_S_MAX, TTL_S_MIN, nearest
from . import settings_rules, settings_table
from .service_links import is_service_link
from .settings_rules import ID_PATTERN, WILDCARDS, joined
from .settings_table import ENV_PREFIX, Setting, about, table_of

ENV_OTHERS = frozenset({"ROLLCALL_CONFIG", "ROLLCALL_NODES", "ROLLCALL_DISCOVERY"})
"""Variables of ours that are no setting of a node: the file, the CLI's nodes, what a sidecar tells its program."""

FILE_BYTES_MAX = 1024 * 1024


class Member(Struct, frozen=True):
    """One node of the cluster: its id, and where the others and the clients reach it."""

    id: str
    raft: str
    http: str

    def __str__(self) -> str:
        return f"{self.id}={self.raft}/{self.http}"


_Id = Annotated[str, Meta(pattern=ID_PATTERN)]
_Port = Annotated[int, Meta(ge=1, le=65_535)]
_Positive = Annotated[float, Meta(gt=0, le=24 * 3600)]
_Bytes = Annotated[int, Meta(ge=1024, le=2**40)]


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set, checked: a value of this type is fit to run with."""

    node_id: Annotated[_Id, about("node", "this node's id; one of the ids in members")]
    data_dir: Annotated[Path, about("node", "directory for the log and the snapshots; this node's alone")]
    rejoin: Annotated[
        bool,
        about("node", "this node lost its disk: the others fill its new, empty data_dir, and then let it vote again"),
    ] = False
    restored: Annotated[
        bool,
        about(
            "node", "for one start of all nodes after their data_dirs were restored from copies: clients read all again"
        ),
    ] = False
    drain_timeout_s: Annotated[
        _Positive, about("node", "longest time from SIGTERM to the end of the process", unit="s")
    ] = 5.0

    cluster_id: Annotated[
        _Id, about("cluster", "name of the cluster; nodes of another one are refused", agree=True)
    ] = "rollcall"
    members: Annotated[
        tuple[Member, ...],
        about(
            "cluster",
            "all nodes, this one included: 1, 3, 5 or 7 of ID=HOST:RAFT_PORT/http://HOST:HTTP_PORT, with commas "
            "between them (in the file a list, or tables with id, raft, http); empty: this node alone",
            agree=True,
        ),
    ] = ()
    accept_members: Annotated[
        bool,
        about(
            "cluster",
            "start although the data belongs to another list of members: once, on every node; can lose acknowledged "
            "writes (docs/operations.md says how not to)",
        ),
    ] = False
    tls_cert: Annotated[
        str,
        about(
            "cluster",
            "this node's certificate for the other nodes (PEM); with tls_key and tls_ca, nodes speak TLS 1.3 only",
            example="/etc/rollcall/tls/cert.pem",
        ),
    ] = ""
    tls_key: Annotated[str, about("cluster", "the key of tls_cert (PEM)", example="/etc/rollcall/tls/key.pem")] = ""
    tls_ca: Annotated[
        str,
        about("cluster", "the CA of all nodes' certificates, or several (PEM)", example="/etc/rollcall/tls/ca.pem"),
    ] = ""
    insecure: Annotated[
        bool, about("cluster", "allow plain TCP between the nodes on addresses that are not loopback")
    ] = False

    http_host: Annotated[str, about("http", "address to listen on for clients")] = "127.0.0.1"
    http_port: Annotated[_Port, about("http", "port to listen on for clients")] = 8500
    http_advertise: Annotated[
        str,
        about("http", "URL by which clients and other nodes reach this node (default: http_host, http_port)"),
    ] = ""
    hosts: Annotated[
        tuple[str, ...],
        about(
            "http",
            "host names that this node answers to (of a proxy in front of it, say), besides IP addresses, names "
            "without a dot and its members' names; with commas between them, in the file a list",
            example="registry.example.com",
        ),
    ] = ()
    trusted_networks: Annotated[
        tuple[str, ...],
        about(
            "http",
            "networks of proxies and NAT, whose addresses stand for many clients: exempt from the limits per client "
            "address; loopback: this machine; with commas between them, in the file a list",
        ),
    ] = ("loopback",)
    # An Idempotency-Key is remembered for 60 s, which must be ten times as long.
    write_timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=6)],
        about("http", "longest time a write waits for its outcome, elections included", unit="s", agree=True),
    ] = 5.0
    body_bytes_max: Annotated[_Bytes, about("http", "largest body of a request", unit="bytes")] = 256 * 1024
    batch_body_bytes_max: Annotated[
        _Bytes, about("http", "largest body of a batch or of many heartbeats", unit="bytes")
    ] = 1024 * 1024
    watch_events_max: Annotated[
        Annotated[int, Meta(ge=1, le=10_000_000)], about("http", "changes kept for watchers to resume from")
    ] = 100_000
    watch_wait_s_max: Annotated[_Positive, about("http", "longest wait of one long poll", unit="s")] = 600.0

    server: Annotated[Literal["waitress"], about("server", "HTTP server that runs the node", key="engine")] = "waitress"
    threads: Annotated[
        Annotated[int, Meta(ge=4, le=10_000)],
        about("server", "threads that answer requests, including those that wait (watches, writes)"),
    ] = 640
    threads_reserved: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)],
        about("server", "of them kept for requests that do not wait (plain reads)"),
    ] = 48
    connection_limit: Annotated[
        Annotated[int, Meta(ge=4, le=100_000)], about("server", "most connections of clients at once")
    ] = 2000

    raft_host: Annotated[str, about("raft", "address to listen on for the other nodes")] = "127.0.0.1"
    raft_port: Annotated[_Port, about("raft", "port to listen on for the other nodes")] = 9500
    raft_advertise: Annotated[
        str, about("raft", "HOST:PORT by which other nodes reach this node (default: raft_host, raft_port)")
    ] = ""
    heartbeat_period_s: Annotated[
        _Positive, about("raft", "the leader sends to every node at least this often", unit="s", agree=True)
    ] = 0.1
    election_timeout_s_min: Annotated[
        _Positive,
        about(
            "raft",
            "a follower that has not heard from its leader for this long may stand for election",
            unit="s",
            agree=True,
        ),
    ] = 0.4
    election_timeout_s_max: Annotated[
        _Positive,
        about(
            "raft",
            "a follower that has not heard from its leader for this long stands for election",
            unit="s",
            agree=True,
        ),
    ] = 1.0
    leader_fallback_s: Annotated[
        _Positive,
        about("raft", "a leader that has not heard from a quorum for this long steps down", unit="s", agree=True),
    ] = 1.5
    transfer_interval_s: Annotated[
        Annotated[float, Meta(ge=0, le=86_400)],
        about("raft", "shortest time between two transfers of leadership on request; 0: no limit", unit="s"),
    ] = 60.0
    snapshot_entries: Annotated[
        Annotated[int, Meta(ge=100, le=10_000_000)],
        about("raft", "log entries after which a snapshot is written and the log is cut"),
    ] = 10_000
    snapshot_interval_s: Annotated[
        _Positive, about("raft", "time after which that is done anyway, if the log grew", unit="s")
    ] = 300.0

    dns_host: Annotated[str, about("dns", "address to listen on for DNS, UDP and TCP")] = "127.0.0.1"
    dns_port: Annotated[Annotated[int, Meta(ge=0, le=65_535)], about("dns", "port of DNS; 0: no DNS")] = 0
    dns_domain: Annotated[str, about("dns", "domain of the names: SERVICE.service.DOMAIN")] = "rollcall"
    dns_ttl_s: Annotated[
        Annotated[int, Meta(ge=0, le=24 * 3600)],
        about("dns", "how long resolvers may cache answers; 0: not at all", unit="s"),
    ] = 0
    dns_env: Annotated[str, about("dns", "env whose services have names in DNS")] = DEFAULT_ENV

    checks_networks: Annotated[
        str,
        about(
            "checks",
            "networks in which health checks may ask, with commas between them; own: an instance's own address",
        ),
    ] = "own"
    checks_scripts: Annotated[
        bool, about("checks", "run the commands of script checks, as the user that this node runs as")
    ] = False

    lease_ttl_s: Annotated[
        Annotated[float, Meta(ge=TTL_S_MIN, le=TTL_S_MAX)],
        about("leases", "lease of a registration that does not ask for one", unit="s", agree=True),
    ] = 90.0
    lease_ttl_s_min: Annotated[
        Annotated[float, Meta(ge=TTL_S_MIN, le=TTL_S_MAX)],
        about("leases", "shortest lease that a registration may ask for", unit="s", agree=True),
    ] = 2.0
    protection_threshold: Annotated[
        Annotated[float, Meta(ge=0, lt=1)],
        about(
            "leases",
            "self-protection: evictions stop while fewer than this share of the leases is renewed in time",
            agree=True,
        ),
    ] = 0.85
    evict_sweep_s_max: Annotated[
        _Positive, about("leases", "longest time between two looks for leases that have run out", unit="s", agree=True)
    ] = 60.0

    log_level: Annotated[Literal["debug", "info", "warning", "error"], about("log", "lowest level that is logged")] = (
        "info"
    )
    log_format: Annotated[Literal["text", "json"], about("log", "format of the log")] = "text"

    def agreement(self) -> dict[str, Any]:
        """What must be the same on every node, as plain data, for them to compare."""
        return {s.name: msgspec.to_builtins(getattr(self, s.name)) for s in TABLE if s.agree}

    def __repr__(self) -> str:
        shown = ", ".join(f"{s.name}={s.shown(getattr(self, s.name))}" for s in TABLE)
        return f"Settings({shown})"


TABLE: tuple[Setting, ...] = table_of(Settings)
_BY_NAME = {setting.name: setting for setting in TABLE}
_BY_PLACE = {f"{setting.section}.{setting.key}": setting for setting in TABLE}


def load(argv: Sequence[str], env: Mapping[str, str] = os.environ) -> Settings:
    """The settings from flags, variables, the file and the defaults, or ``Invalid``.

    ``--help`` and ``--version`` print and raise ``SystemExit``.
    """
    flags = _from_flags(argv)
    config = flags.pop("config", None) or env.get("ROLLCALL_CONFIG")
    values: dict[str, tuple[Any, str]] = {}
    if config:
        values.update(_from_file(Path(config)))
    values.update(_from_env(env))
    values.update({name: (value, _BY_NAME[name].flag) for name, value in flags.items()})
    for setting in TABLE:
        if setting.required and setting.name not in values:
            raise Invalid(
                f"{setting.name} is required ({setting.help}): "
                f"give {setting.flag}, {setting.env}, or {setting.key} in [{setting.section}] of the file",
                field=setting.name,
            )
    return build(**{name: _convert(_BY_NAME[name], value, source) for name, (value, source) in values.items()})


def build(**values: Any) -> Settings:
    """Settings from values of the right types, completed and checked as a whole."""
    settings = _completed(Settings(**values))
    settings_rules.check(settings)
    return settings


# Where values come from


def _from_flags(argv: Sequence[str]) -> dict[str, str]:
    given, unknown = settings_table.parser(TABLE).parse_known_args(list(argv))
    if unknown:
        raise _not_known("flag", unknown[0].split("=")[0], ["--config", *(setting.flag for setting in TABLE)])
    return vars(given)


def _from_env(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    by_env = {setting.env: setting for setting in TABLE}
    values: dict[str, tuple[Any, str]] = {}
    for name, value in env.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHERS or is_service_link(name, value):
            continue
        if name not in by_env:
            raise _not_known("variable", name, [*by_env, *ENV_OTHERS])
        values[by_env[name].name] = (value, name)
    return values


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    _check_text(str(path), "--config", "config")
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Invalid(f"the file {path} cannot be read: {error.strerror}", field="config") from None
    if len(content) > FILE_BYTES_MAX:
        raise Invalid(f"the file {path} is larger than {FILE_BYTES_MAX} bytes", field="config")
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise Invalid(f"the file {path} is nested too deep", field="config") from None
    except ValueError as error:  # also what the decoder itself raises: bytes that are no text, endless numbers
        raise Invalid(f"the file {path} is not TOML: {error}", field="config") from None
    sections = sorted({setting.section for setting in TABLE})
    values: dict[str, tuple[Any, str]] = {}
    for section, keys in data.items():
        if section not in sections or not isinstance(keys, dict):
            raise _not_known(f"section of {path}:", f"[{section}]", [f"[{name}]" for name in sections])
        for key, value in keys.items():
            setting = _BY_PLACE.get(f"{section}.{key}")
            if setting is None:
                raise _not_known(f"key of {path}:", f"{section}.{key}", _BY_PLACE)
            values[setting.name] = (value, f"{key} in [{section}] of {path}")
    return values


def _not_known(what: str, name: str, known: Iterable[str]) -> Invalid:
    meant = nearest(name, known, cutoff=0.5)
    hint = f"did you mean {meant}?" if meant else "see rollcall-node --help for what exists"
    return Invalid(f"unknown {what} {name}: {hint}", field=name)


# From text to values


def _convert(setting: Setting, value: Any, source: str) -> Any:
    if isinstance(value, str):
        _check_text(value, source, setting.name)
    try:
        if setting.name == "members":
            members = tuple(_members(value))
            for member in members:
                _check_text(str(member), source, setting.name)
            return members
        if setting.type == tuple[str, ...] and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if setting.type is Path:
            return _path(msgspec.convert(value, Annotated[str, Meta(min_length=1)]))
        if setting.type is float and isinstance(value, str):
            value = _number(value)
        converted = msgspec.convert(value, setting.kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"{source}: {_in_words(setting, error)}, got {setting.shown(value)}", field=setting.name
        ) from None
    except Invalid as error:
        raise Invalid(f"{source}: {error.message}", field=setting.name) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise Invalid(f"{source}: expected a finite number, got {setting.shown(value)}", field=setting.name)
    return converted


def _check_text(text: str, source: str, field: str) -> None:
    """Raises ``Invalid`` for bytes that are no UTF-8 (the system hands them on as halves of characters), and NUL."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Invalid(f"{source}: expected text in UTF-8, got {text!r}", field=field) from None
    if "\0" in text:
        raise Invalid(f"{source}: expected text without NUL, got {text!r}", field=field)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Invalid(f"expected a path, got {text!r}: there is no such user") from None


def _in_words(setting: Setting, error: Exception) -> str:
    if setting.choices:
        return f"expected one of {', '.join(setting.choices)}"
    if "matching regex" in str(error):
        return "expected 1 to 64 of letters, digits, '.', '_', '-'"
    text = str(error).split(", got")[0]
    for technical, plain in _WORDS.items():
        text = text.replace(technical, plain)
    unit = f" ({setting.unit})" if setting.unit else ""
    return text[0].lower() + text[1:] + unit


_WORDS = {
    "`float`": "a number",
    "`int`": "a whole number",
    "`bool`": "true or false",
    "`str`": "text",
    "`object`": "a table",
}


def _number(text: str) -> float | str:
    """``text`` as a number where it is one; msgspec knows fewer spellings (`.5`)."""
    try:
        return float(text)
    except ValueError:
        return text


def _members(value: Any) -> Iterable[Member]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise Invalid("expected a list of members")
    for part in value:
        if isinstance(part, Member):
            yield part
        elif isinstance(part, str):
            yield _member(part)
        else:
            yield msgspec.convert(part, Member)


def _member(text: str) -> Member:
    id, equals, rest = text.partition("=")
    raft, slash, http = rest.partition("/")
    if not (id and equals and raft and slash and http):
        raise Invalid(f"expected ID=HOST:RAFT_PORT/http://HOST:HTTP_PORT, got {text!r}")
    return Member(id, raft, http)


# What must hold between them, in the operator's words


def _completed(settings: Settings) -> Settings:
    """The same with what follows from the rest filled in: advertised addresses, members."""
    for name in ("http_host", "raft_host", "dns_host"):
        if getattr(settings, name).startswith("["):
            raise Invalid(
                f"{name}: write an IPv6 address without brackets, got {getattr(settings, name)!r}", field=name
            )
    if settings.http_host in WILDCARDS and not settings.http_advertise:
        raise Invalid(
            f"http_host ({settings.http_host!r}) means every address of this machine, and nobody can connect to that: "
            "set http_advertise to the URL that clients and other nodes reach this node at",
            field="http_advertise",
        )
    if settings.raft_host in WILDCARDS and not settings.raft_advertise:
        raise Invalid(
            f"raft_host ({settings.raft_host!r}) means every address of this machine, and nobody can connect to that: "
            "set raft_advertise to the HOST:PORT that the other nodes reach this node at",
            field="raft_advertise",
        )
    http = (settings.http_advertise or f"http://{joined(settings.http_host, settings.http_port)}").rstrip("/")
    raft = settings.raft_advertise or joined(settings.raft_host, settings.raft_port)
    members = sorted((Member(m.id, m.raft, m.http.rstrip("/")) for m in settings.members), key=lambda m: m.id)
    return msgspec.structs.replace(
        settings,
        http_advertise=http,
        raft_advertise=raft,
        members=tuple(members) or (Member(settings.node_id, raft, http),),
    )


def sample() -> str:
    """A ``node.toml`` that starts one node, with everything else at its default in comments."""
    return settings_table.sample(TABLE, {"node_id": "n1", "data_dir": "/var/lib/rollcall"})


def markdown() -> str:
    """The table of the README; a test compares the two."""
    return settings_table.markdown(TABLE)


if __name__ == "__main__":
    made = {"table": markdown, "sample": sample}
    if len(sys.argv) != 2 or sys.argv[1] not in made:
        sys.exit("usage: python -m rollcall.node.settings table|sample")
    sys.stdout.write(made[sys.argv[1]]())
