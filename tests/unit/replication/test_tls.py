"""Who a peer is, proved: two ends of TLS without a socket, and the files that a node proves itself with."""

import datetime
import itertools
import os
import shutil
import ssl
import struct
import time
from pathlib import Path

import pytest
from harness.certified import credentials_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.node import certs
from rollcall.replication.errors import Invalid
from rollcall.replication.network.tls import LOOK_S, REMINDER_S, Channel, Credentials, TlsError, is_tls, uri_of
from rollcall.replication.network.wire import HELLO_BYTES_MAX

CLUSTER = "test"
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two nodes, of the same nodes under another CA, and of an old cluster that are over."""
    directory = tmp_path_factory.mktemp("certificates")
    certs.make(CLUSTER, ["a", "b"], directory / "ours")
    certs.make(CLUSTER, ["a", "b"], directory / "other")
    certs.make(CLUSTER, ["a", "b"], directory / "old", days=1, now=datetime.datetime.now(datetime.UTC) - 30 * DAY)
    return directory


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """The files of node a, to be tampered with."""
    shutil.copytree(made / "ours" / "a", tmp_path / "tls")
    return tmp_path / "tls"


def pair(made: Path) -> tuple[Channel, Channel]:
    """The end of a, which accepts, and that of b, which dials."""
    accepting = credentials_of(made / "ours" / "a", CLUSTER, "a").channel(accepted=True)
    return accepting, credentials_of(made / "ours" / "b", CLUSTER, "b").channel(accepted=False)


def carry(accepting: Channel, dialing: Channel) -> None:
    """Carries bytes to and fro until nobody has anything to say."""
    while True:
        said = dialing.outgoing()
        accepting.receive(said)
        answered = accepting.outgoing()
        dialing.receive(answered)
        if not said and not answered:
            return


def context(files: Path | None, ca: Path, *, tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """What somebody dials with who is not bound to our rules."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.maximum_version = tls
    made.load_verify_locations(ca)
    if files is not None:
        made.load_cert_chain(files / "cert.pem", files / "key.pem")
    return made


# Two ends


def test_both_ends_learn_who_the_other_is_and_hear_each_other(made: Path):
    accepting, dialing = pair(made)

    carry(accepting, dialing)

    assert (accepting.secured, dialing.secured) == (True, True)
    assert accepting.uris == ("registry://test/node/b",)
    assert dialing.uris == ("registry://test/node/a",)
    assert accepting.receive(dialing.seal(b"hello")) == b"hello"
    assert dialing.receive(accepting.seal(b"x" * 1_000_000)) == b"x" * 1_000_000


def test_what_is_sent_cannot_be_read_on_the_way(made: Path):
    accepting, dialing = pair(made)
    carry(accepting, dialing)

    assert b"registry" not in dialing.seal(b"registry" * 100)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 40_000).map(lambda size: bytes(range(256)) * (size // 256)), max_size=5),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=20),
)
def test_bytes_may_arrive_in_any_pieces(made: Path, sent: list[bytes], pieces: list[int]):
    accepting, dialing = pair(made)
    sizes = itertools.cycle([*pieces, 1000])
    heard = b""
    waiting = {accepting: bytearray(), dialing: bytearray()}
    sealed = False
    while not sealed or any(waiting.values()) or not (accepting.secured and dialing.secured):
        for end, other in ((dialing, accepting), (accepting, dialing)):
            waiting[other] += end.outgoing()
        if dialing.secured and not sealed:
            sealed = True
            for part in sent:
                waiting[accepting] += dialing.seal(part)
        for end in waiting:
            size = next(sizes)
            piece, waiting[end] = bytes(waiting[end][:size]), waiting[end][size:]
            heard += end.receive(piece)

    assert heard == b"".join(sent)


def test_no_session_is_resumed(made: Path):
    """Else a peer that was let in once would be let in without its certificate."""
    accepting, dialing = pair(made)

    carry(accepting, dialing)

    assert dialing._tls.session is None or not dialing._tls.session.has_ticket


@pytest.mark.parametrize(
    ("whose", "said", "told"),
    [
        ("other", "was not issued by a CA in tls_ca", "it does not trust this node's certificate"),
        ("old", "was not issued by a CA in tls_ca", "it does not trust this node's certificate"),
        (None, "it shows no certificate", "it does not accept this node's certificate"),
    ],
)
def test_who_cannot_prove_itself_is_refused_and_told(made: Path, whose: str | None, said: str, told: str):
    accepting, _ = pair(made)
    files = None if whose is None else made / whose / "b"
    dialing = Channel(context(files, made / "ours" / "a" / "ca.pem"), accepted=False)

    with pytest.raises(TlsError, match=said):
        carry(accepting, dialing)
    assert not accepting.secured
    with pytest.raises(TlsError, match=told):
        dialing.receive(accepting.outgoing())


def test_a_certificate_that_is_over_is_refused_and_its_owner_told(made: Path):
    accepting = credentials_of(made / "ours" / "a", CLUSTER, "a")
    accepting._loaded.accepting.load_verify_locations(made / "old" / "a" / "ca.pem")
    channel = accepting.channel(accepted=True)
    dialing = Channel(context(made / "old" / "b", made / "ours" / "a" / "ca.pem"), accepted=False)

    with pytest.raises(TlsError, match="its certificate has expired"):
        carry(channel, dialing)
    with pytest.raises(TlsError, match="this node's certificate has expired: renew it"):
        dialing.receive(channel.outgoing())


def test_a_node_that_is_dialed_must_prove_itself_too(made: Path):
    _, dialing = pair(made)
    accepting = credentials_of(made / "other" / "a", CLUSTER, "a").channel(accepted=True)

    with pytest.raises(TlsError, match="its certificate was not issued by a CA in tls_ca"):
        carry(accepting, dialing)
    assert not dialing.secured


def test_older_tls_is_refused(made: Path):
    accepting, _ = pair(made)
    old = Channel(
        context(made / "ours" / "b", made / "ours" / "a" / "ca.pem", tls=ssl.TLSVersion.TLSv1_2), accepted=False
    )

    with pytest.raises(TlsError, match=r"it does not speak TLS 1\.3"):
        carry(accepting, old)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x20\x00\x00\x00\x9a\x00", b"\x00" * 100, b"\x16\x02\x00"])
@pytest.mark.parametrize("end", [0, 1])
def test_a_peer_without_tls_is_refused_in_words(made: Path, data: bytes, end: int):
    channel = pair(made)[end]
    channel.outgoing()

    with pytest.raises(TlsError, match="does not speak TLS, and this node does: all nodes need tls_cert"):
        channel.receive(data)
    assert is_tls(channel.outgoing()), "an alert, from which a node without TLS can learn"


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000])
def test_rubbish_that_begins_like_tls_is_refused(made: Path, data: bytes):
    with pytest.raises(TlsError, match="its TLS is broken"):
        pair(made)[0].receive(data)


def test_what_was_changed_on_the_way_ends_the_connection(made: Path):
    accepting, dialing = pair(made)
    carry(accepting, dialing)
    sealed = bytearray(dialing.seal(b"vote for me"))
    sealed[-1] ^= 1

    with pytest.raises(TlsError, match="its TLS is broken"):
        accepting.receive(bytes(sealed))


def test_a_peer_that_ends_tls_in_order_is_no_error(made: Path):
    accepting, dialing = pair(made)
    carry(accepting, dialing)
    with pytest.raises(ssl.SSLWantReadError):
        dialing._tls.unwrap()

    assert accepting.receive(dialing.outgoing()) == b""


def test_no_hello_of_ours_looks_like_tls():
    lengths = range(HELLO_BYTES_MAX + 1)

    assert not any(is_tls(struct.pack("<I", length)) for length in lengths)
    assert is_tls(b"\x16\x03\x01\x02\x00")


# The files of a node


def test_files_that_are_fit_say_until_when(files: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")

    credentials = credentials_of(files, CLUSTER, "a")

    days = (credentials.expires_at - time.time()) / 86400
    assert 364 < days <= 365
    assert f"{files / 'cert.pem'} loaded, valid until" in caplog.text


def test_the_end_of_the_ca_counts_if_it_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A CA that others made may well end before what it issued."""
    with monkeypatch.context() as patched:
        patched.setattr(certs, "CA_DAYS", 5)
        certs.make(CLUSTER, ["x"], tmp_path, days=5)
    now = datetime.datetime.now(datetime.UTC)
    authority = certs._read_authority(tmp_path / "ca", CLUSTER, now)
    assert authority is not None
    issued = certs._issue(authority, CLUSTER, "a", now, now + 100 * DAY)
    (tmp_path / "x" / "cert.pem").write_bytes(issued.pem())
    (tmp_path / "x" / "key.pem").write_bytes(issued.key_pem())

    credentials = credentials_of(tmp_path / "x", CLUSTER, "a")

    assert 4 < (credentials.expires_at - time.time()) / 86400 <= 5


def test_files_that_are_not_fit_are_refused_in_words(made: Path, files: Path):
    def refused(source: Path, name: str, *, node: str = "a", cluster: str = CLUSTER) -> str:
        shutil.copyfile(source, files / name)
        with pytest.raises(Invalid) as caught:
            credentials_of(files, cluster, node)
        shutil.copyfile(made / "ours" / "a" / name, files / name)
        return caught.value.message

    own = made / "ours" / "a"
    assert "do not belong together" in refused(made / "ours" / "b" / "key.pem", "key.pem")
    assert "are not a key and a certificate in PEM" in refused(own / "key.pem", "cert.pem")
    assert "holds no certificate in PEM" in refused(own / "key.pem", "ca.pem")
    assert "was not issued by a CA in tls_ca" in refused(made / "other" / "a" / "ca.pem", "ca.pem")
    assert "is the certificate of registry://test/node/a, and this node is registry://test/node/b" in refused(
        own / "cert.pem", "cert.pem", node="b"
    )
    assert "this node is registry://prod/node/a" in refused(own / "cert.pem", "cert.pem", cluster="prod")
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (files / name).rename(files / "elsewhere")
        with pytest.raises(Invalid, match=f"{name} cannot be read: No such file"):
            credentials_of(files, CLUSTER, "a")
        (files / "elsewhere").rename(files / name)
    with pytest.raises(Invalid, match="has expired, or its CA has: renew it"):
        credentials_of(made / "old" / "a", CLUSTER, "a")


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: Path):
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key((files / "key.pem").read_bytes(), password=None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    (files / "key.pem").write_bytes(locked)

    with pytest.raises(Invalid, match="is locked with a passphrase"):
        credentials_of(files, CLUSTER, "a")


def test_a_key_that_everybody_may_read_is_warned_of(files: Path, caplog: pytest.LogCaptureFixture):
    (files / "key.pem").chmod(0o604)

    credentials_of(files, CLUSTER, "a")

    assert "everybody on this machine may use the key" in caplog.text


# Files that change


def meet(accepting: Credentials, dialing: Credentials) -> bool:
    """Whether these two let each other in."""
    ends = accepting.channel(accepted=True), dialing.channel(accepted=False)
    try:
        carry(*ends)
    except TlsError:
        return False
    return ends[0].secured and ends[1].secured


def test_new_files_are_noticed_and_used_for_the_connections_to_come(made: Path, files: Path):
    credentials = credentials_of(files, CLUSTER, "a")
    peer = credentials_of(made / "other" / "b", CLUSTER, "b")
    credentials.look(100.0)
    shutil.copytree(made / "other" / "a", files, dirs_exist_ok=True)

    credentials.look(100.0 + LOOK_S - 1)
    before = meet(credentials, peer)
    credentials.look(100.0 + LOOK_S)

    assert (before, meet(credentials, peer)) == (False, True)


def test_files_that_did_not_change_are_not_read_again(files: Path, monkeypatch: pytest.MonkeyPatch):
    credentials = credentials_of(files, CLUSTER, "a")
    reads: list[int] = []
    monkeypatch.setattr(Credentials, "_load", lambda self: reads.append(1))

    for second in range(0, 600, 5):
        credentials.look(float(second))

    assert reads == []


def test_a_file_that_is_broken_is_refused_once_and_what_was_loaded_stays(
    made: Path, files: Path, caplog: pytest.LogCaptureFixture
):
    credentials = credentials_of(files, CLUSTER, "a")
    peer = credentials_of(made / "ours" / "b", CLUSTER, "b")
    (files / "cert.pem").write_text("not a certificate")

    for second in range(0, 600, 5):
        credentials.look(float(second))

    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "the certificate in use stays" in caplog.text
    assert meet(credentials, peer)


def test_a_complaint_is_repeated_when_somebody_asks(files: Path, caplog: pytest.LogCaptureFixture):
    credentials = credentials_of(files, CLUSTER, "a")
    (files / "key.pem").unlink()

    credentials.look(0.0)
    credentials.reload()

    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]


def test_files_that_are_mended_are_used_even_if_they_look_the_same(
    made: Path, files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Between the look and the reading they may have been mended already."""
    caplog.set_level("INFO")
    credentials = credentials_of(files, CLUSTER, "a")
    (files / "ca.pem").write_text("")
    credentials.look(0.0)
    monkeypatch.setattr(credentials, "_stamped", lambda: credentials._stamps)
    shutil.copyfile(made / "ours" / "a" / "ca.pem", files / "ca.pem")

    credentials.look(LOOK_S)

    assert caplog.records[-1].message.startswith("certificate ")


def test_a_ca_is_replaced_step_by_step_without_a_moment_in_which_nodes_do_not_know_each_other(
    made: Path, tmp_path: Path
):
    nodes = ("a", "b")
    for node in nodes:
        shutil.copytree(made / "ours" / node, tmp_path / node)
    held = {node: credentials_of(tmp_path / node, CLUSTER, node) for node in nodes}
    both = b"".join((made / which / "ca" / "ca.pem").read_bytes() for which in ("ours", "other"))

    def step(node: str, change: str) -> None:
        if change == "trust both":
            (tmp_path / node / "ca.pem").write_bytes(both)
        elif change == "new certificate":
            for name in ("cert.pem", "key.pem"):
                shutil.copyfile(made / "other" / node / name, tmp_path / node / name)
        else:
            shutil.copyfile(made / "other" / "ca" / "ca.pem", tmp_path / node / "ca.pem")
        held[node].reload()
        assert meet(held["a"], held["b"]), (node, change)
        assert meet(held["b"], held["a"]), (node, change)

    for change in ("trust both", "new certificate", "trust the new one"):
        for node in nodes:
            step(node, change)

    assert not meet(held["a"], credentials_of(made / "ours" / "b", CLUSTER, "b"))


def test_the_end_of_a_certificate_is_announced_two_weeks_ahead_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    certs.make(CLUSTER, ["a"], tmp_path, days=13)
    credentials = credentials_of(tmp_path / "a", CLUSTER, "a")

    for hour in range(49):
        credentials.look(hour * 3600.0)

    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1 + 48 * 3600 // int(REMINDER_S)
    assert "cert.pem ends in 13.0 days: renew it" in warnings[0]
    certs.make(CLUSTER, ["a"], tmp_path, days=90)
    caplog.clear()
    for hour in range(49, 99):
        credentials.look(hour * 3600.0)
    assert caplog.records == []


def test_a_uri_names_cluster_and_node():
    assert uri_of("prod", "n1") == "registry://prod/node/n1"


def test_looking_needs_no_file_to_be_there(files: Path):
    credentials = credentials_of(files, CLUSTER, "a")
    for name in os.listdir(files):
        (files / name).unlink()

    credentials.look(0.0)

    assert credentials.expires_at > time.time()
