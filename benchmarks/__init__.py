"""Measurements against what others wrote; each writes a page of docs/results."""
