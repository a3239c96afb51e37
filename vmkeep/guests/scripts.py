"""The shell scripts that run inside guests: plain POSIX, for dash, bash and BusyBox.

Each is the text for `sh -c`; its arguments come from `words`, and the last of them are the command.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError
from vmkeep.guests.base import ERROR_LIMIT, OUTPUT_LIMIT
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_LIMIT: Final = 64 * KiB
"""The longest command, in bytes."""

_START: Final = """
group=; command -v setsid >/dev/null 2>&1 && group=setsid
end() { kill -s "$1" -- "-$pid" 2>/dev/null || kill -s "$1" "$pid" 2>/dev/null; }
end_after() {
    trap 'kill "$!"; exit' TERM
    sleep "$1" & wait "$!"
    end TERM
    sleep 2
    end KILL
}
"""
"""How a command is started in a session of its own ($group), and ended with all its children."""

RUN: Final = (
    _START
    + f"""
seconds=$1; shift
exec 5<&0 8>&1 9>&2
code=$(
    exec 7>&1
    {{
        {{
            $group "$@" <&5 5<&- 7>&- 8>&- 9>&- & pid=$!
            end_after "$seconds" </dev/null >/dev/null 2>&1 5<&- 7>&- 8>&- 9>&- & alarm=$!
            wait "$pid"
            echo $? >&7
            kill "$alarm" 2>/dev/null
        }} 2>&1 1>&6 6>&- | {{ head -c {ERROR_LIMIT} >&9; cat >/dev/null; }}
    }} 6>&1 | head -c {OUTPUT_LIMIT + 1} >&8
)
"""
)
"""seconds command... Sets $code. Output beyond the limit ends the command, by a broken pipe."""

_FOLDER: Final = """
umask 077
mkdir -- "$dir" || exit 125
trap 'rm -rf -- "$dir"' EXIT
mkfifo "$dir/pipe" "$dir/errors" || exit 125
finish() {
    end TERM
    { sleep 2; end KILL; } >/dev/null 2>&1 & late=$!
    wait "$pid" 2>/dev/null
    kill "$late" 2>/dev/null
}
pid=
trap '[ -z "$pid" ] || finish; exit 125' HUP INT TERM
"""
"""Makes the private folder $dir, gone at the end, and says how a command that must not go on is ended."""

_ERRORS: Final = f"""
{{ head -c {ERROR_LIMIT} >&2; cat >/dev/null; }} <"$dir/errors" & errors=$!
"""

_FEED: Final = f"""
mkfifo "$dir/output" || exit 125
{{ head -c {OUTPUT_LIMIT + 1}; cat >/dev/null; }} <"$dir/output" & output=$!
$group "$@" <"$dir/pipe" >"$dir/output" 2>"$dir/errors" & pid=$!
exec 3>"$dir/pipe"
whole=
"""

_FED: Final = """
if [ -n "$whole" ]; then
    exec 3>&-
    wait "$pid"; code=$?
else
    finish
    exec 3>&-
    code=125
fi
wait "$output" "$errors"
trap '' PIPE
[ -n "$whole" ] || echo "it did not read all of its input" >&2
"""
"""Half of an input is no input: whoever reads it is ended before it could see its end.

Nobody may listen any more: a broken pipe must not keep the folder from being removed.
"""

STREAM_IN: Final = (
    "dir=$1; shift"
    + _START
    + _FOLDER
    + _ERRORS
    + _FEED
    + """
while IFS= read -r size; do
    [ "$size" = end ] && { whole=yes; break; }
    dd bs="$size" count=1 iflag=fullblock >&3 2>/dev/null || break
done
"""
    + _FED
)
"""folder command... Takes frames on its input: a length, a newline, the bytes; `end` ends it. Sets $code."""

STREAM_OUT: Final = (
    _START
    + f"""
exec 5<&0 8>&1 9>&2
code=$(
    exec 7>&1
    {{
        $group "$@" </dev/null >&8 5<&- 7>&- 8>&- 9>&- & pid=$!
        {{ cat <&5; end TERM; sleep 2; end KILL; }} >/dev/null 2>&1 7>&- 8>&- 9>&- & alarm=$!
        wait "$pid"
        echo $? >&7
        kill "$alarm" 2>/dev/null
    }} 2>&1 | {{ head -c {ERROR_LIMIT} >&9; cat >/dev/null; }}
)
"""
)
"""command... Ended when its input ends, which says that nobody reads any more. Sets $code."""

SPOOL_IN: Final = (
    "dir=$1 patience=$2; shift 2"
    + _START
    + _FOLDER
    + _ERRORS
    + _FEED
    + """
part=0
: >"$dir/ready"
while :; do
    left=$((patience * 20))
    until [ -e "$dir/$part.whole" ]; do
        [ -e "$dir/stop" ] && break 2
        left=$((left - 1)); [ "$left" -gt 0 ] || break 2
        sleep 0.05
    done
    [ -s "$dir/$part" ] || { whole=yes; break; }
    cat "$dir/$part" >&3 2>/dev/null || break
    rm -f "$dir/$part" "$dir/$part.whole"
    part=$((part + 1))
done
"""
    + _FED
    + "exit $code\n"
)
"""folder seconds command... Takes parts put into the folder: `0`, then `0.whole`; an empty one ends it."""

SPOOL_OUT: Final = (
    "dir=$1 patience=$2; shift 2"
    + _START
    + _FOLDER
    + _ERRORS
    + """
$group "$@" </dev/null >"$dir/pipe" 2>"$dir/errors" & pid=$!
echo "$pid" >"$dir/pid"
exec 3<"$dir/pipe"
taken() {
    left=$((patience * 20))
    while [ "$1" -ge 0 ] && [ -s "$dir/$1" ]; do
        [ -e "$dir/stop" ] && return 1
        left=$((left - 1)); [ "$left" -gt 0 ] || return 1
        sleep 0.05
    done
    rm -f "$dir/$1"
}
part=0
while dd bs=65536 count=32 iflag=fullblock <&3 >"$dir/next" 2>/dev/null && [ -s "$dir/next" ]; do
    mv "$dir/next" "$dir/$part"
    taken $((part - 1)) || { finish; exit 125; }
    part=$((part + 1))
done
taken $((part - 1)) || { finish; exit 125; }
wait "$pid"; code=$?
wait "$errors"
exit $code
"""
)
"""folder seconds command... Puts what it writes into `0`, `1`, ... Whoever took one makes it empty."""

STOP: Final = (
    _START
    + """
dir=$1
[ -d "$dir" ] || exit 0
: >"$dir/stop"
pid=$(cat "$dir/pid" 2>/dev/null) || exit 0
end TERM
sleep 2
[ -d "$dir" ] && end KILL
exit 0
"""
)
"""folder: ends a SPOOL_OUT whose reader went away."""


def words(script: str, *arguments: str) -> list[str]:
    """Return the words that follow `/bin/sh`.

    Raises:
        InputError: the command is too long, or a word cannot be passed to a program.
    """
    for word in arguments:
        if "\0" in word:
            raise InputError(f"{word!r} has a zero byte in it: no program can be given that")
    if sum(len(word.encode()) + 1 for word in arguments) > COMMAND_LIMIT:
        raise InputError(f"a command in a guest may have {COMMAND_LIMIT} bytes; give the rest as its input")
    return ["-c", script, "vmkeep", *arguments]


def check(command: Sequence[str], data: bytes = b"") -> None:
    """Refuse what no way into a guest takes.

    Raises:
        InputError: the command is empty, or the input too large.
    """
    if not command:
        raise InputError("a command in a guest has at least one word")
    if len(data) > OUTPUT_LIMIT:
        raise InputError(
            f"{len(data)} bytes of input are too many at once (limit {OUTPUT_LIMIT}): stream them"
        )


def new_folder() -> str:
    """Return a path for a private folder in a guest, which nothing has yet."""
    return f"/tmp/vmkeep-{secrets.token_hex(8)}"  # noqa: S108  (made with mkdir, which refuses what is there)
