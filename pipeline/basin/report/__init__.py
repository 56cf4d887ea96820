"""The report: what the outcomes say, as a page, as tables and as plots. It runs no model.

`write` is the door; `terminal` shows the same table in a shell. What each column means: docs/report.md.
"""

from pipeline.report.console import terminal
from pipeline.report.table import Table
from pipeline.report.writing import read, write

__all__ = ["Table", "read", "terminal", "write"]
