"""Writers, collectors, a reader and retention on the real code, in any order of their requests.

The order is drawn one request at a time, and drawn again when something was found: a deterministic scheduler
lets one process go on at a time, and nothing but the order and the faults differs from run to run.
"""

import random
import secrets
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.errors import ConflictError, IntegrityError, NotFoundError, TemporaryError, VmkeepError
from vmkeep.repository import (
    Repository,
    collect,
    forgotten,
    packer,
    parallel,
    pins,
    presence,
    repository,
    session,
    uploads,
)
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, Killed
from vmkeep.testing.repositories import CHUNK, KEY, backup, contents, point, save, small_repository
from vmkeep.testing.scheduler import Inline, Scheduler

SHARED, FIRST, SECOND, THIRD = (random.Random(seed).randbytes(6 * CHUNK) for seed in range(4))
OLD, LATER, NEW = ({"root": SHARED, "data": data} for data in (FIRST, SECOND, THIRD))
NEVER, ALWAYS = timedelta(days=7), timedelta(0)
NAMES = ("app1", "db1", "collector", "prune", "reader", "retention")
FAULTS = [Fault.KILLED, Fault.KILLED_AFTER, Fault.LOST]


@pytest.fixture(autouse=True, scope="module")
def alone():
    """Let a process be one thread, and draw the same names each time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (packer, parallel, uploads):
            patch.setattr(module, "ThreadPoolExecutor", Inline)
        patch.setattr("os.fsync", lambda _: None)
        yield


class Meeting:
    """What happens in one order, and what must be found in the end."""

    def __init__(self, folder, choose, faults, dead_after=NEVER):
        self.folder, self.faults, self.dead_after = Path(folder), faults, dead_after
        self.memory = MemoryStore()
        made = small_repository(self.memory)
        old = backup(made, self.folder / "old", OLD)
        new = backup(made, self.folder / "new", LATER, run="run-2")
        made.forget(old, "retention")
        self.saved = {new.session: LATER}
        self.certain, self.forgotten = {new.session}, set()
        self.scheduler = Scheduler(choose, self.fault)

    def fault(self, name, request):
        number, fault = self.faults.get(name, (0, None))
        return fault if request.number == number else None

    def opened(self, name):
        return Repository.open(self.scheduler.store(name, self.memory), KEY)

    def write(self, vm, disks):
        """Save what chunks that are about to be collected hold, too."""
        with self.opened(vm).begin(vm=vm, run="run-3", spool=self.folder / vm) as writing:
            save(writing, disks)
            writing.upload()
            self.saved[writing.id] = disks
            writing.seal(point(writing.recorded(), vm))
            self.certain.add(writing.id)

    def collect(self, name, repack_below):
        for _ in range(2):  # what was condemned while others were at work is deleted by the next one
            self.opened(name).collect(dead_after=self.dead_after, repack_below=repack_below)

    def forget(self):
        opened = self.opened("retention")
        for vm in ("db1", "app1"):
            for each in opened.points(vm)[:-1]:
                self.forgotten.add(each.session)
                opened.forget(each, "retention")

    def read(self):
        opened = self.opened("reader")
        for each in opened.points():
            with suppress(NotFoundError), opened.reading(each):  # it may be forgotten by now
                assert contents(opened, each) == self.saved[each.session]

    def happens(self):
        errors = self.scheduler.run(
            {
                "app1": lambda: self.write("app1", NEW),
                "db1": lambda: self.write("db1", OLD),
                "collector": lambda: self.collect("collector", 0.0),
                "prune": lambda: self.collect("prune", 0.9),
                "reader": self.read,
                "retention": self.forget,
            }
        )
        for name, error in errors.items():
            assert isinstance(error, self.allowed(name)), (name, error)

    def allowed(self, name):
        """Return the errors with which a process may end."""
        own = (Killed, TemporaryError) if name in self.faults else ()
        if self.dead_after is ALWAYS:  # who is taken for dead is told, and gets nothing wrong
            return (*own, ConflictError, *((IntegrityError, NotFoundError) if name == "reader" else ()))
        return own

    def check(self):
        """Every point that is kept is whole, none is missing, and the next collection ends all work."""
        for _ in range(2):
            opened = Repository.open(self.memory, KEY)
            found = {each.session: contents(opened, each) for each in opened.points()}
            assert found == {session: self.saved[session] for session in found}
            assert self.certain - self.forgotten <= found.keys()
            assert opened.check_objects() == []
            opened.collect(dead_after=ALWAYS)
        assert Repository.open(self.memory, KEY).unneeded().size == 0


class Priorities:
    """The process with the highest rank goes on; at some requests it falls behind all others.

    So few changes find what needs few changes, where drawing each request hardly ever would. See: Burckhardt
    and others, A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, 2010.
    """

    def __init__(self, ranks, falls):
        self.ranks, self.falls, self.requests = list(ranks), falls, 0

    def __call__(self, ready):
        self.requests += 1
        first = next(name for name in self.ranks if name in ready)
        if self.requests in self.falls:
            self.ranks.remove(first)
            self.ranks.append(first)
        return first


@settings(max_examples=100, deadline=None)
@given(
    st.permutations(NAMES),
    st.sets(st.integers(1, 300), max_size=12),
    st.dictionaries(
        st.sampled_from(NAMES), st.tuples(st.integers(1, 40), st.sampled_from(FAULTS)), max_size=2
    ),
    st.sampled_from([NEVER, ALWAYS]),
)
def test_nothing_is_lost_in_any_order_of_requests(ranks, falls, faults, dead_after):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        repeatable(patch)
        meeting = Meeting(folder, Priorities(ranks, falls), faults, dead_after)
        meeting.happens()
        meeting.check()


class Clock(datetime):
    """Goes on by a second whenever somebody looks."""

    looked = count()

    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 1, tzinfo=tz) + timedelta(seconds=next(cls.looked))


def repeatable(patch):
    """Let names and times be the same whenever the order is."""
    draw = random.Random(0)
    patch.setattr(secrets, "token_bytes", lambda size=32: draw.randbytes(size))
    patch.setattr(secrets, "token_hex", lambda size=32: draw.randbytes(size).hex())
    patch.setattr("os.urandom", draw.randbytes)
    patch.setattr(Clock, "looked", count())
    for module in (collect, forgotten, pins, presence, repository, session):
        patch.setattr(module, "datetime", Clock)


def in_random_order(seed):
    """Return what went wrong in an order that *seed* draws, or `None`."""
    draw = random.Random(seed)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        repeatable(patch)
        falls = draw.sample(range(1, 300), 8)
        meeting = Meeting(folder, Priorities(draw.sample(NAMES, len(NAMES)), falls), {})
        try:
            meeting.happens()
            meeting.check()
        except (AssertionError, VmkeepError) as error:
            return error, meeting.scheduler.order
        return None, meeting.scheduler.order


def test_the_same_choices_give_the_same_order():
    orders = [[(name, each.verb) for name, each in in_random_order(7)[1]] for _ in range(2)]

    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("where", "wrong", "first"),
    [
        ("collections.Collections.pending", lambda *_, **__: frozenset(), 0),
        ("presence.settle", lambda *_, **__: (), 0),
        ("presence.announce_reader", lambda *_: None, 200),  # one order of a hundred
    ],
    ids=["a writer trusts condemned chunks", "a collector waits for nobody", "a reader says nothing"],
)
def test_a_wrong_step_is_noticed(where, wrong, first, monkeypatch):
    monkeypatch.setattr(f"vmkeep.repository.{where}", wrong)

    assert any(in_random_order(seed)[0] for seed in range(first, first + 100))
