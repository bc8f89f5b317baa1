"""Where health checks may go. Pure: addresses in, yes or no out.

A check may ask what the operator named in ``checks_networks``: networks, and by the word
``own`` (which is the default) the address of the instance itself. Whatever is named,
nothing is asked that is no host's address; link-local addresses and those of the clouds'
metadata services only if a network no wider than theirs is named.

An IPv6 address that leads to an IPv4 one is judged as that one: mapped (RFC 4291),
compatible, NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380).
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from msgspec import Struct

from ...replication import places
from ...replication.errors import Invalid
from ...replication.records import Instance

OWN = "own"
"""In ``checks_networks``: an instance's own addresses."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NOWHERE: tuple[Network, ...] = tuple(
    map(ipaddress.ip_network, ("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8"))
)
"""No one host's address: unspecified, multicast, broadcast."""

GUARDED: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local, and with it the metadata services of most clouds
            "fe80::/10",
            "100.100.100.200/32",  # metadata: Alibaba Cloud
            "168.63.129.16/32",  # the host agent of Azure
            "192.0.0.192/32",  # metadata: Oracle Cloud
            "fd00:ec2::/32",  # metadata and more: AWS
            "fd20:ce::254/128",  # metadata: Google Cloud
            "240.0.0.0/4",  # reserved
        ),
    )
)
"""Asked only if a network that lies within one of these is named."""

_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.ip_network("::/96")


class Reach(Struct, frozen=True):
    """What the operator allows: addresses of ``networks``, with ``own`` an instance's own ones, and ``scripts``:
    whether command lines may be run on this node."""

    networks: tuple[Network, ...] = ()
    own: bool = True
    scripts: bool = False

    @classmethod
    def of(cls, text: str, *, scripts: bool = False) -> "Reach":
        """What ``text`` names, with commas between them, or ``Invalid``. Nothing named: ``own``."""
        words = [word.strip() for word in text.split(",") if word.strip()]
        try:
            networks = tuple(ipaddress.ip_network(word, strict=False) for word in words if word != OWN)
        except ValueError as error:
            message = f"checks_networks: Expected networks and the word {OWN!r}, with commas between them: {error}"
            raise Invalid(message, field="checks_networks") from None
        return cls(networks, own=OWN in words or not words, scripts=scripts)

    def allows(self, address: str, own: Collection[str] = ()) -> bool:
        """Whether ``address`` may be asked for an instance whose own addresses are ``own``."""
        ip = led_to(address)
        if _within(ip, NOWHERE):
            return False
        named = [network for network in self.networks if ip.version == network.version and ip in network]
        guards = [network for network in GUARDED if ip.version == network.version and ip in network]
        if guards:
            return any(_is_part(network, guard) for network in named for guard in guards)
        return bool(named) or (self.own and any(ip == led_to(each) for each in own))


@lru_cache(maxsize=65_536)
def led_to(address: str) -> Address:
    """Where a packet to ``address`` ends: the IPv4 address within it, if there is one. The zone is of no matter."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is not None:
        return inner
    # ``::`` and ``::1`` are what they are, and not 0.0.0.0 and 0.0.0.1.
    if any(ip in network for network in _NAT64) or (ip in _COMPATIBLE and int(ip) > 1):
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip


def own_hosts(instance: Instance) -> tuple[str, ...]:
    """The hosts, names or addresses, at which an instance says that it is."""
    return tuple(
        dict.fromkeys(
            host.strip("[]").lower()
            for host in (instance.address, instance.hostname, *map(_host_of, instance.addrs))
            if host
        )
    )


def _host_of(addr: str) -> str:
    """The host of an address with or without scheme and port."""
    place = places.read(addr)
    return place.host if place is not None else ""


def _within(ip: Address, networks: tuple[Network, ...]) -> bool:
    return any(ip in network for network in networks if network.version == ip.version)


def _is_part(network: Network, of: Network) -> bool:
    return network.network_address in of and network.prefixlen >= of.prefixlen
