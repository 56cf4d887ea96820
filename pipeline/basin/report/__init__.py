"""The report: what the outcomes say, as a page, as tables and as plots. It runs no model and loads no torch.

Knows the files that evaluation wrote. Start with writing.py; what each column means: docs/report.md.
"""
