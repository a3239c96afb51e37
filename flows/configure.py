"""The entry point of configure deployments: `flows/configure.py:configure`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(
    name="configure",
    description=DESCRIPTIONS["configure"],
    flow_run_name=run_name,
    task_runner=threads(),
)
def configure(fleet: str, vms: list[str] | None = None) -> State[Any]:
    """Make VMs of the fleet in the file *fleet* what is declared."""
    return carry_out(forms.request("configure", {"fleet": fleet, "vms": vms}))
