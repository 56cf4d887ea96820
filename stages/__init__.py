"""One thin script a stage: parse the name, load, call, save. It runs the `basin` of its own checkout, whichever is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
