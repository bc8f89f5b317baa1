"""``rollcall-node certs``: a CA of the cluster's own, and a certificate for every node.

For people who have no PKI; who has one gives each node a certificate for both
ends of TLS whose subject alternative name is the URI ``uri_of`` makes. What is
made is plain X.509: ECDSA P-256, PEM, one folder for each node to be copied
there, and one for the CA, which stays away from the nodes.

    DIR/ca/ca.pem  DIR/ca/ca.key      the CA; who has its key can make nodes
    DIR/n1/cert.pem  key.pem  ca.pem  for node n1

The same command again, with the CA still in its place, renews. Nothing is
overwritten that this CA did not issue.
"""

import argparse
import datetime
import os
import re
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..replication.errors import Invalid
from ..replication.network.tls import uri_of
from .settings.addresses import ID_PATTERN

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

USAGE = 2
NODE_DAYS = 365
CA_DAYS = 3650
CA_FOLDER = "ca"
SKEW = datetime.timedelta(hours=1)
"""A certificate is valid from a little before it was made: clocks differ."""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rollcall-node certs",
        description="Makes a CA for a cluster, and certificates for its nodes to know each other by. Run it again "
        "to renew them under the same CA.",
    )
    parser.add_argument("--cluster-id", required=True, metavar="ID", help="the nodes' setting cluster_id")
    parser.add_argument("--nodes", required=True, metavar="ID,ID,...", help="the nodes to make certificates for")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--days", type=int, default=NODE_DAYS, help=f"validity of the nodes' certificates (default {NODE_DAYS})"
    )
    options = parser.parse_args(list(argv))
    if util.find_spec("cryptography") is None:
        return _failed("it needs cryptography: pip install 'rollcall-registry[tls]'")
    nodes = [node.strip() for node in options.nodes.split(",") if node.strip()]
    try:
        said = make(options.cluster_id, nodes, options.out, days=options.days)
    except Invalid as error:
        return _failed(error.message)
    except OSError as error:
        return _failed(f"{error.filename or options.out}: {error.strerror}")
    print("\n".join(said))  # noqa: T201
    return 0


def _failed(why: str) -> int:
    print(f"rollcall-node certs: {why}", file=sys.stderr)  # noqa: T201
    return USAGE


def make(
    cluster: str, nodes: Sequence[str], directory: Path, *, days: int = NODE_DAYS, now: datetime.datetime | None = None
) -> list[str]:
    """Makes or renews the files; the lines that say what to do with them.

    Raises ``Invalid`` before anything is written if something stands in the way.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    _check_names(cluster, nodes, days)
    folder = directory / CA_FOLDER
    authority = _read_authority(folder, cluster, now)
    for node in nodes:
        _check_may_write(directory / node, authority)
    is_new = authority is None
    if authority is None:
        authority = _new_authority(cluster, now)
        _make_folder(folder)
        _write(folder / "ca.key", authority.key_pem(), 0o600)
        _write(folder / "ca.pem", authority.pem(), 0o644)
    expires_at = min(now + datetime.timedelta(days=days), authority.certificate.not_valid_after_utc)
    said = [
        f"{'made' if is_new else 'kept'} {folder}/: the CA of cluster {cluster}, valid until "
        f"{authority.certificate.not_valid_after_utc:%Y-%m-%d}; keep ca.key off the nodes, who has it can make nodes"
    ]
    for node in nodes:
        target = directory / node
        is_renewed = (target / "cert.pem").exists()
        _make_folder(target)
        issued = _issue(authority, cluster, node, now, expires_at)
        if not _holds(target / "ca.pem", authority):
            _write(target / "ca.pem", authority.pem(), 0o644)
        _write(target / "key.pem", issued.key_pem(), 0o600)
        _write(target / "cert.pem", issued.pem(), 0o644)
        said.append(f"{'renewed' if is_renewed else 'made'} {target}/: for {node} alone, valid until {expires_at:%F}")
    if expires_at < now + datetime.timedelta(days=days):
        said.append("the certificates end with their CA: make a new CA in another directory soon")
    said += [
        "",
        "Copy each folder to its node as /etc/rollcall/tls, readable for the node's user alone, and set there:",
        "  [cluster]",
        *(f'  {name} = "/etc/rollcall/tls/{file}.pem"'
          for name, file in (("tls_cert", "cert"), ("tls_key", "key"), ("tls_ca", "ca"))),
        "A node that runs notices new files within 10 s, or at once on SIGHUP.",
    ]  # fmt: skip
    return said


class _Signed(NamedTuple):
    """A certificate and its key."""

    certificate: "x509.Certificate"
    key: "EllipticCurvePrivateKey"

    def pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# What must hold before anything is written


def _check_names(cluster: str, nodes: Sequence[str], days: int) -> None:
    for what, name in (("cluster_id", cluster), *(("node", node) for node in nodes)):
        if not re.match(ID_PATTERN, name) or name in (".", ".."):
            raise Invalid(f"{what}: expected 1 to 64 of letters, digits, '.', '_', '-', got {name!r}")
    if not nodes:
        raise Invalid("--nodes names nobody")
    if CA_FOLDER in nodes:
        raise Invalid(f"a node called {CA_FOLDER!r} would share the folder of the CA: use your own PKI for that name")
    if not 1 <= days <= CA_DAYS:
        raise Invalid(f"--days: expected 1 to {CA_DAYS}, got {days}")


def _read_authority(folder: Path, cluster: str, now: datetime.datetime) -> _Signed | None:
    """The CA that is there, fit to issue for ``cluster``, or None."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
    if not certificate_path.exists() and not key_path.exists():
        return None
    for path, other in ((key_path, certificate_path), (certificate_path, key_path)):
        if not path.exists():
            raise Invalid(f"{other} is there and {path} is not: bring it back, or use another --out for a new CA")
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise Invalid(f"the CA in {folder} cannot be read: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise Invalid(f"{key_path} is not the key of {certificate_path}: use another --out for a new CA")
    if certificate.subject != _name(cluster, _common_name(certificate.subject)):
        owner = certificate.subject.rfc4514_string()
        raise Invalid(f"the CA in {folder} ({owner}) is not one of cluster {cluster}: use another --out for a new CA")
    if certificate.not_valid_after_utc <= now:
        raise Invalid(f"the CA in {folder} has expired: use another --out for a new CA")
    return _Signed(certificate, key)


def _check_may_write(folder: Path, authority: _Signed | None) -> None:
    """A node's folder may be new, or hold what this CA issued."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    found = [path for path in (folder / "cert.pem", folder / "key.pem", folder / "ca.pem") if path.exists()]
    if not found:
        return
    wrong = f"{found[0]} is there already and was not issued by this CA: move {folder} away, or use another --out"
    if authority is None or found[0].name != "cert.pem":
        raise Invalid(wrong)
    try:
        x509.load_pem_x509_certificate(found[0].read_bytes()).verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise Invalid(wrong) from None


# Making certificates


def _new_authority(cluster: str, now: datetime.datetime) -> _Signed:
    from cryptography import x509

    # The number keeps two CAs of one cluster apart while one takes over from the other.
    name = _name(cluster, f"Rollcall CA {x509.random_serial_number():x}"[:32])
    return _signed(name, now, now + datetime.timedelta(days=CA_DAYS), issuer=None, uri=None)


def _issue(
    authority: _Signed, cluster: str, node: str, now: datetime.datetime, expires_at: datetime.datetime
) -> _Signed:
    return _signed(_name(cluster, node), now, expires_at, issuer=authority, uri=uri_of(cluster, node))


def _signed(
    name: "x509.Name",
    now: datetime.datetime,
    expires_at: datetime.datetime,
    *,
    issuer: _Signed | None,
    uri: str | None,
) -> _Signed:
    """A new key and its certificate: a CA that signs itself without an ``issuer``, else a node's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(expires_at)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        .add_extension(_usage(sign_others=issuer is None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
    if uri is not None:
        both_ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both_ends), False).add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False
        )
    return _Signed(builder.sign(signer, SHA256()), key)


def _usage(*, sign_others: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not sign_others,
        key_cert_sign=sign_others,
        crl_sign=sign_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(cluster: str, common_name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _common_name(name: "x509.Name") -> str:
    from cryptography.x509.oid import NameOID

    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else "-"


# Files


def _holds(path: Path, authority: _Signed) -> bool:
    """Whether a bundle of CAs has this one in it already, perhaps among others."""
    return path.exists() and authority.pem().strip() in path.read_bytes()


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    """The whole file at once: a node that reads it meanwhile sees the old or the new one."""
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
