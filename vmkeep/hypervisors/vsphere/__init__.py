"""The driver `vsphere`: VMs of VMware vCenter or of one ESXi host."""
