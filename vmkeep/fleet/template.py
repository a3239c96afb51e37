"""The fleet file that `vmkeep init` writes: valid as it stands, with a word on every line that matters."""

from __future__ import annotations

import json
from typing import Final

_TEMPLATE: Final = """\
# yaml-language-server: $schema={schema}
# What vmkeep backs up. Check it with `vmkeep validate`, see what would run with `vmkeep plan`.
version: 1
fleet: {fleet}

repository:
  store: {store}            # a path (a disk, an NFS mount), or s3://BUCKET/PREFIX
  # s3: {{region: eu-central-1}}   # for s3:// only; credentials come from the AWS chain, never from here
  key: {{file: {key_file}}}  # or {{env: NAME}}; the key itself never stands here
  retention: {{last: 3, daily: 7, weekly: 5, monthly: 12}}

hypervisors:
  shelf: {{driver: images, path: {images}}}   # a folder with one folder of disk images a VM
  # rack1: {{driver: libvirt, uri: "qemu:///system"}}

defaults: {{hypervisor: shelf, cpus: 1, memory: 1GiB}}   # what every VM inherits unless it says otherwise

vms:
  db1:
    disks:
      - {{name: root, size: 10GiB}}
      - {{name: data, size: 40GiB}}
    components:
      os: {{}}                           # every disk that no file system below claims whole
      filesystems:
        data: {{disk: data}}             # a whole disk; or {{path: /srv/files, exclude: ["*.tmp"]}}
      # databases:
      #   orders: {{engine: postgresql}}   # also on its own, so that it can be restored on its own
  app1:
    depends_on: [db1]                  # restored after db1, and only if db1 passed its health checks
    disks:
      - {{name: root, size: 10GiB}}
    health:
      - image: true                    # images and file systems are sound

# consistency_groups:                  # VMs that must be saved at the same moment
#   shop: {{vms: [db1, app1], max_freeze: 10s}}
# schedules:
#   backup: {{cron: "0 1 * * *", timezone: Europe/Berlin}}
# limits: {{shelf: 2, upload: 4}}        # how much runs at once
"""


def template(
    fleet: str = "example",
    *,
    store: str = "./backups",
    key_file: str = "./example.key",
    images: str = "./images",
    schema: str = "fleet.schema.json",
) -> str:
    """Return the text of a fleet file to start from.

    Args:
        store: as in the file: a path or `s3://BUCKET/PREFIX`.
        key_file: the file that holds, or will hold, the repository's key.
        images: the folder of the VMs.
        schema: where an editor finds the JSON Schema (`vmkeep schema` prints it).
    """
    return _TEMPLATE.format(
        fleet=_scalar(fleet),
        store=_scalar(store),
        key_file=_scalar(key_file),
        images=_scalar(images),
        schema=schema,
    )


def _scalar(text: str) -> str:
    """Return *text* as YAML: plain where nobody could misread it, else quoted as JSON is."""
    plain = text and all(letter.isalnum() or letter in "._-/" for letter in text) and not text[0].isdigit()
    return (
        text
        if plain and text.lower() not in {"true", "false", "null"}
        else json.dumps(text, ensure_ascii=False)
    )
