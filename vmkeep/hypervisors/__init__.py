"""What runs VMs, behind one Protocol."""
