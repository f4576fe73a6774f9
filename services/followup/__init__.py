"""Turns unhappy answers into callback tasks, and tells customers what changed."""
