"""Whether guests run on the processor itself (KVM) or are emulated; found by trying.

A device /dev/kvm that opens, and a QEMU that starts with it, prove nothing: on some machines that are
virtual themselves guests then hardly get anywhere, or die at the first odd instruction. So the processor
must have the means; and a machine without disks is started for a moment: its BIOS finds nothing to boot, and
halts. Where that takes long, the same is tried with emulation.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt
import libvirt_qemu

if TYPE_CHECKING:
    from vmkeep.hypervisors.libvirt.connection import Connection

_QUICK_S: Final = 1.5
"""A BIOS that halts within so many seconds is not slowed down by anything."""
_SLOWER: Final = 2.0
"""KVM that takes so many times as long as emulation is worse than none."""
_GIVEN_UP_S: Final = 10.0
_POLL_S: Final = 0.05
_PROBE: Final = """\
<domain type='{kind}'>
  <name>vmkeep-probe-{token}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='{arch}' machine='{machine}'>hvm</type></os>
  <devices><memballoon model='none'/><controller type='usb' model='none'/></devices>
</domain>
"""
_CPUS: Final = Path("/proc/cpuinfo")
_known: Final[dict[str, str]] = {}
_lock: Final = threading.Lock()


def domain_type(connection: Connection, *, arch: str, machine: str) -> str:
    """Return `kvm`, or `qemu` where only emulation works; asked once for each host."""
    with _lock:
        if connection.uri not in _known:
            _known[connection.uri] = _tried(connection.get(), arch=arch, machine=machine)
        return _known[connection.uri]


def _tried(host: libvirt.virConnect, *, arch: str, machine: str) -> str:
    if not _has_means(host):
        return "qemu"
    fast = _seconds(host, "kvm", arch=arch, machine=machine)
    if fast <= _QUICK_S:
        return "kvm"
    return "kvm" if fast <= _SLOWER * _seconds(host, "qemu", arch=arch, machine=machine) else "qemu"


def _has_means(host: libvirt.virConnect) -> bool:
    """Tell whether the processor can virtualize; of another host that is not known, and taken for granted."""
    if host.getHostname() != socket.gethostname() or not _CPUS.exists():
        return True
    return re.search(r"^(flags\s*:.*\b(vmx|svm)\b|Features\s*:)", _CPUS.read_text(), re.MULTILINE) is not None


def _seconds(host: libvirt.virConnect, kind: str, *, arch: str, machine: str) -> float:
    """Return how long a machine without disks runs until its BIOS halts; infinite if it does not start."""
    xml = _PROBE.format(kind=kind, token=secrets.token_hex(4), arch=arch, machine=machine)
    try:
        probe = host.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    except libvirt.libvirtError:
        return math.inf
    begun = time.monotonic()
    try:
        while time.monotonic() < begun + _GIVEN_UP_S:
            registers = libvirt_qemu.qemuMonitorCommand(
                probe, "info registers", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            )
            if "HLT=1" in registers:
                return time.monotonic() - begun
            time.sleep(_POLL_S)
    except libvirt.libvirtError:
        return 0.0  # the monitor is not for us: it started, which is all that can be known
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            probe.destroy()
    return math.inf
