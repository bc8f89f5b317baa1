"""What the leader alone knows of health checks. Pure: ``now`` is of a clock that never goes back.

``Sharing``: which nodes should share the checks, by how long they have been in contact.
``Condition``: since when a service has not said how it is (checks with ``ttl_s``), and
since when a check is critical (``deregister_critical_after_s``). Both clocks begin
anew with a leader's term: what it did not see itself counts against nobody.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from ...replication.checks import Check
from ...replication.commands import Condemned, Result
from ...replication.records import Event, Instance, Key

GONE_S = 2.0
"""Out of contact for this long, a node's checks go to the others."""

BACK_S = 3.0
"""In contact for this long, it gets its share again."""


class Sharing:
    """Which nodes share the checks. ``nodes``: those that do as this begins."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._in: set[str] = set(nodes)
        self._since: dict[str, float] = {}

    def wanted(self, members: Iterable[str], reached: Iterable[str], now: float) -> tuple[str, ...]:
        """Who should share them now: of ``members``, of which those of ``reached`` are in contact."""
        there = set(reached)
        for node in members:
            if (node in there) == (node in self._in):
                self._since.pop(node, None)
                continue
            since = self._since.setdefault(node, now)
            if now - since >= (BACK_S if node in there else GONE_S):
                del self._since[node]
                self._in ^= {node}
        self._in &= set(members)
        return tuple(sorted(self._in))


class _Followed(Struct):
    """The clocks of one instance: by check, when it was heard, and since when it is critical."""

    instance: Instance
    heard_at: dict[str, float]
    critical_at: dict[str, tuple[int, float]]
    notes: dict[str, str]


class Condition:
    """Follows every instance that has a clock. ``applied`` must be told every event."""

    def __init__(self, instances: Iterable[Instance], now: float) -> None:
        self._followed: dict[Key, _Followed] = {}
        for instance in instances:
            self._follow(instance, now)

    def __len__(self) -> int:
        return len(self._followed)

    def applied(self, events: Sequence[Event], now: float) -> None:
        """What the log changed."""
        for event in events:
            if event.kind in ("DEREGISTER", "EVICT"):
                self._followed.pop(event.instance.key, None)
            else:
                self._follow(event.instance, now)

    def heard(self, key: Key, check: str, now: float, note: str = "") -> None:
        """The service said how it is, whatever it said; ``note`` is for people."""
        followed = self._followed.get(key)
        if followed is not None and check in followed.heard_at:
            followed.heard_at[check] = now
            followed.notes[check] = note

    def notes(self, key: Key) -> dict[str, str]:
        """What the service last said beside its checks."""
        followed = self._followed.get(key)
        return followed.notes.copy() if followed is not None else {}

    def disturbed(self, now: float) -> None:
        """This leader could not hear for a while: everybody has a full length from now on."""
        for followed in self._followed.values():
            followed.heard_at = dict.fromkeys(followed.heard_at, now)
            followed.critical_at = {check: (since, now) for check, (since, _) in followed.critical_at.items()}

    def silent(self, now: float) -> list[Result]:
        """Checks whose service has not spoken for longer than it should, and that are not critical yet."""
        found: list[Result] = []
        for key, followed in self._followed.items():
            states = {state.name: state.state for state in followed.instance.check_states}
            for check in followed.instance.checks:
                heard_at = followed.heard_at.get(check.name)
                if heard_at is None or states[check.name] == "critical":
                    continue
                if now - heard_at > (check.ttl_s or 0.0):
                    found.append(Result(key, followed.instance.reg_index, check.name, "critical"))
        return found

    def overdue(self, now: float) -> list[Condemned]:
        """Instances of which a check has been critical for longer than they wanted to stay registered with it."""
        found: list[Condemned] = []
        for key, followed in self._followed.items():
            for check in followed.instance.checks:
                critical = followed.critical_at.get(check.name)
                after_s = check.deregister_critical_after_s
                if critical is not None and after_s is not None and now - critical[1] > after_s:
                    found.append(Condemned(key, followed.instance.reg_index, check.name, critical[0]))
                    break
        return found

    def _follow(self, instance: Instance, now: float) -> None:
        if not any(
            check.ttl_s is not None or check.deregister_critical_after_s is not None for check in instance.checks
        ):
            self._followed.pop(instance.key, None)
            return
        before = self._followed.get(instance.key)
        same = before is not None and before.instance.reg_index == instance.reg_index
        heard_at = {
            check.name: before.heard_at.get(check.name, now) if before is not None and same else now
            for check in instance.checks
            if check.ttl_s is not None
        }
        critical_at: dict[str, tuple[int, float]] = {}
        for state in instance.check_states:
            if state.state == "critical":
                known = before.critical_at.get(state.name) if before is not None else None
                critical_at[state.name] = known if known is not None and known[0] == state.since else (state.since, now)
        notes = before.notes if before is not None and same else {}
        self._followed[instance.key] = _Followed(instance, heard_at, critical_at, notes)


def ttl_check(instance: Instance, name: str) -> Check | None:
    """The check of that name that the service itself answers."""
    return next((check for check in instance.checks if check.name == name and not check.asks), None)
