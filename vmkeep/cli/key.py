"""`vmkeep key`: which secrets open the repository."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from vmkeep.cli.console import local_time, out, print_json, print_table, warn
from vmkeep.cli.secret import Given, ask
from vmkeep.operations import repositories
from vmkeep.repository import Repository, generate_key_file, list_slots, newest_epoch
from vmkeep.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.repository import Opener, Slot

_KINDS: Final = {"key": "a key file", "passphrase": "a passphrase", "kms": "AWS KMS"}


def new(path: Path) -> None:
    """Make a key file.

    Raises:
        InputError: it exists.
    """
    generate_key_file(path)
    out().print(
        f"made the key {path}; it opens nothing until: vmkeep key add NAME --key-file {quote(str(path))}",
        markup=False,
    )
    warn("keep a copy of it elsewhere")


def list_all(file: FleetFile, *, as_json: bool) -> None:
    """Print the key slots; needs no key."""
    store = repositories.store_of(file)
    try:
        slots, epoch = list_slots(store), newest_epoch(store)
    finally:
        store.close()
    if as_json:
        print_json([asdict(slot) for slot in slots])
    elif slots:
        print_table(_table(slots))
        if epoch.begun is not None:
            since = local_time(epoch.begun)
            out().print(
                f"data epoch {epoch.number}, since {since}; earlier keys open nothing newer", markup=False
            )
    else:
        out().print(f"{store.url} holds no repository; make one with 'vmkeep init'", markup=False)


def add(file: FleetFile, slot: str, given: Given) -> None:
    """Let another secret open the repository too.

    Raises:
        InputError: the slot exists, or no secret was given.
        AccessError: the fleet's own key does not open the repository.
    """
    with repositories.open_repository(file) as repository:
        added = given.secret(partial(repositories.kms_key, file)) or ask(
            f"New passphrase of slot {slot}", again=True
        )
        repository.access.add_slot(slot, added)
        url = repository.store.url
    out().print(f"slot {slot} opens {url} from now on; 'vmkeep key check' tries a key", markup=False)


def remove(file: FleetFile, slot: str, given: Given) -> None:
    """Take a secret's access away.

    Raises:
        InputError: the key at hand opens no other slot.
        NotFoundError: there is no such slot.
    """
    repository, secret = _open(file, given)
    with repository:
        kept = repository.access.remove_slot(slot, secret)
        url = repository.store.url
    out().print(f"removed slot {slot} of {url}; the key at hand opens slot {kept}, which stays", markup=False)


def check(file: FleetFile, given: Given, *, as_json: bool) -> None:
    """Say which slots a secret opens.

    Raises:
        AccessError: it opens none.
    """
    repository, secret = _open(file, given)
    with repository:
        opened = repository.access.slots_opened_by(secret)
        url = repository.store.url
    if as_json:
        print_json({"store": url, "opens": opened})
    else:
        out().print(f"this key opens {url}: slot {', '.join(opened)}", markup=False)


def rotate(file: FleetFile, given: Given, *, as_json: bool) -> None:
    """Begin a new data epoch.

    Raises:
        AccessError: the key opens no slot.
        ConflictError: somebody else began one at the same time.
    """
    repository, secret = _open(file, given)
    with repository:
        slot, ended = repository.access.begin_epoch(secret)
        epoch, url = repository.keys.newest.epoch, repository.store.url
    if as_json:
        print_json({"store": url, "epoch": epoch, "slot": slot, "ended": ended})
        return
    out().print(
        f"what is written to {url} from now on is encrypted with new keys (data epoch {epoch}), which slot "
        f"{slot} opens; what was written before stays as it is",
        markup=False,
    )
    if ended:
        warn(f"{', '.join(ended)}: these slots ended; add them again with 'vmkeep key add'")
    warn("only one slot opens the new epoch: add another with 'vmkeep key add', and keep it elsewhere")


def reencrypt(file: FleetFile, *, as_json: bool) -> None:
    """Write again, with the newest keys, what earlier data epochs stored and recovery points need.

    Raises:
        IntegrityError: stored data is damaged; nothing is deleted then.
        TemporaryError: the store is away; another call carries on.
    """
    with repositories.open_repository(file) as repository:
        done = repository.collect(renew=True)
        left = repository.access.old_packs()
    if as_json:
        print_json({"rewritten": done.repacked.size, "freed": done.size, "left": left})
        return
    out().print(
        f"{format_size(done.repacked.size)} in {done.repacked.packs} pack(s) were written with new keys, "
        f"{format_size(done.size)} freed; {left} pack(s) of earlier data epochs are left"
    )
    if left:
        warn("backups or restores are under way, or packs are locked: call it again later")


def _open(file: FleetFile, given: Given) -> tuple[Repository, Opener]:
    """Open the repository with the secret that was given, by default the fleet's own."""
    secret = given.secret(partial(repositories.kms_key, file)) or repositories.secret_of(file)
    return Repository.open(repositories.store_of(file), secret), secret


def _table(slots: list[Slot]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SLOT", "OPENS WITH", "MADE"):
        table.add_column(name, overflow="fold")
    for slot in slots:
        table.add_row(slot.name, _opens_with(slot), local_time(slot.made) if slot.made else "not recorded")
    return table


def _opens_with(slot: Slot) -> Text:
    if slot.damage:
        return Text(f"nothing: {slot.damage}", "bold red")
    return Text(f"{_KINDS[slot.kind]} {slot.service_key or ''}".strip())
