"""The entry point of prune deployments: `flows/prune.py:prune`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="prune", description=DESCRIPTIONS["prune"], flow_run_name=run_name, task_runner=threads())
def prune(fleet: str, dead_after: str = "7d", repository: str | None = None) -> State[Any]:
    """Prune the repository of the fleet in the file *fleet*."""
    given = {"fleet": fleet, "dead_after": dead_after, "repository": repository}
    return carry_out(forms.request("prune", given))
