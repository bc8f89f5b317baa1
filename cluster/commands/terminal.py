"""How a command of ``rollcall`` is run: what it is given, how it prints, and which exit code an error means.

Whatever comes from elsewhere (tags, notes, answers of checks, errors) may hold characters that a terminal
obeys. They are shown as escapes, in ``visible``, through which everything goes that is printed here.
"""

import functools
import getpass
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import msgspec
from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ...replication.errors import NotDone, RollcallError, Unknown
from ...replication.places import authority
from ...replication.records import DEFAULT_ENV
from ..client import Client
from ..members import DEFAULT_NODES

EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_DONE, EXIT_UNKNOWN = 1, 2, 3, 4

SECONDS_MAX = 86_400.0
SILENT_S = 1.0
"""After this time without an answer a person is told what is being waited for."""

_STYLES = {
    "up": "green", "passing": "green", "down": "red", "critical": "red", "EVICT": "red", "DEREGISTER": "yellow",
    "REGISTER": "green", "warning": "yellow", "draining": "yellow", "leader": "bold green",
}  # fmt: skip

# C0 and C1, what reverses the direction of writing, other line ends, halves of characters.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""``text`` with every character that a terminal would obey shown as an escape (``\x1b``)."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str, *, err: bool = False) -> None:
    """Prints one line."""
    click.echo(visible(text), err=err)


def fail(message: str, code: int) -> None:
    say(f"error: {message}", err=True)
    sys.exit(code)


def whole(value: Any) -> Any:
    """``value`` as plain data with every field, those at their defaults as well, which encoding leaves out."""
    if isinstance(value, Struct):
        tag = {value.__struct_config__.tag_field: value.__struct_config__.tag} if value.__struct_config__.tag else {}
        return tag | {field.encode_name: whole(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
    if isinstance(value, Mapping):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(each) for each in value]
    return msgspec.to_builtins(value)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that is whole, and holds nothing that a terminal obeys or cannot show."""
    ascii = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
    text = json.dumps(whole(value), indent=indent, ensure_ascii=ascii)
    # Outside of strings there is no such character but the ends of lines that ``indent`` makes.
    return _OBEYED.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


class Table:
    """Rows to print: in columns where that fits, else one line for each field, as ``psql`` does.

    Where nobody looks nothing is folded or cut. Columns that hold nothing are left out.
    """

    def __init__(self, *columns: str) -> None:
        self.columns: tuple[str, ...] = columns
        self.rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        assert len(cells) == len(self.columns)
        self.rows.append(tuple(Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells))

    def lines(self, width: int | None) -> list[Text]:
        """What to print on a terminal of ``width``; None: as wide as it is."""
        shown = [n for n in range(len(self.columns)) if not self.rows or any(row[n].plain for row in self.rows)]
        rows = [tuple(row[n] for n in shown) for row in self.rows]
        heads = tuple(Text(self.columns[n], style="bold") for n in shown)
        widths = [max(cell_len(row[n].plain) for row in (heads, *rows)) for n in range(len(shown))]
        if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
            return [_joined(row, widths) for row in (heads, *rows)]
        margin = max(cell_len(head.plain) for head in heads)
        lines: list[Text] = []
        for row in rows:
            lines += [Text()] if lines else []
            lines += [_joined(pair, [margin, 0]) for pair in zip(heads, row, strict=True) if pair[1].plain]
        return lines


def _joined(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text("  ").join(
        Text.assemble(cell, " " * max(0, width - cell_len(cell.plain)))
        for cell, width in zip(cells, widths, strict=True)
    )
    line.rstrip()
    return line


class Context:
    """What every command is given: the client, and how to print."""

    def __init__(self, nodes: str, env: str, timeout_s: float, as_json: bool) -> None:
        self.nodes: str = nodes
        self.client: Client = Client(nodes, env=env, timeout_s=timeout_s)
        self.as_json: bool = as_json
        self.console: Console = Console(highlight=False)

    def show(self, value: Any, table: Table) -> None:
        """``value`` as JSON where that was asked for, else ``table``."""
        if self.as_json:
            click.echo(as_json(value, indent=2))
            return
        for line in table.lines(self.console.width if sys.stdout.isatty() else None):
            self.line(line)

    def line(self, line: str | Text) -> None:
        """Prints one line, which is left to the terminal to break."""
        self.console.print(Text(visible(line)) if isinstance(line, str) else line, soft_wrap=True)


# What is given on the command line


class Seconds(click.ParamType):
    """A number of seconds that can be waited: no infinity, nothing that is no number, nothing below ``least``."""

    name = "seconds"

    def __init__(self, least: float = 0.001, most: float = SECONDS_MAX) -> None:
        self._least: float = least
        self._most: float = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = _number(value)
        if not self._least <= number <= self._most:
            self.fail(f"{value!r}: expected a number from {self._least:g} to {self._most:g}", param, ctx)
        return number


class Number(click.ParamType):
    """Any number that is one; its bounds are the cluster's to say."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = _number(value)
        if not math.isfinite(number):
            self.fail(f"{value!r}: expected a number", param, ctx)
        return number


def _number(value: Any) -> float:
    """NaN for what is none."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def seconds_option(flag: str, name: str, default: float, help: str, *, least: float = 0.001) -> Callable[..., Any]:
    """An option that is a number of seconds."""
    return click.option(flag, name, default=default, type=Seconds(least), show_default=True, metavar="S", help=help)


class Duration(click.ParamType):
    """A time span in words, ``90s`` or ``2h``, as seconds; a bare number is seconds."""

    name = "duration"
    _units: Mapping[str, int] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([smhd]?)", str(value), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is no time span: 90s, 30m, 2h or 7d, say", param, ctx)
        return float(found[1]) * self._units[found[2]]


def common(*, staying: bool = False) -> list[click.Option]:
    """The options that may stand before a command and after it; those of commands that stay are fewer."""
    options = [
        click.Option(
            ["--nodes", "--node"],
            envvar="ROLLCALL_NODES",
            default=DEFAULT_NODES,
            show_default=True,
            metavar="URLS",
            help="Nodes to ask, with commas between them; one is enough. Also ROLLCALL_NODES.",
        ),
        click.Option(["--env"], default=DEFAULT_ENV, show_default=True, help="Namespace."),
        click.Option(
            ["--timeout", "timeout_s"],
            default=10.0,
            type=Seconds(),
            show_default=True,
            metavar="S",
            help="Longest wait, in seconds.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of tables."),
    ]
    return options[:2] if staying else options


def _after(option: click.Option) -> click.Option:
    """The same to stand after a command: it says nothing where it was not given there, and is not shown twice."""

    def noted(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE:
            context.obj[option.name] = value

    return click.Option(
        [*option.opts, option.name or ""],
        type=option.type,
        is_flag=option.is_flag or None,
        expose_value=False,
        hidden=True,
        callback=noted,
    )


def command(function: Callable[..., None] | None = None, *, staying: bool = False) -> Any:
    """A command: takes the ``Context``, and ends with the exit code that an error means. ``staying``: it does
    not end by itself."""
    if function is None:
        return functools.partial(command, staying=staying)

    @functools.wraps(function)
    def run(given: dict[str, Any], *args: Any, **options: Any) -> None:
        try:
            context = Context(**given)
        except RollcallError as error:
            fail(error.message, EXIT_USAGE)
            return
        notice = threading.Timer(SILENT_S, _still_waiting, [context])
        notice.daemon = True
        try:
            with context.client:
                if not staying:
                    notice.start()
                function(context, *args, **options)
        except RollcallError as error:
            notice.cancel()
            code = {NotDone: EXIT_NOT_DONE, Unknown: EXIT_UNKNOWN}
            fail(error.message, next((code[kind] for kind in code if isinstance(error, kind)), EXIT_REFUSED))
        finally:
            notice.cancel()

    made: Any = click.pass_obj(run)
    made.__click_params__ = [*getattr(function, "__click_params__", []), *map(_after, common(staying=staying))]
    return made


def _still_waiting(context: Context) -> None:
    say(f"no answer yet from {context.nodes}: asking for {context.client.timeout_s:g} s at most (--timeout)", err=True)


def author(given: str) -> str:
    """Who says so: ``given``, or the user that this runs as, who need not have a name."""
    try:
        return given or getpass.getuser()
    except (KeyError, OSError):  # which of them depends on the version of Python
        return f"uid {os.getuid()}"


def pair(text: str, option: str = "--meta") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.UsageError(f"{option} expects KEY=VALUE, got {text!r}")
    return key, value


def place(host: str, port: int) -> str:
    """``HOST:PORT`` as it is written, IPv6 in brackets; without a port the host alone."""
    if not port:
        return host
    return authority(host.strip("[]"), port)


def styled(text: str, style: str | None = None) -> Text:
    return Text(visible(text), style=_STYLES.get(style or text, ""))
