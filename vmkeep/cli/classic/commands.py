"""What can be typed: the options of the six commands, their help, and examples that teach."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see `vmkeep.cli`)

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples
from vmkeep.errors import InputError

Machine = Annotated[str, typer.Argument(metavar="VM", help="The VM.", show_default=False)]
Add = Annotated[bool, typer.Option("-a", "--add", help="Add.")]
List = Annotated[bool, typer.Option("-l", "--list", help="Show what there is.")]
Remove = Annotated[bool, typer.Option("-r", "--remove", help="Remove.")]
Os = Annotated[bool, typer.Option("-o", "--os", help="The operating system: whole disks and the definition.")]
Applications = Annotated[bool, typer.Option("-a", "--applications", help="The applications.")]
Databases = Annotated[bool, typer.Option("-d", "--databases", help="The databases.")]
Filesystems = Annotated[bool, typer.Option("-f", "--filesystems", help="The file systems.")]
Fleet = Annotated[
    Path,
    typer.Option("--fleet", envvar="VMKEEP_FLEET", show_default="fleet.yaml", help="The fleet file."),
]


def vmcreate(  # noqa: PLR0913  (each is an option)
    name: Annotated[str | None, typer.Option("-n", "--name", help="The new VM's name.")] = None,
    iso: Annotated[
        str | None, typer.Option("-i", "--iso", metavar="FILE", help="What it boots from: an ISO image.")
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(
            "-r", "--remove", metavar="VM", help="Take it out of the fleet file. It is not deleted."
        ),
    ] = None,
    hypervisor: Annotated[
        str | None, typer.Option("--hypervisor", help="Where: one of the fleet's. Its default by default.")
    ] = None,
    fleet: Fleet = options.FLEET_FILE,
    *,
    list_all: List = False,
) -> None:
    """Create a VM: it is written into the fleet file, made, and started where its hypervisor can.

    The ISO is a volume of a storage pool, or a file that the hypervisor finds; with driver images a file in
    its folder. Give the VM disks with vdisk, networks with vconfig, processors with vcpu.
    """
    from vmkeep.cli.classic import machines

    if list_all:
        machines.list_machines(fleet)
    elif remove is not None:
        machines.forget(fleet, remove)
    elif name is not None:
        machines.create(fleet, name, iso, hypervisor)
    else:
        raise InputError("say -n NAME [-i ISO] to create a VM, -l to list them, or -r VM to forget one")


def vconfig(  # noqa: PLR0913  (each is an option)
    vm: Machine,
    network: Annotated[str | None, typer.Option("-n", "--network", help="The network.")] = None,
    fleet: Fleet = options.FLEET_FILE,
    *,
    add: Add = False,
    list_all: List = False,
    remove: Remove = False,
) -> None:
    """Connect a VM to networks: each -a gives it an adapter, with an address that stays the same."""
    from vmkeep.cli.classic import machines

    if _action(add=add, list_all=list_all, remove=remove) == "list":
        machines.list_networks(fleet, vm)
    elif network is None:
        raise InputError("say which network: -n NETWORK")
    elif add:
        machines.add_network(fleet, vm, network)
    else:
        machines.remove_network(fleet, vm, network)


def vdisk(  # noqa: PLR0913  (each is an option)
    vm: Machine,
    size: Annotated[str | None, typer.Option("-s", "--size", help="Its size, such as 10G.")] = None,
    storage: Annotated[
        str | None, typer.Option("-t", "--storage", metavar="POOL", help="The storage pool it lies in.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("-n", "--name", help="The disk's name; disk1, disk2 … by default.")
    ] = None,
    fleet: Fleet = options.FLEET_FILE,
    *,
    add: Add = False,
    list_all: List = False,
    remove: Remove = False,
) -> None:
    """Give a VM disks. -a with the name of a disk lets it grow; none is ever shrunk or deleted.

    -r takes a disk out of the fleet file, so that it is not saved any more. The disk itself stays.
    """
    from vmkeep.cli.classic import machines

    if _action(add=add, list_all=list_all, remove=remove) == "list":
        machines.list_disks(fleet, vm)
    elif add:
        if size is None:
            raise InputError("say how large: -s SIZE, such as -s 10G")
        machines.add_disk(fleet, vm, size, storage, name)
    elif name is None:
        raise InputError("say which disk: -n NAME; 'vdisk VM -l' lists them")
    else:
        machines.remove_disk(fleet, vm, name)


def vcpu(
    vm: Machine,
    count: Annotated[
        int | None, typer.Option("-c", "--count", min=1, help="How many processors it has then, in all.")
    ] = None,
    fleet: Fleet = options.FLEET_FILE,
    *,
    add: Add = False,
    list_all: List = False,
) -> None:
    """Give a VM processors: -a -c N, so that it has N in all."""
    from vmkeep.cli.classic import machines

    if _action(add=add, list_all=list_all, remove=False) == "list":
        machines.list_processors(fleet, vm)
    elif count is None:
        raise InputError("say how many processors: -c COUNT")
    else:
        machines.set_processors(fleet, vm, count)


def vmbackup(  # noqa: PLR0913  (each is an option)
    vm: Machine,
    fleet: Fleet = options.FLEET_FILE,
    *,
    os: Os = False,
    applications: Applications = False,
    databases: Databases = False,
    filesystems: Filesystems = False,
    direct: options.Direct = False,
) -> None:
    """Save a VM: its operating system, applications, databases, file systems; several, or all of it.

    What the repository has already is not stored again. 'vmkeep points VM' lists what was saved.
    """
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request

    kinds = _kinds(os=os, applications=applications, databases=databases, filesystems=filesystems)
    request = Request(operation="backup", fleet=fleet, targets=(vm,), kinds=kinds)
    carry_out(request, Mode(direct=direct, as_json=False))


def vmrestore(  # noqa: PLR0913  (each is an option)
    vm: Machine,
    fleet: Fleet = options.FLEET_FILE,
    point: Annotated[
        str | None,
        typer.Option("--point", metavar="SESSION", help="This recovery point; the newest by default."),
    ] = None,
    *,
    os: Os = False,
    applications: Applications = False,
    databases: Databases = False,
    filesystems: Filesystems = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there. Asked for on a terminal otherwise.")
    ] = False,
    direct: options.Direct = False,
) -> None:
    """Restore a VM: its operating system, applications, databases, file systems; several, or all of it.

    What is in the VM now is replaced by what was saved, all of a component or nothing.
    """
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request

    kinds = _kinds(os=os, applications=applications, databases=databases, filesystems=filesystems)
    what = ", ".join(kinds) or "all"
    if not overwrite and sys.stdin.isatty():
        overwrite = typer.confirm(f"Replace {what} of {vm}, where it exists, by what was saved?")
    request = Request(
        operation="restore", fleet=fleet, targets=(vm,), kinds=kinds, overwrite=overwrite,
        points={} if point is None else {vm: point},
    )  # fmt: skip
    carry_out(request, Mode(direct=direct, as_json=False))


_COMMANDS: Final[dict[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "vmcreate": (
        vmcreate,
        ("vmcreate -n myvm -i debian-12.iso", "vmcreate -l", "vmcreate -r myvm"),
    ),
    "vconfig": (
        vconfig,
        ("vconfig myvm -a -n VMNetwork", "vconfig myvm -l", "vconfig myvm -r -n VMNetwork"),
    ),
    "vdisk": (
        vdisk,
        (
            "vdisk myvm -a -s 10G",
            "vdisk myvm -a -s 10G -t vmfs",
            "vdisk myvm -a -n disk1 -s 20G",
            "vdisk myvm -l",
        ),
    ),
    "vcpu": (vcpu, ("vcpu myvm -a -c 2", "vcpu myvm -l")),
    "vmbackup": (vmbackup, ("vmbackup myvm", "vmbackup myvm -o", "vmbackup myvm -d -f")),
    "vmrestore": (
        vmrestore,
        ("vmrestore myvm", "vmrestore myvm -o", "vmrestore myvm -d --point 20260101T01"),
    ),
}


def program(name: str) -> typer.Typer:
    """Return one of the commands as a program."""
    command, lines = _COMMANDS[name]
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(name, epilog=examples(*lines, "", "Exit codes: as of 'vmkeep --help'."))(command)
    return app


def _action(*, add: bool, list_all: bool, remove: bool) -> str:
    """Return the one thing to do.

    Raises:
        InputError: none, or several.
    """
    chosen = [name for name, said in (("add", add), ("list", list_all), ("remove", remove)) if said]
    if len(chosen) != 1:
        raise InputError("say one of -a (add), -l (list) and -r (remove)")
    return chosen[0]


def _kinds(**said: bool) -> tuple[str, ...]:
    return tuple(kind for kind, chosen in said.items() if chosen)
