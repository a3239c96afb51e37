"""Who can open a repository: its key slots, and the data epochs whose keys they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.repository import layout, slots

if TYPE_CHECKING:
    from vmkeep.repository.repository import Repository
    from vmkeep.repository.secret import Opener


class Access:
    """Of one repository that is open."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def add_slot(self, slot: str, secret: Opener) -> None:
        """Let another secret open the repository too.

        Raises:
            InputError: the slot exists.
            ConflictError: a new data epoch was begun meanwhile.
        """
        store, keys = self._repository.store, self._repository.keys
        slots.add_slot(store, slot, secret, keys.masters, store.get(layout.FORMAT))

    def slots_opened_by(self, secret: Opener) -> list[str]:
        """Return the names of the key slots that *secret* opens."""
        store = self._repository.store
        return slots.opened_by(store, secret, store.get(layout.FORMAT))

    def remove_slot(self, slot: str, secret: Opener) -> str:
        """Take a secret's access away, and return the name of a slot that stays and that *secret* opens.

        What the removed slot's secret opened before can still be opened with a copy of the slot.

        Raises:
            InputError: *secret* opens no other slot: the last one known to work is never removed.
            NotFoundError: there is no such slot.
        """
        store = self._repository.store
        return slots.remove_slot(store, slot, secret, store.get(layout.FORMAT))

    def begin_epoch(self, secret: Opener) -> tuple[str, list[str]]:
        """Write everything from now on under a new master key; what is stored stays as it is, and readable.

        Nothing is shared between epochs except what a backup inherits unread: the next one that reads a disk
        whole stores it anew. Backups and restores may run meanwhile.

        Args:
            secret: the only one that opens the new epoch, until others are added.

        Returns:
            The name of its slot, and those of the slots that ended.

        Raises:
            AccessError: it opens no slot now.
            ConflictError: another one was begun at the same time.
        """
        store, keys = self._repository.store, self._repository.keys
        keys.learn()
        _, slot, ended = slots.begin_epoch(store, secret, keys.masters, store.get(layout.FORMAT))
        keys.learn()
        return slot, ended

    def keep_up(self) -> None:
        """Write with the keys of the newest data epoch, also if it was begun since the repository was opened.

        Raises:
            AccessError: what opened the repository does not open it.
        """
        if slots.Keyring.of(self._repository.store).epoch.number > self._repository.keys.newest.epoch:
            self._repository.keys.learn()

    def old_packs(self) -> int:
        """Return how many packs there are of earlier data epochs than the newest."""
        packs = self._repository.committed.refresh().packs
        return sum(pack.epoch < self._repository.keys.newest.epoch for pack in packs)
