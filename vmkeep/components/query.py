"""A query to a database inside a guest, through the database's own command line there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.disks import tools
from vmkeep.errors import GuestError, UnsupportedError

if TYPE_CHECKING:
    from vmkeep.fleet.model import SqlCheck
    from vmkeep.guests.base import Guest

# Who is root in the guest is the server's owner towards the server: that is who may always log in.
_AS_OWNER: Final = """
owner=$1; shift
if [ "$(id -u)" = 0 ] && id "$owner" >/dev/null 2>&1; then
    if command -v runuser >/dev/null 2>&1; then exec runuser -u "$owner" -- "$@"; fi
    exec setpriv --reuid "$owner" --regid "$owner" --clear-groups "$@"
fi
exec "$@"
"""


def returns_a_row(guest: Guest, check: SqlCheck, *, timeout_s: float) -> None:
    """Return when the query gave at least one row.

    Raises:
        GuestError: it failed, or gave none.
    """
    done = guest.run(_command(check), timeout_s=timeout_s)
    if done.code != 0:
        words = tools.last_words(done.err.decode(errors="replace"))
        raise GuestError(f"the query failed ({done.code}): {words}")
    if not done.out:
        raise GuestError("the query gave no row")


def _command(check: SqlCheck) -> list[str]:
    match check.engine:
        case "postgresql":
            # -X: no start-up file; -w: never ask for a password; -q -A -t: rows and nothing else.
            ask = ["psql", "-X", "-w", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", check.database]
            return ["sh", "-c", _AS_OWNER, "sh", "postgres", *ask, "-c", check.query]
        case "sqlite":
            return ["sqlite3", "-batch", "-bail", "-readonly", check.database, check.query]
        case "mariadb":
            raise UnsupportedError(
                "health check sql is not supported for mariadb by this version: use tcp or exec"
            )
