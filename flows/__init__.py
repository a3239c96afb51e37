"""What runs in which order: Prefect flows generated from a fleet."""
