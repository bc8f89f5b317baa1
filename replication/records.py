"""The records of the registry: frozen values, validated when they are built.

An ``Instance`` is what the nodes agree on. A ``Registration`` is what a client
may say about one: the same facts less those that the registry adds (indexes,
timestamps, health). Limits stand here, once, and every dialect meets them by
building a ``Registration``.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .checks import Check, CheckState, State, checked
from .errors import Invalid
from .places import addr_fault, address_fault

DEFAULT_ENV = "default"
TTL_S_MIN = 2
TTL_S_MAX = 24 * 3600
TAGS_MAX = 64
ADDRS_MAX = 16
META_KEYS_MAX = 64
META_BYTES_MAX = 8 * 1024
WEIGHT_MAX = 65_535
ID_LENGTH_MAX = 512
CHECKS_BYTES_MAX = 64 * 1024
REGISTRATION_BYTES_MAX = 128 * 1024
"""As it is encoded. The limits of single fields add up to more only where all their text is of several bytes a
character. A node's memory, its state files and each answer hold ten thousands of these."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z", description="1 to 128 of letters, digits, . _ -")]
Id = Annotated[str, Meta(min_length=1, max_length=ID_LENGTH_MAX)]
Text = Annotated[str, Meta(max_length=256)]
Address = Annotated[str, Meta(max_length=255)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]

Status = Literal["up", "down", "starting", "draining", "out_of_service"]
Health = State
EventKind = Literal["REGISTER", "DEREGISTER", "HEALTH_CHANGE", "STATUS_CHANGE", "EVICT", "UPDATE"]

SERVING_HEALTH: frozenset[str] = frozenset({"passing", "warning"})
"""The health of an instance that should get traffic."""


class Key(Struct, frozen=True, order=True, array_like=True, gc=False):
    """What names one instance in the whole registry."""

    env: Name
    service: Name
    id: Id


class Registration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client says of an instance when it registers it.

    ``ttl_s`` is the lease in seconds; None means no lease (third-party
    registration). ``dirty_timestamp`` (ns) is only compared when given.
    """

    service: Name
    id: Id
    env: Name = DEFAULT_ENV
    hostname: Address = ""
    address: Address = ""
    port: Port = 0
    addrs: Annotated[tuple[Address, ...], Meta(max_length=ADDRS_MAX)] = ()
    version: Text = ""
    region: Text = ""
    zone: Text = ""
    tags: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=TAGS_MAX)] = ()
    meta: Annotated[dict[Annotated[str, Meta(min_length=1)], str], Meta(max_length=META_KEYS_MAX)] = {}
    weight: Annotated[int, Meta(ge=0, le=WEIGHT_MAX)] = 1
    status: Status = "up"
    ttl_s: Annotated[float, Meta(ge=TTL_S_MIN, le=TTL_S_MAX)] | None = None
    dirty_timestamp: TimeNs | None = None
    # Left out where there are none: releases without checks refuse a field that they do not know.
    checks: tuple[Check, ...] | UnsetType = UNSET

    @property
    def key(self) -> Key:
        return Key(self.env, self.service, self.id)


class RegistrationFields(TypedDict, total=False):
    """The fields of a ``Registration`` beside name, place and lease, as a caller may write them: for editors and type
    checkers. Their limits are those of ``Registration``, which is built of them."""

    hostname: str
    addrs: Sequence[str]
    version: str
    region: str
    zone: str
    tags: Sequence[str]
    meta: Mapping[str, str]
    weight: int
    status: Status
    dirty_timestamp: int | None
    checks: Sequence[Check | Mapping[str, Any]]


class Instance(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One registered instance, as every node holds it.

    Never changed in place: a change makes a new one. ``gc=False`` because it
    holds no containers that could form a cycle, so that a full collection
    need not visit a hundred thousand of them.

    Timestamps are nanoseconds of the wall clock of the leader that stamped the
    command; indexes are those of the log. ``reg_index`` names one registration
    and is what an eviction is bound to.
    """

    env: str
    service: str
    id: str
    hostname: str = ""
    address: str = ""
    port: int = 0
    addrs: tuple[str, ...] = ()
    version: str = ""
    region: str = ""
    zone: str = ""
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = {}
    weight: int = 1
    status: Status = "up"
    status_override: Status | None = None
    status_reason: str = ""
    status_until: int | None = None
    """When the override ends by itself (ns); None: when it is removed."""
    ttl_s: float | None = None
    health: Health = "passing"
    reg_timestamp: int
    up_timestamp: int
    dirty_timestamp: int
    latest_timestamp: int
    create_index: int
    reg_index: int
    modify_index: int
    checks: tuple[Check, ...] = ()
    check_states: tuple[CheckState, ...] = ()
    """One for each of ``checks``, in their order; ``health`` is the worst of them."""

    @property
    def key(self) -> Key:
        return Key(self.env, self.service, self.id)

    @property
    def effective_status(self) -> Status:
        """The operator's word where there is one, else the service's own."""
        return self.status_override or self.status

    @property
    def serving(self) -> bool:
        """Whether callers should send this instance traffic."""
        return self.effective_status == "up" and self.health in SERVING_HEALTH


class Override(Struct, frozen=True, kw_only=True, gc=False):
    """What an operator says of the instance of that key, whether it is registered now or not.

    It outlives registrations, evictions and restarts, until it is removed or ``until`` (ns) has passed.
    """

    key: Key
    status: Status
    reason: str
    until: int | None
    set_at: int
    """Nanoseconds."""
    modify_index: int


class Event(Struct, frozen=True, kw_only=True, gc=False):
    """One change of one instance. ``instance`` is how it is now, or was last."""

    kind: EventKind
    index: int
    instance: Instance


T = TypeVar("T")

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)


def build(kind: type[T], data: dict[str, Any]) -> T:
    """``data`` as a ``kind``, or ``Invalid`` with the path of what is wrong."""
    try:
        value = msgspec.convert(data, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise invalid_from(error, _fields_of(kind)) from None
    for field, part in data.items():
        # A str may hold half of a surrogate pair, which no encoding takes.
        try:
            msgspec.msgpack.encode(part)
        except UnicodeEncodeError:
            raise Invalid(f"{field}: Expected text that can be written as UTF-8", field=field) from None
    if isinstance(value, Registration):
        check_registration(value)
    return value


def _fields_of(kind: type) -> tuple[str, ...]:
    """What may be said in a ``kind``, its checks included."""
    own: tuple[str, ...] = getattr(kind, "__struct_fields__", ())
    return (*own, *Check.__struct_fields__) if "checks" in own else own


def unknown_field(field: str, known: Iterable[str], what: str = "field") -> Invalid:
    """What to say of a field (or of ``what`` else), or a path to one, that is none of ``known``."""
    meant = nearest(field.rpartition(".")[2], known)
    hint = f"did you mean {meant!r}?" if meant else "leave it out"
    return Invalid(f"{what} {field!r} is not known here; {hint}", field=field)


NAME_COMPARED_MAX = 64


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Which of ``known`` was perhaps meant; empty: none of them. ``cutoff`` as in difflib."""
    # To compare long words takes long, and nobody mistypes them.
    found = difflib.get_close_matches(name, list(known), 1, cutoff) if len(name) <= NAME_COMPARED_MAX else []
    return found[0] if found else ""


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises of bytes that somebody else sent: msgspec passes on what Python says of text that is none."""


def invalid_from(error: Exception, known: Iterable[str] = ()) -> Invalid:
    """The ``Invalid`` that says what msgspec's error says, in our words."""
    match = _WHERE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    field = path.removeprefix("$").removeprefix(".")
    unknown = re.search(r"contains unknown field `(.*)`", what)
    if unknown:
        field = f"{field}.{unknown[1]}" if field else unknown[1]
        return unknown_field(field, known)
    missing = re.search(r"missing required field `(.*)`", what)
    if missing:
        field = f"{field}.{missing[1]}" if field else missing[1]
        return Invalid(f"field {field!r} is required", field=field)
    if "matching regex" in what:
        what = "Expected 1 to 128 of letters, digits, '.', '_', '-'"
    return Invalid(f"{field or 'body'}: {what}", field=field)


def check_bytes(field: str, value: object, limit: int) -> None:
    """Raises ``Invalid`` if ``value`` takes more than ``limit`` bytes as it is encoded in log and state files.

    A field that was said to be what it is anyhow does not count, or what is read could not always be sent back.
    """
    size = len(msgspec.msgpack.encode(value))
    if size > limit:
        size = len(msgspec.msgpack.encode(_without_defaults(value)))
    if size > limit:
        raise Invalid(f"{field or 'body'}: Expected at most {limit} bytes in all, got {size}", field=field, limit=limit)


def _without_defaults(value: Any) -> Any:
    """As plain data. An encoder leaves out a default only where it is the very same object, which 10.0 need not be."""
    if isinstance(value, tuple):
        return [_without_defaults(each) for each in value]
    if not isinstance(value, Struct):
        return value
    fields = [(field, getattr(value, field.name)) for field in msgspec.structs.fields(value)]
    if value.__struct_config__.omit_defaults:
        fields = [(field, held) for field, held in fields if held != field.default and held != {}]
    return {field.encode_name: _without_defaults(held) for field, held in fields}


STEPS = frozenset({".", ".."})
"""No names: in a path they are steps to elsewhere."""


def check_names(**names: str) -> None:
    """Raises ``Invalid`` on a name that no URL's path can hold: ``.`` and ``..`` are steps there.

    Only for what is new: what an earlier release took under such a name stays, and can be removed.
    """
    for field, name in names.items():
        if name in STEPS:
            raise Invalid(f"{field}: {name!r} can be no name: a path would lead elsewhere", field=field)


def check_registration(registration: Registration) -> None:
    """The rules that a type cannot state: names, addresses, printable ids, sizes in bytes, checks. Raises ``Invalid``.

    Only for what is new: a registration that an earlier release took is kept as it is.
    """
    check_names(env=registration.env, service=registration.service, id=registration.id)
    if not registration.id.isprintable():
        raise Invalid("id: Expected printable characters only", field="id")
    for field in ("hostname", "address", "version", "region", "zone"):
        if not (getattr(registration, field) or " ").isprintable():
            raise Invalid(f"{field}: Expected printable characters only", field=field)
    for field in ("hostname", "address"):
        text = getattr(registration, field)
        if text and (fault := address_fault(text)):
            raise Invalid(f"{field}: {fault}", field=field)
    for number, addr in enumerate(registration.addrs):
        if fault := addr_fault(addr):
            raise Invalid(f"addrs[{number}]: {fault}", field=f"addrs[{number}]")
    meta_bytes = sum(len(k.encode()) + len(v.encode()) for k, v in registration.meta.items())
    if meta_bytes > META_BYTES_MAX:
        raise Invalid(
            f"meta: Expected at most {META_BYTES_MAX} bytes of keys and values, got {meta_bytes}",
            field="meta",
            limit=META_BYTES_MAX,
        )
    if registration.checks is not UNSET:
        checked(registration.checks)
        check_bytes("checks", registration.checks, CHECKS_BYTES_MAX)
    check_bytes("", registration, REGISTRATION_BYTES_MAX)
