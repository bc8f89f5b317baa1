"""Where a server listens, how many connections this process can afford, and what is set on each of them."""

import errno
import logging
import resource
import socket
from typing import Any

logger = logging.getLogger(__name__)


def bound_to(host: str, port: int) -> socket.socket:
    """A socket bound and not listening yet, or an ``OSError`` in the operator's words.

    Of a name with several addresses, the first one that this machine has.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    for left, (family, kind, protocol, _, address) in enumerate(places, 1 - len(places)):
        try:
            return _bound(family, kind, protocol, address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(error.errno, in_use(host, port)) from None
            if not left:
                raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    raise AssertionError("unreachable: the last try returns or raises")


def in_use(host: str, port: int) -> str:
    return f"address {host}:{port} is in use; choose another port"


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def affordable(connection_limit: int, kept_free: int, files_each: int) -> int:
    """``connection_limit``, or what the process' limit of open files allows where each takes ``files_each``.

    Past the limit of files, accepting fails in a busy loop; past the limit of
    connections, newcomers wait in the kernel's queue.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = max(16, (files - kept_free) // files_each)
    if files != resource.RLIM_INFINITY and allowed < connection_limit:
        logger.warning(
            "fewer connections than wished: raise the limit of open files (ulimit -n)",
            extra={"wished": connection_limit, "allowed": allowed, "open_files": files},
        )
        return allowed
    return connection_limit


def socket_options(stalled_s: float) -> list[tuple[int, int, int]]:
    """For every connection: nothing waits for more to send, and it ends once its client is gone or reads nothing."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # Linux: ends a connection whose other side vanished, or stopped reading, with data under way.
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None:
        options.append((socket.IPPROTO_TCP, user_timeout, int(stalled_s * 1000)))
    return options
