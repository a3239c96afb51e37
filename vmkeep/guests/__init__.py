"""The inside of running VMs, reached by guest agent or SSH."""
