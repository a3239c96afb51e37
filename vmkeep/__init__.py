"""vmkeep backs up and restores fleets of virtual machines as one dependency graph."""
