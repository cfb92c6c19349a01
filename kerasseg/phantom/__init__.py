"""Synthetic head slices with tumours, for demonstrations and tests.

`phantom_slices` yields slices; `write_phantoms` writes them as files in the layout of the figshare data set.
"""

from __future__ import annotations

from kerasseg.phantom.files import write_phantoms
from kerasseg.phantom.scanners import SCANNERS, Scanner
from kerasseg.phantom.slices import phantom_slice, phantom_slices

__all__ = ["SCANNERS", "Scanner", "phantom_slice", "phantom_slices", "write_phantoms"]
