"""Settings of Prefect that vmkeep was measured with; what the environment says already, stays."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from vmkeep.errors import TemporaryError

# The recorder and the persister take events one by one by default: 1000 task runs then cost the server
# 35 s of CPU, batched 8 s. An embedded server may need half a minute on a busy machine.
DEFAULTS: Final = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "30",
}


def apply() -> None:
    """Set the defaults; call it before Prefect is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def server_file() -> Path:
    """Return where `vmkeep up` notes the server that it started."""
    root = (
        os.environ.get("VMKEEP_STATE") or Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")) / "vmkeep"
    )
    return Path(root).expanduser() / "server.json"


def find_server() -> str | None:
    """Use the server that `vmkeep up` started, unless the environment names one; call it before Prefect.

    Returns:
        Its API's address, or `None`: flows then start a server of their own, inside their process.
    """
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"]
    try:
        url: str = json.loads(server_file().read_text())["url"]
        with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310  (we wrote the address)
            pass
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
    os.environ["PREFECT_API_URL"] = url
    return url


def require_server() -> str | None:
    """Find the server as `find_server` does, and make sure that it answers.

    Raises:
        TemporaryError: it does not.
    """
    url = find_server()
    if url is None:
        return None
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  (the operator's own setting)
            return url
    except urllib.error.HTTPError:
        return url  # it answers: Prefect Cloud wants a key, which its client has
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TemporaryError(
            f"the Prefect server {url} is away: {reason}; --direct does without it"
        ) from error
