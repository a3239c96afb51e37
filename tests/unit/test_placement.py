"""VMs find a host each: with room, near and away from whom they should be, and evenly."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.errors import InputError
from vmkeep.planning.placement import Guest, Host, place
from vmkeep.units import GiB

A, B, C = (Host(name, 8, 32 * GiB, 30 * GiB) for name in "abc")


def guest(name, memory, cpus=1, **how):
    sets = {key: frozenset(how.pop(key, ())) for key in ("near", "away_from")}
    return Guest(name, cpus, memory * GiB, **sets, **how)


def test_each_gets_a_host_and_the_fullest_is_as_empty_as_it_can_be():
    placed = place([guest("small", 4), guest("large", 12), guest("middle", 8)], [A, B])

    assert placed["small"] == placed["middle"] != placed["large"]


def test_a_host_that_is_in_use_gets_less():
    busy = Host("busy", 8, 32 * GiB, 8 * GiB)
    placed = place([guest("one", 4), guest("two", 4)], [busy, A])

    assert set(placed.values()) == {"a"}


def test_processors_count_too():
    placed = place([guest(name, 1, cpus=4) for name in ("one", "two")], [A, B])

    assert len(set(placed.values())) == 2


def test_what_belongs_together_goes_together_and_what_does_not_apart():
    guests = [
        guest("web1", 4, away_from=["web2"]), guest("web2", 4), guest("cache1", 2, near=["web1"]),
        guest("cache2", 2, near=["web2"]), guest("db", 20),
    ]  # fmt: skip
    placed = place(guests, [A, B, C])

    assert placed["web1"] == placed["cache1"] != placed["web2"] == placed["cache2"]


def test_a_host_that_it_cannot_go_to_is_left_out():
    assert place([guest("one", 4, never={"a": "no storage"})], [A, B]) == {"one": "b"}


@pytest.mark.parametrize(
    ("guests", "why"),
    [
        ([guest("big", 31)], "VM big .31.* can be placed nowhere: a has 30.0 GiB of memory free; b has 30"),
        ([guest("one", 1, never={"a": "a is full", "b": "b is old"})], "nowhere: a is full; b is old"),
        (
            [guest("one", 16), guest("two", 16), guest("three", 16)],
            r"no way .* 3 VMs.*48.0 GiB",
        ),
        ([guest(name, 1, away_from={*"xyz"} - {name}) for name in "xyz"], "no way .* 3 VMs"),
        ([guest("x", 1, near="y", away_from="y"), guest("y", 1)], "x is to be near and away from y"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(guests, why):
    with pytest.raises(InputError, match=why):
        place(guests, [A, B])


NAMES = ("u", "v", "w", "x", "y")


@st.composite
def guests(draw):
    names = NAMES[: draw(st.integers(1, 5))]
    others = st.frozensets(st.sampled_from(names), max_size=1)
    return [
        Guest(
            name,
            cpus=draw(st.integers(1, 4)),
            memory=draw(st.integers(1, 12)) * GiB,
            near=draw(others) - {name},
            away_from=draw(others) - {name},
            never=dict.fromkeys(draw(st.frozensets(st.sampled_from("abc"), max_size=1)), "no"),
        )
        for name in names
    ]


HOSTS = st.lists(
    st.tuples(st.integers(2, 8), st.integers(8, 32), st.integers(4, 32)), min_size=1, max_size=3
).map(
    lambda found: [
        Host("abc"[number], cpus, memory * GiB, min(memory, free) * GiB)
        for number, (cpus, memory, free) in enumerate(found)
    ]
)


def load(host, there):
    memory = host.memory - host.free + sum(one.memory for one in there)
    return max(memory / host.memory, sum(one.cpus for one in there) / host.cpus)


def fits(found, wanted, hosts):
    for one in wanted:
        if found[one.name] in one.never or any(found[one.name] != found[other] for other in one.near):
            return False
        if any(found[one.name] == found[other] for other in one.away_from):
            return False
    used = {host.name: sum(one.memory for one in wanted if found[one.name] == host.name) for host in hosts}
    return all(used[host.name] <= host.free for host in hosts)


def fullest(found, wanted, hosts):
    loads = [
        load(host, there)
        for host in hosts
        if (there := [one for one in wanted if found[one.name] == host.name])
    ]
    return max(loads)


@settings(max_examples=300, deadline=None)
@given(guests(), HOSTS)
def test_it_is_as_good_as_the_best_of_all_there_are(wanted, hosts):
    every = (
        dict(zip([one.name for one in wanted], choice, strict=True))
        for choice in itertools.product([host.name for host in hosts], repeat=len(wanted))
    )
    best = min((fullest(found, wanted, hosts) for found in every if fits(found, wanted, hosts)), default=None)
    if best is None:
        with pytest.raises(InputError):
            place(wanted, hosts)
        return

    placed = place(wanted, hosts)
    assert fits(placed, wanted, hosts)
    assert fullest(placed, wanted, hosts) == pytest.approx(best)


def test_a_large_fleet_is_placed_in_reasonable_time():
    wanted = [guest(f"vm{number}", 1 + number % 7, cpus=1 + number % 4) for number in range(200)]
    hosts = [Host(f"h{number}", 64, 256 * GiB, 200 * GiB) for number in range(10)]
    placed = place(wanted, hosts)

    loads = [load(host, [one for one in wanted if placed[one.name] == host.name]) for host in hosts]
    assert max(loads) - min(loads) < 0.1
