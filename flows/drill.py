"""The entry point of drill deployments: `flows/drill.py:drill`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import forms
from flows.generate import DESCRIPTIONS, carry_out, run_name, threads


@flow(name="drill", description=DESCRIPTIONS["drill"], flow_run_name=run_name, task_runner=threads())
def drill(
    fleet: str,
    targets: list[str] | None = None,
    at: datetime | None = None,
    points: dict[str, str] | None = None,
    repository: str | None = None,
) -> State[Any]:
    """Prove that services of the fleet in the file *fleet* can be recovered."""
    given = {"fleet": fleet, "targets": targets, "at": at, "points": points, "repository": repository}
    return carry_out(forms.request("drill", given))
