"""Evaluation: predictions of a network, scores of its slices, and the figures computed from them."""
