"""The entry point of copy deployments: `flows/copy.py:copy`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="copy", description=DESCRIPTIONS["copy"], flow_run_name=run_name, task_runner=threads())
def copy(fleet: str, vms: list[str] | None = None, copies: list[str] | None = None) -> State[Any]:
    """Copy the recovery points of the fleet in the file *fleet* to its other repositories."""
    return carry_out(forms.request("copy", {"fleet": fleet, "vms": vms, "copies": copies}))
