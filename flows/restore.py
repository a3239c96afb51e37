"""The entry point of restore deployments: `flows/restore.py:restore`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="restore", description=DESCRIPTIONS["restore"], flow_run_name=run_name, task_runner=threads())
def restore(  # noqa: PLR0913, PLR0917  (the fields of the form)
    fleet: str,
    vms: list[str] | None = None,
    components: list[str] | None = None,
    at: datetime | None = None,
    points: dict[str, str] | None = None,
    rename: dict[str, str] | None = None,
    dependencies: bool = False,  # noqa: FBT001, FBT002  (as above)
    overwrite: bool = False,  # noqa: FBT001, FBT002
    instant: bool = False,  # noqa: FBT001, FBT002
    bandwidth: int = 0,
    disks: list[str] | None = None,
    networks: dict[str, str] | None = None,
    storage: str | None = None,
    hypervisors: list[str] | None = None,
    repository: str | None = None,
) -> State[Any]:
    """Restore VMs of the fleet in the file *fleet*."""
    given = {
        "fleet": fleet, "vms": vms, "components": components, "at": at, "points": points,
        "rename": rename, "dependencies": dependencies, "overwrite": overwrite,
        "instant": instant, "bandwidth": bandwidth,
        "disks": disks, "networks": networks, "storage": storage, "hypervisors": hypervisors,
        "repository": repository,
    }  # fmt: skip
    return carry_out(forms.request("restore", given))
