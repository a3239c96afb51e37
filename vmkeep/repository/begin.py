"""Begin a session, or continue the one that an interrupted process left in its spool."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import ConflictError, InputError, IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.decision import Decision, decide, decode
from vmkeep.repository.forgotten import is_forgotten
from vmkeep.repository.presence import announce_writer, leave
from vmkeep.repository.records import from_json, to_json
from vmkeep.repository.session import Identity, Origin, Session
from vmkeep.repository.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.repository.repository import Repository


def begin(
    repository: Repository, origin: Origin, folder: Path, spool_limit: int, moment: datetime | None
) -> Session:
    """Return a session for *origin* with its spool in *folder*; see `Repository.begin`."""
    layout.check_name("VM", origin.vm)
    spool = Spool(folder)
    try:
        identity = _left_behind(repository, spool, origin)
        resumed = identity is not None
        if identity is None:
            identity = _new_identity(repository, spool, origin, moment)
        announce_writer(
            repository.store, repository.keys, session=identity.session, vm=origin.vm, run=origin.run
        )
        return Session(repository, identity, spool, resumed=resumed, spool_limit=spool_limit)
    except BaseException:
        spool.close()
        raise


def _new_identity(repository: Repository, spool: Spool, origin: Origin, moment: datetime | None) -> Identity:
    spool.clear()
    session = _new_id(repository, origin.vm) if moment is None else layout.new_session_id(moment)
    identity = Identity(session, secrets.token_hex(16), origin)
    body = to_json(dataclasses.asdict(identity))
    spool.write_session(sealed.seal(repository.keys, "session", "spool", body))
    return identity


def _new_id(repository: Repository, vm: str) -> str:
    """Return an id behind all points of the VM: the newest is the newest, also after a clock was ahead."""
    listed = (info.key.rpartition("/")[2] for info in repository.store.list(layout.decision(vm, "")))
    last = max(filter(layout.is_session_id, listed), default=None)
    return layout.new_session_id(datetime.now(UTC), after=() if last is None else (last,))


def _left_behind(repository: Repository, spool: Spool, origin: Origin) -> Identity | None:
    """Return the session in the spool if it may be continued, and drop it if another run left it."""
    identity = _read_identity(repository, spool)
    if identity is None:
        return None
    if identity.origin.vm != origin.vm:
        raise InputError(
            f"the spool {spool.folder} belongs to a backup of {identity.origin.vm}, not of {origin.vm}"
        )
    key = layout.decision(origin.vm, identity.session)
    if identity.origin.run != origin.run:
        # Another run took another snapshot: what was saved from the older one must not be mixed with it.
        void = Decision(identity.nonce, None, f"replaced by run {origin.run}")
        decide(repository.store, repository.keys, key, void)
        leave(repository.store, identity.session)
        return None
    with contextlib.suppress(NotFoundError):
        decision = decode(repository.keys, key, repository.store.get(key))
        if decision.point is None or decision.nonce != identity.nonce:
            leave(repository.store, identity.session)
            spool.clear()
            raise ConflictError(
                f"session {identity.session} of {origin.vm} was declared dead while it was interrupted "
                f"({decision.reason or 'decided by another'}): nothing of it counts; back up again"
            )
    if is_forgotten(repository.store, identity.session):
        leave(repository.store, identity.session)
        spool.clear()
        raise ConflictError(
            f"session {identity.session} of {origin.vm} sealed a point that is forgotten now: back up again"
        )
    return identity


def _read_identity(repository: Repository, spool: Spool) -> Identity | None:
    data = spool.session()
    if data is None:
        return None
    try:
        record = from_json(sealed.unseal(repository.keys, "session", "spool", data), "the spool's session")
    except IntegrityError as error:
        raise InputError(
            f"the spool {spool.folder} holds a session of another repository, or a damaged one; "
            "use another folder, or remove it"
        ) from error
    return Identity(record["session"], record["nonce"], Origin(**record["origin"]))
