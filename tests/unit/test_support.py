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


DRILLS = FLEET.replace("{shelf: ", '{rack: {driver: libvirt, uri: "qemu:///system"}, shelf: ')
APP = "vms: {app1: {hypervisor: rack, depends_on: [db1], disks: [{name: root, size: 1GiB}]}, db1"
SCHEDULE = 'schedules: {drill: {cron: "0 6 * * 0"}}\n'


def test_a_scheduled_drill_that_would_be_refused_is_told():
    told = notices(loads(DRILLS.replace("vms: {db1", APP) + SCHEDULE))

    assert any("schedules.drill: a drill is refused, for app1 has no guest agent" in line for line in told)


def test_a_scheduled_drill_of_vms_with_agents_or_of_images_is_not_told():
    spoken = APP.replace("rack,", "rack, guest: {agent: true},")
    told = notices(loads(DRILLS.replace("vms: {db1", spoken) + SCHEDULE))

    assert not any("drill" in line for line in told)
