"""The gateway as its own process."""

import signal
import subprocess
import sys
from typing import Any

import requests


class GatewayProcess:
    """``rollcall gateway`` on a free port."""

    def __init__(self, nodes: tuple[str, ...], *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "rollcall.cluster.commands.cli",
            "--nodes",
            ",".join(nodes),
            "gateway",
            "--port",
            "0",
        ]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("gateway ready"), said
        self.url: str = said.split()[-1]
        self.session = requests.Session()

    def ask(self, path: str, method: str = "GET", **options: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=20, **options)

    def instances(self, service: str) -> dict[str, dict[str, Any]]:
        """Those of a service that it knows, by their ids, and how calls to them go."""
        shown = {each["service"]: each["instances"] for each in self.ask("/-/services").json()["services"]}
        return {instance["id"]: instance for instance in shown.get(service, ())}

    def close(self) -> int:
        self.session.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
