"""Masks for new slices, in the geometry of their files.

predictor  network of a run or checkpoint, or several, with size, intensity rule and threshold
sources    runs and checkpoints by name
inputs     pictures, volumes and series that each get one mask file, and their slices
pipeline   reading, network and writing at the same time, in bounded memory
writers    mask files: PNG, NIfTI, DICOM SEG, overlays
table      rows of `predictions.csv`
resume     finished inputs, for `--continue`
arrays     `predict_masks`, for arrays instead of files
"""
