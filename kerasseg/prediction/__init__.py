"""Masks for new slices, in the geometry of their files.

predictor  the network of a run or checkpoint, or several, with size, intensity rule and threshold
inputs     what becomes one mask file: a picture, a volume or a series; reading its slices
pipeline   reading, network and writing at the same time, in bounded memory
writers    mask files: PNG, NIfTI, DICOM SEG, overlays
table      rows of `predictions.csv`
resume     what is done already, for `--continue`
arrays     `predict_masks`, for arrays instead of files
"""
