"""The one place that holds the version; hatchling reads it."""

__version__ = "0.2.0"
