"""Makes ``.venv`` fit to run this checkout, and says what it is doing meanwhile.

Started by the scripts with any Python from 3.11 on; needs nothing else. When
``.venv`` was made from the same ``pyproject.toml``, ``requirements.lock`` and
Python, it returns at once. Two scripts started together take turns.
"""

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".rollcall-stamp"
LOCK = ROOT / "requirements.lock"
EXTRAS = ".[node,dev]"
INSTALL_S_MAX = 900
OLD_LIBRARY = "pysyncobj==0.3.14"
"""Beside the environment, for tests that show what this version did wrong. No node ever imports it."""


def main() -> None:
    fingerprint = fingerprint_of_inputs()
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current(fingerprint):
            return
        started = time.monotonic()
        say(f"setting up {VENV} with Python {sys.version.split()[0]} (once; the next run re-uses it)")
        make_venv()
        install()
        install_old_library()
        STAMP.write_text(fingerprint)
        say(f"ready after {time.monotonic() - started:.0f} s")


def fingerprint_of_inputs() -> str:
    digest = hashlib.sha256(f"{sys.version}{ROOT}{OLD_LIBRARY}".encode())
    for path in (ROOT / "pyproject.toml", LOCK):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(fingerprint: str) -> bool:
    return STAMP.exists() and STAMP.read_text() == fingerprint and (VENV / "bin" / "python").exists()


def make_venv() -> None:
    say("1/3 creating the environment")
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        fail("Python's venv module does not work here (on Debian and Ubuntu: install python3-venv)", made.stdout)


def install() -> None:
    total = sum(1 for line in LOCK.read_text().splitlines() if "==" in line)
    say(f"2/3 installing {total} packages")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    command = [*pip, "-c", str(LOCK), "-e", EXTRAS]
    output: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        too_long = threading.Timer(INSTALL_S_MAX, process.kill)
        too_long.start()
        count = 0
        for line in process.stdout:
            output.append(line)
            found = re.match(r"Collecting ([A-Za-z0-9._-]+)", line)
            if found:
                count += 1
                say(f"    {count:2}/{total} {found[1]}")
            elif line.startswith("Installing collected packages"):
                say("    unpacking")
        too_long.cancel()
    if process.returncode:
        fail("pip could not install the packages; is a package index within reach?", "".join(output[-30:]))


def install_old_library() -> None:
    say(f"3/3 installing {OLD_LIBRARY} beside them, for a few tests to compare with")
    target = VENV / OLD_LIBRARY.replace("==", "-")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), OLD_LIBRARY]
    made = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=INSTALL_S_MAX
    )
    if made.returncode:
        # A cluster runs without it, and the tests that want it say so.
        say(f"{made.stdout.rstrip()}\n[setup] {OLD_LIBRARY} could not be installed; a few tests will fail")


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


def fail(what: str, details: str) -> None:
    sys.exit(f"{details.rstrip()}\n[setup] {what}")


if __name__ == "__main__":
    main()
