"""The entry point of verify deployments: `flows/verify.py:verify`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="verify", description=DESCRIPTIONS["verify"], flow_run_name=run_name, task_runner=threads())
def verify(  # noqa: PLR0913, PLR0917  (the fields of the form)
    fleet: str,
    vms: list[str] | None = None,
    components: list[str] | None = None,
    percent: float = 100.0,
    repository: str | None = None,
    packs: bool = False,  # noqa: FBT001, FBT002  (a field of the form)
) -> State[Any]:
    """Read recovery points of the fleet in the file *fleet* back."""
    given = {
        "fleet": fleet, "vms": vms, "components": components, "percent": percent, "repository": repository,
        "packs": packs,
    }  # fmt: skip
    return carry_out(forms.request("verify", given))
