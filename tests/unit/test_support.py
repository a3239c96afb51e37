"""What a fleet is told about what it declares and nothing does by itself."""

from vmkeep.fleet import loads
from vmkeep.operations.support import notices

FLEET = """\
version: 1
fleet: shop
repository:
  store: s3://shop/prod
  key: {file: key}
  object_lock: {mode: governance, days: 14}
  copies: {far: {store: "s3://far/prod", key: {file: key}, object_lock: {mode: compliance, days: 30}}}
hypervisors: {shelf: {driver: images, path: ./images}}
vms: {db1: {hypervisor: shelf, disks: [{name: root, size: 1GiB}]}}
"""


def test_locks_that_nothing_extends_are_told():
    told = notices(loads(FLEET))

    assert any("they end 14 days or a little more after an upload" in line for line in told)
    assert any("'vmkeep prune --repository far' extends the locks" in line for line in told)


def test_locks_that_a_schedule_extends_are_not_told():
    told = notices(loads(FLEET + 'schedules: {prune: {cron: "0 8 * * *"}}\n'))

    assert not any(line.startswith("repository.object_lock") for line in told)
