"""Settings from flags, variables, a file and the defaults, converted and completed."""

import math
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...replication.errors import Invalid
from ...replication.places import authority
from ...replication.records import nearest
from ..service_links import is_service_link
from .addresses import WILDCARDS
from .fields import TABLE, Member, Settings
from .rules import check
from .table import ENV_PREFIX, Setting, parser

ENV_OTHERS = frozenset({"ROLLCALL_CONFIG", "ROLLCALL_NODES", "ROLLCALL_DISCOVERY"})
"""Variables of ours that are no setting of a node: the file, the CLI's nodes, what a sidecar tells its program."""

FILE_BYTES_MAX = 1024 * 1024

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
    check(settings)
    return settings


# Where values come from


def _from_flags(argv: Sequence[str]) -> dict[str, str]:
    given, unknown = parser(TABLE).parse_known_args(list(argv))
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
    http = (settings.http_advertise or f"http://{authority(settings.http_host, settings.http_port)}").rstrip("/")
    raft = settings.raft_advertise or authority(settings.raft_host, settings.raft_port)
    members = sorted((Member(m.id, m.raft, m.http.rstrip("/")) for m in settings.members), key=lambda m: m.id)
    return msgspec.structs.replace(
        settings,
        http_advertise=http,
        raft_advertise=raft,
        members=tuple(members) or (Member(settings.node_id, raft, http),),
    )
