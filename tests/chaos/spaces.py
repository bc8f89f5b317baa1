"""A network of namespaces: every node on a machine of its own, as far as the kernel's network is concerned. Root only.

Each node has two cables. One goes to a switch that only nodes are on; over it
they talk to each other. The other goes to a switch that this machine is on too;
over it come the clients. So the nodes can be parted from each other while every
client reaches every node, and packets are really lost.

A direction is held by giving the sender a wrong hardware address for its peer:
what it sends goes to nobody, without an error. Loss needs ``nft``; throttling
(of all that a node sends) needs ``tc``. Delay is not possible on kernels without
``netem``: that is what the proxies are for.
"""

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence

from chaos.links import Conditions, Pair

NOBODY = "02:00:00:00:00:01"
"""A hardware address that no cable has."""
RAFT_PORT = 9500
HTTP_PORT = 8500
NETWORKS_MAX = 60
_COMMAND_S = 20.0


def reason() -> str:
    """Why namespaces cannot be had here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    return f"{missing[0]} is not installed (Debian: apt install iproute2 util-linux)" if missing else ""


def loss_reason() -> str:
    """Why packets cannot be lost here; empty if they can."""
    return "" if shutil.which("nft") else "nft is not installed (Debian: apt install nftables)"


class Spaces:
    """The namespaces of a cluster (``links.Network``)."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names: tuple[str, ...] = tuple(names)
        self._tag: str = ""
        self._number: int = 0
        self._held: set[Pair] = set()
        self._rates: dict[str, float] = {}
        self._losses: dict[Pair, float] = {}

    def start(self) -> None:
        """``OSError`` says what this machine refused."""
        self._number = _claimed_number()
        self._tag = f"rcl{self._number}"
        try:
            self._build()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Takes away what ``start`` made, and nothing of another cluster's."""
        tag, self._tag = self._tag, ""
        if not tag:
            return
        for i in range(len(self._names)):
            # The cables by name: a namespace may live on for a while after it lost its own.
            for switch in ("p", "c"):
                _run(["ip", "link", "delete", f"{tag}{switch}{i}"], check=False)
            _run(["ip", "netns", "delete", f"{tag}-{i}"], check=False)
        # The first switch last: as long as it is there, the number is taken.
        for switch in ("c", "p"):
            _run(["ip", "link", "delete", f"{tag}{switch}"], check=False)

    def prefix(self, node: str) -> list[str]:
        """What a node's command is started with, to run on its own machine. The process id stays."""
        return ["nsenter", f"--net=/run/netns/{self._space(node)}", "--"]

    def peer_address(self, node: str) -> str:
        return f"10.201.{2 * self._number}.{self._names.index(node) + 1}"

    def client_address(self, node: str) -> str:
        return f"10.201.{2 * self._number + 1}.{self._names.index(node) + 1}"

    def apply(self, conditions: Conditions, down: Collection[str]) -> None:
        self._hold({pair for pair, condition in conditions.items() if condition.held})
        self._throttle(conditions)
        self._lose({pair: condition.loss for pair, condition in conditions.items() if condition.loss})

    def unplug(self, node: str) -> None:
        """Pulls the node's cable to its peers."""
        _run(["ip", "-n", self._space(node), "link", "set", "peer", "down"])

    def plug(self, node: str) -> None:
        _run(["ip", "-n", self._space(node), "link", "set", "peer", "up"])
        # The kernel forgot what was held meanwhile.
        held, self._held = self._held, {pair for pair in self._held if pair[0] != node}
        self._hold(held)

    def _build(self) -> None:
        peers, clients = f"{self._tag}p", f"{self._tag}c"
        gateway = f"10.201.{2 * self._number + 1}.254/24"
        lines = [
            f"link add {clients} type bridge",
            f"addr add {gateway} dev {clients}",
            f"link set {peers} up",
            f"link set {clients} up",
        ]
        _run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
        for i, name in enumerate(self._names):
            space = self._space(name)
            _run(["ip", "netns", "add", space])
            lines = [
                f"link add {peers}{i} master {peers} type veth peer name peer netns {space}",
                f"link add {clients}{i} master {clients} type veth peer name client netns {space}",
                f"link set {peers}{i} up",
                f"link set {clients}{i} up",
            ]
            _run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
            lines = [
                f"addr add {self.peer_address(name)}/24 dev peer",
                f"addr add {self.client_address(name)}/24 dev client",
                "link set lo up",
                "link set peer up",
                "link set client up",
            ]
            _run(["ip", "-n", space, "-batch", "-"], "\n".join(lines) + "\n")

    def _hold(self, held: set[Pair]) -> None:
        for source in self._names:
            lines = [
                f"neigh replace {self.peer_address(target)} lladdr {NOBODY} dev peer nud permanent"
                if (source, target) in held
                else f"neigh del {self.peer_address(target)} dev peer"
                for _, target in sorted(pair for pair in held ^ self._held if pair[0] == source)
            ]
            if lines:
                # Deleting what the kernel has forgotten by itself is no error.
                _run(["ip", "-force", "-n", self._space(source), "-batch", "-"], "\n".join(lines) + "\n", check=False)
        self._held = held

    def _throttle(self, conditions: Conditions) -> None:
        rates: dict[str, float] = {}
        for (source, _), condition in conditions.items():
            if condition.bytes_per_s is not None:
                rates[source] = min(rates.get(source, condition.bytes_per_s), condition.bytes_per_s)
        for name in self._names:
            if rates.get(name) == self._rates.get(name):
                continue
            where = ["tc", "-n", self._space(name), "qdisc"]
            if name in rates:
                bits = f"{int(rates[name] * 8)}bit"
                how = ["root", "tbf", "rate", bits, "burst", "16kb", "latency", "2s"]
                _run([*where, "replace", "dev", "peer", *how])
            else:
                _run([*where, "del", "dev", "peer", "root"], check=False)
        self._rates = rates

    def _lose(self, losses: dict[Pair, float]) -> None:
        for target in self._names:
            mine = {a: share for (a, b), share in losses.items() if b == target}
            if mine == {a: share for (a, b), share in self._losses.items() if b == target}:
                continue
            lines = ["table ip chaos {}", "delete table ip chaos"]
            if mine:
                # Where they arrive: a packet that is dropped on its way out is an error to who sends it.
                rules = [
                    f"ip saddr {self.peer_address(a)} numgen random mod 1000 < {int(share * 1000)} drop"
                    for a, share in mine.items()
                ]
                lines += ["table ip chaos {", "chain input {", "type filter hook input priority 0", *rules, "}", "}"]
            _run([*self.prefix(target), "nft", "-f", "-"], "\n".join(lines) + "\n")
        self._losses = losses

    def _space(self, node: str) -> str:
        return f"{self._tag}-{self._names.index(node)}"


def _claimed_number() -> int:
    """A number that no other cluster has. Making its first switch takes it: the kernel lets only one do that."""
    for number in range(NETWORKS_MAX):
        used = _run(["ip", "-brief", "address"]) + _run(["ip", "netns", "list"])
        if f"10.201.{2 * number + 1}." in used or f"rcl{number}-" in used:
            continue
        try:
            _run(["ip", "link", "add", f"rcl{number}p", "type", "bridge"])
        except OSError as error:
            if "exists" not in str(error):
                raise
            continue
        return number
    raise OSError(f"{NETWORKS_MAX} networks of namespaces are in use already")


def _run(command: Sequence[str], given: str = "", *, check: bool = True) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if check and done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
