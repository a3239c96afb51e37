"""A guest that runs from a recovery point in S3, without a restore."""

import hashlib
import subprocess

import pytest

from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.agent_socket import SocketChannel
from vmkeep.operations.mount import Where, mounted
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.site import Site
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

FLEET = """\
version: 1
fleet: tiny
repository: {store: STORE, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf}
vms: {db1: {disks: [{name: root, size: 64MiB, format: raw}]}}
"""
ORDERS = bytes(range(256)) * 40000


@pytest.fixture
def lost(tmp_path, monkeypatch, seaweed):
    """A VM with a file system that was saved to a bucket, and is lost."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "s3").write_text(f"{seaweed.options.access_key}:{seaweed.options.secret_key}\n")
    s3 = f'{{endpoint_url: "{seaweed.endpoint_url}", region: us-east-1, credentials: {{file: ./s3}}}}'
    site = Site(folder, text=FLEET.replace("STORE", f"s3://{seaweed.new_bucket()}/prod, s3: {s3}"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/orders").write_bytes(ORDERS)
    site.image("db1").unlink()
    build_filesystem(site.image("db1"), Volume(tmp_path / "tree", size=64 * MiB))
    assert site.run("backup").exit_code == 0
    site.image("db1").unlink()
    return site


def test_a_guest_runs_at_once_from_a_disk_in_s3_and_writes_into_its_overlay(lost, tmp_path):
    overlay = tmp_path / "overlay.qcow2"
    with mounted(lost.file, "db1", "latest", Where()) as mount:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", mount.uris["root"], overlay]
        subprocess.run(create, check=True, timeout=60)
        files = tiny_guest.build(tmp_path)
        with (
            tiny_guest.running(files, tmp_path, disks=[(overlay, "qcow2")]) as machine,
            AgentGuest(SocketChannel(machine.agent_socket, name="VM db1"), name="VM db1") as guest,
        ):
            guest.ping(timeout_s=60)
            script = "sha256sum /data/orders; echo new >/data/new; sync; cat /data/new"
            told = guest.run(["sh", "-c", script], timeout_s=60).out.split()
    assert told[0].decode() == hashlib.sha256(ORDERS).hexdigest()
    assert told[-1] == b"new"
