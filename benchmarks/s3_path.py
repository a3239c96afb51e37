"""Back up and restore one disk to an S3 service: vmkeep's library against restic, in the same run.

    python benchmarks/s3_path.py [--rounds 3] [--folder FOLDER] [--only vmkeep]

Like `data_path.py`, with repositories in a SeaweedFS server that runs on this machine, and so takes its share
of the processors: its own time is told apart. borg knows no S3. Every round of every tool has a prefix of
its own. restic has its cache, as it always has; vmkeep is measured without one.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_path import Tool, arguments, compare, restic, vmkeep

from vmkeep.stores import open_store
from vmkeep.testing.seaweed import seaweed

if TYPE_CHECKING:
    from vmkeep.testing.seaweed import Seaweed


def tools(server: Seaweed) -> list[Tool]:
    options = server.options
    environment = {
        "AWS_ACCESS_KEY_ID": str(options.access_key),
        "AWS_SECRET_ACCESS_KEY": str(options.secret_key),
        "AWS_DEFAULT_REGION": str(options.region),
        "S3_ENDPOINT": server.endpoint_url,
    }
    bucket = server.new_bucket()

    def size(folder: Path) -> int:
        with contextlib.closing(open_store(f"s3://{bucket}/{folder.name}", s3=options)) as store:
            return sum(info.size for info in store.list())

    found = [
        vmkeep(f"s3://{bucket}/{{folder}}", size, environment),
        restic(f"s3:{server.endpoint_url}/{bucket}/{{folder}}", size, environment),
    ]
    return [replace(tool, server=server.process) for tool in found]


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        with seaweed(folder / "seaweed") as server:
            compare(tools(server), folder, options)


if __name__ == "__main__":
    main()
