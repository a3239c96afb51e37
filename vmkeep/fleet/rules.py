"""What can only be checked with the whole fleet in view: references, names, cycles, times.

Each rule takes the fleet and yields findings; a rule never stops another.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import networkx as nx

from vmkeep.fleet import component_rules, cron
from vmkeep.fleet.document import Finding
from vmkeep.fleet.model import BEST, PRIMARY
from vmkeep.fleet.suggest import suggestion
from vmkeep.fleet.windows import opening

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.fleet.document import Path
    from vmkeep.fleet.draft import Declared
    from vmkeep.fleet.model import S3, Ages, Fleet, KeyReference, Kms, Place, Retention, Schedule

_FREE_LIMITS: Final = ("upload", "bandwidth")
_SUMMER_AND_WINTER: Final = (date(2026, 1, 15), date(2026, 7, 15))
"""Days on which a schedule and a window in different time zones are compared."""


def findings(fleet: Fleet, declared: Declared) -> list[Finding]:
    """Return what is wrong with *fleet* as a whole."""
    found: list[Finding] = []
    for rule in (_hypervisors, _dependencies, _cycle, _groups, _objectives, _placement):
        found += rule(fleet, declared)
    for name, vm in fleet.vms.items():
        broken = declared.broken.get(name, frozenset())
        found += component_rules.findings(("vms", name), vm, broken)
    for check in (_store, _services, _times, _windows):
        found += check(fleet)
    found += _limits(fleet, declared)
    return found


def _hypervisors(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    told: set[str] = set()
    for name, vm in fleet.vms.items():
        inherited = "hypervisor" in declared.inherited.get(name, ())
        if vm.hypervisor in declared.hypervisors or "hypervisor" in declared.broken.get(name, ()):
            continue
        if inherited and vm.hypervisor in told:
            continue
        path: Path = ("defaults", "hypervisor") if inherited else ("vms", name, "hypervisor")
        told |= {vm.hypervisor} if inherited else set()
        yield _unknown(path, "hypervisor", vm.hypervisor, declared.hypervisors)
    for name in sorted(declared.hypervisors & set(_FREE_LIMITS)):
        yield Finding(("hypervisors", name), f"{name!r} is a key of limits: give the hypervisor another name")


def _dependencies(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    for name, vm in fleet.vms.items():
        yield from _references(("vms", name, "depends_on"), vm.depends_on, declared)


def _cycle(fleet: Fleet, _declared: Declared) -> Iterator[Finding]:
    """Yield one cycle of each knot of dependencies, as the path that leads back to its start."""
    edges: nx.DiGraph[str] = nx.DiGraph()
    edges.add_edges_from((name, needed) for name, vm in fleet.vms.items() for needed in vm.depends_on)
    order = {name: position for position, name in enumerate(fleet.vms)}
    for knot in nx.strongly_connected_components(edges):
        first = min(knot, key=lambda name: order.get(name, len(order)))
        if len(knot) == 1 and not edges.has_edge(first, first):
            continue
        cycle = [start for start, _ in nx.find_cycle(edges.subgraph(knot), first)]
        if first in cycle:
            cycle = cycle[cycle.index(first) :] + cycle[: cycle.index(first)]
        path = " -> ".join([*cycle, cycle[0]])
        yield Finding(
            ("vms", cycle[0], "depends_on"), f"dependency cycle: {path}; a restore has nowhere to start"
        )


def _groups(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    owner: dict[str, str] = {}
    for group, config in fleet.consistency_groups.items():
        path: Path = ("consistency_groups", group)
        yield from _references((*path, "vms"), config.vms, declared)
        if group in declared.vms and set(config.vms) != {group}:
            yield Finding(path, f"a VM is called {group!r} too: give the group another name")
        for index, name in enumerate(config.vms):
            if owner.setdefault(name, group) != group:
                yield Finding(
                    (*path, "vms", index), f"{name} is in group {owner[name]} already: a VM is in at most one"
                )
        if config.max_freeze <= 0:
            yield Finding((*path, "max_freeze"), "must be longer than nothing")


def _objectives(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    for name, objective in fleet.objectives.items():
        path: Path = ("objectives", name)
        yield from _references((*path, "vms"), objective.vms, declared)
        if objective.rpo is None and objective.rto is None:
            yield Finding(path, "promises nothing: say rpo, rto or both")


def _placement(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    for name, vm in fleet.vms.items():
        if vm.placement is None:
            continue
        path: Path = ("vms", name, "placement")
        for key in ("near", "away_from"):
            others = getattr(vm.placement, key)
            yield from _references((*path, key), others, declared)
            if name in others:
                yield Finding((*path, key, others.index(name)), f"{name} cannot be {key} itself")
        for other in sorted(set(vm.placement.near) & set(vm.placement.away_from)):
            yield Finding(path, f"{other} stands in near and in away_from")
        yield from _of_one_host(fleet, name, path)


def _of_one_host(fleet: Fleet, name: str, path: Path) -> Iterator[Finding]:
    """Find VMs that stand on the wrong host already, where a hypervisor is one host."""
    vm = fleet.vms[name]
    config = fleet.hypervisors.get(vm.hypervisor)
    if vm.placement is None or config is None or config.driver != "libvirt":
        return
    there = {other: one.hypervisor for other, one in fleet.vms.items() if other != name}
    for number, other in enumerate(vm.placement.away_from):
        if there.get(other) == vm.hypervisor:
            message = f"{name} is to be away from {other}, and both are on {vm.hypervisor}, which is one host"
            yield Finding((*path, "away_from", number), message)
    for number, other in enumerate(vm.placement.near):
        if there.get(other, vm.hypervisor) != vm.hypervisor:
            message = f"{name} is to be near {other}, which is on {there[other]}, not on {vm.hypervisor}"
            yield Finding((*path, "near", number), message)


def _store(fleet: Fleet) -> Iterator[Finding]:
    repository = fleet.repository
    taken = {repository.store: "the repository"}
    yield from _place(("repository",), repository)
    for name, copy in repository.copies.items():
        path = ("repository", "copies", name)
        yield from _place(path, copy)
        if name in {BEST, PRIMARY}:
            yield Finding(path, f"{name!r} has a meaning of its own beside copies: use another name")
        if copy.store in taken:
            yield Finding((*path, "store"), f"is the store of {taken[copy.store]}: a copy lies elsewhere")
        taken.setdefault(copy.store, f"copy {name}")
    if fleet.schedules.copy_ is not None and not repository.copies:
        yield Finding(("schedules", "copy"), "there is nowhere to copy to: say repository.copies")
    if repository.retention is not None:
        yield from _retention(("repository", "retention"), repository.retention)


def _retention(path: Path, retention: Retention) -> Iterator[Finding]:
    everything: list[tuple[Path, Ages]] = [(path, retention)]
    everything += [((*path, "kinds", str(kind)), ages) for kind, ages in retention.kinds.items()]
    for where, ages in everything:
        if not any(ages.model_dump().values()):
            yield Finding(where, "keeps nothing: say how many points to keep, for example last: 3")


def _place(path: Path, place: Place) -> Iterator[Finding]:
    scheme, slashes, rest = place.store.partition("://")
    scheme = scheme.lower() if slashes else ""
    if scheme not in {"", "s3"}:
        yield Finding((*path, "store"), f"{scheme}:// is no store: write s3://BUCKET/PREFIX or a path")
    if scheme == "s3" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?", rest):
        yield Finding((*path, "store"), "names no bucket: write s3://BUCKET/PREFIX")
    if not place.store:
        yield Finding((*path, "store"), "must not be empty")
    for key in ("s3", "object_lock"):
        if scheme != "s3" and getattr(place, key, None) is not None:
            message = f"works with a store s3://BUCKET/PREFIX, and the store is {place.store}"
            yield Finding((*path, key), message)


def _services(fleet: Fleet) -> Iterator[Finding]:
    """Yield what is wrong with the addresses of services, and with the logins to them."""
    logins: list[tuple[Path, KeyReference | None]] = []
    places: dict[Path, S3 | None] = {("repository", "s3"): fleet.repository.s3}
    places |= {("repository", "copies", name, "s3"): one.s3 for name, one in fleet.repository.copies.items()}
    services: dict[Path, S3 | Kms | None] = {**places}
    services[("repository", "kms")] = fleet.repository.kms
    services |= {
        ("repository", "copies", name, "kms"): one.kms for name, one in fleet.repository.copies.items()
    }
    for where, service in services.items():
        if service is not None and service.endpoint_url is not None:
            yield from _url((*where, "endpoint_url"), service.endpoint_url, ("http", "https"))
    for where, s3 in places.items():
        if s3 is not None:
            logins.append(((*where, "credentials"), s3.credentials))
    for name, config in fleet.hypervisors.items():
        if config.driver == "libvirt":
            yield from _url(("hypervisors", name, "uri"), config.uri, ())
        elif config.driver == "vsphere":
            logins.append((("hypervisors", name, "credentials"), config.credentials))
    for path, reference in logins:
        if reference is not None and reference.kms is not None:
            message = "a KMS key opens repositories, it is no login: say file, env or prefect_secret"
            yield Finding((*path, "kms"), message)


def _url(path: Path, url: str, schemes: tuple[str, ...]) -> Iterator[Finding]:
    example = "https://s3.example:9000" if schemes else "qemu:///system"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) if schemes else bool(parts.scheme)
        _ = parts.port  # a number, or ValueError
    except ValueError:
        valid = False
    if not valid:
        yield Finding(path, f"{url!r} is no address: write one such as {example}")


def _times(fleet: Fleet) -> Iterator[Finding]:
    scheduled = fleet.schedules.declared()
    places: list[tuple[Path, str]] = [(("schedules", name), one.timezone) for name, one in scheduled.items()]
    places += [(("windows", name), window.timezone) for name, window in fleet.windows.items()]
    for path, zone in places:
        if not _is_timezone(zone):
            yield _unknown((*path, "timezone"), "time zone", zone, sorted(available_timezones()))
    for name, schedule in scheduled.items():
        if (wrong := cron.problem(schedule.cron)) is not None:
            yield Finding(("schedules", name, "cron"), wrong)
        if schedule.sample is not None:
            if name != "verify":
                yield Finding(("schedules", name, "sample"), "belongs to verify only")
            elif schedule.sample == 0:
                yield Finding(("schedules", name, "sample"), "must be more than 0%")


def _windows(fleet: Fleet) -> Iterator[Finding]:
    never = [name for name, window in fleet.windows.items() if window.start == window.end]
    for name in never:
        start = fleet.windows[name].start
        yield Finding(("windows", name), f"starts and ends at {start}: it is never open")
    backup = fleet.schedules.backup
    if backup is None or not fleet.windows or never or cron.problem(backup.cron) is not None:
        return
    zones = [backup.timezone, *(window.timezone for window in fleet.windows.values())]
    if all(map(_is_timezone, zones)):
        yield from _missed(fleet, backup)


def _missed(fleet: Fleet, backup: Schedule) -> Iterator[Finding]:
    """Find times at which a backup is scheduled and may not begin."""
    for day in _SUMMER_AND_WINTER:
        for hour, minute in cron.times(backup.cron):
            moment = datetime.combine(day, time(hour, minute), ZoneInfo(backup.timezone))
            if opening(fleet.windows, moment) is None:
                hours = "; ".join(
                    f"{name}: {one.start} to {one.end} {one.timezone}" for name, one in fleet.windows.items()
                )
                message = f"fires at {moment:%H:%M} {backup.timezone}, when no window is open ({hours})"
                yield Finding(("schedules", "backup", "cron"), message)
                return


def _is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder of zones
        return False
    return True


def _limits(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    whole = set(fleet.vms) == declared.vms and not any("disks" in keys for keys in declared.broken.values())
    storages = {disk.storage for vm in fleet.vms.values() for disk in vm.disks if disk.storage}
    hosts = {host for vm in fleet.vms.values() if vm.placement for host in vm.placement.hosts}
    known = [*_FREE_LIMITS, *fleet.hypervisors, *(f"storage:{one}" for one in sorted(storages))]
    known += [f"host:{one}" for one in sorted(hosts)]
    for key, value in fleet.limits.items():
        path: Path = ("limits", key)
        # A host that no VM is pinned to may still run some, for hypervisors choose; and what storage
        # there is can only be said if all disks are known.
        free = re.fullmatch(r"host:\S+" if whole else r"(host|storage):\S+", key)
        if key not in known and free is None:
            yield _unknown(path, "limit", key, known)
        elif (key == "bandwidth") != isinstance(value, str):
            wanted = "a rate such as 200MiB/s" if key == "bandwidth" else "a whole number of at least 1"
            yield Finding(path, f"must be {wanted}")


def _references(path: Path, names: Iterable[str], declared: Declared) -> Iterator[Finding]:
    """Yield a finding for each of *names* that is no VM, or stands there twice."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name not in declared.vms:
            yield _unknown((*path, index), "VM", name, sorted(declared.vms))
        elif name in seen:
            yield Finding((*path, index), f"{name} stands here twice")
        seen.add(name)


def _unknown(path: Path, what: str, name: str, known: Iterable[str]) -> Finding:
    return Finding(path, f"there is no {what} {name!r}{suggestion(name, known)}")
