"""The end of a run: everybody's last word on what the registry holds."""

import contextlib
import time
from collections.abc import Mapping, Sequence

import msgspec
from harness import history
from harness.cluster import Line

from chaos.desk import CHECKED, NO_ANSWER, Listed, Shown
from chaos.ledger import Ledger, Odd, Stood
from chaos.watchers import Watcher

AGREE_S = 30.0
"""So long nodes may take until they stand at one index, and watchers until they know of it."""

LAST = "last word"
"""Who notes how checks stand in the end."""

_listed = msgspec.json.Decoder(Listed)


def agree(urls: Mapping[str, str], ledger: Ledger, watching: Sequence[Watcher]) -> None:
    """Waits until all nodes stand at one index, and notes what they hold there, and who did not get so far."""
    until = time.monotonic() + AGREE_S
    index: int | None = None
    while index is None and time.monotonic() < until:
        index = _final(urls, ledger)
        time.sleep(0.1)
    if index is None:
        return  # the verdict misses the nodes' last words
    until = time.monotonic() + AGREE_S
    while time.monotonic() < until and any(watcher.position < index for watcher in watching):
        time.sleep(0.1)
    for watcher in watching:
        if watcher.position < index:
            text = f"{watcher.name} is at {watcher.position}, {AGREE_S:g} s after all nodes were at {index}"
            ledger.note(Odd(client=watcher.name, node="", at=time.monotonic(), text=text))


def _final(urls: Mapping[str, str], ledger: Ledger) -> int | None:
    """Reads everything from every node; the index if it was the same on all, before and after."""
    digests: dict[str, history.Digest] = {}
    finals: list[history.Final] = []
    stood: list[Stood] = []
    with contextlib.ExitStack() as stack:
        lines = {node: Line(url, 10.0) for node, url in urls.items()}
        for line in lines.values():
            stack.callback(line.close)
        try:
            digests = {node: _digest(node, line) for node, line in lines.items()}
            if len({digest.index for digest in digests.values()}) > 1:
                return None
            for node, line in lines.items():
                shown = _everything(line)
                found = {instance.key: instance.held for instance in shown}
                finals.append(history.Final(node=node, index=digests[node].index, found=found))
                stood += [_stood(node, instance) for instance in shown if instance.service == CHECKED]
            if {node: _digest(node, line) for node, line in lines.items()} != digests:
                return None
        except (*NO_ANSWER, msgspec.MsgspecError, KeyError):
            return None
    for fact in (*digests.values(), *finals, *stood):
        ledger.note(fact)
    return next(iter(digests.values())).index


def _digest(node: str, line: Line) -> history.Digest:
    said = line.ask("GET", "/api/v1/cluster/digest").json
    return history.Digest(node=node, index=said["applied_index"], digest=said["sha256"])


def _everything(line: Line) -> list[Shown]:
    found: list[Shown] = []
    for service in line.ask("GET", "/api/v1/services").json["services"]:
        answer = line.ask("GET", f"/api/v1/services/{service['name']}/instances?health=any")
        found += _listed.decode(answer.body).instances
    return found


def _stood(node: str, instance: Shown) -> Stood:
    return Stood(
        who=LAST,
        node=node,
        at=time.monotonic(),
        key=instance.key,
        index=instance.modify_index,
        health=instance.health,
    )
