"""Everything that can be set: the fields of ``Settings`` are the table from which all else is made."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...replication.records import DEFAULT_ENV, TTL_S_MAX, TTL_S_MIN
from .addresses import ID_PATTERN
from .table import Setting, about, table_of


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
