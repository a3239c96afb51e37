"""`vmkeep init`: from nothing to a fleet file, and from a fleet file to a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.cli.console import out, print_json, warn
from vmkeep.cli.fleet_file import load
from vmkeep.cli.new_file import write_text
from vmkeep.fleet.template import template
from vmkeep.operations import repositories
from vmkeep.repository import Repository, generate_key_file, layout
from vmkeep.stores.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.stores import Store


def init(path: Path, *, as_json: bool) -> None:
    """Do what is missing: write the fleet file, or make the repository that it names.

    Raises:
        FleetError: the fleet file has problems.
        InputError: the store cannot hold a repository.
        AccessError: there is a repository, and the key does not open it.
    """
    done: dict[str, Any] = _repositories(path) if path.exists() else _fleet_file(path)
    if as_json:
        print_json(done)
    else:
        out().print(done["message"], markup=False)


def has_repository(store: Store) -> bool:
    """Tell whether somebody made a repository in *store*; needs no key."""
    return any(True for _ in store.list(layout.KEYS))


def _fleet_file(path: Path) -> dict[str, str]:
    write_text(path, template())
    message = (
        f"wrote {path}: a fleet file to start from.\n"
        "Say in it what you have, check it with 'vmkeep validate', then call 'vmkeep init' again."
    )
    return {"fleet_file": str(path), "state": "written", "message": message}


def _repositories(path: Path) -> dict[str, Any]:
    """Make what is missing of the repository and its copies."""
    file = load(path)
    found = _repository(file)
    copies = {name: _repository(file.at(name)) for name in file.fleet.repository.copies}
    if not copies:
        return found
    told = [f"copy {name}: {one['message']}" for name, one in copies.items()]
    return {**found, "copies": copies, "message": "\n".join([found["message"], *told])}


def _repository(file: FleetFile) -> dict[str, Any]:
    store = repositories.store_of(file)
    found = {"fleet_file": str(file.path), "store": store.url}
    try:
        if has_repository(store):
            Repository.open(store, repositories.secret_of(file)).close()
            message = f"{store.url} holds a repository already, and this key opens it. Nothing to do."
            return {**found, "state": "exists", "message": message}
        probe(store)  # before a key is made for a store that is refused
        key = repositories.key_file(file)
        fresh = key is not None and not key.exists()
        if key is not None and fresh:
            generate_key_file(key)
        Repository.init(store, repositories.secret_of(file)).close()
    finally:
        store.close()
    if key is not None and fresh:
        found["key_file"] = str(key)
        warn(
            f"made the key {key}. KEEP A COPY OF IT ELSEWHERE, now: without it nobody can restore "
            "anything from this repository, and nobody can help."
        )
    message = f"made the repository {store.url}. Next: 'vmkeep plan', then 'vmkeep backup'."
    return {**found, "state": "made", "message": message}
