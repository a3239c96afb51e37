"""What a fleet file may say, as frozen models: the one description of its schema.

Everything here is checked in itself; what needs the rest of the file (references, cycles,
what a driver supports) is checked in `vmkeep.fleet.rules`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

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

from vmkeep.units import parse_duration, parse_size


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
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    Field(description="letters, digits, '.', '_' and '-', at most 63"),
]
GuestPath = Annotated[PurePosixPath, AfterValidator(_absolute)]


class Model(BaseModel):
    """The base of every model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True
    )


class KeyReference(Model):
    """Where a secret lies; exactly one of the ways. The secret itself never stands in the file."""

    file: Path | None = None
    """A file that holds the secret."""
    env: str | None = None
    """The name of an environment variable."""
    prefect_secret: str | None = None
    """The name of a Prefect Secret block."""
    kms: str | None = None
    """The ARN of an AWS KMS key (repository keys only)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> KeyReference:
        if len(self.model_fields_set) != 1:
            raise ValueError("say exactly one of file, env, prefect_secret, kms")
        return self


class S3(Model):
    """How to reach an S3 service; credentials come from boto3's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    """A profile of the AWS configuration."""
    credentials: KeyReference | None = None
    ca_bundle: Path | None = None


class ObjectLock(Model):
    """Object Lock for what is uploaded."""

    mode: Literal["governance", "compliance"]
    days: Annotated[int, Field(ge=1)]


class Retention(Model):
    """How many recovery points of each age to keep."""

    last: Annotated[int, Field(ge=0)] | None = None
    hourly: Annotated[int, Field(ge=0)] | None = None
    daily: Annotated[int, Field(ge=0)] | None = None
    weekly: Annotated[int, Field(ge=0)] | None = None
    monthly: Annotated[int, Field(ge=0)] | None = None
    yearly: Annotated[int, Field(ge=0)] | None = None


class RepositoryConfig(Model):
    """Where recovery points are kept, and how."""

    store: str
    """`s3://bucket/prefix`, or a path (a disk, an NFS mount); relative to the fleet file."""
    key: KeyReference
    s3: S3 | None = None
    object_lock: ObjectLock | None = None
    retention: Retention | None = None


class ImagesHypervisor(Model):
    """VMs as folders of disk images; no daemon, powered off."""

    driver: Literal["images"]
    path: Path
    """The folder with one folder a VM; relative to the fleet file."""
    kernel_mounts: bool = False
    """Let the host's kernel mount guest file systems that have no user-space driver (needs root)."""


class LibvirtHypervisor(Model):
    """QEMU/KVM under libvirt."""

    driver: Literal["libvirt"]
    uri: str


class VsphereHypervisor(Model):
    """VMware vSphere."""

    driver: Literal["vsphere"]
    host: str
    datacenter: str | None = None
    credentials: KeyReference
    verify_tls: bool = True


HypervisorConfig = Annotated[
    ImagesHypervisor | LibvirtHypervisor | VsphereHypervisor, Field(discriminator="driver")
]


class DiskConfig(Model):
    """A virtual disk."""

    name: Name
    size: Size
    format: Literal["raw", "qcow2", "vmdk", "vhdx"] = "qcow2"
    storage: str | None = None
    """The storage pool, datastore or folder it lies in."""


class SshGuest(Model):
    """How to reach a guest by SSH."""

    host: str
    user: str = "root"
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    key_file: Path | None = None


class Guest(Model):
    """How the inside of a running VM is reached."""

    agent: bool = False
    ssh: SshGuest | None = None


class OsComponent(Model):
    """The operating system: whole disks and the VM's definition."""

    disks: tuple[Name, ...] | None = None
    """Which disks; by default all that no other component claims whole."""


class FilesystemComponent(Model):
    """A whole data disk, or the files below a path."""

    disk: Name | None = None
    path: GuestPath | None = None
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
    database: str | None = None
    """Its name in the server; by default all of the server's."""
    path: GuestPath | None = None
    """The file (sqlite) or data directory; found by itself for PostgreSQL from Debian."""


class ApplicationComponent(Model):
    """The files of an application, with the packages and units that the system had."""

    paths: Annotated[tuple[GuestPath, ...], Field(min_length=1)]
    exclude: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    pre: tuple[str, ...] = ()
    """Commands in the running guest before the snapshot."""
    post: tuple[str, ...] = ()
    """Commands in the running guest after the snapshot."""


class Components(Model):
    """What a VM is made of."""

    os: OsComponent | None = None
    filesystems: dict[Name, FilesystemComponent] = {}
    databases: dict[Name, DatabaseComponent] = {}
    applications: dict[Name, ApplicationComponent] = {}


class SqlCheck(Model):
    """A query that must return a row."""

    database: str
    query: str
    engine: Literal["postgresql", "mariadb", "sqlite"] = "postgresql"


class HealthCheck(Model):
    """One gate that a restored VM must pass before its dependents start; exactly one kind."""

    agent: Literal[True] | None = None
    ping: Literal[True] | None = None
    tcp: Annotated[int, Field(ge=1, le=65535)] | None = None
    http: str | None = None
    exec: str | None = None
    sql: SqlCheck | None = None
    image: Literal[True] | None = None
    """A powered-off VM: its images and file systems are checked, and its databases are clean."""
    timeout: Duration = 300.0
    """How long to keep trying."""

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
    near: tuple[Name, ...] = ()
    away_from: tuple[Name, ...] = ()


class VM(Model):
    """A machine, after the fleet's defaults were applied."""

    hypervisor: Name
    cpus: Annotated[int, Field(ge=1, le=4096)] = 1
    memory: Size = 1024**3
    firmware: Literal["bios", "uefi"] = "bios"
    iso: str | None = None
    disks: tuple[DiskConfig, ...] = ()
    networks: tuple[str, ...] = ()
    guest: Guest | None = None
    components: Components = Components(os=OsComponent())
    depends_on: tuple[Name, ...] = ()
    health: tuple[HealthCheck, ...] = ()
    placement: Placement | None = None


class Defaults(Model):
    """What every VM inherits unless it says otherwise."""

    hypervisor: Name | None = None
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory: Size | None = None
    firmware: Literal["bios", "uefi"] | None = None
    iso: str | None = None
    networks: tuple[str, ...] | None = None
    guest: Guest | None = None
    components: Components | None = None
    health: tuple[HealthCheck, ...] | None = None


class ConsistencyGroup(Model):
    """VMs whose snapshots must show the same moment."""

    vms: Annotated[tuple[Name, ...], Field(min_length=1)]
    max_freeze: Duration = 10.0


class Objective(Model):
    """What a service may lose (RPO) and how long its recovery may take (RTO)."""

    vms: Annotated[tuple[Name, ...], Field(min_length=1)]
    rpo: Duration | None = None
    rto: Duration | None = None


class Window(Model):
    """When backups may run."""

    start: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    end: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    timezone: str = "UTC"


class Schedule(Model):
    """When an operation runs by itself."""

    cron: str
    timezone: str = "UTC"
    sample: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?%$")] | None = None
    """The share of the stored bytes that `verify` reads, such as `5%`."""


class Schedules(Model):
    """Which operations run by themselves."""

    backup: Schedule | None = None
    verify: Schedule | None = None
    drill: Schedule | None = None
    prune: Schedule | None = None


class Fleet(Model):
    """All that one fleet file declares."""

    version: Literal[1]
    fleet: Name
    repository: RepositoryConfig
    hypervisors: Annotated[dict[Name, HypervisorConfig], Field(min_length=1)]
    defaults: Defaults = Defaults()
    vms: Annotated[dict[Name, VM], Field(min_length=1)]
    consistency_groups: dict[Name, ConsistencyGroup] = {}
    objectives: dict[Name, Objective] = {}
    windows: dict[Name, Window] = {}
    schedules: Schedules = Schedules()
    limits: dict[str, Limit] = {}
    """Tokens by resource: a hypervisor's name, `host:NAME`, `storage:NAME`, `upload`; and `bandwidth`."""

    @property
    def bandwidth(self) -> int | None:
        """Bytes a second that all uploads together may take, or `None` for no limit."""
        rate = self.limits.get("bandwidth")
        return parse_rate(rate) if isinstance(rate, str) else None
