"""What a fleet file may say, as frozen models: the one description of its schema.

Everything here is checked in itself; what needs the rest of the file (references, cycles,
what a driver supports) is checked in `vmkeep.fleet.rules`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from vmkeep.units import parse_duration, parse_percentage, parse_size

PRIMARY: Final = "primary"
"""How the repository is called beside its copies."""
BEST: Final = "best"
"""How the repository or copy is called that a restore finds best."""


class Kind(StrEnum):
    """The kinds of component, in the order in which they are restored."""

    OS = "os"
    FILESYSTEMS = "filesystems"
    DATABASES = "databases"
    APPLICATIONS = "applications"


def _typed(parse: Any, example: str) -> Any:
    def read(value: object) -> object:
        if isinstance(value, str):
            return parse(value)
        raise ValueError(f"write a string with a unit, for example {example}")

    return BeforeValidator(read)


def _absolute(path: PurePosixPath) -> PurePosixPath:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{str(path)!r} must be absolute and must not contain '..'")
    return path


Size = Annotated[
    int,
    _typed(parse_size, "10GiB"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([KMGT]i?B?|B)\s*$", "examples": ["10GiB"]}
    ),
]
Duration = Annotated[
    float,
    _typed(parse_duration, "10s"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|min|h|d|w)\s*$", "examples": ["10s", "24h"]}
    ),
]
Share = Annotated[
    float,
    _typed(parse_percentage, "5%"),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?%\s*$", "examples": ["5%"]}),
]


def parse_rate(text: str) -> int:
    """Return the bytes a second in *text*, such as ``200MiB/s``.

    Raises:
        ValueError: it is not a size followed by ``/s``, or zero.
    """
    size, slash, second = text.partition("/")
    if not slash or second.strip() != "s":
        raise ValueError(f"{text!r} is not a rate: write a size a second, for example 200MiB/s")
    rate = parse_size(size)
    if rate == 0:
        raise ValueError(f"{text!r} lets nothing through: write at least 1B/s")
    return rate


def _limit(value: object) -> object:
    if isinstance(value, str):
        parse_rate(value)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("write a whole number of at least 1, or for bandwidth a rate such as 200MiB/s")


Limit = Annotated[
    int | str,
    PlainValidator(_limit),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([KMGT]i?B?|B)\s*/\s*s\s*$"},
            ],
            "examples": [4, "200MiB/s"],
        }
    ),
]
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
NAMES: Final = "names are letters, digits, '.', '_' and '-', 63 at most, and begin with a letter or digit"
Name = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$")]


def is_name(text: str) -> bool:
    """Tell whether the fleet file could call something so."""
    return re.fullmatch(_NAME, text) is not None


GuestPath = Annotated[PurePosixPath, AfterValidator(_absolute)]


class Model(BaseModel):
    """The base of every model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True
    )


class KeyReference(Model):
    """Where a secret lies; exactly one of the ways. The secret itself never stands in the file."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    file: Path | None = None
    """A file that holds the secret."""
    env: str | None = None
    """The name of an environment variable."""
    prefect_secret: str | None = None
    """The name of a Prefect Secret block."""
    kms: str | None = None
    """The ARN or alias of a symmetric key in AWS KMS (repository keys only)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> KeyReference:
        if len(self.model_fields_set) != 1:
            raise ValueError("say exactly one of file, env, prefect_secret, kms")
        return self


class S3(Model):
    """How to reach an S3 service; credentials come from boto3's own chain."""

    endpoint_url: str | None = None
    """Where the service answers; leave it out for AWS."""
    region: str | None = None
    """The region of the bucket."""
    profile: str | None = None
    """A profile of the AWS configuration."""
    credentials: KeyReference | None = None
    """Where an access key lies, if not in boto3's own chain."""
    ca_bundle: Path | None = None
    """Certificates to trust, for a service with its own authority; relative to the fleet file."""


class Kms(Model):
    """How to reach AWS KMS, for keys of the repository there; credentials come from boto3's own chain."""

    endpoint_url: str | None = None
    """Where the service answers; leave it out for AWS."""
    region: str | None = None
    """The region of the key; by default the one in its ARN."""
    profile: str | None = None
    """A profile of the AWS configuration."""


class ObjectLock(Model):
    """Object Lock for what is uploaded."""

    mode: Literal["governance", "compliance"]
    """`governance`: privileged users can lift it; `compliance`: nobody can."""
    days: Annotated[int, Field(ge=1)]
    """How long nothing that a recovery point needs can be deleted, counted from the last `prune`."""


class Ages(Model):
    """How many recovery points of each age to keep."""

    last: Annotated[int, Field(ge=0)] | None = None
    """The newest points, whatever their age."""
    hourly: Annotated[int, Field(ge=0)] | None = None
    """The newest point of each of so many hours."""
    daily: Annotated[int, Field(ge=0)] | None = None
    """The newest point of each of so many days."""
    weekly: Annotated[int, Field(ge=0)] | None = None
    """The newest point of each of so many weeks."""
    monthly: Annotated[int, Field(ge=0)] | None = None
    """The newest point of each of so many months."""
    yearly: Annotated[int, Field(ge=0)] | None = None
    """The newest point of each of so many years."""


class Retention(Ages):
    """How many recovery points of each age to keep."""

    kinds: dict[Kind, Ages] = {}
    """Other numbers for components of a kind. A point stays while one of its components wants it."""


class Place(Model):
    """Where a repository lies, and what opens it."""

    store: str
    """`s3://bucket/prefix`, or a path (a disk, an NFS mount); relative to the fleet file."""
    key: KeyReference
    """What opens the repository."""
    s3: S3 | None = None
    """How to reach the store, for `s3://` only."""
    object_lock: ObjectLock | None = None
    """Protection against deletion, for `s3://` only; the bucket must have object lock."""
    kms: Kms | None = None
    """How to reach AWS KMS, for `key: {kms: …}` and `vmkeep key add --kms`."""


class CopyConfig(Place):
    """A second repository, with a key of its own, into which recovery points are copied."""

    last: Annotated[int, Field(ge=1)] | None = None
    """Copy only so many of the newest points of each VM; by default all."""


class RepositoryConfig(Place):
    """Where recovery points are kept, and how."""

    copies: dict[Name, CopyConfig] = {}
    """Further repositories, by name, that hold copies of the recovery points."""
    retention: Retention | None = None
    """Which recovery points `prune` keeps; without it all."""
    repack: Share = 0.5
    """`prune` rewrites packs of which less is needed, so that the rest of them is free; `0%`: never."""


class ImagesHypervisor(Model):
    """VMs as folders of disk images; no daemon, powered off."""

    driver: Literal["images"]
    """What speaks to it."""
    path: Path
    """The folder with one folder a VM; relative to the fleet file."""
    kernel_mounts: bool = False
    """Let the host's kernel mount guest file systems that have no user-space driver (needs root)."""


class LibvirtHypervisor(Model):
    """QEMU/KVM under libvirt."""

    driver: Literal["libvirt"]
    """What speaks to it."""
    uri: str
    """As `virsh --connect` takes it."""
    sockets: Path | None = None
    """The folder of the sockets that running VMs are read through; by default each VM's own in libvirt."""
    kernel_mounts: bool = False
    """Let the host's kernel mount guest file systems that have no user-space driver (needs root)."""


class VsphereHypervisor(Model):
    """VMware vSphere."""

    driver: Literal["vsphere"]
    """What speaks to it."""
    host: str
    """The address of vCenter or of an ESXi host; `name:port` where it is not 443."""
    datacenter: str | None = None
    """The datacenter in the inventory; needed where there are several."""
    credentials: KeyReference
    """Where user and password lie: a text that reads `USER:PASSWORD`."""
    verify_tls: bool = True
    """Whether the server's certificate is checked."""
    ca_file: Path | None = None
    """Certificates to trust, for a vCenter with its own authority; relative to the fleet file."""


HypervisorConfig = Annotated[
    ImagesHypervisor | LibvirtHypervisor | VsphereHypervisor, Field(discriminator="driver")
]


class DiskConfig(Model):
    """A virtual disk."""

    name: Name
    """What the disk is called, once a VM."""
    size: Size
    """The virtual size; a disk can grow, never shrink."""
    format: Literal["raw", "qcow2", "vmdk", "vhdx"] = "qcow2"
    """The format of its image."""
    storage: str | None = None
    """The storage pool, datastore or folder it lies in."""


class SshGuest(Model):
    """How to reach a guest by SSH."""

    host: str
    """Its address."""
    user: str = "root"
    """Who logs in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """Where its SSH server listens."""
    key_file: Path | None = None
    """The private key; relative to the fleet file. By default the SSH agent's."""


class Guest(Model):
    """How the inside of a running VM is reached."""

    agent: bool = False
    """Whether the QEMU guest agent or VMware tools run inside."""
    ssh: SshGuest | None = None
    """How to log in."""


class OsComponent(Model):
    """The operating system: whole disks and the VM's definition."""

    disks: tuple[Name, ...] | None = None
    """Which disks; by default all that no other component claims whole."""


class FilesystemComponent(Model):
    """A whole data disk, or the files below a path."""

    disk: Name | None = None
    """A disk of the VM: all of it, or with `path` the file system to look in."""
    path: GuestPath | None = None
    """The folder whose files are saved, as the guest sees it."""
    exclude: tuple[str, ...] = ()
    """Patterns as in a shell: `*.tmp` matches names, `/a/b` a path below the component's own."""

    @model_validator(mode="after")
    def _disk_or_path(self) -> FilesystemComponent:
        if self.disk is None and self.path is None:
            raise ValueError("say disk (a whole disk) or path (the files below it)")
        if self.exclude and self.path is None:
            raise ValueError("exclude works with path; a whole disk has no files to leave out")
        return self


class DatabaseComponent(Model):
    """A database."""

    engine: Literal["postgresql", "sqlite", "mariadb", "redis"]
    """What it is."""
    database: str | None = None
    """Its name in the server; by default all of the server's."""
    path: GuestPath | None = None
    """The file (sqlite) or data directory; found by itself for PostgreSQL from Debian."""


class ApplicationComponent(Model):
    """The files of an application, with the packages and units that the system had."""

    paths: Annotated[tuple[GuestPath, ...], Field(min_length=1)]
    """Files and folders, as the guest sees them."""
    exclude: tuple[str, ...] = ()
    """Patterns, as for file systems."""
    units: tuple[str, ...] = ()
    """The systemd units that belong to it."""
    pre: tuple[str, ...] = ()
    """Commands in the running guest before the snapshot."""
    post: tuple[str, ...] = ()
    """Commands in the running guest after the snapshot."""


class Components(Model):
    """What a VM is made of."""

    os: OsComponent | None = None
    """Whole disks and the VM's definition."""
    filesystems: dict[Name, FilesystemComponent] = {}
    """Data disks and folders, by name."""
    databases: dict[Name, DatabaseComponent] = {}
    """Databases, by name."""
    applications: dict[Name, ApplicationComponent] = {}
    """Applications, by name."""


class SqlCheck(Model):
    """A query that must return a row."""

    database: str
    """Its name in the server, or the file of SQLite."""
    query: str
    """What is asked; one row must come back."""
    engine: Literal["postgresql", "mariadb", "sqlite"] = "postgresql"
    """What it is."""


class HealthCheck(Model):
    """One gate that a restored VM must pass before its dependents start; exactly one kind."""

    agent: Literal[True] | None = None
    """The guest agent answers."""
    ping: Literal[True] | None = None
    """The VM answers a ping, at the address that its agent tells or at `guest.ssh.host`."""
    tcp: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port accepts connections, at the address that its agent tells or at `guest.ssh.host`."""
    http: str | None = None
    """The web address answers with a status below 400."""
    exec: str | None = None
    """The command ends with 0 inside the guest."""
    sql: SqlCheck | None = None
    """The query returns a row, asked inside the guest by the database's own command line."""
    image: Literal[True] | None = None
    """A powered-off VM: its images and file systems are checked, and its databases are clean."""
    timeout: Duration = 300.0
    """How long it is tried again before the VM counts as not healthy."""

    @model_validator(mode="after")
    def _one_kind(self) -> HealthCheck:
        kinds = self.model_fields_set - {"timeout"}
        if len(kinds) != 1:
            raise ValueError("say exactly one of agent, ping, tcp, http, exec, sql, image")
        return self

    @property
    def kind(self) -> str:
        """Which check this is: the key that was written."""
        return next(iter(self.model_fields_set - {"timeout"}))


class Placement(Model):
    """Where a VM may run."""

    hosts: tuple[str, ...] = ()
    """Hosts it may run on; by default all."""
    near: tuple[Name, ...] = ()
    """VMs that run on the same host."""
    away_from: tuple[Name, ...] = ()
    """VMs that run on other hosts."""


class VM(Model):
    """A machine, after the fleet's defaults were applied."""

    hypervisor: Name
    """What it runs on: a name of `hypervisors`."""
    cpus: Annotated[int, Field(ge=1, le=4096)] = 1
    """Virtual processors."""
    memory: Size = 1024**3
    """Main memory."""
    firmware: Literal["bios", "uefi"] = "bios"
    """What it boots with."""
    iso: str | None = None
    """The image in its optical drive."""
    disks: tuple[DiskConfig, ...] = ()
    """Its disks, the one it boots from first."""
    networks: tuple[str, ...] = ()
    """The networks its adapters are on, in order."""
    guest: Guest | None = None
    """How the inside is reached while it runs."""
    components: Components = Components(os=OsComponent())
    """What is saved and restored on its own; by default `os: {}`."""
    depends_on: tuple[Name, ...] = ()
    """VMs that must be healthy before this one starts."""
    health: tuple[HealthCheck, ...] = ()
    """The gates after a restore, which must open one after the other; by default that its guest answers."""
    placement: Placement | None = None
    """Where it may run."""


class Defaults(Model):
    """What every VM inherits unless it says otherwise."""

    hypervisor: Name | None = None
    """What it runs on: a name of `hypervisors`."""
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Virtual processors."""
    memory: Size | None = None
    """Main memory."""
    firmware: Literal["bios", "uefi"] | None = None
    """What it boots with."""
    iso: str | None = None
    """The image in its optical drive."""
    networks: tuple[str, ...] | None = None
    """The networks its adapters are on, in order."""
    guest: Guest | None = None
    """How the inside is reached while it runs."""
    components: Components | None = None
    """What is saved and restored on its own; by default `os: {}`."""
    health: tuple[HealthCheck, ...] | None = None
    """The gates after a restore, which must open one after the other."""


class ConsistencyGroup(Model):
    """VMs whose snapshots must show the same moment."""

    vms: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Its members; a VM is in one group at most."""
    max_freeze: Duration = 10.0
    """How long they may stand still; after that they thaw and the group is only crash-consistent."""


class Objective(Model):
    """What a service may lose (RPO) and how long its recovery may take (RTO)."""

    vms: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The VMs that give the service; what they depend on counts too."""
    rpo: Duration | None = None
    """The most that may be lost, as the age of the newest recovery point."""
    rto: Duration | None = None
    """The longest that a recovery may take."""


class Window(Model):
    """When backups may begin; what began before it closes is finished."""

    start: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """The hour and minute it opens."""
    end: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """The hour and minute it closes; earlier than `start` means the next day."""
    timezone: str = "UTC"
    """Where these hours are, such as `Europe/Berlin`."""


class Schedule(Model):
    """When an operation runs by itself."""

    cron: str
    """Five fields: minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """Where these hours are, such as `Europe/Berlin`."""
    sample: Share | None = None
    """The share of the stored bytes that `verify` reads, such as `5%`."""


class Schedules(Model):
    """Which operations run by themselves."""

    backup: Schedule | None = None
    """Saves the fleet."""
    verify: Schedule | None = None
    """Reads stored data back."""
    drill: Schedule | None = None
    """Restores services into an isolated network, checks them and tears them down."""
    copy_: Annotated[Schedule | None, Field(alias="copy")] = None
    """Copies recovery points into `repository.copies`."""
    prune: Schedule | None = None
    """Deletes what `retention` does not keep."""

    def declared(self) -> dict[str, Schedule]:
        """Return the schedules that are declared, by operation."""
        names = {field.alias or name: name for name, field in type(self).model_fields.items()}
        return {key: one for key, name in names.items() if (one := getattr(self, name)) is not None}


class Fleet(Model):
    """All that one fleet file declares."""

    version: Literal[1]
    """The version of this format."""
    fleet: Name
    """The fleet's name; flows and deployments carry it."""
    repository: RepositoryConfig
    """Where recovery points are kept."""
    hypervisors: Annotated[dict[Name, HypervisorConfig], Field(min_length=1)]
    """What runs the VMs, by name."""
    defaults: Defaults = Defaults()
    """What VMs inherit; a key that a VM gives replaces the default's, whole."""
    vms: Annotated[dict[Name, VM], Field(min_length=1)]
    """The machines, by name."""
    consistency_groups: dict[Name, ConsistencyGroup] = {}
    """VMs that are saved at one moment, by name."""
    objectives: dict[Name, Objective] = {}
    """What services promise, by name."""
    windows: dict[Name, Window] = {}
    """When backups may begin, by name; without any, at all times."""
    schedules: Schedules = Schedules()
    """What runs by itself."""
    limits: dict[str, Limit] = {}
    """Steps at once, by what they need: a hypervisor's name, `host:NAME`, `storage:NAME`, `upload`. And
    `bandwidth`, such as 20MiB/s: what a process sends to stores, all uploads together."""

    @property
    def bandwidth(self) -> int | None:
        """Bytes a second that all uploads together may take, or `None` for no limit."""
        rate = self.limits.get("bandwidth")
        return parse_rate(rate) if isinstance(rate, str) else None
