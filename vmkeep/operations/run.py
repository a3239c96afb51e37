"""One run of an operation: what its steps share, and what of it survives the process.

<state>/<fleet>/runs/<run>/
    run.json            what was asked for, the chosen points, the plan
    lock                held by the process that carries the run out
    outcomes            one JSON line for each step that ended
    snapshots/, held/   what each snapshot is (see `taken`)
    pin, points/<vm>    the recovery points that are read (see `kept_points`)
    spools/<vm>         the repository's spool of the VM's session
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import threading
import time
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

from vmkeep import fleet as fleets
from vmkeep.components.guest import GuestFiles
from vmkeep.errors import AccessError, ConflictError, InputError, IntegrityError, NotFoundError
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import repositories
from vmkeep.operations.request import Request
from vmkeep.operations.state import state_folder
from vmkeep.operations.taken import Taken, write_whole
from vmkeep.planning import Outcome, Plan, State, Verb, still_done
from vmkeep.repository import PointInfo, layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Hypervisor
    from vmkeep.repository import Point, Repository, Session

POINTS_FOLDER: Final = "points"
_PROBE_S: Final = 0.02
_PARENTS: Final = 8
"""How many recovery points are looked through for one that holds a component."""

_open_runs: Final[dict[Path, Run]] = {}
_open_lock: Final = threading.Lock()


def new_run_id(now: datetime, suffix: str | None = None) -> str:
    """Return an id that sorts by time; *suffix* (8 hex digits) makes the same run find itself again."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{suffix or secrets.token_hex(4)}"


class Run:
    """A run under way in this process.

    Safe to use from several threads. Close it, or use it in a `with`.
    """

    def __init__(self, folder: Path, request: Request, plan: Plan, points: Mapping[str, str]) -> None:
        """Take the folder for this process; see `begin` and `reopen`."""
        self.folder = folder
        self.request = request
        self.plan = plan
        self.chosen = dict(points)
        self.taken = Taken(folder)
        self.file: FleetFile = fleets.load(request.fleet).at(request.repository).on(request.placed)
        self.cancelled: Final = threading.Event()
        """Set when the run was interrupted: what only waits for something need not any more."""
        self._mutex = threading.RLock()
        self._hypervisors: dict[str, Hypervisor] = {}
        self._repository: Repository | None = None
        self._sessions: dict[str, Session] = {}
        self._files: dict[str, GuestFiles] = {}
        self._points: dict[str, Point] = {}
        self._parents: dict[str, list[Point]] = {}
        self.troubles: tuple[str, ...] = ()
        """What dead runs left and could not be undone when this one began, for its report."""
        self._lock = self._take()
        with _open_lock:
            _open_runs[folder] = self

    @property
    def id(self) -> str:
        """The run's id."""
        return self.folder.name

    @classmethod
    def begin(cls, run_id: str, request: Request, plan: Plan, points: Mapping[str, str] | None = None) -> Run:
        """Start a run: its folder is made.

        Raises:
            AccessError: it cannot be.
        """
        folder = state_folder(plan.fleet) / "runs" / run_id
        content = {
            "request": request.model_dump(mode="json"), "plan": plan.to_json(), "points": dict(points or {}),
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(folder / "run.json", json.dumps(content).encode())
        except OSError as error:
            raise AccessError(
                f"cannot keep the state of runs in {folder.parent}: {error.strerror}; "
                "VMKEEP_STATE names another place"
            ) from error
        return cls(folder, request, plan, points or {})

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        """Return the run of a folder: the one open in this process, or what an earlier process left.

        Raises:
            NotFoundError: there is no such run here.
            IntegrityError: it cannot be read.
            ConflictError: another process carries it out now.
        """
        with _open_lock:
            run = _open_runs.get(folder)
        if run is not None:
            return run
        try:
            content = json.loads((folder / "run.json").read_bytes())
            request, plan = Request.model_validate(content["request"]), Plan.from_json(content["plan"])
            points = content["points"]
        except FileNotFoundError:
            raise NotFoundError(f"there is no run {folder.name} in {folder.parent}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(
                f"run {folder.name} cannot be read: it is damaged, or of another version of vmkeep, which "
                f"undoes what it left; to give that up, delete {folder}"
            ) from error
        return cls(folder, request, plan, points)

    # What the steps use.

    @property
    def repository(self) -> Repository:
        """The fleet's repository, opened when first used."""
        with self._mutex:
            if self._repository is None:
                self._repository = repositories.open_repository(self.file)
            return self._repository

    def hypervisor_of(self, vm: str) -> Hypervisor:
        """Return the driver of the hypervisor that runs *vm*."""
        return self.hypervisor(self.file.fleet.vms[vm].hypervisor)

    def hypervisor(self, name: str) -> Hypervisor:
        """Return the driver of the hypervisor that is declared as *name*."""
        with self._mutex:
            if name not in self._hypervisors:
                self._hypervisors[name] = open_hypervisor(
                    name, self.file.fleet.hypervisors[name], self.file.path.absolute().parent
                )
            return self._hypervisors[name]

    def session(self, vm: str) -> Session:
        """Return the session that saves *vm*: begun now, or continued after an interruption of this run."""
        with self._mutex:
            if vm not in self._sessions:
                spool = self.folder / "spools" / vm
                self._adopt(vm, spool)
                self._sessions[vm] = self.repository.begin(
                    vm=vm, run=self.id, spool=spool, fleet=self.file.fleet.fleet
                )
            return self._sessions[vm]

    def has_session(self, vm: str) -> bool:
        """Tell whether a session was begun for *vm*, now or before an interruption."""
        with self._mutex:
            return vm in self._sessions or (self.folder / "spools" / vm / "session").exists()

    def end_session(self, vm: str) -> None:
        """Forget a decided session; the next use begins another."""
        with self._mutex:
            session = self._sessions.pop(vm, None)
        if session is not None:
            session.close()

    def files(self, vm: str) -> GuestFiles:
        """Return the VM's file systems as of its snapshot; shared by its components."""
        machine = self.taken.machine(vm)
        with self._mutex:
            if vm not in self._files:
                self._files[vm] = GuestFiles(self.hypervisor_of(vm), machine)
            return self._files[vm]

    def close_files(self, vm: str) -> None:
        """Unmount the VM's file systems."""
        with self._mutex:
            files = self._files.pop(vm, None)
        if files is not None:
            files.close()

    def point(self, vm: str) -> Point:
        """Return the recovery point that this run restores or verifies for *vm*."""
        with self._mutex:
            if vm not in self._points:
                if vm not in self.chosen:
                    raise InputError(f"VM {vm}: this run has no recovery point for it")
                self._points[vm] = self._kept_point(vm) or self.repository.point(vm, self.chosen[vm])
            return self._points[vm]

    def parents(self, vm: str, component: str) -> list[Point]:
        """Return the VM's last recovery points of earlier runs that hold *component*, newest first.

        What is as in one of them is neither read nor stored again.
        """
        with self._mutex:
            if vm not in self._parents:
                # Old ones would only save a little reading, and each costs a request.
                self._parents[vm] = [*islice(self.repository.newest_first(vm), _PARENTS)]
            return [point for point in self._parents[vm] if component in point.components]

    def selected(self, vm: str) -> list[str]:
        """Return the components of *vm* that this run saves, in restore order."""
        prefix = f"backup {vm}/"
        return [step.removeprefix(prefix) for step in self.plan.steps if step.startswith(prefix)]

    def saved_now(self, vm: str, component: str) -> bool:
        """Tell whether the component was saved from the present snapshot, not from one before a retry."""
        outcome = self.outcomes().get(f"backup {vm}/{component}")
        return outcome is not None and outcome.state is State.SUCCEEDED

    def target(self, vm: str) -> str:
        """Return the name under which *vm* is restored."""
        if self.request.operation == "drill":
            return f"{vm}-drill-{self.id}"
        return self.request.rename.get(vm, vm)

    @property
    def drill(self) -> str:
        """How this run's isolated network is called if it is a drill; its VMs carry that as a mark."""
        return f"vmkeep-drill-{self.id}"

    # What survives the process.

    def scratch(self, vm: str) -> Path:
        """Return a folder for large temporary files, gone with the run."""
        folder = self.folder / "scratch" / vm
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remember(self, step: str, outcome: Outcome) -> None:
        """Note how a step ended."""
        line = json.dumps({"step": step, "state": outcome.state.value, "reason": outcome.reason})
        with self._mutex, (self.folder / "outcomes").open("a") as file:
            file.write(line + "\n")

    def done_before(self) -> frozenset[str]:
        """Return the steps that an earlier process of this run did and that need not be repeated."""
        outcomes = self.outcomes()
        undecided = {vm for vm in self.file.fleet.vms if (self.folder / "spools" / vm / "session").exists()}
        for step in self.plan.steps.values():
            saved = step.verb in {Verb.BACKUP, Verb.UPLOAD}
            if saved and step.vms[0] not in undecided and f"seal {step.vms[0]}" not in outcomes:
                outcomes.pop(step.id, None)  # a later run took the session over
        return still_done(self.plan, outcomes, undecided)

    def outcomes(self) -> dict[str, Outcome]:
        """Return how each step ended the last time it was tried."""
        try:
            lines = (self.folder / "outcomes").read_text().splitlines()
        except FileNotFoundError:
            return {}
        noted = (json.loads(line) for line in lines if line.endswith("}"))
        return {one["step"]: Outcome(State(one["state"]), one["reason"]) for one in noted}

    def reason_missing(self, vm: str, component: str) -> str:
        """Return why a component is not in the recovery point."""
        outcomes = self.outcomes()
        group = fleets.group_of(self.file.fleet)[vm]
        for step in (f"backup {vm}/{component}", f"upload {vm}/{component}", f"snapshot {group}"):
            outcome = outcomes.get(step)
            if outcome is not None and outcome.state is not State.SUCCEEDED:
                return outcome.reason
        return "it was not saved before the run ended"

    def close(self) -> None:
        """Let go of everything that belongs to this process; a second call does nothing."""
        with _open_lock:
            _open_runs.pop(self.folder, None)
        with self._mutex:
            for vm in [*self._files]:
                self.close_files(vm)
            for vm in [*self._sessions]:
                self.end_session(vm)
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def forget(self) -> None:
        """Close the run and remove its folder; nothing of it is needed any more."""
        gone = self.folder.with_name(f".{self.folder.name}")
        # While it is still ours: once it is free, others would take it for one that died.
        with contextlib.suppress(OSError):
            self.folder.rename(gone)
        self.close()
        shutil.rmtree(gone, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> int:
        path = self.folder / "lock"
        if not path.exists():
            # It is held before it has its name: nobody ever finds it free, and takes us for dead.
            new = self.folder / f".lock.{os.getpid()}.{threading.get_ident()}"
            lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            new.replace(path)
            return lock
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        for pause in (*[_PROBE_S] * 10, None):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if pause is not None:  # who looks whether we are dead holds it for a moment
                    time.sleep(pause)
            else:
                return lock
        os.close(lock)
        raise ConflictError(f"run {self.folder.name} is carried out by another process now")

    def _kept_point(self, vm: str) -> Point | None:
        """Return the point that was copied when the run began: it may be forgotten since."""
        try:
            body = (self.folder / POINTS_FOLDER / vm).read_bytes()
        except FileNotFoundError:
            return None
        session = self.chosen[vm]
        info = PointInfo(vm, session, layout.decision(vm, session), len(body))
        return self.repository.load(info, body)

    def _adopt(self, vm: str, spool: Path) -> None:
        """Take over the spool that a dead run left for *vm*; the repository then voids its session."""
        if spool.exists():
            return
        spool.parent.mkdir(exist_ok=True)
        for dead in dead_runs(self.file.fleet.fleet):
            left = dead / "spools" / vm
            if (left / "session").exists():
                left.rename(spool)
                return


def dead_runs(fleet: str) -> Iterator[Path]:
    """Yield the folders of runs that no process carries out any more, newest first."""
    for folder in sorted((state_folder(fleet) / "runs").glob("[!.]*"), reverse=True):
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), (folder / "lock").stat()):
                continue
        except (BlockingIOError, FileNotFoundError):  # it runs, or has ended since
            continue
        finally:
            os.close(lock)
        yield folder
