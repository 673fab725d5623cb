"""Scores held against the truth: curves, figures, and an interval for every one of them. Pure float64 NumPy."""
