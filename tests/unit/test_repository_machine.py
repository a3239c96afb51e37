"""Any order of saving, crashing, resuming, forgetting, collecting, repacking and new keys, against a dict."""

import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmkeep.errors import ConflictError, TemporaryError
from vmkeep.repository import Repository
from vmkeep.repository.decision import Decision, decide
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed
from vmkeep.testing.repositories import CHUNK, KEY, contents, point, save, small_repository

VMS = ("db1", "app1")
content = st.lists(
    st.sampled_from([b"", *(bytes([letter]) for letter in b"abcdef"), b"g" * CHUNK]), max_size=12
).map(lambda parts: b"".join(part.ljust(CHUNK, b"\0") for part in parts))


class RepositoryMachine(RuleBasedStateMachine):
    """The model: the content of every point that was sealed, and of what the open sessions recorded."""

    @initialize()
    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        self.store = MemoryStore()
        small_repository(self.store)
        self.sealed = {}
        self.forgotten = set()
        self.recorded = {}
        self.sessions = {}
        self.runs = dict.fromkeys(VMS, 0)
        self.fault = None

    def teardown(self):
        for session in self.sessions.values():
            session.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self):
        return Repository.open(FaultyStore(self.store, lambda _request: self.take_fault()), KEY)

    def take_fault(self):
        if self.fault is None:
            return None
        left, fault = self.fault
        self.fault = (left - 1, fault) if left else None
        return None if left else fault

    @rule(left=st.integers(0, 6), fault=st.sampled_from([Fault.AWAY, Fault.LOST, Fault.KILLED]))
    def let_something_go_wrong(self, left, fault):
        self.fault = (left, fault)

    @rule(vm=st.sampled_from(VMS))
    def begin(self, vm):
        if vm in self.sessions:
            return
        with self.failing(vm):
            session = self.open().begin(vm=vm, run=f"run-{self.runs[vm]}", spool=self.folder / vm)
            self.sessions[vm] = session
            if not session.resumed:
                self.recorded[vm] = {}
            assert session.recorded().keys() == {f"filesystems.{name}" for name in self.recorded[vm]}

    @rule(vm=st.sampled_from(VMS), name=st.sampled_from(["root", "data"]), data=content)
    def save(self, vm, name, data):
        if vm not in self.sessions or name in self.recorded[vm]:
            return
        with self.failing(vm):
            save(self.sessions[vm], {name: data})
            self.recorded[vm][name] = data

    @rule(vm=st.sampled_from(VMS))
    def upload(self, vm):
        if vm in self.sessions:
            with self.failing(vm):
                self.sessions[vm].upload()

    @rule(vm=st.sampled_from(VMS))
    def seal(self, vm):
        if vm not in self.sessions:
            return
        session = self.sessions[vm]
        with self.failing(vm):
            session.upload()
            # It may exist from here on, whatever is answered, unless an earlier call has sealed it.
            told = dict(self.recorded[vm])
            self.sealed[session.id] = [*self.sealed.get(session.id, ([], False))[0], told], False
            session.seal(point(session.recorded(), vm))
            self.sealed[session.id] = [told], True
            session.close()
            del self.sessions[vm]
            self.runs[vm] += 1

    @rule(vm=st.sampled_from(VMS), data=content)
    def save_all(self, vm, data):
        """A whole backup, so that there is more to forget and to collect."""
        self.begin(vm)
        self.save(vm, "root", data)
        self.seal(vm)

    @rule(vm=st.sampled_from(VMS))
    def fence(self, vm):
        """A collector takes the session for dead."""
        if vm in self.sessions:
            key = f"points/{vm}/{self.sessions[vm].id}"
            decide(self.store, Repository.open(self.store, KEY).keys, key, Decision("collector", None, "x"))

    @rule(vm=st.sampled_from(VMS))
    def forget(self, vm):
        repository = Repository.open(self.store, KEY)
        for saved in repository.points(vm)[:1]:
            repository.forget(saved, "retention")
            self.forgotten.add(saved.session)

    @rule(
        dead_after=st.sampled_from([timedelta(0), timedelta(days=7)]),
        repack_below=st.sampled_from([0.0, 0.5, 0.99]),
        renew=st.booleans(),
    )
    def collect(self, dead_after, repack_below, renew):
        """It may end anywhere; the next one carries on."""
        with suppress(TemporaryError, Killed):
            self.open().collect(dead_after=dead_after, repack_below=repack_below, renew=renew)

    @rule()
    def begin_an_epoch(self):
        """Sessions that are open go on in theirs; what begins later is written with new keys."""
        with suppress(TemporaryError, Killed, ConflictError):
            self.open().access.begin_epoch(KEY)

    @rule(repack_below=st.sampled_from([0.5, 0.99]))
    def prune(self, repack_below):
        """Keep one point of each VM, and what only others needed of the packs goes."""
        for vm in VMS:
            for _ in Repository.open(self.store, KEY).points(vm)[1:]:
                self.forget(vm)
        self.collect(timedelta(0), repack_below, renew=False)

    @rule(vm=st.sampled_from(VMS))
    def end_the_run(self, vm):
        if vm not in self.sessions:
            self.runs[vm] += 1

    @rule(vm=st.sampled_from(VMS))
    def crash(self, vm):
        if vm in self.sessions:
            self.sessions.pop(vm).close()

    def failing(self, vm):
        return _Failing(self, vm)

    @invariant()
    def every_sealed_point_is_what_was_saved(self):
        repository = Repository.open(self.store, KEY)
        found = {each.session: contents(repository, each) for each in repository.points()}
        assert found.keys().isdisjoint(self.forgotten)
        for session, (possible, certain) in self.sealed.items():
            assert session in found or not certain or session in self.forgotten
            assert session not in found or found[session] in possible
        assert found.keys() <= self.sealed.keys()
        assert repository.check_objects() == []


class _Failing:
    """What the caller of a session does about errors: tries later, or loses it with its process."""

    def __init__(self, machine, vm):
        self.machine, self.vm = machine, vm

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if kind is None or issubclass(kind, TemporaryError):
            return True
        if issubclass(kind, (Killed, ConflictError)):
            if self.vm in self.machine.sessions:
                self.machine.sessions.pop(self.vm).close()
            return True
        return False


TestRepository = RepositoryMachine.TestCase
TestRepository.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
