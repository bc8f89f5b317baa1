"""Mutual TLS 1.3 between nodes: who a peer is, proved. No sockets here.

Every node has a certificate whose subject alternative name is a URI that says
which node of which cluster it is (``uri_of``), and trusts only what the CA in
its own file has signed. Both ends prove themselves; host names and addresses
play no part.

``Credentials`` are the three files of a node. They are tried out before they
are used, in a handshake of this node with itself: files that do not belong
together, that are another node's, or that are out of date are refused in words.
They are read again when they change, for the connections to come.

``Channel`` is one connection's TLS, bytes in and bytes out, so that the tick
thread never waits for anybody's handshake.
"""

import contextlib
import logging
import ssl
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import Invalid

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between two looks at the files."""
EXPIRY_WARNING_S = 14 * 24 * 3600.0
REMINDER_S = 24 * 3600.0
RECORD_BYTES = 16 * 1024
"""Of plain text in one TLS record (RFC 8446, 5.1)."""

_ALERT, _HANDSHAKE = 0x15, 0x16
_NOT_TLS = bytes((_ALERT, 3, 3, 0, 2, 2, 70))
"""The alert "protocol version" (RFC 8446, 6), from which a peer without TLS learns that there is some here."""
_NOT_YET_VALID, _EXPIRED = 9, 10
_ISSUER_UNKNOWN = (2, 18, 19, 20, 21)
_ALERTS = (
    ("CERTIFICATE_EXPIRED", "it says that this node's certificate has expired: renew it"),
    ("UNKNOWN_CA", "it does not trust this node's certificate: every node's tls_ca must hold the CA of all of them"),
    ("CERTIFICATE", "it does not accept this node's certificate; its own log says why"),
    ("PROTOCOL_VERSION", "it does not speak TLS 1.3"),
)
"""Parts of OpenSSL's names of alerts, and what a peer means by them. The first that fits counts."""


class TlsError(Exception):
    """The peer could not prove who it is, or does not accept us. The message says what to do."""


def uri_of(cluster: str, node: str) -> str:
    """What the certificate of a node says that it is."""
    return f"registry://{cluster}/node/{node}"


def is_tls(data: bytes) -> bool:
    """Whether a connection that begins so speaks TLS. No hello of ours is long enough to look like it."""
    return len(data) >= 3 and data[0] in (_ALERT, _HANDSHAKE) and data[1] == 3 and 1 <= data[2] <= 4


class Channel:
    """One connection's TLS. Hand it what arrives; send what ``outgoing`` gives after each ``receive``."""

    def __init__(self, context: ssl.SSLContext, *, accepted: bool) -> None:
        self._arrived = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        self._tls: ssl.SSLObject = context.wrap_bio(self._arrived, self._leaving, server_side=accepted)
        self._start: bytes = b""
        self.secured: bool = False
        """Whether the peer has proved who it is."""
        self.uris: tuple[str, ...] = ()
        """Who that is, by its certificate."""
        if not accepted:
            self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """The plain text that ``data`` completes. Raises ``TlsError``."""
        if len(self._start) < 3:
            self._start += data[:3]
            if len(self._start) >= 3 and not is_tls(self._start):
                self._leaving.write(_NOT_TLS)
                raise TlsError("it does not speak TLS, and this node does: all nodes need tls_cert, tls_key and tls_ca")
        self._arrived.write(data)
        if not self.secured:
            self._shake_hands()
            if not self.secured:
                return b""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECORD_BYTES):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None
        return b"".join(parts)

    def seal(self, plain: bytes) -> bytes:
        """``plain`` as it is sent, once ``secured``. Raises ``TlsError``."""
        left = memoryview(plain)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None
        return self._leaving.read()

    def outgoing(self) -> bytes:
        """What the handshake wants sent. After a ``TlsError`` that is the alert which tells the peer."""
        return self._leaving.read()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None
        self.uris = _uris(self._tls)
        self.secured = True


class _Loaded(Struct, frozen=True):
    """What a node's three files amount to."""

    accepting: ssl.SSLContext
    dialing: ssl.SSLContext
    expires_at: float


class Credentials:
    """What this node proves itself with, and what it believes.

    The constructor raises ``Invalid`` if the files are not fit to run with.
    ``look`` and ``reload`` are for one thread; ``channel`` and ``expires_at``
    for any.
    """

    def __init__(self, certificate: Path, key: Path, ca: Path, *, cluster: str, node: str) -> None:
        self._certificate: Path = certificate
        self._key: Path = key
        self._ca: Path = ca
        self._cluster: str = cluster
        self._node: str = node
        self._stamps: tuple[object, ...] = self._stamped()
        self._complaint: str = ""
        self._look_at: float = 0.0
        self._remind_at: float = 0.0
        self._loaded: _Loaded = self._load()
        self._say_loaded()

    @property
    def expires_at(self) -> float:
        """When this node's certificate, or the CA that issued it, ends; in seconds since 1970."""
        return self._loaded.expires_at

    def channel(self, *, accepted: bool) -> Channel:
        """TLS for a new connection."""
        return Channel(self._loaded.accepting if accepted else self._loaded.dialing, accepted=accepted)

    def look(self, now: float) -> None:
        """Reads the files again if they changed, and warns before the end. Call it as often as you like."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        if self._complaint or self._stamped() != self._stamps:
            self.reload(again=True)
        left_s = self.expires_at - time.time()
        if left_s < EXPIRY_WARNING_S and now >= self._remind_at:
            self._remind_at = now + REMINDER_S
            ends = f"ends in {left_s / 86400:.1f} days" if left_s > 0 else "has expired: no new connection will succeed"
            logger.warning("the certificate %s %s: renew it", self._certificate, ends)

    def reload(self, *, again: bool = False) -> None:
        """Reads the files now. What is not fit is refused with a line in the log, and what was loaded stays.

        ``again``: nobody asked for it, so a complaint is not repeated.
        """
        self._stamps = self._stamped()
        try:
            self._loaded = self._load()
        except Invalid as error:
            if error.message != self._complaint or not again:
                logger.error("the certificate in use stays, the new one is not fit: %s", error.message)
            self._complaint = error.message
            return
        self._complaint = ""
        self._remind_at = 0.0
        self._say_loaded()

    def _say_loaded(self) -> None:
        ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.expires_at))
        logger.info("certificate %s loaded, valid until %s", self._certificate, ends)

    def _stamped(self) -> tuple[object, ...]:
        """Something that changes when the files do, a change of owner or mode included."""
        stamps: list[object] = []
        for path in (self._certificate, self._key, self._ca):
            try:
                found = path.stat()
                stamps.append((found.st_ino, found.st_ctime_ns, found.st_size))
            except OSError as error:
                stamps.append(error.errno)
        return tuple(stamps)

    def _load(self) -> _Loaded:
        try:
            return self._tried_out()
        except OSError as error:
            # Replaced or taken away while they were read.
            raise Invalid(f"the certificate's files cannot be read: {error}", field="tls_cert") from None

    def _tried_out(self) -> _Loaded:
        for name, path in (("tls_cert", self._certificate), ("tls_key", self._key), ("tls_ca", self._ca)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise Invalid(f"{name}: {path} cannot be read: {error.strerror}", field=name) from None
        if self._key.stat().st_mode & 0o007:
            logger.warning("everybody on this machine may use the key %s: chmod 0600 it", self._key)
        accepting, dialing = self._context(ssl.PROTOCOL_TLS_SERVER), self._context(ssl.PROTOCOL_TLS_CLIENT)
        try:
            own = _meet(accepting, dialing)
        except ssl.SSLCertVerificationError as error:
            raise Invalid(f"tls_cert: {self._certificate} {_fault(error)}", field="tls_cert") from None
        except ssl.SSLError as error:
            raise Invalid(f"tls_cert: {self._certificate} cannot be used: {error}", field="tls_cert") from None
        uris, expected = _uris(own), uri_of(self._cluster, self._node)
        if expected not in uris:
            raise Invalid(
                f"tls_cert: {self._certificate} is the certificate of {' '.join(uris) or 'no node'}, and this node is "
                f"{expected}: give it its own",
                field="tls_cert",
            )
        return _Loaded(accepting, dialing, _expiry(own.getpeercert() or {}, dialing.get_ca_certs()))

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            # No session is resumed: every connection proves itself with the certificate of its day.
            context.num_tickets = 0
        try:
            context.load_cert_chain(self._certificate, self._key, password=self._no_password)
        except ssl.SSLError as error:
            files = f"{self._key} (tls_key) and {self._certificate} (tls_cert)"
            if error.reason == "KEY_VALUES_MISMATCH":
                raise Invalid(f"{files} do not belong together", field="tls_key") from None
            raise Invalid(f"{files} are not a key and a certificate in PEM", field="tls_cert") from None
        try:
            context.load_verify_locations(self._ca)
        except ssl.SSLError:
            raise Invalid(f"tls_ca: {self._ca} holds no certificate in PEM", field="tls_ca") from None
        return context

    def _no_password(self) -> str:
        # Otherwise OpenSSL asks at the terminal.
        raise Invalid(f"tls_key: {self._key} is locked with a passphrase: nobody is there to type it", field="tls_key")


def _meet(accepting: ssl.SSLContext, dialing: ssl.SSLContext) -> ssl.SSLObject:
    """A node's handshake with itself: nothing but what others will do too shows that its files are fit."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = dialing.wrap_bio(back, there), accepting.wrap_bio(there, back, server_side=True)
    for _ in range(2):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1]


def _uris(end: ssl.SSLObject) -> tuple[str, ...]:
    try:
        names: Any = (end.getpeercert() or {}).get("subjectAltName", ())
    except (ssl.SSLError, ValueError):
        return ()  # signed by our CA, and still nothing that can be read
    return tuple(str(value) for kind, value in names if kind == "URI")


def _expiry(certificate: Any, authorities: list[Any]) -> float:
    """The end of ``certificate``, or of its issuer if that is sooner."""
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    issuers = [ca for ca in authorities if ca["subject"] == certificate["issuer"]]
    return min(ends, max((ssl.cert_time_to_seconds(ca["notAfter"]) for ca in issuers), default=ends))


def _fault(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with a certificate, as the end of a sentence."""
    if error.verify_code == _EXPIRED:
        return "has expired, or its CA has: renew it"
    if error.verify_code == _NOT_YET_VALID:
        return "is not valid yet: check the clocks"
    if error.verify_code in _ISSUER_UNKNOWN:
        return "was not issued by a CA in tls_ca: all nodes need certificates of their cluster's own CA"
    return f"is not accepted: {error.verify_message}"


def _in_words(error: ssl.SSLError) -> str:
    """What went wrong with a peer, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate {_fault(error)}"
    reason = (error.reason or str(error)).upper().replace(" ", "_")
    if "ALERT" in reason:
        return next((words for part, words in _ALERTS if part in reason), f"it ended the handshake: {reason}")
    if "DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return "it shows no certificate: only nodes may connect here"
    if reason in ("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW"):
        return "it does not speak TLS 1.3"
    return f"its TLS is broken: {reason}"
