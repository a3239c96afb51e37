"""VMs as folders of disk images, powered off: no daemon, no hypervisor needed.

<path>/<vm>/vm.json                      the definition
<path>/<vm>/<disk>.<format>              its disks
<path>/<vm>/.<disk>.restoring.<format>   a disk that is being restored, not in place yet
<path>/<vm>/.vmkeep-drill                it was made for a drill: which one
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import images, journal, locking, maker, qemu_img, scratch
from vmkeep.disks.device import Image
from vmkeep.errors import InputError, SourceError, UnsupportedError, VmkeepError
from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors import host, reconcile
from vmkeep.hypervisors.base import AS_IT_WAS, Change, DiskState, Found, MachineState, Snapshot
from vmkeep.hypervisors.definition import Definition, DiskFile
from vmkeep.hypervisors.drilled import is_named_by, orphan, require_copy, require_mark
from vmkeep.hypervisors.still import find_disk, still_disk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent
    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel
    from vmkeep.hypervisors.base import Capacity, Elsewhere, Orphan

_FORMATS: Final = {"qcow2": "qcow2", "raw": "raw", "img": "raw", "vmdk": "vmdk", "vhdx": "vhdx"}
"""Format by extension, for images that no definition names."""
_MARK: Final = ".vmkeep-drill"


class ImagesHypervisor:
    """The VMs in one folder. A disk goes only when another takes its place, or with the VM of a drill."""

    driver: Final = "images"
    can_start: Final = False
    streams: Final = None

    def __init__(self, name: str, path: Path, *, kernel_mounts: bool = False) -> None:
        """Use the folder *path*; it need not exist yet."""
        self.name = name
        self.kernel_mounts = kernel_mounts
        self._path = path

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:
        """Return one sentence for each declared thing that needs a running VM or a real hypervisor."""
        return [
            f"VM {name}: {what} is not supported by driver images (hypervisor {self.name}): {advice}"
            for what, advice in reconcile.unsupported(vm)
        ]

    def inventory(self) -> Sequence[Found]:
        """Return the folders that hold a VM; images that no definition names are disks called like them."""
        names = sorted(path.name for path in self._path.glob("[!.]*") if path.is_dir())
        return [self._found(name) for name in names if self.exists(name)]

    def capacity(self) -> Capacity:
        """Return this host's, and that of the disk that the folder is on."""
        return host.capacity({str(self._path): self._path})

    def exists(self, name: str) -> bool:
        """Tell whether the VM's folder holds a definition or an image."""
        return any(
            path.name == definitions.FILE or (path.suffix[1:] in _FORMATS and path.name[0] != ".")
            for path in self._folder(name).glob("*")
        )

    def configure(self, name: str, vm: VM, *, apply: bool) -> Sequence[Change]:
        """Return the differences between declared and actual; carry them out if *apply*."""
        if vm.iso is not None and not (self._path / vm.iso).is_file():
            raise InputError(f"VM {name}: iso {vm.iso!r} is not a file in {self._path}")
        folder = self._folder(name)
        if not apply:
            return self._compare(name, vm)[0]
        folder.mkdir(parents=True, exist_ok=True)
        with journal.exclusive(folder):
            changes, wanted = self._compare(name, vm)
            for disk in wanted.disks:
                _make(folder, disk, what=f"VM {name}: disk {disk.name}")
            if definitions.read(folder) != wanted:
                definitions.write(folder, wanted)
        return [Change(change.what, change.actual, change.declared, applied=True) for change in changes]

    def prepare(
        self,
        group: str,
        vms: Mapping[str, VM],
        *,
        owner: str = "",  # noqa: ARG002  (the Protocol's: a snapshot of images leaves nothing behind)
        marks: Mapping[str, Mapping[str, Sequence[str]]] | None = None,  # noqa: ARG002  (a mark says it all)
    ) -> Snapshot:
        """Look what the VMs' images are."""
        scratch.reap()
        found = {name: self._declared_disks(name, vm) for name, vm in vms.items()}
        machines = {
            name: MachineState(
                name,
                definition.to_json(),
                tuple(
                    DiskState(one.name, str(self._folder(name) / one.file), one.format, 0, 0) for one in disks
                ),
            )
            for name, (definition, disks) in found.items()
        }
        return Snapshot(group, "", "powered-off", machines)

    def take(self, prepared: Snapshot) -> Snapshot:
        """Record what the images of all VMs are at one moment, in which none of them runs."""
        machines = {}
        with contextlib.ExitStack() as locks:
            for name, machine in prepared.machines.items():
                for disk in machine.disks:
                    what = f"VM {name}: disk {disk.name} ({disk.path})"
                    locks.enter_context(locking.locked(Path(disk.path), what=what))
            # None of them can be started now: this is the moment.
            taken = datetime.now(UTC).isoformat(timespec="milliseconds")
            for name, machine in prepared.machines.items():
                states = tuple(still_disk(name, disk) for disk in machine.disks)
                machines[name] = replace(machine, disks=states)
        return replace(prepared, taken=taken, machines=machines)

    def snapshot(self, group: str, vms: Mapping[str, VM]) -> Snapshot:
        """Prepare and take a snapshot at once."""
        return self.take(self.prepare(group, vms))

    def changed(self, machine: MachineState, disk: str, since: str) -> Sequence[Extent] | None:
        """Return nothing for an image that nobody touched since; otherwise it is not known."""
        return () if find_disk(machine, disk).mark == since else None

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot."""
        state = find_disk(machine, disk)
        what = f"VM {machine.vm}: disk {disk}"
        return images.ImageSource(Path(state.path), state.format, what=what, expected=state.fingerprint)

    def release(self, snapshot: Snapshot) -> None:
        """Do nothing: a snapshot of powered-off images is only a record."""

    def require_place(self, elsewhere: Elsewhere) -> None:
        """Refuse a storage, for there is one place only; a network is but a name here."""
        if elsewhere.storage is not None:
            raise UnsupportedError(
                f"a storage is not supported by driver images (hypervisor {self.name}): leave it out"
            )

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> Sequence[Change]:
        """Write the VM's definition, for a restore; disks that are there stay as they are."""
        captured = definitions.parse(definition, where=f"the captured definition of VM {name}")
        changes: Sequence[Change] = ()
        if drill is not None:
            require_copy(name, captured.name)
            self._mark(name, drill)
            captured = captured.attached(drill)
        if captured.name != name:
            captured, changes = reconcile.renamed(captured, name)
        captured, moved = reconcile.connected(captured, elsewhere.networks)
        folder = self._folder(name)
        if self.exists(name) and not overwrite:
            raise InputError(
                f"VM {name} exists already in {folder}: say overwrite, or restore under another name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with journal.exclusive(folder):
            for image in self.images(name):
                with locking.locked(
                    image.path, what=f"VM {name}: disk {image.disk} ({image.path})", write=True
                ):
                    pass  # it does not run
            before = definitions.read(folder)
            for disk in before.disks if before else ():
                if (folder / disk.file).exists():
                    captured = captured.with_disk(disk)
            definitions.write(folder, captured)
        return [*changes, *moved]

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002
        """Open a new image beside the one of that name, which it replaces in `commit_disks`."""
        if format not in qemu_img.FORMATS:
            raise InputError(
                f"VM {name}: disk {disk}: format {format!r} is none of {', '.join(qemu_img.FORMATS)}"
            )
        self.discard_disks(name, [disk])  # a restore before this one was interrupted
        path = self._folder(name) / f".{disk}.restoring.{format}"
        return images.ImageTarget(path, format, size=size, what=f"VM {name}: disk {disk}")

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Put the disks written through `create_disk` in place, all or none."""
        folder = self._folder(name)
        with journal.exclusive(folder) as changes, contextlib.ExitStack() as locks:
            definition = definitions.read(folder)
            if definition is None:
                raise SourceError(f"VM {name}: {folder / definitions.FILE} is missing; create the VM first")
            renames, removals = {}, []
            for disk in disks:
                new = self._restored(name, disk)
                old = definition.disk(disk)
                if old is not None and (folder / old.file).exists():
                    what = f"VM {name}: disk {disk} ({folder / old.file})"
                    locks.enter_context(locking.locked(folder / old.file, what=what, write=True))
                    if old.file != new.file:
                        removals.append(old.file)
                renames[f".{disk}.restoring.{new.format}"] = new.file
                definition = definition.with_disk(new)
            journal.write_file(folder / ".vm.restoring.json", definition.to_json())
            renames[".vm.restoring.json"] = definitions.FILE
            changes.replace(renames, removals=removals)

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove new images that were not put in place."""
        for disk in disks:
            for path in self._restoring(name, disk):
                with locking.locked(path, what=f"VM {name}: disk {disk} ({path})", write=True):
                    path.unlink()

    def isolate(self, drill: str) -> None:
        """Do nothing: what does not run needs no network."""

    def remove(self, name: str, *, drill: str) -> None:
        """Remove the folder of a VM of a drill; its mark goes last."""
        shutil.rmtree(self._unnamed(name), ignore_errors=True)
        folder = self._folder(name)
        if not folder.exists():
            return
        require_mark(name, self._drill_of(name), drill)
        for path in folder.iterdir():
            if path.name != _MARK:
                with locking.locked(path, what=f"VM {name}: {path.name} ({path})", write=True):
                    path.unlink()
        # A folder with nothing but its mark takes another name at once: none is ever without.
        shutil.rmtree(folder.rename(self._unnamed(name)))

    def end_isolation(self, drill: str) -> None:
        """Do nothing: there is no network."""

    def orphans(self) -> Sequence[Orphan]:
        """Return VMs of drills whose makers do not run here any more; files are cleared away otherwise."""
        found: list[Orphan] = []
        for mark in sorted(self._path.glob(f"[!.]*/{_MARK}")):
            with contextlib.suppress(OSError):  # it is removed just now
                drill, _, made = mark.read_text().partition("\n")
                if is_named_by(mark.parent.name, drill):
                    found += orphan(made, vm=mark.parent.name, drill=drill)
        return found

    def images(self, name: str) -> Sequence[Image]:
        """Return the images of the VM's disks, in the order of its definition."""
        folder = self._folder(name)
        definition = definitions.read(folder)
        return [
            Image(disk.name, folder / disk.file, disk.format)
            for disk in (definition.disks if definition else ())
            if (folder / disk.file).exists()
        ]

    def is_running(self, name: str) -> bool:  # noqa: ARG002  (the Protocol's)
        """Tell that it is not: images alone cannot run."""
        return False

    def start(self, name: str) -> None:
        """Raise: images alone cannot run."""
        raise UnsupportedError(
            f"VM {name}: starting is not supported by driver images (hypervisor {self.name})"
        )

    def stop(self, name: str) -> None:
        """Raise: images alone cannot run."""
        raise UnsupportedError(
            f"VM {name}: stopping is not supported by driver images (hypervisor {self.name})"
        )

    def agent(self, name: str) -> AgentChannel:
        """Raise: nothing runs that could answer."""
        raise UnsupportedError(
            f"VM {name}: a guest agent is not supported by driver images (hypervisor {self.name})"
        )

    # --- inside ------------------------------------------------------------------------------

    def _mark(self, name: str, drill: str) -> None:
        """Make the folder of a VM of a drill: it carries its mark before anything else is in it.

        Raises:
            InputError: there is such a folder, and not of this drill.
        """
        folder, new = self._folder(name), self._unnamed(name)
        if folder.exists():
            require_mark(name, self._drill_of(name), drill)
            return
        new.mkdir(parents=True, exist_ok=True)
        (new / _MARK).write_text(f"{drill}\n{maker.me()}")
        new.rename(folder)

    def _drill_of(self, name: str) -> str | None:
        try:
            return (self._folder(name) / _MARK).read_text().partition("\n")[0]
        except FileNotFoundError:
            return None

    def _folder(self, name: str) -> Path:
        return self._path / name

    def _unnamed(self, name: str) -> Path:
        """Return where the folder of a VM of a drill is before it has its mark, or after it had."""
        return self._path / f".{name}.drill"

    def _compare(self, name: str, vm: VM) -> tuple[list[Change], Definition]:
        actual = self._actual(name, vm)
        wanted = definitions.declared(name, vm, actual=actual, disks=reconcile.wanted_disks(vm, actual))
        adopted = actual is not None and definitions.read(self._folder(name)) is None
        return reconcile.differences(name, vm, actual, wanted, adopted=adopted), wanted

    def _actual(self, name: str, vm: VM) -> Definition | None:
        """Return the VM as it is: its definition, or one made up for the images found; sizes are true."""
        folder = self._folder(name)
        written = definitions.read(folder)
        if written is None:
            disks = [found for disk in vm.disks if (found := _adopted(folder, disk.name, disk.format))]
            if not disks:
                return None
            # Nothing but its disks is known: the rest shows up as what is declared.
            written = definitions.declared(name, vm, actual=None, disks=tuple(disks))
        present = []
        for disk in written.disks:
            path = folder / disk.file
            if path.exists():
                shape = images.inspect(path, disk.format, what=f"VM {name}: disk {disk.name}")
                present.append(disk.model_copy(update={"size": shape.size}))
        return written.model_copy(update={"disks": tuple(present)})

    def _found(self, name: str) -> Found:
        try:
            return Found(self._as_found(name))
        except VmkeepError as error:
            return Found(definitions.stand_in(name), remark=str(error))

    def _as_found(self, name: str) -> Definition:
        folder = self._folder(name)
        written = definitions.read(folder) or definitions.stand_in(name)
        named = {disk.file: disk for disk in written.disks}
        disks = []
        for path in sorted(folder.glob("[!.]*")):
            form = _FORMATS.get(path.suffix[1:])
            if form is None or not path.is_file():
                continue
            disk = named.get(path.name)
            name_of, form = (disk.name, disk.format) if disk else (path.stem, form)
            size = images.inspect(path, form, what=f"VM {name}: disk {name_of}").size
            entry = {"name": name_of, "file": path.name, "format": form, "size": size}
            disks.append(DiskFile.model_validate(entry))
        order = [disk.name for disk in written.disks]
        disks.sort(key=lambda one: order.index(one.name) if one.name in order else len(order))
        return written.model_copy(update={"disks": tuple(disks)})

    def _declared_disks(self, name: str, vm: VM) -> tuple[Definition, list[DiskFile]]:
        folder = self._folder(name)
        if not folder.is_dir():
            raise SourceError(f"VM {name}: {folder} does not exist; `vmkeep configure` creates it")
        journal.finish(folder)
        actual = self._actual(name, vm)
        missing = [disk.name for disk in vm.disks if actual is None or actual.disk(disk.name) is None]
        if actual is None or missing:
            which = ", ".join(missing) or "none is declared"
            raise SourceError(
                f"VM {name}: no image in {folder} for disk {which}; `vmkeep configure` creates them"
            )
        return actual, [disk for config in vm.disks if (disk := actual.disk(config.name))]

    def _restoring(self, name: str, disk: str) -> list[Path]:
        names = [self._folder(name) / f".{disk}.restoring.{ending}" for ending in qemu_img.FORMATS]
        return [path for path in names if path.exists()]

    def _restored(self, name: str, disk: str) -> DiskFile:
        found = self._restoring(name, disk)
        if len(found) != 1:
            raise SourceError(f"VM {name}: disk {disk} was not restored: nothing to put in place")
        image_format = found[0].suffix[1:]
        shape = images.inspect(found[0], image_format, what=f"VM {name}: disk {disk}")
        return DiskFile.model_validate(
            {"name": disk, "file": f"{disk}.{image_format}", "format": image_format, "size": shape.size}
        )


def _adopted(folder: Path, disk: str, preferred: str) -> DiskFile | None:
    """Return the image of a disk that no definition names; of several the declared format is taken."""
    for extension, image_format in sorted(_FORMATS.items(), key=lambda item: item[1] != preferred):
        if (folder / f"{disk}.{extension}").exists():
            return DiskFile.model_validate(
                {"name": disk, "file": f"{disk}.{extension}", "format": image_format, "size": 0}
            )
    return None


def _make(folder: Path, disk: DiskFile, *, what: str) -> None:
    """Create the image, or grow it."""
    path = folder / disk.file
    if not path.exists():
        new = folder / f".{disk.file}.new"
        new.unlink(missing_ok=True)  # an earlier call was killed
        images.create(new, disk.format, disk.size)
        new.replace(path)
        journal.flush_folder(folder)
    elif images.inspect(path, disk.format, what=what).size < disk.size:
        images.grow(path, disk.format, disk.size, what=what)
