"""Makes a failing schedule short: fewer faults, shorter ones, fewer clients, as long as it still fails.

Delta debugging (Zeller and Hildebrandt, 2002) over the list of faults, then what
else a plan holds, one by one. A candidate counts if the same promise is broken,
whatever else went differently: one fault less changes everything after it.
"""

from collections.abc import Callable, Iterator

from msgspec import structs

from simulation.plan import Fault, Plan

TRIES_MAX = 400

Fails = Callable[[list[Plan]], int | None]
"""Which of some plans still fails in the same way: the first one of them, or none."""


def shrink(plan: Plan, fails: Fails, tries_max: int = TRIES_MAX) -> Plan:
    """The shortest plan found that still fails."""
    search = _Search(plan, fails, tries_max)
    while search.tries > 0:
        before = search.plan
        search.drop_faults()
        search.simplify()
        if search.plan == before:
            break
    return search.plan


class _Search:
    def __init__(self, plan: Plan, fails: Fails, tries: int) -> None:
        self.plan: Plan = plan
        self.tries: int = tries
        self._fails: Fails = fails

    def _take(self, candidates: list[Plan]) -> bool:
        """Goes on with the first candidate that still fails, if there is one."""
        candidates = candidates[: max(0, self.tries)]
        if not candidates:
            return False
        self.tries -= len(candidates)
        found = self._fails(candidates)
        if found is None:
            return False
        self.plan = candidates[found]
        return True

    def drop_faults(self) -> None:
        parts = 2
        while self.plan.faults and self.tries > 0:
            count = len(self.plan.faults)
            parts = min(parts, count)
            if self._take([self._with(kept) for kept in _without_parts(self.plan.faults, parts)]):
                parts = max(2, parts - 1)
            elif parts < count:
                parts = min(count, parts * 2)
            else:
                return

    def _with(self, faults: tuple[Fault, ...]) -> Plan:
        return structs.replace(self.plan, faults=faults)

    def simplify(self) -> None:
        """Everything that is not a list, a step at a time."""
        for candidates in (self._shorter, self._quieter, self._plainer):
            while self.tries > 0 and self._take(list(candidates())):
                pass

    def _shorter(self) -> Iterator[Plan]:
        plan = self.plan
        last = max((fault.at for fault in plan.faults), default=0.0)
        for seconds in (last + 0.5, plan.seconds * 0.7):
            if last <= seconds < plan.seconds - 0.1:
                yield structs.replace(plan, seconds=round(seconds, 3))

    def _quieter(self) -> Iterator[Plan]:
        plan = self.plan
        if plan.leased:
            yield structs.replace(plan, leased=0)
            if plan.leased > 1:
                yield structs.replace(plan, leased=plan.leased // 2)
        if plan.checked:
            yield structs.replace(plan, checked=0)
            if plan.checked > 1:
                yield structs.replace(plan, checked=plan.checked // 2)
        if plan.policies:
            yield structs.replace(plan, policies=0)
        if plan.clients > 1:
            yield structs.replace(plan, clients=plan.clients - 1)
        if plan.late:
            yield structs.replace(plan, late=())

    def _plainer(self) -> Iterator[Plan]:
        plan = self.plan
        if any(rate != 1.0 for rate in plan.clock_rates):
            yield structs.replace(plan, clock_rates=(1.0,) * plan.nodes)
        if any(plan.walls_ns):
            yield structs.replace(plan, walls_ns=(0,) * plan.nodes)
        if plan.duty_lag_s:
            yield structs.replace(plan, duty_lag_s=0.0)
        if plan.save_s:
            yield structs.replace(plan, save_s=0.0)
        if plan.snapshot_entries < 1000:
            yield structs.replace(plan, snapshot_entries=1000)
        for place, fault in enumerate(plan.faults):
            if fault.for_s > 0.3:
                shorter = structs.replace(fault, for_s=round(fault.for_s / 2, 3))
                yield self._with((*plan.faults[:place], shorter, *plan.faults[place + 1 :]))


def _without_parts(faults: tuple[Fault, ...], parts: int) -> Iterator[tuple[Fault, ...]]:
    size = -(-len(faults) // parts)
    for start in range(0, len(faults), size):
        yield faults[:start] + faults[start + size :]
