"""What runs in which order, as pure data: no input or output in here."""
