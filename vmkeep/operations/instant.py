"""Instant restore: a VM runs from a server of its recovery point, and its data streams in behind it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError, NotFoundError, SourceError, VmkeepError
from vmkeep.hypervisors.base import ServedDisk
from vmkeep.operations import replaced, serving
from vmkeep.operations.prepare import selected
from vmkeep.operations.report import StepReport
from vmkeep.operations.serving import Serving
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step

_POLL_S: Final = 1.0


def serve(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Serve the VM's disks, and let it lie on overlays over them."""
    (name,) = step.vms
    target, point = run.target(name), run.point(name)
    components = selected(run.file, run.request).components[name]
    refs = {
        disk: ref
        for component in components
        if component in point.components
        for disk, ref in point.components[component].disks.items()
    }
    what = Serving(
        fleet=str(run.file.path.absolute()),
        hypervisor=run.file.fleet.vms[name].hypervisor,
        target=target,
        vm=name,
        session=point.session,
        repository=run.request.repository,
        run=run.id,
        disks=tuple(refs),
        by_point=True,
    )
    what = replace(what, kept_in=str(serving.folder_of(run.file, what.hypervisor, target)))
    replaced.set_aside(what)
    serving.write(what)
    try:
        address = serving.ensure(what)
        served = {disk: ServedDisk(ref.size, address, what.export(disk)) for disk, ref in refs.items()}
        what.streams().overlay(target, served)
    except BaseException:
        with contextlib.suppress(VmkeepError):  # it ends by itself when nothing lies on its disks for long
            replaced.abandon(what.folder, run.id)
        raise
    what = replace(what, in_place=True)
    serving.write(what)
    replaced.drop(what)
    size = sum(ref.size for ref in refs.values())
    return StepReport(f"{', '.join(refs)}, {format_size(size)}, read from {point.session} as they are needed")


def stream(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Let the data stream in behind the VM, and let its server go."""
    (name,) = step.vms
    hypervisor = run.file.fleet.vms[name].hypervisor
    try:
        what = serving.read(serving.folder_of(run.file, hypervisor, run.target(name)))
    except NotFoundError:
        return StepReport("all of its data is there")
    written = follow(what, bandwidth=run.request.bandwidth, progress=progress, stop=run.cancelled)
    return StepReport(f"{format_size(written)} streamed in; no server is needed any more", read=written)


def follow(
    what: Serving,
    *,
    bandwidth: int = 0,
    progress: Callable[[int], None],
    stop: threading.Event | None = None,
) -> int:
    """Let the data of a VM stream in until all is there, and let its server go; return the bytes.

    A server that dies meanwhile is started again.

    Args:
        bandwidth: of each disk, in bytes a second; 0: as fast as it goes.
        stop: set when nobody wants to wait any more; what streams goes on by itself.

    Raises:
        NotFoundError: the VM is not there any more.
        SourceError: the VM is powered off, or nobody wants to wait any more.
        TemporaryError: the server does not come up.
    """
    stop = stop or threading.Event()
    what = replace(what, in_place=True, wanted=True, bandwidth=bandwidth or what.bandwidth)
    told = 0

    def tell(size: int) -> None:
        nonlocal told
        told += size
        progress(size)

    try:
        serving.update(what)
        _follow(what, tell, stop)
    except NotFoundError:
        if serving.is_noted(what.folder):
            raise
        # The server saw to the rest, and went at whatever moment; also when somebody removed the VM.
    if not what.machine().exists(what.target):
        raise NotFoundError(f"VM {what.target} is not there any more: no data streams into it")
    return told


def _follow(what: Serving, progress: Callable[[int], None], stop: threading.Event) -> None:
    streams = what.streams()
    sizes: dict[str, int] = {}
    told = 0
    while serving.is_noted(what.folder):
        serving.ensure(what, room=False)
        with serving.turn(what.folder) as ours:
            behind = (
                streams.stream(what.target, bandwidth=what.bandwidth) if ours else streams.behind(what.target)
            )
            sizes |= {one.disk: one.size for one in behind if one.size}
            done = sum(sizes.values()) - sum(sizes.get(one.disk, 0) - one.done for one in behind)
            if done > told:
                progress(done - told)
                told = done
            if ours and not behind:
                serving.let_go(what)
                return
        if stop.wait(_POLL_S):
            raise SourceError(
                f"VM {what.target}: {', '.join(one.disk for one in behind)} has not streamed in yet, and "
                f"goes on by itself; 'vmkeep stream {what.target}' waits for it"
            )


def find(file: FleetFile, target: str) -> Serving:
    """Return what a VM is served.

    Raises:
        NotFoundError: nothing: it has all of its data.
        InputError: two hypervisors have one of this name.
    """
    found = []
    for folder in serving.folders_of(file):
        if folder.name == target:
            with contextlib.suppress(NotFoundError):
                found.append(serving.read(folder))
    if not found:
        raise NotFoundError(
            f"no data streams into VM {target}: it was not restored instantly, or all is there"
        )
    if len(found) > 1:
        where = ", ".join(one.hypervisor for one in found)
        raise InputError(f"VM {target} is on several hypervisors: {where}")
    return found[0]


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a VM's data is."""

    server: bool
    """Whether its server runs."""
    streaming: bool
    """Whether data streams in now."""
    disks: tuple[str, ...]
    """The disks of which not all is there."""
    problem: str = ""
    """Why that cannot be told."""

    @property
    def sentence(self) -> str:
        """What people need to know."""
        if self.problem:
            return self.problem
        if not self.disks:
            return "its server is let go soon" if self.server else "done"
        if not self.server:
            return "its server does not run"
        return "streams in" if self.streaming else "waits"


def state_of(what: Serving) -> StreamState:
    """Return how far a VM's data is."""
    server = serving.is_alive(what.folder)
    try:
        behind = what.streams().behind(what.target)
    except VmkeepError as error:
        return StreamState(server, streaming=False, disks=what.disks, problem=str(error))
    return StreamState(server, any(one.size for one in behind), tuple(one.disk for one in behind))


def size_of(what: Serving) -> int:
    """Return the bytes that were to stream in, as far as it is known now."""
    return sum(one.size for one in what.streams().behind(what.target))


def power_on(what: Serving) -> None:
    """Start a VM whose data has not streamed in.

    Raises:
        NotFoundError: it is not there any more.
    """
    with contextlib.ExitStack() as stack:
        try:
            serving.ensure(what)
            stack.enter_context(serving.my_turn(what.folder))  # its server may have started it already
        except NotFoundError:
            if serving.is_noted(what.folder):
                raise
            # It has all of its data, and may be started by anybody.
        what.machine().start(what.target)
