"""The commands of docs/operations.md that save a registry, as they stand there."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.cluster import ALONE, Cluster, StartCluster, instance_path, run_node
from harness.limits import LETTERS, NAME, policy, registration
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from rollcall.cluster.local.ports import free_port
from rollcall.replication.commands import FOR_S_MAX
from rollcall.replication.records import Registration

pytestmark = pytest.mark.integration

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
MADE_ANEW = (
    "reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp",
    "create_index", "reg_index", "modify_index", "lease", "changed_at", "check_states", "health",
    "set_at", "index", "until", "status_until",
)  # fmt: skip


def script(name: str, directory: Path) -> Path:
    """A script of the document, in a file."""
    text = DOCUMENT.read_text("utf-8")
    found = re.search(rf"<!-- {re.escape(name)} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"{DOCUMENT.name} has no {name}"
    path = directory / name
    path.write_text(found[1], "utf-8")
    return path


def shell(path: Path, *words: str) -> bytes:
    return subprocess.run(["sh", str(path), *words], stdout=subprocess.PIPE, check=True, timeout=60.0).stdout


def records(lines: bytes) -> dict[tuple[str, ...], dict[str, Any]]:
    """What was exported by its keys, less what a new registry makes anew."""
    found = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines.splitlines()]
    shown: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in found:
        kind = next((kind for kind in ("policy", "override") if kind in each), "instance")
        fields = each.get(kind, each)
        key = (kind, fields["env"], fields["service"], fields.get("id") or fields["name"])
        shown[key] = {name: value for name, value in fields.items() if name not in MADE_ANEW}
        shown[key]["ends"] = (fields.get("until") or fields.get("status_until")) is not None
    return shown


def fill(cluster: Cluster) -> None:
    """Two environments, ids and texts that need quoting, overrides, a check, a policy, more than one batch, and records
    that are as large as they may be."""
    cluster.register_many(0, "bulk", [f"b{number}" for number in range(700)], ttl_s=600)
    cluster.register(0, "cart", "cart 1/é:80", meta={"say": 'a "word"\nor two'}, tags=["v1"], zone="a", ttl_s=None)
    cluster.register(0, "cart", "cart-2", status="starting", weight=7)
    answer = cluster.ask(
        0, "PUT", instance_path("cart", "cart-2") + "/status", {"status": "out_of_service", "reason": "upgrade"}
    )
    assert answer.status == 200
    cluster.register(0, "cart", "cart-3", checks=[{"name": "own", "ttl_s": 3600}], ttl_s=None)
    secret = {"name": "up", "http": "http://a:b@127.0.0.1:1/", "headers": {"X-Api-Key": "secret"}, "interval_s": 3600}
    cluster.register(0, "cart", "cart-4", checks=[secret], ttl_s=None)
    policy = {"service": "cart", "percent": 5, "match": {"version": "2"}, "author": "ada", "reason": 'a "try"'}
    assert cluster.ask(0, "PUT", "/api/v1/policies/canary", policy).status == 200
    for id, ends in (("cart-5", {}), ("cart-6", {"for_s": 3600})):
        cluster.register(0, "cart", id)
        status = {"status": "out_of_service", "reason": "new disk", **ends}
        assert cluster.ask(0, "PUT", instance_path("cart", id) + "/status", status).status == 200
    # An operator's word outlives the registration.
    assert cluster.ask(0, "DELETE", instance_path("cart", "cart-6")).status == 200
    for number in range(20):
        checks = [{"name": f"own-{n}", "ttl_s": 3600, "expect_body": "漢" * 4096} for n in range(5)]
        tags = [f"{number}" + "漢" * 250] * 60
        cluster.register(0, "large", f"large-{number}", checks=checks, tags=tags, ttl_s=None)
    largest = {"service": "large", "match": {f"{n}": "漢" * 255 for n in range(4)}, "author": "漢" * 255}
    assert cluster.ask(0, "PUT", "/api/v1/policies/largest", largest).status == 200
    mail = {"op": "register", "env": "prod", "service": "mail", "id": "m1", "address": "10.0.1.1", "port": 25}
    assert cluster.ask(0, "POST", "/api/v1/batch", {"operations": [mail]}).status == 200


@pytest.mark.skipif(shutil.which("jq") is None or shutil.which("curl") is None, reason="needs curl and jq")
def test_what_was_exported_can_be_imported_into_another_cluster(start_cluster: StartCluster, tmp_path: Path):
    old, new = start_cluster(1, **ALONE), start_cluster(1, cluster_id="another", **ALONE)
    fill(old)
    exporting, importing = script("export.sh", tmp_path), script("import.sh", tmp_path)
    exported = shell(exporting, old.url(0))
    saved = tmp_path / "registry.jsonl"
    saved.write_bytes(exported)

    shell(importing, new.url(0), str(saved))

    assert len(records(exported)) == 731
    assert b"X-Api-Key" in exported and b'"secret"' in exported
    assert records(shell(exporting, new.url(0))) == records(exported)


@pytest.mark.skipif(shutil.which("jq") is None or shutil.which("curl") is None, reason="needs curl and jq")
def test_an_export_that_cannot_be_whole_fails(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        shell(script("export.sh", tmp_path), f"http://127.0.0.1:{free_port()}")


def fields_of(registration: Registration) -> dict[str, Any]:
    """As a client sends it, with checks that run no program."""
    sent = msgspec.to_builtins(registration)
    checks = [{"name": check["name"], "ttl_s": 3600, "expect_body": check["expect_body"]} for check in sent["checks"]]
    return {name: value for name, value in sent.items() if value is not None} | {"checks": checks, "ttl_s": 3600}


def emptied(cluster: Cluster, exported: bytes) -> None:
    """Removes what an export shows."""
    for kind, env, service, id in records(exported):
        if kind == "policy":
            assert cluster.ask(0, "DELETE", f"/api/v1/policies/{id}").status == 200
            continue
        path = f"{instance_path(service, id)}{'/status' if kind == 'override' else ''}?env={env}"
        assert cluster.ask(0, "DELETE", path).status in (200, 404)


@pytest.mark.skipif(shutil.which("jq") is None or shutil.which("curl") is None, reason="needs curl and jq")
def test_whatever_a_registry_may_hold_can_be_exported_and_imported(start_cluster: StartCluster, tmp_path: Path):
    """Each kind at its limits, in letters of one to four bytes and in those that shells and JSON treat as special."""
    old, new = start_cluster(1, **ALONE), start_cluster(1, cluster_id="another", **ALONE)
    exporting, importing = script("export.sh", tmp_path), script("import.sh", tmp_path)

    @settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
    @example('"', 1, 1, 0, 1)
    @given(
        st.sampled_from([*LETTERS, '"', "\\", "'", "$", "`", "%", "|"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(0, 2),
    )
    def each(letter: str, instances: int, overridden: int, unregistered: int, policies: int) -> None:
        said = {"status": "out_of_service", "reason": letter * 255}
        ids: list[str] = []
        for number in range(instances):
            made = registration(letter, number)
            ids.append(made.id)
            path = f"{instance_path(made.service, made.id)}?env={made.env}"
            assert old.ask(0, "PUT", path, fields_of(made)).status == 201
        for number, id in enumerate([*ids[:overridden], *(f"gone-{n}" for n in range(unregistered))]):
            ends = {"for_s": FOR_S_MAX} if number % 2 else {}
            path = f"{instance_path(NAME, id)}/status?env={NAME}"
            answer = old.ask(0, "PUT", path, {**said, **ends, "unregistered": True})
            assert answer.status == 200, answer
        for number in range(policies):
            path = f"/api/v1/policies/{str(number).ljust(128, 'p')}"
            answer = old.ask(0, "PUT", path, {**policy(letter), "author": letter * 255, "reason": letter * 255})
            assert answer.status in (200, 201), answer
        exported = shell(exporting, old.url(0))
        saved = tmp_path / "registry.jsonl"
        saved.write_bytes(exported)

        shell(importing, new.url(0), str(saved))

        again = shell(exporting, new.url(0))
        assert len(records(exported)) == instances + min(overridden, instances) + unregistered + policies
        assert records(again) == records(exported)
        emptied(old, exported)
        emptied(new, again)

    each()


@pytest.mark.skipif(shutil.which("jq") is None or shutil.which("curl") is None, reason="needs curl and jq")
def test_a_copy_of_a_stopped_nodes_directory_can_be_read_as_a_cluster_of_its_own(
    start_cluster: StartCluster, bench: Path, tmp_path: Path
):
    three = start_cluster(3)
    fill(three)
    three.wait_same()
    node = three.followers()[0]
    three.terminate(node)
    copy = Cluster(bench / "copy", 1, **ALONE)
    shutil.copytree(three.node_dir(node), copy.node_dir(0))
    three.start_node(node)

    copy.settings["node_id"] = three.node_id(node)
    copy.settings["members"] = ""
    refused = run_node({**copy.settings_of(0), "members": "", "node_id": three.node_id(node)})
    assert refused.returncode == 70
    assert "in a cluster of 3 (node-0, node-1, node-2), and members says 1" in refused.stdout
    copy.settings["accept_members"] = True
    try:
        copy.start_node(0)
        copy.wait_ready(30.0)
        exporting = script("export.sh", tmp_path)
        assert records(shell(exporting, copy.url(0))) == records(shell(exporting, three.url(three.wait_for_leader())))
    finally:
        copy.close()


def test_every_call_of_the_scripts_names_what_they_ask_for(tmp_path: Path):
    """In an emergency they are run as they are shown, and without their file they must not say that all is well."""
    for call in re.findall(r"sh import\.sh [^`\n]*", DOCUMENT.read_text("utf-8")):
        assert "<" not in call and len(call.split()) == 4, call

    asked = subprocess.run(
        ["sh", str(script("import.sh", tmp_path)), "http://127.0.0.1:1"], stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, check=False, timeout=10.0,
    )  # fmt: skip
    assert asked.returncode != 0
    assert b"the file" in asked.stderr
