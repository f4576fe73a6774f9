"""Measures the whole loop from the log, so that every figure can be recomputed."""
