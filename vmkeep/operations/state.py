"""Where this machine keeps what it needs from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder(fleet: str) -> Path:
    """Return where this machine keeps the state of a fleet's runs.

    `VMKEEP_STATE`, or else `vmkeep` in the XDG state folder. It must hold what a backup has read and
    not uploaded yet.
    """
    root = os.environ.get("VMKEEP_STATE")
    if not root:
        root = os.path.join(os.environ.get("XDG_STATE_HOME", "~/.local/state"), "vmkeep")  # noqa: PTH118
    return Path(root).expanduser() / fleet


def cache_folder(fleet: str) -> Path:
    """Return where it keeps copies of what lies in repositories; it may be removed at any time."""
    return state_folder(fleet) / "cache"
