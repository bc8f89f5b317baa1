"""The commands that stay: ``rollcall gateway`` and ``rollcall sidecar``."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import click

from ..balancer import BALANCERS, Balancer, ZoneFirst
from ..discovery import Discovery
from ..lease import Lease
from .terminal import Context, Number, command, fail, pair, say, seconds_option


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="0: any that is free.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="NAME=SERVICE",
    help="What a name in a path or host stands for, e.g. users=user-service; may be repeated.",
)
@click.option(
    "--balancer",
    default="ewma",
    show_default=True,
    type=click.Choice(sorted(BALANCERS)),
    help="How an instance is chosen.",
)
@click.option("--zone", default="", help="Prefer instances of this zone, while it has at least two.")
@click.option(
    "--tries",
    default=5,
    show_default=True,
    type=click.IntRange(1, 10),
    help="Most instances asked for one request; refused connections do not count.",
)
@seconds_option(
    "--try-timeout", "try_s", 10.0, "Longest wait for one instance (also between two pieces of its answer)."
)
@seconds_option("--total-timeout", "total_s", 30.0, "Longest wait for all tries of one request.")
@click.option(
    "--keep",
    type=click.Path(dir_okay=False),
    help="File to keep the lists in, so that it can start while the registry is down.",
)
@click.option("--threads", default=64, show_default=True, type=click.IntRange(1, 1000), help="Requests at once.")
@click.option(
    "--trusted-network",
    "trusted",
    multiple=True,
    metavar="CIDR",
    help="Network of proxies whose X-Forwarded-* headers are believed; may be repeated.",
)
@click.option(
    "--body-max",
    "body_bytes_max",
    default=64 * 1024 * 1024,
    type=click.IntRange(min=1),
    show_default=True,
    metavar="BYTES",
    help="Largest body of a request.",
)
@command(staying=True)
def gateway(
    context: Context, host: str, port: int, routes: tuple[str, ...], balancer: str, zone: str, tries: int, try_s: float,
    total_s: float, keep: str | None, threads: int, trusted: tuple[str, ...], body_bytes_max: int,
) -> None:  # fmt: skip
    """Serves HTTP for all services: /api/SERVICE/... goes to a healthy instance.

    \b
    curl localhost:8080/api/cart/items          an instance of cart is asked for /items
    curl -H 'X-Service: cart' localhost:8080/items
    curl localhost:8080/-/services              instances, and how calls to them go

    Without an instance: 503. A request is retried at another instance if it
    certainly did not arrive, or if its method is idempotent and no answer came.
    """
    from ..gateway import Gateway, GatewaySettings, serve

    made = BALANCERS[balancer]
    chosen: Callable[[], Balancer] = (lambda: ZoneFirst(zone, made())) if zone else made
    named = dict(pair(route, "--route") for route in routes)
    settings = GatewaySettings(routes=named, tries=tries, try_s=try_s, total_s=total_s, trusted=trusted)
    try:
        options: dict[str, Any] = {"balancer": chosen, "keep": keep, "follow_policies": True}
        with Discovery(context.nodes, env=context.client.env, **options) as discovery:
            serve(
                Gateway(discovery, settings), host, port, threads=threads, body_bytes_max=body_bytes_max,
                ready=lambda at: say(f"gateway ready  http://{host}:{at}"),
            )  # fmt: skip
    except OSError as error:
        fail(error.strerror or str(error), 2)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--service", required=True, help="Service that PROGRAM is an instance of.")
@click.option("--port", default=0, type=click.IntRange(0, 65_535), help="Where callers reach it.")
@click.option("--address", default="", help="Where callers reach it; default: this host's, towards the registry.")
@click.option("--id", default="", help="Default: SERVICE-ADDRESS:PORT.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--version", default="")
@click.option("--zone", default="")
@click.option("--ttl", "ttl_s", type=Number(), metavar="S", help="Lease in seconds; without: the cluster's default.")
@click.option(
    "--check", metavar="URL", help="http://… that must answer 2xx, or tcp://HOST:PORT; without: always passing."
)
@seconds_option("--interval", "interval_s", 5.0, "Time between two checks.")
@seconds_option("--check-timeout", "check_s", 2.0, "Longest wait for one check.")
@click.option(
    "--failures",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Checks that must fail in a row before the instance is deregistered.",
)
@seconds_option("--drain", "drain_s", 1.0, "Time to drain: from deregistering to SIGTERM.", least=0.0)
@seconds_option("--stop-timeout", "stop_s", 10.0, "Longest wait for the program to end after SIGTERM; then SIGKILL.")
@click.option(
    "--discovery-port",
    type=click.IntRange(0, 65_535),
    help="Port of loopback on which PROGRAM can look up services; 0: any that is free.",
)
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
@command(staying=True)
def sidecar(
    context: Context, service: str, ttl_s: float | None, tags: tuple[str, ...], meta: tuple[str, ...],
    check: str | None, interval_s: float, check_s: float, failures: int, drain_s: float, stop_s: float,
    discovery_port: int | None, program: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Starts PROGRAM and registers it while its check passes.

    \b
    rollcall sidecar --service cart --port 8080 --check http://127.0.0.1:8080/health -- ./start-cart
    rollcall sidecar --service db --port 5432 --check tcp://127.0.0.1:5432      (it runs already)

    SIGTERM deregisters the instance, drains (--drain), and then ends the program.
    Other signals and the exit code are passed through. With --discovery-port the
    program finds others at $ROLLCALL_DISCOVERY/instances/SERVICE.
    """
    from ..sidecar import Check, Sidecar

    logging.basicConfig(level=logging.INFO, format="sidecar: %(message)s")
    pairs = dict(pair(text) for text in meta)
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
        fail(f"{' '.join(program)}: {error.strerror}", 2)
