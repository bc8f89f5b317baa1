"""Where health checks may go: the function is asked, and nobody else."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.checks.reach import GUARDED, NOWHERE, Reach, led_to, own_hosts
from rollcall.replication.errors import Invalid
from rollcall.replication.records import Instance

EVERYWHERE = Reach.of("0.0.0.0/0, ::/0, own")
METADATA = (
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd20:ce::254",
    "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
)  # fmt: skip
NO_HOST = ("0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255", "255.255.255.255", "::", "ff02::1")

v4 = st.ip_addresses(v=4)


def forms(inner: Any) -> list[str]:
    """The IPv6 addresses that lead to an IPv4 one."""
    number = int(inner)
    return [
        f"::ffff:{inner}",
        str(ipaddress.IPv6Address(number)) if number > 1 else f"::ffff:{inner}",
        str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) + number)),
        str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b:1::")) + number)),
        str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80) + 1)),
        str(ipaddress.IPv6Address((0x2001_0000 << 96) + (0x0A00_0001 << 64) + (number ^ 0xFFFF_FFFF))),
    ]


def test_by_default_it_is_the_instance_itself_that_may_be_asked():
    for reach in (Reach(), Reach.of(""), Reach.of("own")):
        assert reach.allows("10.0.0.7", ["10.0.0.7"])
        assert reach.allows("127.0.0.1", ["127.0.0.1"])
        assert reach.allows("2001:db8::7", ["10.0.0.7", "2001:0db8:0::7"])
        assert not reach.allows("10.0.0.8", ["10.0.0.7"])
        assert not reach.allows("127.0.0.1", ["10.0.0.7"])
        assert not reach.allows("10.0.0.7")


def test_what_the_operator_names_may_be_asked_and_with_own_the_instance_too():
    only = Reach.of("10.0.0.0/8, fd00::/8")
    assert only.allows("10.1.2.3")
    assert only.allows("fd00::1")
    assert not only.allows("192.168.0.1", ["192.168.0.1"])
    both = Reach.of("own, 10.0.0.0/8")
    assert both.allows("192.168.0.1", ["192.168.0.1"])
    assert both.allows("10.1.2.3")
    assert not both.allows("192.168.0.2", ["192.168.0.1"])


@pytest.mark.parametrize("address", METADATA)
def test_metadata_and_link_local_addresses_are_asked_only_if_they_are_named_themselves(address: str):
    assert not Reach().allows(address, [address])
    assert not EVERYWHERE.allows(address, [address])
    bare = address.partition("%")[0]
    assert Reach.of(bare).allows(address)


def test_a_wider_network_names_none_of_them():
    assert not Reach.of("fd00::/8").allows("fd00:ec2::254")
    assert not Reach.of("100.64.0.0/10").allows("100.100.100.200")
    assert Reach.of("100.64.0.0/10").allows("100.100.100.201")
    assert Reach.of("169.254.0.0/16").allows("169.254.169.254")


@pytest.mark.parametrize("address", NO_HOST)
def test_what_is_no_hosts_address_is_never_asked(address: str):
    assert not EVERYWHERE.allows(address, [address])
    assert not Reach.of(f"{address}/32" if "." in address else f"{address}/128").allows(address, [address])


@given(v4)
def test_an_address_within_an_address_is_judged_as_the_one_that_it_leads_to(inner):
    for form in forms(inner):
        assert led_to(form) == inner
        for reach in (EVERYWHERE, Reach.of("10.0.0.0/8"), Reach()):
            assert reach.allows(form, ["10.0.0.7"]) == reach.allows(str(inner), ["10.0.0.7"])


def test_metadata_in_disguise():
    for form in forms(ipaddress.ip_address("169.254.169.254")):
        assert not EVERYWHERE.allows(form, [form])
    assert led_to("::1") == ipaddress.ip_address("::1")
    assert not Reach().allows("::127.0.0.1", ["10.0.0.7"])


@given(st.ip_addresses())
def test_the_default_asks_no_address_but_the_instances_own(ip):
    own = ip not in NOWHERE and not any(
        led_to(str(ip)) in network for network in (*NOWHERE, *GUARDED) if network.version == led_to(str(ip)).version
    )
    assert Reach().allows(str(ip), [str(ip)]) == own
    assert not Reach().allows(str(ip), ["192.0.2.1"]) or str(ip) == "192.0.2.1"


def test_where_an_instance_says_that_it_is():
    stamps: dict[str, Any] = {"reg_timestamp": 0, "up_timestamp": 0, "dirty_timestamp": 0, "latest_timestamp": 0}
    indexes: dict[str, Any] = {"create_index": 1, "reg_index": 1, "modify_index": 1}

    def hosts(**said: Any) -> tuple[str, ...]:
        return own_hosts(Instance(env="default", service="s", id="i", **said, **stamps, **indexes))

    assert hosts(address="10.0.0.7", addrs=("http://Cart.example:80", "grpc://[::1]:90", "10.0.0.8:1")) == (
        "10.0.0.7", "cart.example", "::1", "10.0.0.8",
    )  # fmt: skip
    assert hosts(address="[::1]", hostname="h") == ("::1", "h")
    assert hosts(addrs=("http://[::1",)) == ()
    assert hosts() == ()


@pytest.mark.parametrize("text", ["10.0.0.0/99", "all", "own; 10.0.0.0/8"])
def test_what_is_no_network_is_refused(text: str):
    with pytest.raises(Invalid, match="checks_networks: Expected networks and the word 'own'"):
        Reach.of(text)
