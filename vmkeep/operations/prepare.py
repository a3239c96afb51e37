"""From what was asked for to a plan: all that can be refused is refused here, before anything is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, NotFoundError, UnsupportedError
from vmkeep.fleet.model import NAMES, Kind, is_name
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import repositories
from vmkeep.operations.choose import choose_points
from vmkeep.operations.drilled import drilled_vms, require_drillable
from vmkeep.operations.prune import pruned_vms
from vmkeep.operations.restore import elsewhere, require_free
from vmkeep.operations.support import require_supported
from vmkeep.operations.windows import require_open
from vmkeep.planning import (
    Facts,
    Plan,
    plan_backup,
    plan_configure,
    plan_copy,
    plan_drill,
    plan_prune,
    plan_restore,
    plan_scrub,
    plan_verify,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmkeep.fleet import VM, FleetFile, Selection
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point, Repository, SavedComponent


def prepare(file: FleetFile, request: Request) -> tuple[Plan, dict[str, str]]:
    """Return the plan of *request*, and the recovery points that it uses, by VM.

    Raises:
        InputError: a target is unknown, a VM would be overwritten, something is not supported, or no window
            for backups is open.
        NotFoundError: there is no recovery point to restore or verify.
    """
    if request.packs or request.operation == "prune":
        return _scrub(file, request) if request.packs else _prune(file), {}
    selection = selected(file, request)
    if request.operation == "copy":  # touches no VM
        return _copy(file, request, selection), {}
    require_supported(file, selection.vms)
    match request.operation:
        case "configure":
            return plan_configure(file.fleet, selection, facts(file, selection, None)), {}
        case "backup":
            require_open(file.fleet, request)
            with repositories.open_repository(file) as repository:
                return plan_backup(file.fleet, selection, facts(file, selection, repository)), {}
        case "restore" | "drill":
            return _restore(file, request, selection)
        case "verify":
            return _verify(file, request, selection)


def selected(file: FleetFile, request: Request) -> Selection:
    """Return the components that *request* names."""
    if request.operation == "drill":
        vms = drilled_vms(file.fleet, request.targets)
        return fleets.select(file.fleet, vms, with_dependencies=True)
    return fleets.select(
        file.fleet, request.targets, request.kinds,
        with_dependencies=request.operation == "restore" and request.dependencies,
    )  # fmt: skip


def facts(
    file: FleetFile, selection: Selection, repository: Repository | None, *, whole: bool = False
) -> Facts:
    """Return what is known about the VMs before a run: sizes, and what their drivers can do.

    Args:
        whole: sizes are all that a recovery point holds, which a restore writes; otherwise what the last
            backup had to read of the VM, as the next probably will.
    """
    allocated: dict[str, int] = {}
    powered_off = set()
    for name in selection.vms:
        hypervisor = file.fleet.vms[name].hypervisor
        try:
            driver = open_hypervisor(
                hypervisor, file.fleet.hypervisors[hypervisor], file.path.absolute().parent
            )
        except UnsupportedError:
            continue  # a plan can be shown for it all the same
        if not driver.can_start:
            powered_off.add(hypervisor)
        for image in driver.images(name):
            allocated[f"{name}/{image.disk}"] = image.path.stat().st_blocks * 512
    saved: dict[str, int] = {}
    new: dict[str, int] = {}
    if repository is not None:
        for name in selection.vms:
            point = next(repository.newest_first(name), None)
            for component, one in point.components.items() if point else ():
                saved[f"{name}/{component}"] = _held(one) if whole else one.stats.read
                new[f"{name}/{component}"] = one.stats.new
    return Facts(allocated=allocated, saved=saved, new=new, powered_off=frozenset(powered_off))


def _held(saved: SavedComponent) -> int:
    """Return the bytes that restoring a component deals with; holes of disks count as they pass."""
    disks = sum(disk.size for disk in saved.disks.values())
    return disks + sum(stream.size for stream in saved.streams.values())


def _restore(file: FleetFile, request: Request, selection: Selection) -> tuple[Plan, dict[str, str]]:
    _require_names(selection, request.rename)
    instantly = request.instant and request.operation == "restore"
    if request.disks and (request.instant or request.networks or request.storage or request.hypervisors):
        raise InputError(
            "--disk restores into a VM as it is: leave --instant, --network, --storage, --hypervisor out"
        )
    if instantly and request.hypervisors:
        raise InputError("--instant restores a VM to its own hypervisor: leave --hypervisor out")
    if instantly:
        require_instant(file, selection)
    with repositories.open_repository(file) as repository:
        points = choose_points(file.fleet, selection, repository, request)
        _require_known(request.networks, [repository.point(vm, one).definition for vm, one in points.items()])
        fitting = whole_only if instantly else not_on_disks
        if request.disks:
            written = _with_disks(request.disks, selection, repository, points)
        else:
            written = fleets.Selection(
                {
                    name: fitting(file.fleet.vms[name], repository.point(name, points[name]), components)
                    for name, components in selection.components.items()
                }
            )
        known = facts(file, written, repository, whole=True)
        at_once = {
            name
            for name in selection.vms
            if request.instant and _runs_from_server(file, repository.point(name, points[name]), selection)
        }
    if request.operation == "drill":
        require_drillable(file.fleet, selection.vms, known)
        return plan_drill(file.fleet, written, known, instant=at_once), points
    for name in written.vms:
        hypervisor = file.fleet.vms[name].hypervisor
        driver = open_hypervisor(hypervisor, file.fleet.hypervisors[hypervisor], file.path.absolute().parent)
        require_free(driver, name, request)
        driver.require_place(elsewhere(request))
        if request.disks and not driver.exists(request.rename.get(name, name)):
            raise InputError(f"--disk restores into a VM that exists, and {name} does not: restore all of it")
    created = () if request.disks else None
    return plan_restore(file.fleet, written, known, create=created, instant=request.instant), points


def _require_names(selection: Selection, rename: Mapping[str, str]) -> None:
    """Check that each VM is restored under a name of its own, which can be one.

    Raises:
        InputError: it is not; two VMs would be written over each other, or one outside of its place.
    """
    unknown = set(rename) - set(selection.vms)
    if unknown:
        raise InputError(f"--as names {', '.join(sorted(unknown))}, which is not restored")
    there: dict[str, str] = {}
    for vm in selection.vms:
        name = rename.get(vm, vm)
        if not is_name(name):
            raise InputError(f"--as {vm}={name}: {NAMES}")
        if name in there:
            raise InputError(
                f"{there[name]} and {vm} would both be restored as {name}: give each its own --as"
            )
        there[name] = vm


def _with_disks(
    disks: Sequence[str], selection: Selection, repository: Repository, points: Mapping[str, str]
) -> Selection:
    """Return the components that hold one of the disks.

    Raises:
        NotFoundError: no recovery point holds one of them as a whole.
    """
    found: dict[str, tuple[str, ...]] = {}
    there: dict[str, None] = {}
    for name, components in selection.components.items():
        held = repository.point(name, points[name]).components
        whole = {one: [*held[one].disks] for one in components if one in held and held[one].disks}
        there |= dict.fromkeys(disk for names in whole.values() for disk in names)
        chosen = tuple(one for one, names in whole.items() if {*names} & {*disks})
        if chosen:
            found[name] = chosen
    missing = [disk for disk in disks if disk not in there]
    if missing:
        raise NotFoundError(
            f"--disk {missing[0]}: the recovery points hold no such disk as a whole (they hold "
            f"{_list(there) or 'none'})"
        )
    return fleets.Selection(found)


def _require_known(networks: Iterable[str], definitions: Sequence[str]) -> None:
    """Check that a VM was on the networks to be replaced: a mistyped one would leave a copy where it was.

    Raises:
        InputError: no VM was on one of them.
    """
    for network in networks:
        quoted = (f'"{network.removeprefix("bridge:")}"', f"'{network.removeprefix('bridge:')}'")
        if network != "user" and not any(one in text for one in quoted for text in definitions):
            raise InputError(f"--network {network}=…: no VM that is restored was on network {network}")


def _runs_from_server(file: FleetFile, point: Point, selection: Selection) -> bool:
    """Tell whether a VM can run from a server of its recovery point: all of it is on whole disks there."""
    vm = file.fleet.vms[point.vm]
    config = file.fleet.hypervisors[vm.hypervisor]
    driver = open_hypervisor(vm.hypervisor, config, file.path.absolute().parent)
    _, restored = _whole(point, selection.components[point.vm])
    return driver.streams is not None and restored >= {disk.name for disk in vm.disks}


def require_instant(file: FleetFile, selection: Selection) -> None:
    """Refuse what cannot be restored instantly.

    Raises:
        UnsupportedError: VMs of a hypervisor cannot run before their disks are there.
        InputError: only parts of a VM are restored.
    """
    for name in selection.vms:
        hypervisor = file.fleet.vms[name].hypervisor
        config = file.fleet.hypervisors[hypervisor]
        if open_hypervisor(hypervisor, config, file.path.absolute().parent).streams is None:
            raise UnsupportedError(
                f"VM {name} cannot be restored instantly: driver {config.driver} (hypervisor {hypervisor}) "
                "does not run VMs while their data streams in; leave --instant out"
            )
        if Kind.OS.value not in selection.components[name]:
            raise InputError(
                f"VM {name} cannot be restored instantly: {', '.join(selection.components[name])} is not all "
                f"of it; name {name}, or leave --instant out"
            )


def whole_only(vm: VM, point: Point, components: Sequence[str]) -> tuple[str, ...]:
    """Return the components that are whole disks: all others come along with these, as of the same moment.

    Raises:
        InputError: one lies on a disk that the point does not hold.
    """
    whole, restored = _whole(point, components)
    others = [one for one in components if one not in whole]
    if not whole or (others and not restored >= {disk.name for disk in vm.disks}):
        raise InputError(
            f"VM {point.vm} cannot be restored instantly: recovery point {point.session} does not hold all "
            f"of its disks whole, and {', '.join(others or components)} would be missing; leave --instant out"
        )
    return whole


def _whole(point: Point, components: Sequence[str]) -> tuple[tuple[str, ...], set[str]]:
    """Return those components that are whole disks, and these disks."""
    whole = tuple(one for one in components if one in point.components and point.components[one].disks)
    return whole, {disk for one in whole for disk in point.components[one].disks}


def not_on_disks(vm: VM, point: Point, components: Sequence[str]) -> tuple[str, ...]:
    """Return the components to write: without those that come along with the VM's disks.

    When all disks of a VM that was powered off are restored from one point, its files and databases are on
    them already, at the same moment. Writing them again would cost time, and the disks would no longer
    equal their source.
    """
    whole, restored = _whole(point, components)
    if point.consistency == "powered-off" and restored and restored >= {disk.name for disk in vm.disks}:
        return whole
    return tuple(components)


def _verify(file: FleetFile, request: Request, selection: Selection) -> tuple[Plan, dict[str, str]]:
    with repositories.open_repository(file) as repository:
        points = {}
        for name in selection.vms:
            infos = repository.list_points(name)
            if name in request.points:
                points[name] = repository.point(name, request.points[name]).session
            elif infos:
                points[name] = infos[-1].session
        if not points:
            raise NotFoundError(f"no recovery point of {_list(selection.vms)} in {repository.store.url}")
        kept = fleets.Selection({name: selection.components[name] for name in points})
        return plan_verify(
            file.fleet, kept, facts(file, kept, repository, whole=True), share=request.share
        ), points


def _prune(file: FleetFile) -> Plan:
    with repositories.open_repository(file) as repository:
        return plan_prune(file.fleet, pruned_vms(file, repository))


def _scrub(file: FleetFile, request: Request) -> Plan:
    if request.targets or request.points:
        raise InputError("--packs reads what is stored, whoever's it is: name no VM and no recovery point")
    with repositories.open_repository(file) as repository:
        size = sum(pack.size for pack in repository.committed.refresh().packs)
    return plan_scrub(file.fleet, size=int(size * request.share))


def _copy(file: FleetFile, request: Request, selection: Selection) -> Plan:
    if not file.fleet.repository.copies:
        raise InputError(f"{file.path}: there is nowhere to copy to: say repository.copies")
    for name in request.copies:
        file.at(name)  # or it says which there are
    with repositories.open_repository(file) as repository:
        known = facts(file, selection, repository)
    return plan_copy(file.fleet, selection, known, to=request.copies or None)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
