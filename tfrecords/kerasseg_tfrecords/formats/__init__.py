"""How one file is read."""
