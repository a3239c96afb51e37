"""A KMS server for tests: moto's, on a loopback port.

It really encrypts, and checks the encryption context and which key is named. Of what it does not do (disabled
keys, throttling, permissions) tests script the answers.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import boto3
from moto.server import ThreadedMotoServer

from vmkeep.repository.kms import KmsOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION: Final = "eu-central-1"
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@dataclass(frozen=True, slots=True)
class KmsServer:
    """A running server."""

    endpoint_url: str

    @property
    def options(self) -> KmsOptions:
        """How to reach it."""
        return KmsOptions(self.endpoint_url)

    def new_key(self, alias: str | None = None) -> str:
        """Make a key, and return its ARN.

        Args:
            alias: a name for it, as `alias/NAME`.
        """
        with contextlib.closing(self._client()) as client:
            arn = str(client.create_key()["KeyMetadata"]["Arn"])
            if alias is not None:
                client.create_alias(AliasName=alias, TargetKeyId=arn)
        return arn

    def _client(self) -> Any:
        return boto3.client(
            "kms",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )


@contextlib.contextmanager
def kms_server() -> Iterator[KmsServer]:
    """Run a server; it has ended on return."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield KmsServer(f"http://{host}:{port}")
    finally:
        server.stop()
