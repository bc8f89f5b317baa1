"""Judges the health checks of a world: who may say how an instance is, and who may be taken out for it.

It works out from the log alone what every change rests on: the assignment in force at its entry, the registration,
and how the checks stood. And it remembers what every node found, what it reported, and what services said.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from rollcall.replication.checks import Assignment, Check, CheckState, State, begun, owner_of, worst
from rollcall.replication.commands import Assign, Command, Condemn, Report, Result
from rollcall.replication.records import Event, Instance, Key

from simulation.clock import HASTE

SLACK_S = 0.01


class Health:
    """What is known of the checks of a world. Told of every entry in order; answers with what must not be."""

    def __init__(self, counts: Counter[str]) -> None:
        self.clocks_differ: float = 0.0
        """By which share a node's clock may be fast or slow."""
        self._counts: Counter[str] = counts
        self._assignment: Assignment = Assignment()
        self._applied_at: dict[int, float] = {}
        """When a check became critical, by the entry that made it so."""
        self._known: dict[Key, Instance] = {}
        self._registered: dict[Key, int] = {}
        self._checks: dict[tuple[Key, int, str], Check] = {}
        self._found: defaultdict[tuple[str, str], list[State]] = defaultdict(list)
        self._reported: set[tuple[str, int, Result]] = set()
        self._said: set[tuple[Key, State]] = set()
        self._heard: defaultdict[Key, list[tuple[float, float]]] = defaultdict(list)

    # -- what nodes find, and services say

    def found(self, node: str, check: Check, state: State) -> None:
        """A target answered a node."""
        self._found[node, check.http].append(state)

    def reported(self, node: str, epoch: int, results: tuple[Result, ...]) -> Iterator[str]:
        """A node makes a report. What is wrong with it."""
        for result in results:
            self._counts["results reported"] += 1
            self._reported.add((node, epoch, result))
            check = self._checks.get((result.key, result.reg_index, result.check))
            if check is None:
                yield f"{node} reports {result}, and there was never such a check"
                continue
            if result.state not in self._words(node, check, result.state):
                yield f"{node} reports {result}, and found {self._found[node, check.http][-5:]}"

    def _words(self, node: str, check: Check, state: State) -> Sequence[State]:
        """What a node may say by what it found last. It takes some in a row until it says otherwise; and that
        something is critical it may not say at all, if another node does not find so too."""
        found = self._found[node, check.http]
        many = max(check.failures_before_critical, check.success_before_passing)
        if state == "critical":
            # Once it said so, it must find it well again to say otherwise.
            critical: list[State] = [each for each in found if each == "critical"]
            self._found[node, check.http] = critical
            return critical[-many:]
        otherwise: list[State] = [each for each in found if each != "critical"]
        return otherwise[-many:]

    def said(self, key: Key, state: State) -> None:
        """A service is about to say how it is."""
        self._said.add((key, state))

    def heard(self, key: Key, called_at: float, answered_at: float) -> None:
        """What a service said was acknowledged."""
        self._heard[key].append((called_at, answered_at))

    # -- what the log makes of it

    def assigned(self, index: int, term: int, command: Assign) -> None:
        """An entry says who checks from then on, if it is of the term that it names and says something new."""
        if command.term == term and command.nodes != self._assignment.nodes:
            self._counts["assignments of checks"] += 1
            self._assignment = Assignment(index, command.nodes)

    def changed(self, event: Event, term: int, command: Command, now: float) -> Iterator[str]:
        """An entry changed an instance that is there. What is wrong with that."""
        instance, before = event.instance, self._known.get(event.instance.key)
        states: tuple[CheckState, ...] = before.check_states if before is not None else ()
        match event.kind:
            case "REGISTER" | "UPDATE":
                self._registered[instance.key] = event.index
                for check in instance.checks:
                    self._checks[instance.key, event.index, check.name] = check
                if before is None or _place(before) != _place(instance):
                    states = begun(instance.checks, event.index)
            case "HEALTH_CHANGE":
                self._counts["changes of health"] += 1
                changed = [state for state in instance.check_states if state not in states]
                states = tuple(next((c for c in changed if c.name == state.name), state) for state in states)
                for state in changed:
                    yield from self._judge(instance, state, event.index, term, command, now)
                    self._applied_at[event.index] = now
            case _:
                pass
        self._known[instance.key] = instance
        if instance.check_states != states or instance.health != worst(states):
            yield f"{instance.key} stands at {instance.health} after {event.kind} {event.index}, and should at {states}"

    def removed(self, key: Key) -> None:
        self._known.pop(key, None)
        self._registered.pop(key, None)

    def _judge(
        self, instance: Instance, state: CheckState, index: int, term: int, command: Command, now: float
    ) -> Iterator[str]:
        """What speaks against one check that stands otherwise from an entry on."""
        key, what = instance.key, f"{state.name} of {instance.id} turned {state.state} at {index}"
        result = Result(key, self._registered[key], state.name, state.state)
        if not isinstance(command, Report) or result not in command.results or state.since != index:
            yield f"{what}, and no report says so of the registration {result.reg_index}"
            return
        if not self._checks[key, result.reg_index, state.name].asks:
            yield from self._judge_word(what, key, state.state, term, command, now)
            return
        epoch, nodes = self._assignment.epoch, self._assignment.nodes
        if command.epoch != epoch:
            yield f"{what} by a report of epoch {command.epoch}, while {epoch} was in force"
        if command.node != owner_of(key.service, key.id, nodes):
            yield f"{what} by a report of {command.node}, while {nodes} shared the checks"
        if (command.node, command.epoch, result) not in self._reported:
            yield f"{what} by a report that {command.node} never made"

    def _judge_word(self, what: str, key: Key, state: State, term: int, command: Report, now: float) -> Iterator[str]:
        if command.node or command.term != term:
            yield f"{what} in term {term} by a report of {command.node or 'the leader'} of term {command.term}"
        if state != "critical":
            if (key, state) not in self._said:
                yield f"{what}, and the service never said that"
            return
        ttl_s = self._allowed_s(self._checks[key, self._registered[key], "own"].ttl_s)
        for called_at, answered_at in self._heard[key]:
            if answered_at <= now and called_at + ttl_s > now:
                yield f"{what} for its silence, {now - called_at:.3f} s after a word that was acknowledged"

    def condemned(self, key: Key, index: int, command: Condemn, led_at: float, now: float) -> Iterator[str]:
        """An entry removed an instance because a check is critical. ``led_at``: when its leader was elected."""
        self._counts["instances taken out as critical"] += 1
        instance = self._known[key]
        judged = next((each for each in command.judged if each.key == key), None)
        if judged is None or judged.reg_index != self._registered[key]:
            yield f"{key} went at {index} by {judged}, and was registered at {self._registered[key]}"
            return
        if CheckState(judged.check, "critical", judged.since) not in instance.check_states:
            yield f"{key} went at {index} by {judged}, and stood at {instance.check_states}"
            return
        check = self._checks[key, judged.reg_index, judged.check]
        after_s = self._allowed_s(check.deregister_critical_after_s)
        critical_s = now - max(led_at, self._applied_at[judged.since])
        if check.deregister_critical_after_s is None or critical_s < after_s:
            yield f"{key} went at {index} by {judged}, which its leader had seen for {critical_s:.3f} s of {after_s} s"

    def _allowed_s(self, seconds: float | None) -> float:
        """The least of true time that a leader lets pass for so many seconds of its clock of checks."""
        return (seconds or 0.0) / HASTE * (1 - self.clocks_differ) - SLACK_S


def _place(instance: Instance) -> tuple[object, ...]:
    """What must be the same for the checks to stand as before when an instance registers again."""
    return instance.hostname, instance.address, instance.port, instance.addrs, instance.checks
