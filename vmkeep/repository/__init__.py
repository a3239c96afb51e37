"""Recovery points in a store: deduplicated, compressed, encrypted; see `docs/format.md`."""

from vmkeep.repository.check import PackFault, QuickReport
from vmkeep.repository.collect import Collected, Unneeded
from vmkeep.repository.committed import PointInfo
from vmkeep.repository.holds import Hold
from vmkeep.repository.manifest import DiskRef, Leaf, Point, SavedComponent, Stats, StreamRef
from vmkeep.repository.read_disk import SavedDisk
from vmkeep.repository.repository import Repository
from vmkeep.repository.scrub import ScrubReport
from vmkeep.repository.secret import (
    Opener,
    Secret,
    generate_key_file,
    parse_secret,
    read_key_file,
    read_key_variable,
)
from vmkeep.repository.session import Session
from vmkeep.repository.slots import Slot, list_slots, newest_epoch
from vmkeep.repository.verify import Damage, Place, VerifyReport

__all__ = [
    "Collected",
    "Damage",
    "DiskRef",
    "Hold",
    "Leaf",
    "Opener",
    "PackFault",
    "Place",
    "Point",
    "PointInfo",
    "QuickReport",
    "Repository",
    "SavedComponent",
    "SavedDisk",
    "ScrubReport",
    "Secret",
    "Session",
    "Slot",
    "Stats",
    "StreamRef",
    "Unneeded",
    "VerifyReport",
    "generate_key_file",
    "list_slots",
    "newest_epoch",
    "parse_secret",
    "read_key_file",
    "read_key_variable",
]
