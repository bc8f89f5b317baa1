"""The file in which a ``Discovery`` keeps its lists, for a program that starts while the registry is down."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from ..replication.records import Instance

logger = logging.getLogger(__name__)


class _Kept(Struct):
    """The file. ``at`` is of the wall clock, in seconds."""

    at: float
    env: str
    instances: dict[str, tuple[Instance, ...]]


class KeptFile:
    """The lists of an env in a file, which is written whole or not at all. Without a path nothing is kept."""

    def __init__(self, path: str | os.PathLike[str] | None, env: str) -> None:
        self._path: Path | None = None if path is None else Path(path)
        self._env: str = env

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self._path is not None

    def load(self) -> dict[str, tuple[Instance, ...]]:
        """The lists that an earlier program kept, by service."""
        if self._path is None:
            return {}
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.warning("%s is of no use, and is written anew: %s", self._path, error)
            return {}
        return kept.instances if kept.env == self._env else {}

    def save(self, lists: Mapping[str, tuple[Instance, ...]]) -> None:
        """Keeps these, in place of what was kept; empty lists are not worth it."""
        if self._path is None:
            return
        found = {name: instances for name, instances in lists.items() if instances}
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            # Ours alone, and made here: whoever may write in that directory must not say where this goes.
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(msgspec.json.encode(_Kept(time.time(), self._env, found)))
            partial.replace(self._path)
        except OSError as error:
            logger.warning("lists cannot be kept in %s: %s", self._path, error)
