"""What is answered to which question: messages in, messages out, no socket."""

import random
from collections import Counter
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.update
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.dns import crowds
from rollcall.node.dns.answers import NAMES_S, Answers, Zone
from rollcall.node.dns.message import UDP_BYTES_MAX, UDP_BYTES_MIN, failure, truncated
from rollcall.replication.commands import Command, Deregister, Envelope, Register, SetStatus
from rollcall.replication.records import Key, Registration
from rollcall.replication.registry.registry import Registry

HOSTS = {"n1": "127.0.0.1", "n2.west": "::1", "N3": "n3.example.com"}


class Desk:
    """A registry to fill, and the answers about it."""

    def __init__(self, **zone: Any) -> None:
        self.registry = Registry()
        self.now = 0.0
        self.answers = Answers(self.registry, Zone(node_id="n1", hosts=HOSTS, **zone), random.Random(1))

    def do(self, command: Command) -> None:
        index = self.registry.applied_index + 1
        self.registry.apply(index, 1, Envelope(format=1, time_ns=index, command=command))

    def register(self, service: str, id: str, address: str = "10.0.0.1", port: int = 80, **fields: Any) -> None:
        self.do(Register(Registration(service=service, id=id, address=address, port=port, **fields)))

    def ask(
        self, name: str, kind: str = "A", *, tcp: bool = False, edns: int | None = None, **options: Any
    ) -> dns.message.Message:
        """The parsed answer, which must be one to this question."""
        query = dns.message.make_query(name, kind, use_edns=edns is not None, payload=edns or 0, **options)
        data = self.answers.reply(query.to_wire(), self.now, tcp=tcp)
        assert data is not None
        assert len(data) <= (65_535 if tcp else min(max(edns or 0, UDP_BYTES_MIN), UDP_BYTES_MAX))
        response = dns.message.from_wire(data, one_rr_per_rrset=True)
        assert query.is_response(response)
        assert not response.flags & dns.flags.RA
        return response


@pytest.fixture
def desk() -> Desk:
    return Desk()


def first(records: dns.rrset.RRset) -> Any:
    """The first record of a set, of whatever type it is."""
    return records[0]


def answered(response: dns.message.Message) -> list[str]:
    """The records of the answer, in their order, as "TYPE data"."""
    return [f"{dns.rdatatype.to_text(r.rdtype)} {r[0]}" for r in response.answer]


def is_negative(response: dns.message.Message, rcode: dns.rcode.Rcode) -> bool:
    authority = [(r.rdtype, r.name) for r in response.authority]
    return (response.rcode(), response.answer) == (rcode, []) and authority == [
        (dns.rdatatype.SOA, dns.name.from_text("rollcall"))
    ]


def is_unknown(response: dns.message.Message) -> bool:
    return is_negative(response, dns.rcode.NXDOMAIN)


def is_empty(response: dns.message.Message) -> bool:
    return is_negative(response, dns.rcode.NOERROR)


# Services


def test_a_service_has_the_addresses_of_its_instances_each_once(desk: Desk) -> None:
    desk.register("cart", "a", "10.0.0.1", 1)
    desk.register("cart", "b", "10.0.0.1", 2)
    desk.register("cart", "c", "10.0.0.2", 1)
    desk.register("cart", "d", "2001:db8::1", 1)

    response = desk.ask("cart.service.rollcall")
    assert sorted(answered(response)) == ["A 10.0.0.1", "A 10.0.0.2"]
    assert response.flags & dns.flags.AA
    assert [r.ttl for r in response.answer] == [0, 0]
    assert answered(desk.ask("cart.service.rollcall", "AAAA")) == ["AAAA 2001:db8::1"]
    assert len(desk.ask("cart.service.rollcall", "ANY", tcp=True).answer) == 3


def test_an_srv_record_names_a_target_that_comes_with_it_and_can_be_asked_for(desk: Desk) -> None:
    desk.register("cart", "a", "10.11.0.1", 8080, weight=7)
    desk.register("cart", "b", "2001:db8::1", 8081)

    response = desk.ask("cart.service.rollcall", "SRV")
    assert sorted(answered(response)) == [
        "SRV 1 1 8081 20010db8000000000000000000000001.addr.rollcall.",
        "SRV 1 7 8080 0a0b0001.addr.rollcall.",
    ]
    assert {str(r[0]) for r in response.additional} == {"10.11.0.1", "2001:db8::1"}
    for record, extra in zip(response.answer, response.additional, strict=True):
        assert first(record).target == extra.name
        again = desk.ask(str(extra.name), dns.rdatatype.to_text(extra.rdtype))
        assert [r[0] for r in again.answer] == [extra[0]]


def test_each_srv_record_brings_an_address_of_its_own_also_where_two_are_equal(desk: Desk) -> None:
    for port in (1, 2, 3):
        desk.register("cart", f"c{port}", "10.0.0.1", port)
    desk.register("cart", "twice", "10.0.0.1", 3)

    response = desk.ask("cart.service.rollcall", "SRV")
    assert sorted(first(r).port for r in response.answer) == [1, 2, 3]
    assert [str(r[0]) for r in response.additional] == ["10.0.0.1"] * 3


def test_a_text_holds_what_an_instance_says_of_itself(desk: Desk) -> None:
    desk.register("cart", "a", meta={"b": "2", "a": "1"}, version="1.5")
    desk.register("cart", "silent")
    desk.register("cart", "long", meta={"k": "v" * 300, "s": "x"})

    assert sorted(answered(desk.ask("cart.service.rollcall", "TXT"))) == [
        'TXT "a=1" "b=2" "version=1.5"',
        'TXT "s=x"',
    ]


def test_a_host_name_is_given_as_cname_only_where_nobody_has_an_address(desk: Desk) -> None:
    desk.register("db", "a", "db-1.example.com", 5432)
    desk.register("db", "b", "db-2.example.com", 5432)
    desk.register("db", "unspeakable", "no such name", 5432)

    alone = desk.ask("db.service.rollcall")
    assert len(alone.answer) == 1
    assert answered(alone)[0] in ("CNAME db-1.example.com.", "CNAME db-2.example.com.")
    targets = desk.ask("db.service.rollcall", "SRV")
    assert sorted(str(first(r).target) for r in targets.answer) == ["db-1.example.com.", "db-2.example.com."]
    assert targets.additional == []

    desk.register("db", "c", "10.0.0.1", 5432)
    assert answered(desk.ask("db.service.rollcall")) == ["A 10.0.0.1"]
    assert is_empty(desk.ask("db.service.rollcall", "AAAA"))
    assert len(desk.ask("db.service.rollcall", "SRV").answer) == 3


def test_an_instance_without_address_is_where_its_hostname_says(desk: Desk) -> None:
    desk.do(Register(Registration(service="cart", id="a", hostname="cart-1.example.com", port=80)))

    assert answered(desk.ask("cart.service.rollcall")) == ["CNAME cart-1.example.com."]


def test_only_who_should_get_traffic_is_given_and_a_service_nobody_serves_is_unknown(desk: Desk) -> None:
    desk.register("cart", "a", "10.0.0.1")
    desk.register("cart", "b", "10.0.0.2")
    desk.register("cart", "c", "10.0.0.3", status="starting")

    assert sorted(answered(desk.ask("cart.service.rollcall"))) == ["A 10.0.0.1", "A 10.0.0.2"]
    desk.do(SetStatus(env="default", service="cart", id="a", status="out_of_service"))
    assert answered(desk.ask("cart.service.rollcall")) == ["A 10.0.0.2"]
    desk.do(Deregister(Key("default", "cart", "b")))
    assert is_unknown(desk.ask("cart.service.rollcall"))


def test_tags_choose_among_the_instances(desk: Desk) -> None:
    desk.register("cart", "a", "10.0.0.1", tags=("v1", "Größe"))
    desk.register("cart", "b", "10.0.0.2", tags=("V2",))

    assert answered(desk.ask("v1.cart.service.rollcall")) == ["A 10.0.0.1"]
    assert answered(desk.ask("v2.cart.service.rollcall")) == ["A 10.0.0.2"]
    assert answered(desk.ask(r"Gr\195\182\195\159e.cart.service.rollcall")) == ["A 10.0.0.1"]
    assert is_unknown(desk.ask("v3.cart.service.rollcall"))
    assert is_unknown(desk.ask("v1.v2.cart.service.rollcall"))


@pytest.mark.parametrize("protocol", ["_tcp", "_udp", "_TCP"])
def test_rfc_2782_names_mean_the_whole_service(desk: Desk, protocol: str) -> None:
    desk.register("cart", "a", "10.0.0.1", tags=("v1",))
    desk.register("cart", "b", "10.0.0.2")

    assert len(desk.ask(f"_cart.{protocol}.service.rollcall", "SRV").answer) == 2
    assert [first(r).port for r in desk.ask("_cart._v1.service.rollcall", "SRV").answer] == [80]
    assert is_unknown(desk.ask("_cart._v2.service.rollcall", "SRV"))


def test_a_name_with_dots_is_a_service_before_it_is_a_tag(desk: Desk) -> None:
    desk.register("api", "a", "10.0.0.1", tags=("web",))
    assert answered(desk.ask("web.api.service.rollcall")) == ["A 10.0.0.1"]

    desk.register("web.api", "b", "10.0.0.2", tags=("v1",))
    assert answered(desk.ask("web.api.service.rollcall")) == ["A 10.0.0.2"]
    assert answered(desk.ask("v1.web.api.service.rollcall")) == ["A 10.0.0.2"]
    assert answered(desk.ask("_web.api._tcp.service.rollcall", "A")) == ["A 10.0.0.2"]

    # It is there, though nobody serves it: the tag of another service is not meant.
    desk.do(SetStatus(env="default", service="web.api", id="b", status="down"))
    assert is_unknown(desk.ask("web.api.service.rollcall"))


def test_a_dot_inside_a_label_is_not_the_dot_between_two(desk: Desk) -> None:
    desk.register("web.api", "a")

    assert is_unknown(desk.ask(r"web\.api.service.rollcall"))


def test_services_of_another_env_have_no_names() -> None:
    desk = Desk(env="prod")
    desk.register("cart", "a", "10.0.0.1")
    desk.register("cart", "b", "10.0.0.2", env="prod")

    assert answered(desk.ask("cart.service.rollcall")) == ["A 10.0.0.2"]


# Names


def test_case_does_not_matter_and_answers_repeat_that_of_the_question(desk: Desk) -> None:
    desk.register("cart", "a", "10.0.0.1")

    response = desk.ask("CaRt.SeRvIcE.RoLlCaLl", "SRV")
    assert str(response.question[0].name) == "CaRt.SeRvIcE.RoLlCaLl."
    assert str(response.answer[0].name) == "CaRt.SeRvIcE.RoLlCaLl."
    assert str(first(response.answer[0]).target) == "0a000001.addr.RoLlCaLl."
    assert answered(desk.ask("0A000001.ADDR.rollcall")) == ["A 10.0.0.1"]


def test_services_that_differ_in_case_only_are_one_whatever_case_is_asked(desk: Desk) -> None:
    desk.register("cart", "a", "10.0.0.1")
    desk.register("Cart", "b", "10.0.0.2")

    for name in ("cart", "Cart", "CART"):
        assert sorted(answered(desk.ask(f"{name}.service.rollcall"))) == ["A 10.0.0.1", "A 10.0.0.2"]


def test_a_new_name_with_capitals_is_found_after_a_moment_and_a_plain_one_at_once(desk: Desk) -> None:
    assert is_unknown(desk.ask("nothing.service.rollcall"))
    desk.register("before", "a")
    assert desk.ask("before.service.rollcall").answer
    desk.register("cart", "a")
    desk.register("Orders", "a")

    assert desk.ask("cart.service.rollcall").answer
    desk.now += NAMES_S
    assert desk.ask("orders.service.rollcall").answer
    desk.do(Deregister(Key("default", "Orders", "a")))
    assert is_unknown(desk.ask("orders.service.rollcall"))


def test_nodes_have_the_addresses_of_their_http(desk: Desk) -> None:
    assert answered(desk.ask("n1.node.rollcall")) == ["A 127.0.0.1"]
    assert answered(desk.ask("N2.west.node.rollcall", "AAAA")) == ["AAAA ::1"]
    assert answered(desk.ask("n3.node.rollcall")) == ["CNAME n3.example.com."]
    assert is_empty(desk.ask("n1.node.rollcall", "AAAA"))
    assert is_empty(desk.ask("n1.node.rollcall", "SRV"))
    assert is_unknown(desk.ask("n9.node.rollcall"))


def test_the_domain_itself_says_who_answers_for_it(desk: Desk) -> None:
    desk.register("cart", "a")

    soa = desk.ask("rollcall", "SOA").answer[0][0]
    assert str(soa) == "n1.node.rollcall. hostmaster.rollcall. 1 3600 600 86400 0"
    names = desk.ask("rollcall", "NS")
    assert answered(names) == ["NS n1.node.rollcall."]
    assert [f"{r.name} {r[0]}" for r in names.additional] == ["n1.node.rollcall. 127.0.0.1"]
    assert is_empty(desk.ask("rollcall", "A"))


@pytest.mark.parametrize("name", ["service", "node", "addr", "_tcp.service", "_udp.service"])
def test_what_names_stand_below_of_exists(desk: Desk, name: str) -> None:
    """A resolver that asks label by label looks no further below a name that does not."""
    assert is_empty(desk.ask(f"{name}.rollcall"))


@pytest.mark.parametrize(
    "name",
    ["nothing.service", "x", "cart", "0a0000.addr", "0a00000g.addr", "x.0a000001.addr", "cart.query", r"\000.service"],
)
def test_other_names_do_not(desk: Desk, name: str) -> None:
    desk.register("cart", "a")

    assert is_unknown(desk.ask(f"{name}.rollcall"))


def test_a_type_that_is_not_there_leaves_the_answer_empty(desk: Desk) -> None:
    desk.register("cart", "a")

    for kind in ("AAAA", "TXT", "MX", "HTTPS", "TYPE4711"):
        assert is_empty(desk.ask("cart.service.rollcall", kind))
    assert is_empty(desk.ask("0a000001.addr.rollcall", "AAAA"))


def test_a_domain_of_several_labels_and_a_ttl() -> None:
    desk = Desk(domain="registry.Example.com.", ttl_s=7)
    desk.register("cart", "a", "10.0.0.1")

    response = desk.ask("cart.service.registry.example.com", "SRV")
    assert str(first(response.answer[0]).target) == "0a000001.addr.registry.example.com."
    assert {r.ttl for r in (*response.answer, *response.additional)} == {7}
    assert desk.ask("cart.service.example.com").rcode() == dns.rcode.REFUSED


# Order


def test_the_order_is_random_by_weight_and_weight_0_comes_last(desk: Desk) -> None:
    for id, address, weight in (("a", "10.0.0.1", 3), ("b", "10.0.0.2", 1), ("c", "10.0.0.3", 0)):
        desk.register("cart", id, address, weight=weight)

    orders = Counter(tuple(answered(desk.ask("cart.service.rollcall"))) for _ in range(2000))
    assert {order[2] for order in orders} == {"A 10.0.0.3"}
    first = Counter(order[0] for order in orders.elements())
    assert 0.70 < first["A 10.0.0.1"] / 2000 < 0.80  # three to one; the seed is fixed


@given(st.lists(st.integers(0, 65_535), max_size=300), st.integers(1, 40), st.randoms(use_true_random=False))
def test_whoever_is_drawn_is_drawn_once_and_weight_0_comes_last(
    weights: list[int], most: int, chance: random.Random
) -> None:
    pool = crowds.Pool(dict(enumerate(weights)))

    drawn = pool.drawn(most, chance)
    assert len(set(drawn)) == len(drawn) == min(most, len(weights))
    zeros = [weights[number] == 0 for number in drawn]
    assert zeros == sorted(zeros)
    assert not any(zeros) or all(number in drawn for number, weight in enumerate(weights) if weight > 0)


@pytest.mark.parametrize("heavy", [1, 1_000_000])
def test_a_few_of_many_are_drawn_by_weight(heavy: int) -> None:
    """One that outweighs a thousand others comes first, however few are wanted; even ones come equally often."""
    pool, chance = crowds.Pool(dict.fromkeys(range(1000), 1) | {1000: heavy}), random.Random(3)

    first = Counter(pool.drawn(3, chance)[0] for _ in range(300))
    assert first[1000] > 290 if heavy > 1 else max(first.values()) < 10


def test_what_is_kept_of_large_services_has_a_size() -> None:
    """Strangers can ask by any tag, and a crowd of nobody is not remembered."""
    desk = Desk()
    for number in range(40):
        desk.register("cart", str(number), f"10.0.0.{number}", tags=("all", f"t{number}"))
    view = desk.registry.service("default", "cart")
    assert view is not None
    kept = crowds.Crowds(4 * crowds.CROWD_BYTES + 4 * crowds.INSTANCE_BYTES)

    for number in range(40):
        kept.get(number, 1, lambda: view.instances[:1])
        kept.get(("nobody", number), 1, lambda: ())
        kept.get("too large", 1, lambda: view.instances)
        assert 0 < kept.bytes <= 4 * crowds.CROWD_BYTES + 4 * crowds.INSTANCE_BYTES
    assert kept.get(39, 1, lambda: view.instances[1:2]).instances[0] is view.instances[0]
    assert kept.get(39, 2, lambda: view.instances[1:2]).instances[0] is view.instances[1]


def test_a_few_of_a_large_service_are_looked_at_and_no_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each state of the service; then a question costs what is sent."""
    for number in range(3000):
        desk.register("cart", str(number), f"10.0.{number // 250}.{number % 250}", 80)
    drawn: list[int] = []
    serving = crowds.place_of
    monkeypatch.setattr(crowds, "place_of", lambda instance: drawn.append(1) or serving(instance))

    for kind in ("A", "SRV"):
        for _ in range(3):
            assert desk.ask("cart.service.rollcall", kind, edns=4096).answer
    assert len(drawn) == 2 * 3000
    desk.do(SetStatus("default", "cart", "0", "down"))
    assert desk.ask("cart.service.rollcall", edns=4096).answer
    assert len(drawn) == 3 * 3000 - 1


# Size


def test_what_does_not_fit_into_a_datagram_is_cut_and_whole_over_tcp(desk: Desk) -> None:
    for number in range(300):
        desk.register("cart", str(number), f"10.0.{number // 250}.{number % 250}", 80)

    plain = desk.ask("cart.service.rollcall", "SRV")
    assert plain.flags & dns.flags.TC
    assert 3 <= len(plain.answer) == len(plain.additional)
    assert plain.edns == -1
    more = desk.ask("cart.service.rollcall", "SRV", edns=1232)
    assert more.flags & dns.flags.TC
    assert len(plain.answer) < len(more.answer) == len(more.additional)
    assert (more.edns, more.payload) == (0, UDP_BYTES_MAX)
    most = desk.ask("cart.service.rollcall", "A", edns=65_000)
    assert most.flags & dns.flags.TC
    assert 70 < len(most.answer) < 80, "no datagram is larger than networks carry in one piece"
    whole = desk.ask("cart.service.rollcall", "SRV", tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer) == len(whole.additional) == 300
    assert not desk.ask("cart.service.rollcall", "A", edns=1, tcp=True).flags & dns.flags.TC


def test_a_single_record_that_is_too_large_says_so(desk: Desk) -> None:
    desk.register("cart", "a", meta={str(key): "v" * 200 for key in range(30)})

    cut = desk.ask("cart.service.rollcall", "TXT")
    assert (cut.rcode(), cut.answer, bool(cut.flags & dns.flags.TC)) == (dns.rcode.NOERROR, [], True)
    assert len(first(desk.ask("cart.service.rollcall", "TXT", tcp=True).answer[0]).strings) == 30


def test_even_tcp_has_an_end(desk: Desk) -> None:
    for number in range(2000):
        desk.register("cart", str(number), f"10.0.{number // 250}.{number % 250}", 80)

    response = desk.ask("cart.service.rollcall", "SRV", tcp=True)
    assert response.flags & dns.flags.TC
    assert len(response.answer) == len(response.additional) > 800


@given(
    st.integers(0, 70), st.integers(0, 5000), st.sampled_from(["A", "AAAA", "SRV", "TXT"]), st.text("ab", max_size=60)
)
def test_every_answer_parses_and_keeps_to_its_size(count: int, payload: int, kind: str, tag: str) -> None:
    desk = Desk()
    tags = (tag,) if tag else ()
    for number in range(count):
        address = (f"10.0.0.{number}", f"2001:db8::{number}", f"{'h' * 60}.host-{number}.example")[number % 3]
        desk.register("cart", str(number), address, number, tags=tags, meta={"n": "x" * number})
    name = f"{tag}.cart.service.rollcall" if tag else "cart.service.rollcall"

    cut, whole = desk.ask(name, kind, edns=payload), desk.ask(name, kind, tcp=True)
    assert set(answered(cut)) <= set(answered(whole))
    assert bool(cut.flags & dns.flags.TC) == (len(cut.answer) < len(whole.answer))
    assert bool(cut.answer) == bool(whole.answer)


@pytest.mark.parametrize("edns", [None, 4096])
def test_any_is_told_little_over_udp_and_all_over_tcp(desk: Desk, edns: int | None) -> None:
    """RFC 8482."""
    for number in range(100):
        desk.register("cart", str(number), f"10.0.0.{number}", 80)

    (told,) = desk.ask("cart.service.rollcall", "ANY", edns=edns).answer
    assert (told.rdtype, first(told).cpu) == (dns.rdatatype.HINFO, b"RFC8482")
    assert len(desk.ask("cart.service.rollcall", "ANY", tcp=True).answer) == 100
    assert desk.ask("nobody.service.rollcall", "ANY", edns=edns).rcode() == dns.rcode.NXDOMAIN


def test_who_asks_too_much_is_told_to_come_by_tcp_in_no_more_bytes_than_were_sent() -> None:
    query = dns.message.make_query("cart.service.rollcall", "SRV", use_edns=0, payload=4096)

    data = truncated(query.to_wire())
    assert data is not None
    assert len(data) <= len(query.to_wire())
    told = dns.message.from_wire(data)
    assert query.is_response(told)
    assert told.flags & dns.flags.TC
    assert truncated(data) is None, "an answer is not answered"


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda rest: b"ab\x01\0\0\x01\0\0\0\0\0\0" + rest))
def test_whatever_comes_too_often_makes_nothing_larger(data: bytes) -> None:
    answer = truncated(data)

    assert answer is None or len(answer) <= len(data)


# What is refused


def test_what_is_outside_the_domain_is_refused_without_authority(desk: Desk) -> None:
    for name in ("example.com", ".", "rollcall.example", "xrollcall", "1.0.0.10.in-addr.arpa"):
        response = desk.ask(name)
        assert response.rcode() == dns.rcode.REFUSED
        assert not response.flags & dns.flags.AA
        assert (response.answer, response.authority) == ([], [])


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_the_whole_is_not_handed_out(desk: Desk, kind: str) -> None:
    assert desk.ask("rollcall", kind).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE"])
def test_other_classes_are_refused(desk: Desk, rdclass: str) -> None:
    assert desk.ask("cart.service.rollcall", rdclass=rdclass).rcode() == dns.rcode.REFUSED


def test_other_operations_are_not_implemented(desk: Desk) -> None:
    query = dns.message.make_query("rollcall", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    for asked in (query, dns.update.UpdateMessage("rollcall")):
        data = desk.answers.reply(asked.to_wire(), 0.0, tcp=False)
        assert data is not None
        response = dns.message.from_wire(data)
        assert (response.id, response.rcode(), response.opcode()) == (asked.id, dns.rcode.NOTIMP, asked.opcode())


def test_a_later_edns_is_told_which_one_is_spoken(desk: Desk) -> None:
    query = dns.message.make_query("rollcall", "SOA", use_edns=1)
    data = desk.answers.reply(query.to_wire(), 0.0, tcp=False)
    assert data is not None
    response = dns.message.from_wire(data)
    assert (response.rcode(), response.edns) == (dns.rcode.BADVERS, 0)


def test_dnssec_ok_is_repeated_and_options_are_not(desk: Desk) -> None:
    options = [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]
    response = desk.ask("rollcall", "SOA", edns=1232, want_dnssec=True, options=options)

    assert response.ednsflags & dns.flags.DO
    assert response.options == ()


def test_garbage_with_an_id_is_told_so_and_less_is_met_with_silence(desk: Desk) -> None:
    good = dns.message.make_query("cart.service.rollcall", "A").to_wire()
    two_questions = good[:5] + b"\x02" + good[6:] + good[12:]
    for data in (
        b"\x12\x34",
        b"\x12\x34garbage",
        good[:20],
        good + b"x",
        two_questions,
        good[:12] + b"\xc0\x0c\0\1\0\1",
    ):
        answer = desk.answers.reply(data, 0.0, tcp=False)
        assert answer is not None
        assert (answer[:2], answer[3] & 0xF, len(answer)) == (data[:2], dns.rcode.FORMERR, 12)
    for data in (b"", b"\x12"):
        assert desk.answers.reply(data, 0.0, tcp=False) is None
        assert failure(data) is None


def test_an_answer_is_not_answered(desk: Desk) -> None:
    answer = dns.message.make_response(dns.message.make_query("rollcall", "SOA")).to_wire()

    assert desk.answers.reply(answer, 0.0, tcp=False) is None
    assert desk.answers.reply(b"\x12\x34\x80", 0.0, tcp=False) is None


def test_a_question_with_many_records_is_not_even_read(desk: Desk) -> None:
    query = dns.message.make_query("rollcall", "SOA")
    query.additional += [dns.rrset.from_text(f"x{number}.", 0, "IN", "A", "10.0.0.1") for number in range(9)]

    assert desk.answers.reply(query.to_wire(), 0.0, tcp=False)[3] & 0xF == dns.rcode.FORMERR  # pyright: ignore


_SEED = dns.message.make_query("v1.cart.service.rollcall", "SRV", use_edns=0, payload=1232, want_dnssec=True).to_wire()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A question with some bytes changed, cut off or added."""
    data = bytearray(_SEED)
    for position, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)):
        data[position] = byte
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=20))


def one_question(name: bytes, kind: int, rdclass: int) -> bytes:
    return b"\1\2\1\0\0\1\0\0\0\0\0\0" + name + kind.to_bytes(2, "big") + rdclass.to_bytes(2, "big")


_ANY_NAME = st.lists(st.binary(min_size=1, max_size=20), max_size=6).map(
    lambda labels: b"".join(bytes((len(label),)) + label for label in (*labels, b"service", b"rollcall")) + b"\0"
)
_QUESTIONS = st.builds(one_question, _ANY_NAME, st.integers(0, 65_535), st.sampled_from([1, 1, 1, 3, 255]))


@given(st.binary(max_size=200) | damaged() | _QUESTIONS, st.booleans())
def test_whatever_comes_nothing_is_raised_and_every_answer_parses(data: bytes, tcp: bool) -> None:
    desk = Desk()
    desk.register("cart", "a", tags=("v1",))
    answer = desk.answers.reply(data, 0.0, tcp=tcp)

    if answer is None:
        assert len(data) < 2 or data[2:3] >= b"\x80"
        return
    response = dns.message.from_wire(answer)
    assert answer[:2] == data[:2]
    assert response.flags & dns.flags.QR
    assert not response.flags & dns.flags.RA
