"""Disks as bytes at offsets, and the file systems in them."""
