"""What every hypervisor driver must do: run by `tests/contract`, and by other drivers' tests."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pytest

from vmkeep.errors import InputError, SourceChangedError, SourceError, UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.hypervisors.base import Elsewhere
from vmkeep.testing.disks import read
from vmkeep.units import MiB

if TYPE_CHECKING:
    from vmkeep.hypervisors.base import Hypervisor

DISK = 4 * MiB


def declare(*, form: str = "raw", **changes: Any) -> VM:
    """Return a VM with one disk of `DISK` bytes, changed as said."""
    declared = {"hypervisor": "shelf", "disks": [{"name": "root", "size": "4MiB", "format": form}]}
    return VM.model_validate({**declared, **changes})


class HypervisorContract(ABC):
    """Subclass it, and give `open`: a hypervisor without VMs, the same one for the whole test."""

    form = "raw"
    """The format of its disks."""
    holds = False
    """Whether a snapshot holds what the disks were, also of a VM that is powered off and written then."""

    def declare(self, **changes: Any) -> VM:
        return declare(form=self.form, **changes)

    @abstractmethod
    def open(self) -> Hypervisor:
        """Return the hypervisor."""

    @abstractmethod
    def write(self, hypervisor: Hypervisor, name: str, data: bytes) -> None:
        """Write into the VM's disk `root`, as its guest would."""

    def configured(self, name: str = "db1", **changes: Any) -> Hypervisor:
        hypervisor = self.open()
        hypervisor.configure(name, self.declare(**changes), apply=True)
        return hypervisor

    def test_configure_makes_what_is_declared_and_then_has_nothing_to_do(self) -> None:
        hypervisor = self.configured(networks=["lan"])

        assert hypervisor.exists("db1")
        assert not hypervisor.configure("db1", self.declare(networks=["lan"]), apply=True)

    def test_the_inventory_says_of_each_vm_what_the_fleet_file_would(self) -> None:
        hypervisor = self.configured(networks=["lan"], cpus=2, memory="64MiB")

        (found,) = hypervisor.inventory()
        machine = found.definition
        assert (machine.name, machine.cpus, machine.memory) == ("db1", 2, 64 * MiB)
        assert [card.network for card in machine.networks] == ["lan"]
        assert [(disk.name, disk.format, disk.size) for disk in machine.disks] == [("root", self.form, DISK)]
        assert (found.running, found.remark) == (False, "")

    def test_the_capacity_is_what_a_host_can_have(self) -> None:
        capacity = self.configured().capacity()

        assert capacity.cpus >= 1
        assert 0 < capacity.free <= capacity.memory
        assert all(0 <= one.free <= one.size for one in capacity.storages)

    def test_a_preview_touches_nothing(self) -> None:
        hypervisor = self.open()

        changes = hypervisor.configure("db1", self.declare(), apply=False)
        assert {change.what for change in changes} >= {"vm", "cpus", "memory", "disks.root"}
        assert not any(change.applied for change in changes)
        assert not hypervisor.exists("db1")

    def test_only_what_differs_is_changed(self) -> None:
        hypervisor = self.configured()

        changes = hypervisor.configure("db1", self.declare(cpus=4), apply=True)
        assert [(change.what, change.actual, change.declared) for change in changes] == [("cpus", "1", "4")]

    def test_a_disk_grows_and_keeps_its_content(self) -> None:
        hypervisor = self.configured()
        self.write(hypervisor, "db1", b"content")
        larger = self.declare(disks=[{"name": "root", "size": "8MiB", "format": self.form}])

        hypervisor.configure("db1", larger, apply=True)
        machine = hypervisor.snapshot("g", {"db1": larger}).machines["db1"]
        with hypervisor.open_disk(machine, "root") as source:
            assert source.size == 8 * MiB
            assert read(source, 0, 7) == b"content"

    def test_a_disk_is_never_shrunk(self) -> None:
        hypervisor = self.configured()

        with pytest.raises(InputError, match="never shrunk"):
            hypervisor.configure("db1", self.declare(disks=[{"name": "root", "size": "1MiB"}]), apply=True)

    def test_a_disk_that_is_not_declared_any_more_stays(self) -> None:
        hypervisor = self.configured()

        hypervisor.configure("db1", self.declare(disks=[]), apply=True)
        assert hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].disks[0].name == "root"

    def test_network_addresses_stay_when_something_else_changes(self) -> None:
        hypervisor = self.configured(networks=["lan", "dmz"])
        before = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition

        hypervisor.configure("db1", self.declare(networks=["dmz", "lan"]), apply=True)
        after = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition
        assert sorted(_addresses(before)) == sorted(_addresses(after))

    def test_a_snapshot_of_a_vm_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(SourceError, match="db1"):
            self.open().snapshot("g", {"db1": self.declare()})

    def test_a_snapshot_with_a_missing_disk_names_it(self) -> None:
        hypervisor = self.configured()
        two = self.declare(disks=[{"name": "root", "size": "4MiB"}, {"name": "data", "size": "4MiB"}])

        with pytest.raises(SourceError, match="data"):
            hypervisor.snapshot("g", {"db1": two})

    def test_a_disk_that_changed_after_its_snapshot_is_read_as_it_was_or_not_at_all(self) -> None:
        hypervisor = self.configured()
        self.write(hypervisor, "db1", b"old")
        machine = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"]
        self.write(hypervisor, "db1", b"later")

        if self.holds:
            with hypervisor.open_disk(machine, "root") as source:
                assert read(source, 0, 5) == b"old\0\0"
        else:
            with pytest.raises(SourceChangedError, match="db1"):
                hypervisor.open_disk(machine, "root")

    def test_a_disk_that_changes_while_it_is_read_is_noticed_at_the_end_or_does_no_harm(self) -> None:
        hypervisor = self.configured()
        machine = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"]
        source = hypervisor.open_disk(machine, "root")
        self.write(hypervisor, "db1", b"later")

        if self.holds:
            assert read(source, 0, 5) == bytes(5)
            source.close()
        else:
            with pytest.raises(SourceChangedError, match="db1"):
                source.close()

    def test_a_disk_of_a_snapshot_that_was_dropped_is_not_opened_or_is_what_it_was(self) -> None:
        hypervisor = self.configured()
        snapshot = hypervisor.snapshot("g", {"db1": self.declare()})
        hypervisor.release(snapshot)

        if self.holds:
            with pytest.raises(SourceChangedError, match="was dropped"):
                hypervisor.open_disk(snapshot.machines["db1"], "root")
        else:  # a snapshot of a VM that is powered off is but a record there
            with hypervisor.open_disk(snapshot.machines["db1"], "root") as source:
                assert read(source, 0, 5) == bytes(5)

    def test_a_restored_disk_takes_the_place_of_the_old_one_only_when_committed(self) -> None:
        hypervisor = self.configured()
        self.write(hypervisor, "db1", b"old")
        with hypervisor.create_disk("db1", "root", size=DISK, format=self.form) as target:
            target.write(0, b"new")
            target.flush()
        before = self.first_bytes(hypervisor)

        hypervisor.commit_disks("db1", ["root"])
        assert (before, self.first_bytes(hypervisor)) == (b"old", b"new")

    def test_committing_a_disk_that_was_not_restored_changes_nothing(self) -> None:
        hypervisor = self.configured()
        self.write(hypervisor, "db1", b"old")
        hypervisor.create_disk("db1", "root", size=DISK, format=self.form).close()

        with pytest.raises(SourceError, match="data"):
            hypervisor.commit_disks("db1", ["root", "data"])
        assert self.first_bytes(hypervisor) == b"old"

    def test_a_discarded_disk_cannot_be_committed(self) -> None:
        hypervisor = self.configured()
        hypervisor.create_disk("db1", "root", size=DISK, format=self.form).close()
        hypervisor.discard_disks("db1", ["root", "data"])

        with pytest.raises(SourceError, match="root"):
            hypervisor.commit_disks("db1", ["root"])

    def test_creating_over_a_vm_needs_to_be_asked_for(self) -> None:
        hypervisor = self.configured()
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition

        with pytest.raises(InputError, match="overwrite"):
            hypervisor.create("db1", definition, overwrite=False)
        hypervisor.create("db1", definition, overwrite=True)

    def test_a_copy_under_another_name_has_its_own_network_addresses(self) -> None:
        hypervisor = self.configured(networks=["lan"])
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition

        hypervisor.create("db2", definition, overwrite=False)
        hypervisor.create_disk("db2", "root", size=DISK, format=self.form).close()
        hypervisor.commit_disks("db2", ["root"])
        copy = hypervisor.snapshot("g", {"db2": self.declare()}).machines["db2"].definition
        assert set(_addresses(copy)).isdisjoint(_addresses(definition))

    def test_a_copy_may_be_on_another_network_and_that_is_told(self) -> None:
        hypervisor = self.configured(networks=["lan", "dmz"])
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition

        elsewhere = Elsewhere({"lan": "dmz"})
        hypervisor.require_place(elsewhere)
        changes = hypervisor.create("db2", definition, overwrite=False, elsewhere=elsewhere)
        (found,) = [one.definition for one in hypervisor.inventory() if one.definition.name == "db2"]
        assert [card.network for card in found.networks] == ["dmz", "dmz"]
        assert ("networks.lan", "lan", "dmz") in [(one.what, one.actual, one.declared) for one in changes]

    def test_a_storage_that_is_not_there_is_refused_before_anything_is_made(self) -> None:
        with pytest.raises((InputError, UnsupportedError), match="storage"):
            self.open().require_place(Elsewhere(storage="nowhere"))

    def test_releasing_a_snapshot_twice_is_fine(self) -> None:
        hypervisor = self.configured()
        snapshot = hypervisor.snapshot("g", {"db1": self.declare()})
        hypervisor.release(snapshot)

        hypervisor.release(snapshot)

    def drilled(self, hypervisor: Hypervisor, drill: str = "vmkeep-drill-1") -> None:
        """Make a VM of a drill, `db1-drill-1`, of `db1`; with a disk."""
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition
        hypervisor.isolate(drill)
        hypervisor.create("db1-drill-1", definition, overwrite=False, drill=drill)
        with hypervisor.create_disk("db1-drill-1", "root", size=DISK, format=self.form) as target:
            target.write(0, b"drill")
            target.flush()
        hypervisor.commit_disks("db1-drill-1", ["root"])

    def test_a_vm_of_a_drill_goes_with_its_disks_and_the_original_stays(self) -> None:
        hypervisor = self.configured(networks=["lan"])
        self.write(hypervisor, "db1", b"old")
        self.drilled(hypervisor)
        images = hypervisor.images("db1-drill-1")

        hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
        hypervisor.end_isolation("vmkeep-drill-1")
        assert not hypervisor.exists("db1-drill-1")
        assert not any(image.path.exists() for image in images)
        assert self.first_bytes(hypervisor) == b"old"

    def test_a_vm_of_a_drill_has_a_new_identity_and_lies_in_the_drills_network_alone(self) -> None:
        hypervisor = self.configured(networks=["lan", "dmz"])
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition
        self.drilled(hypervisor)

        copy = hypervisor.snapshot("g", {"db1-drill-1": self.declare()}).machines["db1-drill-1"].definition
        assert set(_addresses(copy)).isdisjoint(_addresses(definition))
        assert len(set(_addresses(copy))) == 2
        assert not re.search("""["'](lan|dmz)["']""", copy)

    def test_removing_again_and_of_what_never_was_is_fine(self) -> None:
        hypervisor = self.configured()
        self.drilled(hypervisor)
        for _ in range(2):
            hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
            hypervisor.end_isolation("vmkeep-drill-1")

        hypervisor.remove("db9", drill="vmkeep-drill-1")
        self.drilled(hypervisor)

    def test_a_vm_that_no_drill_made_is_never_removed(self) -> None:
        hypervisor = self.configured()
        self.write(hypervisor, "db1", b"old")
        self.drilled(hypervisor)

        with pytest.raises(InputError, match="db1 is not removed: it was not made for a drill"):
            hypervisor.remove("db1", drill="vmkeep-drill-1")
        assert self.first_bytes(hypervisor) == b"old"

    def test_a_vm_of_another_drill_is_not_removed(self) -> None:
        hypervisor = self.configured()
        self.drilled(hypervisor)

        with pytest.raises(InputError, match="vmkeep-drill-1"):
            hypervisor.remove("db1-drill-1", drill="vmkeep-drill-2")
        assert hypervisor.exists("db1-drill-1")

    def test_a_copy_that_a_person_asked_for_is_not_removed(self) -> None:
        hypervisor = self.configured()
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition
        hypervisor.create("db1-drill-1", definition, overwrite=False)

        with pytest.raises(InputError, match="not made for a drill"):
            hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
        assert hypervisor.exists("db1-drill-1")

    def test_a_drill_never_makes_a_vm_under_its_own_name_or_over_another(self) -> None:
        hypervisor = self.configured()
        hypervisor.configure("db2", self.declare(), apply=True)
        hypervisor.isolate("vmkeep-drill-1")
        definition = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"].definition

        for name in ("db1", "db2"):
            with pytest.raises(InputError, match=name):
                hypervisor.create(name, definition, overwrite=True, drill="vmkeep-drill-1")
        hypervisor.end_isolation("vmkeep-drill-1")

    def test_a_vm_of_a_drill_that_is_at_work_is_no_orphan(self) -> None:
        hypervisor = self.configured()
        self.drilled(hypervisor)

        assert [*hypervisor.orphans()] == []
        hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
        hypervisor.end_isolation("vmkeep-drill-1")

    def test_what_is_restored_from_a_vm_of_a_drill_is_none(self) -> None:
        hypervisor = self.configured()
        self.drilled(hypervisor)
        captured = (
            hypervisor.snapshot("g", {"db1-drill-1": self.declare()}).machines["db1-drill-1"].definition
        )
        hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
        hypervisor.create("db1-drill-1", captured, overwrite=False)

        with pytest.raises(InputError, match="not made for a drill"):
            hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")

    def first_bytes(self, hypervisor: Hypervisor) -> bytes:
        machine = hypervisor.snapshot("g", {"db1": self.declare()}).machines["db1"]
        with hypervisor.open_disk(machine, "root") as source:
            return read(source, 0, 3)


def _addresses(definition: str) -> list[str]:
    # QEMU's own, VMware's for what a person or vCenter chose, and for what a host chose.
    return re.findall(r"(?:52:54:00|00:50:56|00:0c:29)(?::[0-9a-f]{2}){3}", definition)
