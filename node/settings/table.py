"""What a table of settings is, and the texts that are made of one: flags, help, sample, README.

Knows none of the settings: those stand in ``settings.py``, as the fields of a
struct annotated with ``about(...)``.
"""

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from ...replication.errors import Invalid

ENV_PREFIX = "ROLLCALL_"


def about(
    section: str,
    help: str,
    *,
    unit: str = "",
    key: str = "",
    agree: bool = False,
    secret: bool = False,
    example: str = "",
) -> Meta:
    """What the table says of a setting beside its name, type and default.

    ``key`` is its name in the file where that differs, ``agree`` means that it
    must be the same on every node, ``secret`` that its value is never shown.
    ``example`` is what the sample file shows where the default says nothing.
    """
    extra = {"section": section, "unit": unit, "key": key, "agree": agree, "secret": secret, "example": example}
    return Meta(description=help, extra=extra)


class Setting(Struct, frozen=True, kw_only=True):
    """One line of the table."""

    name: str
    section: str
    key: str
    kind: Any
    help: str
    unit: str
    default: Any
    required: bool
    agree: bool
    secret: bool
    example: str

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def type(self) -> Any:
        """The bare type, without bounds."""
        return self.kind.__origin__

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def shown(self, value: Any) -> str:
        """``value`` as it may be printed: a secret only as set or not."""
        if self.secret:
            return "'***'" if value else "''"
        return repr(str(value)) if isinstance(value, Path) else repr(value)


def table_of(settings: type[Struct]) -> tuple[Setting, ...]:
    """The lines of the table that the fields of ``settings`` make."""
    hints = get_type_hints(settings, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(settings)}
    table: list[Setting] = []
    for name, kind in hints.items():
        about = next(m for m in reversed(kind.__metadata__) if m.extra is not None)
        table.append(
            Setting(
                name=name,
                kind=kind,
                help=about.description,
                default=None if fields[name].required else fields[name].default,
                required=fields[name].required,
                section=about.extra["section"],
                key=about.extra["key"] or name,
                unit=about.extra["unit"],
                agree=about.extra["agree"],
                secret=about.extra["secret"],
                example=about.extra["example"],
            )
        )
    return tuple(table)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as ``Invalid``, like every other place that settings come from."""

    def error(self, message: str) -> NoReturn:
        raise Invalid(message, field="argv")


def parser(table: tuple[Setting, ...]) -> argparse.ArgumentParser:
    """The flags, with help from the table. Values stay text; what is absent stays absent."""
    made = _Parser(
        prog="rollcall-node",
        usage="rollcall-node [--config FILE] [--SETTING VALUE ...]",
        description="Runs one node of a replicated service registry.",
        epilog=f"Every setting is also a variable ({ENV_PREFIX}WRITE_TIMEOUT_S for --write-timeout-s) and a key of the "
        "file. A flag wins over a variable, a variable over the file. "
        "rollcall-node certs --help: certificates for the nodes.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    made.add_argument("--config", metavar="FILE", help="TOML file with settings (ROLLCALL_CONFIG)")
    made.add_argument("--version", action="version", version=f"rollcall-node {_version()}")
    for section in dict.fromkeys(setting.section for setting in table):
        group = made.add_argument_group(f"[{section}]")
        for setting in table:
            if setting.section == section:
                _add_flag(group, setting)
    return made


def _add_flag(group: "argparse._ArgumentGroup", setting: Setting) -> None:
    help = f"{setting.help} ({_default_text(setting)})".replace("%", "%%")
    if isinstance(setting.default, bool):
        group.add_argument(setting.flag, dest=setting.name, action=argparse.BooleanOptionalAction, help=help)
        return
    metavar = "|".join(setting.choices) or setting.unit.upper() or _METAVARS.get(setting.name) or "VALUE"
    group.add_argument(setting.flag, dest=setting.name, metavar=metavar, help=help)


_METAVARS = {
    "node_id": "ID", "data_dir": "DIR", "members": "LIST", "cluster_id": "ID",
    "tls_cert": "FILE", "tls_key": "FILE", "tls_ca": "FILE",
}  # fmt: skip


def _default_text(setting: Setting) -> str:
    if setting.required:
        return "required"
    if setting.default in ("", ()):
        return "not set"
    unit = f" {setting.unit}" if setting.unit else ""
    return f"default {_toml(setting.default)}{unit}"


def _version() -> str:
    try:
        return metadata.version("rollcall-registry")
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return "unknown"


def _toml(value: Any) -> str:
    """``value`` as TOML; what is needed of it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{part}"' for part in value) + "]"
    return f'"{value}"'


def sample(table: tuple[Setting, ...], given: dict[str, Any]) -> str:
    """A ``node.toml`` that starts one node, with everything else at its default in comments."""
    lines = [
        "# Settings of one Rollcall node. Commented lines show the defaults, or an example where there is none.",
        "# Those marked [agree] must be the same on every node.",
    ]
    for section in dict.fromkeys(setting.section for setting in table):
        lines += ["", f"[{section}]"]
        for setting in table:
            if setting.section != section:
                continue
            lines.append(f"# {setting.help}{' (' + setting.unit + ')' if setting.unit else ''}"
                         f"{' [agree]' if setting.agree else ''}")  # fmt: skip
            if setting.name == "members":
                lines += [
                    "# members = [",
                    *(f'#   "n{i}=10.0.0.{i}:9500/http://10.0.0.{i}:8500",' for i in (1, 2, 3)),
                    "# ]",
                ]
            elif setting.required:
                lines.append(f"{setting.key} = {_toml(given[setting.name])}")
            else:
                lines.append(f"# {setting.key} = {_toml(_example(setting))}")
    return "\n".join(lines) + "\n"


def _example(setting: Setting) -> Any:
    if not setting.example:
        return setting.default
    return (setting.example,) if isinstance(setting.default, tuple) else setting.example


def markdown(table: tuple[Setting, ...]) -> str:
    """The table of the README. Tested: the README must hold exactly this."""
    lines = ["| Setting in the file | Flag | Variable | Default | Meaning |", "| --- | --- | --- | --- | --- |"]
    for s in table:
        default = "required" if s.required else "" if s.default in ("", ()) else f"`{_toml(s.default)}`"
        unit = f" {s.unit}" if s.unit and default else ""
        agree = "; must agree between nodes" if s.agree else ""
        meaning = s.help.replace("|", "\\|") + agree
        lines.append(f"| `[{s.section}]` `{s.key}` | `{s.flag}` | `{s.env}` | {default}{unit} | {meaning} |")
    return "\n".join(lines) + "\n"
