"""``rollcall``: what is registered, and changing it, from a terminal.

Exit codes: 0 done, 1 refused or not found, 2 wrong use, 3 certainly not done
(no node could), 4 perhaps done.
"""

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..replication.errors import NotDone, RollcallError, Unknown
from ..replication.records import DEFAULT_ENV, Event, Instance, Status
from .balancer import BALANCERS, Balancer, ZoneFirst
from .client import Client, Snapshot
from .discovery import Discovery
from .lease import Lease
from .members import DEFAULT_NODES

EXIT_REFUSED, EXIT_NOT_DONE, EXIT_UNKNOWN = 1, 3, 4

_STYLES = {
    "up": "green", "passing": "green", "down": "red", "critical": "red", "EVICT": "red", "DEREGISTER": "yellow",
    "REGISTER": "green", "warning": "yellow", "draining": "yellow", "leader": "bold green",
}  # fmt: skip


class Context:
    """What every command is given: the client, and how to print."""

    def __init__(self, nodes: str, env: str, timeout_s: float, as_json: bool) -> None:
        self.nodes: str = nodes
        self.client: Client = Client(nodes, env=env, timeout_s=timeout_s)
        self.as_json: bool = as_json
        # Where nobody looks, lines are not cut to the width of a screen.
        self.console: Console = Console(width=None if sys.stdout.isatty() else 200)

    def show(self, value: Any, table: Table) -> None:
        """``value`` as JSON where that was asked for, else ``table``."""
        if self.as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
        else:
            self.console.print(table)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command: takes the ``Context``, and ends with the exit code that an error means."""

    @functools.wraps(function)
    def run(context: Context, *args: Any, **options: Any) -> None:
        try:
            with context.client:
                function(context, *args, **options)
        except RollcallError as error:
            code = {NotDone: EXIT_NOT_DONE, Unknown: EXIT_UNKNOWN}
            _fail(error.message, next((code[kind] for kind in code if isinstance(error, kind)), EXIT_REFUSED))

    return click.pass_obj(run)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--nodes", envvar="ROLLCALL_NODES", default=DEFAULT_NODES, show_default=True, metavar="URLS",
    help="Nodes to ask, with commas between them; one is enough. Also ROLLCALL_NODES.",
)  # fmt: skip
@click.option("--env", default=DEFAULT_ENV, show_default=True, help="Namespace.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, metavar="S", help="Longest wait, in seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.version_option(package_name="rollcall-registry")
@click.pass_context
def main(context: click.Context, nodes: str, env: str, timeout_s: float, as_json: bool) -> None:
    """Looks into a Rollcall cluster, and registers services in it.

    \b
    Exit codes: 0 done, 1 refused or not found, 2 wrong use,
                3 certainly not done, 4 perhaps done.
    """
    try:
        context.obj = Context(nodes, env, timeout_s, as_json)
    except RollcallError as error:
        _fail(error.message, 2)


@main.command()
@command
def services(context: Context) -> None:
    """Lists the services (--env '*': of all namespaces)."""
    found = context.client.services()
    table = _table("service", "env", "instances", "serving", "health", "tags")
    for each in found:
        health = ", ".join(f"{count} {name}" for name, count in each.health.items() if count)
        tags = escape(", ".join(each.tags))
        table.add_row(each.name, each.env, str(each.instances), str(each.serving), health, tags)
    context.show(found, table)


@main.command()
@click.argument("service")
@click.option("--all", "everything", is_flag=True, help="Also those that should get no traffic.")
@click.option("--tag", "tags", multiple=True, help="Only those with this tag; may be repeated.")
@click.option("--zone", help="Only those of this zone.")
@click.option("--version", help="Only those of this version.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
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
        click.echo("the node that answered is not up to date: the list may not be complete", err=True)


def _instances(found: tuple[Instance, ...]) -> Table:
    table = _table("id", "address", "status", "health", "lease", "version", "zone", "tags", "registered")
    for each in found:
        table.add_row(
            escape(each.id),
            escape(f"{each.address}:{each.port}" if each.port else each.address),
            _styled(each.effective_status),
            _styled(each.health),
            "none" if each.ttl_s is None else f"{each.ttl_s:g} s",
            escape(each.version),
            escape(each.zone),
            escape(", ".join(each.tags)),
            datetime.fromtimestamp(each.reg_timestamp / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
        )
    return table


@main.command()
@click.argument("service")
@click.option("--id", default="", help="Default: SERVICE-ADDRESS:PORT.")
@click.option("--address", default="", help="Where callers reach it.")
@click.option("--port", default=0, type=click.IntRange(0, 65_535), help="Where callers reach it.")
@click.option("--ttl", "ttl_s", type=float, metavar="S", help="Lease in seconds; without: the cluster's default.")
@click.option("--no-lease", is_flag=True, help="It stays until it is deregistered.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--version", default="")
@click.option("--zone", default="")
@click.option("--if-absent", is_flag=True, help="Fail if it is registered already.")
@command
def register(
    context: Context, service: str, ttl_s: float | None, no_lease: bool, tags: tuple[str, ...], meta: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Registers an instance of SERVICE, or replaces it."""
    if no_lease and ttl_s is not None:
        raise click.UsageError("--ttl and --no-lease exclude each other")
    if not options["id"] and not (options["address"] and options["port"]):
        raise click.UsageError("give --address and --port, or --id")
    pairs = dict(_pair(text) for text in meta)
    lease: Any = None if no_lease else "default" if ttl_s is None else ttl_s
    made = context.client.register(service, ttl_s=lease, tags=tags, meta=pairs, **options)
    context.show(made, _instances((made,)))


def _pair(text: str, option: str = "--meta") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.UsageError(f"{option} expects KEY=VALUE, got {text!r}")
    return key, value


@main.command()
@click.argument("service")
@click.argument("id")
@command
def deregister(context: Context, service: str, id: str) -> None:
    """Removes instance ID of SERVICE."""
    context.client.deregister(service, id)
    click.echo(f"deregistered {id}")


@main.command()
@click.argument("service")
@click.argument("id")
@command
def heartbeat(context: Context, service: str, id: str) -> None:
    """Renews the lease of instance ID of SERVICE."""
    renewal = context.client.heartbeat(service, id)
    lease = "it has no lease" if renewal.ttl_s is None else f"lease {renewal.ttl_s:g} s"
    again = "" if renewal.next_heartbeat_ms is None else f", the next one in {renewal.next_heartbeat_ms / 1000:g} s"
    click.echo(f"renewed {id}: {lease}{again}")


@main.command()
@click.argument("service")
@click.argument("id")
@click.argument("status", type=click.Choice([*get_args(Status), "none"]))
@click.option("--reason", default="", help="Why; shown with the instance.")
@command
def status(context: Context, service: str, id: str, status: Any, reason: str) -> None:
    """Overrides the status of instance ID of SERVICE ("none": no longer)."""
    made = context.client.set_status(service, id, None if status == "none" else status, reason=reason)
    context.show(made, _instances((made,)))


@main.command()
@click.argument("services", nargs=-1)
@command
def watch(context: Context, services: tuple[str, ...]) -> None:
    """Prints every change of SERVICES (none named: of all), until Ctrl-C."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    for change in context.client.watch(*services):
        if context.as_json:
            click.echo(json.dumps({"type": type(change).__name__.lower(), **msgspec.to_builtins(change)}))
        elif isinstance(change, Snapshot):
            context.console.print(f"{change.index:>8} {len(change.instances)} instances; waiting for changes")
        else:
            context.console.print(_change(change), soft_wrap=True)


def _change(change: Event) -> Text:
    what = f" {change.instance.service}  {change.instance.id}"
    return Text.assemble((f"{change.index:>8} ", "dim"), _styled(f"{change.kind:<13}", change.kind), what)


@main.command()
@command
def members(context: Context) -> None:
    """Lists the nodes of the cluster, and says who leads."""
    view = context.client.cluster()
    table = _table("node", "role", "reachable", "http", "between nodes")
    for each in view.members:
        reachable = Text("yes") if each.reachable else Text("no", style="red")
        table.add_row(each.id, _styled(each.role), reachable, each.http, each.raft)
    context.show(view, table)
    if context.as_json:
        return
    leader = view.leader or "nobody"
    click.echo(f"as seen by {view.node}: {leader} leads, term {view.term}, index {view.applied_index}")
    if view.protection.get("active"):
        click.echo(f"evictions are held: {view.protection.get('reason', 'self-protection')}")
    if view.disk_error:
        click.echo(f"{view.node} cannot write to its disk: {view.disk_error}")


@main.command()
@click.argument("node", default="")
@command
def transfer(context: Context, node: str) -> None:
    """Has leadership handed to NODE (none named: to whoever is most caught up).

    Before a leader's host is rebooted, say. SIGTERM of the leader does it by itself.
    """
    click.echo(f"{context.client.transfer(node)} leads now")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="0: any that is free.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="NAME=SERVICE",
    help="What a name in a path or host stands for, e.g. users=user-service; may be repeated.",
)
@click.option("--balancer", default="ewma", show_default=True, type=click.Choice(sorted(BALANCERS)))
@click.option("--zone", default="", help="Instances of this zone first, while it has two.")
@click.option("--tries", default=3, show_default=True, type=click.IntRange(1, 10), help="Instances tried at most.")
@click.option("--try-timeout", "try_s", default=10.0, show_default=True, metavar="S", help="Each wait for an instance.")
@click.option("--total-timeout", "total_s", default=30.0, show_default=True, metavar="S", help="All of them together.")
@click.option("--keep", type=click.Path(dir_okay=False), help="Keeps lists there, to start while the registry is down.")
@click.option("--threads", default=64, show_default=True, type=click.IntRange(1, 1000), help="Requests at a time.")
@click.option("--body-max", "body_bytes_max", default=64 * 1024 * 1024, show_default=True, metavar="BYTES")
@command
def gateway(
    context: Context, host: str, port: int, routes: tuple[str, ...], balancer: str, zone: str, tries: int, try_s: float,
    total_s: float, keep: str | None, threads: int, body_bytes_max: int,
) -> None:  # fmt: skip
    """Serves HTTP for all services: /api/SERVICE/... goes to a healthy instance.

    \b
    curl localhost:8080/api/cart/items          an instance of cart is asked for /items
    curl -H 'X-Service: cart' localhost:8080/items
    curl localhost:8080/-/services              what it knows, and how calls go

    Without an instance: 503. What certainly did not arrive, and what may be
    repeated and got no answer, is tried again at another instance.
    """
    from .gateway import Gateway, GatewaySettings, serve

    made = BALANCERS[balancer]
    chosen: Callable[[], Balancer] = (lambda: ZoneFirst(zone, made())) if zone else made
    named = dict(_pair(route, "--route") for route in routes)
    settings = GatewaySettings(routes=named, tries=tries, try_s=try_s, total_s=total_s)
    try:
        options: dict[str, Any] = {"balancer": chosen, "keep": keep, "follow_policies": True}
        with Discovery(context.nodes, env=context.client.env, **options) as discovery:
            serve(
                Gateway(discovery, settings), host, port, threads=threads, body_bytes_max=body_bytes_max,
                ready=lambda at: click.echo(f"gateway ready  http://{host}:{at}"),
            )  # fmt: skip
    except OSError as error:
        _fail(f"cannot listen on {host}:{port}: {error.strerror}", 2)


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--service", required=True, help="Of which it is an instance.")
@click.option("--port", default=0, type=click.IntRange(0, 65_535), help="Where callers reach it.")
@click.option("--address", default="", help="Where callers reach it; default: this host's, towards the registry.")
@click.option("--id", default="", help="Default: SERVICE-ADDRESS:PORT.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--version", default="")
@click.option("--zone", default="")
@click.option("--ttl", "ttl_s", type=float, metavar="S", help="Lease in seconds; without: the cluster's default.")
@click.option("--check", metavar="URL", help="http://… that must answer 2xx, or tcp://HOST:PORT; without: it is well.")
@click.option("--interval", "interval_s", default=5.0, show_default=True, metavar="S", help="Between two checks.")
@click.option("--check-timeout", "check_s", default=2.0, show_default=True, metavar="S", help="Of one check.")
@click.option("--failures", default=3, show_default=True, type=click.IntRange(min=1), help="In a row take it out.")
@click.option("--drain", "drain_s", default=1.0, show_default=True, metavar="S", help="From taking it out to its end.")
@click.option("--stop-timeout", "stop_s", default=10.0, show_default=True, metavar="S", help="Then it is killed.")
@click.option("--discovery-port", type=click.IntRange(0, 65_535), help="Offers discovery on this port of loopback.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
@command
def sidecar(
    context: Context, service: str, ttl_s: float | None, tags: tuple[str, ...], meta: tuple[str, ...],
    check: str | None, interval_s: float, check_s: float, failures: int, drain_s: float, stop_s: float,
    discovery_port: int | None, program: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Starts PROGRAM and registers it while its check passes.

    \b
    rollcall sidecar --service cart --port 8080 --check http://127.0.0.1:8080/health -- ./start-cart
    rollcall sidecar --service db --port 5432 --check tcp://127.0.0.1:5432      (it runs already)

    SIGTERM takes the instance out first and then ends the program. Other
    signals and the exit code are passed through. With --discovery-port the
    program finds others at $ROLLCALL_DISCOVERY/instances/SERVICE.
    """
    from .sidecar import Check, Sidecar

    logging.basicConfig(level=logging.INFO, format="sidecar: %(message)s")
    pairs = dict(_pair(text) for text in meta)
    lease: Any = "default" if ttl_s is None else ttl_s

    def make() -> Lease:
        return Lease(
            context.nodes, service=service, env=context.client.env, ttl_s=lease, tags=tags, meta=pairs, **options
        )

    make()  # what no registry takes is said before anything is started
    checked = Check(target=check, interval_s=interval_s, timeout_s=check_s, failures=failures) if check else None
    discovery = None if discovery_port is None else Discovery(context.nodes, env=context.client.env)
    running = Sidecar(
        make, checked, command=program, drain_s=drain_s, stop_s=stop_s, discovery=discovery,
        discovery_port=discovery_port or 0,
    )  # fmt: skip
    try:
        sys.exit(running.run())
    except OSError as error:
        _fail(f"{' '.join(program)}: {error.strerror}", 2)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table


def _styled(text: str, style: str | None = None) -> Text:
    return Text(text, style=_STYLES.get(style or text, ""))


if __name__ == "__main__":
    main()
