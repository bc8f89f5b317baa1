"""This node's share of the health checks.

Every node knows from the replicated state which checks are its own
(``checks.owner_of``), and asks those on one event loop in a thread of its own: each
check at a phase of its own, so that they are spread over their interval, however many
were registered at once. A check that stands otherwise than the log says is reported to
the leader, again and again until the log says the same; the leader proposes it, and
``apply`` drops it if the instance was registered again meanwhile or belongs to another
node now.

Too many that turn critical within a minute are more likely this node's own trouble: then
each needs the word of a second node, and is not reported without it. What this node
could not ask is asked again soon, and changes nothing.
"""

import asyncio
import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from ...replication.checks import Check, State, others_by_turn, owner_of
from ...replication.commands import KEEP_LEVEL, Report, Result
from ...replication.errors import NotDone, NotLeader, RollcallError
from ...replication.log import Log, Peers
from ...replication.proposal import Pending, Proposal
from ...replication.records import Event, Instance, Key
from ..peers import REPORT, SECOND, SECOND_OF, VIEWS, Kind, Reported, ask
from .names import NotAsked
from .owned import LastAnswer
from .probes import Found, Whom
from .reach import own_hosts
from .shares import Shares
from .thresholds import Damper, Doubt, Tally

logger = logging.getLogger(__name__)

FIRST_S = 1.0
"""A new check is asked for the first time within so long."""

EARLY_S = 1.0
"""And again after so long, then twice as long, and so on, until it passes or that is as long as its interval. From then
on at a moment within its interval that it keeps."""

LOOK_S = 0.25
"""Between two looks at who checks, and at what is to be reported."""

WHOLE_S = 60.0
"""Everything is gone through again that often, beside the changes as they come."""

REPORT_S = 5.0
VIEWS_S = 1.0
UNABLE_S = 10.0
"""Between two complaints that this node cannot ask."""

RESULTS_MAX = 500
"""Results reported at a time. One takes at most 2.5 KB, so that is under the 2 MiB of a command."""

OPINIONS_MAX = 64
"""Second opinions waited for at a time: of a target that is silent, each takes its whole timeout."""

TURN_S = 60.0
"""Waited for one's turn among them."""

AGAIN_S = 5.0
"""What could not be asked is asked again after so long, if its interval is longer."""

NONE: Mapping[str, Check] = {}
_Name = tuple[Key, str]

Q = TypeVar("Q")
A = TypeVar("A")


class Asker(Protocol):
    """Asks the questions: ``probes.Prober``."""

    async def ask(self, check: Check, whom: Whom) -> Found:
        """Raises ``NotAsked``."""
        ...

    def close(self) -> None: ...


def following(due: float, now: float, interval_s: float) -> float:
    """When to ask after a question that was ``due`` then and is put now: at its own phase, and not sooner than half an
    interval from now. What a pause of this process made late would else be asked in step from then on."""
    return due + interval_s * max(1, math.ceil((now - due) / interval_s + 0.5))


class _Asked:
    """One check that this node asks."""

    __slots__ = (
        "check", "damper", "early_s", "key", "last", "placed", "reg_index", "tally", "task", "timer", "whom",
    )  # fmt: skip

    def __init__(self, key: Key, check: Check, whom: Whom, reg_index: int, state: State) -> None:
        self.key: Key = key
        self.check: Check = check
        self.whom: Whom = whom
        self.damper: Damper = Damper()
        self.reg_index: int = reg_index
        self.tally: Tally = Tally(state)
        self.placed: bool = state != "pending"
        """Whether its moment within the interval is chosen. Not yet for a new one, which is asked sooner."""
        self.early_s: float = EARLY_S
        self.last: LastAnswer | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()


class Checker:
    """Asks, from ``start`` to ``stop``. Made once by ``__main__``."""

    def __init__(self, log: Log, peers: Peers, asker: Asker, *, chance: random.Random | None = None) -> None:
        self._log: Log = log
        self._peers: Peers = peers
        self._asker: Asker = asker
        self._chance: random.Random = chance or random.Random()
        self._asked: dict[Key, dict[str, _Asked]] = {}
        self._count: int = 0
        self._wanted: dict[_Name, Result] = {}
        self._doubt: Doubt = Doubt()
        self._looked_at: tuple[int, int] | None = None
        """The assignment and the state file that were gone through last."""
        self._whole_at: float = 0.0
        self._unable_at: float = -UNABLE_S
        self.answers: Counter[State] = Counter()
        """What was found so far, question by question."""
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: set[asyncio.Task[None]] = set()
        """An event loop holds its tasks weakly."""
        # Apart: what is known for certain does not wait for what is doubted.
        self._reports = ThreadPoolExecutor(1, thread_name_prefix="checks-report")
        self._opinions = ThreadPoolExecutor(OPINIONS_MAX, thread_name_prefix="checks-second")
        self._turns: Shares = Shares(OPINIONS_MAX)
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
        log.listen(self._applied)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks no more, and joins the thread."""
        self._post(self._end)
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        for pool in (self._reports, self._opinions):
            pool.shutdown(wait=False, cancel_futures=True)
        self._asker.close()

    def views(self, key: Key) -> dict[str, LastAnswer]:
        """The last answers to an instance's checks that this node asks, by the check's name."""
        asked = self._asked.get(key, {}).copy()
        return {name: each.last for name, each in asked.items() if each.last is not None}

    def views_of_owner(self, instance: Instance) -> tuple[str, dict[str, LastAnswer]]:
        """Which node asks, and what it was answered last; nothing if that node does not say. Waits a second at most."""
        owner = owner_of(instance.service, instance.id, self._log.registry.assignment.nodes)
        if owner in ("", self._log.node_id):
            return owner, self.views(instance.key)
        try:
            return owner, ask(self._peers, owner, VIEWS, instance.key, time.monotonic() + VIEWS_S)
        except RollcallError as error:
            logger.debug("%s does not say what it found: %s", owner, error)
            return owner, {}

    def __len__(self) -> int:
        """How many checks this node asks."""
        return self._count

    # -- the loop ------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._stopping, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                self._look()
                await self._report()
            except Exception:
                logger.exception("the health checks met a failure that they do not know")
            try:
                await asyncio.wait_for(self._stopping.wait(), LOOK_S)
            except TimeoutError:
                continue
        for asked in self._asked.values():
            for each in asked.values():
                each.end()

    def _end(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    def _post(self, action: object, *arguments: object) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(action, *arguments)  # pyright: ignore[reportArgumentType]
            except RuntimeError:
                logger.debug("the checks have ended")

    # -- which checks are this node's ----------------------------------------------

    def _applied(self, index: int, events: tuple[Event, ...]) -> None:
        if events and self._loop is not None and any(event.instance.checks or self._asked for event in events):
            self._post(self._changed, events)

    def _changed(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if event.kind in ("DEREGISTER", "EVICT"):
                self._drop(event.instance.key)
            else:
                self._adopt(event.instance)

    def _look(self) -> None:
        """After an assignment or a state file, and now and then: all of it."""
        registry, now = self._log.registry, time.monotonic()
        there = (registry.assignment.epoch, registry.replaced)
        if there == self._looked_at and now - self._whole_at < WHOLE_S:
            return
        self._looked_at, self._whole_at = there, now
        held: set[Key] = set()
        for view in self._log.registry.services():
            for instance in view.instances:
                if instance.checks:
                    held.add(instance.key)
                    self._adopt(instance)
        for key in self._asked.keys() - held:
            self._drop(key)

    def _adopt(self, instance: Instance) -> None:
        nodes = self._log.registry.assignment.nodes
        ours = bool(nodes) and owner_of(instance.service, instance.id, nodes) == self._log.node_id
        checks = {check.name: check for check in instance.checks if check.asks} if ours else {}
        self._drop(instance.key, but=checks)
        if not checks:
            return
        asked = self._asked.setdefault(instance.key, {})
        whom = Whom((instance.env, instance.service), own_hosts(instance))
        for state in instance.check_states:
            check = checks.get(state.name)
            if check is None:
                continue
            known = asked.get(check.name)
            if known is None:
                asked[check.name] = self._begin(_Asked(instance.key, check, whom, instance.reg_index, state.state))
                continue
            if state.state == "pending" and known.reg_index != instance.reg_index:
                known.tally, known.placed, known.early_s = Tally("pending"), False, EARLY_S
                self._later(known, self._chance.uniform(0, FIRST_S))
            elif known.tally.state == "pending" and state.state != "pending":
                # Found before this node knew, by the owner before or before its own restart: it goes on from there.
                known.tally = Tally(state.state)
            known.reg_index, known.whom = instance.reg_index, whom

    def _begin(self, asked: _Asked) -> _Asked:
        self._count += 1
        interval_s = asked.check.interval_s
        self._later(asked, self._chance.uniform(0, interval_s if asked.placed else min(FIRST_S, interval_s)))
        return asked

    def _drop(self, key: Key, *, but: Mapping[str, Check] = NONE) -> None:
        """Asks no more what is not in ``but``."""
        asked = self._asked.get(key)
        if asked is None:
            return
        for name in [name for name, each in asked.items() if but.get(name) != each.check]:
            asked.pop(name).end()
            self._wanted.pop((key, name), None)
            self._count -= 1
        if not asked:
            del self._asked[key]

    # -- asking --------------------------------------------------------------------

    def _later(self, asked: _Asked, seconds: float) -> None:
        assert self._loop is not None
        self._at(asked, self._loop.time() + seconds)

    def _at(self, asked: _Asked, at: float) -> None:
        assert self._loop is not None
        if asked.timer is not None:
            asked.timer.cancel()
        asked.timer = self._loop.call_at(at, self._due, asked)

    def _due(self, asked: _Asked) -> None:
        assert self._loop is not None
        if asked.placed and asked.timer is not None:
            self._at(asked, following(asked.timer.when(), self._loop.time(), asked.check.interval_s))
        if asked.task is None or asked.task.done():
            asked.task = self._loop.create_task(self._ask(asked))

    async def _ask(self, asked: _Asked) -> None:
        interval_s = asked.check.interval_s
        try:
            await self._question(asked)
        except NotAsked as error:
            self._unable(error)
            if interval_s > AGAIN_S:
                self._later(asked, self._chance.uniform(AGAIN_S / 2, AGAIN_S))
                return
        except Exception:
            logger.exception("the check %s of %s met a failure that it does not know", asked.check.name, asked.key.id)
        if asked.placed:
            return
        if asked.tally.state not in ("passing", "warning") and asked.early_s < interval_s:
            # It is just starting, perhaps: nobody has to wait a whole interval for that.
            self._later(asked, asked.early_s)
            asked.early_s *= 2
        else:
            asked.placed = True
            self._later(asked, self._chance.uniform(0, interval_s))

    async def _question(self, asked: _Asked) -> None:
        """Asks, and counts the answer. Raises ``NotAsked``."""
        found = await self._asker.ask(asked.check, asked.whom)
        asked.last = LastAnswer(found.state, found.output, found.latency_s, time.time())
        before = asked.tally.state
        after = asked.tally.add(found.state, asked.check)
        self.answers[found.state] += 1
        # Nobody is sent to what is pending, so nobody is harmed if that is called critical in error.
        if after == "critical" and before in ("passing", "warning"):
            now = time.monotonic()
            self._doubt.turned(now)
            if self._doubt.doubts(self._count, now) and not await self._confirmed(asked):
                # Asked again at its time; until somebody else says so too, it is as it was.
                asked.tally.state = before
                return
        self._note(asked, after)

    def _unable(self, error: NotAsked) -> None:
        now = time.monotonic()
        if now - self._unable_at > UNABLE_S:
            self._unable_at = now
            logger.error("a health check could not be made here: %s", error)

    def _note(self, asked: _Asked, state: State) -> None:
        """Has ``state`` reported, if the log says otherwise and it is not held back."""
        name, stands = (asked.key, asked.check.name), self._stands(asked.key, asked.check.name)
        wanted = self._wanted.get(name)
        if wanted is not None and wanted.state == state and wanted.reg_index == asked.reg_index:
            return
        if state == "pending" or stands == state or asked.damper.holds(stands, state, time.monotonic()):
            self._wanted.pop(name, None)
        else:
            self._wanted[name] = Result(asked.key, asked.reg_index, asked.check.name, state)

    def _stands(self, key: Key, check: str) -> State | None:
        instance = self._log.registry.instance(key)
        states = instance.check_states if instance is not None else ()
        return next((state.state for state in states if state.name == check), None)

    # -- a second node's word ------------------------------------------------------

    async def _confirmed(self, asked: _Asked) -> bool:
        """Whether another node finds it critical too. Without another node, this one's word must do."""
        nodes = self._log.registry.assignment.nodes
        others = others_by_turn(asked.key.service, asked.key.id, nodes)
        of_whom = self._log.registry.level >= KEEP_LEVEL
        left_s = asked.check.timeout_s + 1.0
        for node in others:
            try:
                async with self._turns.place(asked.whom.service, within_s=TURN_S):
                    if of_whom:
                        found = await self._hop(self._opinions, node, SECOND_OF, (asked.check, asked.whom), left_s)
                    else:
                        found = await self._hop(self._opinions, node, SECOND, asked.check, left_s)
            except (RollcallError, TimeoutError) as error:
                logger.info("%s gave no second opinion: %s", node, error)
                continue
            if found.state != "critical":
                logger.warning("%s finds %s well: it may be this node's network that is ill", node, asked.key.id)
            return found.state == "critical"
        return not others

    def second_opinion(self, check: Check, whom: Whom) -> Pending[Found]:
        """What this node finds, for another: asked on the loop."""
        opinion: Pending[Found] = Pending()
        self._post(self._ask_for, check, whom, opinion)
        return opinion

    def _ask_for(self, check: Check, whom: Whom, opinion: Pending[Found]) -> None:
        async def answer() -> None:
            try:
                opinion.resolve(await self._asker.ask(check, whom))
            except NotAsked as error:
                self._unable(error)
                opinion.resolve(None, NotDone(str(error)))

        assert self._loop is not None
        task = self._loop.create_task(answer())
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    # -- reporting -----------------------------------------------------------------

    async def _report(self) -> None:
        for name, result in list(self._wanted.items()):
            if self._stands(result.key, result.check) == result.state:
                del self._wanted[name]
        if not self._wanted:
            return
        results = tuple(list(self._wanted.values())[:RESULTS_MAX])
        leader = self._log.leadership.leader
        if leader is None:
            return
        reported = Reported(self._log.registry.assignment.epoch, results)
        try:
            if leader == self._log.node_id:
                proposal = self.take_report(self._log.node_id, reported)
                await asyncio.get_running_loop().run_in_executor(
                    self._reports, proposal.result_by, time.monotonic() + REPORT_S
                )
            else:
                await self._hop(self._reports, leader, REPORT, reported, REPORT_S)
        except RollcallError as error:
            logger.debug("%d results of checks are reported again: %s", len(results), error)

    async def _hop(self, pool: ThreadPoolExecutor, node: str, kind: Kind[Q, A], question: Q, within_s: float) -> A:
        def hop() -> A:
            # Time runs from here: before, it waited for a thread, and the peer has not begun.
            return ask(self._peers, node, kind, question, time.monotonic() + within_s)

        return await asyncio.get_running_loop().run_in_executor(pool, hop)

    def take_report(self, node: str, reported: Reported) -> Proposal:
        """On the leader: what a node says of its checks, proposed."""
        if not self._log.status().serving_term:
            raise NotLeader(f"{self._log.node_id} does not lead")
        return self._log.propose(Report(node, reported.epoch, reported.results), time_ns=time.time_ns())
