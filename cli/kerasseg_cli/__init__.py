"""The `kerasseg` command."""
