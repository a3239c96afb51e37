"""The entry point of backup deployments: `flows/backup.py:backup`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="backup", description=DESCRIPTIONS["backup"], flow_run_name=run_name, task_runner=threads())
def backup(
    fleet: str, vms: list[str] | None = None, components: list[str] | None = None, *, any_time: bool = False
) -> State[Any]:
    """Save VMs of the fleet in the file *fleet*."""
    asked = {"fleet": fleet, "vms": vms, "components": components, "any_time": any_time}
    return carry_out(forms.request("backup", asked))
