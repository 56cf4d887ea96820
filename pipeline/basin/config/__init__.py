"""params.yaml as typed tables: what may be asked for, and every mistake in what is asked.

Knows how settings are written and where kinds lie (methods/); loads nothing that computes. Start with params.py, then kinds.py.
"""
