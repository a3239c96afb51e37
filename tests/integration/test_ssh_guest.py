"""Guests by SSH, against a real server on loopback."""

import hashlib
import random
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.errors import AccessError, TemporaryError
from vmkeep.guests import scripts
from vmkeep.guests.ssh import SshGuest
from vmkeep.testing.ports import free_port
from vmkeep.testing.running_guests import eventually
from vmkeep.testing.sshd import sshd
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    with sshd(tmp_path_factory.mktemp("sshd")) as target:
        yield target


@pytest.fixture
def guest(target):
    with SshGuest(target, name="VM web1") as guest:
        yield guest


def test_a_wrong_key_is_an_access_error(target, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)

    with (
        SshGuest(replace(target, key_file=tmp_path / "other"), name="VM web1") as guest,
        pytest.raises(AccessError, match=r"VM web1: SSH to 127.0.0.1: .*Permission denied"),
    ):
        guest.ping()


def test_an_unknown_host_is_never_trusted_by_itself(target, tmp_path):
    nowhere = replace(target, options=(f"UserKnownHostsFile={tmp_path / 'none'}",))

    with (
        SshGuest(nowhere, name="VM web1") as guest,
        pytest.raises(AccessError, match="host key is not the known one"),
    ):
        guest.ping()
    assert not (tmp_path / "none").exists()


def test_nobody_who_listens_is_temporary(target):
    with (
        SshGuest(replace(target, port=free_port()), name="VM web1") as guest,
        pytest.raises(TemporaryError, match="Connection refused"),
    ):
        guest.ping()


def test_a_lost_connection_is_told_and_the_next_call_makes_another(guest):
    guest.ping()
    guest._connection._process.kill()
    guest._connection._process.wait()

    guest.ping()


def test_a_command_whose_connection_is_lost_is_not_taken_for_one_that_ended(guest):
    stream = guest.stream_out(["sh", "-c", "echo begun; sleep 60"])
    next(stream)
    guest._connection._process.kill()

    with pytest.raises(TemporaryError, match="connection was lost"):
        next(stream)


def test_an_input_whose_connection_is_lost_never_ends_well_in_the_guest(guest, tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    monkeypatch.setattr(scripts, "new_folder", lambda: str(folder))

    def blocks():
        yield bytes(MiB)
        guest._connection._process.kill()
        yield bytes(MiB)

    with pytest.raises(TemporaryError, match="connection was lost"):
        guest.stream_in(
            ["sh", "-c", 'cat >"$1" && mv "$1" "$2"', "", str(tmp_path / "half"), str(whole)], blocks()
        )
    assert not eventually(whole.exists, timeout_s=0.5)
    assert eventually(lambda: not folder.exists())


@pytest.mark.parametrize("code", [1, 126, 254, 255])
def test_no_exit_code_is_taken_for_a_lost_connection(guest, code):
    assert guest.run(["sh", "-c", f"exit {code}"], timeout_s=10).code == code


def test_both_directions_stream_megabytes(guest, tmp_path):
    data = random.Random(1).randbytes(40 * MiB + 13)
    guest.stream_in(
        ["dd", f"of={tmp_path / 'in'}", "bs=1M"],
        (data[i : i + 777_777] for i in range(0, len(data), 777_777)),
    )

    out = hashlib.sha256()
    for block in guest.stream_out(["cat", str(tmp_path / "in")]):
        out.update(block)
    assert out.digest() == hashlib.sha256(data).digest()


def test_nothing_is_left_of_a_connection(target, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with SshGuest(target, name="VM web1") as guest:
            guest.ping()
            during = len([*Path(folder).iterdir()])
        assert (during, [*Path(folder).iterdir()]) == (1, [])
