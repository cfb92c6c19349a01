"""The version of the distribution; hatchling reads it."""

__version__ = "0.2.0"
