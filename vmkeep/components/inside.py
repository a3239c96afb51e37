"""Health gates asked from inside a VM, where this host must not ask: in the isolated network of a drill.

There a VM has the address that it was saved with, which is the original's: whoever asks it from here gets the
original's answer, or another's. See: docs/adr/0067.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Final

from vmkeep.components import web
from vmkeep.disks import tools
from vmkeep.errors import GuestError, TemporaryError

if TYPE_CHECKING:
    from vmkeep.components.subject import Subject

# Words of an address are as the processor has them: little-endian, so 127.0.0.0/8 ends in 7F.
# See: Linux kernel, Documentation/networking/proc_net_tcp.rst: state 0A is LISTEN.
_LISTENS: Final = """
port=$(printf ':%04X' "$1")
for table in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$table" ] || continue
    while read -r _ local _ state _; do
        [ "$state" = 0A ] || continue
        case $local in
            *7F:* | 00000000000000000000000001000000:*) ;;
            *"$port") exit 0 ;;
        esac
    done <"$table"
done
exit 1
"""
# What most guests have one of. A status of 400 and above is an error; where all are missing, 127 says so.
_FETCH: Final = """
url=$1 host=$2 address=$3 port=$4 path=$5 seconds=$6
if command -v curl >/dev/null 2>&1; then
    exec curl -sS -f -o /dev/null --noproxy '*' --max-time "$seconds" --connect-to "::$address:" "$url"
fi
case $url in https:*) echo 'no curl in the guest, which https needs' >&2; exit 127 ;; esac
if command -v nc >/dev/null 2>&1; then
    first=$(printf 'GET %s HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' "$path" "$host" |
        nc -w "$seconds" "$(printf %s "$address" | tr -d '[]')" "$port" | head -n 1)
    case $first in
        'HTTP/'*' '[123]*) exit 0 ;;
        *) printf 'answered: %s\\n' "${first:-nothing}" >&2; exit 1 ;;
    esac
fi
exec wget -q -O /dev/null -T "$seconds" --header "Host: $host" "http://$address:$port$path"
"""


def listens(subject: Subject, port: int, *, timeout_s: float) -> str:
    """Return what was found when something listens on a port, and not for the guest itself alone.

    Raises:
        TemporaryError: nothing does yet.
    """
    done = subject.guest().run(["sh", "-c", _LISTENS, "sh", str(port)], timeout_s=timeout_s)
    if done.code != 0:
        raise TemporaryError(f"nothing listens on port {port} for others")
    return f"port {port} is listened on (asked inside)"


def fetches(subject: Subject, url: str, *, timeout_s: float) -> str:
    """Return what was found when the VM answers for a web address at its own address.

    Raises:
        TemporaryError: it has no address yet.
        GuestError: it does not answer, or with a status of 400 and above; or has none of curl, nc and wget.
    """
    parts = urllib.parse.urlsplit(url)
    name = web.host_of(url)
    addresses = subject.guest().addresses()
    if not addresses:
        raise TemporaryError("its guest agent tells no address yet")
    address = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    host = parts.netloc.rpartition("@")[2] or name
    done = subject.guest().run(
        ["sh", "-c", _FETCH, "sh", url, host, address, str(parts.port or 80), path, f"{timeout_s:.0f}"],
        timeout_s=timeout_s + 1,
    )
    if done.code != 0:
        words = tools.last_words((done.err or done.out).decode(errors="replace"))
        raise GuestError(f"{url} at {address}, asked inside: it ended with {done.code}: {words}")
    return f"{url} answers at {address} (asked inside)"
