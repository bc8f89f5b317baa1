"""Networks that an operator names, and which addresses are within them."""

import functools
import ipaddress
from collections.abc import Iterable

from ..errors import Invalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Iterable[str], field: str = "trusted") -> tuple[Network, ...]:
    """``loopback`` is this machine. Raises ``Invalid`` that names what is no network."""
    found: list[Network] = []
    for text in texts:
        if text == "loopback":
            found += LOOPBACK
            continue
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise Invalid(f"{field}: {text[:100]!r} is no network, like 10.0.0.0/8 or ::1", field=field) from None
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of them; an IPv4 address is the same if it is written as IPv6."""
    try:
        parsed = unmapped(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


@functools.lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Whom a share is counted for: an address of IPv4, but a network of IPv6, of which one client has a whole one."""
    try:
        parsed = unmapped(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


def unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its zone, and of IPv4 if it is one that is written as IPv6. ``ValueError`` if it is none."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


LOOPBACK: tuple[Network, ...] = networks(("127.0.0.0/8", "::1"))
