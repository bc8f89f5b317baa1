"""A query string, taken apart strictly: bad values and unknown names are ``Invalid``."""

import math
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

import msgspec
from flask import request

from ...replication.errors import Invalid
from ...replication.records import DEFAULT_ENV, ID_LENGTH_MAX, Id, Key, Name, unknown_field
from ..position import Position

PARAMETERS_MAX = 1024
NUMBER_MAX = 2**63 - 1

_HISTORY = re.compile(r"[0-9a-f]{16}")
_POSITION = re.compile(r"(?:(?P<history>[0-9a-f]{16})-)?(?P<index>.*)", re.DOTALL)
_DURATION = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?)(?P<unit>ms|s|m|)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0}


class Query:
    """The parameters of one request. Ask for each that is known, then call ``done``."""

    def __init__(self, raw: str) -> None:
        try:
            # WSGI hands the bytes of the request over as latin-1.
            text = raw.encode("latin-1").decode("utf-8")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX)
        except UnicodeError:
            raise Invalid("the query string is not valid UTF-8", field="query") from None
        except ValueError:
            message = f"the query string has more than {PARAMETERS_MAX} parameters"
            raise Invalid(message, field="query", limit=PARAMETERS_MAX) from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)
        self._known: set[str] = set()

    @classmethod
    def of_request(cls) -> "Query":
        """Those of the request being answered."""
        return cls(request.environ.get("QUERY_STRING", ""))

    def done(self) -> None:
        """Refuses parameters that nobody asked for: a misspelt filter must not pass as none."""
        for name in self._values:
            if name not in self._known:
                raise unknown_field(name, sorted(self._known), "query parameter")

    def every(self, name: str) -> tuple[str, ...]:
        """All values of a parameter that may be repeated."""
        self._known.add(name)
        return tuple(self._values.get(name, ()))

    def one(self, name: str) -> str | None:
        values = self.every(name)
        if len(values) > 1:
            raise Invalid(f"{name}: Expected once, got {len(values)} times", field=name)
        return values[0] if values else None

    def prefixed(self, prefix: str) -> tuple[tuple[str, str], ...]:
        """Parameters whose names begin with ``prefix``, as (rest of the name, value)."""
        found = sorted(name for name in self._values if name.startswith(prefix) and name != prefix)
        return tuple((name.removeprefix(prefix), value) for name in found for value in self.every(name))

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.one(name)
        if value is not None and value not in choices:
            raise Invalid(f"{name}: Expected one of {', '.join(choices)}; got {value!r}", field=name)
        return value

    def flag(self, name: str) -> bool:
        return self.choice(name, ("true", "false", "1", "0")) in ("true", "1")

    def number(self, name: str, *, least: int = 0, most: int = NUMBER_MAX) -> int | None:
        value = self.one(name)
        return None if value is None else number(value, name, least=least, most=most)

    def seconds(self, name: str, *, default: float, most: float) -> float:
        """A time to wait: ``5``, ``2.5``, ``5s``, ``500ms`` or ``1m``."""
        value = self.one(name)
        if value is None:
            return default
        match = _DURATION.fullmatch(value)
        if match is None:
            raise Invalid(f"{name}: Expected a duration such as 5, 5s or 500ms; got {value!r}", field=name)
        seconds = float(match["number"]) * _UNIT_S[match["unit"]]
        if seconds > most or not math.isfinite(seconds):
            raise Invalid(f"{name}: Expected at most {most:g} seconds, got {seconds:g}", field=name, limit=most)
        return seconds

    def history(self) -> str:
        """The history that an index beside it counts in; empty where none is named."""
        value = self.one("history")
        if value is not None and not _HISTORY.fullmatch(value):
            raise Invalid(f"history: Expected 16 hexadecimal digits, got {value[:40]!r}", field="history")
        return value or ""

    def env(self) -> str:
        """The namespace that the call is about."""
        return checked_name(self.one("env") or DEFAULT_ENV, "env")

    def envs(self) -> str | None:
        """The same where ``*`` means all of them (None)."""
        return None if self._values.get("env") == ["*"] and self.every("env") else self.env()


def number(text: str, name: str, *, least: int = 0, most: int = NUMBER_MAX) -> int:
    """``text`` as a whole number within bounds."""
    # Digits of other scripts and 10 000 digits are numbers to int(), but not here.
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
        raise Invalid(f"{name}: Expected a whole number from {least} to {most}, got {text[:40]!r}", field=name)
    return int(text)


def position(text: str, name: str) -> Position:
    """``HISTORY-INDEX``, or an index alone: what identifies a message of a stream."""
    parts = _POSITION.fullmatch(text)
    assert parts is not None  # any text has an index, as far as the pattern goes
    return Position(number(parts["index"], name), parts["history"] or "")


def position_shown(index: int, history: str) -> str:
    """The same as text."""
    return f"{history}-{index}" if history else str(index)


def checked_key(env: str, service: str, id: str) -> Key:
    """What names one instance. A command never carries a name that no instance can have:
    nodes could not read it back."""
    return Key(checked_name(env, "env"), checked_name(service, "service"), checked_id(id))


def checked_id(text: str) -> str:
    """``text`` if an instance can be called that."""
    try:
        return msgspec.convert(text, Id)
    except msgspec.ValidationError:
        message = f"id: Expected 1 to {ID_LENGTH_MAX} printable characters, got {len(text)}"
        raise Invalid(message, field="id", limit=ID_LENGTH_MAX) from None


def checked_name(text: str, field: str) -> str:
    """``text`` if it can name an env or a service."""
    try:
        return msgspec.convert(text, Name)
    except msgspec.ValidationError:
        message = f"{field}: Expected 1 to 128 of letters, digits, '.', '_', '-'; got {text[:40]!r}"
        raise Invalid(message, field=field) from None
