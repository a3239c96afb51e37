"""Media that boot the tiny guest by themselves: an ISO image, or a disk with one ext4 partition.

sector 0       boot.img of GRUB, with the partition table
sectors 1 ..   core.img of GRUB, in the gap before the first partition
sector 2048    the partition: /boot/vmlinuz, /boot/initramfs, /boot/grub/grub.cfg, and the given files
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import tools
from vmkeep.errors import UnsupportedError
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.units import MiB

if TYPE_CHECKING:
    from vmkeep.testing.tiny_guest import BootFiles

_GRUB: Final = Path("/usr/lib/grub/i386-pc")
_MODULES: Final = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile")
_EARLY: Final = "set root=(hd0,msdos1)\nset prefix=(hd0,msdos1)/boot/grub\nconfigfile /boot/grub/grub.cfg\n"
_EARLY_CD: Final = "set root=(cd)\nset prefix=(cd)/boot/grub\nconfigfile /boot/grub/grub.cfg\n"
_CONFIG: Final = "set timeout=0\nlinux /boot/vmlinuz {command_line}\ninitrd /boot/initramfs\nboot\n"
_SECTOR: Final = 512
_START: Final = 2048
# See: GRUB, include/grub/i386/pc/boot.h: where boot.img says which sector and drive core.img is read from;
# grub-core/boot/i386/pc/diskboot.S: the first sector of core.img ends with a list of blocks.
_KERNEL_SECTOR: Final = 0x5C
_BOOT_DRIVE: Final = 0x64
_BLOCK_LIST: Final = struct.Struct("<QHH")
_LOAD_SEGMENT: Final = 0x820


def build_boot_disk(path: Path, tree: Path, files: BootFiles, *, size: int = 96 * MiB) -> None:
    """Make a raw image that boots the tiny guest with the files of *tree* on its disk.

    Raises:
        UnsupportedError: GRUB for BIOS is not installed.
    """
    if not (_GRUB / "boot.img").exists():
        raise UnsupportedError("no GRUB for BIOS: apt-get install grub-pc-bin grub-common (Debian, Ubuntu)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        root, part, core = Path(folder) / "root", Path(folder) / "part", Path(folder) / "core.img"
        shutil.copytree(tree, root)
        (root / "boot" / "grub").mkdir(parents=True)
        shutil.copy(files.kernel, root / "boot" / "vmlinuz")
        shutil.copy(files.initramfs, root / "boot" / "initramfs")
        config = _CONFIG.format(command_line=files.command_line)
        (root / "boot" / "grub" / "grub.cfg").write_text(config)
        build_filesystem(part, Volume(root, size=size - _START * _SECTOR, label="root"))
        early = Path(folder) / "early.cfg"
        early.write_text(_EARLY)
        tools.run(
            "grub-mkimage", "-O", "i386-pc", "-o", str(core), "-c", str(early), "-p", "/boot/grub", *_MODULES,
            timeout_s=60,
        )  # fmt: skip
        _assemble(path, part, core.read_bytes(), size)


def build_boot_iso(path: Path, files: BootFiles) -> None:
    """Make an ISO image that boots the tiny guest.

    See: El Torito, "no emulation"; GRUB, grub-core/boot/i386/pc/cdboot.S.

    Raises:
        UnsupportedError: GRUB for BIOS, or xorriso, is not installed.
    """
    if not (_GRUB / "cdboot.img").exists():
        raise UnsupportedError("no GRUB for BIOS: apt-get install grub-pc-bin grub-common (Debian, Ubuntu)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tree, early, core = Path(folder) / "tree", Path(folder) / "early.cfg", Path(folder) / "core.img"
        (tree / "boot" / "grub").mkdir(parents=True)
        shutil.copy(files.kernel, tree / "boot" / "vmlinuz")
        shutil.copy(files.initramfs, tree / "boot" / "initramfs")
        config = _CONFIG.format(command_line=files.command_line)
        (tree / "boot" / "grub" / "grub.cfg").write_text(config)
        early.write_text(_EARLY_CD)
        tools.run(
            "grub-mkimage", "-O", "i386-pc-eltorito", "-o", str(core), "-c", str(early), "-p", "/boot/grub",
            *_MODULES, "iso9660", timeout_s=60,
        )  # fmt: skip
        shutil.copy(core, tree / "boot" / "eltorito.img")
        tools.run(
            "xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", str(path), "-b", "boot/eltorito.img",
            "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", str(tree), timeout_s=120,
        )  # fmt: skip


def _assemble(path: Path, part: Path, core: bytes, size: int) -> None:
    with path.open("xb") as file:
        file.truncate(size)
    table = f"label: dos\nstart={_START}, type=83, bootable\n".encode()
    command = [tools.find("sfdisk"), "--quiet", "--no-reread", "--no-tell-kernel", str(path)]
    subprocess.run(command, input=table, check=True, capture_output=True, timeout=60)
    boot = bytearray((_GRUB / "boot.img").read_bytes()[:440])
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, 1)
    boot[_BOOT_DRIVE] = 0xFF
    loader = bytearray(core)
    sectors = -(-len(core) // _SECTOR)
    _BLOCK_LIST.pack_into(loader, _SECTOR - _BLOCK_LIST.size, 2, sectors - 1, _LOAD_SEGMENT)
    with path.open("r+b") as file, part.open("rb") as content:
        file.write(boot)
        file.seek(_SECTOR)
        file.write(loader)
        file.seek(_START * _SECTOR)
        shutil.copyfileobj(content, file, MiB)
