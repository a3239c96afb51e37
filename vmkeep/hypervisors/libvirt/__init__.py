"""QEMU/KVM under libvirt. Nothing else in vmkeep imports libvirt; it is an optional extra (LGPL-2.1+)."""
