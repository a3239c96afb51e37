"""Every interleaving of writers, collectors, readers and forgetting, each of which may die at any request.

A model of the protocol in `docs/format.md`, "Order of writing" and "Collecting": one chunk that every
recovery point needs, and packs that each hold a copy of it. At first a point X has it in pack P. A step of a
process is one request; a store is the set of its objects. Explored exhaustively. The mutants show that the
model would notice if a step were missing, or came in another order.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

VOID = "VOID"
END = "end"


class Mutants(NamedTuple):
    """Ways to get the protocol wrong."""

    writer_looks_before_it_announces: bool = False
    collector_lists_open_before_it_condemns: bool = False
    collector_does_not_look_again: bool = False
    collector_does_not_fence: bool = False
    collector_deletes_what_it_computed: bool = False
    collector_is_done_before_indexes_are: bool = False
    reader_looks_before_it_pins: bool = False
    seal_overwrites: bool = False
    seal_repeats_the_index: bool = False


RIGHT = Mutants()


@dataclass(frozen=True)
class Local:
    """What a process remembers."""

    at: str
    seen: frozenset = frozenset()
    """Packs, sessions or a verdict, depending on where it is."""
    more: frozenset = frozenset()
    own: bool = False
    """A writer: whether it stored the chunk in a pack of its own."""
    counts: bool = False
    """A writer: whether it counts on a pack of another."""
    resumed: bool = False


GONE = Local(END)


def of_kind(store, kind):
    return [each for each in store if each[0] == kind]


def decided(store):
    return {session: what for _, session, what in of_kind(store, "point")}


def forgotten(store):
    return {session for _, session in of_kind(store, "forgotten")}


def kept(store):
    return {session for session, what in decided(store).items() if what != VOID} - forgotten(store)


def under_way(store):
    done = {each[1] for each in of_kind(store, "done")}
    return {each[1] for each in of_kind(store, "condemned")} - done


def dead(store):
    return {pack for _, gc, packs in of_kind(store, "verdict") if gc in under_way(store) for pack in packs}


def condemned(store):
    open_ones = under_way(store) - {each[1] for each in of_kind(store, "verdict")}
    return {pack for _, gc, packs in of_kind(store, "condemned") if gc in open_ones for pack in packs}


def indexed(store):
    """What an index shows: the packs of sealed sessions, forgotten ones too, without those that are dead."""
    sealed = {session for session, what in decided(store).items() if what != VOID} | forgotten(store)
    return {pack for _, session, pack in of_kind(store, "index") if session in sealed}


def live(store):
    return indexed(store) - dead(store) if kept(store) else set()


def put(store, *thing):
    return store | {thing}


def put_if_absent(store, kind, key, what):
    return store if any(each[:2] == (kind, key) for each in store) else put(store, kind, key, what)


def writer(name, mutants, *, may_die=True, after=None):  # noqa: C901  (a table of steps)
    pack = f"pack of {name}"

    def step(me, store):  # noqa: C901, PLR0912
        match me.at:
            case "begin" if after is not None and after not in decided(store):
                return
            case "begin" if mutants.writer_looks_before_it_announces:
                yield replace(me, at="index", seen=frozenset(condemned(store))), store
            case "begin":
                yield replace(me, at="marks"), put(store, "open", name)
            case "marks":
                yield replace(me, at="index", seen=frozenset(condemned(store))), store
            case "index":
                # What it recorded before it was interrupted counts on what it found then.
                counts = me.counts or (not me.own and bool(indexed(store) - dead(store) - me.seen))
                at = "look" if me.own or counts else "upload"
                if mutants.writer_looks_before_it_announces:
                    at = "announce late" if at == "look" else at
                yield replace(me, at=at, seen=frozenset(), counts=counts), store
            case "announce late":
                yield replace(me, at="look"), put(store, "open", name)
            case "upload":
                yield replace(me, at="look", own=True), put(store, "pack", pack)
            case "look":
                # When its point stands, its index was put, and may be collected already.
                stands = name in decided(store) or name in forgotten(store)
                skip = stands and not mutants.seal_repeats_the_index
                yield replace(me, at="leave" if skip else "put index" if me.own else "seal"), store
            case "put index":
                yield replace(me, at="seal"), put(store, "index", name, pack)
            case "seal":
                if mutants.seal_overwrites:
                    store = frozenset(each for each in store if each[:2] != ("point", name))
                yield replace(me, at="leave"), put_if_absent(store, "point", name, "sealed")
            case "leave":
                yield GONE, store - {("open", name)}
        if may_die and me.at not in {"begin", END}:
            yield GONE, store  # dies
            if not me.resumed:  # dies, and a later process continues it from its spool
                yield replace(me, at="begin", resumed=True), store

    return step


def collector(gc, mutants, packs=None):  # noqa: C901, PLR0915  (a table of steps)
    """Return a collector that makes its own collection, or, without *packs*, continues that of another."""

    def step(me, store):  # noqa: C901, PLR0912, PLR0915
        match me.at:
            case "begin" if packs is None:
                if any(each[:2] == ("waiting", gc) for each in store):
                    yield replace(me, at="wait"), store
            case "begin":
                listed = frozenset(pack for _, pack in of_kind(store, "pack"))
                yield replace(me, at="candidates", seen=listed), store
            case "candidates":
                found, waiting = me.seen - live(store), frozenset()
                if mutants.collector_lists_open_before_it_condemns:
                    waiting = frozenset(name for _, name in of_kind(store, "open"))
                yield replace(me, at="condemn", seen=found, more=waiting) if found else GONE, store
            case "condemn":
                at = "wait" if mutants.collector_lists_open_before_it_condemns else "open"
                yield replace(me, at=at, seen=frozenset()), put(store, "condemned", gc, me.seen)
            case "open":
                waiting = frozenset(name for _, name in of_kind(store, "open"))
                yield replace(me, at="wait", more=waiting), store
            case "wait":
                store = put_if_absent(store, "waiting", gc, me.more)
                (waiting,) = (each[2] for each in of_kind(store, "waiting") if each[1] == gc)
                yield replace(me, at="fence", more=waiting), store
            case "fence":
                undecided = sorted(
                    name
                    for name in me.more
                    if ("open", name) in store and name not in decided(store) and name not in forgotten(store)
                )
                if not undecided or mutants.collector_does_not_fence:
                    yield replace(me, at="look again", more=frozenset()), store
                elif undecided[0].startswith("reader"):  # only waited for
                    yield GONE, store
                else:
                    yield GONE, store  # it may be alive: a later collection goes on
                    yield me, put_if_absent(store, "point", undecided[0], VOID)
            case "look again":
                (mine,) = (each[2] for each in of_kind(store, "condemned") if each[1] == gc)
                doomed = mine if mutants.collector_does_not_look_again else mine - live(store)
                yield replace(me, at="verdict", seen=frozenset(doomed)), store
            case "verdict":
                store = put_if_absent(store, "verdict", gc, me.seen)
                (stands,) = (each[2] for each in of_kind(store, "verdict") if each[1] == gc)
                doomed = me.seen if mutants.collector_deletes_what_it_computed else stands
                yield replace(me, at="delete", seen=doomed, more=stands), store
            case "delete":
                if me.seen:
                    first, left = min(me.seen), me.seen - {min(me.seen)}
                    if mutants.collector_is_done_before_indexes_are and not left:
                        store = put(store, "done", gc)
                    yield replace(me, at="delete" if left else "clean", seen=left), store - {("pack", first)}
                else:
                    yield replace(me, at="clean"), store
            case "clean":
                gone = {
                    ("index", session, pack)
                    for _, session, pack in of_kind(store, "index")
                    if session in forgotten(store) and pack in dead(store)
                }
                yield replace(me, at="tidy"), store - gone
            case "tidy":
                old = {each for each in of_kind(store, "point") if each[1] in forgotten(store)}
                yield replace(me, at="done"), store - old
            case "done":
                named = {pack for _, _, pack in of_kind(store, "index")}
                if named.isdisjoint(me.more):
                    store = put(store, "done", gc)
                yield GONE, store
        if me.at not in {"begin", END}:
            yield GONE, store  # dies

    return step


def forgetting(*sessions):
    """Retention: a sealed point is forgotten, at any time, or never."""

    def step(me, store):
        if me.at == "begin":
            yield GONE, store
            for session in sessions:
                if session in kept(store):
                    yield me, put(store, "forgotten", session)

    return step


def reader(mutants):
    """Restores X."""
    order = ["look", "pin"] if mutants.reader_looks_before_it_pins else ["pin", "look"]

    def step(me, store):
        at = order[0] if me.at == "begin" else me.at
        after = {order[0]: order[1], order[1]: "read", "read": "leave"}
        match at:
            case "pin":
                yield replace(me, at=after[at]), put(store, "open", "reader")
            case "look":
                yield replace(me, at=after[at] if "X" in kept(store) else "leave"), store
            case "read":
                lost = ("pack", "P") not in store
                yield replace(me, at="leave"), put(store, "READ NOTHING") if lost else store
            case "leave":
                yield GONE, store - {("open", "reader")}
        if me.at not in {"begin", END}:
            yield GONE, store

    return step


def lost(store):
    """Tell whether a kept point cannot be restored: no copy of its chunk is found by the index."""
    there = {pack for _, pack in of_kind(store, "pack")}
    # A writer counts on any pack that is in the index and not dead: each of them must be there.
    return bool(kept(store)) and not (there & (indexed(store) - dead(store)))


FIRST = frozenset({("pack", "P"), ("index", "X", "P"), ("point", "X", "sealed")})


def explore(*steps, store=FIRST):
    """Return the number of states that can be reached, and whether something is lost in one of them."""
    start = (store, tuple(Local("begin") for _ in steps))
    seen, left = {start}, [start]
    while left:
        store, processes = left.pop()
        for number, step in enumerate(steps):
            for me, changed in step(processes[number], store):
                state = (changed, (*processes[:number], me, *processes[number + 1 :]))
                if state not in seen:
                    if ("READ NOTHING",) in changed or lost(changed):
                        return len(seen), True
                    seen.add(state)
                    left.append(state)
    return len(seen), False


def two_collections(mutants=RIGHT):
    return explore(
        writer("w", mutants), collector("a", mutants, packs="own"), collector("b", mutants, packs="own"),
        forgetting("X"),
    )  # fmt: skip


def one_collection_twice(mutants=RIGHT):
    """A collection that a second collector carries on, while points come and go."""
    return explore(
        writer("v", mutants, may_die=False), writer("w", mutants, may_die=False, after="v"),
        collector("a", mutants, packs="own"), collector("a", mutants), forgetting("v"),
        store=FIRST | {("forgotten", "X")},
    )  # fmt: skip


def a_process_that_comes_back(mutants=RIGHT):
    """A session that sealed its point and whose process goes on only when that is forgotten."""
    return explore(
        writer("v", mutants), writer("w", mutants, may_die=False, after="v"),
        collector("a", mutants, packs="own"), forgetting("v"), store=frozenset(),
    )  # fmt: skip


def a_restore(mutants=RIGHT):
    """A reader that restores a point while it is forgotten."""
    return explore(
        reader(mutants), writer("w", mutants), collector("a", mutants, packs="own"), forgetting("X")
    )


@pytest.mark.parametrize(
    ("scenario", "at_least"),
    [
        (two_collections, 200_000),
        (one_collection_twice, 100_000),
        (a_process_that_comes_back, 20_000),
        (a_restore, 20_000),
    ],
)
def test_nothing_is_lost_in_any_order_of_requests_and_deaths(scenario, at_least):
    states, lost_something = scenario()

    assert not lost_something
    assert states > at_least


@pytest.mark.parametrize(
    ("mutant", "scenario"),
    [
        ("writer_looks_before_it_announces", two_collections),
        ("collector_lists_open_before_it_condemns", two_collections),
        ("collector_does_not_look_again", two_collections),
        ("collector_does_not_fence", two_collections),
        ("collector_deletes_what_it_computed", one_collection_twice),
        ("collector_is_done_before_indexes_are", two_collections),
        ("reader_looks_before_it_pins", a_restore),
        ("seal_overwrites", two_collections),
        ("seal_repeats_the_index", a_process_that_comes_back),
    ],
)
def test_the_model_notices_every_step_that_is_wrong(mutant, scenario):
    assert scenario(Mutants(**{mutant: True}))[1]
