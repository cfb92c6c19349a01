"""Synthetic head slices with tumours, for a demonstration and for trying things out: heads that never were.

`phantom_slices` gives them one by one, `write_phantoms` writes them as files in the layout of the figshare data set.
"""

from __future__ import annotations

from kerasseg.phantom.files import write_phantoms
from kerasseg.phantom.scanners import SCANNERS, Scanner
from kerasseg.phantom.slices import phantom_slice, phantom_slices

__all__ = ["SCANNERS", "Scanner", "phantom_slice", "phantom_slices", "write_phantoms"]
