"""What nodes answer, as values of ours; and the paths that name what is asked about. Pure."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from ..replication.errors import Invalid, NotFound, Unknown
from ..replication.records import STEPS, Instance, Key, check_names
from .http import Answer

T = TypeVar("T")


def read_as(value: Any, kind: type[T]) -> T:
    """What a node answered, as a ``kind``. A newer node may say what this release cannot read: ``Unknown``."""
    return read_by(lambda told: msgspec.convert(told, kind), value)


def read_by(read: Callable[[Any], T], value: Any) -> T:
    """What ``read`` makes of what a node answered; ``Unknown`` where this release cannot read that."""
    try:
        return read(value)
    except msgspec.ValidationError as error:
        raise Unknown(f"the answer cannot be read by this release: {error}") from None


def part(answer: Answer, name: str, kind: type[T]) -> T:
    """One field of an answer's body, as a ``kind``; ``Unknown`` where that is not what was answered."""
    if not isinstance(answer.body, dict) or name not in answer.body:
        raise Unknown(f"the answer cannot be read by this release: it has no {name!r}")
    return read_as(answer.body[name], kind)


def instance_of(answer: Answer) -> Instance:
    """The record in an answer. A repeated write whose instance has gone since is answered without one."""
    if "reg_index" not in answer.body:
        raise NotFound(f"the write was done, but instance {answer.body.get('id')!r} has been removed since")
    return read_as(answer.body, Instance)


def instance_at(read: Callable[..., Answer], key: Key) -> Instance:
    """One instance, read by ``read`` (path, params, fits). Raises ``NotFound``."""
    return instance_of(read(path_of(key), {"env": key.env}, about(key)))


def about(key: Key) -> Callable[[Any], bool]:
    """Whether the body of an answer is about ``key`` (without an id: its service), as far as it says."""
    asked = {"env": key.env, "service": key.service, **({"id": key.id} if key.id else {})}

    def fits(body: Any) -> bool:
        return isinstance(body, dict) and all(body.get(name, value) == value for name, value in asked.items())

    return fits


def fits_a_path(key: Key) -> bool:
    """Whether a path can name it: what an earlier release took may be a step to elsewhere."""
    return not STEPS & {key.service, key.id}


def path_of(key: Key) -> str:
    """Where the API has an instance. Raises ``Invalid``."""
    if not key.id:
        raise Invalid("id: Expected at least 1 character", field="id")
    check_names(service=key.service, id=key.id)
    return f"{path_of_service(key.service)}/{quote(key.id, safe='')}"


def path_of_service(service: str) -> str:
    """Where the API has the instances of a service."""
    return f"/services/{quote(service, safe='')}/instances"
