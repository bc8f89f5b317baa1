"""``rollcall``: what is registered, and changing it, from a terminal.

Exit codes: 0 done, 1 refused or not found, 2 wrong use, 3 certainly not done
(no node could), 4 perhaps done.
"""

import io
import signal
import sys
from datetime import UTC, datetime
from typing import Any, get_args

import click
from rich.text import Text

from ...replication.policies import Policy, policy_of
from ...replication.records import Event, Instance, Status
from ..lease import check_from
from ..watching import Snapshot
from . import serving
from .terminal import (
    Context,
    Duration,
    Number,
    Table,
    as_json,
    author,
    command,
    common,
    pair,
    place,
    say,
    styled,
    visible,
    whole,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rollcall-registry")
@click.pass_context
def main(context: click.Context, **given: Any) -> None:
    """Shows what is registered in a Rollcall cluster, and changes it.

    The options may also stand after the command.

    \b
    Exit codes: 0 done, 1 refused or not found, 2 wrong use,
                3 certainly not done, 4 perhaps done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    context.obj = given


main.params[:0] = common()


@main.command()
@command
def services(context: Context) -> None:
    """Lists the services (--env '*': of all namespaces)."""
    found = context.client.services()
    table = Table("service", "env", "instances", "serving", "health", "tags")
    for each in found:
        health = ", ".join(f"{count} {name}" for name, count in each.health.items() if count)
        tags = ", ".join(each.tags)
        table.add_row(each.name, each.env, str(each.instances), str(each.serving), health, tags)
    context.show(found, table)


@main.command()
@click.argument("service")
@click.option("--all", "everything", is_flag=True, help="Also those that should get no traffic.")
@click.option("--tag", "tags", multiple=True, help="Only those with this tag; may be repeated.")
@click.option("--zone", help="Only those of this zone.")
@click.option("--version", help="Only those of this version.")
@click.option("--limit", type=click.IntRange(min=1), help="Show no more than this many.")
@command
def instances(
    context: Context,
    service: str,
    everything: bool,
    tags: tuple[str, ...],
    zone: str | None,
    version: str | None,
    limit: int | None,
) -> None:
    """Lists the instances of SERVICE that should get traffic."""
    listing = context.client.instances(
        service, health="any" if everything else None, tags=tags, zone=zone, version=version, limit=limit
    )
    context.show(listing, _instances(listing.instances))
    if not listing.complete:
        say("the node that answered is not up to date: the list may not be complete", err=True)


def _instances(found: tuple[Instance, ...]) -> Table:
    table = Table("id", "address", "status", "health", "lease", "version", "zone", "tags", "registered")
    for each in found:
        table.add_row(
            each.id,
            place(each.address, each.port),
            styled(each.effective_status),
            styled(each.health),
            "none" if each.ttl_s is None else f"{each.ttl_s:g} s",
            each.version,
            each.zone,
            ", ".join(each.tags),
            _when(each.reg_timestamp),
        )
    return table


def _when(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@main.command()
@click.argument("service")
@click.option("--id", default="", help="Default: SERVICE-ADDRESS:PORT.")
@click.option("--address", default="", help="Where callers reach it.")
@click.option("--port", default=0, type=click.IntRange(0, 65_535), help="Where callers reach it.")
@click.option("--ttl", "ttl_s", type=Number(), metavar="S", help="Lease in seconds; without: the cluster's default.")
@click.option("--no-lease", is_flag=True, help="It never expires: it stays until it is deregistered.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--version", default="")
@click.option("--zone", default="")
@click.option(
    "--check",
    metavar="URL",
    help="Health check that the nodes make: http://…, tcp://HOST:PORT or grpc://HOST:PORT/SERVICE.",
)
@click.option("--if-absent", is_flag=True, help="Fail if it is registered already.")
@command
def register(
    context: Context, service: str, ttl_s: float | None, no_lease: bool, tags: tuple[str, ...], meta: tuple[str, ...],
    check: str | None, **options: Any,
) -> None:  # fmt: skip
    """Registers an instance of SERVICE, or replaces it."""
    if no_lease and ttl_s is not None:
        raise click.UsageError("--ttl and --no-lease exclude each other")
    if not options["id"] and not (options["address"] and options["port"]):
        raise click.UsageError("give --address and --port, or --id")
    pairs = dict(pair(text) for text in meta)
    lease: Any = None if no_lease else "default" if ttl_s is None else ttl_s
    checks = {"checks": [check_from(check)]} if check else {}
    made = context.client.register(service, ttl_s=lease, tags=tags, meta=pairs, **checks, **options)
    context.show(made, _instances((made,)))


@main.command()
@click.argument("service")
@click.argument("id")
@click.option(
    "--registration",
    default=0,
    type=click.IntRange(min=0),
    metavar="INDEX",
    help="Only if its reg_index is still this one.",
)
@command
def deregister(context: Context, service: str, id: str, registration: int) -> None:
    """Removes instance ID of SERVICE."""
    context.client.deregister(service, id, registration=registration)
    say(f"deregistered {id}")


@main.command()
@click.argument("service")
@click.argument("id")
@command
def heartbeat(context: Context, service: str, id: str) -> None:
    """Renews the lease of instance ID of SERVICE."""
    renewal = context.client.heartbeat(service, id)
    lease = "it has no lease" if renewal.ttl_s is None else f"lease {renewal.ttl_s:g} s"
    again = "" if renewal.next_heartbeat_ms is None else f", the next one in {renewal.next_heartbeat_ms / 1000:g} s"
    say(f"renewed {id}: {lease}{again}")


@main.command()
@click.argument("service")
@click.argument("id")
@click.argument("status", type=click.Choice([*get_args(Status), "none"]))
@click.option("--reason", default="", help="Why; shown with the instance.")
@click.option(
    "--for", "for_s", type=Duration(), help="How long it lasts: 90s, 30m, 2h, 7d. Default: until it is removed."
)
@click.option("--unregistered", is_flag=True, help="Also if no instance has that id yet.")
@command
def status(
    context: Context, service: str, id: str, status: Any, reason: str, for_s: float | None, unregistered: bool
) -> None:
    """Overrides the status of instance ID of SERVICE; "none" removes the override.

    It belongs to the id: it survives deregistration, eviction and restarts of the
    instance, until it is removed or its time is up.
    """
    if status == "none" and for_s is not None:
        raise click.UsageError('"none" takes no --for')
    wanted = None if status == "none" else status
    made = context.client.set_status(service, id, wanted, reason=reason, for_s=for_s, unregistered=unregistered)
    if made is None and not context.as_json:
        say(f"{id} is not registered: {'no override is left' if status == 'none' else f'it will be {status}'}")
        return
    context.show(made, _instances(() if made is None else (made,)))


@main.command()
@command
def overrides(context: Context) -> None:
    """Lists the status overrides (--env '*': of all namespaces)."""
    found = context.client.overrides()
    table = Table("id", "service", "status", "until", "set", "is", "why")
    for each in found:
        until = "removed" if each.until is None else _when(each.until)
        there = "registered" if each.registered else Text("gone", style="yellow")
        why = each.reason
        table.add_row(each.id, each.service, styled(each.status), until, _when(each.set_at), there, why)
    context.show(found, table)


@main.command()
@click.argument("service")
@click.argument("id")
@command
def checks(context: Context, service: str, id: str) -> None:
    """Shows the health checks of instance ID of SERVICE, and their last answers."""
    found = context.client.checks(service, id)
    table = Table("check", "kind", "state", "asked by", "took", "answer")
    for each in found:
        took = "" if each.latency_ms is None else f"{each.latency_ms:.1f} ms"
        table.add_row(each.name, each.kind, styled(each.state), each.node, took, each.output[:200])
    context.show(found, table)


@main.command()
@click.option("--changes", is_flag=True, help="List who changed them and why, the last change first.")
@command
def policies(context: Context, changes: bool) -> None:
    """Lists the routing policies: which share of a service's calls goes where."""
    if changes:
        made = context.client.policy_changes()
        table = Table("index", "when", "policy", "what", "by", "why")
        for each in made:
            what = "removed" if each.policy is None else _routed(each.policy)
            table.add_row(str(each.index), _when(each.changed_at), each.name, what, each.author, each.reason)
        context.show(made, table)
        return
    found = context.client.policies()
    table = Table("policy", "service", "env", "calls", "changed", "by", "why")
    for record in found:
        policy, by = record.policy, record.author
        changed = _when(record.changed_at)
        table.add_row(record.name, policy.service, policy.env, _routed(policy), changed, by, record.reason)
    context.show(found, table)


def _routed(policy: Policy) -> str:
    whom = [f"tag {tag}" for tag in policy.tags] + [f"{name}={value}" for name, value in policy.match.items()]
    which = f"{policy.percent:g} %"
    if policy.header:
        which = f"with {policy.header}: {policy.value}" if policy.value else f"with {policy.header}"
    return f"{which} to {', '.join(whom) or 'all'}"


@main.command("set-policy")
@click.argument("name")
@click.argument("service")
@click.option("--percent", type=Number(), help="This share of the calls; default: 100.")
@click.option("--header", default="", help="Calls that carry this header, instead of a share.")
@click.option("--value", default="", help="What that header must be.")
@click.option("--tag", "tags", multiple=True, help="To instances with this tag; may be repeated.")
@click.option(
    "--match",
    multiple=True,
    metavar="KEY=VALUE",
    help="To instances with this version, zone, region or metadata; may be repeated.",
)
@click.option("--author", "by", default="", help="Who changes it; default: your user name.")
@click.option("--reason", default="", help="Why; kept with the change.")
@command
def set_policy(
    context: Context, name: str, service: str, percent: float | None, header: str, value: str, tags: tuple[str, ...],
    match: tuple[str, ...], by: str, reason: str,
) -> None:  # fmt: skip
    """Puts routing policy NAME in force, for calls to SERVICE.

    \b
    rollcall set-policy canary cart --percent 1 --match version=2
    rollcall set-policy testers cart --header X-Tester --tag next

    Gateways follow it within seconds. While no instance matches, all calls go to
    the others.
    """
    fields: dict[str, Any] = {"service": service, "env": context.client.env, "tags": tags, "header": header}
    fields |= {"value": value, "match": dict(pair(text, "--match") for text in match)}
    if percent is not None:
        fields["percent"] = percent
    answer = context.client.set_policy(name, policy_of(fields), author=author(by), reason=reason)
    if context.as_json:
        click.echo(as_json(answer, indent=2))
    else:
        say(f"policy {name} is in force")
    warnings = answer.get("warnings")
    for warning in warnings if isinstance(warnings, list) else ():
        say(f"warning: {warning}", err=True)


@main.command("remove-policy")
@click.argument("name")
@click.option("--author", "by", default="", help="Who changes it; default: your user name.")
@click.option("--reason", default="", help="Why; kept with the change.")
@command
def remove_policy(context: Context, name: str, by: str, reason: str) -> None:
    """Removes routing policy NAME."""
    context.client.set_policy(name, None, author=author(by), reason=reason)
    say(f"policy {name} is removed")


@main.command()
@click.argument("services", nargs=-1)
@command(staying=True)
def watch(context: Context, services: tuple[str, ...]) -> None:
    """Prints every change of SERVICES (default: of all), until Ctrl-C."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    history = ""
    for change in context.client.watch(*services):
        if context.as_json:
            click.echo(as_json({"type": type(change).__name__.lower(), **whole(change)}))
        elif isinstance(change, Snapshot):
            anew = "the registry began anew: " if history and change.history not in ("", history) else ""
            history = change.history or history
            context.line(f"{change.index:>8} {anew}{len(change.instances)} instances; waiting for changes")
        else:
            context.line(_change(change))


def _change(change: Event) -> Text:
    what = f" {change.instance.service}  {change.instance.id}"
    return Text.assemble((f"{change.index:>8} ", "dim"), styled(f"{change.kind:<13}", change.kind), visible(what))


@main.command()
@command
def members(context: Context) -> None:
    """Lists the nodes of the cluster, and says who leads."""
    view = context.client.cluster()
    table = Table("node", "role", "reachable", "http", "between nodes")
    for each in view.members:
        reachable = Text("yes") if each.reachable else Text("no", style="red")
        table.add_row(each.id, styled(each.role), reachable, each.http, each.raft)
    context.show(view, table)
    if context.as_json:
        return
    leader = view.leader or "nobody"
    say(f"as seen by {view.node}: {leader} leads, term {view.term}, index {view.applied_index}")
    if view.protection.get("active"):
        say(f"evictions are held: {view.protection.get('reason', 'self-protection')}")
    if view.disk_error:
        say(f"{view.node} has a disk that needs looking after: {view.disk_error}")
    if view.snapshot_error:
        say(f"{view.node} writes no state file: {view.snapshot_error}")
    if view.clock_error:
        say(f"{view.node} should not lead: {view.clock_error}")


@main.command()
@click.argument("node", default="")
@command
def transfer(context: Context, node: str) -> None:
    """Hands leadership over to NODE, or to the follower that is most caught up.

    Useful before the leader's host is rebooted, say. A leader that gets SIGTERM does
    it by itself.
    """
    say(f"{context.client.transfer(node)} leads now")


main.add_command(serving.gateway)
main.add_command(serving.sidecar)

if __name__ == "__main__":
    main()
