"""A fleet file that is right loads; each mistake is told with its line, its key and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.errors import FleetError
from vmkeep.fleet import load, loads
from vmkeep.testing import strategies
from vmkeep.units import GiB, MiB

FLEET = """\
version: 1
fleet: shop
repository:
  store: s3://bucket/prod
  s3: {region: eu-central-1}
  key: {file: ~/shop.key}
hypervisors:
  rack1: {driver: libvirt, uri: "qemu:///system"}
  shelf: {driver: images, path: ./images}
defaults: {hypervisor: rack1, memory: 2GiB}
vms:
  db1:
    cpus: 2
    disks: [{name: root, size: 10GiB, storage: fast}, {name: data, size: 40GiB}]
    guest: {agent: true}
    components:
      os: {}
      filesystems: {data: {disk: data}}
      databases: {orders: {engine: postgresql}}
    health: [{agent: true}]
  app1: {depends_on: [db1], disks: [{name: root, size: 10GiB}]}
consistency_groups: {both: {vms: [db1, app1], max_freeze: 10s}}
objectives: {shop: {vms: [app1], rpo: 24h}}
windows: {night: {start: "01:00", end: 05:00, timezone: Europe/Berlin}}
schedules:
  backup: {cron: "0 1 * * *", timezone: Europe/Berlin}
  verify: {cron: "0 7 * * *", sample: 5%}
limits: {rack1: 4, "storage:fast": 2, upload: 8, bandwidth: 200MiB/s}
"""


def problems_of(text):
    with pytest.raises(FleetError) as caught:
        loads(text, path="f.yaml")
    return [str(problem) for problem in caught.value.problems]


def changed(*changes):
    text = FLEET
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    return text


def test_a_vm_has_what_the_defaults_give_unless_it_says_otherwise():
    fleet = loads(FLEET.replace("cpus: 2", "memory: 8GiB")).fleet

    assert (fleet.vms["app1"].hypervisor, fleet.vms["app1"].memory) == ("rack1", 2 * GiB)
    assert fleet.vms["db1"].memory == 8 * GiB


def test_a_vm_without_components_has_its_os():
    assert loads(FLEET).fleet.vms["app1"].components.os is not None


def test_a_time_of_day_without_quotes_is_no_number():
    assert loads(FLEET.replace("05:00", "22:30")).fleet.windows["night"].end == "22:30"


def test_the_bandwidth_is_bytes_a_second():
    assert loads(FLEET).fleet.bandwidth == 200 * MiB


def test_paths_are_relative_to_the_file(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(FLEET, encoding="utf-8")

    file = load(path)

    assert file.resolve("images/db1") == tmp_path.resolve() / "images" / "db1"
    assert file.resolve("~/shop.key") == (Path.home() / "shop.key").resolve()


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("cpus: 2", "cpu: 2", "f.yaml:13: vms.db1.cpu: unknown key; did you mean 'cpus'?"),
        ("cpus: 2", "cpus: many", "f.yaml:13: vms.db1.cpus: must be a whole number"),
        ("cpus: 2", "cpus: true", "f.yaml:13: vms.db1.cpus: must be a whole number"),
        ("cpus: 2", "cpus:", "f.yaml:13: vms.db1.cpus: has no value: write one, or leave the key out"),
        ("cpus: 2", "cpus: 2\n    cpus: 3", "f.yaml:14: vms.db1.cpus: stands here twice; first in line 13"),
        ("cpus: 2", "cpus: !!python/none 2", "f.yaml:13: vms.db1.cpus: the tag"),
        ("cpus: 2", "memory: 2048",
         "f.yaml:13: vms.db1.memory: write a string with a unit, for example 10GiB"),
        ("cpus: 2", "memory: 2Gi", "f.yaml:13: vms.db1.memory: '2Gi' has the unknown unit 'Gi'"),
        ("cpus: 2", "firmware: efi", "f.yaml:13: vms.db1.firmware: 'efi' is not known; did you mean 'uefi'?"),
        ("driver: libvirt", "driver: libvrt",
         "hypervisors.rack1: 'libvrt' is not known; did you mean 'libvirt'?"),
        ("driver: libvirt, ", "", "f.yaml:8: hypervisors.rack1: needs a driver: images, libvirt or vsphere"),
        ('uri: "qemu:///system"', "url: x",
         "f.yaml:8: hypervisors.rack1.url: unknown key; did you mean 'uri'?"),
        ('uri: "qemu:///system"', "url: x", "f.yaml:8: hypervisors.rack1.uri: is required"),
        ("hypervisor: rack1, ", "hypervisor: rack2, ",
         "f.yaml:10: defaults.hypervisor: there is no hypervisor 'rack2'"),
        ("hypervisor: rack1, ", "", "f.yaml:12: vms.db1.hypervisor: is required, here or in defaults"),
        ("fleet: shop", "fleet: 'my shop'", "f.yaml:2: fleet: 'my shop' does not fit"),
        ("depends_on: [db1]", "depends_on: [db]",
         "f.yaml:21: vms.app1.depends_on[0]: there is no VM 'db'; did you"),
        ("depends_on: [db1]", "depends_on: [db1, db1]",
         "f.yaml:21: vms.app1.depends_on[1]: db1 stands here twice"),
        ("{disk: data}", "{disk: date}",
         "filesystems.data.disk: there is no disk 'date'; did you mean 'data'?"),
        ("{disk: data}", "{}", "vms.db1.components.filesystems.data: say disk (a whole disk) or path"),
        ("{disk: data}", "{disk: data}, more: {disk: data}",
         "more.disk: disk 'data' belongs to filesystems.data"),
        ("os: {}", "os: {disks: [root, data]}", "filesystems.data.disk: disk 'data' belongs to os already"),
        ("os: {}", "os: {disks: [boot]}", "vms.db1.components.os.disks[0]: there is no disk 'boot'"),
        ("{data: {disk: data}}", "{databases: {disk: data}}", "'databases' is a kind of component"),
        ("engine: postgresql", "engine: sqlite",
         "databases.orders: an sqlite database is a file: say its path"),
        ("{name: data, size", "{name: root, size",
         "f.yaml:14: vms.db1.disks[1].name: there are two disks 'root'"),
        ("guest: {agent: true}", "guest: {}", "f.yaml:20: vms.db1.health[0].agent: needs the guest agent"),
        ("health: [{agent: true}]", 'health: [{http: "app1/healthz"}]',
         "vms.db1.health[0].http: 'app1/healthz' is not a web address: write http://HOST/PATH"),
        ("app1: {", "app1: {health: [{tcp: 22}], ",
         "vms.app1.health[0].tcp: needs the VM's address: write `guest: {agent: true}`"),
        ("app1: {", "app1: {health: [{sql: {database: x, query: y}}], ",
         "vms.app1.health[0].sql: runs inside the guest: say how to reach it"),
        ("{agent: true}]", "{agent: true, tcp: 1}]",
         "f.yaml:20: vms.db1.health[0]: say exactly one of agent"),
        ("vms: [db1, app1], max", "vms: [db1, apq1], max",
         "consistency_groups.both.vms[1]: there is no VM 'apq1'"),
        ("max_freeze: 10s}", "max_freeze: 10s}, two: {vms: [db1]}", "db1 is in group both already"),
        ("{both: {vms", "{app1: {vms", "consistency_groups.app1: a VM is called 'app1' too"),
        ("vms: [app1], rpo: 24h", "vms: [app1]", "f.yaml:23: objectives.shop: promises nothing"),
        ('"0 1 * * *"', '"0 1 * *"', "f.yaml:26: schedules.backup.cron: '0 1 * *' has 4 fields"),
        ('"0 1 * * *"', '"0 25 * * *"', "schedules.backup.cron: '25' is no hour: write 0-23"),
        ('"0 1 * * *"', '"0 1 30 2 *"', "schedules.backup.cron: '0 1 30 2 *' never comes"),
        ('1 * * *", timezone: Europe/Berlin', '1 * * *", timezone: Europe/Berln',
         "did you mean 'Europe/Berlin'?"),
        ("sample: 5%", "sample: 500%", "schedules.verify.sample: '500%' is not a percentage"),
        ("sample: 5%", "sample: 0%", "schedules.verify.sample: must be more than 0%"),
        ("{file: ~/shop.key}", "{file: a}\n  retention: {last: 1, kinds: {os: {daily: 0}}}",
         "f.yaml:7: repository.retention.kinds.os: keeps nothing"),
        ("{file: ~/shop.key}", "{file: a}\n  retention: {last: 0}", "f.yaml:7: repository.retention: keeps"),
        ("{file: ~/shop.key}", "{file: a}\n  retention: {kinds: {database: {daily: 1}}}", "kinds.database"),
        ("{file: ~/shop.key}", "{file: a}\n  repack: half", "repository.repack: 'half' is not a percentage"),
        ("end: 05:00", "end: 01:00", "windows.night: starts and ends at 01:00: it is never open"),
        ('"storage:fast": 2', '"storage:fats": 2', "did you mean 'storage:fast'?"),
        ("cpus: 2", "cpus: 0", "f.yaml:13: vms.db1.cpus: must be at least 1"),
        ("fleet: shop", "fleet: 'my shop'", "use letters, digits"),
        ("end: 05:00", "end: 5am", "windows.night.end: '5am' does not fit: write hours and minutes, such as"),
        ("{agent: true}]", "{agent: false}]", "vms.db1.health[0].agent: 'false' is not known; known: true"),
        ("store: s3://bucket/prod", "store: s3://bucket]/prod", "repository.store: names no bucket"),
        ("region: eu-central-1", "endpoint_url: 'https://[x/'", "'https://[x/' is no address"),
        ("qemu:///system", "qemu", "f.yaml:8: hypervisors.rack1.uri: 'qemu' is no address"),
        ("upload: 8", "upload: 0", "limits.upload: write a whole number of at least 1"),
        ("200MiB/s", "200MiB", "limits.bandwidth: '200MiB' is not a rate"),
        ("bandwidth: 200MiB/s", "bandwidth: 200", "limits.bandwidth: must be a rate such as 200MiB/s"),
        ("store: s3://bucket/prod", "store: ./backups", "f.yaml:5: repository.s3: works with a store s3://"),
        ("store: s3://bucket/prod", "store: ftp://x/y", "f.yaml:4: repository.store: ftp:// is no store"),
        ("{file: ~/shop.key}", "{file: a, env: B}", "f.yaml:6: repository.key: say exactly one of file, env"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_key_and_way_out(before, after, problem):
    assert any(problem in told for told in problems_of(changed((before, after))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("region: eu-central-1", "secret_access_key: hunter2"),
        ("region: eu-central-1", "endpoint_url: 'https://me:hunter2@example/'"),
        ("{file: ~/shop.key}", "hunter2"),
        ("cpus: 2", "password: hunter2"),
        ("cpus: 2", "tags: {deep: [{api_token: hunter2}]}"),
        ("qemu:///system", "qemu+tcp://root:hunter2@host/system"),
    ],
)
def test_a_secret_is_refused_and_never_repeated(before, after):
    told = "\n".join(problems_of(changed((before, after))))

    assert "in plain text" in told
    assert "hunter2" not in told


def test_a_reference_to_a_secret_is_no_secret():
    loads(changed(("{file: ~/shop.key}", "{prefect_secret: shop-key}")))


def test_a_vm_may_be_called_like_a_secret():
    loads(changed(("  app1: {dep", "  token: {disks: [{name: root, size: 1GiB}]}\n  app1: {dep")))


def test_a_cycle_is_told_as_the_path_that_leads_back():
    text = changed(("cpus: 2", "depends_on: [app1]"))

    assert problems_of(text) == [
        "f.yaml:13: vms.db1.depends_on: dependency cycle: db1 -> app1 -> db1; a restore has nowhere to start"
    ]


def test_all_problems_are_told_at_once_in_the_order_of_lines():
    text = changed(
        ("store: s3", "stroe: s3"),
        ("cpus: 2", "cpu: 2"),
        ("[db1], disks", "[db2], disks"),
        ("{disk: data}", "{disk: d}"),
    )

    lines = [int(problem.split(":")[1]) for problem in problems_of(text)]

    assert lines == [3, 4, 13, 18, 21]


def test_what_is_wrong_in_the_defaults_is_told_once():
    assert len(problems_of(changed(("memory: 2GiB", "memory: 2")))) == 1


def test_a_rule_does_not_speak_about_keys_that_are_wrong_in_themselves():
    assert len(problems_of(changed(("size: 10GiB, storage: fast", "size: 10, storage: fast")))) == 1


def test_a_file_that_is_no_yaml_is_told_with_line_and_column():
    assert problems_of("version: 1\nfleet: [\n")[0].startswith("f.yaml:3:1: ")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "just words", "{}"])
def test_a_file_without_keys_is_refused(text):
    assert len(problems_of(text)) == 1


def test_an_anchor_that_contains_itself_is_refused():
    assert "contains itself" in problems_of("a: &a [*a]\n")[0]


def test_anchors_in_anchors_do_not_eat_the_memory():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))

    assert "too large" in problems_of(bomb)[0]


def test_deep_nesting_is_refused():
    assert len(problems_of("a: " + "[" * 5000)) == 1


def test_merged_keys_yield_to_own_ones():
    text = changed(
        ("  db1:\n", "  db1: &db\n"), ("consistency_groups", "  db2: {<<: *db, cpus: 7}\nconsistency_groups")
    )

    fleet = loads(text).fleet

    assert fleet.vms["db2"].cpus == 7
    assert fleet.vms["db2"].disks == fleet.vms["db1"].disks


def test_a_file_that_is_not_there_is_a_fleet_error(tmp_path):
    with pytest.raises(FleetError, match="cannot be read: No such file"):
        load(tmp_path / "missing.yaml")


def test_a_file_that_is_no_text_is_told_with_its_line(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_bytes(b"version: 1\nfleet: \xff\n")

    with pytest.raises(FleetError, match=":2:1: is not UTF-8"):
        load(path)


@settings(max_examples=40, deadline=None)
@given(strategies.fleet_texts())
def test_a_drawn_fleet_is_valid(text):
    assert loads(text).fleet.vms


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_loads_or_is_a_fleet_error_and_nothing_else(data):
    lines = FLEET.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    column = data.draw(st.integers(0, len(lines[number])))
    lines[number] = (
        lines[number][:column]
        + data.draw(st.text("{}[]:,&*!|'\"#-x1 \t", max_size=4))
        + lines[number][column:]
    )

    try:
        loads("\n".join(lines))
    except FleetError as error:
        if not error.problems:
            pytest.fail("an error without a problem")


def test_a_copy_takes_the_place_of_the_repository():
    file = loads(FLEET.replace("s3: {", "copies: {nas: {store: /mnt/nas, key: {file: nas.key}}}\n  s3: {"))

    there = file.at("nas").fleet.repository

    assert (there.store, str(there.key.file), there.s3) == ("/mnt/nas", "nas.key", None)
    assert file.at("primary").fleet.repository == file.at(None).fleet.repository == file.fleet.repository


@pytest.mark.parametrize(
    ("copies", "problem"),
    [
        ("{nas: {store: 's3://bucket/prod', key: {file: k}}}", "is the store of the repository"),
        ("{best: {store: /mnt/nas, key: {file: k}}}", "has a meaning of its own"),
        ("{nas: {store: 'ftp://nas', key: {file: k}}}", "ftp:// is no store"),
        ("{nas: {store: /mnt/nas, key: {file: k}, s3: {region: x}}}", "works with a store s3://"),
    ],
)
def test_a_copy_that_cannot_be_one_is_told(copies, problem):
    (found,) = problems_of(changed(("s3: {", f"copies: {copies}\n  s3: {{")))

    assert problem in found


def test_a_schedule_of_copies_needs_a_place_to_copy_to():
    (found,) = problems_of(changed(("schedules:\n", 'schedules:\n  copy: {cron: "0 3 * * *"}\n')))

    assert "nowhere to copy to" in found
