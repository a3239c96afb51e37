"""`vmkeep key` as an operator uses it, on a real repository."""

import json

import pytest

from vmkeep.cli import main
from vmkeep.repository import generate_key_file

pytestmark = pytest.mark.integration


@pytest.fixture
def vmkeep(site, monkeypatch, capfd):
    """Runs a command in the folder of a fleet; returns its exit code and what it printed."""
    monkeypatch.chdir(site.folder)

    def run(*arguments):
        capfd.readouterr()
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


def typed(monkeypatch, *lines):
    """Let a person type these lines at a terminal."""
    answers = iter(lines)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(answers))


def names(vmkeep):
    return [slot["name"] for slot in json.loads(vmkeep("key", "list", "--json")[1])]


def test_a_key_is_replaced_by_a_new_one(site, vmkeep):
    site.run("backup")
    assert vmkeep("key", "new", "new.key")[0] == 0
    assert vmkeep("key", "add", "new", "--key-file", "new.key")[0] == 0
    (site.folder / "new.key").rename(site.folder / "key")

    assert vmkeep("key", "remove", "default")[0] == 0

    assert names(vmkeep) == ["new"]
    assert site.run("restore", overwrite=True).exit_code == 0


def test_a_lost_key_is_no_disaster_when_there_is_another_slot(site, vmkeep, monkeypatch):
    monkeypatch.setenv("SAFE", "correct horse")
    assert vmkeep("key", "add", "safe", "--passphrase-env", "SAFE")[0] == 0
    (site.folder / "key").unlink()

    assert vmkeep("key", "check")[0] == 6
    assert vmkeep("key", "check", "--passphrase-env", "SAFE")[0] == 0


def test_a_passphrase_is_typed_twice_and_opens_the_repository(vmkeep, monkeypatch):
    typed(monkeypatch, "correct horse", "correct horse")
    monkeypatch.setenv("SAFE", "correct horse")

    assert vmkeep("key", "add", "safe")[0] == 0

    assert json.loads(vmkeep("key", "check", "--passphrase-env", "SAFE", "--json")[1])["opens"] == ["safe"]


def test_two_passphrases_that_differ_add_nothing(vmkeep, monkeypatch):
    typed(monkeypatch, "correct horse", "correct house")

    code, _, complaint = vmkeep("key", "add", "safe")

    assert (code, "the two passphrases differ" in complaint) == (2, True)
    assert names(vmkeep) == ["default"]


def test_without_a_terminal_nobody_is_asked(vmkeep, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)

    code, _, complaint = vmkeep("key", "add", "safe")

    assert code == 2
    assert "--key-file or --passphrase-env" in complaint


def test_two_secrets_at_once_are_refused(vmkeep):
    assert vmkeep("key", "check", "--key-file", "key", "--passphrase-env", "SAFE")[0] == 2


def test_the_last_slot_is_not_removed(vmkeep):
    code, _, complaint = vmkeep("key", "remove", "default")

    assert (code, names(vmkeep)) == (2, ["default"])
    assert "the last one that is known to work is never removed" in complaint


def test_a_wrong_key_is_a_clear_error(site, vmkeep):
    generate_key_file(site.folder / "wrong.key")

    code, _, complaint = vmkeep("key", "check", "--key-file", "wrong.key")

    assert code == 6
    assert "wrong key: it does not open slot 'default'" in complaint


def test_slots_are_listed_without_a_key(site, vmkeep):
    (site.folder / "key").unlink()

    code, printed, _ = vmkeep("key", "list")

    assert code == 0
    assert "default" in printed
    assert "a key file" in printed


def test_a_new_data_epoch_ends_the_slots_of_others(site, vmkeep, monkeypatch):
    site.run("backup")
    monkeypatch.setenv("LEAKED", "correct horse")
    vmkeep("key", "add", "leaked", "--passphrase-env", "LEAKED")

    code, printed, complaint = vmkeep("key", "rotate")

    assert (code, names(vmkeep)) == (0, ["default"])
    assert "data epoch 2" in printed
    assert "leaked: these slots ended" in complaint
    assert "data epoch 2, since" in vmkeep("key", "list")[1]
    assert vmkeep("key", "check", "--passphrase-env", "LEAKED")[0] == 6
    site.write("db1", seed="second")
    assert site.run("backup").exit_code == 0
    assert site.run("restore", overwrite=True).exit_code == 0


def test_what_was_stored_before_is_encrypted_again(site, vmkeep):
    site.run("backup")
    assert vmkeep("key", "rotate", "--json")[0] == 0

    code, printed, _ = vmkeep("key", "reencrypt", "--json")

    done = json.loads(printed)
    assert (code, done["left"]) == (0, 0)
    assert done["rewritten"] > 0
    assert site.run("restore", overwrite=True).exit_code == 0


def test_keys_are_listed_although_the_record_of_their_epoch_is_damaged(site, vmkeep):
    assert vmkeep("key", "rotate")[0] == 0
    (record,) = (site.folder / "repository" / "keys" / "epochs").iterdir()
    record.chmod(0o600)
    record.write_bytes(record.read_bytes().replace(b"begun", b"began"))

    code, out, _ = vmkeep("key", "list")

    assert code == 0
    assert "data epoch 2, since" in out
