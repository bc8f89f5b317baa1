"""``./scripts/up``: a cluster on this machine, until Ctrl-C, or in the background."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from .local import DNS_OFFSET, NODES_MAX, PORT, RAFT_OFFSET, READY_S, LocalCluster
from .processes import LocalError, stop_running


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--nodes", default=3, show_default=True, metavar="N", help=f"How many nodes: 1, 3, 5 or {NODES_MAX}.")
@click.option(
    "--port",
    default=PORT,
    show_default=True,
    metavar="P",
    help=f"Node i (from 0) serves HTTP on P+i, and the other nodes on P+{RAFT_OFFSET}+i; P+{DNS_OFFSET}+i is for DNS.",
)
@click.option(
    "--data-dir",
    default=".rollcall",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the nodes keep their data, output and process ids (DIR/node-i). Kept between runs. "
    "[default: .rollcall in the repository]",
)
@click.option("--server", type=click.Choice(["waitress"]), default="waitress", show_default=True, help="HTTP server.")
@click.option("--detach", is_flag=True, help="Return once the nodes are ready, and leave them running.")
@click.option("--stop", is_flag=True, help="End the nodes that run in --data-dir, or those of --node.")
@click.option(
    "--node",
    "only",
    type=int,
    multiple=True,
    metavar="I",
    help="Only node I (from 0). May be repeated. Without: all that do not run yet.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any setting of the nodes, by its name in the table of settings. May be repeated.",
)
def main(
    *,
    nodes: int,
    port: int,
    data_dir: Path,
    server: str,
    detach: bool,
    stop: bool,
    only: tuple[int, ...],
    settings: tuple[str, ...],
) -> None:
    """Starts a Rollcall cluster on this machine and stops it on Ctrl-C.

    Where some of its nodes run already, it starts the others, and Ctrl-C stops only these.
    """
    try:
        if detach and stop:
            raise LocalError("--detach and --stop exclude each other")
        if stop:
            _stop(data_dir, only)
            return
        cluster = LocalCluster(
            nodes, data_dir=data_dir, port=port, settings={"server": server, **dict(map(_setting, settings))}
        )
        _run(cluster, detach=detach, only=only)
    except LocalError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise LocalError(f"--set expects NAME=VALUE, got {text!r}")
    return name.strip().replace("-", "_"), value


def _stop(data_dir: Path, only: tuple[int, ...]) -> None:
    stopped = stop_running(data_dir, tuple(f"node-{i}" for i in only))
    for directory, pid in stopped.items():
        click.echo(f"stopped {directory.name} (process {pid})")
    if not stopped:
        click.echo(f"no nodes run in {data_dir}")


class _Ended(BaseException):
    """A signal asked to end. Not an ``Exception``, so that nothing on the way takes it for a failure."""


def _run(cluster: LocalCluster, *, detach: bool, only: tuple[int, ...]) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        # Once is enough: a second Ctrl-C must not interrupt the stopping.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise _Ended

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, end)
    which = f"{cluster.nodes} nodes" if not only else ", ".join(map(cluster.node_id, only))
    click.echo(f"starting {which}, data in {cluster.data_dir} (at most {READY_S:g} s)")
    try:
        cluster.start(only=only)
        _greet(cluster, detach=detach)
        if not detach:
            _stand_by(cluster)
    except _Ended:
        click.echo("\nstopping")
        started = time.monotonic()
        cluster.stop()
        click.echo(f"stopped after {time.monotonic() - started:.1f} s; the data is kept")


def _greet(cluster: LocalCluster, *, detach: bool) -> None:
    first, middle, last = (cluster.url(i) for i in (0, cluster.nodes // 2, cluster.nodes - 1))
    instances = "/api/v1/services/cart/instances"
    up = (*cluster.started, *cluster.others)
    ready = 2 * len(up) > cluster.nodes
    click.echo("cluster ready" if ready else f"no leader yet: {cluster.nodes // 2 + 1} nodes are needed for one")
    for i in range(cluster.nodes):
        state = "  (ran already)" if i in cluster.others else "" if i in up else "  (does not run)"
        click.echo(f"  {cluster.node_id(i)}  {cluster.url(i)}{state}")
    click.echo("try:")
    click.echo(f"""  curl -X PUT {first}{instances}/cart-1 -d '{{"address":"10.0.0.1","port":8080}}'""")
    click.echo(f"  curl {middle}{instances}")
    click.echo(f"  curl -X DELETE {last}{instances}/cart-1")
    if detach:
        click.echo(f"stop with: ./scripts/up --stop --data-dir {cluster.data_dir}")
    elif cluster.others or len(up) < cluster.nodes:
        click.echo(f"Ctrl-C stops {', '.join(map(cluster.node_id, cluster.started))}")
    else:
        click.echo("Ctrl-C stops all of them")


def _stand_by(cluster: LocalCluster) -> None:
    """Until a signal comes; says so when a node ends on its own."""
    told: set[int] = set()
    while True:
        for i, code in cluster.exited().items():
            if i not in told:
                told.add(i)
                click.echo(
                    f"{cluster.node_id(i)} ended with exit code {code}; its output: {cluster.node_dir(i) / 'log'}"
                )
        if len(told) == len(cluster.started):
            raise LocalError("no node is left of those that were started here")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
