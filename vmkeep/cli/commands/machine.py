"""Commands about this machine and its Prefect server: `doctor`, `up`, `down`, `deploy`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


def doctor(fleet: options.Fleet = options.FLEET_FILE, *, json: options.Json = False) -> None:
    """Check that this machine has what vmkeep needs, and that the fleet's repository opens."""
    from vmkeep.cli.doctor import doctor as carry_out

    carry_out(fleet, as_json=json)


def up(
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; 0 takes any free one.")] = 4200,
    *,
    json: options.Json = False,
) -> None:
    """Start Prefect's server and a worker in the background: schedules run, the UI shows all runs."""
    from vmkeep.cli.deploy import up as carry_out

    carry_out(port, as_json=json)


def down() -> None:
    """Stop what `vmkeep up` started."""
    from vmkeep.cli.deploy import down as carry_out

    carry_out()


def deploy(
    fleet: options.Fleet = options.FLEET_FILE,
    pool: Annotated[
        str | None, typer.Option(help="The work pool that runs them.", show_default="vmkeep")
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Bring the Prefect server's deployments of this fleet, with their schedules, in line with its file."""
    from vmkeep.cli.deploy import deploy as carry_out

    carry_out(fleet, pool, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog=examples("vmkeep doctor", "vmkeep doctor -f shop.yaml"))(doctor)
    app.command(epilog=examples("vmkeep up", "vmkeep up --port 4210"))(up)
    app.command(epilog=examples("vmkeep down"))(down)
    app.command(epilog=examples("vmkeep deploy", "vmkeep deploy -f shop.yaml --pool backups"))(deploy)
