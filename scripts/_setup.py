"""Makes ``.venv`` fit to run this checkout, and says what it is doing meanwhile.

    _setup.py node    what a node and the commands need
    _setup.py all     and what tests, checks and benches need

Started by the scripts with any Python from 3.11 on; needs nothing else. When
``.venv`` was made from the same ``pyproject.toml``, lock file and Python, it
returns at once; ``all`` adds to what ``node`` has installed. Two scripts started
together take turns. Only files whose hashes stand in the lock are installed, and
Ctrl-C ends all of it at once. What pip said is kept beside ``.venv``.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = {"node": ROOT / "requirements-up.lock", "all": ROOT / "requirements.lock"}
SAID = ROOT / ".venv.log"
"""What pip wrote, for whoever wants to know why it failed."""
NO_INDEX = ("NewConnectionError", "name resolution", "Network is unreachable", "Connection refused", "ConnectTimeout")
INSTALL_S_MAX = 900
BUILDER = "setuptools"
"""Builds this checkout and what comes as source; without a network, so it must be there before."""
ROOMS = ("cluster", "node", "replication")
OLD_LIBRARY = "pysyncobj==0.3.14"
OLD_LIBRARY_HASH = "sha256:69d34e672257694f83f50dfb5e6e7ce446a68dba09ed48e142c782380d6428d4"
"""Beside the environment, for tests that show what this version did wrong. No node ever imports it."""


def main(packages: str) -> None:
    # The end of the terminal ends it as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        set_up(packages)
    except KeyboardInterrupt:
        print("\n[setup] interrupted; the next run begins anew", file=sys.stderr)
        sys.exit(130)


def set_up(packages: str) -> None:
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(packages) and not is_current("all"):
            make(packages)
        if packages == "all":
            link_rooms()


def make(packages: str) -> None:
    started = time.monotonic()
    say(f"setting up {VENV} with Python {sys.version.split()[0]} (once; the next run re-uses it)")
    SAID.unlink(missing_ok=True)
    if not is_current("node"):
        make_venv()
    install(LOCKS[packages])
    if packages == "all":
        install_old_library()
    stamp(packages).write_text(fingerprint(packages))
    say(f"ready after {time.monotonic() - started:.0f} s")


def stamp(packages: str) -> Path:
    return VENV / f".rollcall-{packages}"


def fingerprint(packages: str) -> str:
    """Of all that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version}{ROOT}{OLD_LIBRARY}".encode())
    for path in (ROOT / "pyproject.toml", LOCKS[packages]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(packages: str) -> bool:
    made = stamp(packages)
    return made.exists() and made.read_text() == fingerprint(packages) and (VENV / "bin" / "python").exists()


def make_venv() -> None:
    say("1/3 creating the environment")
    shutil.rmtree(VENV, ignore_errors=True)
    with started(sys.executable, "-m", "venv", str(VENV)) as process:
        output = list(process.stdout or ())
    if process.returncode:
        fail("Python's venv module does not work here (on Debian and Ubuntu: install python3-venv)", output)


def install(lock: Path) -> None:
    total = lock.read_text().count("==")
    say(f"2/3 installing {total} packages, and this checkout")
    count = 0
    steps = (
        ("--require-hashes", "-r", builder_lock()),
        ("--require-hashes", "--no-build-isolation", "-r", str(lock)),
        ("--no-deps", "--no-build-isolation", "-e", "."),
    )
    for words in steps:
        output: list[str] = []
        with pip("install", "--progress-bar", "off", *words) as process:
            for line in process.stdout or ():
                output.append(line)
                found = re.match(r"Collecting ([A-Za-z0-9._-]+)", line)
                if found:
                    count += 1
                    say(f"    {count:2}/{total} {found[1]}")
                elif line.startswith("Installing collected packages") and count > 1:
                    say("    unpacking")
        if process.returncode:
            fail(why(output), output)


def why(output: list[str]) -> str:
    if any(sign in line for line in output for sign in NO_INDEX):
        return "no package index can be reached: connect this machine, or name one in PIP_INDEX_URL, and try again"
    return f"the packages could not be installed, for the reason at the end of {SAID}"


def builder_lock() -> str:
    """A file with the builder's lines of the lock alone."""
    lock = LOCKS["all"]
    found = re.search(rf"^{BUILDER}==(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    if found is None:
        fail(f"{lock.name} does not hold {BUILDER}: make it anew with ./scripts/lock", [])
    return in_venv("builder.lock", found[0])


def install_old_library() -> None:
    say(f"3/3 installing {OLD_LIBRARY} beside them, for a few tests to compare with")
    target = VENV / OLD_LIBRARY.replace("==", "-")
    file = in_venv("old.lock", f"{OLD_LIBRARY} --hash={OLD_LIBRARY_HASH}\n")
    words = ("--require-hashes", "--no-deps", "--no-build-isolation", "--target", str(target), "-r", file)
    with pip("install", *words) as process:
        output = list(process.stdout or ())
    if process.returncode:
        # A cluster runs without it, and the tests that want it say so.
        say(f"{''.join(output).rstrip()}\n[setup] {OLD_LIBRARY} could not be installed; a few tests will fail")


def link_rooms() -> None:
    """Lets the type checker find the rooms as ``rollcall``, under ``.venv/types``.

    What is installed in place is found by a hook that Python runs when it imports. The checker runs nothing, it
    looks for folders. The links are looked at on every run, as an environment from before them has its stamp already.
    """
    for room in ROOMS:
        link = VENV / "types" / "rollcall" / room
        target = Path(os.path.relpath(ROOT / room, link.parent))
        if link.is_symlink() and link.readlink() == target:
            continue
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


def in_venv(name: str, text: str) -> str:
    path = VENV / name
    path.write_text(text)
    return str(path)


def pip(*words: str) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
    return started(str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *words)


@contextlib.contextmanager
def started(*command: str) -> "Iterator[subprocess.Popen[str]]":
    """A process, whose output the caller reads to its end. Nothing of it or of what it started is left when the
    ``with`` ends, however it ends; nor after a quarter of an hour."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        too_long = threading.Timer(INSTALL_S_MAX, end, [process])
        too_long.daemon = True  # or the interpreter would wait for it at its end
        too_long.start()
        try:
            yield process
            process.wait()
        finally:
            too_long.cancel()
            end(process)


def end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


def fail(what: str, output: list[str]) -> NoReturn:
    """Ends with one sentence that says what to do; what a program said before is in ``SAID``."""
    if output:
        SAID.write_text("".join(output))
    sys.exit(f"[setup] {what}")


if __name__ == "__main__":
    main(sys.argv[1])
