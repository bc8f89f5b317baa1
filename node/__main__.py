"""One node, from its settings to its end. The only module that knows all others.

Long and in order: make this, give it to that, start, wait, stop. SIGTERM and
SIGINT drain the node (``drain`` says in which order, and why) and it exits 0;
a second signal ends it at once. SIGHUP has it read its certificate again.
``rollcall-node certs`` makes such certificates and runs no node.
"""

import functools
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if missing := [
    name for name in ("dns", "flask", "prometheus_client", "pysyncobj", "waitress") if util.find_spec(name) is None
]:
    sys.exit(f"rollcall-node needs {', '.join(missing)}: pip install 'rollcall-registry[node]'")

from ..replication.api import MemberView
from ..replication.errors import RollcallError
from ..replication.front.networks import networks
from ..replication.front.server import FILES_KEPT_FREE, Server
from ..replication.network.dialing import Endpoint
from ..replication.network.tls import Credentials
from ..replication.network.transport import Transport
from ..replication.raft.config import EngineConfig
from ..replication.raft.engine import Engine
from ..replication.registry.changes import Changes
from . import certs, files, logs
from .api import ApiSettings, create_app
from .api.body import limit_of
from .aside import Worker
from .budget import Budget
from .checks.checker import Checker
from .checks.probes import Prober
from .checks.reach import Reach
from .leader.duties import Duties, DutySettings
from .metrics import Metrics
from .peers import serve_checks, serve_peers
from .service import Service, ServiceSettings
from .settings import Settings, load

if TYPE_CHECKING:
    from .dns.server import Server as DnsServer

logger = logging.getLogger("rollcall.node")

USAGE, FAILED = 2, 70
"""Exit codes: wrong settings (as with any command); a failure to be restarted from (sysexits.h)."""

WAKE_S = 0.2
SWITCH_S = 0.002
"""A thread that computes is asked to let others run after this long. Python's 5 ms add up behind sixty threads that
make long answers; much less costs more than it brings where hundreds of threads wake up at once."""
TRANSFER_S = 2.0
SETTLE_S = 1.0
"""How long a node that has handed over waits until the next leader knows how the leases stood."""
REPLAY_S = 60.0
BODIES = 32
"""How many of the longest bodies may be on their way at once."""
SHARE = 0.25
"""Of connections, for one client, when they are nearly all taken."""
FIRST_ENTRY = 1
"""Of every log, and nobody's: a new node has nothing else."""
MEET_S = 2.0
"""A node that has data lets clients in when it has caught up with a leader, and without one after this time."""

_COMPARED = frozenset({"cluster_id", "members"})
"""Settings that the nodes' greeting compares by itself, and refuses instead of warning."""


class Node:
    """Everything that runs in one node's process. ``close`` ends what ``start`` began."""

    def __init__(self, settings: Settings) -> None:
        self._settings: Settings = settings
        self._credentials: Credentials | None = _credentials(settings)
        self.metrics: Metrics = Metrics()
        self._watch_certificate()
        transport = _transport(settings, self._credentials)
        changes = Changes(settings.watch_events_max)
        self.engine: Engine = Engine(
            settings.node_id, transport, _engine_config(settings), changes=changes, on_fatal=_die
        )
        duty = DutySettings(
            protection_threshold=settings.protection_threshold,
            sweep_s_max=settings.evict_sweep_s_max,
            contact_s_max=settings.election_timeout_s_min,
        )
        self.duties: Duties = Duties(self.engine, transport, duty, evicted=self.metrics.evicted)
        self._checks_max: int = files.checks_max()
        reach = Reach.of(settings.checks_networks, scripts=settings.checks_scripts)
        self.checker: Checker = Checker(self.engine, transport, Prober(reach, places=self._checks_max))
        self._watch_checks()
        self._desk: Worker = Worker("desk")
        budget = Budget(settings.threads - settings.threads_reserved)
        self.service: Service = Service(
            self.engine, transport, self.duties, budget, _service_settings(settings), self.checker
        )
        serve_peers(
            transport,
            self.engine,
            self.duties,
            propose=self.service.propose,
            read_index=self.service.read_index,
            aside=self._desk,
        )
        serve_checks(transport, self.checker)
        self.server: Server = self._server(_api_settings(settings))
        self.dns: DnsServer | None = self._dns() if settings.dns_port else None

    def _watch_certificate(self) -> None:
        credentials = self._credentials
        if credentials is not None:
            self.metrics.watch_certificate(lambda: credentials.expires_at)

    def _watch_checks(self) -> None:
        self.metrics.watch_checks(lambda: len(self.checker))
        about = "Answers to this node's health checks, by what was found."
        self.metrics.watch_counts("rollcall_checks_answers", about, "state", self.checker.answers.copy)

    def _server(self, api: ApiSettings) -> Server:
        settings = self._settings
        return Server(
            create_app(self.service, api, self.metrics),
            settings.http_host,
            settings.http_port,
            settings.threads,
            connection_limit=settings.connection_limit,
            files_kept_free=FILES_KEPT_FREE + self._checks_max,
            body_bytes_max=4 * max(settings.body_bytes_max, settings.batch_body_bytes_max),
            body_limit=functools.partial(limit_of, api),
            requests_bytes_max=BODIES * settings.batch_body_bytes_max,
            share=SHARE,
            exempt=api.trusted,
            on_failure=_die,
        )

    def _dns(self) -> "DnsServer":
        # A node without DNS starts sooner.
        from .dns.answers import Answers, Zone
        from .dns.rates import Rates
        from .dns.server import Server as DnsServer

        settings = self._settings
        zone = Zone(
            domain=settings.dns_domain,
            env=settings.dns_env,
            ttl_s=settings.dns_ttl_s,
            node_id=settings.node_id,
            hosts={member.id: urlsplit(member.http).hostname or "" for member in settings.members},
        )
        answers = Answers(self.engine.registry, zone, random.Random())
        rates = Rates(networks(settings.trusted_networks))
        server = DnsServer(answers, settings.dns_host, settings.dns_port, rates=rates, on_failure=_die)
        about = "DNS questions answered, by transport."
        self.metrics.watch_counts("rollcall_dns_questions", about, "transport", lambda: server.answered)
        return server

    def start(self) -> None:
        """Serves. Raises ``OSError`` if the port of HTTP or DNS is taken.

        Clients come in last, so that what they read is not older than what this
        node served before it was stopped. After a power cut its disk does not tell how
        much of its log was agreed on: a leader does, if there is one to be met.
        The ports are taken first: a node that cannot serve anybody must not lead, or vote, for some seconds.
        """
        self.server.bind()
        if self.dns is not None:
            self.dns.bind()
        known = self.engine.status().commit_index
        _freeze()
        self._desk.start()
        self.engine.start()
        self.engine.wait_applied(known, time.monotonic() + REPLAY_S)
        if known > FIRST_ENTRY:
            self._meet_leader(time.monotonic() + MEET_S)
        self.duties.start()
        self.checker.start()
        self.server.start()
        if self.dns is not None:
            self.dns.start()
        _freeze()

    def _meet_leader(self, deadline: float) -> None:
        while not self.engine.status().caught_up and time.monotonic() < deadline:
            time.sleep(0.01)

    def look(self, *, reload: bool) -> None:
        """Keeps up with the certificate's files; reads them again in any case if told to ``reload``."""
        if self._credentials is None:
            if reload:
                logger.info("SIGHUP reloads certificates, and this node has none")
            return
        if reload:
            self._credentials.reload()
        self._credentials.look(time.monotonic())

    def drain(self) -> None:
        """Ends all work so that no client loses an answer and no service its lease.

        In this order, because each step needs the ones after it still running:
        nothing new is taken and parked polls go home; what is under way ends
        (proposals, renewals); leadership goes to a node that stays, and how the leases stood
        with it; the rest closes.
        """
        until = time.monotonic() + self._settings.drain_timeout_s
        self.service.drain()
        self.engine.drain()
        self.checker.stop()
        while time.monotonic() < until - TRANSFER_S - 0.5:
            under_way = self.service.budget.by_kind()
            if not under_way["write"] and not under_way["renewal"]:
                break
            time.sleep(0.005)
        if self.engine.status().role == "leader" and self._settings.members[1:]:
            handed_over = self.engine.transfer_leadership(min(until - 0.5, time.monotonic() + TRANSFER_S))
            logger.info("leadership handed over" if handed_over else "nobody took over leadership")
            if handed_over and not self.duties.settle(min(until - 0.5, time.monotonic() + SETTLE_S)):
                logger.info("the next leader was not told how leases stood: they begin anew")
        if self.dns is not None:
            self.dns.stop(0.2)
        self.server.stop(max(0.3, until - time.monotonic() - 0.3))

    def close(self) -> None:
        """Closes what is left, drained or not."""
        if self.dns is not None:
            self.dns.stop(0.0)
        self.server.stop(0.0)
        self.checker.stop()
        self.duties.stop()
        self.engine.close()
        self._desk.stop()


def _credentials(settings: Settings) -> Credentials | None:
    """What this node proves itself with to the others; None where they speak plain TCP."""
    if not settings.tls_cert:
        return None
    return Credentials(
        Path(settings.tls_cert).expanduser(),
        Path(settings.tls_key).expanduser(),
        Path(settings.tls_ca).expanduser(),
        cluster=settings.cluster_id,
        node=settings.node_id,
    )


def _freeze() -> None:
    """What is loaded by now lives as long as the process: no collection need look at it again,
    and hold up every thread meanwhile. Records are not looked at in any case."""
    gc.collect()
    gc.freeze()


def _transport(settings: Settings, credentials: Credentials | None) -> Transport:
    raft = {member.id: _endpoint(member.raft) for member in settings.members}
    raft.pop(settings.node_id, None)
    return Transport(
        settings.node_id,
        raft,
        cluster=settings.cluster_id,
        listen=Endpoint(settings.raft_host, settings.raft_port),
        agreement={name: str(value) for name, value in settings.agreement().items() if name not in _COMPARED},
        credentials=credentials,
    )


def _engine_config(settings: Settings) -> EngineConfig:
    return EngineConfig(
        directory=settings.data_dir,
        cluster=settings.cluster_id,
        election_timeout_s_min=settings.election_timeout_s_min,
        election_timeout_s_max=settings.election_timeout_s_max,
        heartbeat_period_s=settings.heartbeat_period_s,
        leader_fallback_s=settings.leader_fallback_s,
        transfer_interval_s=settings.transfer_interval_s,
        snapshot_entries=settings.snapshot_entries,
        snapshot_interval_s=settings.snapshot_interval_s,
        rejoin=settings.rejoin,
        accept_members=settings.accept_members,
        restored=settings.restored,
    )


def _service_settings(settings: Settings) -> ServiceSettings:
    return ServiceSettings(
        cluster_id=settings.cluster_id,
        write_timeout_s=settings.write_timeout_s,
        lease_ttl_s_min=settings.lease_ttl_s_min,
        members=tuple(
            MemberView(id=member.id, http=member.http, raft=member.raft, role="unknown", reachable=False)
            for member in settings.members
        ),
    )


def _api_settings(settings: Settings) -> ApiSettings:
    return ApiSettings(
        body_bytes_max=settings.body_bytes_max,
        batch_body_bytes_max=settings.batch_body_bytes_max,
        watch_wait_s_max=settings.watch_wait_s_max,
        lease_ttl_s=settings.lease_ttl_s,
        members=tuple(urlsplit(member.http).hostname or "" for member in settings.members),
        hosts=settings.hosts,
        dns_domain=settings.dns_domain if settings.dns_port else "",
        trusted=networks(settings.trusted_networks),
        write_timeout_s=settings.write_timeout_s,
    )


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def _die(error: BaseException) -> None:
    """Ends the process so that a supervisor starts it afresh: half a node is worse than none."""
    logger.critical("stopping: %s", error)
    logging.shutdown()
    os._exit(FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one node until it is told to stop; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["certs"]:
        return certs.main(argv[1:])
    try:
        settings = load(argv)
    except RollcallError as error:
        print(f"rollcall-node: {error.message}", file=sys.stderr)  # noqa: T201
        return USAGE
    logs.configure(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_S)
    stopping, reloading = threading.Event(), threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda number, frame: reloading.set())
    try:
        node = Node(settings)
    except (RollcallError, OSError) as error:
        logger.critical("cannot start: %s", error)
        return FAILED
    try:
        node.start()
        logger.info("%s serves %s", settings.node_id, settings.http_advertise)
        # Not without a limit: the kernel may hand the signal to any thread, and the
        # handler runs only when this one, the main thread, comes round.
        while not stopping.wait(WAKE_S):
            asked = reloading.is_set()
            reloading.clear()
            node.look(reload=asked)
        logger.info("shutting down")
        node.drain()
    except OSError as error:
        logger.critical("cannot start: %s", error)
        return FAILED
    finally:
        node.close()
    logger.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
