"""Secrets that stand in a fleet file as plain text: found, and refused without being repeated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from vmkeep.fleet.document import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet.document import Path, Value

_KEYS: Final = re.compile(
    r"(.*[_-])?(pass|password|passwd|passphrase|pwd|secret|secret[_-]?key|token|api[_-]?key|access[_-]?key"
    r"([_-]?id)?|private[_-]?key)",
    re.IGNORECASE,
)
_REFERENCES: Final = frozenset({"prefect_secret"})
_REFERENCE_VALUES: Final = frozenset({"key", "credentials"})
_TEXTS: Final = (
    (re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE), "a URL with a password"),
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
)
_ADVICE: Final = (
    "never write secrets into the fleet file; say where it lies: "
    "{file: PATH}, {env: NAME} or {prefect_secret: NAME}"
)


def findings(value: Value, path: Path = ()) -> Iterator[Finding]:
    """Yield a finding for each secret below *value*; the message never holds the secret."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from findings(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from findings(child, (*path, index))
    elif value is not None and (what := _secret(value, path)):
        yield Finding(path, f"{what} in plain text: {_ADVICE}")


def _secret(value: Value, path: Path) -> str | None:
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if isinstance(value, bool):
        return None
    declared = len(path) > 1 and path[-2] in {"vms", "hypervisors", "limits"}  # a name that somebody chose
    if not declared and key not in _REFERENCES and (key in _REFERENCE_VALUES or _KEYS.fullmatch(key)):
        return "a secret"
    return next((what for pattern, what in _TEXTS if pattern.search(str(value))), None)
