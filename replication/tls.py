"""Mutual TLS 1.3 between nodes: who a peer is, proved. No sockets here.

Every node has a certificate whose subject alternative name is a URI that says
which node of which cluster it is (``uri_of``), and trusts only the certificates
in one file, the cluster's own CA. Both ends prove themselves; host names and
addresses play no part.

``Credentials`` are the three files of a node. They are tried out before they
are used, by a handshake of this node with itself: files that do not belong
together, that belong to another node, or that are out of date are refused in
words. They are read again when they change, for the connections that come.

``Channel`` is one connection's TLS, with bytes in and bytes out, so that the
tick thread never waits for a peer's handshake.
"""

import contextlib
import logging
import ssl
import threading
import time
from pathlib import Path

from .errors import Invalid

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between two looks at the files."""
EXPIRY_WARNING_S = 14 * 24 * 3600.0
REMINDER_S = 24 * 3600.0
RECORD_BYTES = 16 * 1024
"""Of plain text in one TLS record."""

_HANDSHAKE_OR_ALERT = (0x16, 0x15)
_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
_ALERTS = {
    "CERTIFICATE_EXPIRED": "it says that this node's certificate, or its CA, has expired: renew it",
    "UNKNOWN_CA": "it does not trust the CA of this node's certificate: give both the CA of all nodes' certificates "
    "in tls_ca",
    "CERTIFICATE_REQUIRED": "it wants a certificate and got none: set tls_cert and tls_key",
    "PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "CERTIFICATE": "it does not accept this node's certificate: its log says why",
}
"""What a peer's alert means, by a part of the name that OpenSSL gives it; the first that fits."""


class TlsError(Exception):
    """A peer that could not prove itself, or does not accept us; the message says what is wrong and what to do."""


def uri_of(cluster: str, node: str) -> str:
    """What a node's certificate says of it."""
    return f"registry://{cluster}/node/{node}"


def is_tls(data: bytes) -> bool:
    """Whether this looks like the first bytes of a TLS handshake or alert; no hello of ours looks like that."""
    return len(data) >= 3 and data[0] in _HANDSHAKE_OR_ALERT and data[1] == 3 and data[2] <= 4


class Channel:
    """One connection's TLS. Hand ``receive`` what arrives, and send what ``outgoing`` gives after each call."""

    def __init__(self, context: ssl.SSLContext, *, accepted: bool) -> None:
        self._from_peer = ssl.MemoryBIO()
        self._to_peer = ssl.MemoryBIO()
        self._tls: ssl.SSLObject = context.wrap_bio(self._from_peer, self._to_peer, server_side=accepted)
        self._heard: bytes = b""
        self.secured: bool = False
        """Whether both have proved themselves, as far as this end can know."""
        if not accepted:
            self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """The plain text that ``data`` completes. Raises ``TlsError``."""
        if len(self._heard) < 3:
            self._heard = (self._heard + data)[:3]
            if len(self._heard) == 3 and not is_tls(self._heard):
                raise TlsError("it does not speak TLS, and this node does: give it tls_cert, tls_key and tls_ca too")
        self._from_peer.write(data)
        if not self.secured:
            self._shake_hands()
            if not self.secured:
                return b""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECORD_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seal(self, plain: bytes) -> bytes:
        """``plain`` as bytes to send. Only once ``secured``."""
        left = memoryview(plain)
        while left:
            left = left[self._tls.write(left) :]
        return self._to_peer.read()

    def outgoing(self) -> bytes:
        """What the handshake wants sent: alerts too, so also after a ``TlsError``."""
        return self._to_peer.read()

    def uris(self) -> tuple[str, ...]:
        """Who the peer is, by its certificate. Only once ``secured``."""
        return tuple(value for kind, value in self._certificate().get("subjectAltName", ()) if kind == "URI")

    def expires_at(self) -> float:
        """Until when the peer's certificate is valid, in seconds of the epoch."""
        return ssl.cert_time_to_seconds(self._certificate()["notAfter"])

    def issuer(self) -> object:
        return self._certificate()["issuer"]

    def _certificate(self) -> dict:
        return self._tls.getpeercert() or {}

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise TlsError(_in_words(error)) from None
        self.secured = True
