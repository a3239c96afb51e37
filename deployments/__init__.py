"""Where and when: deployments, schedules, and a server for one machine."""

from __future__ import annotations

from typing import Final

POOL: Final = "vmkeep"
"""The work pool that deployments use unless told otherwise."""
