"""Where objects lie: S3 services, directories (local disks, NFS mounts) and memory."""

from vmkeep.stores.base import ObjectInfo, Store
from vmkeep.stores.directory import DirectoryStore
from vmkeep.stores.lock import Lock, LockingStore
from vmkeep.stores.memory import MemoryStore
from vmkeep.stores.open import S3Options, open_store
from vmkeep.stores.pace import shared_pace
from vmkeep.stores.probe import probe

__all__ = [
    "DirectoryStore",
    "Lock",
    "LockingStore",
    "MemoryStore",
    "ObjectInfo",
    "S3Options",
    "Store",
    "open_store",
    "probe",
    "shared_pace",
]
