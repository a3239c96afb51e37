"""What every way into a running guest must do: run by `tests/contract`, and by other drivers' tests."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import time
from typing import TYPE_CHECKING

import pytest

from vmkeep.errors import GuestError, InputError, TemporaryError
from vmkeep.guests.base import ERROR_LIMIT, OUTPUT_LIMIT
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.guests.base import Completed, Guest

_WRITER = """
while :; do
    echo x >>/data/written; sync -d /data/written 2>/dev/null || sync
    read -r now _ </proc/uptime; echo "$now" >>/tmp/moments
    sleep 0.05
done
"""


class GuestContract:
    """Subclass it, and give the fixture `guest`: a running Linux guest with a file system on /data.

    Tests leave it as they found it.
    """

    address = ""
    """One of the addresses that the guest has; empty where it has none."""

    def test_a_guest_that_is_well_answers(self, guest: Guest) -> None:
        guest.ping()

    def test_output_errors_and_exit_code_come_back_apart(self, guest: Guest) -> None:
        done = shell(guest, "echo out; echo err >&2; exit 3")

        assert (done.code, done.out, done.err) == (3, b"out\n", b"err\n")

    def test_input_and_output_are_any_bytes(self, guest: Guest) -> None:
        data = bytes(range(256)) * 100

        assert guest.run(["cat"], input=data, timeout_s=30).out == data

    @pytest.mark.parametrize("word", ["two words", "it's", '"$HOME"', "new\nline", "", "-n", "*", "ü\\"])
    def test_words_arrive_as_they_are(self, guest: Guest, word: str) -> None:
        assert guest.run(["printf", "%s|", word, "end"], timeout_s=30).out.decode() == f"{word}|end|"

    def test_a_program_that_is_not_there_ends_with_127(self, guest: Guest) -> None:
        assert guest.run(["/no/such/program"], timeout_s=30).code == 127

    def test_a_signal_is_told_by_the_exit_code(self, guest: Guest) -> None:
        assert shell(guest, "kill -9 $$").code == 128 + 9

    def test_a_command_that_takes_too_long_is_ended_in_the_guest_too(self, guest: Guest) -> None:
        with pytest.raises(TemporaryError):
            guest.run(["sleep", "98765"], timeout_s=0.5)

        assert eventually(lambda: shell(guest, "ps | grep -c '[s]leep 98765'").out == b"0\n")

    def test_output_up_to_the_limit_is_returned_and_more_is_an_error(self, guest: Guest) -> None:
        count = f"head -c {OUTPUT_LIMIT} /dev/zero"

        assert len(shell(guest, count).out) == OUTPUT_LIMIT
        with pytest.raises(GuestError, match="stream"):
            shell(guest, f"{count}; echo")
        guest.ping()

    def test_of_long_errors_the_beginning_is_kept(self, guest: Guest) -> None:
        done = shell(guest, f"head -c {3 * ERROR_LIMIT} /dev/zero >&2; echo done")

        assert (done.code, done.out, len(done.err)) == (0, b"done\n", ERROR_LIMIT)

    def test_too_much_input_is_refused(self, guest: Guest) -> None:
        with pytest.raises(InputError, match="stream"):
            guest.run(["cat"], input=bytes(OUTPUT_LIMIT + 1), timeout_s=30)

    def test_a_long_stream_comes_out_whole(self, guest: Guest) -> None:
        command = "head -c 7000001 /dev/urandom >/tmp/long; cat /tmp/long"

        streamed = hashlib.sha256(b"".join(guest.stream_out(["sh", "-c", command]))).hexdigest()
        assert shell(guest, "sha256sum /tmp/long; rm /tmp/long").out.split()[0].decode() == streamed

    def test_a_stream_of_nothing_is_empty(self, guest: Guest) -> None:
        assert list(guest.stream_out(["true"])) == []

    def test_a_stream_whose_command_fails_is_not_taken_for_whole(self, guest: Guest) -> None:
        stream = guest.stream_out(["sh", "-c", "echo half; echo no space >&2; exit 4"])

        assert next(stream) == b"half\n"
        with pytest.raises(GuestError, match=r"\(4\): no space"):
            next(stream)

    def test_a_stream_that_is_closed_early_ends_its_command(self, guest: Guest) -> None:
        stream = guest.stream_out(["sh", "-c", "yes; sleep 98764"])
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # (generators have it; the Protocol promises less)

        assert eventually(lambda: shell(guest, "ps | grep -c '[y]es'").out == b"0\n")
        assert eventually(lambda: shell(guest, "ls -d /tmp/vmkeep-*").out == b"")

    def test_a_stream_that_stands_still_is_given_up(self, guest: Guest) -> None:
        with pytest.raises(TemporaryError):
            list(guest.stream_out(["sleep", "98763"], quiet_s=1))

        assert eventually(lambda: shell(guest, "ps | grep -c '[s]leep 98763'").out == b"0\n")

    def test_a_long_stream_goes_in_whole(self, guest: Guest) -> None:
        blocks = [random.Random(number).randbytes(700 * KiB + number) for number in range(8)]

        done = guest.stream_in(["sh", "-c", "sha256sum; echo warned >&2"], blocks)
        assert done.out.split()[0].decode() == hashlib.sha256(b"".join(blocks)).hexdigest()
        assert (done.code, done.err) == (0, b"warned\n")

    def test_an_empty_stream_goes_in(self, guest: Guest) -> None:
        assert guest.stream_in(["wc", "-c"], []).out.strip() == b"0"

    def test_half_of_an_input_is_never_taken_for_all_of_it(self, guest: Guest) -> None:
        def broken() -> Iterator[bytes]:
            yield bytes(3 * MiB)
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="gone"):
            guest.stream_in(["sh", "-c", "cat >/tmp/half && echo >/tmp/whole"], broken())
        time.sleep(0.3)
        assert shell(guest, "rm -f /tmp/half; ls /tmp/whole").code != 0

    def test_a_command_that_reads_only_half_has_failed(self, guest: Guest) -> None:
        with pytest.raises(GuestError, match="did not read all"):
            guest.stream_in(["head", "-c", "10"], [bytes(MiB)] * 8)

    def test_a_command_that_fails_after_its_input_has_failed(self, guest: Guest) -> None:
        with pytest.raises(GuestError, match=r"\(9\): bad data"):
            guest.stream_in(["sh", "-c", "cat >/dev/null; echo bad data >&2; exit 9"], [b"data"])

    def test_nothing_is_left_of_streams(self, guest: Guest) -> None:
        list(guest.stream_out(["echo", "x"]))
        guest.stream_in(["cat"], [b"x"])

        assert shell(guest, "ls -d /tmp/vmkeep-*").out == b""

    def test_a_frozen_guest_writes_nothing_until_it_thaws(self, guest: Guest) -> None:
        with writing(guest):
            assert guest.freeze() >= 1
            time.sleep(1.2)
            assert guest.thaw() >= 1
        moments = written_at(guest)
        assert max(b - a for a, b in itertools.pairwise(moments)) > 1

    def test_a_guest_tells_whether_it_is_frozen(self, guest: Guest) -> None:
        before = guest.frozen()
        guest.freeze()
        meanwhile = guest.frozen()
        guest.thaw()

        assert (before, meanwhile, guest.frozen()) == (False, True, False)

    def test_thawing_a_thawed_guest_does_nothing(self, guest: Guest) -> None:
        guest.freeze()
        guest.thaw()

        assert guest.thaw() == 0

    def test_freezing_a_frozen_guest_is_an_error_and_it_stays_frozen(self, guest: Guest) -> None:
        guest.freeze()
        try:
            with pytest.raises(GuestError, match="frozen already"):
                guest.freeze()
            assert guest.frozen()
        finally:
            guest.thaw()

    def test_a_guest_whose_freezer_is_away_thaws_by_itself(self, guest: Guest) -> None:
        with writing(guest):
            count = guest.freeze(hold_s=2)
            time.sleep(7)  # nobody can ask: an agent does not know that it was thawed behind its back
            assert guest.thaw() < count
        moments = written_at(guest)
        assert max(b - a for a, b in itertools.pairwise(moments)) > 0.5

    def test_a_guest_knows_its_address(self, guest: Guest) -> None:
        assert not self.address or self.address in guest.addresses()


def shell(guest: Guest, script: str, timeout_s: float = 30) -> Completed:
    """Run a script in a guest."""
    return guest.run(["sh", "-c", script], timeout_s=timeout_s)


def eventually(holds: Callable[[], object], *, timeout_s: float = 60) -> bool:
    """Tell whether something becomes true in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def writing(guest: Guest) -> Iterator[None]:
    """Write to the guest's /data about ten times a second, before the block, in it, and after it.

    See `written_at`.
    """
    started = shell(guest, f"rm -f /tmp/moments; setsid sh -c '{_WRITER}' >/dev/null 2>&1 & echo $!")
    try:
        assert eventually(lambda: written_at(guest))
        yield
        before = len(written_at(guest))
        assert eventually(lambda: len(written_at(guest)) > before)
    finally:
        shell(guest, f"kill {int(started.out)}")


def written_at(guest: Guest) -> list[float]:
    """Return when something was written, in seconds since the guest's start."""
    return [float(line) for line in shell(guest, "cat /tmp/moments 2>/dev/null").out.split()]
