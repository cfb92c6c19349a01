"""Evaluation: what a network puts out (`predictions`), its figures (`document` is their form), and how they come about."""
