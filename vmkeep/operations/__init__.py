"""The bodies of the steps: what a backup, restore, configuration and verification do."""
