"""Where objects lie, behind one Protocol."""
