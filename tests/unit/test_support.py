"""What a fleet declares and this version cannot do is said before anything is touched."""

import pytest

from vmkeep.errors import UnsupportedError
from vmkeep.fleet import loads
from vmkeep.operations.support import require_supported, unsupported

FLEET = """\
version: 1
fleet: shop
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {a: {driver: libvirt, uri: "qemu:///system"}, b: {driver: images, path: .}}
vms:
  db1: {hypervisor: a, disks: [{name: root, size: 1GiB}], components: {databases: {erp: {engine: mariadb}}}}
  db2: {hypervisor: b, disks: [{name: root, size: 1GiB}], components: {databases: {one: {engine: redis}}}}
"""


def test_an_engine_that_cannot_be_saved_on_its_own_is_told_for_every_driver():
    file = loads(FLEET)

    told = unsupported(file)
    assert [line.partition(": save")[0] for line in told] == [
        "VM db1: databases.erp: engine mariadb is not supported by this version",
        "VM db2: databases.one: engine redis is not supported by this version",
    ]
    with pytest.raises(UnsupportedError, match="mariadb"):
        require_supported(file, ["db1"])
