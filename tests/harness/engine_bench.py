"""The engine alone: three processes on loopback, fsync on, no HTTP.

    python tests/harness/engine_bench.py [--seconds 4] [--writers 64] [--tls]

The process that measures leads (the others wait longer before they stand for
election). Prints one JSON object: the median of one write at a time, in
milliseconds, and commits a second with many writers at once.
"""

import argparse
import json
import multiprocessing
import multiprocessing.synchronize
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from rollcall.node import certs
from rollcall.replication.commands import Register
from rollcall.replication.network.dialing import Endpoint
from rollcall.replication.network.tls import Credentials
from rollcall.replication.network.transport import Transport
from rollcall.replication.raft.config import EngineConfig
from rollcall.replication.raft.engine import Engine
from rollcall.replication.records import Registration

START_S = 15.0


def make(node: str, endpoints: dict[str, Endpoint], directory: Path, *, patient: bool) -> Engine:
    """An engine that takes part; a patient one leaves leading to others."""
    peers = {other: endpoint for other, endpoint in endpoints.items() if other != node}
    config = EngineConfig(
        directory=directory / node,
        cluster="bench",
        election_timeout_s_min=60.0 if patient else 0.4,
        election_timeout_s_max=70.0 if patient else 1.0,
    )
    folder = directory / "certificates" / node
    credentials = None
    if folder.exists():
        files = (folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        credentials = Credentials(*files, cluster="bench", node=node)
    engine = Engine(
        node,
        Transport(node, peers, cluster="bench", listen=endpoints[node], credentials=credentials),
        config,
        on_fatal=lambda error: os._exit(1),
    )
    engine.start()
    return engine


def follow(
    node: str, endpoints: dict[str, Endpoint], directory: Path, stop: "multiprocessing.synchronize.Event"
) -> None:
    """A follower's process."""
    engine = make(node, endpoints, directory, patient=True)
    stop.wait()
    engine.close()


def write(engine: Engine, service: str, number: int) -> None:
    """One registration, acknowledged."""
    registration = Registration(service=service, id=f"i{number}", address="10.0.0.1", port=8080, ttl_s=30)
    engine.propose(Register(registration), time_ns=time.time_ns()).result_by(time.monotonic() + 10)


def one_at_a_time(engine: Engine, seconds: float) -> float:
    """Median of a single write, in milliseconds."""
    taken: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        write(engine, "one", len(taken) % 100)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def many_at_once(engine: Engine, writers: int, seconds: float) -> float:
    """Commits a second with so many threads, each writing one at a time."""
    counts = [0] * writers
    until = time.monotonic() + seconds

    def run(writer: int) -> None:
        while time.monotonic() < until:
            write(engine, f"many-{writer}", counts[writer] % 100)
            counts[writer] += 1

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(writers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def measure(seconds: float = 4.0, writers: int = 64, *, tls: bool = False) -> dict[str, float]:
    """Starts three engines, measures, stops them."""
    endpoints = {f"n{i}": Endpoint("127.0.0.1", port) for i, port in enumerate(free_ports(3))}
    processes = multiprocessing.get_context("spawn")
    stop = processes.Event()
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as directory:
        if tls:
            certs.make("bench", list(endpoints), Path(directory) / "certificates")
        followers = [
            processes.Process(target=follow, args=(node, endpoints, Path(directory), stop)) for node in ("n1", "n2")
        ]
        for process in followers:
            process.start()
        engine = make("n0", endpoints, Path(directory), patient=False)
        try:
            until = time.monotonic() + START_S
            while not engine.status().serving_term:
                if time.monotonic() > until:
                    raise TimeoutError(f"no leader within {START_S} s")
                time.sleep(0.01)
            one_at_a_time(engine, min(1.0, seconds))  # warm up
            return {
                "one_write_ms_median": round(one_at_a_time(engine, seconds), 3),
                "commits_per_s": round(many_at_once(engine, writers, seconds)),
            }
        finally:
            stop.set()
            engine.close()
            for process in followers:
                process.join(10)
                if process.is_alive():
                    process.terminate()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--tls", action="store_true", help="the engines speak TLS among themselves")
    options = parser.parse_args()
    print(json.dumps(measure(options.seconds, options.writers, tls=options.tls)))
