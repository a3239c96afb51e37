"""Every interleaving of writers, collectors, repackers, readers and forgetting, each dying at any request.

A model of the protocol in `docs/format.md`, "Order of writing" and "Collecting": recovery points that need a
chunk each, `c` or `e`, and packs that hold copies of them; a pack is who put it, and its chunks. At first a
point X needs `c`, which lies in the pack P, there with `e` where packs are rewritten. A step of a process is
one request; a store is the set of its objects. Explored exhaustively. The mutants show that the model would
notice if a step were missing, or came in another order.
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
    collector_counts_on_what_others_condemned: bool = False
    collector_reads_what_others_condemned_too_late: bool = False
    repacker_deletes_before_its_index_counts: bool = False
    repacker_commits_before_its_pack_is_there: bool = False
    repacker_is_not_in_the_list: bool = False
    repacker_overwrites: bool = False
    holder_takes_the_place_first: bool = False
    tombstones_go_anywhere: bool = False


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
    """What each session that is over decided: VOID, the chunk that its point needs, or nothing (a repack)."""
    return {each[1]: each[2] for kind in ("point", "repacked") for each in of_kind(store, kind)}


def forgotten(store):
    return {session for _, session in of_kind(store, "forgotten")}


def kept(store):
    """The recovery points that count, and the chunk that each needs."""
    gone = forgotten(store)
    return {
        session: chunk
        for _, session, chunk in of_kind(store, "point")
        if chunk != VOID and session not in gone
    }


def under_way(store):
    done = {each[1] for each in of_kind(store, "done")}
    return {each[1] for each in of_kind(store, "condemned")} - done


def dead(store):
    return {pack for _, gc, packs in of_kind(store, "verdict") if gc in under_way(store) for pack in packs}


def condemned(store, *, but=None):
    open_ones = under_way(store) - {each[1] for each in of_kind(store, "verdict")} - {but}
    return {pack for _, gc, packs in of_kind(store, "condemned") if gc in open_ones for pack in packs}


def indexed(store):
    """What an index shows: the packs of sealed sessions, forgotten ones too, also those that are dead."""
    sealed = {session for session, what in decided(store).items() if what != VOID} | forgotten(store)
    return {pack for _, session, pack in of_kind(store, "index") if session in sealed}


def copies(store, chunk):
    return {pack for pack in indexed(store) - dead(store) if chunk in pack[1]}


def live(store, fate_open=frozenset()):
    """The packs that are needed: of each chunk the last copy among those whose fate is not open."""
    found = set()
    for chunk in set(kept(store).values()):
        every = copies(store, chunk)
        certain = every - fate_open
        found |= {max(certain)} if certain else every
    return found


def put(store, *thing):
    return store | {thing}


def put_if_absent(store, kind, key, what):
    return store if any(each[:2] == (kind, key) for each in store) else put(store, kind, key, what)


def writer(name, mutants, *, may_die=True, after=None, needs="c"):  # noqa: C901  (a table of steps)
    pack = (name, needs)

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
                counts = me.counts or (not me.own and bool(copies(store, needs) - me.seen))
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
                yield replace(me, at="leave"), put_if_absent(store, "point", name, needs)
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
                found, waiting = me.seen - live(store, condemned(store)), frozenset()
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
                late = mutants.collector_reads_what_others_condemned_too_late
                if not undecided or mutants.collector_does_not_fence:
                    yield replace(me, at="look early" if late else "others", more=frozenset()), store
                elif undecided[0].startswith("reader"):  # only waited for
                    yield GONE, store
                else:
                    yield GONE, store  # it may be alive: a later collection goes on
                    key = "repacked" if undecided[0].startswith("repacker") else "point"
                    yield me, put_if_absent(store, key, undecided[0], VOID)
            case "others":
                others = condemned(store, but=gc)
                if mutants.collector_counts_on_what_others_condemned:
                    others = set()
                yield replace(me, at="look again", more=frozenset(others)), store
            case "look again":
                (mine,) = (each[2] for each in of_kind(store, "condemned") if each[1] == gc)
                doomed = mine if mutants.collector_does_not_look_again else mine - live(store, me.more)
                yield replace(me, at="verdict", seen=frozenset(doomed), more=frozenset()), store
            case "look early":  # what it found without knowing what others condemned is kept if they do not
                yield replace(me, at="others late", seen=frozenset(live(store))), store
            case "others late":
                (mine,) = (each[2] for each in of_kind(store, "condemned") if each[1] == gc)
                spared = mine if me.seen & condemned(store, but=gc) else me.seen
                yield replace(me, at="verdict", seen=frozenset(mine - spared)), store
            case "verdict":
                store = put_if_absent(store, "verdict", gc, me.seen)
                (stands,) = (each[2] for each in of_kind(store, "verdict") if each[1] == gc)
                doomed = me.seen if mutants.collector_deletes_what_it_computed else stands
                yield replace(me, at="delete", seen=doomed, more=stands), store
            case "delete":
                after = "retire" if of_kind(store, "repacked") else "clean"
                if me.seen:
                    first, left = min(me.seen), me.seen - {min(me.seen)}
                    if mutants.collector_is_done_before_indexes_are and not left:
                        store = put(store, "done", gc)
                    yield replace(me, at="delete" if left else after, seen=left), store - {("pack", first)}
                else:
                    yield replace(me, at=after), store
            case "retire":  # a repack whose packs are all dead counts like a point that is forgotten
                over = {
                    session
                    for _, session, what in of_kind(store, "repacked")
                    if what != VOID
                    and dead(store) >= {pack for _, one, pack in of_kind(store, "index") if one == session}
                }
                yield replace(me, at="clean"), store | {("forgotten", session) for session in over}
            case "clean":
                gone = {
                    ("index", session, pack)
                    for _, session, pack in of_kind(store, "index")
                    if session in forgotten(store) and pack in dead(store)
                }
                yield replace(me, at="tidy"), store - gone
            case "tidy":
                ended = of_kind(store, "point") + of_kind(store, "repacked")
                old = {each for each in ended if each[1] in forgotten(store)}
                yield replace(me, at="done"), store - old
            case "done":
                named = {pack for _, _, pack in of_kind(store, "index")}
                if named.isdisjoint(me.more):
                    store = put(store, "done", gc)
                yield GONE, store
        if me.at not in {"begin", END}:
            yield GONE, store  # dies

    return step


def repacker(name, mutants):  # noqa: C901  (a table of steps)
    """Copies what is needed of the packs that hold something else too."""
    deletes_early = mutants.repacker_deletes_before_its_index_counts
    commits_early = mutants.repacker_commits_before_its_pack_is_there

    def step(me, store):  # noqa: C901
        pack = (name, "".join(sorted(me.seen)))
        match me.at:
            case "begin":
                hidden = mutants.repacker_is_not_in_the_list
                yield replace(me, at="look"), store if hidden else put(store, "open", name)
            case "look":
                found = frozenset(
                    chunk
                    for owner, chunks in live(store, condemned(store))
                    for chunk in chunks
                    if len(chunks) > 1 and chunk in kept(store).values()
                )
                at = "leave" if not found else "put index" if commits_early else "read"
                yield replace(me, at=at, seen=found), store
            case "read":
                there = any(set(chunks) >= me.seen for _, (_, chunks) in of_kind(store, "pack"))
                yield replace(me, at="upload" if there else "leave"), store
            case "upload":
                at = "leave" if commits_early else "delete" if deletes_early else "put index"
                yield replace(me, at=at), put(store, "pack", pack)
            case "delete":  # only a mutant comes here
                yield replace(me, at="put index"), store - {("pack", P_SPARSE)}
            case "put index":
                yield replace(me, at="commit"), put(store, "index", name, pack)
            case "commit":
                if mutants.repacker_overwrites:
                    store = frozenset(each for each in store if each[:2] != ("repacked", name))
                at = "upload" if commits_early else "leave"
                yield replace(me, at=at), put_if_absent(store, "repacked", name, "")
            case "leave":
                yield GONE, store - {("open", name)}
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


def free_place(store, session):
    return len([each for each in of_kind(store, "taken") if each[1] == session])


def careful_forgetting(session, mutants):
    """Chooses a place for the tombstone, looks whether the point is held, and puts it if that is free."""

    def step(me, store):
        match me.at:
            case "begin":
                yield replace(me, at="look", seen=frozenset({free_place(store, session)})), store
            case "look":
                yield replace(me, at=END if ("hold", session) in store else "put"), store
            case "put":
                (place,) = me.seen
                if ("taken", session, place) in store and not mutants.tombstones_go_anywhere:
                    yield replace(me, at="begin"), store
                else:
                    yield GONE, put(store, "forgotten", session)

    return step


def holder(session, mutants):
    """Holds a point, and takes the place where somebody may be about to put a tombstone."""
    first, second = ("hold", "place") if not mutants.holder_takes_the_place_first else ("place", "hold")

    def step(me, store):
        at = first if me.at == "begin" else me.at
        after = {first: second, second: "done"}
        match at:
            case "hold":
                yield replace(me, at=after[at]), put(store, "hold", session)
            case "place" if session in forgotten(store):
                yield GONE, store - {("hold", session)}
            case "place":
                yield replace(me, at=after[at]), put(store, "taken", session, free_place(store, session))
            case "done":
                yield GONE, put(store, "HELD", session)
        if me.at not in {"begin", END}:
            yield GONE, store

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
                # Its index may be an old one: what is gone there it looks for in the present one.
                found = any(("pack", pack) in store for pack in copies(store, "c"))
                yield replace(me, at="leave"), store if found else put(store, "READ NOTHING")
            case "leave":
                yield GONE, store - {("open", "reader")}
        if me.at not in {"begin", END}:
            yield GONE, store

    return step


def lost(store):
    """Tell whether a kept point cannot be restored, or a writer would count on a pack that is not there."""
    there = {pack for _, pack in of_kind(store, "pack")}
    if indexed(store) - dead(store) - there:
        return True
    if any(session not in kept(store) for _, session in of_kind(store, "HELD")):
        return True
    return any(not copies(store, chunk) for chunk in kept(store).values())


P, P_SPARSE = ("X", "c"), ("X", "ce")
FIRST = frozenset({("pack", P), ("index", "X", P), ("point", "X", "c")})
SPARSE = frozenset({("pack", P_SPARSE), ("index", "X", P_SPARSE), ("point", "X", "c")})


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


def a_repack(mutants=RIGHT):
    """Packs are rewritten while a writer counts on what was not copied, or copies."""
    return explore(
        repacker("repacker", mutants), collector("a", mutants, packs="own"), writer("w", mutants, needs="e"),
        forgetting("X"), store=SPARSE,
    )  # fmt: skip


def a_repack_and_two_collections(mutants=RIGHT):
    return explore(
        repacker("repacker", mutants), collector("a", mutants, packs="own"),
        collector("b", mutants, packs="own"), store=SPARSE,
    )  # fmt: skip


def a_copy_that_is_condemned(mutants=RIGHT):
    """A chunk lies in two packs; one of them is condemned before a writer counts on the other one."""
    return explore(
        writer("w", mutants, may_die=False, needs="e"), collector("a", mutants, packs="own"),
        collector("b", mutants, packs="own"), forgetting("X"),
        store=SPARSE | {("pack", ("Z", "e")), ("index", "Z", ("Z", "e")), ("forgotten", "Z")},
    )  # fmt: skip


def two_repacks(mutants=RIGHT):
    return explore(
        repacker("repacker 1", mutants), repacker("repacker 2", mutants),
        collector("a", mutants, packs="own"), forgetting("X"), store=SPARSE,
    )  # fmt: skip


def a_repack_and_a_restore(mutants=RIGHT):
    return explore(
        reader(mutants), repacker("repacker", mutants), collector("a", mutants, packs="own"),
        forgetting("X"), store=SPARSE,
    )  # fmt: skip


def a_hold(mutants=RIGHT):
    """A point is held while it is forgotten, and collected by two."""
    return explore(
        holder("X", mutants), careful_forgetting("X", mutants), collector("a", mutants, packs="own"),
        collector("b", mutants, packs="own"),
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
        (a_copy_that_is_condemned, 200_000),
        (a_repack, 100_000),
        (two_repacks, 50_000),
        (a_repack_and_two_collections, 10_000),
        (a_repack_and_a_restore, 10_000),
        (a_hold, 1_000),
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
        ("collector_counts_on_what_others_condemned", a_copy_that_is_condemned),
        ("collector_reads_what_others_condemned_too_late", a_copy_that_is_condemned),
        ("repacker_deletes_before_its_index_counts", a_repack),
        ("repacker_commits_before_its_pack_is_there", a_repack),
        ("repacker_is_not_in_the_list", a_repack),
        ("repacker_overwrites", a_repack),
        ("holder_takes_the_place_first", a_hold),
        ("tombstones_go_anywhere", a_hold),
    ],
)
def test_the_model_notices_every_step_that_is_wrong(mutant, scenario):
    assert scenario(Mutants(**{mutant: True}))[1]
