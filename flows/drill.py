"""The entry point of drill deployments: `flows/drill.py:drill`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="drill", description=DESCRIPTIONS["drill"], flow_run_name=run_name, task_runner=threads())
def drill(  # noqa: PLR0913, PLR0917  (the fields of the form)
    fleet: str,
    targets: list[str] | None = None,
    at: datetime | None = None,
    points: dict[str, str] | None = None,
    instant: bool = True,  # noqa: FBT001, FBT002  (a field of the form)
    repository: str | None = None,
) -> State[Any]:
    """Prove that services of the fleet in the file *fleet* can be recovered."""
    given = {
        "fleet": fleet, "targets": targets, "at": at, "points": points, "instant": instant,
        "repository": repository,
    }  # fmt: skip
    return carry_out(forms.request("drill", given))
