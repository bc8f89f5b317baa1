"""How many answers a network gets over UDP, on a clock that a test turns."""

from collections import Counter

from rollcall.node.dns import rates
from rollcall.node.dns.rates import Rates, Word
from rollcall.replication.front.networks import networks


def words(limits: Rates, address: str, count: int, now: float = 0.0) -> Counter[Word]:
    return Counter(limits.word(address, now) for _ in range(count))


def test_past_its_share_every_other_question_is_told_to_come_by_tcp_and_the_rest_are_dropped() -> None:
    limits = Rates(per_s=10.0, burst=20.0)

    assert words(limits, "192.0.2.1", 40) == {Word.ANSWER: 20, Word.TRUNCATE: 10, Word.DROP: 10}
    assert words(limits, "192.0.2.1", 10, now=0.5) == {Word.ANSWER: 5, Word.TRUNCATE: 3, Word.DROP: 2}
    assert words(limits, "192.0.2.1", 30, now=1000.0)[Word.ANSWER] == 20


def test_a_network_is_one_and_another_is_not_held_up() -> None:
    limits = Rates(per_s=10.0, burst=20.0)
    words(limits, "192.0.2.1", 40)

    assert words(limits, "192.0.2.77", 2) == {Word.TRUNCATE: 1, Word.DROP: 1}
    assert words(limits, "::ffff:192.0.2.78", 2) == {Word.TRUNCATE: 1, Word.DROP: 1}
    assert words(limits, "192.0.3.1", 20) == {Word.ANSWER: 20}
    assert words(limits, "2001:db8::1", 20) == words(limits, "2001:db8:1::1", 20) == {Word.ANSWER: 20}
    assert words(limits, "2001:db8::2:0:0:1", 2)[Word.ANSWER] == 0, "one client of IPv6 has a whole network"


def test_this_machine_and_trusted_networks_are_not_limited() -> None:
    assert words(Rates(burst=1.0), "127.0.0.1", 50) == words(Rates(burst=1.0), "::1", 50) == {Word.ANSWER: 50}
    assert words(Rates(networks(["10.0.0.0/8"]), burst=1.0), "10.1.2.3", 50) == {Word.ANSWER: 50}


def test_who_forges_many_senders_makes_nothing_grow() -> None:
    limits = Rates()
    for number in range(rates.NETWORKS_MAX + 500):
        limits.word(f"{1 + number // 65536}.{number // 256 % 256}.{number % 256}.1", 0.0)

    assert len(limits) == rates.NETWORKS_MAX
