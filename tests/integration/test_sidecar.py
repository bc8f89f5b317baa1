"""A program that knows nothing of the registry, and its sidecar."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.cluster import Cluster, StartCluster
from harness.waiting import WAIT_S, wait_for

pytestmark = pytest.mark.integration

PROGRAM = """
import http.server, os, signal, sys, threading, time
port, marks = int(sys.argv[1]), sys.argv[2]
def mark(what):
    with open(marks, "a") as file:
        file.write(f"{what} {time.monotonic()}\\n")
def ended(number, frame):
    mark("ended")
    os._exit(7)
signal.signal(signal.SIGTERM, ended)
signal.signal(signal.SIGUSR1, lambda *_: mark("usr1"))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ill = os.path.exists(marks + ".ill")
        self.send_response(500 if ill else 200)
        self.end_headers()
    def log_message(self, *_): pass
mark("began " + os.environ.get("ROLLCALL_DISCOVERY", ""))
time.sleep(0.5)
if len(sys.argv) > 3:
    sys.exit(int(sys.argv[3]))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Running:
    """``rollcall sidecar`` with the program above."""

    def __init__(self, cluster: Cluster, directory: Path, *options: str, exits: int | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.marks: Path = directory / "marks"
        program = directory / "program.py"
        program.write_text(textwrap.dedent(PROGRAM))
        command = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", ",".join(cluster.urls), "sidecar"]
        command += ["--service", "legacy", "--port", str(self.port), "--check", f"http://127.0.0.1:{self.port}/health"]
        command += ["--interval", "0.2", "--failures", "2", "--drain", "0.4", *options, "--", sys.executable]
        command += [str(program), str(self.port), str(self.marks), *([] if exits is None else [str(exits)])]
        self.process = subprocess.Popen(command)

    def marked(self) -> dict[str, str]:
        """What the program noted, and the rest of the line."""
        with contextlib.suppress(FileNotFoundError):
            return dict(line.split(" ", 1) for line in self.marks.read_text().splitlines())
        return {}

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT_S)


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def made() -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for each in running:
        each.close()


def instances(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.get(0, "/api/v1/services/legacy/instances?consistency=linearizable").json["instances"]


def test_s4_5_it_is_registered_when_its_check_first_passes_and_taken_out_before_it_ends(three, made, tmp_path):
    began = time.monotonic()
    made.append(Running(three, tmp_path, "--tag", "old", "--ttl", "5"))
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))
    assert time.monotonic() - began > 0.5, "not before the program answers"
    (instance,) = instances(three)
    assert (instance["port"], instance["tags"], instance["ttl_s"]) == (made[0].port, ["old"], 5.0)
    time.sleep(5.5)
    assert instances(three), "it renews"

    made[0].process.send_signal(signal.SIGTERM)
    wait_for(lambda: not instances(three), lambda: str(instances(three)))
    gone_at = time.monotonic()
    assert made[0].process.wait(WAIT_S) == 7, "the program's own exit code"
    assert float(made[0].marked()["ended"]) > gone_at - 0.1


def test_while_its_check_fails_it_is_out(three, made, tmp_path):
    made.append(Running(three, tmp_path))
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))
    (tmp_path / "marks.ill").touch()
    wait_for(lambda: not instances(three), lambda: str(instances(three)))
    (tmp_path / "marks.ill").unlink()
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))


def test_signals_and_exit_codes_are_passed_through(three, made, tmp_path):
    made.append(Running(three, tmp_path))
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))
    made[0].process.send_signal(signal.SIGUSR1)
    wait_for(lambda: "usr1" in made[0].marked(), lambda: str(made[0].marked()))
    made[0].close()

    quits = tmp_path / "quits"
    quits.mkdir()
    made.append(Running(three, quits, exits=5))
    assert made[1].process.wait(WAIT_S) == 5
    assert not instances(three)


def test_a_program_that_dies_is_taken_out_at_once(three, made, tmp_path):
    made.append(Running(three, tmp_path, "--ttl", "60"))
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))
    children = Path(f"/proc/{made[0].process.pid}/task/{made[0].process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)

    assert made[0].process.wait(WAIT_S) == 128 + signal.SIGKILL
    assert not instances(three)


def test_s3_7_it_offers_discovery_to_its_program(three, made, tmp_path):
    made.append(Running(three, tmp_path, "--discovery-port", "0"))
    three.register(0, "other", "o1", address="10.0.0.1", port=80)
    wait_for(lambda: instances(three), lambda: str(made[0].marked()))
    url = made[0].marked()["began"].split()[0]
    shown = {"id": "o1", "url": "http://10.0.0.1:80", "host": "10.0.0.1", "port": 80}

    assert requests.get(f"{url}/instances/other", timeout=5).json() == [shown]
    assert requests.get(f"{url}/pick/other", timeout=5).json() == shown
    assert requests.get(f"{url}/pick/nobody", timeout=5).status_code == 503
    assert requests.get(f"{url}/pick/not a name", timeout=5).status_code == 400
    assert requests.get(f"{url}/nothing", timeout=5).status_code == 404


def test_what_cannot_be_is_said_before_anything_is_started(three):
    command = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", ",".join(three.urls), "sidecar"]

    def said(*options: str) -> str:
        ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert ended.returncode in (1, 2), ended
        return ended.stderr

    assert "check: Expected http" in said("--service", "x", "--check", "ftp://x")
    assert "service" in said("--service", "no spaces")
    assert "No such file" in said("--service", "x", "--", "/no/such/program")


def test_it_does_not_say_that_it_is_registered_before_it_is(tmp_path):
    program = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", "http://127.0.0.1:1", "sidecar"]
    running = subprocess.Popen(
        [*program, "--service", "legacy", "--address", "127.0.0.1", "--port", "1", "--", "sleep", "60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    said = ""
    try:
        while "no node of the registry takes legacy-127.0.0.1:1" not in said:
            line = running.stderr.readline()
            assert line, said
            said += line
    finally:
        running.terminate()
        said += running.communicate(timeout=WAIT_S)[1]

    assert "is registered" not in said


READS = "; ".join(
    (
        "import sys, time",
        "print('asks', flush=True)",
        "print('got', sys.stdin.readline().strip(), flush=True)",
        "time.sleep(60)",
    )
)


def test_a_program_that_reads_the_terminal_gets_it_and_ends_at_sigterm():
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", "http://127.0.0.1:1", "sidecar"]
    command += ["--service", "legacy", "--address", "127.0.0.1", "--port", "1", "--drain", "0"]
    # Of a session that this terminal is the terminal of, as a shell's commands are.
    starts = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    running = subprocess.Popen(
        [sys.executable, "-c", starts, *command, "--", sys.executable, "-c", READS],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""

    def heard(word: bytes) -> bool:
        nonlocal said
        if select.select([ours], [], [], 0.05)[0]:
            said += os.read(ours, 4096)
        return word in said

    try:
        wait_for(lambda: heard(b"asks"), lambda: str(said))
        os.write(ours, b"hello\n")
        wait_for(lambda: heard(b"got hello"), lambda: str(said))

        running.send_signal(signal.SIGTERM)
        assert running.wait(WAIT_S) == 128 + signal.SIGTERM
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def test_a_program_that_is_stopped_ends_at_sigterm_as_well(tmp_path):
    """In the background nobody is given the terminal: it stays stopped, and hears of its end all the same."""
    pid = tmp_path / "pid"
    command = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", "http://127.0.0.1:1", "sidecar"]
    command += ["--service", "legacy", "--address", "127.0.0.1", "--port", "1", "--drain", "0"]
    running = subprocess.Popen([*command, "--", "sh", "-c", f"echo $$ > {pid}; kill -STOP $$; sleep 60"])
    try:
        wait_for(lambda: pid.exists() and _state(pid) == "T", "the program to be stopped")
        running.send_signal(signal.SIGTERM)
        assert running.wait(WAIT_S) == 128 + signal.SIGTERM
    finally:
        running.kill()
        running.wait()


def _state(pid: Path) -> str:
    number = pid.read_text().strip()
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] if number else ""
