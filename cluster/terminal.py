"""How a command of ``rollcall`` is run: what it is given, how it prints, and which exit code an error means."""

import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..replication.errors import NotDone, RollcallError, Unknown
from .client import Client

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


class Duration(click.ParamType):
    """A time span in words, ``90s`` or ``2h``, as seconds; a bare number is seconds."""

    name = "duration"
    _units: Mapping[str, int] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{value!r} is no time span: 90s, 30m, 2h or 7d, say", param, ctx)
        return float(found[1]) * self._units[found[2]]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command: takes the ``Context``, and ends with the exit code that an error means."""

    @functools.wraps(function)
    def run(context: Context, *args: Any, **options: Any) -> None:
        try:
            with context.client:
                function(context, *args, **options)
        except RollcallError as error:
            code = {NotDone: EXIT_NOT_DONE, Unknown: EXIT_UNKNOWN}
            fail(error.message, next((code[kind] for kind in code if isinstance(error, kind)), EXIT_REFUSED))

    return click.pass_obj(run)


def fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def pair(text: str, option: str = "--meta") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.UsageError(f"{option} expects KEY=VALUE, got {text!r}")
    return key, value


def table_of(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table


def styled(text: str, style: str | None = None) -> Text:
    return Text(text, style=_STYLES.get(style or text, ""))
