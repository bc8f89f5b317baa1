"""How one instance of many is chosen, and who is left alone."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.balancer import (
    Balancer,
    ConsistentHash,
    Endpoint,
    LeastConnections,
    PeakEwma,
    Random,
    RoundRobin,
    Weighted,
    ZoneFirst,
)
from rollcall.cluster.pool import Caution, NoInstances, Policy, Pool
from rollcall.replication.records import Instance

MAKERS: tuple[Callable[[random.Random], Balancer], ...] = (
    lambda chance: RoundRobin(),
    Random,
    Weighted,
    LeastConnections,
    PeakEwma,
    ConsistentHash,
    lambda chance: ZoneFirst("east", Random(chance)),
)
NAMES = ("round robin", "random", "weighted", "least connections", "peak ewma", "consistent hash", "zone first")


def instance(id: str, **fields: object) -> Instance:
    stamps = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 0)
    indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 1)
    named = {"address": f"10.0.0.{id}", "port": 80, **stamps, **indexes, **fields}
    return Instance(env="default", service="cart", id=id, **named)  # pyright: ignore[reportArgumentType]


def endpoints(count: int, **fields: object) -> list[Endpoint]:
    return [Endpoint(instance(str(n), **fields)) for n in range(count)]


def picked(balancer: Balancer, among: Sequence[Endpoint], count: int, key: str = "") -> Counter[str]:
    pick = balancer.arranged(among)
    return Counter(pick(0.0, key).instance.id for _ in range(count))


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
@given(count=st.integers(1, 30), seed=st.integers(), key=st.text(max_size=5))
def test_every_balancer_picks_one_of_the_list(make, count, seed, key):
    among = endpoints(count)
    pick = make(random.Random(seed)).arranged(among)

    assert all(pick(float(now), key) in among for now in range(5))


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_s4_16_a_pick_among_a_hundred_costs_microseconds(make, measured):
    """At most 5 on a quiet machine; the test allows for one that is not, and would notice a walk over all of them."""
    pool = Pool("cart", lambda: make(random.Random(1)))
    pool.update([instance(str(n)) for n in range(100)], 0.0)
    costs: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            pool.pick(0.0, "k")
        costs.append((time.perf_counter() - began) / 500)

    measured(f"a pick among a hundred instances ({make.__name__}): {min(costs) * 1e6:.1f} µs")
    assert min(costs) < 100e-6


def test_s1_6_round_robin_goes_round_and_begins_with_the_second():
    pick = RoundRobin().arranged(endpoints(3))

    assert [pick(0.0, "").instance.id for _ in range(7)] == ["1", "2", "0", "1", "2", "0", "1"]


def test_s1_6_nobody_to_call_is_an_error_that_names_the_service():
    with pytest.raises(NoInstances, match="cart"):
        Pool("cart", RoundRobin).pick(0.0)


def test_s4_6_random_is_even():
    counts = picked(Random(random.Random(1)), endpoints(4), 4000)

    assert all(900 < counts[str(n)] < 1100 for n in range(4))


def test_s4_6_weighted_goes_by_the_weights():
    among = [Endpoint(instance("a", weight=1)), Endpoint(instance("b", weight=3)), Endpoint(instance("c", weight=0))]
    counts = picked(Weighted(random.Random(1)), among, 4000)

    assert counts["c"] == 0
    assert 2.5 < counts["b"] / counts["a"] < 3.5


def test_a_weight_of_nothing_everywhere_is_even():
    assert set(picked(Weighted(random.Random(1)), endpoints(3, weight=0), 200)) == {"0", "1", "2"}


def test_s1_7_least_connections_picks_who_has_the_fewest():
    among = endpoints(4)
    for endpoint, active in zip(among, (3, 1, 2, 1), strict=True):
        endpoint.active = active

    assert set(picked(LeastConnections(random.Random(1)), among, 200)) == {"1", "3"}


def test_s1_8_who_answers_sooner_is_preferred():
    among = endpoints(2)
    among[0].took(0.010, 0.0)
    among[1].took(0.100, 0.0)

    assert picked(PeakEwma(random.Random(1)), among, 100) == {"0": 100}
    among[0].active = 20
    assert picked(PeakEwma(random.Random(1)), among, 100) == {"1": 100}


def test_a_rise_of_latency_counts_at_once_and_a_fall_little_by_little():
    (endpoint,) = endpoints(1)
    endpoint.took(0.010, 0.0)
    endpoint.took(1.0, 0.1)
    assert endpoint.latency_s == 1.0

    endpoint.took(0.010, 1.1)
    assert 0.8 < endpoint.latency_s < 0.95
    endpoint.took(0.010, 60.0)
    assert endpoint.latency_s < 0.02


def test_an_unknown_instance_gets_one_call_and_not_all_of_them():
    known, unknown = endpoints(2)
    known.took(0.010, 0.0)
    assert picked(PeakEwma(random.Random(1)), [known, unknown], 10) == {"1": 10}

    unknown.active = 1
    assert picked(PeakEwma(random.Random(1)), [known, unknown], 10) == {"0": 10}


@given(st.lists(st.integers(0, 40), min_size=2, max_size=40, unique=True), st.data())
def test_when_one_goes_only_its_own_keys_move(numbers, data):
    among = [Endpoint(instance(str(n))) for n in numbers]
    gone = data.draw(st.sampled_from(among))
    before = ConsistentHash().arranged(among)
    after = ConsistentHash().arranged([endpoint for endpoint in among if endpoint is not gone])

    for key in map(str, range(50)):
        owner = before(0.0, key)
        assert owner is gone or after(0.0, key) is owner


def test_a_ring_spreads_keys_by_weight():
    among = [Endpoint(instance("a", weight=1)), Endpoint(instance("b", weight=2))]
    pick = ConsistentHash().arranged(among)
    counts = Counter(pick(0.0, str(n)).instance.id for n in range(6000))

    assert 1.4 < counts["b"] / counts["a"] < 2.8


def test_s4_6_a_zone_is_first_while_it_has_enough():
    near = [Endpoint(instance(f"n{n}", zone="east")) for n in range(2)]
    far = [Endpoint(instance(f"f{n}", zone="west")) for n in range(2)]

    assert set(picked(ZoneFirst("east"), near + far, 100)) == {"n0", "n1"}
    assert set(picked(ZoneFirst("east"), near[:1] + far, 100)) == {"n0", "f0", "f1"}
    assert set(picked(ZoneFirst("east", enough=1), near[:1] + far, 100)) == {"n0"}
    assert set(picked(ZoneFirst("north"), near + far, 100)) == {"n0", "n1", "f0", "f1"}


# -- who is left alone


def pool_of(count: int, **options: object) -> Pool:
    pool = Pool("cart", RoundRobin, **options)  # pyright: ignore[reportArgumentType]
    pool.update([instance(str(n)) for n in range(count)], 0.0)
    return pool


def fail(pool: Pool, endpoint: Endpoint, now: float, times: int = 1) -> None:
    for _ in range(times):
        pool.begun(endpoint, now)
        pool.failed(endpoint, now)


def ids(pool: Pool, now: float, count: int = 40) -> set[str]:
    return {pool.pick(now).instance.id for _ in range(count)}


def test_who_fails_several_times_in_a_row_is_shunned_for_longer_each_time():
    pool = pool_of(4, caution=Caution(failures=3, shun_s=5.0))
    bad = pool.endpoints[1]
    fail(pool, bad, 1.0, times=2)
    assert ids(pool, 1.0) == {"0", "1", "2", "3"}
    fail(pool, bad, 1.0)
    assert ids(pool, 5.9) == {"0", "2", "3"}
    assert ids(pool, 6.1) == {"0", "1", "2", "3"}

    # It is tried again, and fails at once.
    fail(pool, bad, 6.1)
    assert ids(pool, 16.0) == {"0", "2", "3"}
    assert ids(pool, 16.2) == {"0", "1", "2", "3"}
    pool.begun(bad, 17.0)
    pool.succeeded(bad, 0.01, 17.0)
    fail(pool, bad, 18.0, times=2)
    assert ids(pool, 18.0) == {"0", "1", "2", "3"}


def test_who_was_shunned_is_tried_by_one_call_before_the_others_come_back():
    """It may hang: then one call waits for it, and not every fourth."""
    pool = pool_of(4, caution=Caution(failures=1, shun_s=5.0))
    bad = pool.endpoints[1]
    fail(pool, bad, 1.0)
    assert ids(pool, 6.1) == {"0", "1", "2", "3"}

    pool.begun(bad, 6.1)
    assert ids(pool, 6.2) == {"0", "2", "3"}
    pool.succeeded(bad, 0.4, 6.5)
    assert ids(pool, 6.5) == {"0", "1", "2", "3"}
    pool.begun(bad, 7.0)
    assert ids(pool, 7.0) == {"0", "1", "2", "3"}


def test_many_calls_that_one_death_breaks_off_are_one_reason_to_shun():
    pool = pool_of(4, caution=Caution(failures=3, shun_s=5.0))
    bad = pool.endpoints[1]
    fail(pool, bad, 1.0, times=50)
    assert ids(pool, 5.9) == {"0", "2", "3"}
    assert ids(pool, 6.1) == {"0", "1", "2", "3"}

    # Nor is it held against it what failed while no more might be shunned.
    for other in (pool.endpoints[0], pool.endpoints[2]):
        fail(pool, other, 6.1, times=3)
    fail(pool, bad, 6.1, times=50)
    assert ids(pool, 6.1) == {"1", "3"}
    fail(pool, bad, 11.2)
    assert ids(pool, 21.1) == {"0", "2", "3"}
    assert ids(pool, 21.3) == {"0", "1", "2", "3"}


def test_no_more_than_a_share_is_shunned():
    pool = pool_of(5, caution=Caution(failures=1, share_max=0.5))
    for endpoint in pool.endpoints:
        fail(pool, endpoint, 1.0)

    assert ids(pool, 1.5) == {"2", "3", "4"}
    alone = pool_of(1, caution=Caution(failures=1))
    fail(alone, alone.endpoints[0], 1.0)
    assert ids(alone, 1.5) == {"0"}


def test_a_call_that_was_given_up_says_nothing():
    pool = pool_of(2, caution=Caution(failures=1))
    endpoint = pool.endpoints[0]
    pool.begun(endpoint, 0.0)
    pool.abandoned(endpoint)

    assert (endpoint.active, endpoint.failures) == (0, 0)


def test_what_is_known_of_an_instance_outlives_a_list_but_not_a_move():
    pool = pool_of(3)
    endpoint = pool.endpoints[0]
    pool.begun(endpoint, 0.0)
    pool.update([instance("0", version="2"), instance("1", port=81)], 1.0)
    assert pool.endpoints[0] is endpoint
    assert endpoint.instance.version == "2"
    assert endpoint.active == 1

    other = pool.endpoints[1]
    pool.update([instance("0"), instance("1", port=82)], 2.0)
    assert pool.endpoints[1] is not other


def test_a_second_try_goes_where_least_has_failed_and_then_where_least_hangs():
    pool = Pool("cart", ConsistentHash, caution=Caution(failures=2, share_max=0.2))
    pool.update([instance(str(n)) for n in range(5)], 0.0)
    first = pool.pick(0.0, "key")
    shunned, failing, hanging, well = (endpoint for endpoint in pool.endpoints if endpoint is not first)
    fail(pool, shunned, 0.0, times=2)
    fail(pool, failing, 0.0, times=9)
    pool.begun(hanging, 0.0)

    tried: list[Endpoint] = []
    for _ in range(5):
        tried.append(pool.pick(0.0, "key", without=tried))
    assert tried == [first, well, hanging, shunned, failing]


def test_a_second_try_goes_elsewhere_until_all_were_tried():
    pool = pool_of(3)
    tried: list[Endpoint] = []
    for _ in range(3):
        tried.append(pool.pick(0.0, without=tried))
    assert {endpoint.instance.id for endpoint in tried} == {"0", "1", "2"}

    with pytest.raises(NoInstances, match="all of them were tried"):
        pool.pick(0.0, without=tried)


# -- policies


def canary_pool(*policies: Policy, versions: str = "1112") -> Pool:
    pool = Pool("cart", RoundRobin, policies=policies, chance=random.Random(1))
    pool.update([instance(str(n), version=version) for n, version in enumerate(versions)], 0.0)
    return pool


def shares(pool: Pool, count: int = 5000) -> dict[str, float]:
    counts = Counter(pool.pick(0.0).instance.version for _ in range(count))
    return {version: seen / count for version, seen in counts.items()}


def test_s1_12_a_share_of_the_calls_goes_to_the_matching_ones():
    found = shares(canary_pool(Policy(service="cart", percent=10, match={"version": "2"})))

    assert found["2"] == pytest.approx(0.1, abs=0.02)


def test_s1_12_one_percent_is_one_percent_also_where_the_canary_is_one_of_four():
    found = shares(canary_pool(Policy(service="cart", percent=1, match={"version": "2"})))

    assert found["2"] == pytest.approx(0.01, abs=0.006)


def test_s1_12_without_a_match_the_general_pool_takes_all():
    assert shares(canary_pool(Policy(service="cart", percent=50, match={"version": "9"}))).keys() == {"1", "2"}


def test_where_all_match_all_are_the_general_pool():
    found = shares(canary_pool(Policy(service="cart", percent=1, match={"version": "2"}), versions="22"))

    assert found == {"2": 1.0}


def test_policies_of_other_services_do_not_matter():
    assert canary_pool(Policy(service="users", percent=50)).policies == ()


def test_a_policy_matches_tags_fields_and_meta():
    policy = Policy(service="cart", percent=1, tags=("a",), match={"zone": "east", "team": "x"})

    assert policy.matches(instance("1", tags=("a", "b"), zone="east", meta={"team": "x"}))
    assert not policy.matches(instance("1", tags=("b",), zone="east", meta={"team": "x"}))
    assert not policy.matches(instance("1", tags=("a",), zone="west", meta={"team": "x"}))
    assert not policy.matches(instance("1", tags=("a",), zone="east"))


def test_two_canaries_have_a_share_each():
    found = shares(
        canary_pool(
            Policy(service="cart", percent=20, match={"version": "2"}),
            Policy(service="cart", percent=30, match={"version": "3"}),
            versions="11123",
        )
    )

    assert found["2"] == pytest.approx(0.2, abs=0.03)
    assert found["3"] == pytest.approx(0.3, abs=0.03)


def test_the_load_of_a_ring_of_a_hundred_differs_little():
    pick = ConsistentHash().arranged(endpoints(100))
    counts = Counter(pick(0.0, str(n)).instance.id for n in range(20_000))

    assert statistics.pstdev(counts.values()) / statistics.mean(counts.values()) < 0.2


def test_a_call_with_the_header_of_a_policy_goes_where_it_says():
    pool = canary_pool(Policy(service="cart", match={"version": "2"}, header="X-Canary", value="yes"))

    assert {pool.pick(0.0, headers={"x-canary": "yes"}).instance.version for _ in range(50)} == {"2"}
    assert {pool.pick(0.0, headers={"x-canary": "no"}).instance.version for _ in range(50)} == {"1"}
    assert {pool.pick(0.0).instance.version for _ in range(50)} == {"1"}


def test_without_a_match_a_header_changes_nothing():
    pool = canary_pool(Policy(service="cart", match={"version": "9"}, header="X-Canary"))

    assert {pool.pick(0.0, headers={"x-canary": ""}).instance.version for _ in range(50)} == {"1", "2"}


def test_policies_may_change_while_the_list_stays():
    pool = canary_pool()
    assert {pool.pick(0.0).instance.version for _ in range(50)} == {"1", "2"}
    pool.route([Policy(service="cart", percent=100, match={"version": "2"})], 0.0)
    assert {pool.pick(0.0).instance.version for _ in range(50)} == {"2"}
    pool.route([], 0.0)
    assert {pool.pick(0.0).instance.version for _ in range(50)} == {"1", "2"}
