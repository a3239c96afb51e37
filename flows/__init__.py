"""What runs in which order: Prefect flows generated from a fleet."""

from flows import settings

# Prefect reads its settings when it is imported, so they must be there before.
settings.apply()
