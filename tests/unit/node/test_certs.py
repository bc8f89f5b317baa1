"""``rollcall-node certs``: what it makes, what it renews, and what it will not touch."""

import datetime
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from harness.certified import credentials_of
from rollcall.node import certs
from rollcall.node.__main__ import main
from rollcall.replication.errors import Invalid

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
NODES = ("n1", "n2", "n3")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "here"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(out: Path, cluster: str = "prod", *nodes: str, days: int = 30) -> str:
    """Why nothing was made, and nothing was."""
    before = contents(out)
    with pytest.raises(Invalid) as caught:
        certs.make(cluster, nodes or NODES, out, days=days)
    assert contents(out) == before
    return caught.value.message


def test_each_node_gets_files_with_which_it_knows_the_others(out: Path):
    certs.make("prod", NODES, out)
    one, two = (credentials_of(out / node, "prod", node) for node in ("n1", "n2"))
    accepting, dialing = one.channel(accepted=True), two.channel(accepted=False)

    accepting.receive(dialing.outgoing())
    dialing.receive(accepting.outgoing())
    accepting.receive(dialing.outgoing())

    assert (accepting.uris, dialing.uris) == (("registry://prod/node/n2",), ("registry://prod/node/n1",))


def test_keys_are_for_their_owner_alone(out: Path):
    certs.make("prod", NODES, out)

    modes = {path.relative_to(out): stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    assert {mode for path, mode in modes.items() if path.suffix == ".key" or path.name == "key.pem"} == {0o600}
    assert {mode for path, mode in modes.items() if (out / path).is_dir()} == {0o700}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert sorted(map(str, modes)) == sorted(
        ["ca", "ca/ca.key", "ca/ca.pem"]
        + [f"{node}{file}" for node in NODES for file in ("", "/ca.pem", "/cert.pem", "/key.pem")]
    )


def test_no_node_holds_the_key_of_another_or_of_the_ca(out: Path):
    certs.make("prod", NODES, out)

    keys = [path.read_bytes() for path in (out / "ca" / "ca.key", *(out / node / "key.pem" for node in NODES))]
    assert len(set(keys)) == 4


def test_the_certificates_say_what_they_are_for(out: Path):
    certs.make("prod", NODES, out, days=30, now=NOW)
    authority, node = certificate(out / "ca" / "ca.pem"), certificate(out / "n1" / "cert.pem")

    node.verify_directly_issued_by(authority)
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["registry://prod/node/n1"]
    assert node.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not authority.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert node.not_valid_after_utc == NOW + 30 * DAY
    assert node.not_valid_before_utc < NOW, "the clocks of other nodes may be behind"
    assert authority.not_valid_after_utc == NOW + certs.CA_DAYS * DAY


def test_again_with_the_same_ca_renews_what_is_named_and_nothing_else(out: Path):
    certs.make("prod", NODES, out, days=30)
    before = contents(out)
    old = credentials_of(out / "n2", "prod", "n2")

    said = certs.make("prod", ["n1", "n4"], out, days=60)

    after = contents(out)
    changed = {path.relative_to(out).as_posix() for path in after if after[path] != before.get(path)}
    assert changed == {"n1/cert.pem", "n1/key.pem", "n4/ca.pem", "n4/cert.pem", "n4/key.pem"}
    accepting = credentials_of(out / "n1", "prod", "n1").channel(accepted=True)
    accepting.receive(old.channel(accepted=False).outgoing())
    assert [line.partition(" ")[0] for line in said[:3]] == ["kept", "renewed", "made"]


def test_a_bundle_in_which_two_cas_stand_is_left_as_it_is(out: Path, tmp_path: Path):
    """A change of the CA is under way there."""
    certs.make("prod", ["n1"], out)
    certs.make("prod", ["n1"], tmp_path / "next")
    both = (tmp_path / "next" / "ca" / "ca.pem").read_bytes() + (out / "ca" / "ca.pem").read_bytes()
    (out / "n1" / "ca.pem").write_bytes(both)

    certs.make("prod", ["n1"], out)

    assert (out / "n1" / "ca.pem").read_bytes() == both


def test_two_cas_of_one_cluster_can_be_told_apart(out: Path, tmp_path: Path):
    certs.make("prod", ["n1"], out)
    certs.make("prod", ["n1"], tmp_path / "next")

    assert certificate(out / "ca" / "ca.pem").subject != certificate(tmp_path / "next" / "ca" / "ca.pem").subject


def test_no_certificate_outlives_its_ca(out: Path):
    certs.make("prod", ["n1"], out, days=30, now=NOW - (certs.CA_DAYS - 10) * DAY)

    said = certs.make("prod", ["n1"], out, days=30, now=NOW)

    assert certificate(out / "n1" / "cert.pem").not_valid_after_utc == NOW + 10 * DAY
    assert "the certificates end with their CA: make a new CA in another directory soon" in said


def test_nothing_is_overwritten_that_this_ca_did_not_issue(out: Path, tmp_path: Path):
    certs.make("prod", ["n1"], tmp_path / "other")
    certs.make("prod", ["n1"], out)
    certs.make("prod", ["n2"], tmp_path / "bare")

    for name in ("ca.pem", "ca.key"):
        path = tmp_path / "bare" / "ca" / name
        kept = path.read_bytes()
        path.unlink()
        assert f"{path} is not: bring it back" in refused(tmp_path / "bare")
        path.write_bytes(kept)
    (out / "ca" / "ca.pem").rename(out / "ca.pem")
    (out / "ca" / "ca.key").rename(out / "ca.key")
    assert "cert.pem is there already and was not issued by this CA" in refused(out)
    (out / "ca.pem").rename(out / "ca" / "ca.pem")
    (out / "ca.key").rename(out / "ca" / "ca.key")
    (tmp_path / "other" / "n1" / "cert.pem").rename(out / "n1" / "cert.pem")
    assert "cert.pem is there already and was not issued by this CA" in refused(out)
    (out / "n1" / "cert.pem").write_text("something else")
    assert "cert.pem is there already and was not issued by this CA" in refused(out)
    (out / "n1" / "cert.pem").unlink()
    assert "key.pem is there already and was not issued by this CA" in refused(out)


def test_a_ca_that_is_not_this_clusters_or_is_over_or_broken_is_not_used(out: Path, tmp_path: Path):
    certs.make("prod", ["n1"], out)
    assert "is not one of cluster stage" in refused(out, "stage")

    certs.make("prod", ["n1"], tmp_path / "old", now=NOW - (certs.CA_DAYS + 1) * DAY)
    assert "has expired: use another --out" in refused(tmp_path / "old")

    certs.make("prod", ["n1"], tmp_path / "other")
    (out / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca" / "ca.key").read_bytes())
    assert "is not the key of" in refused(out)
    (out / "ca" / "ca.key").write_text("broken")
    assert "cannot be read" in refused(out)


@pytest.mark.parametrize(
    ("cluster", "nodes", "days", "said"),
    [
        ("a/b", ["n1"], 30, "cluster_id: expected 1 to 64 of letters"),
        ("prod", ["n1", "../../etc"], 30, "node: expected 1 to 64 of letters"),
        ("prod", [".."], 30, "got '..'"),
        ("prod", ["ca"], 30, "would share the folder of the CA"),
        ("prod", ["n1"], 0, "--days: expected 1 to 3650, got 0"),
        ("prod", ["n1"], 3651, "--days: expected 1 to 3650, got 3651"),
    ],
)
def test_names_and_times_that_cannot_be_are_refused(out: Path, cluster: str, nodes: list[str], days: int, said: str):
    assert said in refused(out, cluster, *nodes, days=days)
    assert not out.exists()


def test_nobody_is_no_node(out: Path):
    with pytest.raises(Invalid, match="--nodes names nobody"):
        certs.make("prod", [], out)


# The command


def test_the_command_says_what_goes_where_and_until_when(out: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["certs", "--cluster-id", "prod", "--nodes", "n1, n2,", "--out", str(out), "--days", "7"])

    said = capsys.readouterr().out
    assert code == 0
    ends = certificate(out / "n1" / "cert.pem").not_valid_after_utc
    assert f"made {out}/n1/: for n1 alone, valid until {ends:%Y-%m-%d}" in said
    assert f"made {out}/n2/: for n2 alone" in said
    assert "keep ca.key off the nodes" in said
    assert 'tls_cert = "/etc/rollcall/tls/cert.pem"' in said
    assert not (out / "n3").exists()


def test_the_command_says_why_not(out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["certs", "--cluster-id", "prod", "--nodes", "..", "--out", str(out)]) == 2
    assert "rollcall-node certs: node: expected 1 to 64" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["certs", "--cluster-id", "prod", "--nodes", "n1", "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'}: File exists" in capsys.readouterr().err


def test_without_the_library_the_command_says_what_to_install(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(certs.util, "find_spec", lambda name: None)

    assert main(["certs", "--cluster-id", "prod", "--nodes", "n1", "--out", str(out)]) == 2

    assert "it needs cryptography: pip install 'rollcall-registry[tls]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_node_that_has_certificates_needs_no_library_for_them(out: Path):
    """What runs in a node is the standard library's TLS."""
    certs.make("prod", ["n1"], out)
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "import rollcall.node.__main__\n"
        "from rollcall.replication.network.tls import Credentials\n"
        "print(Credentials(*map(Path, sys.argv[1:]), cluster='prod', node='n1').expires_at)"
    )
    files = [str(out / "n1" / name) for name in ("cert.pem", "key.pem", "ca.pem")]
    command = [sys.executable, "-c", program, *files]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)

    assert float(shown.stdout) == certificate(out / "n1" / "cert.pem").not_valid_after_utc.timestamp()
