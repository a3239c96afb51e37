"""What a VM is made of: how each kind is saved and restored."""
