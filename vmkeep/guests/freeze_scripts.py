"""The shell scripts that freeze and thaw a guest's file systems: plain POSIX, as in `scripts`."""

from __future__ import annotations

from typing import Final

THAW_LATER: Final = """
trap 'kill "$!"; exit' TERM
sleep "$1" & wait "$!"
set -f
while read -r _ _ _ _ point _; do
    fsfreeze --unfreeze "$(printf '%b' "$point")"
done </proc/self/mountinfo >/dev/null 2>&1
"""
"""seconds: then thaws every mounted file system."""

FROZEN: Final = "/run/vmkeep-frozen"
"""A folder in the memory of a guest that was frozen by SSH: which mount points, and by which session."""

_THAW: Final = f"""
set -f
umask 077
state={FROZEN}
thaw() {{
    thawed=0
    for point in $(cat "$state/points" 2>/dev/null); do
        fsfreeze --unfreeze "$(printf '%b' "$point")" 2>/dev/null && thawed=$((thawed + 1))
    done
    rm -rf "$state"
}}
"""
"""A file system is thawed before those that lie in files of it: in the order in which they were mounted."""

FREEZE: Final = (
    _THAW
    + """
code=0
if ! words=$(mkdir "$state" 2>&1); then
    [ -d "$state" ] && words="frozen already"
    echo "$words"
    code=1
else
    points= backwards= devices=
    while read -r _ _ device _ point rest; do
        rest=${rest#*- }
        case ${rest%% *} in
            ext2|ext3|ext4|xfs|btrfs|f2fs|jfs|nilfs2|reiserfs|gfs2|ocfs2) ;;
            *) continue ;;
        esac
        case " $devices " in *" $device "*) continue ;; esac
        devices="$devices $device" points="$points $point" backwards="$point $backwards"
    done </proc/self/mountinfo
    echo "$$" >"$state/owner"
    echo "$points" >"$state/points"
    ours() { [ "$(cat "$state/owner" 2>/dev/null)" = "$$" ]; }
    (
        trap 'kill "$!"; exit' TERM
        trap '' HUP
        sleep "$1" & wait "$!"
        ours && thaw
    ) </dev/null >/dev/null 2>&1 & alarm=$!
    frozen=0
    for point in $backwards; do
        if words=$(LC_ALL=C fsfreeze --freeze "$(printf '%b' "$point")" 2>&1); then
            frozen=$((frozen + 1))
        else
            case $words in *"not supported"* | *busy*) ;; *) code=1; break ;; esac
        fi
    done
    [ "$code" = 0 ] && echo "frozen $frozen" || echo "$words"
    [ "$code" = 0 ] && read -r _
    thawed=0
    ours && thaw
    kill "$alarm" 2>/dev/null
    echo "thawed $thawed"
fi
"""
)
"""seconds: freezes, says so, and thaws when a line comes, its input ends, or the time is over. Sets $code."""

THAW: Final = _THAW + 'thaw\necho "thawed $thawed"\ncode=0\n'
"""Thaws what any session froze."""
