"""What must hold between the settings of a node, said in the operator's words."""

import re
from pathlib import Path

from ...replication.commands import COMMAND_BYTES_MAX
from ...replication.errors import Invalid
from ...replication.front.networks import networks
from ..checks.reach import Reach
from .addresses import ID_PATTERN, check_url, host_and_port, is_loopback, is_name
from .fields import Settings

MEMBERS_MAX = 7
DOMAIN_LENGTH_MAX = 100
"""Leaves room below it for the names of services and nodes: a name in DNS has at most 255 bytes."""


def check(settings: Settings) -> None:
    """Raises ``Invalid`` for the first thing that does not fit together."""
    _check_addresses(settings)
    _check_members(settings)
    _check_dns(settings)
    _check_hosts(settings)
    networks(settings.trusted_networks, "trusted_networks")
    Reach.of(settings.checks_networks)
    _check_relations(settings)


def _check_addresses(settings: Settings) -> None:
    check_url(settings.http_advertise, "http_advertise")
    host_and_port(settings.raft_advertise, "raft_advertise")
    if settings.http_host == settings.raft_host and settings.http_port == settings.raft_port:
        raise Invalid(
            f"http_port and raft_port are both {settings.http_port} on {settings.http_host}: give each its own",
            field="raft_port",
        )
    _check_security(settings)


def _check_hosts(settings: Settings) -> None:
    for host in settings.hosts:
        if not is_name(host.removesuffix(".")):
            message = f"hosts: expected names such as registry.example.com, without a port, got {host[:100]!r}"
            raise Invalid(message, field="hosts")


def _check_security(settings: Settings) -> None:
    files = ("tls_cert", "tls_key", "tls_ca")
    missing = [name for name in files if not getattr(settings, name)]
    for name in files:
        try:
            Path(getattr(settings, name)).expanduser()
        except RuntimeError:
            raise Invalid(f"{name}: there is no such user: {getattr(settings, name)!r}", field=name) from None
    if 0 < len(missing) < len(files):
        raise Invalid(f"{', '.join(missing)} missing: TLS needs all of {', '.join(files)}", field=missing[0])
    if not missing and settings.insecure:
        raise Invalid("insecure = true allows plain TCP, and tls_cert is set: remove one of them", field="insecure")
    if missing and not settings.insecure and not is_loopback(settings.raft_host):
        raise Invalid(
            f"raft_host ({settings.raft_host}) is not a loopback address, and without TLS whoever reaches that port "
            "can change the registry: set tls_cert, tls_key and tls_ca (rollcall-node certs makes them), or, on a "
            "network that is yours alone, set insecure = true",
            field="insecure",
        )


def _check_members(settings: Settings) -> None:
    members = settings.members
    for member in members:
        if not re.match(ID_PATTERN, member.id):
            raise Invalid(
                f"members: expected an id of 1 to 64 of letters, digits, '.', '_', '-', got {member.id!r}",
                field="members",
            )
        host_and_port(member.raft, f"members: {member.id}")
        check_url(member.http, f"members: {member.id}")
    for what in ("id", "raft", "http"):
        values = [getattr(member, what) for member in members]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise Invalid(f"members: two members have the same {what} ({twice})", field="members")
    if len(members) > MEMBERS_MAX or len(members) % 2 == 0:
        raise Invalid(
            f"members lists {len(members)} nodes: use 1, 3, 5 or {MEMBERS_MAX}. An even number survives no more losses "
            "than one node fewer, and every write waits for one node more",
            field="members",
        )
    me = next((member for member in members if member.id == settings.node_id), None)
    if me is None:
        raise Invalid(
            f"node_id ({settings.node_id}) is not in members ({', '.join(member.id for member in members)})",
            field="node_id",
        )
    for field, mine, listed in (
        ("raft_advertise", settings.raft_advertise, me.raft),
        ("http_advertise", settings.http_advertise, me.http),
    ):
        if mine != listed:
            raise Invalid(
                f"members says that {me.id} is at {listed}, but {field} is {mine}: make them the same "
                f"({field} follows from host and port where it is not set)",
                field=field,
            )


def _check_dns(settings: Settings) -> None:
    for name in ("http", "raft"):
        host, port = getattr(settings, f"{name}_host"), getattr(settings, f"{name}_port")
        if settings.dns_host == host and settings.dns_port == port:
            raise Invalid(f"dns_port and {name}_port are both {port} on {host}: give each its own", field="dns_port")
    domain = settings.dns_domain.removesuffix(".")
    if not is_name(domain) or len(domain) > DOMAIN_LENGTH_MAX:
        raise Invalid(
            f"dns_domain: expected a domain of at most {DOMAIN_LENGTH_MAX} characters, like rollcall or "
            f"registry.example.com, got {settings.dns_domain!r}",
            field="dns_domain",
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", settings.dns_env):
        raise Invalid(
            f"dns_env: expected 1 to 128 of letters, digits, '.', '_', '-', got {settings.dns_env!r}", field="dns_env"
        )
    nameless = next((member.id for member in settings.members if not is_name(member.id)), None)
    if settings.dns_port and nameless is not None:
        raise Invalid(
            f"members: {nameless!r} cannot be part of a name in DNS (parts between dots have 1 to 63 characters): "
            "rename the node, or set dns_port = 0",
            field="members",
        )


def _check_relations(settings: Settings) -> None:
    s = settings
    if not s.election_timeout_s_min > 3 * s.heartbeat_period_s:
        raise Invalid(
            f"election_timeout_s_min ({s.election_timeout_s_min:g}) must be > 3 * heartbeat_period_s "
            f"({s.heartbeat_period_s:g}), or one lost message starts an election",
            field="election_timeout_s_min",
        )
    rules: tuple[tuple[str, str, str, bool, str], ...] = (
        ("election_timeout_s_max", ">", "election_timeout_s_min", s.election_timeout_s_max > s.election_timeout_s_min,
         "or all nodes stand at the same moment"),
        ("leader_fallback_s", ">=", "election_timeout_s_max", s.leader_fallback_s >= s.election_timeout_s_max,
         "or a leader steps down while nobody else would stand"),
        ("write_timeout_s", ">", "election_timeout_s_max", s.write_timeout_s > s.election_timeout_s_max,
         "or no write outlives an election"),
        ("lease_ttl_s", ">=", "lease_ttl_s_min", s.lease_ttl_s >= s.lease_ttl_s_min,
         "or the default lease is refused"),
        ("threads", ">", "threads_reserved", s.threads > s.threads_reserved,
         "or nothing is left for writes and watchers"),
        ("connection_limit", ">=", "threads", s.connection_limit >= s.threads,
         "or some threads never get a connection"),
        ("batch_body_bytes_max", ">=", "body_bytes_max", s.batch_body_bytes_max >= s.body_bytes_max,
         "or a batch may hold less than a single request"),
    )  # fmt: skip
    for name, relation, other, holds, reason in rules:
        if not holds:
            raise Invalid(
                f"{name} ({getattr(s, name):g}) must be {relation} {other} ({getattr(s, other):g}), {reason}",
                field=name,
            )
    if s.batch_body_bytes_max > COMMAND_BYTES_MAX:
        raise Invalid(
            f"batch_body_bytes_max ({s.batch_body_bytes_max}) must be <= {COMMAND_BYTES_MAX}, "
            "the largest command that the nodes can carry in one message",
            field="batch_body_bytes_max",
        )
